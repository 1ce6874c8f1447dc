"""Several dictionaries learned from different seeds, the best chosen without ground truth."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxsep.learning.learner import DictionaryLearner
from jaxsep.numerics.devices import parallel_map
from jaxsep.progress import Progress, listener
from jaxsep.pursuit.recording import pursue

__all__ = ["Restart", "learn_dictionaries"]

#: Frames on which restarts are compared, spread over the recording.
_VALIDATION_FRAMES = 512

#: Frames this far below the loudest one teach nothing.
_QUIET = 1e-3


class Restart(eqx.Module):
    """A learned dictionary, and the recording's mean lifted loss under it relative to that without tones."""

    harmonics: Float[Array, "instruments harmonics"]
    loss: float


def learn_dictionaries(
    spectra: Float[np.ndarray | Array, "frames bins"],
    learner: DictionaryLearner,
    num_restarts: int,
    *,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> list[Restart]:
    """Learns from several seeds side by side; the best restart first.

    They are ranked by the mean lifted loss of frames spread over the recording, pursued with the final
    dictionary: the training loss does not tell a good dictionary from one that holds an instrument twice
    (P1 ranks by ground truth, which a user does not have).

    Arguments:
        spectra: log-frequency magnitudes of the recording, peak about 1.
        learner: how to learn.
        num_restarts: at least 1.
        progress: hears of every call of every restart.

    Example:
        >>> spectra = jnp.exp(-0.5 * ((jnp.arange(1024.0) - 400) / 1.91) ** 2)[None]
        >>> learner = jaxsep.DictionaryLearner(num_instruments=1, num_harmonics=2, batch=1, calls=4, polish=0)
        >>> best, other = jaxsep.learn_dictionaries(spectra, learner, 2, key=jax.random.key(0))
        >>> best.loss <= other.loss, best.harmonics.shape
        (True, (1, 2))
    """
    if num_restarts < 1:
        raise ValueError(f"num_restarts: expected at least 1, got {num_restarts}")
    progress = listener(progress)
    loudness = np.max(np.asarray(spectra), axis=1)
    useful = jnp.asarray(np.asarray(spectra)[loudness > _QUIET * np.max(loudness)])
    if useful.shape[0] == 0:
        raise ValueError("spectra: expected at least one frame that is not silent, got none")
    spread = np.unique(np.linspace(0, useful.shape[0] - 1, _VALIDATION_FRAMES).round().astype(int))
    validation = np.asarray(useful[spread])
    name = "learning the instruments"
    with progress.stage(name, num_restarts * (learner.calls + learner.polish)) as advance:

        def run(seed):
            harmonics = _learn(useful, learner, lambda loss: advance(f"loss {loss:.3f}"), key=seed)
            return Restart(harmonics, float(_relative_loss(learner.pursuit, validation, harmonics)))

        restarts = list(parallel_map(run, jax.random.split(key, num_restarts)))
    return sorted(restarts, key=lambda restart: restart.loss)


def _learn(spectra, learner, advance, *, key):
    state = learner.start(spectra.dtype, key=jax.random.fold_in(key, 0))

    def draw(call):
        return jax.random.randint(
            jax.random.fold_in(key, 2 * call + 1), (learner.batch,), 0, spectra.shape[0]
        )

    def step(state, call, rate):
        state, loss = learner.step(state, spectra[draw(call)], jnp.asarray(rate, spectra.dtype))
        advance(float(loss))
        return state

    for call in range(learner.calls):
        state = step(state, call, learner.learning_rate)
        ended = call + 1
        # The last lifetime ends with the choice of the survivors instead.
        if ended % learner.lifetime == 0 and ended + learner.lifetime <= learner.calls:
            state = learner.renew(state, key=jax.random.fold_in(key, 2 * call + 2))
    state = learner.survivors(state)
    for call in range(learner.polish):
        rate = learner.learning_rate * learner.cooling ** (call / max(1, learner.polish - 1))
        state = step(state, learner.calls + call, rate)
    rows = state.harmonics[: learner.num_instruments]
    peak = jnp.max(rows, axis=1, keepdims=True)
    return rows / jnp.where(peak > 0, peak, 1)


def _relative_loss(pursuit, spectra, harmonics):
    # The same compiled program that later pursues the whole recording.
    found = pursue(pursuit, spectra, harmonics)
    lifted = pursuit.objective.lifted(jnp.asarray(spectra))
    silence = 0.5 * jnp.sum((lifted - pursuit.objective.lifted(jnp.zeros_like(lifted))) ** 2, axis=1)
    return np.mean(found.loss) / np.mean(silence)

"""Alternating minimisation over a whole recording: tones of all frames, then the dictionary, and again."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxsep.dictionary.adam import instrument_adam
from jaxsep.dictionary.learning import mean_loss
from jaxsep.pursuit.search import Decomposition, improve, propagate, pursue, refit
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.tones.tones import Tones

__all__ = ["Alternation", "fit_dictionary"]

#: Frames in one step of the dictionary's descent.
_BATCH = 256


class Alternation(eqx.Module):
    """Minimises P1's objective over a whole recording, from a dictionary that was learned from samples of it.

    A round fits the dictionary to the tones of all frames, refines the tones, lets a fresh greedy pursuit
    offer its own, and propagates tones between frames. Tones and dictionary thus minimise one objective,
    `Σ_frames L`, of which the stochastic learner is the initialisation. The best round counts.

    Arguments:
        rounds: alternations; 0 only searches with the dictionary as it is.
        spans: distances, in frames, over which tones are propagated.
        descents: steps of the modified Adam per round.
        learning_rate: of the first round; it falls with 1 / round.
        tolerance: relative decrease of the mean loss in a round below which it ends.
    """

    rounds: int = eqx.field(static=True, default=3)
    spans: tuple[int, ...] = eqx.field(static=True, default=(1, 2, 6, 12, 24))
    descents: int = eqx.field(static=True, default=60)
    learning_rate: float = 5e-3
    tolerance: float = 2e-3

    def num_steps(self, num_chunks: int) -> int:
        """How often `advance` is called at most."""
        return (self.rounds + 1) * (num_chunks + 2 * len(self.spans))

    def __call__(
        self,
        pursuit: TonePursuit,
        spectra: Float[np.ndarray, "frames bins"],
        harmonics: Float[Array, "instruments harmonics"],
        advance: Callable[[str], None] = lambda note: None,
    ) -> tuple[Decomposition, Float[Array, "instruments harmonics"], list[float]]:
        """Tones, dictionary, and the mean loss after each round; `advance` hears of every part."""
        note = [""]
        tick = lambda: advance(note[0])
        found = pursue(pursuit, spectra, harmonics, tick)
        note[0] = f"loss {found.loss.mean():.3f}"
        found = propagate(pursuit, spectra, harmonics, found, self.spans, tick)
        best, trace = (found, harmonics), [float(found.loss.mean())]
        for number in range(self.rounds):
            note[0] = f"loss {trace[-1]:.3f}"
            rate = self.learning_rate / (1 + number)
            harmonics = fit_dictionary(
                pursuit, spectra, found.tones, harmonics, self.descents, rate, seed=number
            )
            found = refit(pursuit, spectra, harmonics, found.tones, np.full_like(found.loss, np.inf))
            fresh = pursue(pursuit, spectra, harmonics, tick)
            found = improve(found, np.arange(found.loss.size), fresh)[0]
            found = propagate(pursuit, spectra, harmonics, found, self.spans, tick)
            trace.append(float(found.loss.mean()))
            if trace[-1] <= best[0].loss.mean():
                best = found, harmonics
            if trace[-1] > (1 - self.tolerance) * trace[-2]:
                break
        return *best, trace


def fit_dictionary(
    pursuit: TonePursuit,
    spectra: Float[np.ndarray, "frames bins"],
    tones: Tones,
    harmonics: Float[Array, "instruments harmonics"],
    descents: int,
    learning_rate: float,
    *,
    seed: int,
) -> Float[Array, "instruments harmonics"]:
    """The dictionary after `descents` steps of the modified Adam on the mean loss at given tones."""
    frames = np.random.default_rng(seed).integers(0, spectra.shape[0], (descents, _BATCH))
    here = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[frames]), tones)
    return _descend(pursuit.objective, jnp.asarray(spectra[frames]), here, harmonics, learning_rate)


@eqx.filter_jit
def _descend(objective, spectra, tones, harmonics, learning_rate):
    optimiser = instrument_adam(learning_rate)

    def step(carry, batch):
        rows, moments = carry
        gradient = jax.grad(lambda rows: mean_loss(objective, *batch, rows))(rows)
        change, moments = optimiser.update(gradient, moments)
        return (jnp.clip(optax.apply_updates(rows, change), 0, 1), moments), None

    (rows, _), _ = jax.lax.scan(step, (harmonics, optimiser.init(harmonics)), (spectra, tones))
    peak = jnp.max(rows, axis=1, keepdims=True)
    return rows / jnp.where(peak > 0, peak, 1)

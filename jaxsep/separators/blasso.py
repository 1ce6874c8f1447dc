"""The decomposition of a recording by the Beurling LASSO (P3), in place of the pursuit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsep.blasso.certificate import alpha_max
from jaxsep.blasso.patterns import Patterns
from jaxsep.blasso.projection import Projection
from jaxsep.blasso.proximal import BeurlingLasso
from jaxsep.blasso.support import spikes_as_tones
from jaxsep.progress import Progress
from jaxsep.pursuit.lifting import LiftedLoss, power
from jaxsep.pursuit.refinement import pack, prune
from jaxsep.pursuit.search import Decomposition, parallel_map
from jaxsep.separators.separation import PursuitSettings
from jaxsep.tones.tones import Tones

__all__ = ["decompose"]

#: Frames per compiled call.
_CHUNK = 256


def decompose(
    objective: LiftedLoss,
    spectra: Float[np.ndarray, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"],
    settings: PursuitSettings,
    progress: Progress,
) -> Decomposition:
    """Tones of every frame from the spikes of the Beurling LASSO, and their lifted loss.

    The problem is posed for the *lifted* spectra and patterns (the square root: quiet partials count, and the
    root of a sum is the sum of the roots where tones do not overlap), with patterns of unit norm. α
    is a fraction of each frame's `alpha_max`. Of each instrument's spikes the largest stay, as many as it may
    play. Their amplitudes keep the bias of the penalty, which makes doubtful spikes weaker.

    Arguments:
        objective: the lift, and the axis of the spectra.
        spectra: nonnegative, peak about 1.
        harmonics: rows of the dictionary.
        settings: `alpha` and `tones_per_instrument` are used.
        progress: hears of every chunk.
    """
    name = "Beurling LASSO"
    num_frames = spectra.shape[0]
    patterns = Patterns.from_dictionary(jnp.asarray(harmonics), objective.axis, lift=objective.lift)
    alpha = jnp.asarray(settings.alpha, spectra.dtype)
    with progress.stage(name, -(-num_frames // _CHUNK)):

        def run(first):
            # The last chunk repeats its last frame, so that every chunk has one compiled shape.
            rows = np.minimum(np.arange(first, first + _CHUNK), num_frames - 1)
            here = jnp.asarray(spectra[rows])
            found = _decompose(objective, patterns, here, harmonics, alpha, settings.tones_per_instrument)
            found = jax.tree.map(np.asarray, found)
            progress.advance(name)
            return found

        parts = list(parallel_map(run, range(0, num_frames, _CHUNK)))
    tones, loss = jax.tree.map(lambda *x: np.concatenate(x)[:num_frames], *parts)
    return Decomposition(tones, loss)


@eqx.filter_jit
def _decompose(objective, patterns, spectra, harmonics, alpha, tones_per_instrument):
    lifted = power(spectra, objective.lift)
    largest = jax.lax.map(lambda b: alpha_max(patterns, b), lifted)
    bound = jnp.where(largest > 0, alpha * largest, 1)  # silence is 0 at any α
    found = BeurlingLasso(Projection(), proximal_steps=0)(patterns, lifted, bound)

    def finish(frame):
        spikes, spectrum = frame
        tones = _loudest(spikes_as_tones(patterns, spikes, lift=objective.lift), tones_per_instrument)
        model = objective.model(pack(tones, objective.lift), harmonics[tones.instrument])
        difference = objective.lifted(model) - objective.lifted(spectrum)
        capacity = harmonics.shape[0] * tones_per_instrument
        order = jnp.argsort(~tones.active, stable=True)[:capacity]
        return jax.tree.map(lambda x: x[order], tones), 0.5 * jnp.sum(difference**2)

    return jax.lax.map(finish, (found.spikes, spectra))


def _loudest(tones: Tones, tones_per_instrument: int) -> Tones:
    """The largest amplitudes of each instrument."""
    stays = prune(tones.amplitude, tones.instrument, tones.active, tones_per_instrument)
    amplitude = jnp.where(stays, tones.amplitude, 0)
    return eqx.tree_at(lambda t: (t.active, t.amplitude), tones, (stays, amplitude))

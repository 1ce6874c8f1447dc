"""The decomposition of a recording by the Beurling LASSO (P3), in place of the pursuit."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsep.blasso.certificate import alpha_max
from jaxsep.blasso.lasso import BeurlingLasso
from jaxsep.blasso.patterns import Patterns
from jaxsep.blasso.projection import Projection
from jaxsep.blasso.support import spikes_as_tones
from jaxsep.numerics.devices import map_chunks
from jaxsep.pursuit.loss import LiftedLoss, power
from jaxsep.pursuit.recording import Hypotheses, refit
from jaxsep.pursuit.refinement import ToneFit, prune
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Polyphony, Tones, polyphony_of

__all__ = ["decompose", "largest_spikes"]


def decompose(
    model: ToneFit,
    spectra: Float[np.ndarray, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"],
    advance: Callable[[], None] = lambda: None,
    *,
    alpha: float,
) -> Hypotheses:
    """Tones of every frame from the spikes of the Beurling LASSO, refined, and their lifted loss.

    The problem is posed for the *lifted* spectra and patterns (the square root: quiet partials count, and the
    root of a sum is the sum of the roots where tones do not overlap), with patterns of unit norm. Of each
    instrument's spikes the largest stay, as many as it may play. Refined under the pursuit's objective, the
    tones lose the penalty's bias and get their widths and inharmonicities.

    Arguments:
        model: how to fit, how many tones an instrument may play, and between which bins.
        spectra: nonnegative, peak about 1.
        harmonics: rows of the dictionary.
        advance: is called after each chunk.
        alpha: fraction of each frame's `alpha_max`.
    """
    last = model.objective.axis.num_bins - 1
    low, high = max(0.0, float(model.lowest)), min(float(last), float(model.highest))
    shifts = math.ceil(low), math.floor(high)
    most = model.tones_per_instrument
    tones = largest_spikes(model.objective, spectra, harmonics, alpha, most, advance, shifts=shifts)
    return refit(model, spectra, Dictionary(harmonics), tones)


def largest_spikes(
    objective: LiftedLoss,
    spectra: Float[np.ndarray, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"],
    alpha: float,
    tones_per_instrument: Polyphony,
    advance: Callable[[], None] = lambda: None,
    *,
    shifts: tuple[int, int] | None = None,
) -> Tones:
    """The spikes alone as tones, as many as may play; `advance` is called after each chunk."""
    options = {"lift": objective.lift, "shifts": shifts}
    patterns = Patterns.from_dictionary(jnp.asarray(harmonics), objective.axis, **options)
    fraction = jnp.asarray(alpha, spectra.dtype)
    run = lambda chunk: _decompose(objective, patterns, chunk, fraction, tones_per_instrument)
    return map_chunks(run, spectra, advance=advance)


@eqx.filter_jit
def _decompose(objective, patterns, spectra, fraction, tones_per_instrument):
    lifted = power(spectra, objective.lift)
    largest = jax.lax.map(lambda b: alpha_max(patterns, b), lifted)
    bound = jnp.where(largest > 0, fraction * largest, 1)  # silence is 0 at any α
    found = BeurlingLasso(Projection(), proximal_steps=0)(patterns, lifted, bound)

    def loudest(spikes):
        tones = spikes_as_tones(patterns, spikes, lift=objective.lift)
        stays = prune(tones.amplitude, tones.instrument, tones.active, tones_per_instrument)
        most = sum(polyphony_of(tones_per_instrument, patterns.num_patterns))
        order = jnp.argsort(~stays, stable=True)[:most]
        tones = eqx.tree_at(lambda t: t.active, tones, stays)
        tones = jax.tree.map(lambda x: x[order], tones)
        return eqx.tree_at(lambda t: t.amplitude, tones, jnp.where(tones.active, tones.amplitude, 0))

    return jax.vmap(loudest)(found.spikes)

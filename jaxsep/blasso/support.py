"""The support of a decomposition as tones: where the certificate attains ±α, with amplitudes free of bias."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsep.blasso.patterns import Patterns
from jaxsep.blasso.spikes import Spikes, differentiable_spikes, slide
from jaxsep.numerics.adjoint import Adjoint, Implicit, freeze
from jaxsep.pursuit.loss import power
from jaxsep.tones.tones import Tones

__all__ = ["spikes_as_tones", "support"]

#: Newton steps; the support is a good start.
_STEPS = 30


def support(
    patterns: Patterns,
    signals: Float[Array, "frames bins"],
    spikes: Spikes,
    *,
    lift: float = 1.0,
    adjoint: Adjoint = Implicit(),
) -> Tones:
    """Tones at the spikes: amplitudes by nonnegative least squares, with the positions refined locally.

    The penalty α makes all amplitudes too small, and moves what overlaps. Without it, and with no more than
    the given spikes, both are those of the best fit nearby. A spike that does not help is dropped.

    Arguments:
        patterns: the shapes.
        signals: b.
        spikes: nonnegative measures, `[frames, spikes]`.
        lift: q by which signals and patterns were lifted.
        adjoint: how the fit is differentiated, by patterns and signals.

    Returns: `[frames, spikes]`; amplitudes refer to a dictionary's patterns as they were before the lift and
    the division by their norm.

    Example:
        >>> bump = lambda distance: jnp.exp(-0.5 * (distance / 2) ** 2)
        >>> patterns = jaxsep.Patterns.from_functions([bump], num_bins=40, support=(-12.0, 12.0))
        >>> signal = bump(jnp.arange(40.0) - 20.25)[None]
        >>> spikes = jax.jit(jaxsep.Projection(max_spikes=4))(patterns, signal, 0.35).spikes
        >>> tones = jaxsep.support(patterns, signal, spikes)
        >>> [round(float(jnp.max(x.amplitude)), 1) for x in (spikes, tones)]
        [0.9, 1.0]
    """

    shapes, targets, start = freeze((patterns, signals, spikes))
    free = jnp.zeros(signals.shape[0], signals.dtype)
    fit = lambda frame: slide(shapes, *frame, num_steps=_STEPS)
    found = jax.lax.map(fit, (targets, free, start))
    fitted, _ = differentiable_spikes(found.spikes, found.residual, patterns, signals, free, adjoint)
    return jax.vmap(lambda spikes: spikes_as_tones(patterns, spikes, lift=lift))(fitted)


def spikes_as_tones(patterns: Patterns, spikes: Spikes, *, lift: float = 1.0) -> Tones:
    """Tones of the spikes as they are; arguments as above, for one frame."""
    amplitude = power(spikes.amplitude / patterns.scale[spikes.pattern], 1 / lift)
    heard = lambda x: jnp.where(spikes.active, x, 0)
    return Tones.plain(heard(amplitude), heard(spikes.position), spikes.pattern, spikes.active)

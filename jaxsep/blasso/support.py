"""The support of a decomposition, where the certificate attains ±α: amplitudes free of bias, and tones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsep.blasso.patterns import Patterns
from jaxsep.blasso.spikes import Spikes, differentiable_spikes, slide
from jaxsep.numerics.adjoint import Adjoint, Implicit, freeze
from jaxsep.pursuit.loss import power
from jaxsep.tones.tones import Tones

__all__ = ["debias", "spikes_as_tones", "support"]

#: Newton steps; the support is a good start.
_STEPS = 30


def debias(
    patterns: Patterns,
    signals: Float[Array, "frames bins"],
    spikes: Spikes,
    *,
    adjoint: Adjoint = Implicit(),
) -> Spikes:
    """The same spikes without the penalty: amplitudes by least squares, with the positions refined locally.

    The penalty α makes all amplitudes too small, and moves what overlaps. Without it, and with no more than
    the given spikes, both are those of the best fit nearby. A spike that would change its sign is dropped.

    Arguments:
        patterns: the shapes.
        signals: b.
        spikes: measures, with or without a sign, `[frames, spikes]`.
        adjoint: how the fit is differentiated, by patterns and signals.

    Returns: `[frames, spikes]`.

    Example:
        >>> bump = lambda distance: jnp.exp(-0.5 * (distance / 2) ** 2)
        >>> patterns = jaxsep.Patterns.from_functions([bump], num_bins=40, support=(-12.0, 12.0))
        >>> signal = -bump(jnp.arange(40.0) - 20.25)[None]
        >>> spikes = jaxsep.Projection(signed=True, max_spikes=4)(patterns, signal, 0.35).spikes
        >>> fitted = jaxsep.debias(patterns, signal, spikes)
        >>> [round(float(jnp.sum(x.mass)), 1) for x in (spikes, fitted)]
        [-0.9, -1.0]
    """

    shapes, targets, start = freeze((patterns, signals, spikes))
    free = jnp.zeros(signals.shape[0], signals.dtype)
    fit = lambda frame: slide(shapes, *frame, num_steps=_STEPS)
    found = jax.lax.map(fit, (targets, free, start))
    return differentiable_spikes(found.spikes, found.residual, patterns, signals, free, adjoint)[0]


def support(
    patterns: Patterns,
    signals: Float[Array, "frames bins"],
    spikes: Spikes,
    *,
    lift: float = 1.0,
    adjoint: Adjoint = Implicit(),
) -> Tones:
    """Tones at the spikes of nonnegative measures, as `debias` fits them.

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
    fitted = debias(patterns, signals, spikes, adjoint=adjoint)
    return jax.vmap(lambda spikes: spikes_as_tones(patterns, spikes, lift=lift))(fitted)


def spikes_as_tones(patterns: Patterns, spikes: Spikes, *, lift: float = 1.0) -> Tones:
    """Tones of the spikes as they are; arguments as above, for one frame."""
    amplitude = power(spikes.amplitude / patterns.scale[spikes.pattern], 1 / lift)
    heard = lambda x: jnp.where(spikes.active, x, 0)
    return Tones.plain(heard(amplitude), heard(spikes.position), spikes.pattern, spikes.active)

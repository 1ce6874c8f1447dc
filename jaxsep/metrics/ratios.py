"""What all figures are made of: energies, and their ratios in dB.

What can be told is limited by the rounding error of the samples, `eps = finfo(dtype).eps` of their size: all
figures lie within ±20·log10(1/eps) dB (±138 dB in float32, ±313 dB in float64). So a perfect estimate scores
a large finite figure, and silence has finite figures and gradients. A signal whose energy under- or overflows
its type counts as silent.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = ["checked", "decibels", "energy", "inner", "is_silent", "lowest_where", "unit_energy"]


def decibels(
    wanted: Float[Array, "*batch samples"], unwanted: Float[Array, "*batch samples"]
) -> Float[Array, "*batch"]:
    """Ratio of two parts of a signal of unit energy, both raised by the energy of its rounding error."""
    floor = jnp.finfo(wanted.dtype).eps ** 2
    return 10 * (jnp.log10(energy(wanted) + floor) - jnp.log10(energy(unwanted) + floor))


def lowest_where(silent: Bool[Array, "*batch"], decibels: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The lowest figure there is where something is silent."""
    return jnp.where(silent, 20 * math.log10(jnp.finfo(decibels.dtype).eps), decibels)


def unit_energy(signals: Float[Array, "*batch samples"]) -> Float[Array, "*batch samples"]:
    """Each signal divided by its norm; silence becomes exact zeros."""
    # No figure depends on the level, so the norm is a constant to the derivative: none of a root at zero.
    power = jax.lax.stop_gradient(energy(signals))[..., None]
    silent = power <= jnp.finfo(signals.dtype).tiny
    return jnp.where(silent, 0, signals / jnp.sqrt(jnp.where(silent, 1, power)))


def is_silent(signals: Float[Array, "*batch samples"]) -> Bool[Array, "*batch"]:
    """Whether a signal has no energy."""
    return energy(signals) == 0


def energy(signals: Float[Array, "*batch samples"]) -> Float[Array, "*batch"]:
    """Sum of the squares of the samples."""
    return inner(signals, signals)


def inner(
    first: Float[Array, "*first samples"], second: Float[Array, "*second samples"]
) -> Float[Array, "..."]:
    """Sum of the products of the samples."""
    # Multiply and sum, not a matrix product: some devices round the operands of those to fewer bits.
    return jnp.sum(first * second, axis=-1)


def checked(references: Array, estimates: Array, *, ndim: int) -> tuple[Array, Array]:
    """Both as arrays of one type, once it is clear that they can be compared."""
    references, estimates = jnp.asarray(references), jnp.asarray(estimates)
    plural = "s" if ndim == 2 else ""
    for name, signals in ((f"reference{plural}", references), (f"estimate{plural}", estimates)):
        if signals.ndim != ndim or 0 in signals.shape:
            raise ValueError(f"{name}: expected {ndim} dimensions, none empty, got shape {signals.shape}")
        if signals.dtype not in (jnp.float32, jnp.float64):
            raise ValueError(f"{name}: expected float32 or float64, got {signals.dtype}")
    if len(estimates) != len(references) and ndim == 2:
        raise ValueError(
            f"estimates: expected {len(references)} signals as in references, got {len(estimates)}"
        )
    if estimates.shape[-1] != references.shape[-1]:
        got, expected = estimates.shape[-1], references.shape[-1]
        raise ValueError(f"estimate{plural}: expected {expected} samples as in reference{plural}, got {got}")
    dtype = jnp.result_type(references, estimates)
    return references.astype(dtype), estimates.astype(dtype)

"""Candidates for new tones: cross-correlation of a residual with the patterns of all instruments."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Int

from jaxsep.numerics.dot import dot
from jaxsep.pursuit.loss import LiftedLoss, power
from jaxsep.signal.gaussians import SINUSOID_WIDTH, window_offsets

__all__ = ["PatternBank", "select"]


class PatternBank(eqx.Module):
    """Lifted spectra of each instrument's unit tone, normalised, ready for correlation by FFT."""

    transforms: Complex[Array, "instruments frequencies"]
    inverse_norms: Float[Array, " instruments"]
    num_bins: int = eqx.field(static=True)

    @classmethod
    def build(cls, dictionary: Float[Array, "instruments harmonics"], objective: LiftedLoss) -> "PatternBank":
        """The patterns of a dictionary; an instrument without any harmonic never correlates."""
        axis, dtype = objective.axis, dictionary.dtype
        reach = window_offsets(dtype).shape[0] // 2
        num_harmonics = dictionary.shape[1]
        span = math.ceil(axis.bins_per_neper * math.log(num_harmonics)) + 2 * reach + 1
        size = _fast_length(axis.num_bins + span)
        zero = jnp.zeros((), dtype)
        position = axis.partials(zero + reach, zero, num_harmonics)[0]
        distance = jnp.arange(span, dtype=dtype) - position[:, None]
        unit = dot(dictionary, jnp.exp(-0.5 * (distance / SINUSOID_WIDTH) ** 2))
        pattern = power(unit, objective.lift)
        norm = jnp.sqrt(jnp.sum(pattern**2, axis=1))
        inverse = jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0)
        # The fundamental stands `reach` bins into the pattern; this delay makes the lag its position.
        delay = jnp.exp(-2j * jnp.pi * reach / size * jnp.arange(size // 2 + 1))
        transforms = jnp.conj(jnp.fft.rfft(pattern * inverse[:, None], size)) * delay
        return cls(transforms.astype(jnp.result_type(dtype, jnp.complex64)), inverse, axis.num_bins)

    def correlate(self, residual: Float[Array, " bins"]) -> Float[Array, "instruments bins"]:
        """Inner products of a lifted residual with each pattern at every integer position."""
        size = 2 * (self.transforms.shape[1] - 1)
        spectrum = jnp.fft.rfft(residual, size) * self.transforms
        return jnp.fft.irfft(spectrum, size)[:, : self.num_bins].astype(residual.dtype)


def select(
    bank: PatternBank, residual: Float[Array, " bins"], lift: float
) -> tuple[Float[Array, ""], Float[Array, ""], Int[Array, ""]]:
    """The tone that correlates best with a lifted residual: amplitude, position in bins, instrument.

    The amplitude `(correlation / ‖pattern‖)^(1/q)` is that of the best fit to the residual, 0 if nothing
    correlates (P1, sparse pursuit).
    """
    correlation = bank.correlate(residual)
    best = jnp.argmax(correlation)
    instrument, position = jnp.divmod(best, bank.num_bins)
    fit = jnp.maximum(correlation[instrument, position] * bank.inverse_norms[instrument], 0)
    return power(fit, 1 / lift), position.astype(residual.dtype), instrument.astype(jnp.int32)


def _fast_length(size: int) -> int:
    """The smallest even product of small primes that is not below `size`."""
    return min(f * 2 ** max(1, math.ceil(math.log2(size / f))) for f in (1, 3, 5, 9, 15))

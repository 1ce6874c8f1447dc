"""Candidates for new tones: cross-correlation of a residual with the patterns of all instruments."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Int
from scipy.fft import next_fast_len

from jaxsep.pursuit.loss import LiftedLoss, power
from jaxsep.signal.gaussians import sum_gaussians
from jaxsep.tones.rendering import partials_of
from jaxsep.tones.tones import Tones, parameters_of

__all__ = ["PatternBank", "select"]

#: Bins of a pattern below its fundamental and above its last partial, more than six standard deviations.
_MARGIN = 18


class PatternBank(eqx.Module):
    """Lifted spectra of each instrument's unit tone, normalised, ready for correlation by FFT."""

    transforms: Complex[Array, "instruments frequencies"]
    inverse_norms: Float[Array, " instruments"]
    num_bins: int = eqx.field(static=True)

    @classmethod
    def build(cls, harmonics: Float[Array, "instruments harmonics"], objective: LiftedLoss) -> "PatternBank":
        """The patterns of a dictionary; an instrument without any harmonic never correlates."""
        axis, dtype, (number, num_harmonics) = objective.axis, harmonics.dtype, harmonics.shape
        span = math.ceil(axis.bins_per_neper * math.log(num_harmonics)) + 2 * _MARGIN + 1
        size = 2 * next_fast_len(-(-(axis.num_bins + span) // 2))
        units = Tones.plain(jnp.ones(number, dtype), jnp.full(number, _MARGIN, dtype), jnp.arange(number))
        partials = partials_of(parameters_of(units), harmonics, axis)
        pattern = power(sum_gaussians(*partials, span), objective.lift)
        norm = jnp.sqrt(jnp.sum(pattern**2, axis=1))
        inverse = jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0)
        # The fundamental stands some bins into the pattern; this delay makes the lag its position.
        delay = jnp.exp(-2j * jnp.pi * _MARGIN / size * jnp.arange(size // 2 + 1))
        transforms = jnp.conj(jnp.fft.rfft(pattern * inverse[:, None], size)) * delay
        return cls(transforms.astype(jnp.result_type(dtype, jnp.complex64)), inverse, axis.num_bins)

    def correlate(self, residual: Float[Array, " bins"]) -> Float[Array, "instruments bins"]:
        """Inner products of a lifted residual with each pattern at every integer position."""
        size = 2 * (self.transforms.shape[1] - 1)
        spectrum = jnp.fft.rfft(residual, size) * self.transforms
        return jnp.fft.irfft(spectrum, size)[:, : self.num_bins].astype(residual.dtype)


def select(
    bank: PatternBank,
    residual: Float[Array, " bins"],
    lift: float,
    lowest: float | Float[Array, ""] = -math.inf,
    highest: float | Float[Array, ""] = math.inf,
) -> tuple[Float[Array, ""], Float[Array, ""], Int[Array, ""]]:
    """The tone that correlates best with a lifted residual: amplitude, position in bins, instrument.

    The amplitude `(correlation / ‖pattern‖)^(1/q)` is that of the best fit to the residual, 0 if nothing
    correlates (P1, sparse pursuit). Between bounds in bins it is the best of the local maxima: what only
    reaches in from outside is no tone there.
    """
    correlation, bins = bank.correlate(residual), jnp.arange(bank.num_bins)
    around = jnp.pad(correlation, ((0, 0), (1, 1)), constant_values=-jnp.inf)
    top = (correlation >= around[:, :-2]) & (correlation >= around[:, 2:])
    allowed = top & (bins >= lowest) & (bins <= highest)
    best = jnp.argmax(jnp.where(allowed, correlation, 0))
    instrument, position = jnp.divmod(best, bank.num_bins)
    fit = jnp.maximum(correlation[instrument, position] * bank.inverse_norms[instrument], 0)
    return power(fit, 1 / lift), position.astype(residual.dtype), instrument.astype(jnp.int32)

"""Log-frequency spectrogram by smoothing the linear one, as a mel filter bank does."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsep.dot import dot

# Standard deviation in bins of a sinusoid's peak in the Gaussian STFT (see GaussianSTFT.sinusoid_std).
SINUSOID_STD = 6 / np.pi

# Neighbouring filters that share one dense block of the filter bank.
FILTERS_PER_BLOCK = 64


def log_frequencies(num_bins: int, f_min: float, f_max: float) -> np.ndarray:
    """Frequencies `f_min·(f_max/f_min)^(j/num_bins)` of a logarithmic axis in Hz, j = 0 … num_bins-1.

    Raises ValueError unless num_bins ≥ 1 and 0 < f_min < f_max.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    if not 0 < f_min < f_max:
        raise ValueError(f"f_min and f_max must satisfy 0 < f_min < f_max, got {f_min} and {f_max} Hz")
    return f_min * (f_max / f_min) ** (np.arange(num_bins) / num_bins)


def mel_spectrogram(
    magnitudes: Float[Array, "frames bins"],
    *,
    sample_rate: float,
    num_bins: int = 1024,
    f_min: float = 20.0,
    f_max: float = 20480.0,
) -> Float[Array, "frames log_bins"]:
    """Gaussian-smoothed magnitudes of the linear STFT on a logarithmic frequency axis.

    Log bin j looks at the linear axis around its own frequency u_j (in linear bins):
    `Y[j] = √(σ_0² + s_j²)/σ_0 · Σ_k X[k] exp(-(k - u_j)²/(2 s_j²)) / (√(2π) s_j)`, where
    `s_j = σ_0 · max(1, u_j/c)`, `c = num_bins/ln(f_max/f_min)`: σ_0 bins of the logarithmic axis at
    high frequencies, and of the linear axis at low ones, where that is the wider. The factor keeps
    the peak of a stationary sinusoid, a Gaussian of standard deviation σ_0 = 6/π, at its height.

    Arguments:
        magnitudes: magnitudes of a `GaussianSTFT`, nonnegative, bins = n_fft/2 + 1.
        sample_rate: in Hz.
        num_bins: number of logarithmic bins.
        f_min, f_max: the ends of the logarithmic axis in Hz. Bins above half the sample rate see at
            most the flank of what is below it.

    Returns nonnegative magnitudes, one row per frame.

    Raises ValueError for an empty axis, a sample rate that is not positive, fewer than two bins, or
    magnitudes that are not floating-point numbers.

    Source: the mel spectrogram that P1 compares with.

    Example:
        >>> samples = jnp.cos(2 * jnp.pi * 2000 * jnp.arange(960) / 48_000)
        >>> magnitudes = jnp.abs(jaxsep.GaussianSTFT(window_std=64, hop=32).analyse(samples))
        >>> spectra = jaxsep.mel_spectrogram(magnitudes, sample_rate=48_000.0, num_bins=128)
        >>> spectra.shape, round(float(jnp.max(spectra[15])), 1)  # half the amplitude
        ((31, 128), 0.5)
    """
    if magnitudes.shape[1] < 2:
        raise ValueError(f"magnitudes must have at least 2 bins, got {magnitudes.shape[1]}")
    if not jnp.issubdtype(magnitudes.dtype, jnp.floating):
        raise ValueError(f"magnitudes must be floating-point numbers, got {magnitudes.dtype}")
    if not sample_rate > 0:
        raise ValueError(f"sample_rate must be positive, got {sample_rate} Hz")
    return _smooth(magnitudes, float(sample_rate), num_bins, float(f_min), float(f_max))


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _smooth(magnitudes: Array, sample_rate: float, num_bins: int, f_min: float, f_max: float) -> Array:
    def apply(start: int, filters: np.ndarray) -> Array:
        band = magnitudes[:, start : start + filters.shape[1]]
        return dot(band, jnp.asarray(filters.T, magnitudes.dtype))

    bank = _filter_bank(magnitudes.shape[1], sample_rate, num_bins, f_min, f_max)
    return jnp.concatenate([apply(start, filters) for start, filters in bank], axis=1)


@lru_cache(maxsize=8)
def _filter_bank(
    num_linear: int, sample_rate: float, num_bins: int, f_min: float, f_max: float
) -> tuple[tuple[int, np.ndarray], ...]:
    """Filters as dense blocks (first linear bin, [log bins, linear bins]), without the zeros beyond 6 s_j."""
    centres = log_frequencies(num_bins, f_min, f_max) * 2 * (num_linear - 1) / sample_rate
    stds = SINUSOID_STD * np.maximum(1, centres * np.log(f_max / f_min) / num_bins)
    heights = np.hypot(SINUSOID_STD, stds) / SINUSOID_STD / (np.sqrt(2 * np.pi) * stds)
    bank = []
    for first in range(0, num_bins, FILTERS_PER_BLOCK):
        u, s, a = (column[first : first + FILTERS_PER_BLOCK, None] for column in (centres, stds, heights))
        start = int(np.clip(np.floor(np.min(u - 6 * s)), 0, num_linear))
        stop = int(np.clip(np.ceil(np.max(u + 6 * s)) + 1, start, num_linear))
        bank.append((start, a * np.exp(-0.5 * ((np.arange(start, stop) - u) / s) ** 2)))
    return tuple(bank)

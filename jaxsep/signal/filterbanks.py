"""Log-frequency spectrograms by filter banks: mel-like and constant-Q, the comparisons of P1."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from scipy.fft import next_fast_len

from jaxsep.numerics.dot import dot
from jaxsep.signal.axes import LogAxis
from jaxsep.signal.gaussians import SINUSOID_WIDTH

__all__ = ["constant_q_spectrogram", "mel_spectrogram"]

#: Neighbouring mel filters that share one dense block of the filter bank.
_FILTERS_PER_BLOCK = 64

#: Filters of the constant-Q transform evaluated together.
_FILTERS_AT_ONCE = 4

#: Beyond this many standard deviations a Gaussian is negligible.
_CUTOFF_STDS = 6


def mel_spectrogram(
    magnitudes: Float[Array, "frames bins"],
    *,
    sample_rate: float,
    axis: LogAxis = LogAxis(),
) -> Float[Array, "frames log_bins"]:
    """Gaussian-smoothed magnitudes of the linear STFT on a logarithmic frequency axis.

    Log bin j looks at the linear axis around its own frequency u_j (in linear bins):
    `Y[j] = √(σ_0² + s_j²)/σ_0 · Σ_k X[k] exp(-(k - u_j)²/(2 s_j²)) / (√(2π) s_j)`, where
    `s_j = σ_0 · max(1, u_j/c)` with the `bins_per_neper` c: σ_0 bins of the logarithmic axis at
    high frequencies, and of the linear axis at low ones, where that is the wider. The factor keeps
    the peak of a stationary sinusoid, a Gaussian of standard deviation σ_0 = 6/π, at its height.

    Arguments:
        magnitudes: magnitudes of a `GaussianSTFT`, nonnegative, bins = n_fft/2 + 1.
        sample_rate: in Hz.
        axis: of the result. Bins above half the sample rate see at most the flank of what is below it.

    Returns: nonnegative magnitudes, one row per frame.

    Raises: `ValueError` for a sample rate that is not positive, fewer than two bins, or magnitudes that are
    not floating-point numbers.

    Source: the mel spectrogram that P1 compares with.

    Example:
        >>> samples = jnp.cos(2 * jnp.pi * 2000 * jnp.arange(960) / 48_000)
        >>> magnitudes = jnp.abs(jaxsep.GaussianSTFT(window_std=64, hop=32).analyse(samples))
        >>> axis = jaxsep.LogAxis(num_bins=128)
        >>> spectra = jaxsep.mel_spectrogram(magnitudes, sample_rate=48_000.0, axis=axis)
        >>> spectra.shape, round(float(jnp.max(spectra[15])), 1)  # half the amplitude
        ((31, 128), 0.5)
    """
    if magnitudes.shape[1] < 2:
        raise ValueError(f"magnitudes: expected at least 2 bins, got {magnitudes.shape[1]}")
    if not jnp.issubdtype(magnitudes.dtype, jnp.floating):
        raise ValueError(f"magnitudes: expected floating-point numbers, got {magnitudes.dtype}")
    if not sample_rate > 0:
        raise ValueError(f"sample_rate: expected a positive number of Hz, got {sample_rate}")
    return _smooth(magnitudes, float(sample_rate), axis)


@partial(jax.jit, static_argnums=(1, 2))
def _smooth(magnitudes: Array, sample_rate: float, axis: LogAxis) -> Array:
    def apply(start: int, filters: np.ndarray) -> Array:
        band = magnitudes[:, start : start + filters.shape[1]]
        return dot(band, jnp.asarray(filters.T, magnitudes.dtype))

    bank = _filter_bank(magnitudes.shape[1], sample_rate, axis)
    return jnp.concatenate([apply(start, filters) for start, filters in bank], axis=1)


@lru_cache(maxsize=8)
def _filter_bank(num_linear: int, sample_rate: float, axis: LogAxis) -> tuple[tuple[int, np.ndarray], ...]:
    """Filters as dense blocks (first linear bin, [log bins, linear bins]), without the zeros beyond 6 s_j."""
    centres = _frequencies(axis) * 2 * (num_linear - 1) / sample_rate
    stds = SINUSOID_WIDTH * np.maximum(1, centres / axis.bins_per_neper)
    heights = np.hypot(SINUSOID_WIDTH, stds) / SINUSOID_WIDTH / (np.sqrt(2 * np.pi) * stds)
    bank = []
    for first in range(0, axis.num_bins, _FILTERS_PER_BLOCK):
        u, s, a = (column[first : first + _FILTERS_PER_BLOCK, None] for column in (centres, stds, heights))
        start = int(np.clip(np.floor(np.min(u - 6 * s)), 0, num_linear))
        stop = int(np.clip(np.ceil(np.max(u + 6 * s)) + 1, start, num_linear))
        bank.append((start, a * np.exp(-0.5 * ((np.arange(start, stop) - u) / s) ** 2)))
    return tuple(bank)


def _frequencies(axis: LogAxis) -> np.ndarray:
    """Of all bins in Hz, in double precision whatever JAX has."""
    return axis.f_min * np.exp(np.arange(axis.num_bins) / axis.bins_per_neper)


def constant_q_spectrogram(
    samples: Float[Array, " samples"],
    *,
    sample_rate: float,
    hop: int = 256,
    axis: LogAxis = LogAxis(),
    width_bins: float = SINUSOID_WIDTH,
) -> Float[Array, "frames log_bins"]:
    """Magnitudes of the constant-Q transform, sampled at the frame centres of the STFT.

    With X the Fourier transform of the signal, bin j at frequency f_j has
    `Y[n, j] = | ∫_0^∞ X(f) exp(-(f - f_j)²/(2 s_j²)) exp(2πi f n·hop/sample_rate) df |`,
    `s_j = f_j · width_bins / bins_per_neper`: on the logarithmic axis every filter has the standard
    deviation `width_bins`, and a window of standard deviation `1/(2π s_j)` seconds in time.
    A stationary sinusoid of amplitude 1 peaks at ½, as in the STFT.

    The default width is that of the STFT's peaks in bins. Low notes are then seen through very long
    windows (0.6 s standard deviation at 20 Hz), which smear their onsets.

    Arguments:
        samples: the signal, at least one sample; zero outside.
        sample_rate: in Hz.
        hop: samples between neighbouring frames, the first centred on the first sample.
        axis: of the result. Above half the sample rate there is nothing.
        width_bins: standard deviation of a filter in bins of the logarithmic axis.

    Returns: one row for each of the `1 + ceil((samples-1)/hop)` frames.

    Raises: `ValueError` for an empty signal, samples that are not floating-point numbers, and a rate, hop or
    width that is not positive.

    Source: the constant-Q transform that P1 compares with.

    Example:
        >>> samples = jnp.cos(2 * jnp.pi * 2000 * jnp.arange(2400) / 48_000)
        >>> axis = jaxsep.LogAxis(num_bins=128)
        >>> spectra = jaxsep.constant_q_spectrogram(samples, sample_rate=48_000.0, hop=480, axis=axis)
        >>> spectra.shape, round(float(jnp.max(spectra[3])), 1)  # half the amplitude
        ((6, 128), 0.5)
    """
    if samples.shape[0] < 1:
        raise ValueError(f"samples: expected at least 1 sample, got {samples.shape[0]}")
    if not jnp.issubdtype(samples.dtype, jnp.floating):
        raise ValueError(f"samples: expected floating-point numbers, got {samples.dtype}")
    for name, value in (("sample_rate", sample_rate), ("hop", hop), ("width_bins", width_bins)):
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    frequencies = _frequencies(axis) / sample_rate  # in cycles per sample
    relative_std = width_bins / axis.bins_per_neper
    num_frames = 1 + -(-(samples.shape[0] - 1) // hop)
    # Silence as long as half the longest window, or the circular transform would fold the end onto the start.
    half_window = _CUTOFF_STDS / (2 * np.pi * relative_std * frequencies[0])
    period = next_fast_len(num_frames + int(np.ceil(half_window / hop)))
    centres = frequencies * period * hop  # in bins of the long transform
    stds = relative_std * centres
    num_rows = 1 + int(np.ceil(2 * _CUTOFF_STDS * np.max(stds) / period))
    centres, stds = (jnp.asarray(column, samples.dtype) for column in (centres, stds))
    return _filter_magnitudes(samples, centres, stds, hop, period, num_rows, num_frames)


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _filter_magnitudes(
    samples: Array, centres: Array, stds: Array, hop: int, period: int, num_rows: int, num_frames: int
) -> Array:
    """Magnitudes of Gaussian band-pass filters, once per hop.

    Taking every hop-th sample of a filter's output folds its spectrum to `period` bins. With the
    spectrum in rows of that length, a filter needs the few rows of its band and one short transform.
    """
    spectrum = jnp.fft.rfft(samples, period * hop)
    last_row = -(-spectrum.shape[0] // period)
    spectrum = jnp.pad(spectrum, (0, (last_row + num_rows) * period - spectrum.shape[0]))
    rows = spectrum.reshape(-1, period)

    def filter_magnitude(band):
        centre, std = band
        first_row = jnp.clip(jnp.floor((centre - _CUTOFF_STDS * std) / period), 0, last_row).astype(int)
        bins = (first_row + jnp.arange(num_rows))[:, None] * period + jnp.arange(period)
        response = jnp.exp(-0.5 * ((bins - centre) / std) ** 2)
        folded = jnp.sum(lax.dynamic_slice(rows, (first_row, 0), (num_rows, period)) * response, axis=0)
        return jnp.abs(jnp.fft.ifft(folded)[:num_frames]) / hop

    return lax.map(filter_magnitude, (centres, stds), batch_size=_FILTERS_AT_ONCE).T

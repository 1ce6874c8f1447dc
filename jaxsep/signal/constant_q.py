"""Constant-Q spectrogram with Gaussian windows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from scipy.fft import next_fast_len

from jaxsep.signal.mel import SINUSOID_STD, log_frequencies

# Beyond this many standard deviations a Gaussian is negligible.
CUTOFF_STDS = 6

# Filters evaluated together.
FILTERS_PER_BLOCK = 4


def constant_q_spectrogram(
    samples: Float[Array, " samples"],
    *,
    sample_rate: float,
    hop: int = 256,
    num_bins: int = 1024,
    f_min: float = 20.0,
    f_max: float = 20480.0,
    width_bins: float = SINUSOID_STD,
) -> Float[Array, "frames log_bins"]:
    """Magnitudes of the constant-Q transform, sampled at the frame centres of the STFT.

    With X the Fourier transform of the signal, bin j at frequency f_j has
    `Y[n, j] = | ∫_0^∞ X(f) exp(-(f - f_j)²/(2 s_j²)) exp(2πi f n·hop/sample_rate) df |`,
    `s_j = f_j · width_bins · ln(f_max/f_min)/num_bins`: on the logarithmic axis every filter has the
    standard deviation `width_bins`, and a window of standard deviation `1/(2π s_j)` seconds in time.
    A stationary sinusoid of amplitude 1 peaks at ½, as in the STFT.

    The default width is that of the STFT's peaks in bins. Low notes are then seen through very long
    windows (0.6 s standard deviation at 20 Hz), which smear their onsets.

    Arguments:
        samples: the signal, at least one sample; zero outside.
        sample_rate: in Hz.
        hop: samples between neighbouring frames, the first centred on the first sample.
        num_bins: number of logarithmic bins.
        f_min, f_max: the ends of the logarithmic axis in Hz. Above half the sample rate there is nothing.
        width_bins: standard deviation of a filter in bins of the logarithmic axis.

    Returns one row for each of the `1 + ceil((samples-1)/hop)` frames.

    Raises ValueError for an empty signal or axis, samples that are not floating-point numbers, and a rate,
    hop or width that is not positive.

    Source: the constant-Q transform that P1 compares with.

    Example:
        >>> samples = jnp.cos(2 * jnp.pi * 2000 * jnp.arange(2400) / 48_000)
        >>> spectra = jaxsep.constant_q_spectrogram(samples, sample_rate=48_000.0, hop=480, num_bins=128)
        >>> spectra.shape, round(float(jnp.max(spectra[3])), 1)  # half the amplitude
        ((6, 128), 0.5)
    """
    if samples.shape[0] < 1:
        raise ValueError(f"samples must hold at least 1 sample, got {samples.shape[0]}")
    if not jnp.issubdtype(samples.dtype, jnp.floating):
        raise ValueError(f"samples must be floating-point numbers, got {samples.dtype}")
    for name, value in (("sample_rate", sample_rate), ("hop", hop), ("width_bins", width_bins)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    frequencies = log_frequencies(num_bins, f_min, f_max) / sample_rate  # in cycles per sample
    relative_std = width_bins * np.log(f_max / f_min) / num_bins
    num_frames = 1 + -(-(samples.shape[0] - 1) // hop)
    # Silence as long as half the longest window, or the circular transform would fold the end onto the start.
    half_window = CUTOFF_STDS / (2 * np.pi * relative_std * frequencies[0])
    period = next_fast_len(num_frames + int(np.ceil(half_window / hop)))
    centres = frequencies * period * hop  # in bins of the long transform
    stds = relative_std * centres
    num_rows = 1 + int(np.ceil(2 * CUTOFF_STDS * np.max(stds) / period))
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
        first_row = jnp.clip(jnp.floor((centre - CUTOFF_STDS * std) / period), 0, last_row).astype(int)
        bins = (first_row + jnp.arange(num_rows))[:, None] * period + jnp.arange(period)
        response = jnp.exp(-0.5 * ((bins - centre) / std) ** 2)
        folded = jnp.sum(lax.dynamic_slice(rows, (first_row, 0), (num_rows, period)) * response, axis=0)
        return jnp.abs(jnp.fft.ifft(folded)[:num_frames]) / hop

    return lax.map(filter_magnitude, (centres, stds), batch_size=FILTERS_PER_BLOCK).T

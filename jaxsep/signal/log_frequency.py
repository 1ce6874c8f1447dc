"""Log-frequency spectrogram from peaks: the resolution of the STFT at every pitch (P1)."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsep.numerics.lanes import map_frames
from jaxsep.signal.axes import LinearAxis, LogAxis
from jaxsep.signal.gaussians import SINUSOID_WIDTH
from jaxsep.signal.peaks import PeakPursuit, Peaks, render_peaks

__all__ = ["log_frequency_spectrogram", "log_frequency_spectrum"]


def log_frequency_spectrum(
    peaks: Peaks, linear_axis: LinearAxis, log_axis: LogAxis
) -> Float[Array, " log_bins"]:
    """Spectrum of one frame's peaks, moved to a logarithmic axis.

    `Y[j] = Σ_k a_k exp(-(j - c ln(f_k / f_min))² / (2σ_k²))`: each peak keeps its amplitude and its width in
    *bins*, so that a sinusoid looks the same at every frequency (P1, log-frequency spectrogram).

    Arguments:
        peaks: `[peaks]`, positions in bins of `linear_axis`; those at or below 0 Hz are dropped.
        linear_axis: on which they were found.
        log_axis: the new axis, with its f_min and c; what lies outside is cut.

    Returns: the spectrum, nonnegative; 0 where there is no peak.
    """
    frequency = linear_axis.to_hz(peaks.position)
    audible = peaks.active & (frequency > 0)
    moved = Peaks(
        amplitude=jnp.where(audible, peaks.amplitude, 0),
        position=log_axis.to_bin(jnp.where(audible, frequency, log_axis.f_min)),
        width=jnp.where(audible, peaks.width, SINUSOID_WIDTH),
        active=audible,
    )
    return render_peaks(moved, log_axis)


@eqx.filter_jit
def log_frequency_spectrogram(
    magnitudes: Float[Array, "frames bins"],
    linear_axis: LinearAxis,
    log_axis: LogAxis,
    pursuit: PeakPursuit | None = None,
) -> Float[Array, "frames log_bins"]:
    """Log-frequency spectrogram of a linear-frequency one, by peak pursuit in each frame (P1).

    Low notes keep the resolution of the linear spectrogram, which a mel or constant-Q filter bank smears.

    Arguments:
        magnitudes: nonnegative, of an STFT with a Gaussian window, in whose bins a sinusoid has the width
            `SINUSOID_WIDTH`.
        linear_axis: their bins.
        log_axis: of the result.
        pursuit: by default `PeakPursuit()`, with which the result can be differentiated by the magnitudes.

    Returns: nonnegative magnitudes at the level of the input. A frame with NaN, infinity or a negative value
    has no peaks and gives zeros; the pursuit's own result has an outcome that tells.

    Raises: `ValueError` when the axis has another number of bins than the magnitudes.

    Example:
        >>> linear, logarithmic = jaxsep.LinearAxis(384, 48_000 / 768), jaxsep.LogAxis()
        >>> samples = jnp.cos(2 * jnp.pi * 2000 * jnp.arange(960) / 48_000)
        >>> magnitudes = jnp.abs(jaxsep.GaussianSTFT(window_std=64, hop=32).analyse(samples))
        >>> spectra = jaxsep.log_frequency_spectrogram(magnitudes[:, :-1], linear, logarithmic)
        >>> int(jnp.argmax(spectra[15])), round(float(logarithmic.to_bin(jnp.asarray(2000.0))))
        (680, 680)
    """
    if magnitudes.shape[1] != linear_axis.num_bins:
        raise ValueError(
            f"magnitudes: expected {linear_axis.num_bins} bins as linear_axis has, got {magnitudes.shape[1]}"
        )
    peaks = (PeakPursuit() if pursuit is None else pursuit)(magnitudes).peaks
    return map_frames(lambda p: log_frequency_spectrum(p, linear_axis, log_axis), peaks)

"""The noise of a recording: what the peaks of its spectra must rise above, and the hum of the mains."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsep.signal.axes import LogAxis
from jaxsep.signal.peaks import Peaks

__all__ = ["MEAN_NOISE", "above_noise", "noise_level", "without_hum"]

#: Mean magnitude of noise, in units of its Rayleigh parameter.
MEAN_NOISE = float(np.sqrt(np.pi / 2))

#: Bins in which a level is judged: as narrow at the low end as rumble is, else wide enough for a quantile.
_NARROW, _WIDE, _NUM_NARROW = 16, 64, 4

#: Share of the bins of a band below the level at which it is judged: partials mostly leave these free.
_QUANTILE = 0.2

#: What that quantile of noise is, in units of its Rayleigh parameter.
_RAYLEIGH = float(np.sqrt(-2 * np.log(1 - _QUANTILE)))

#: Maxima of noise are mostly less than so many times its parameter.
_CROWDED = 3.0

#: How far above the noise, in units of its Rayleigh parameter, a peak is none of it: 1 in 3000 bins is.
_ABOVE = 4.0

#: Frequencies of the mains in Hz, and how many partials of a hum are looked for.
_MAINS, _HUMMING = (50.0, 60.0), 40

#: A partial hums where its level stays within these factors of the median, but for a tenth of the frames at
#: either end; what is that many times louder than the median is music.
_STEADY, _LOUDER = (0.7, 1.4), 2.5


def noise_level(magnitudes: Float[Array, "frames bins"]) -> Float[Array, "frames bins"]:
    """Rayleigh parameter σ of the noise in every bin: its magnitudes have the density `m/σ² e^(-m²/2σ²)`.

    It is read off a low quantile of the bins around, which lie between the partials, and follows whatever
    changes from frame to frame: wind, applause, an attack.

    Arguments:
        magnitudes: of an STFT, nonnegative, in whose bins a sinusoid is narrow; at least 64 bins.

    Returns: σ ≥ 0, at the level of the input.

    Example:
        >>> noise = jax.random.normal(jax.random.key(0), (2, 6144, 2)) * 0.1
        >>> level = noise_level(jnp.linalg.norm(noise, axis=-1))
        >>> bool(jnp.all(jnp.abs(jnp.mean(level, axis=1) - 0.1) < 0.02))
        True
    """
    num_frames, num_bins = magnitudes.shape
    wide = num_bins // _WIDE
    low = magnitudes[:, : _NARROW * _NUM_NARROW].reshape(num_frames, _NUM_NARROW, _NARROW)
    # Every other bin: neighbours are alike.
    high = magnitudes[:, _WIDE : wide * _WIDE].reshape(num_frames, wide - 1, _WIDE)[:, :, ::2]
    quiet = lambda bands: _in_order(bands, round(_QUANTILE * (bands.shape[-1] - 1)))
    low, high = quiet(low) / _RAYLEIGH, quiet(high) / _RAYLEIGH
    high = jnp.where(_crowded(magnitudes[:, : wide * _WIDE], high), 0, high)
    centres = _NARROW * (np.arange(_NUM_NARROW) + 0.5), _WIDE * (np.arange(1, wide) + 0.5)
    weights = _interpolation(np.concatenate(centres), num_bins)
    level = jnp.concatenate([low, high], axis=1)
    return jnp.dot(level, weights.astype(level.dtype), precision="highest")


def above_noise(peaks: Peaks, level: Float[Array, "frames bins"]) -> Peaks:
    """Only those peaks `[frames, peaks]` that noise of this level hardly has."""
    place = jnp.clip(jnp.round(peaks.position).astype(jnp.int32), 0, level.shape[1] - 1)
    risen = peaks.active & (peaks.amplitude > _ABOVE * jnp.take_along_axis(level, place, axis=1))
    fields = jnp.where(risen, peaks.amplitude, 0), risen
    return eqx.tree_at(lambda p: (p.amplitude, p.active), peaks, fields)


def without_hum(spectra: Float[np.ndarray, "frames bins"], axis: LogAxis) -> Float[np.ndarray, "frames bins"]:
    """Spectra without the hum of the mains: steady partials at multiples of 50 or 60 Hz.

    Two of the first three have to be steady from beginning to end: music at that pitch is not.

    Arguments:
        spectra: log-frequency magnitudes of a whole recording.
        axis: theirs.

    Example:
        >>> axis, spectra = jaxsep.LogAxis(), np.zeros((100, 1024), np.float32)
        >>> for partial in (50, 100, 150):
        ...     spectra[:, round(float(axis.to_bin(jnp.asarray(float(partial)))))] = 1.0
        >>> float(without_hum(spectra, axis).max())
        0.0
    """
    clean = np.array(spectra)
    for mains in _MAINS:
        lines = [_line(spectra, mains * number, axis) for number in range(1, _HUMMING + 1)]
        steady = [line is not None and line[1] > 0 for line in lines]
        if sum(steady[:3]) < 2:
            continue
        for number, line in enumerate(lines):
            if steady[number]:
                bins, median = line
                clean[:, bins] = np.where(spectra[:, bins] > _LOUDER * median, spectra[:, bins], 0)
    return clean


def _line(spectra, frequency, axis):
    """The bins of a partial and its median level, 0 where it is not steady; None beyond the axis."""
    place = round(float(axis.to_bin(frequency)))
    if not 5 < place < axis.num_bins - 5:
        return None
    level = spectra[:, place - 1 : place + 2].max(axis=1)
    low, median, high = np.quantile(level, (0.1, 0.5, 0.9))
    steady = low > _STEADY[0] * median and high < _STEADY[1] * median
    beside = np.median(
        spectra[:, place - 5 : place + 6].max(axis=1)
    )  # else it is the flank of another partial
    return slice(place - 5, place + 6), float(median) if steady and median >= beside else 0.0


def _in_order(values, place):
    """What stands at a place of the last axis in order, without sorting, which is slow on CPUs."""
    number = jnp.sum(values[..., None, :] <= values[..., :, None], axis=-1)
    return jnp.min(jnp.where(number > place, values, jnp.inf), axis=-1)


def _crowded(magnitudes, level):
    """Wide bands in which most maxima are partials, so close together that nothing lies between them."""
    before, after = magnitudes[:, :-2], magnitudes[:, 2:]
    maxima = (magnitudes[:, 1:-1] > before) & (magnitudes[:, 1:-1] > after)
    maxima = jnp.pad(maxima, ((0, 0), (1, 1)))
    bands = lambda x: x.reshape(len(x), -1, _WIDE)[:, 1:]
    risen = bands(maxima) & (bands(magnitudes) > _CROWDED * level[:, :, None])
    return 2 * jnp.sum(risen, axis=2) > jnp.sum(bands(maxima), axis=2)


def _interpolation(centres, num_bins):
    """Weights `[bands, bins]` of linear interpolation between the centres of bands."""
    place = np.interp(np.arange(num_bins), centres, np.arange(len(centres)))
    return np.maximum(1 - np.abs(place - np.arange(len(centres))[:, None]), 0)

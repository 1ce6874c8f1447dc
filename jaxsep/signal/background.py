"""What of a recording only rings on in a room, so that no note needs to explain it."""

import numpy as np
from jaxtyping import Float
from scipy.ndimage import maximum_filter1d

__all__ = ["decay_time", "foreground", "tails"]

#: After so many seconds a note that ended is a tail: the analysis window has left it.
_GAP = 0.064

#: Seconds over which a decay is judged; what is so many dB below the peak is not.
_LAG, _RANGE = 0.1, 40.0

#: Of all steady decays, the share that is faster than the room allows.
_FASTER = 0.2

#: Decays from the direct sound into the room are steeper than the room's own.
_ROOM = 1.25

#: Longest T60 in seconds that is believed: what fades more slowly is a string that was struck.
_LONGEST = 1.0


def decay_time(spectra: Float[np.ndarray, "frames bins"], spacing: float) -> float:
    """Reverberation time T60 in seconds, roughly, from how fast notes fade.

    In a room no partial fades faster than the room lets it. So the time is read off the fast ones of all
    steady decays, those that fall as much in both halves of a tenth of a second; it is 0 where there are
    none, and at most 1: longer ones are rather those of strings that were struck.

    Arguments:
        spectra: log-frequency magnitudes.
        spacing: of the frames, in seconds.

    Example:
        >>> fade = 10.0 ** (-3 * 0.01 * np.arange(100) / 0.8)  # 60 dB in 0.8 s
        >>> spectra = np.zeros((100, 1024))
        >>> spectra[:, 300:303] = fade[:, None]
        >>> 0.7 < decay_time(spectra, 0.01) < 1.1
        True
    """
    lag = 2 * max(1, round(_LAG / spacing / 2))
    level = 20 * np.log10(maximum_filter1d(spectra, 9, axis=1)[:, 4::8] + 1e-30)
    if len(level) <= lag:
        return 0.0
    first, second = level[lag // 2 : -(lag // 2)] - level[:-lag], level[lag:] - level[lag // 2 : -(lag // 2)]
    fall = first + second
    heard = (level[:-lag] > level.max() - _RANGE) & (fall > -_RANGE)
    steady = heard & (first < -1) & (second < -1) & (np.abs(first - second) < 0.35 * np.abs(fall))
    if not steady.any():
        return 0.0
    return min(_LONGEST, float(-60 * _ROOM * lag * spacing / np.quantile(fall[steady], _FASTER)))


def tails(
    spectra: Float[np.ndarray, "frames bins"], spacing: float, decay_time: float
) -> Float[np.ndarray, "frames bins"]:
    """What has sounded at least 64 ms before, as far as it has not yet faded.

    Arguments:
        spectra: log-frequency magnitudes.
        spacing: of the frames, in seconds.
        decay_time: T60 in seconds.
    """
    gap = max(1, round(_GAP / spacing))
    kept = 10 ** (-3 * spacing / max(decay_time, spacing))
    late = np.zeros_like(spectra)
    for frame in range(gap, len(spectra)):
        late[frame] = np.maximum(kept * late[frame - 1], kept**gap * spectra[frame - gap])
    return late


def foreground(spectra: Float[np.ndarray, "frames bins"], spacing: float) -> Float[np.ndarray, "frames bins"]:
    """The part of spectra that rises above the tails of what has sounded before.

    Where a note goes on it is a little quieter than it was, where it ends it ends at once.

    Arguments:
        spectra: log-frequency magnitudes.
        spacing: of the frames, in seconds.

    Example:
        >>> fade = 10.0 ** (-3 * 0.01 * np.arange(100) / 0.8)  # 60 dB in 0.8 s
        >>> spectra = np.zeros((150, 1024))
        >>> spectra[:50, 300:303], spectra[50:, 300:303] = 1.0, fade[:, None]
        >>> bool(foreground(spectra, 0.01)[60:].max() < 0.01)
        True
    """
    return np.maximum(spectra - tails(spectra, spacing, decay_time(spectra, spacing)), 0)

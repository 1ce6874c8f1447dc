"""In how many frames the fundamentals that were found are those of the score."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxsep.tones.tones import Tones

__all__ = ["part_right", "sounding_in_rests"]

#: Seconds around a frame in which every instrument must hold its note, or rest, for the frame to be steady.
_MARGIN = 0.06

#: Half a semitone.
_NEAR = 0.5

#: Seconds that a note may ring on.
_RINGS = 0.3


def part_right(
    tones: Tones,
    times: Float[np.ndarray, " frames"],
    played: Sequence[Float[np.ndarray, "notes 3"]],
    order: Sequence[int],
) -> float:
    """Part of the steady frames in which the loudest tone of every playing instrument has its pitch.

    A frame is steady if some instrument plays, and no note begins or ends within 60 ms of it. What sounds on
    in a rest is not judged.

    Arguments:
        tones: `[frames, tones]`, fundamentals in Hz.
        times: of the frames, in seconds.
        played: rows of onset, duration and MIDI pitch of each true instrument.
        order: the number that each true instrument has among the tones.

    Returns: a number in [0, 1]; NaN without a steady frame.
    """
    steady, playing, right = np.ones(times.size, bool), np.zeros(times.size, bool), np.ones(times.size, bool)
    for notes, number in zip(played, order, strict=True):
        if not len(notes):
            continue  # it rests, which is not judged
        begin, end = notes[:, 0], notes[:, 0] + notes[:, 1]
        for edge in (begin, end):
            steady &= ~np.any(np.abs(times[:, None] - edge) < _MARGIN, axis=1)
        inside = (times[:, None] > begin) & (times[:, None] < end)
        plays = inside.any(axis=1)
        pitch = notes[np.argmax(inside, axis=1), 2]
        mine = np.where(tones.active & (tones.instrument == number), tones.amplitude, 0)
        loudest = np.argmax(mine, axis=1)[:, None]
        hertz = np.take_along_axis(np.asarray(tones.fundamental), loudest, axis=1)[:, 0]
        heard = np.max(mine, axis=1) > 0
        found = 69 + 12 * np.log2(np.where(heard & (hertz > 0), hertz, 1) / 440)
        right &= ~plays | (heard & (np.abs(found - pitch) < _NEAR))
        playing |= plays
    judged = steady & playing
    return float(right[judged].mean()) if judged.any() else float("nan")


def sounding_in_rests(
    tones: Tones,
    times: Float[np.ndarray, " frames"],
    played: Sequence[Float[np.ndarray, "notes 3"]],
    order: Sequence[int],
) -> float:
    """Part of the time in which an instrument has rested for 0.3 s and has a tone all the same.

    Arguments:
        tones: `[frames, tones]`.
        times: of the frames, in seconds.
        played: rows of onset, duration and MIDI pitch of each true instrument.
        order: the number that each true instrument has among the tones.

    Returns: a number in [0, 1]; NaN where nobody rests.
    """
    resting, sounding = 0, 0
    for notes, number in zip(played, order, strict=True):
        begin, end = notes[:, 0], notes[:, 0] + notes[:, 1]
        # What rings on after a note is not judged.
        rests = ~np.any((times[:, None] >= begin - _MARGIN) & (times[:, None] < end + _RINGS), axis=1)
        heard = np.any(tones.active & (tones.instrument == number), axis=1)
        resting, sounding = resting + np.sum(rests), sounding + np.sum(rests & heard)
    return float(sounding / resting) if resting else float("nan")

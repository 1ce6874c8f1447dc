"""Notes of a score brought to the times of a recording."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from jaxsep.notes.score import Score
from jaxsep.signal.axes import LogAxis

__all__ = ["align_notes", "cheapest_alignment"]

#: Steps of an alignment, in steps of the score and of the recording: half to twice as fast, or threefold.
_STEPS = ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1))

#: Seconds of a step, and most steps of a side: longer ones are aligned in longer steps.
_STEP, _MOST = 0.02, 6000

#: Keys that are told apart, as MIDI counts them.
_KEYS = np.arange(24, 128)

#: Partials of a rendered note, what each has of the one before, and seconds in which an onset dies away.
_PARTIALS, _DECAY, _FADE = 8, 0.7, 0.15

#: Weight of the onsets beside what sounds.
_ONSETS = 0.5

#: Seconds over which, and distance from which on, recording and score are different music.
_WINDOW, _FOREIGN = 4.0, 0.6

#: Seconds from the onset of a note to where it is as loud as its rendering.
_ATTACK = 0.03

#: Level in dB below the loudest at which a recording has not begun, or has ended.
_SILENCE = -45.0


def align_notes(
    score: Score,
    spectra: Float[np.ndarray, "frames bins"],
    times: Float[np.ndarray, " frames"],
    axis: LogAxis,
) -> Score:
    """Moves notes to where a recording plays them, by dynamic time warping.

    What sounds on every key, and what begins there, is rendered from the notes, and heard in the spectra: the
    alignment is the monotone path from one to the other on which they differ least, nowhere more than three
    times as fast or slow. Silence before and after the music is left out, and a recording may end before its
    score.

    Arguments:
        score: notes in time with each other, at any tempo.
        spectra: log-frequency magnitudes of the recording.
        times: of the frames in seconds, equally spaced.
        axis: of the spectra.

    Raises: `ValueError`, one sentence that says where, if recording and score are different music for some
    seconds: a section is repeated, or left out.

    Example:
        >>> partial = lambda place: np.exp(-0.5 * ((np.arange(1024.0) - place) / 1.91) ** 2)
        >>> spectra = np.repeat(np.stack([partial(400.0), partial(502.4)]), 50, axis=0)  # an octave up
        >>> note = lambda onset, pitch: jaxsep.Note(
        ...     0, onset, onset + 0.25, pitch, 0.0, np.array([onset]), np.array([pitch])
        ... )
        >>> score = jaxsep.Score([note(0.0, 62.8), note(0.25, 74.8)])
        >>> moved = jaxsep.align_notes(score, spectra, 0.01 * np.arange(100), jaxsep.LogAxis())
        >>> [round(note.onset, 1) for note in moved.notes]
        [0.0, 0.5]
    """
    end = max(note.offset for note in score.notes)
    longest = max(end, float(times[-1]) - float(times[0]))
    spacing = float(times[1] - times[0])
    stride = max(1, round(max(_STEP, longest / _MOST) / spacing))
    step, heard = stride * spacing, _heard(spectra, axis, stride, stride * spacing)
    first = min(note.onset for note in score.notes)
    written = _written(score, first, max(1, int((end - first) / step)), step)
    loud = _loud(spectra, stride)
    cost = 1 - written @ heard.T
    rows, columns = cheapest_alignment(cost, loud)
    _check(cost[rows, columns], times[0] + step * columns, step)
    at = first + step * rows, times[0] + step * columns - _ATTACK

    def moved(seconds):
        # Beyond the path at the speed of its ends.
        x, y = at
        inside = float(np.interp(seconds, x, y))
        if seconds < x[0]:
            return inside - (x[0] - seconds)
        return inside + max(0.0, seconds - x[-1])

    def all_moved(events):
        begins = [max(0.0, moved(event.onset)) for event in events]
        ends = [moved(event.offset) for event in events]
        pairs = zip(events, begins, ends, strict=True)
        # A note that is squeezed to nothing still sounds for a step.
        return [dataclasses.replace(e, onset=a, offset=max(b, a + step)) for e, a, b in pairs]

    notes = [
        dataclasses.replace(n, times=np.array([n.onset])[:1], bend=n.bend[:1]) for n in all_moved(score.notes)
    ]
    return dataclasses.replace(score, notes=notes, rests=all_moved(score.rests))


def cheapest_alignment(
    cost: Float[np.ndarray, "rows columns"], skipping: Float[np.ndarray, " columns"]
) -> tuple[Int[np.ndarray, " path"], Int[np.ndarray, " path"]]:
    """Rows and columns of the monotone path of least cost, by dynamic programming.

    Every column that the path passes costs what the cell does by which it is reached. Columns before and
    after it cost `skipping`; rows before it cost 1 each, and those after it nothing.
    """
    num_rows, num_columns = cost.shape
    before = np.concatenate([[0.0], np.cumsum(skipping)])
    total = np.full((num_rows, num_columns), np.inf, np.float32)
    origin = np.full((num_rows, num_columns), -1, np.int8)
    total[0] = before[:-1] + cost[0]
    for row in range(1, num_rows):
        best, choice = np.full(num_columns, np.inf), np.full(num_columns, -1, np.int8)
        best[0] = row + cost[row, 0]
        for number, (down, right) in enumerate(_STEPS):
            if row >= down and right < num_columns:
                arrived = total[row - down, :-right] + right * cost[row, right:]
                better = arrived < best[right:]
                best[right:] = np.where(better, arrived, best[right:])
                choice[right:] = np.where(better, number, choice[right:])
        total[row], origin[row] = best, choice
    after = before[-1] - before[1:]
    finished, cut_short = total[-1] + after, total[:, -1]
    if finished.min() <= cut_short.min():
        row, column = num_rows - 1, int(np.argmin(finished))
    else:
        row, column = int(np.argmin(cut_short)), num_columns - 1
    path = [(row, column)]
    while (number := origin[row, column]) >= 0:
        down, right = _STEPS[number]
        row, column = row - down, column - right
        path.append((row, column))
    rows, columns = np.array(path[::-1]).T
    return rows, columns


def _check(cost, seconds, step):
    """Raises `ValueError` where the path leads through different music."""
    size = max(1, round(_WINDOW / step))
    if cost.size < size:
        return
    mean = np.convolve(cost, np.ones(size) / size, "valid")
    worst = int(np.argmax(mean))
    if mean[worst] > _FOREIGN:
        begin, end = seconds[worst], seconds[worst + size - 1]
        raise ValueError(
            f"notes: expected the music of the recording, got other notes from {begin:.0f} to {end:.0f} s; "
            "perhaps a section is repeated, or left out"
        )


def _heard(spectra, axis, stride, step):
    """What sounds and begins on each key in every step, `[steps, 2 keys]`."""
    centre = axis.bins_per_neper * (np.log(440 / axis.f_min) + (_KEYS - 69) * np.log(2) / 12)
    semitone = axis.bins_per_neper * np.log(2) / 12
    weights = np.maximum(0, 1 - np.abs(np.arange(axis.num_bins) - centre[:, None]) / semitone)
    keys = np.sqrt(np.maximum(spectra, 0) @ weights.T.astype(spectra.dtype))
    keys = (
        np.pad(keys, [(0, -len(keys) % stride), (0, 0)], mode="edge")
        .reshape(-1, stride, _KEYS.size)
        .mean(axis=1)
    )
    return _joined(keys, np.maximum(np.diff(keys, axis=0, prepend=0), 0), step)


def _written(score, first, num_steps, step):
    """The same of the notes, from `first` on."""
    keys = np.zeros((num_steps, _KEYS.size), np.float32)
    onsets = np.zeros_like(keys)
    for note in score.notes:
        begin = int((note.onset - first) / step)
        end = max(begin + 1, int((note.offset - first) / step))
        for number in range(1, _PARTIALS + 1):
            key = round(note.pitch + 12 * np.log2(number)) - _KEYS[0]
            if 0 <= key < _KEYS.size and begin < num_steps:
                keys[begin:end, key] = np.maximum(keys[begin:end, key], _DECAY ** (number - 1))
                onsets[begin, key] += _DECAY ** (number - 1)
    return _joined(keys, onsets, step)


def _joined(keys, onsets, step):
    """Both, each step of length 1 where anything sounds; onsets last a little."""
    fade = np.exp(-np.arange(0, 3 * _FADE, step) / _FADE)
    onsets = np.stack([np.convolve(column, fade)[: len(onsets)] for column in onsets.T], axis=1)
    parts = []
    for part, weight in ((keys, 1.0), (onsets, _ONSETS)):
        length = np.linalg.norm(part, axis=1, keepdims=True)
        parts.append(weight * part / np.maximum(length, 0.05 * max(float(length.max()), 1e-9)))
    return np.concatenate(parts, axis=1) / np.sqrt(1 + _ONSETS**2)


def _loud(spectra, stride):
    """1 for steps of the recording in which something sounds, else 0."""
    level = 20 * np.log10(np.maximum(np.linalg.norm(spectra, axis=1), 1e-12))
    level = np.pad(level, (0, -len(level) % stride), mode="edge").reshape(-1, stride).max(axis=1)
    return (level > level.max() + _SILENCE).astype(float)

"""A simulated user who corrects notes that were found, knowing what is played.

What is done to one note is what takes a moment in the page's piano roll: what sounds like another instrument
is dragged there, a wrong pitch to the right one, a note that nobody plays is deleted, and what is lacking in
its place, or sounds in unison with it, is drawn. A note that is right is marked so, and stays as found.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxsep.notes.note import Note
from jaxsep.notes.score import Rest, Score

__all__ = ["corrected", "most_doubtful", "played_by"]

#: Seconds by which an onset, and half of those by which the end, of a note may be off that nobody corrects.
_NEAR = 0.08

#: Largest distance in semitones of a note that has the right pitch.
_SAME_PITCH = 0.5


def corrected(
    found: Sequence[Note],
    played: Sequence[Note],
    order: Sequence[Note],
    count: int | None,
    names: Sequence[str],
) -> Score:
    """The notes after so many corrections.

    Arguments:
        found: what a separation has found.
        played: what the instruments play, by the same numbers.
        order: the found notes in which the user looks at them; one that an earlier correction has replaced is
            passed over.
        count: of corrections; None for all, after which what nobody has found is drawn as well.
        names: of the instruments.

    Returns: found notes that were not looked at, which are not held, the corrected ones, which are, and rests
    where a found note was deleted.
    """
    notes, rests = list(found), []
    left = len(order) if count is None else count
    for note in order:
        if left <= 0:
            break
        if any(note is other for other in notes):
            notes, more = _look_at(note, notes, played)
            rests, left = rests + more, left - 1
    if count is None:
        notes += [p for p in played if not any(_is(n, p) for n in notes)]
    return Score(notes, names, rests)


def _look_at(note, notes, played):
    """The notes, and new rests, after one found note has been put right."""
    beside = [p for p in played if _shared(p, note) > 0.5 * min(_length(p), _length(note))]
    same = lambda p: p.instrument == note.instrument or abs(p.pitch - note.pitch) < _SAME_PITCH
    right = [p for p in beside if same(p)]
    found = [next((n for n in notes if _is(n, p)), None) for p in right]
    replaced = lambda other: any(
        p.instrument == other.instrument and _shared(p, other) > 0.5 * _length(other) for p in right
    )
    kept = [other for other in notes if other is not note and (other.held or not replaced(other))]
    put = [p if n is None else dataclasses.replace(n, held=True) for p, n in zip(right, found, strict=True)]
    added = [p for p in put if not any(_is(other, p) and other.held for other in kept)]
    # Only what is deleted is known to be silent: what rings on, say, is not.
    return kept + added, [] if right else [Rest(note.instrument, note.onset, note.offset)]


def _is(found, played):
    """Whether a note was found as it is played, near enough to leave it."""
    near = abs(found.onset - played.onset) < _NEAR and abs(found.offset - played.offset) < 2 * _NEAR
    same = found.instrument == played.instrument and abs(found.pitch - played.pitch) < _SAME_PITCH
    return same and near


def _shared(a, b):
    return min(a.offset, b.offset) - max(a.onset, b.onset)


def _length(note):
    return note.offset - note.onset


def most_doubtful(notes: Sequence[Note]) -> list[Note]:
    """Notes in the order in which the page offers them; those of which it has no doubt, last."""
    return sorted(
        notes, key=lambda note: (-_worth(note), np.inf if note.confidence is None else note.confidence)
    )


def _worth(note):
    """As `worth` in the page: the doubt, by how long and how loud the note is."""
    if note.confidence is None:
        return 0.0
    return max(0.0, 2 - note.confidence) * _length(note) * 10 ** (max(note.level, -60) / 20)


def played_by(played: Score, order: Sequence[int]) -> Score:
    """The notes with instruments numbered as a separation numbers them: `order[n]` is that of the n-th."""
    notes = [dataclasses.replace(note, instrument=int(order[note.instrument])) for note in played.notes]
    names = [played.names[list(order).index(n)] for n in range(len(order))]
    return Score(notes, names)

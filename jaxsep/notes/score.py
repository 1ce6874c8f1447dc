"""Notes that are known of a recording, with the names of its instruments."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxsep.notes.note import Note

__all__ = ["Rest", "Score", "default_name", "plain_note"]

#: Seconds for which a note may reach into the next one.
_MOMENT = 0.2

#: Pitches in semitones that a note may have: more than any axis has room for.
_LOWEST, _HIGHEST = -30.0, 160.0


@dataclasses.dataclass(frozen=True)
class Rest:
    """A time in which an instrument is known to be silent, in seconds; `instrument` as in `Note`.

    Example:
        >>> jaxsep.Score([], rests=[jaxsep.Rest(instrument=1, onset=2.0, offset=3.5)]).num_instruments
        2
    """

    instrument: int
    onset: float
    offset: float


@dataclasses.dataclass(frozen=True)
class Score:
    """What is known of the notes of a recording, from a table, a MIDI file, or the hand of a musician.

    Arguments:
        notes: in any order; an instrument's notes may overlap.
        names: of the instruments, whose number they say; by default `instrument 1` and so on, up to the last
            one that plays.
        rests: where instruments are known to be silent; elsewhere nothing is said by the absence of a note.

    Raises: `ValueError` for instruments beyond the names, times that are not finite or end before they begin,
    and pitches that nobody hears.

    Example:
        >>> note = dict(level=-20.0, times=np.array([0.5]), bend=np.array([69.0]))
        >>> note = jaxsep.Note(instrument=1, onset=0.5, offset=1.0, pitch=69.0, **note)
        >>> jaxsep.Score([note]).names
        ('instrument 1', 'instrument 2')
    """

    notes: Sequence[Note]
    names: Sequence[str] = ()
    rests: Sequence[Rest] = ()

    def __post_init__(self):
        for name in ("notes", "names", "rests"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        everything = (*self.notes, *self.rests)
        number = 1 + max((event.instrument for event in everything), default=-1)
        if not self.names:
            object.__setattr__(self, "names", tuple(default_name(n) for n in range(number)))
        for event in everything:
            what = f"of instrument {event.instrument + 1} at {event.onset:.3f} s"
            if not 0 <= event.instrument < len(self.names):
                raise ValueError(
                    f"notes: expected instruments from 1 to {len(self.names)}, got {event.instrument + 1}"
                )
            if event.onset < 0:
                raise ValueError(f"notes: expected onsets of at least 0, got {event.onset:.3f} s")
            if not (np.isfinite([event.onset, event.offset]).all() and event.onset < event.offset):
                raise ValueError(
                    f"notes: expected an offset after the onset, got {event.offset:.3f} s {what}"
                )
        for note in self.notes:
            if not _LOWEST <= note.pitch <= _HIGHEST:
                raise ValueError(
                    f"notes: expected pitches as MIDI counts them, got {note.pitch:g} of instrument "
                    f"{note.instrument + 1} at {note.onset:.3f} s"
                )

    @property
    def num_instruments(self) -> int:
        """Number of instruments, those that do not play included."""
        return len(self.names)

    def polyphony(self) -> tuple[int, ...]:
        """Most notes of different keys that each instrument plays at a time; at least 1.

        Where a note merely reaches into the next one, by a moment or less than half of either, it counts as
        ended.
        """
        return tuple(map(self._polyphony, range(self.num_instruments)))

    def _polyphony(self, instrument):
        most, own = 1, sorted((n for n in self.notes if n.instrument == instrument), key=lambda n: n.onset)
        for k, note in enumerate(own):
            beside = [other for other in own[:k] if _together(other, note)]
            most = max(most, len({round(other.pitch) for other in (*beside, note)}))
        return most

    def within(self, duration: float) -> "Score":
        """What lies before `duration`, in seconds; what reaches over it ends there."""
        cut = lambda events: [
            dataclasses.replace(event, offset=min(event.offset, duration))
            for event in events
            if event.onset < duration
        ]
        return dataclasses.replace(self, notes=cut(self.notes), rests=cut(self.rests))


def _together(first, second):
    """Whether notes, of which the first begins first, sound at a time."""
    both = min(first.offset, second.offset) - second.onset
    shorter = min(first.offset - first.onset, second.offset - second.onset)
    return both > min(_MOMENT, 0.5 * shorter)


def default_name(instrument: int) -> str:
    """Name of an instrument, counted from 0, that has none."""
    return f"instrument {instrument + 1}"


def plain_note(
    instrument: int,
    onset: float | int,
    offset: float | int,
    pitch: float | int,
    level: float = 0.0,
    held: bool = True,
) -> Note:
    """A note that keeps its pitch."""
    curve = np.array([onset], float), np.array([pitch], float)
    return Note(instrument, float(onset), float(offset), float(pitch), level, *curve, held)

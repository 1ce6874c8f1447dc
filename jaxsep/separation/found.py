"""The notes of a separation, and what a later one takes over from it."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, Float

from jaxsep.notes.note import Note
from jaxsep.notes.notes import find_notes, follow_notes
from jaxsep.notes.score import Score
from jaxsep.separation.chunks import ANALYSIS_RATE
from jaxsep.separation.result import KnownNotes, Separation
from jaxsep.separation.settings import SeparationSettings
from jaxsep.signal.axes import LogAxis
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

__all__ = ["Earlier", "check_earlier", "notes_of"]

#: Confidence at which a frame is as sure as can be.
_ENOUGH = 3.0

#: Differences in seconds and semitones up to which a note is the same: what tables round.
_SAME_TIME, _SAME_PITCH = 0.001, 0.02

#: Seconds before and after a correction that are searched again: neighbours may end or begin elsewhere.
_BEFORE, _AFTER = 0.25, 0.4


def notes_of(separation: Separation) -> list[Note]:
    """The notes of a separation: those that were all known before, or else those that its tones form."""
    played = separation.tones, separation.times, separation.dictionary
    known = separation.known
    if known is not None and known.notes_are == "all":
        return follow_notes(known.score.notes, *played)
    return [
        dataclasses.replace(note, confidence=_confidence(note, separation)) for note in find_notes(*played)
    ]


def _confidence(note, separation):
    """The mean over the note's frames, where no frame is surer than enough."""
    during = (separation.times >= note.onset) & (separation.times < note.offset)
    values = np.minimum(separation.confidence[during], _ENOUGH)
    return float(values.mean()) if values.size and not np.isnan(values).any() else None


class Earlier(NamedTuple):
    """What a separation takes over from an earlier one of the same recording.

    - `tones`: `[frames, tones]`, amplitudes in the recording's units, fundamentals in Hz.
    - `times`: centre of each frame in seconds.
    - `dictionary`: of the instruments.
    - `confidence`: of each frame.
    - `notes`: as they were found.
    """

    tones: Tones
    times: Float[np.ndarray, " frames"]
    dictionary: Dictionary
    confidence: Float[np.ndarray, " frames"]
    notes: Sequence[Note]

    @classmethod
    def of(cls, separation: Separation) -> "Earlier":
        """All that a separation has found."""
        fields = separation.tones, separation.times, separation.dictionary, separation.confidence
        return cls(*fields, notes_of(separation))

    @classmethod
    def read(
        cls, tones: Tones, times: Float[np.ndarray, " frames"], dictionary: Dictionary, notes: Sequence[Note]
    ) -> "Earlier":
        """What files tell, in which notes, but not frames, have their confidence."""
        confidence = np.full(times.size, np.inf, np.float32)
        for note in notes:
            if note.confidence is not None:
                during = (times >= note.onset) & (times < note.offset)
                confidence[during] = np.minimum(confidence[during], note.confidence)
        return cls(tones, times, dictionary, confidence, notes)

    def quieter(self, factor: float) -> "Earlier":
        """What would have been found in the samples divided by a factor."""
        amplitude = np.asarray(self.tones.amplitude) / np.float32(factor)
        return self._replace(tones=eqx.tree_at(lambda t: t.amplitude, self.tones, amplitude))

    def in_bins(self, axis: LogAxis, scale: float) -> Tones:
        """The tones with fundamentals in bins of an axis, and amplitudes relative to a scale."""
        tones = jax.tree.map(np.asarray, self.tones)
        hertz = np.where(tones.active, tones.fundamental, axis.f_min)
        fields = (tones.amplitude / np.float32(scale), axis.to_bin(hertz))
        return eqx.tree_at(lambda t: (t.amplitude, t.fundamental), tones, fields)

    def touched(self, score: Score) -> Bool[np.ndarray, " frames"]:
        """Frames in which the notes of a score, or its rests, are others than those that were found."""
        # The last frame is past the end of the recording, at which the notes of a score are cut.
        end = self.times[-2:].min()
        found, listed = (
            [dataclasses.replace(note, offset=min(note.offset, end)) for note in notes]
            for notes in (self.notes, score.notes)
        )
        changed = [*_lacking(found, listed), *_lacking(listed, found), *score.rests]
        frames = np.zeros(self.times.size, bool)
        for event in changed:
            frames |= (self.times >= event.onset - _BEFORE) & (self.times <= event.offset + _AFTER)
        return frames


def _lacking(notes, others):
    """The notes that are not among others."""
    rows = np.array([[o.instrument, o.onset, o.offset, o.pitch] for o in others]).reshape(-1, 4)
    near = np.array([0.5, _SAME_TIME, _SAME_TIME, _SAME_PITCH])
    same = lambda n: np.any(np.all(np.abs(rows - [n.instrument, n.onset, n.offset, n.pitch]) <= near, axis=1))
    return [note for note in notes if not same(note)]


def check_earlier(
    earlier: Earlier,
    known: KnownNotes | None,
    num_instruments: int,
    num_frames: int,
    settings: SeparationSettings,
    dictionary: Dictionary | None,
) -> None:
    """Refuses an earlier separation that is none of a recording of so many frames, with one sentence."""
    if known is None or known.notes_are != "held":
        raise ValueError(f"earlier: expected notes that are held, got {known and known.notes_are!r}")
    if dictionary is not None:
        raise ValueError("earlier: expected no dictionary, since the earlier separation has one, got both")
    if earlier.dictionary.num_instruments != num_instruments:
        raise ValueError(
            f"earlier: expected {num_instruments} instruments, got {earlier.dictionary.num_instruments}"
        )
    spacing = settings.hop / ANALYSIS_RATE
    if earlier.times.size != num_frames or abs(earlier.times[1] - earlier.times[0] - spacing) > 1e-6:
        raise ValueError(
            f"earlier: expected {num_frames} frames, one every {1000 * spacing:.2f} ms, got "
            f"{earlier.times.size}, one every {1000 * (earlier.times[1] - earlier.times[0]):.2f} ms"
        )

"""Notes that are known, as what they say of the tones of every frame."""

import dataclasses

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxsep.notes.note import Note
from jaxsep.notes.score import Score
from jaxsep.search.moves import arrange, no_tones
from jaxsep.signal.axes import LogAxis
from jaxsep.tones.tones import Tones

__all__ = ["Known", "known_tones"]

#: How far from a note's pitch its tones may be, in semitones: a vibrato, and what tuning leaves.
_PITCH = 0.75

#: Seconds by which a note may begin and end otherwise than it is listed, at most this part of its length
#: each, and seconds in which it may ring on.
_EDGE, _PART, _RING = 0.12, 0.4, 0.4

#: A power of two that lifts tones above all others, without rounding.
_LIFT = np.float32(2.0**60)


class Known(eqx.Module):
    """What notes say of the tones of every frame.

    - `instrument`, `position`, `amplitude`: `[frames, notes]`, of notes that may sound there; the position is
      in bins, the amplitude a guess, and the instrument −1 where there are fewer.
    - `listed`, `must`: `[frames, notes]`, whether the note sounds as it is listed, and whether it does so for
      sure.
    - `bound`: `[frames, instruments]`, whether the instrument plays nothing but these notes.
    - `tolerance`: how far from its position a tone of a note may be, in bins.
    """

    instrument: Int[np.ndarray, "frames notes"]
    position: Float[np.ndarray, "frames notes"]
    amplitude: Float[np.ndarray, "frames notes"]
    listed: Bool[np.ndarray, "frames notes"]
    must: Bool[np.ndarray, "frames notes"]
    bound: Bool[np.ndarray, "frames instruments"]
    tolerance: float

    def every(self, stride: int) -> "Known":
        """The same for every `stride`-th frame."""
        return self.at(slice(None, None, stride))

    def at(self, frames: slice | Int[np.ndarray, " selected"]) -> "Known":
        """The same for some of the frames."""
        fields = (self.instrument, self.position, self.amplitude, self.listed, self.must, self.bound)
        return Known(*(field[frames] for field in fields), self.tolerance)

    def as_listed(self) -> "Known":
        """The notes just as they are listed: each sounds while it lasts, and its instrument nothing else."""
        owner = self.instrument[..., None] == np.arange(self.bound.shape[1])
        bound = np.any(owner & self.listed[..., None], axis=1)
        return eqx.tree_at(lambda known: (known.must, known.bound), self, (self.listed, bound))

    def agrees(self, frames: Int[np.ndarray, " selected"], tones: Tones) -> Bool[np.ndarray, " selected"]:
        """Whether the notes allow tones `[selected, slots]` in these frames."""
        here = self.at(frames)
        return ~np.any(tones.active & ~here._allowed(here._near(tones), tones), axis=1)

    def holds(self, frames: Int[np.ndarray, " selected"], tones: Tones) -> Bool[np.ndarray, " selected"]:
        """Whether tones `[selected, slots]` in these frames agree, and what must sound is among them."""
        here = self.at(frames)
        there = np.any(here._near(tones) & tones.active[..., None], axis=1)
        return self.agrees(frames, tones) & ~np.any(here.must & ~there, axis=1)

    def sure(self, tones: Tones) -> Bool[np.ndarray, "frames slots"]:
        """Which tones are those of notes that sound for sure."""
        return np.any(self._near(tones) & self.must[:, None], axis=2)

    def bind(self, tones: Tones) -> Tones:
        """Tones `[frames, slots]` that agree with the notes, as near to the given ones as can be.

        What a bound instrument plays beside its notes is left out, and notes that must sound join, in the
        place of the quietest others if slots are few.
        """
        near = self._near(tones)
        active = tones.active & self._allowed(near, tones)
        missing = self.must & ~np.any(near & active[..., None], axis=1)
        sure = self.sure(tones) & active
        shape = self.position.shape
        blank = no_tones(shape, tones.amplitude.dtype)
        fields = (self.amplitude, self.position, np.maximum(self.instrument, 0).astype(np.int32), missing)
        names = lambda t: (t.amplitude, t.fundamental, t.instrument, t.active)
        fields = [field.astype(old.dtype) for field, old in zip(fields, names(blank), strict=True)]
        joined = eqx.tree_at(names, blank, fields)
        kept = eqx.tree_at(lambda t: t.active, tones, active)
        both = jax.tree.map(lambda x, y: np.concatenate([x, y], axis=1), kept, joined)
        lift = np.where(np.concatenate([sure, missing], axis=1), _LIFT, np.float32(1))
        both = eqx.tree_at(lambda t: t.amplitude, both, both.amplitude * lift.astype(both.amplitude.dtype))
        number = self.bound.shape[1]
        placed = arrange(both, number, tones.capacity // number)
        # Nothing that was not lifted comes near the root of the factor.
        amplitude = np.where(placed.amplitude > _LIFT**0.5, placed.amplitude / _LIFT, placed.amplitude)
        return eqx.tree_at(lambda t: t.amplitude, placed, amplitude.astype(tones.amplitude.dtype))

    def sounding(self, slots: int) -> Tones:
        """The notes as they are listed, in so many slots of each instrument."""
        shape = self.position.shape[0], slots * self.bound.shape[1]
        listed = eqx.tree_at(lambda known: known.must, self, self.listed)
        return listed.bind(no_tones(shape, self.amplitude.dtype))

    def _near(self, tones):
        """Whether each tone may be each note, `[frames, slots, notes]`."""
        same = tones.instrument[..., None] == self.instrument[:, None]
        return same & (np.abs(tones.fundamental[..., None] - self.position[:, None]) <= self.tolerance)

    def _allowed(self, near, tones):
        bound = np.take_along_axis(self.bound, np.asarray(tones.instrument), axis=1)
        return np.any(near, axis=2) | ~bound


def known_tones(
    score: Score,
    times: Float[np.ndarray, " frames"],
    spectra: Float[np.ndarray, "frames bins"],
    axis: LogAxis,
    *,
    everywhere: bool,
    edge: float = _EDGE,
) -> Known:
    """What notes say of the tones in every frame of a recording.

    A note's edges may be a little off, and it may ring on; its pitch may be as far off as the recording is
    from standard pitch, and a little more.

    Arguments:
        score: notes, and rests.
        times: of the frames, in seconds.
        spectra: of the frames, log-frequency magnitudes with a peak of about 1.
        axis: of the spectra.
        everywhere: whether nothing but the notes sounds; otherwise an instrument is bound where it has one
            for sure, or a rest.
        edge: seconds by which a note may begin later than it is listed, and end earlier.
    """
    notes = _merged(score.notes)
    places = _places(notes, times, spectra, axis)
    onset, offset = (np.array([getattr(note, name) for note in notes]) for name in ("onset", "offset"))
    edge = np.minimum(edge, _PART * (offset - onset))
    may = _during(times, onset - _EDGE, offset + _RING)
    listed, must = _during(times, onset, offset), _during(times, onset + edge, offset - edge)
    instrument = np.array([note.instrument for note in notes], np.int32)

    # In each frame the notes that may sound there come first.
    size = int(may.sum(axis=1).max(initial=1))
    order = np.argsort(~may, axis=1, kind="stable")[:, :size]
    take = lambda per_frame: np.take_along_axis(per_frame, order, axis=1)
    there = take(may)
    bound = np.zeros((times.size, score.num_instruments), bool)
    for number in range(score.num_instruments):
        bound[:, number] = everywhere | np.any(must[:, instrument == number], axis=1)
    for rest in score.rests:
        bound[:, rest.instrument] |= (times >= rest.onset) & (times < rest.offset)
    position = places[order].astype(spectra.dtype)
    return Known(
        instrument=np.where(there, instrument[order], -1),
        position=position,
        amplitude=_loudness(spectra, position, axis),
        listed=take(listed),
        must=take(must),
        bound=bound,
        tolerance=_PITCH * axis.bins_per_neper * np.log(2) / 12,
    )


def _merged(notes):
    """Notes of which none sounds while its instrument plays the same pitch in another."""
    kept: list[Note] = []
    for note in sorted(notes, key=lambda note: note.onset):
        same = [k for k, o in enumerate(kept) if o.instrument == note.instrument and o.offset > note.onset]
        same = [k for k in same if abs(kept[k].pitch - note.pitch) < _PITCH]
        if same:
            other = kept[same[-1]]
            kept[same[-1]] = dataclasses.replace(other, offset=max(other.offset, note.offset))
        else:
            kept.append(note)
    return kept


def _during(times, begin, end):
    """Whether each time lies between, `[frames, notes]`; the one next to the middle does in any case."""
    inside = (times[:, None] >= begin) & (times[:, None] < end)
    middle = np.abs(times[:, None] - 0.5 * (begin + end))
    nearest = np.argmin(middle, axis=0)
    spacing = times[1] - times[0] if times.size > 1 else np.inf
    heard = middle[nearest, np.arange(begin.size)] <= spacing
    inside[nearest[heard], np.flatnonzero(heard)] = True
    return inside


#: Partials by which notes are placed, and semitones by which they may be elsewhere, either way: the tuning of
#: the recording, and from it each note.
_PARTIALS, _TUNING, _OWN = 8, 0.7, 0.35


def _places(notes, times, spectra, axis):
    """Positions of notes in bins, where their partials are strongest."""
    listed = axis.bins_per_neper * np.log(
        440 / axis.f_min * 2 ** ((np.array([n.pitch for n in notes]) - 69) / 12)
    )
    number = np.arange(1, _PARTIALS + 1)
    partials = axis.bins_per_neper * np.log(number)
    most, own = (max(1, round(x * axis.bins_per_neper * np.log(2) / 12)) for x in (_TUNING, _OWN))
    shifts = np.arange(-most, most + 1)
    strength = np.zeros((len(notes), shifts.size))
    for row, note in enumerate(notes):
        frames = np.flatnonzero((times >= note.onset) & (times < note.offset))
        if not frames.size:
            continue
        bins = np.round(listed[row] + partials).astype(int)[:, None] + shifts
        inside = (bins >= 0) & (bins < axis.num_bins)
        values = np.sqrt(spectra[frames[:, None, None], np.clip(bins, 0, axis.num_bins - 1)])
        strength[row] = np.sum(np.where(inside, values.mean(axis=0), 0) / np.sqrt(number)[:, None], axis=0)
    total = np.sum(strength / np.maximum(strength.max(axis=1, keepdims=True), 1e-9), axis=0)
    tuning = int(np.argmax(total))
    near = np.where(np.abs(shifts - shifts[tuning]) <= own, strength, -1)
    # Where nothing is heard a note stays at the recording's tuning.
    best = np.where(near.max(axis=1) > 0, np.argmax(near, axis=1), tuning)
    return listed + shifts[best]


def _loudness(spectra, position, axis):
    """The strongest of a note's first partials, `[frames, notes]`."""
    frames = np.arange(len(spectra))[:, None]
    loudest = np.full(position.shape, 1e-6, spectra.dtype)
    for number in (1, 2, 3, 4):
        bins = np.round(position + axis.bins_per_neper * np.log(number)).astype(int)
        for nearby in (bins - 1, bins, bins + 1):
            inside = (nearby >= 0) & (nearby < axis.num_bins)
            values = spectra[frames, np.clip(nearby, 0, axis.num_bins - 1)]
            loudest = np.maximum(loudest, np.where(inside, values, 0))
    return loudest

"""Which instrument plays a note, decided for whole notes and for all notes of a recording at once.

A frame hardly tells two instruments of one family apart, and its loss prefers whatever tears a line apart
by register. What lasts decides here: the tones of neighbouring frames form tracks, whoever plays them; each
track has a sound, averaged over its frames where its partials stand alone; and the tracks go to the
instruments so that each has one sound, and lines of small steps without gaps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.search.known import Known
from jaxsep.search.lines import Lines, Streaming
from jaxsep.search.tracks import find_tracks, sounds_of
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

__all__ = ["Streamed", "Streams"]

#: What it costs to move a track that is not known: else all might change places but the corrected one.
_MOVING = 0.1

#: What part of the tones must go to others that another beginning is worth a round.
_OTHERS = 0.03

#: What part of a track a known note must cover for its instrument to be known; its edges are not sure.
_CERTAIN = 0.25


class Streamed(NamedTuple):
    """Tones whose tracks went to instruments.

    - `tones`: with their new instruments; those of tracks too short to judge keep theirs.
    - `before`, `after`: mean cost of a track by its instruments before and now, 0 without tracks; before,
      infinite where the instruments were fewer.
    """

    tones: Tones
    before: float
    after: float


class Streams(NamedTuple):
    """What tells who plays what in a recording.

    Arguments:
        objective: the lifted loss and its axis.
        spectra: log-frequency magnitudes, peak about 1.
        polyphony: how many notes each instrument may play at a time, to which the tracks go; who plays one
            has a line, who plays more chords.
        spacing: of the frames, in seconds.
        costs: of an assignment.
    """

    objective: LiftedLoss
    spectra: Float[np.ndarray, "frames bins"]
    polyphony: Sequence[int]
    spacing: float
    costs: Streaming = Streaming()

    def stream(self, tones: Tones, dictionary: Dictionary, faint: bool = True) -> Streamed:
        """The same tones, each track given to the instrument whose line and sound it belongs to.

        Arguments:
            tones: `[frames, slots]`.
            dictionary: with which they were refined; it may have fewer instruments than are asked for.
            faint: whether faint tracks are given to somebody, too.

        Example:
            >>> shape = (40, 2)  # [frames, tones]: two steady lines
            >>> place = jnp.broadcast_to(jnp.array([300.0, 450.0]), shape)
            >>> tones = jaxsep.Tones.plain(jnp.ones(shape), place, jnp.zeros(shape, int))
            >>> frame = lambda tones: jaxsep.render(tones, jnp.ones((2, 1)), jaxsep.LogAxis())
            >>> spectra = np.asarray(jax.vmap(frame)(tones))
            >>> streams = Streams(jaxsep.LiftedLoss(), spectra, (1, 1), 0.01)
            >>> found = streams.stream(tones, jaxsep.Dictionary(jnp.ones((1, 1))))
            >>> sorted(found.tones.instrument[0].tolist())
            [0, 1]
        """
        tones, tracks = self._tracks(tones, faint)
        if tracks is None:
            return Streamed(tones, 0.0, 0.0)
        lines = Lines(*self._heard(tracks, tones, dictionary))
        starts = [*lines.by_pitch(), lines.plain(), *lines.by_sound()]
        before = np.inf
        if dictionary.num_instruments == len(self.polyphony):
            starts.append(tracks.owner)
            before = lines.judge(tracks.owner)[0]
        after, owner = lines.search(starts)
        if after >= before:
            after, owner = before, tracks.owner
        return Streamed(_given(tones, tracks, owner), before / tracks.begin.size, after / tracks.begin.size)

    def beginnings(self, tones: Tones, dictionary: Dictionary) -> list[Streamed]:
        """As `stream` of all tracks, and of those that are not faint, if many of these go to others then.

        What is found in noise, or rings on, would be an instrument in a long rest, with a sound and lines as
        those of notes are; but what is faint may as well be somebody who plays softly.
        """
        every = self.stream(tones, dictionary)
        tones, tracks = self._tracks(tones, faint=False)
        if tracks is None:
            return [every]
        loud = self.stream(tones, dictionary, faint=False)
        owners = [each.tones.instrument[tracks.label >= 0] for each in (every, loud)]
        shared = np.zeros((len(self.polyphony),) * 2)
        np.add.at(shared, tuple(owners), 1)
        alike = shared[linear_sum_assignment(-shared)].sum()
        return [every, loud] if alike < (1 - _OTHERS) * owners[0].size else [every]

    def follow(self, tones: Tones, before: Tones, dictionary: Dictionary, known: Known) -> Tones:
        """The tones after who plays some of them was corrected: the rest of a line that was torn follows.

        Whoever plays a track otherwise if the notes that are known stay where they are, than if nothing was
        known, does so because of them. All other tracks stay.

        Arguments:
            tones: `[frames, slots]`, corrected.
            before: as they were found.
            dictionary: with which they were refined.
            known: the notes that are known.
        """
        tones, tracks = self._tracks(tones)
        if tracks is None:
            return tones
        half = self.objective.axis.bins_per_neper * np.log(2) / 24
        owners = np.where(tracks.label >= 0, _nearest(tones, before, half), 0)
        found = np.array([np.bincount(each).argmax() for each in _of_tracks(tracks, owners)])
        among = self._heard(tracks, tones, dictionary)
        moving = _MOVING * (found[:, None] != np.arange(len(self.polyphony)))
        free, told = Lines(*among, moving), Lines(*among, moving + self._barred(tones, tracks, known))
        without, bound = free.search([found])[1], told.search([found])[1]
        owner = np.where(bound != without, bound, tracks.owner)
        if told.judge(owner)[0] >= told.judge(tracks.owner)[0]:
            return tones
        return _given(tones, tracks, owner)

    def margins(
        self, tones: Tones, dictionary: Dictionary, known: Known | None = None
    ) -> Float[np.ndarray, " frames"]:
        """What it costs more, at least, to give any track that sounds in a frame to another instrument.

        Arguments:
            tones: `[frames, slots]`.
            dictionary: with which they were refined.
            known: notes whose instruments are known, if there are any.

        Returns: at least 0, infinite where nothing sounds or nobody else may have what sounds.
        """
        tones, tracks = self._tracks(tones)
        if tracks is None:
            return np.full(len(self.spectra), np.inf)
        barred = None if known is None else self._barred(tones, tracks, known)
        gaps = Lines(*self._heard(tracks, tones, dictionary), barred).gaps(tracks.owner)
        return np.min(np.where(tracks.label >= 0, gaps[np.maximum(tracks.label, 0)], np.inf), axis=1)

    def _tracks(self, tones, faint=True):
        """The tones on the host, and their tracks; None if there is nothing to decide."""
        tones = jax.tree.map(np.asarray, tones)
        tracks = find_tracks(tones, self.objective.axis, self.spacing, faint)
        return tones, tracks if tracks.begin.size and len(self.polyphony) > 1 else None

    def _heard(self, tracks, tones, dictionary):
        """What `Lines` needs to know."""
        sounds = sounds_of(tracks, self.objective, self.spectra, tones, dictionary)
        return tracks, *sounds, self.polyphony, self.costs

    def _barred(self, tones, tracks, known):
        """Costs by which known tracks stay where they are."""
        sure = np.array([each.mean() > _CERTAIN for each in _of_tracks(tracks, known.sure(tones))])
        others = tracks.owner[:, None] != np.arange(len(self.polyphony))
        return np.where(sure[:, None] & others, np.inf, 0.0)


def _of_tracks(tracks, each):
    """What the tones of each track have."""
    return [each[tracks.label == number] for number in range(tracks.begin.size)]


def _given(tones, tracks, owner):
    """The tones with the instruments that own their tracks; those of tracks too short to judge stay."""
    judged = tracks.label >= 0
    instrument = np.where(judged, owner[np.maximum(tracks.label, 0)], tones.instrument).astype(np.int32)
    return eqx.tree_at(lambda t: t.instrument, tones, instrument)


def _nearest(tones, others, reach):
    """The instrument of the nearest of the others in each frame, or their own where none is in reach."""
    apart = np.abs(tones.fundamental[..., None] - np.asarray(others.fundamental)[:, None])
    apart = np.where(np.asarray(others.active)[:, None], apart, np.inf)
    nearest = np.argmin(apart, axis=2)
    theirs = np.take_along_axis(np.asarray(others.instrument), nearest, axis=1)
    return np.where(np.min(apart, axis=2) <= reach, theirs, tones.instrument)

"""Assignments of tracks to instruments, what they cost, and the cheapest."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxsep.search.tracks import Tracks

__all__ = ["Lines", "Streaming"]


@dataclasses.dataclass(frozen=True)
class Streaming:
    """Costs by which tracks go to instruments (ours); times in seconds.

    `Σ_tracks timbre · ( d − contrast · H · (d' − d) ) + Σ_(successive tracks of an instrument) ( leap · |Δp|
    · e^(−pause/memory) + entry · [pause > breath] + overlap · (common time) ) + Σ_(crossed tracks) crossing
    · (common time)`

    with the distances d of a track's sound from its instrument's, and d' from the nearest of the others', in
    units of the median track's d. H is the entropy of the parts that the instruments have in what sounds, in
    units of the greatest there is: else a few odd tracks, unlike everything, would be an instrument.

    - `timbre`: of a track whose sound is as far from its instrument's as the median track's.
    - `contrast`: of instruments that sound alike, beside that, where one plays chords and another a line;
      longer tracks count for more. Who has another one's tracks, too, sounds like him. Among lines alone
      a trio and a string quartet lost by it.
    - `leap`: of a semitone between the pitches of successive tracks, up to an octave.
    - `memory`: pause after which a leap counts e times less.
    - `entry`: of beginning after a pause of more than `breath`: who plays a line goes on with it.
    - `overlap`: of a second in which an instrument plays two notes, but for the first `release`, in which the
      earlier one may ring on; at most 0.3 s count.
    - `crossing`: of a second in which the instrument that plays higher over the recording has the lower note,
      but for the first 0.05 s; at most 0.3 s of each pair count.
    - `chord`: of a note of who plays chords beside somebody's line, instead of all these but for its sound.
      That counts thrice there: chords make no lines.
    """

    timbre: float = 0.4
    contrast: float = 0.45
    leap: float = 0.12
    memory: float = 1.2
    entry: float = 2.0
    breath: float = 0.12
    overlap: float = 20.0
    release: float = 0.15
    crossing: float = 1.7
    chord: float = 0.7

    def among(self, line: Bool[np.ndarray, " instruments"]) -> "Streaming":
        """The costs where some instruments have a line, and the others play chords."""
        if line.any() and not line.all():
            return dataclasses.replace(self, timbre=_BESIDE * self.timbre)
        return dataclasses.replace(self, contrast=0.0)


#: How much more sounds count beside chords.
_BESIDE = 3.0

#: How near in pitch, in semitones, tracks say what an instrument sounds like there, and how much those of
#: other registers add.
_NEAR, _FAR, _FAR_SHARE = 3.0, 12.0, 0.3

#: Seconds in which notes sound together that do not cross yet.
_TOUCHING = 0.05

#: States of the search that are followed, and how often sounds and assignment may change each other.
_WIDTH, _ROUNDS = 64, 5

#: A track's sound is at most so many times as far as the median from that of any instrument.
_FARTHEST = 6.0

#: Random beginnings of the search for kinds of sounds, and how often each may change.
_DRAWS, _CHANGES = 4, 30


class _Step(NamedTuple):
    """Ways to give a track to an instrument, the cheapest of all ways so far first.

    - `score`: cost of each state before.
    - `before`, `owner`, `after`, `cost`: of each way: the state that it comes from, who gets the track, the
      state that it leads to, and what it costs.
    """

    score: Float[np.ndarray, " states"]
    before: Int[np.ndarray, " ways"]
    owner: Int[np.ndarray, " ways"]
    after: Int[np.ndarray, " ways"]
    cost: Float[np.ndarray, " ways"]


class Lines:
    """Assignments of tracks to instruments, and what they cost.

    What a track is like depends on who owns the others. Sounds count relative to the median distance of a
    track from its own instrument: an assignment that makes all tracks alike gains nothing by that.

    Arguments:
        tracks: to be assigned.
        sound, weight: what each sounds like, and how much that is known (`sounds_of`).
        polyphony: how many notes each instrument may play at a time.
        costs: of an assignment.
        extra: what else it costs that an instrument has a track, infinite for what cannot be.
    """

    def __init__(
        self,
        tracks: Tracks,
        sound: Float[np.ndarray, "tracks harmonics"],
        weight: Float[np.ndarray, "tracks harmonics"],
        polyphony: Sequence[int],
        costs: Streaming = Streaming(),
        extra: Float[np.ndarray, "tracks instruments"] | None = None,
    ):
        self.tracks, self.sound, self.weight = tracks, sound, weight
        self.number, self.all = len(polyphony), np.arange(tracks.begin.size)
        self.line = np.array(polyphony) == 1
        #: How much each track tells of who plays it.
        self.evidence = np.sqrt(tracks.end - tracks.begin)
        self.costs = costs = costs.among(self.line)
        self.follows = _follow_costs(tracks, costs, self.line)
        self.above, self.below = _crossing_costs(tracks, costs)
        self.extra = np.zeros((tracks.begin.size, self.number)) if extra is None else extra

    def search(
        self, starts: Sequence[Int[np.ndarray, " tracks"]]
    ) -> tuple[float, Int[np.ndarray, " tracks"]]:
        """The cheapest of what suits its own sounds, reached from several starts, with its cost."""
        ends = []
        for owner in starts:
            for part in (0.5, *[1.0] * _ROUNDS):  # at first the lines count for more
                before, owner = owner, self.cheapest(part * self.judge(owner)[1], self._ranks(owner))
                if part == 1 and np.array_equal(owner, before):
                    break
            ends.append((self.judge(owner)[0], owner))
        return min(ends, key=lambda end: end[0])

    def judge(
        self, owner: Int[np.ndarray, " tracks"]
    ) -> tuple[float, Float[np.ndarray, "tracks instruments"]]:
        """Cost of an assignment, and that of each track's sound by whoever would own it, `[tracks, n]`."""
        distance = self._distances(owner)
        usual = np.median(distance[self.all, owner]) + 1e-3
        timbre = self.costs.timbre * np.minimum(distance / usual, _FARTHEST)
        contrast = self._contrast(timbre, owner)
        timbre = timbre + self.extra
        last, cost = np.full(self.number, self.all.size), timbre[self.all, owner].sum() - contrast
        rank = self._ranks(owner)
        for track, instrument in enumerate(owner):
            cost += self.follows[instrument, last[instrument], track]
            cost += self._crossed(last, track, rank)[instrument]
            last[instrument] = track
        return cost, timbre

    def plain(self) -> Int[np.ndarray, " tracks"]:
        """The cheapest assignment whatever the tracks sound like, the first instrument the highest."""
        return self.cheapest(self.extra, np.arange(self.number))

    def cheapest(
        self, timbre: Float[np.ndarray, "tracks instruments"], rank: Int[np.ndarray, " instruments"]
    ) -> Int[np.ndarray, " tracks"]:
        """The cheapest assignment; `rank` tells how many instruments are higher than each."""
        state, owner = 0, np.empty(self.all.size, int)
        for track, step in reversed([*enumerate(self._steps(timbre, rank))]):
            way = np.argmax(step.after == state)  # the first is the cheapest
            owner[track], state = step.owner[way], step.before[way]
        return owner

    def gaps(self, owner: Int[np.ndarray, " tracks"]) -> Float[np.ndarray, " tracks"]:
        """What it costs more, at least, to give each track to somebody else, with sounds as they are now.

        0 if that is cheaper; all other tracks may go where they like then. Infinite if nobody else comes
        into question.
        """
        steps = [*self._steps(self.judge(owner)[1], self._ranks(owner))]
        mine, others = np.full(owner.size, np.inf), np.full(owner.size, np.inf)
        rest = np.zeros(_WIDTH)  # the cheapest way from each state to the end
        for track, step in reversed([*enumerate(steps)]):
            onward = step.cost + rest[step.after]
            whole, same = step.score[step.before] + onward, step.owner == owner[track]
            mine[track] = np.min(whole[same], initial=np.inf)
            others[track] = np.min(whole[~same], initial=np.inf)
            rest = np.full(_WIDTH, np.inf)
            np.minimum.at(rest, step.before, onward)
        # A track that the search would not leave with its owner is as doubtful as can be.
        return np.where(np.isfinite(mine), np.maximum(others - np.where(np.isfinite(mine), mine, 0), 0), 0)

    def _steps(self, timbre, rank) -> Iterator[_Step]:
        """A beam search in the order of begin, track by track.

        The state is the last track of each instrument, so that few states cover all that is likely.
        """
        count, number = timbre.shape
        last = np.full((1, number), count)
        score = np.zeros(1)
        places = (count + 1) ** np.arange(number, dtype=np.uint64)  # may wrap: a hash
        for track in range(count):
            cost = timbre[track] + self.follows[np.arange(number), last, track]
            cost += self._crossed(last, track, rank)
            total = score[:, None] + cost
            order = np.argsort(total, axis=None, kind="stable")[: 4 * _WIDTH]
            before, owner = np.unravel_index(order, total.shape)
            states = last[before]
            states[np.arange(order.size), owner] = track
            mark = (states.astype(np.uint64) * places).sum(axis=1)
            _, first, which = np.unique(mark, return_index=True, return_inverse=True)
            after = np.argsort(np.argsort(first))[which]
            kept = after < _WIDTH
            yield _Step(score, before[kept], owner[kept], after[kept], cost.ravel()[order[kept]])
            first = np.sort(first)[:_WIDTH]
            last, score = states[first], total.ravel()[order[first]]

    def by_pitch(self) -> list[Int[np.ndarray, " tracks"]]:
        """Owners by height among the tracks that sound in the middle of each, the highest to the first.

        Beside chords, a line is the highest of all tracks in one assignment, and the lowest in another.
        """
        begin, end, pitch = self.tracks.begin, self.tracks.end, self.tracks.pitch
        middle = (begin + end) / 2
        beside = (begin <= middle[:, None]) & (middle[:, None] < end)
        above = np.sum(beside & (pitch > pitch[:, None]), axis=1)
        among = np.maximum(beside.sum(axis=1), 1)
        if self.line.all() or not self.line.any():
            return [np.minimum(((above + 0.5) * self.number / among).astype(int), self.number - 1)]
        chords, starts = np.argmin(self.line), []
        for line in np.flatnonzero(self.line):
            starts += [np.where(edge, line, chords) for edge in (above == 0, above == among - 1)]
        return starts

    def by_sound(self) -> list[Int[np.ndarray, " tracks"]]:
        """Owners by as many kinds of sounds as there are instruments, wherever they play (k-means).

        Each kind is each instrument's in one assignment. There is none where all have lines, or all chords.
        """
        if self.line.all() or not self.line.any() or self.all.size < self.number:
            return []
        random, kinds = np.random.default_rng(0), {}
        parts = self.evidence / self.evidence.sum()
        for _ in range(_DRAWS):
            some = random.choice(self.all.size, self.number, replace=False, p=parts)
            owner = np.argmin(self._from(self.sound[some]), axis=1)
            for _ in range(_CHANGES):
                before, owner = owner, np.argmin(self._from(self._kinds(owner)), axis=1)
                if np.array_equal(owner, before):
                    break
            # The same whatever their numbers: the kind of the first track is the first.
            _, first, kind = np.unique(owner, return_index=True, return_inverse=True)
            owner = np.argsort(np.argsort(first))[kind]
            kinds[owner.tobytes()] = owner
        return [(owner + turn) % self.number for owner in kinds.values() for turn in range(self.number)]

    def _kinds(self, owner):
        """The mean sound of the tracks of each instrument; `[n, harmonics]`."""
        votes = self.evidence[:, None] * (owner[:, None] == np.arange(self.number))
        return votes.T @ (self.weight * self.sound) / np.maximum(votes.T @ self.weight, 1e-9)

    def _from(self, kinds):
        """How far each track's sound is from each of some others, as in `_distances`."""
        both, square = (self.weight * self.sound) @ kinds.T, self.weight @ kinds.T**2
        total = np.sum(self.weight * self.sound**2, axis=1, keepdims=True)
        return 1 - both**2 / np.maximum(square, 1e-9) / np.maximum(total, 1e-9)

    def _contrast(self, timbre, owner):
        """What an assignment gains by sounds that differ."""
        if self.costs.contrast == 0 or not self.tracks.loudness.any():
            return 0.0
        others = np.where(owner[:, None] == np.arange(self.number), np.inf, timbre).min(axis=1)
        apart = np.average(others - timbre[self.all, owner], weights=self.evidence)
        part = np.bincount(owner, self.tracks.loudness, self.number) / self.tracks.loudness.sum()
        even = -np.sum(part * np.log(np.maximum(part, 1e-9))) / np.log(self.number)
        return self.costs.contrast * even * apart * self.all.size

    def _ranks(self, owner):
        """Which instrument plays highest over the recording (0), which next, …"""
        seconds = self.tracks.end - self.tracks.begin
        total = np.bincount(owner, seconds, self.number)
        height = np.bincount(owner, seconds * self.tracks.pitch, self.number) / np.maximum(total, 1e-9)
        return np.argsort(np.argsort(-height, kind="stable"), kind="stable")

    def _crossed(self, last, track, rank):
        """What a track would cross, by whoever would own it, beside the last ones of the others."""
        # Of (owner, other): whether the other one plays higher; chords cross nothing.
        higher = (rank < rank[:, None]) & self.line & self.line[:, None]
        return self.above[last, track] @ higher.T + self.below[last, track] @ higher

    def _distances(self, owner):
        """How far each track's sound is from that of the instruments' other tracks near in pitch.

        It is the part of the track's weighted sum of squares that the instrument's sound, as loud as fits
        best, does not explain; `[tracks, n]`.
        """
        tracks, sound, weight = self.tracks, self.sound, self.weight
        apart = (tracks.pitch[:, None] - tracks.pitch) ** 2
        near = np.exp(-0.5 * apart / _NEAR**2) + _FAR_SHARE * np.exp(-0.5 * apart / _FAR**2) + 0.01
        np.fill_diagonal(near, 0)  # nobody is like himself
        near *= self.evidence
        total = np.sum(weight * sound**2, axis=1)
        distance = np.ones((self.all.size, self.number))
        for instrument in range(self.number):
            votes = near * (owner == instrument)
            known = votes @ weight
            usual = votes @ (weight * sound) / np.maximum(known, 1e-9)
            told = weight * (known > 1e-6)
            both, square = np.sum(told * sound * usual, axis=1), np.sum(told * usual**2, axis=1)
            explained = both**2 / np.maximum(square, 1e-9)
            distance[:, instrument] = np.where(square > 0, 1 - explained / np.maximum(total, 1e-9), 1)
        return np.clip(distance, 0, 1)


def _follow_costs(tracks, costs, line):
    """Costs of `_line_costs` for each instrument, of which some have a line; `[n, tracks + 1, tracks]`."""
    lines = _line_costs(tracks, costs)
    if line.all():
        return np.stack([lines] * line.size)
    if not line.any():  # a line can be told from a chord, but not the lines within it
        return np.stack([_line_costs(tracks, dataclasses.replace(costs, overlap=0.0))] * line.size)
    return np.where(line[:, None, None], lines, costs.chord)


def _line_costs(tracks, costs):
    """Cost of each track (columns) that follows another (rows) in the line of an instrument.

    A last row is for the first track of an instrument.
    """
    pause = tracks.begin - tracks.end[:, None]
    leap = np.minimum(np.abs(tracks.pitch[:, None] - tracks.pitch), 12)
    step = costs.leap * leap * np.exp(-np.maximum(pause, 0) / costs.memory)
    entry = costs.entry * np.clip((pause - costs.breath) / 0.1, 0, 1)
    common = np.minimum(-pause - costs.release, tracks.end - tracks.begin)
    follows = step + entry + costs.overlap * np.clip(common, 0, 0.3)
    first = np.full((1, tracks.begin.size), 4 * costs.leap + costs.entry)
    return np.concatenate([follows, first])


def _crossing_costs(tracks, costs):
    """Cost of each track (columns) above, or below, an earlier one (rows) of who plays higher, or lower.

    A last row is for no track.
    """
    begin, end = tracks.begin, tracks.end
    common = np.minimum(end, end[:, None]) - np.maximum(begin, begin[:, None])
    cost = costs.crossing * np.clip(common - _TOUCHING, 0, 0.3)
    apart = tracks.pitch - tracks.pitch[:, None]
    none = np.zeros((1, tracks.begin.size))
    return tuple(np.concatenate([cost * (way * apart > 0.5), none]) for way in (1, -1))

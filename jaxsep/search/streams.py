"""Which instrument plays a note, decided for whole notes and for all notes of a recording at once.

A frame hardly tells two instruments of one family apart, and its loss prefers whatever tears a line apart
by register. What lasts decides here: the tones of neighbouring frames form tracks, whoever plays them; each
track has a sound, averaged over its frames where its partials stand alone; and the tracks go to the
instruments so that each has one sound, and lines of small steps without gaps.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.signal import find_peaks

from jaxsep.numerics.devices import map_chunks
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.refinement import pack
from jaxsep.signal.axes import LogAxis
from jaxsep.signal.gaussians import sum_gaussians
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.rendering import partials_of
from jaxsep.tones.tones import Tones

__all__ = ["Streamed", "Streaming", "Tracks", "find_tracks", "stream"]


@dataclasses.dataclass(frozen=True)
class Streaming:
    """Costs by which tracks go to instruments (ours); times in seconds.

    `Σ_tracks timbre · d + Σ_(successive tracks of an instrument) ( leap · |Δp| · e^(−pause/memory) + entry ·
    [pause > breath] + overlap · (common time) ) + Σ_(crossed tracks) crossing · (common time)`

    - `timbre`: of a track whose sound is as far from its instrument's as the median track from the nearest.
    - `leap`: of a semitone between the pitches of successive tracks, up to an octave.
    - `memory`: pause after which a leap counts e times less.
    - `entry`: of beginning after a pause of more than `breath`: who plays a line goes on with it.
    - `overlap`: of a second in which an instrument plays two notes, but for the first `release`, in which the
      earlier one may ring on; at most 0.3 s count.
    - `crossing`: of a second in which the instrument that plays higher over the recording has the lower note,
      but for the first 0.05 s; at most 0.3 s of each pair count.
    - `chord`: of a note of who plays chords beside somebody's line, instead of all these.
    """

    timbre: float = 0.4
    leap: float = 0.12
    memory: float = 1.2
    entry: float = 2.0
    breath: float = 0.12
    overlap: float = 20.0
    release: float = 0.15
    crossing: float = 1.7
    chord: float = 0.7


#: Largest distance in semitones between the tones of a track in successive frames, and, in the same unit,
#: what a change of the instrument, and each frame that is missing in between, count.
_STEP, _OTHER, _MISSING = 0.7, 0.18, 0.035

#: Longest pause within a track, and shortest track that is judged, in seconds.
_PAUSE, _SHORTEST = 0.03, 0.04

#: Fall and rise of the level, in dB, that begin another track at the same pitch, and seconds they may take.
_DIP, _DIP_TIME = 4.0, 0.4

#: How near in pitch, in semitones, tracks say what an instrument sounds like there, and how much those of
#: other registers add.
_NEAR, _FAR, _FAR_SHARE = 3.0, 12.0, 0.3

#: Power of the roots of partials by which sounds are compared.
_COMPRESSION = 0.7

#: Seconds in which notes sound together that do not cross yet.
_TOUCHING = 0.05

#: States of the search that are followed, and how often sounds and assignment may change each other.
_WIDTH, _ROUNDS = 64, 5

#: A track's sound is at most so many times as far as the median from that of any instrument.
_FARTHEST = 6.0


class Tracks(eqx.Module):
    """Tones that continue each other, whichever instrument they were given to, in the order of their begin.

    - `label`: number of the track of each tone, -1 for none.
    - `begin`, `end`: in seconds.
    - `pitch`: median, in semitones above the axis's lowest frequency.
    - `owner`: instrument that most of its tones have.
    """

    label: Int[np.ndarray, "frames slots"]
    begin: Float[np.ndarray, " tracks"]
    end: Float[np.ndarray, " tracks"]
    pitch: Float[np.ndarray, " tracks"]
    owner: Int[np.ndarray, " tracks"]


class Streamed(NamedTuple):
    """Tones whose tracks went to instruments.

    - `tones`: with their new instruments; those of tracks too short to judge keep theirs.
    - `before`, `after`: mean cost of a track by its instruments before and now, 0 without tracks; before,
      infinite where the instruments were fewer.
    """

    tones: Tones
    before: float
    after: float


def stream(
    objective: LiftedLoss,
    spectra: Float[np.ndarray, "frames bins"],
    tones: Tones,
    dictionary: Dictionary,
    polyphony: Sequence[int],
    spacing: float,
    costs: Streaming = Streaming(),
) -> Streamed:
    """The same tones, each track given to the instrument whose line and sound it belongs to.

    Arguments:
        objective: the lifted loss and its axis.
        spectra: log-frequency magnitudes, peak about 1.
        tones: `[frames, slots]`.
        dictionary: with which they were refined; it may have fewer instruments than are asked for.
        polyphony: how many notes each instrument may play at a time, to which the tracks go; who plays one
            has a line, who plays more chords.
        spacing: of the frames, in seconds.
        costs: of an assignment.

    Example:
        >>> shape = (40, 2)  # [frames, tones]: two steady lines
        >>> place = jnp.broadcast_to(jnp.array([300.0, 450.0]), shape)
        >>> tones = jaxsep.Tones.plain(jnp.ones(shape), place, jnp.zeros(shape, int))
        >>> frame = lambda tones: jaxsep.render(tones, jnp.ones((2, 1)), jaxsep.LogAxis())
        >>> spectra = np.asarray(jax.vmap(frame)(tones))
        >>> one = jaxsep.Dictionary(jnp.ones((1, 1)))
        >>> found = stream(jaxsep.LiftedLoss(), spectra, tones, one, (1, 1), 0.01)
        >>> sorted(found.tones.instrument[0].tolist())
        [0, 1]
    """
    tones = jax.tree.map(np.asarray, tones)
    tracks = find_tracks(tones, objective.axis, spacing)
    if not tracks.begin.size or len(polyphony) == 1:
        return Streamed(tones, 0.0, 0.0)
    sound, weight = _sounds(objective, spectra, tones, dictionary, tracks)
    lines = _Lines(tracks, sound, weight, polyphony, costs)
    starts = [*lines.by_pitch(), lines.cheapest(np.zeros((tracks.begin.size, len(polyphony))))]
    before = np.inf
    if dictionary.num_instruments == len(polyphony):
        starts.append(tracks.owner)
        before = lines.judge(tracks.owner)[0]
    after, owner = lines.search(starts)
    if after >= before:
        after, owner = before, tracks.owner
    judged = tracks.label >= 0
    instrument = np.where(judged, owner[np.maximum(tracks.label, 0)], tones.instrument).astype(np.int32)
    tones = eqx.tree_at(lambda t: t.instrument, tones, instrument)
    return Streamed(tones, before / tracks.begin.size, after / tracks.begin.size)


def find_tracks(tones: Tones, axis: LogAxis, spacing: float) -> Tracks:
    """Tracks of tones `[frames, slots]` on an axis.

    Neighbouring frames are paired so that the pitches change least. A track ends where nothing follows within
    0.7 semitones and 30 ms, and where its level falls and rises again by 4 dB: there a note is struck again.
    """
    semitone = axis.bins_per_neper * np.log(2) / 12
    used = np.asarray(tones.active) & (np.asarray(tones.amplitude) > 0)
    pitch = np.asarray(tones.fundamental, float) / semitone
    label = _linked(used, pitch, np.asarray(tones.instrument), max(1, round(_PAUSE / spacing)))
    label = _struck(label, np.asarray(tones.amplitude), max(3, round(_DIP_TIME / spacing)))
    rows = []
    for number in range(label.max() + 1):
        frame, slot = np.nonzero(label == number)
        if frame.size * spacing >= _SHORTEST:
            owner = np.bincount(tones.instrument[frame, slot]).argmax()
            rows.append((frame[0], frame[-1] + 1, np.median(pitch[frame, slot]), owner, number))
    rows.sort(key=lambda row: (row[0], -row[2]))
    renamed = np.full(label.max() + 2, -1)
    renamed[[row[4] for row in rows]] = np.arange(len(rows))
    begin, end, height, owner, _ = np.array(rows, float).reshape(-1, 5).T
    return Tracks(renamed[label], begin * spacing, end * spacing, height, owner.astype(int))


def _linked(used, pitch, instrument, reach):
    """Number of the track of each tone, before any is struck again."""
    label, count = np.full(used.shape, -1), 0
    live = np.empty((0, 4))  # number, frame, pitch and instrument of the last tone
    for frame in range(used.shape[0]):
        live = live[frame - live[:, 1] <= reach]
        slots = np.flatnonzero(used[frame])
        cost = np.abs(pitch[frame, slots, None] - live[:, 2])
        cost += _OTHER * (instrument[frame, slots, None] != live[:, 3])
        cost += _MISSING * (frame - 1 - live[:, 1])
        row, column = linear_sum_assignment(cost)
        near = cost[row, column] < _STEP
        row, column = row[near], column[near]
        label[frame, slots[row]] = live[column, 0]
        fresh = np.setdiff1d(slots, slots[row])
        label[frame, fresh] = count + np.arange(fresh.size)
        count += fresh.size
        now = np.concatenate([slots[row], fresh])
        here = [label[frame, now], np.full(now.size, frame), pitch[frame, now], instrument[frame, now]]
        live = np.concatenate([np.delete(live, column, axis=0), np.stack(here, axis=1)])
    return label


def _struck(label, amplitude, window):
    """Tracks that are divided where their level has a dip."""
    count = label.max() + 1
    for number in range(count):
        frame, slot = np.nonzero(label == number)
        level = 20 * np.log10(np.maximum(amplitude[frame, slot], 1e-7))
        for dip in find_peaks(-level, prominence=_DIP, wlen=window)[0]:
            label[frame[dip:], slot[dip:]] = count
            count += 1
    return label


def _sounds(objective, spectra, tones, dictionary, tracks):
    """What each track sounds like: roots of its partials, and how much of them is its own, `[tracks, H]`."""
    harmonics = np.asarray(dictionary.of(tones, objective.axis))
    root, share = map_chunks(lambda *chunk: _observed(objective, *chunk), spectra, tones, harmonics)
    weight = share**2
    level = np.linalg.norm(root, axis=-1, keepdims=True)
    judged = tracks.label >= 0
    number = tracks.label[judged]
    count = tracks.begin.size
    add = lambda x: np.stack([np.bincount(number, column, count) for column in x[judged].T], axis=1)
    sound = add(weight * root) / np.maximum(add(weight * level), 1e-9)
    sound = sound**_COMPRESSION
    weight = add(weight) / np.bincount(number, minlength=count)[:, None] + 1e-4
    size = np.sqrt(np.sum(weight * sound**2, axis=1) / np.sum(weight, axis=1))
    return sound / np.maximum(size, 1e-6)[:, None], weight


@eqx.filter_jit
def _observed(objective, spectra, tones, harmonics):
    """Roots of the magnitudes at each partial, and which part of them the tone's own model has there."""
    reach = jnp.maximum(spectra, jnp.maximum(jnp.roll(spectra, 1, axis=1), jnp.roll(spectra, -1, axis=1)))

    def frame(spectrum, tones, harmonics):
        theta = pack(tones, objective.lift)
        height, position, width = partials_of(theta, harmonics, objective.axis)
        amplitude = jnp.where(tones.active, tones.amplitude, 0)
        own = sum_gaussians(amplitude[:, None] * height, position, width, objective.axis.num_bins)
        place = jnp.round(position).astype(jnp.int32)
        inside = (place >= 0) & (place < objective.axis.num_bins) & tones.active[:, None]
        place = jnp.clip(place, 0, objective.axis.num_bins - 1)
        mine, all_ = jnp.take_along_axis(own, place, axis=1), jnp.sum(own, axis=0)[place]
        share = jnp.where(inside, mine / jnp.maximum(all_, jnp.finfo(own.dtype).tiny), 0)
        return jnp.sqrt(spectrum[place] * share), share

    return jax.vmap(frame)(reach, tones, harmonics)


class _Lines:
    """Assignments of tracks to instruments, and what they cost.

    What a track is like depends on who owns the others. Sounds count relative to the median distance of a
    track from its own instrument: an assignment that makes all tracks alike gains nothing by that.
    """

    def __init__(self, tracks, sound, weight, polyphony, costs):
        self.tracks, self.sound, self.weight, self.costs = tracks, sound, weight, costs
        self.number, self.all = len(polyphony), np.arange(tracks.begin.size)
        self.line = np.array(polyphony) == 1
        self.follows = _follow_costs(tracks, costs, self.line)
        self.above, self.below = _crossing_costs(tracks, costs)

    def search(self, starts):
        """The cheapest of what suits its own sounds, reached from several starts, with its cost."""
        ends = []
        for owner in starts:
            for part in (0.5, *[1.0] * _ROUNDS):  # at first the lines count for more
                before, owner = owner, self.cheapest(part * self.judge(owner)[1], self._ranks(owner))
                if part == 1 and np.array_equal(owner, before):
                    break
            ends.append((self.judge(owner)[0], owner))
        return min(ends, key=lambda end: end[0])

    def judge(self, owner):
        """Cost of an assignment, and that of each track's sound by whoever would own it, `[tracks, n]`."""
        distance = self._distances(owner)
        usual = np.median(distance[self.all, owner]) + 1e-3
        timbre = self.costs.timbre * np.minimum(distance / usual, _FARTHEST)
        last, cost = np.full(self.number, self.all.size), timbre[self.all, owner].sum()
        rank = self._ranks(owner)
        for track, instrument in enumerate(owner):
            cost += self.follows[instrument, last[instrument], track]
            cost += self._crossed(last, track, rank)[instrument]
            last[instrument] = track
        return cost, timbre

    def cheapest(self, timbre, rank=None):
        """The cheapest assignment by beam search in the order of begin.

        The state is the last track of each instrument, so that few states cover all that is likely. `rank`
        orders the instruments, the highest first; by default they are in that order.
        """
        count, number = timbre.shape
        rank = np.arange(number) if rank is None else rank
        last = np.full((1, number), count)
        score, history = np.zeros(1), []
        places = (count + 1) ** np.arange(number, dtype=np.uint64)  # may wrap: a hash
        for track in range(count):
            total = score[:, None] + timbre[track] + self.follows[np.arange(number), last, track]
            total += self._crossed(last, track, rank)
            order = np.argsort(total, axis=None, kind="stable")[: 4 * _WIDTH]
            parent, owner = np.unravel_index(order, total.shape)
            states = last[parent]
            states[np.arange(order.size), owner] = track
            mark = (states.astype(np.uint64) * places).sum(axis=1)
            first = np.sort(np.unique(mark, return_index=True)[1])[:_WIDTH]
            last, score = states[first], total.ravel()[order[first]]
            history.append((parent[first], owner[first]))
        state, owners = 0, np.empty(count, int)
        for track in range(count - 1, -1, -1):
            parent, owner = history[track]
            owners[track], state = owner[state], parent[state]
        return owners

    def by_pitch(self):
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
        near *= np.sqrt(tracks.end - tracks.begin)
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

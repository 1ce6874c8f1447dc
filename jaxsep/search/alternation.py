"""Alternating minimisation over a whole recording: tones of all frames, then the dictionary, and again."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsep.learning.fit import fit_dictionary, fit_timbre
from jaxsep.learning.octaves import raise_octaves
from jaxsep.pursuit.recording import Hypotheses, pursue, refit
from jaxsep.pursuit.refinement import ToneFit
from jaxsep.search.hypotheses import LEAST_SCALE, Exploration, cheapest, explore, moves, propagate
from jaxsep.search.known import Known
from jaxsep.search.moves import arrange, by_voice, ringing
from jaxsep.search.voices import VoiceModel, Voices
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

__all__ = ["Alternation", "Finder", "SearchResult"]

#: Finds the tones of every frame by itself: from a fit, spectra and harmonics; calls its last argument after
#: each chunk of frames.
Finder = Callable[[ToneFit, np.ndarray, Array, Callable[[], None]], Hypotheses]

#: Distances, in frames, over which notes may ring on in the last round.
_RINGING = (1, 2, 4, 6)

#: Parts of the register's cost that count in the rounds with few frames, each from all starts: registers of
#: tones that are still wrong would keep them, but instruments that sound alike need theirs.
_REGISTERS = (1.0, 0.3)


class SearchResult(eqx.Module):
    """What explains a recording.

    - `tones`, `loss`: of every frame, `[frames, slots]`.
    - `dictionary`: of the instruments.
    - `cost_trace`: the mean cost C of a frame after every round.
    - `confidence`: of every frame, as in `Exploration`; NaN where explanations were not compared.
    - `voices`: the costs of the last round; None where explanations were not compared.
    """

    tones: Tones
    loss: Float[np.ndarray, " frames"]
    dictionary: Dictionary
    cost_trace: tuple[float, ...]
    confidence: Float[np.ndarray, " frames"]
    voices: Voices | None = None


class Alternation(eqx.Module):
    """Minimises the cost C of `VoiceModel` over a whole recording, from dictionaries learned from samples.

    1. With each dictionary there are two starts: the tones found in each frame alone and offered to its
       neighbours, and the same tones given to the instruments by pitch, the highest to the first.
    2. Rounds with every `stride`-th frame. In a round every frame is offered other explanations (its
       neighbours' tones, instruments exchanged, tones left out or chosen anew), the cheapest path through all
       of them is taken, and the dictionary is fitted to its tones. From all starts the rounds go two ways, in
       one of which the registers count less; after each round the worse half of a way is dropped.
    3. Of the ends of both ways, the one goes on that is cheaper when its harmonics may change smoothly with
       the pitch.
    4. A round with all frames; then the harmonics may change with the pitch.
    5. A last round, in which the dictionary stays and notes may ring on beside the next; to its tones the
       timbre is fitted once more. Each instrument has a slot more there than it plays tones at a time.

    Arguments:
        voices: the costs beyond P1's loss; `Voices` are used as they are, instead of being fitted each round.
        rounds: with few frames, which one with all frames follows; 0 leaves the dictionary as it is, too.
        stride: distance of the frames of the first rounds.
        spans: distances, in frames, over which frames offer each other their tones.
        learn: whether the dictionary may change; otherwise the instruments are not assigned by pitch either.
        timbre: whether the harmonics of a dictionary that may change may do so with the pitch, at the end.

    Example:
        >>> partial = lambda place: jnp.exp(-0.5 * ((jnp.arange(1024.0) - place) / 1.91) ** 2)
        >>> spectra = (partial(400.25) + 0.5 * partial(502.65))[None]  # an octave is 102.4 bins
        >>> alternation = jaxsep.Alternation(rounds=1, spans=(1,))
        >>> spectra = np.repeat(np.asarray(spectra), 4, axis=0)  # four equal frames
        >>> start = jaxsep.Dictionary(jnp.array([[1.0, 0.4]]))
        >>> found = alternation(jaxsep.TonePursuit(), spectra, [start])
        >>> found.loss.shape, found.dictionary.harmonics.shape, len(found.cost_trace)
        ((4,), (1, 2), 3)
    """

    voices: VoiceModel | Voices = VoiceModel()
    rounds: int = eqx.field(static=True, default=2)
    stride: int = eqx.field(static=True, default=2)
    spans: tuple[int, ...] = eqx.field(static=True, default=(1, 2, 6, 12, 24))
    learn: bool = eqx.field(static=True, default=True)
    timbre: bool = eqx.field(static=True, default=True)

    def num_steps(self, num_starts: int) -> int:
        """How often `advance` is called at most for so many dictionaries."""
        steps, left = num_starts + 2, 2 * num_starts if self.learn else num_starts
        for _ in range(self.rounds):
            steps += len(self._registers) * left
            left = _half(left)
        return steps

    def __call__(
        self,
        model: ToneFit,
        spectra: Float[np.ndarray, "frames bins"],
        dictionaries: Sequence[Dictionary],
        advance: Callable[[str], None] = lambda note: None,
        *,
        find: Finder = pursue,
        begin: Known | None = None,
        known: Known | None = None,
    ) -> SearchResult:
        """Tones and dictionary of a recording.

        Arguments:
            model: how tones are fitted; also what `find` takes.
            spectra: log-frequency magnitudes, peak about 1.
            dictionaries: to begin with, the most promising first.
            advance: hears of every start and every exploration.
            find: begins, with each frame by itself.
            begin: notes that take the place of what was found; then there is one start for each dictionary,
                and one way.
            known: notes that stay as they are, from beginning to end.
        """
        trace: list[float] = []
        tick = lambda: advance(f"cost {trace[-1]:.3f}" if trace else "")
        near = tuple(sorted({max(1, round(span / self.stride)) for span in self.spans}))
        notes = [None if each is None else each.every(self.stride) for each in (begin, known)]
        few = _Frames(model, spectra[:: self.stride], near, self.voices, 1.0, tick, *notes)
        starts = [few.each_alone(find, dictionary.plain) for dictionary in dictionaries]
        scale = max(float(starts[0].found.loss.mean()), LEAST_SCALE)
        few = eqx.tree_at(lambda frames: frames.scale, few, scale)
        if self.learn and begin is None:
            starts += [few.by_voice(start) for start in starts if _several_voices(start)]
        ways = dict.fromkeys(self._registers if begin is None else (1.0,), starts)
        for _ in range(self.rounds):
            ways = {register: self._better(few, states, register) for register, states in ways.items()}
            trace.append(min(states[0].cost for states in ways.values()))
        state = self._cheaper(few, [states[0] for states in ways.values()])

        frames = _Frames(model, spectra, self.spans, self.voices, scale, tick, begin, known)
        # A given dictionary sounds from here on as it was learned.
        dictionary = state.dictionary if self.learn else dictionaries[0]
        state = frames.refitted(
            frames.bound(_spread(state.found.tones, self.stride, len(spectra))), dictionary
        )
        if self.learn and self.rounds:
            state = self._round(frames, state)
            # Not before: what is wrong would find harmonics that suit it.
            state = frames.tuned(state) if self.timbre else state
            trace.append(state.cost)
        last, voices = frames.ring(state)
        trace.append(last.cost)
        found, dictionary = last.found, state.dictionary
        if self.learn and dictionary.by_pitch is not None:
            dictionary = fit_timbre(model.objective, spectra, found.tones, dictionary)
        return SearchResult(found.tones, found.loss, dictionary, tuple(trace), last.confidence, voices)

    @property
    def _registers(self):
        """The ways to go from all starts; one where the dictionary is given."""
        return _REGISTERS if self.learn else (1.0,)

    def _better(self, frames, states, register):
        """The better half after a round."""
        states = sorted((self._round(frames, state, register) for state in states), key=lambda s: s.cost)
        return states[: _half(len(states))]

    def _cheaper(self, frames, states):
        """Which of several ends to go on with; with one vector of harmonics the poor one can cost less."""
        if len(states) == 1:
            return states[0]
        ends = [frames.tuned(state) for state in states] if self.timbre and self.rounds else states
        return states[int(np.argmin([end.cost for end in ends]))]

    def _round(self, frames, state, register=1.0):
        """Tones, then the dictionary, while a part of the register's cost counts."""
        explored = frames.explore(state, frames.costs(state, register), frames.moves(state))
        if not self.learn:
            return _State(explored.found, state.dictionary, explored.cost)
        return frames.priced(frames.learned(explored.found.tones, state.dictionary))


class _State(eqx.Module):
    """Tones, the dictionary that they were refined with, and their cost C per frame."""

    found: Hypotheses
    dictionary: Dictionary
    cost: float = float("inf")

    @property
    def tones(self):
        return self.found.tones

    def arranged(self, slots):
        """The tones in so many slots of each instrument."""
        tones = arrange(self.tones, self.dictionary.num_instruments, slots)
        return _State(Hypotheses(tones, self.found.loss), self.dictionary, self.cost)


class _Frames(eqx.Module):
    """Frames to explain, and everything that stays the same meanwhile."""

    model: ToneFit
    spectra: Float[np.ndarray, "frames bins"]
    spans: tuple[int, ...]
    voices: VoiceModel | Voices
    scale: float
    tick: Callable[[], None]
    begin: Known | None = None
    known: Known | None = None

    def bound(self, tones: Tones) -> Tones:
        """The nearest tones that agree with what is known."""
        return tones if self.known is None else self.known.bind(tones)

    def each_alone(self, find: Finder, dictionary: Dictionary) -> _State:
        found = find(self.model, self.spectra, dictionary.harmonics, lambda: None)
        found = propagate(self.model, self.spectra, dictionary, found, self.spans)
        self.tick()
        state = _State(found, dictionary).arranged(self.model.tones_per_instrument)
        return state if self.begin is None else self.refitted(self.begin.bind(state.tones), dictionary)

    def by_voice(self, state: _State) -> _State:
        """All instruments begin alike, and become different by the tones of their voices."""
        number = state.dictionary.num_instruments
        tones = by_voice(state.tones, number, self.model.tones_per_instrument)
        rows = state.dictionary.harmonics
        state = self.learned(tones, Dictionary(jnp.broadcast_to(jnp.mean(rows, axis=0), rows.shape)))
        return self.learned(state.tones, state.dictionary)

    def learned(self, tones: Tones, dictionary: Dictionary) -> _State:
        """The dictionary that suits given tones, at their true pitches, and the tones refined with it."""
        rows = fit_dictionary(self.model.objective, self.spectra, tones, dictionary.plain).harmonics
        peak = np.max(np.asarray(rows), axis=1)
        peak = np.where(peak > 0, peak, 1)
        rows, factor = rows / peak[:, None], np.ones(len(rows))
        if self.begin is None:  # else the notes tell the octave
            rows, factor = raise_octaves(rows)
        shift = self.model.objective.axis.bins_per_neper * np.log(factor)
        places = tones.fundamental + shift[tones.instrument]
        fields = tones.amplitude * peak[tones.instrument], places.astype(tones.fundamental.dtype)
        tones = eqx.tree_at(lambda t: (t.amplitude, t.fundamental), tones, fields)
        return self.refitted(tones, Dictionary(rows))

    def tuned(self, state: _State) -> _State:
        """Harmonics that change with the pitch, and the tones refined with them."""
        timbre = fit_timbre(self.model.objective, self.spectra, state.tones, state.dictionary.plain)
        return self.priced(self.refitted(state.tones, timbre))

    def refitted(self, tones: Tones, dictionary: Dictionary) -> _State:
        slots = tones.capacity // dictionary.num_instruments
        return _State(refit(self.model, self.spectra, dictionary, tones), dictionary).arranged(slots)

    def costs(self, state: _State, register: float = 1.0) -> Voices:
        objective, limit = self.model.objective, self.model.tones_per_instrument
        number = state.dictionary.num_instruments
        voices = self.voices.fit(state.tones, number, limit, objective.axis, self.scale)
        # An array: one compiled program for all parts.
        part = jnp.asarray(register * voices.model.register, jnp.float32)
        return eqx.tree_at(lambda v: v.model.register, voices, part)

    def priced(self, state: _State) -> _State:
        alone = jax.tree.map(lambda x: x[:, None], state.found)
        cost = float(cheapest(self.costs(state), alone).cost) / state.found.loss.size
        return _State(state.found, state.dictionary, cost)

    def moves(self, state: _State) -> Iterator[Tones]:
        offers = moves(self.model, self.spectra, state.dictionary.harmonics, state.tones, self.spans)
        return map(self.bound, offers)

    def explore(self, state: _State, voices: Voices, proposals: Iterable[Tones]) -> Exploration:
        agrees = None if self.known is None else self.known.agrees
        explored = explore(self.model, self.spectra, state.dictionary, state.found, voices, proposals, agrees)
        self.tick()
        return explored

    def ring(self, state: _State) -> tuple[Exploration, Voices]:
        """A last round, in which each instrument has a slot more: notes may ring on beside the next."""
        wide = state.arranged(self.model.tones_per_instrument + 1)
        more = ringing(wide.tones, wide.dictionary.num_instruments, _RINGING)
        voices = self.costs(wide)
        return self.explore(wide, voices, itertools.chain(self.moves(wide), map(self.bound, more))), voices


def _spread(tones, stride, num_frames):
    """The tones of few frames as a start for all."""
    nearest = np.minimum(np.arange(num_frames) // stride, tones.active.shape[0] - 1)
    return jax.tree.map(lambda x: x[nearest], tones)


def _half(count):
    return -(-count // 2)


def _several_voices(state):
    return state.dictionary.num_instruments > 1 and bool(np.any(state.tones.active))

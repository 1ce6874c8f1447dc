"""Alternating minimisation over a whole recording: tones of all frames, then the dictionary, and again."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsep.learning.fit import fit_dictionary, fit_timbre
from jaxsep.learning.octaves import raised
from jaxsep.numerics.devices import chunk_size
from jaxsep.pursuit.recording import Decomposition, pursue, refit
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.search.hypotheses import EXPLORE_STEPS, Explored, cheapest, explore, moves, propagate
from jaxsep.search.moves import arrange, by_voice, ringing
from jaxsep.search.voices import VoiceModel, Voices
from jaxsep.tones.dictionary import Timbre
from jaxsep.tones.tones import Tones

__all__ = ["Alternated", "Alternation", "Finder"]

#: Finds the tones of every frame by itself: from a pursuit, spectra and harmonics; calls its last argument
#: after each chunk of frames (`chunk_size`).
Finder = Callable[[TonePursuit, np.ndarray, Array, Callable[[], None]], Decomposition]


class Alternated(eqx.Module):
    """What the alternation found.

    - `tones`, `loss`: of every frame, `[frames, slots]` with one slot per instrument more than it plays at a
      time, for notes that still sound.
    - `harmonics`: the dictionary.
    - `timbre`: how the harmonics change with the pitch.
    - `cost_trace`: the mean cost C of a frame after every round.
    - `confidence`: of every frame, as in `Explored`.
    - `voices`: the costs of the last round; None where the frames were not compared.
    """

    tones: Tones
    loss: Float[np.ndarray, " frames"]
    harmonics: Float[Array, "instruments harmonics"]
    timbre: Timbre
    cost_trace: tuple[float, ...]
    confidence: Float[np.ndarray, " frames"]
    voices: Voices | None = None


#: Distances, in frames, over which notes may ring on in the last round.
_RINGING = (1, 2, 4, 6)

#: Parts of the register's cost that count in the rounds with few frames, each from all starts: registers of
#: tones that are still wrong would keep them, but instruments that sound alike need theirs.
_REGISTERS = (1.0, 0.3)

#: Least mean loss that the costs are relative to.
_LEAST_SCALE = 1e-9


class _State(eqx.Module):
    """Tones, the dictionary or timbre they were refined with, and their cost C per frame."""

    found: Decomposition
    harmonics: Float[Array, "instruments harmonics"]
    timbre: Timbre | None = None
    cost: float = float("inf")

    @property
    def rows(self):
        """What tones are refined with."""
        return self.harmonics if self.timbre is None else self.timbre


class _Task(eqx.Module):
    """What stays the same while spectra are explained."""

    pursuit: TonePursuit
    spectra: Float[np.ndarray, "frames bins"]
    spans: tuple[int, ...]
    scale: float
    tick: Callable[[], None]
    find: Finder


class Alternation(eqx.Module):
    """Minimises the cost C of `VoiceModel` over a whole recording, from a dictionary learned from samples.

    In a round every frame is offered other explanations (its neighbours' tones, instruments exchanged, tones
    left out or chosen anew), the cheapest path through all of them is taken, and the dictionary is fitted to
    the tones found. The first rounds see every `stride`-th frame alone. With each of the dictionaries they
    begin twice: with the tones found in each frame alone and offered to its neighbours, and with the same
    tones given to the instruments by pitch, the highest to the first. From these starts it goes two ways, in
    one of which the registers count less; the worse half is dropped after each round. Of the best of each way
    the one goes on with all frames that is cheaper when its harmonics may change smoothly with the pitch, as
    they do in the end. In the last round these stay as they are, and notes may ring on beside the next.

    Arguments:
        voices: the costs beyond P1's loss; `Voices` are used as they are, instead of being fitted each round.
        rounds: with few frames, which one with all frames follows; 0 leaves the dictionary as it is, too.
        stride: distance of the frames of the first rounds.
        spans: distances, in frames, over which frames offer each other their tones.
        learn: whether the dictionary may change; otherwise the instruments are not assigned by pitch either.
        pitched: whether the harmonics may change with the pitch at the end.
        timbre: of a dictionary that may not change; by default the pitch does not matter.

    Example:
        >>> partial = lambda place: jnp.exp(-0.5 * ((jnp.arange(1024.0) - place) / 1.91) ** 2)
        >>> spectra = (partial(400.25) + 0.5 * partial(502.65))[None]  # an octave is 102.4 bins
        >>> alternation = jaxsep.Alternation(rounds=1, spans=(1,))
        >>> spectra = np.repeat(np.asarray(spectra), 4, axis=0)  # four equal frames
        >>> found = alternation(jaxsep.TonePursuit(), spectra, [jnp.array([[1.0, 0.4]])])
        >>> found.loss.shape, found.harmonics.shape, len(found.cost_trace)
        ((4,), (1, 2), 3)
    """

    voices: VoiceModel | Voices = VoiceModel()
    rounds: int = eqx.field(static=True, default=2)
    stride: int = eqx.field(static=True, default=2)
    spans: tuple[int, ...] = eqx.field(static=True, default=(1, 2, 6, 12, 24))
    learn: bool = eqx.field(static=True, default=True)
    pitched: bool = eqx.field(static=True, default=True)
    timbre: Timbre | None = None

    def num_steps(self, num_frames: int, num_starts: int) -> int:
        """How often `advance` is called at most for so many frames and dictionaries."""
        few = -(-num_frames // self.stride)
        explored, left = 2, 2 * num_starts if self.learn else num_starts
        for _ in range(self.rounds):
            explored += len(self._registers()) * left
            left = _half(left)
        return num_starts * (-(-few // chunk_size()) + 2 * len(self.spans)) + EXPLORE_STEPS * explored

    def __call__(
        self,
        pursuit: TonePursuit,
        spectra: Float[np.ndarray, "frames bins"],
        dictionaries: Sequence[Float[Array, "instruments harmonics"]],
        advance: Callable[[str], None] = lambda note: None,
        *,
        find: Finder = pursue,
    ) -> Alternated:
        """Tones and dictionary of a recording.

        Arguments:
            pursuit: its objective, solver, and number of tones per instrument are used.
            spectra: log-frequency magnitudes, peak about 1.
            dictionaries: rows of the dictionaries to begin with, the most promising first.
            advance: hears of every part of the work.
            find: begins, with each frame by itself.
        """
        trace: list[float] = []
        tick = lambda: advance(f"cost {trace[-1]:.3f}" if trace else "")
        few = spectra[:: self.stride]
        near = tuple(sorted({max(1, round(span / self.stride)) for span in self.spans}))
        task = _Task(pursuit, few, near, 1.0, tick, find)
        states = [self._each_alone(task, harmonics) for harmonics in dictionaries]
        # Of silence the mean would be 0, and every explanation as good as any other.
        scale = max(float(states[0].found.loss.mean()), _LEAST_SCALE)
        if isinstance(self.voices, Voices):
            scale = float(self.voices.scale)
        task = _Task(pursuit, few, near, scale, tick, find)
        if self.learn:
            states += [self._by_voice(task, state) for state in states if _several_voices(state)]
        ways = dict.fromkeys(self._registers(), states)
        for _ in range(self.rounds):
            ways = {register: self._better(task, states, register) for register, states in ways.items()}
            trace.append(min(states[0].cost for states in ways.values()))
        state = self._cheaper(task, [states[0] for states in ways.values()])
        task = _Task(pursuit, spectra, self.spans, scale, tick, find)
        state = self._expand(task, state)
        if self.learn and self.rounds:
            state = self._round(task, state)
            # Not before: what is wrong would find harmonics that suit it.
            state = self._tuned(task, state) if self.pitched else state
            trace.append(state.cost)
        last, voices = self._ring(task, state)
        trace.append(last.cost)
        found, timbre = last.found, state.timbre
        if timbre is None:
            timbre = Timbre.constant(state.harmonics, pursuit.objective.axis)
        elif self.learn:
            timbre = fit_timbre(pursuit.objective, spectra, found.tones, state.harmonics)
        return Alternated(
            found.tones, found.loss, state.harmonics, timbre, tuple(trace), last.confidence, voices
        )

    def _each_alone(self, task, harmonics):
        found = task.find(task.pursuit, task.spectra, harmonics, task.tick)
        found = propagate(task.pursuit, task.spectra, harmonics, found, task.spans, task.tick)
        return _State(_arranged(found, harmonics, task.pursuit.tones_per_instrument), harmonics)

    def _by_voice(self, task, state):
        """All instruments begin alike, and become different by the tones of their voices."""
        tones = by_voice(state.found.tones, state.harmonics.shape[0], task.pursuit.tones_per_instrument)
        harmonics = jnp.broadcast_to(jnp.mean(state.harmonics, axis=0), state.harmonics.shape)
        for _ in range(2):
            state = self._learn(task, tones, harmonics)
            tones, harmonics = state.found.tones, state.harmonics
        return state

    def _registers(self):
        """The ways to go from all starts; one where the costs or the dictionary are given."""
        return _REGISTERS if self.learn and isinstance(self.voices, VoiceModel) else (1.0,)

    def _better(self, task, states, register):
        """The better half after a round."""
        states = sorted((self._round(task, state, register) for state in states), key=lambda s: s.cost)
        return states[: _half(len(states))]

    def _cheaper(self, task, states):
        """Which of several ends to go on with; with one vector of harmonics the poor one can cost less."""
        if len(states) == 1:
            return states[0]
        ends = [self._tuned(task, state) for state in states] if self.pitched and self.rounds else states
        return states[int(np.argmin([end.cost for end in ends]))]

    def _round(self, task, state, register=1.0):
        """Tones, then the dictionary, while a part of the register's cost counts."""
        explored = self._explore(task, state, self._voices(task, state, register), _moves(task, state))
        if not self.learn:
            return _State(explored.found, state.harmonics, state.timbre, explored.cost)
        state = self._learn(task, explored.found.tones, state.harmonics)
        return eqx.tree_at(lambda s: s.cost, state, self._cost(task, state))

    def _learn(self, task, tones, harmonics):
        """The dictionary that suits given tones, at their true pitches, and the tones refined with it."""
        rows = fit_dictionary(task.pursuit.objective, task.spectra, tones, harmonics)
        peak = np.max(np.asarray(rows), axis=1)
        peak = np.where(peak > 0, peak, 1)
        rows, factor = raised(rows / peak[:, None])
        shift = task.pursuit.objective.axis.bins_per_neper * np.log(factor)
        tones = eqx.tree_at(
            lambda t: (t.amplitude, t.fundamental),
            tones,
            (
                tones.amplitude * peak[tones.instrument],
                (tones.fundamental + shift[tones.instrument]).astype(tones.fundamental.dtype),
            ),
        )
        return self._refitted(task, tones, rows)

    def _tuned(self, task, state):
        """Harmonics that change with the pitch, and the tones refined with them."""
        timbre = fit_timbre(task.pursuit.objective, task.spectra, state.found.tones, state.harmonics)
        state = self._refitted(task, state.found.tones, state.harmonics, timbre)
        return eqx.tree_at(lambda s: s.cost, state, self._cost(task, state))

    def _refitted(self, task, tones, harmonics, timbre=None):
        anything = np.full(task.spectra.shape[0], np.inf, task.spectra.dtype)
        found = refit(task.pursuit, task.spectra, harmonics if timbre is None else timbre, tones, anything)
        return _State(_arranged(found, harmonics, tones.capacity // harmonics.shape[0]), harmonics, timbre)

    def _voices(self, task, state, register=1.0) -> Voices:
        if isinstance(self.voices, Voices):
            return self.voices
        objective, limit = task.pursuit.objective, task.pursuit.tones_per_instrument
        number = state.harmonics.shape[0]
        voices = self.voices.fit(state.found.tones, number, limit, objective.axis, task.scale)
        # An array: one compiled program for all parts.
        part = jnp.asarray(register * voices.model.register, jnp.float32)
        return eqx.tree_at(lambda v: v.model.register, voices, part)

    def _cost(self, task, state):
        voices, found = self._voices(task, state), state.found
        alone = jax.tree.map(lambda x: x[:, None], found)
        return float(cheapest(voices, alone).cost) / found.loss.size

    def _ring(self, task, state) -> tuple[Explored, Voices]:
        """A last round, in which each instrument has a slot more: notes may ring on beside the next."""
        slots = task.pursuit.tones_per_instrument + 1
        wide = _State(_arranged(state.found, state.harmonics, slots), state.harmonics, state.timbre)
        more = ringing(wide.found.tones, wide.harmonics.shape[0], _RINGING)
        proposals = itertools.chain(_moves(task, wide), more)
        voices = self._voices(task, wide)
        return self._explore(task, wide, voices, proposals), voices

    def _explore(self, task, state, voices, proposals):
        return explore(task.pursuit, task.spectra, state.rows, state.found, voices, proposals, task.tick)

    def _expand(self, task, state):
        """The tones of few frames as a start for all."""
        nearest = np.minimum(np.arange(task.spectra.shape[0]) // self.stride, state.found.loss.size - 1)
        tones = jax.tree.map(lambda x: x[nearest], state.found.tones)
        return self._refitted(task, tones, state.harmonics, self.timbre)


def _moves(task, state) -> Iterator[Tones]:
    return moves(task.pursuit, task.spectra, state.harmonics, state.found.tones, task.spans)


def _half(count):
    return -(-count // 2)


def _several_voices(state):
    return state.harmonics.shape[0] > 1 and bool(np.any(state.found.tones.active))


def _arranged(found, harmonics, slots):
    return Decomposition(arrange(found.tones, harmonics.shape[0], slots), found.loss)

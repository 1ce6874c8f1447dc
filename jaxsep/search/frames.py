"""Frames to explain, what explains them so far, and the steps by which a search goes on from there."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsep.learning.fit import fit_dictionary, fit_timbre
from jaxsep.learning.octaves import raise_octaves
from jaxsep.pursuit.recording import Hypotheses, refit
from jaxsep.pursuit.refinement import ToneFit
from jaxsep.search.hypotheses import LEAST_SCALE, Exploration, double_moves, explore, moves, propagate
from jaxsep.search.known import Known
from jaxsep.search.moves import arrange, from_neighbours, ringing, without
from jaxsep.search.streams import Streamed, Streams
from jaxsep.search.voices import VoiceModel, Voices, best_path
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

__all__ = ["EDGES", "RINGING", "Finder", "Frames", "State", "mean_energy"]

#: Finds the tones of every frame by itself: from a fit, spectra and harmonics; calls its last argument after
#: each chunk of frames.
Finder = Callable[[ToneFit, np.ndarray, Array, Callable[[], None]], Hypotheses]

#: Distances, in frames, over which notes may ring on in the last round.
RINGING = (1, 2, 4, 8, 16, 32)

#: What a track costs by `Streams`, beside a frame by C, where two states are compared.
_LINES = 0.25

#: Costs in the last round: the notes are known, and only their edges are sought.
EDGES = VoiceModel(register=0.0, crossing=0.0, change=0.05, sounding=0.02, ringing=0.1, handing=1.0)


class State(eqx.Module):
    """Tones, the dictionary that they were refined with, their cost C per frame, and that of a track."""

    found: Hypotheses
    dictionary: Dictionary
    cost: float = float("inf")
    confidence: Float[np.ndarray, " frames"] | None = None
    lines: float = 0.0

    @property
    def tones(self):
        return self.found.tones

    def arranged(self, slots):
        """The tones in so many slots of each instrument."""
        tones = arrange(self.tones, self.dictionary.num_instruments, slots)
        return State(Hypotheses(tones, self.found.loss), self.dictionary, self.cost)


class Frames(eqx.Module):
    """Frames to explain, and everything that stays the same meanwhile."""

    model: ToneFit
    spectra: Float[np.ndarray, "frames bins"]
    spans: tuple[int, ...]
    spacing: float
    voices: VoiceModel | Voices
    scale: float
    tick: Callable[[], None]
    noise: float = 0.0
    energy: float = 0.0
    begin: Known | None = None
    known: Known | None = None
    strict: bool = False

    def bound(self, tones: Tones) -> Tones:
        """The nearest tones that agree with what is known."""
        return tones if self.known is None else self.known.bind(tones)

    def each_alone(self, find: Finder, dictionary: Dictionary) -> State:
        found = find(self.model, self.spectra, dictionary.harmonics, lambda: None)
        found = propagate(self.model, self.spectra, dictionary, found, self.spans)
        self.tick()
        state = State(found, dictionary).arranged(self.model.tones_per_instrument)
        return state if self.begin is None else self.refitted(self.begin.bind(state.tones), dictionary)

    def one_sound(self, find: Finder, number: int, num_harmonics: int) -> list[State]:
        """All begin alike, and become different by the tracks that go to them, in one way or two."""
        model = dataclasses.replace(self.model, tones_per_instrument=sum(self.model.polyphony(number)))
        alike = eqx.tree_at(lambda frames: frames.model, self, model)
        state = alike.each_alone(find, Dictionary.one_sound(num_harmonics))
        beginnings = self._streams(number).beginnings(state.tones, state.dictionary)
        rows = jnp.broadcast_to(state.dictionary.harmonics, (number, num_harmonics))
        return [self.learned(self._placed(each, number).tones, Dictionary(rows)) for each in beginnings]

    def begun(self, tones: Tones, dictionary: Dictionary) -> State:
        """What tones that were found in each frame alone have to do with each other."""
        return self.learned(self.streamed(tones, dictionary).tones, Dictionary(dictionary.harmonics))

    def streamed(self, tones: Tones, dictionary: Dictionary) -> Streamed:
        """The tracks of the tones given to the instruments."""
        if self.begin is not None or self.known is not None:
            return Streamed(tones, 0.0, 0.0)  # who plays what is known
        number = dictionary.num_instruments
        return self._placed(self._streams(number).stream(tones, dictionary), number)

    def _streams(self, number):
        return Streams(self.model.objective, self.spectra, self.model.polyphony(number), self.spacing)

    def _placed(self, streamed, number):
        """What went to instruments, in their slots."""
        return streamed._replace(tones=arrange(streamed.tones, number, self.model.polyphony(number)))

    def learned(self, tones: Tones, dictionary: Dictionary) -> State:
        """The dictionary that suits given tones, at their true pitches, and the tones refined with it."""
        return self.refitted(*self._suited(tones, dictionary))

    def fitted(self, tones: Tones, dictionary: Dictionary, timbre: bool, lines: float) -> State:
        """As `learned`, with harmonics that change with the pitch if they may, and what that costs."""
        tones, dictionary = self._suited(tones, dictionary)
        if timbre:
            dictionary = fit_timbre(self.model.objective, self.spectra, tones, dictionary)
        return dataclasses.replace(self.priced(self.refitted(tones, dictionary)), lines=lines)

    def _suited(self, tones, dictionary):
        """Tones at their true pitches, and the dictionary that suits them."""
        rows = fit_dictionary(self.model.objective, self.spectra, tones, dictionary.plain).harmonics
        peak = np.max(np.asarray(rows), axis=1)
        peak = np.where(peak > 0, peak, 1)
        rows, factor = rows / peak[:, None], np.ones(len(rows))
        if self.begin is None:  # else the notes tell the octave
            rows, factor = raise_octaves(rows, self._room(tones, len(rows)))
        shift = self.model.objective.axis.bins_per_neper * np.log(factor)
        places = tones.fundamental + shift[tones.instrument]
        fields = tones.amplitude * peak[tones.instrument], places.astype(tones.fundamental.dtype)
        return eqx.tree_at(lambda t: (t.amplitude, t.fundamental), tones, fields), Dictionary(rows)

    def _room(self, tones, number):
        """By which factor the tones of each instrument may rise until on average they are too high."""
        highest, axis = float(self.model.highest), self.model.objective.axis
        means = np.full(number, -np.inf)
        for instrument in range(number):
            playing = tones.active & (tones.instrument == instrument)
            if playing.any():
                means[instrument] = tones.fundamental[playing].mean()
        return jnp.asarray(np.exp(np.minimum((highest - means) / axis.bins_per_neper, 10)), jnp.float32)

    def refitted(self, tones: Tones, dictionary: Dictionary) -> State:
        slots = tones.capacity // dictionary.num_instruments
        return State(refit(self.model, self.spectra, dictionary, tones), dictionary).arranged(slots)

    def scaled(self, state: State) -> "Frames":
        """Where costs are relative to what a state leaves unexplained, noise included."""
        scale = max(float(state.found.loss.mean()) + self.noise, LEAST_SCALE)
        return eqx.tree_at(lambda frames: frames.scale, self, scale)

    def costs(self, state: State) -> Voices:
        voices = self.usual(state)
        return voices.strict() if self.strict else voices

    def usual(self, state: State) -> Voices:
        """The costs of rounds that are not strict."""
        model, number = self.model, state.dictionary.num_instruments
        playing = number, model.tones_per_instrument, model.objective.axis
        return self.voices.fit(state.tones, *playing, self.scale, self.noise, self.energy)

    def total(self, state: State) -> float:
        """What a state costs, lines included."""
        return state.cost + _LINES * self.scale * state.lines

    def priced(self, state: State) -> State:
        alone = jax.tree.map(lambda x: x[:, None], state.found)
        path = best_path(self.costs(state), alone.tones, alone.loss)
        return dataclasses.replace(state, cost=path.cost / state.found.loss.size)

    def moves(self, state: State, doubly: bool) -> Iterator[Tones]:
        among = self.model, self.spectra, state.dictionary.harmonics, state.tones
        offers = moves(*among, self.spans)
        return map(self.bound, itertools.chain(offers, double_moves(*among)) if doubly else offers)

    def explore(self, state: State, voices: Voices, proposals: Iterable[Tones]) -> Exploration:
        agrees = None if self.known is None else self.known.holds
        explored = explore(self.model, self.spectra, state.dictionary, state.found, voices, proposals, agrees)
        self.tick()
        return explored

    def ring(self, state: State) -> tuple[Exploration, Voices]:
        """A last round, in which each instrument has a slot more: notes may ring on beside the next."""
        number = state.dictionary.num_instruments
        wide = state.arranged(tuple(one + 1 for one in self.model.polyphony(number)))
        voices = self.usual(wide)
        edges = dataclasses.replace(voices, model=jax.tree.map(jnp.float32, EDGES))
        near = from_neighbours(wide.tones, number, RINGING)
        offers = itertools.chain(near, without(wide.tones), ringing(wide.tones, number, RINGING))
        return self.explore(wide, edges, map(self.bound, offers)), voices


def mean_energy(spectra: Float[np.ndarray, "frames bins"]) -> float:
    """What a frame sounds, in the units of the lifted loss: the mean weighted by itself, without silence."""
    energy = np.sum(spectra, axis=1)
    total = energy.sum()
    return float(np.sum(energy**2) / total) if total > 0 else 0.0

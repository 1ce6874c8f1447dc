"""Alternating minimisation over a whole recording: tones of all frames, then the dictionary, and again."""

import dataclasses
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from jaxsep.learning.fit import fit_timbre
from jaxsep.pursuit.recording import pursue
from jaxsep.pursuit.refinement import ToneFit
from jaxsep.search.doubling import doubled
from jaxsep.search.faint import without_faint
from jaxsep.search.frames import Finder, Frames, State, mean_energy
from jaxsep.search.known import Known
from jaxsep.search.split_merge import split_and_merge
from jaxsep.search.streams import Streams
from jaxsep.search.voices import VoiceModel, Voices
from jaxsep.tones.dictionary import NUM_HARMONICS, Dictionary
from jaxsep.tones.tones import Tones

__all__ = ["OWNED", "Alternation", "SearchResult"]

#: What a split and a merge may cost after a round, relative to before, where it is worth another search, and
#: what the tones of one who doubles another: harmonics that change with the pitch can all but play them.
_NEAR = 1.05

#: How many searches follow at most, and what part of the cost one must come to that the next one follows.
_SEARCHES, _LESS = 2, 0.97

#: Rounds after which the tones of one who doubles another are compared with what there was.
_DOUBLED = 3

#: What the costs of `Streams` count, beside those of a frame, where it tells how sure it is who plays what
#: (chosen so that the most doubtful notes, by length and loudness, are wrong ones; flat within a factor 2).
OWNED = 0.5


class SearchResult(eqx.Module):
    """What explains a recording.

    - `tones`, `loss`: of every frame, `[frames, slots]`.
    - `dictionary`: of the instruments.
    - `cost_trace`: the mean cost C of a frame after every round, also those of a search that is not kept; it
      is relative to what is unexplained, stricter in a round with all frames, and laxer in the last.
    - `confidence`: of every frame, as in `Exploration`, and lower where a track that sounds there could go to
      another instrument (`Streams.margins`); NaN where explanations were not compared.
    - `voices`: the costs of the recording; None where explanations were not compared.
    """

    tones: Tones
    loss: Float[np.ndarray, " frames"]
    dictionary: Dictionary
    cost_trace: tuple[float, ...]
    confidence: Float[np.ndarray, " frames"]
    voices: Voices | None = None


class Alternation(eqx.Module):
    """Minimises the cost C of `VoiceModel` over a whole recording.

    1. There is a start with a single sound for all instruments, whose harmonics fall as 1/h, and one with
       each dictionary that is given: the tones found in each frame alone and offered to its neighbours. Their
       tracks go to the instruments by `Streams`, and the dictionary is fitted to them. Of the single sound
       there are two starts where it makes a difference that faint tracks have no say (`beginnings`).
    2. Rounds with every `stride`-th frame. In a round every frame is offered other explanations (its
       neighbours' tones, instruments exchanged, tones left out or chosen anew, also after an exchange), and
       the cheapest path through all of them is taken. The dictionary is fitted to its tones, with harmonics
       that may change smoothly with the pitch, once as they are and once with their tracks given to the
       instruments anew; what costs less, lines included, stays. After each round the worse half of the starts
       is dropped.
    3. Of three instruments and more: where two may play what one does, and one what two do, they are merged
       and split (`split_and_merge`). What comes of it is worth a round, and if that comes near what there
       was, step 2 again from the tones that are found in each frame alone with the new dictionary, and once
       more if that has helped: who doubles another's octave was his harmonics, as long as nobody's were
       known. What costs least stays.
    4. Where one of them may double another's octave, and passed for its harmonics then (`doubled`), three
       rounds with its tones, which stay if they cost hardly more.
    5. A round with all frames, in which a tone must be worth a part of what sounds: what fills rests goes.
       Nothing is chosen anew after an exchange there: a room's reverberation would pass for octaves.
    6. A last round, in which the dictionary stays and notes may ring on, also beside the next; to its tones
       the timbre is fitted once more. Each instrument has a slot more there than it plays tones at a time.
       Tones that nobody would hear go (`without_faint`).

    Until the last round what is explained is `dry`, the spectra without what only rings on.

    Arguments:
        voices: the costs beyond P1's loss; `Voices` are used as they are, instead of being fitted each round.
        rounds: with few frames, which one with all frames follows; 0 leaves the dictionary as it is, too.
        stride: distance of the frames of the first rounds.
        spans: distances, in frames, over which frames offer each other their tones.
        learn: whether the dictionary may change; otherwise tracks stay with whom they were found for, too.
        timbre: whether the harmonics of a dictionary that may change may do so with the pitch.

    Example:
        >>> partial = lambda place: jnp.exp(-0.5 * ((jnp.arange(1024.0) - place) / 1.91) ** 2)
        >>> spectra = (partial(400.25) + 0.5 * partial(502.65))[None]  # an octave is 102.4 bins
        >>> alternation = jaxsep.Alternation(rounds=1, spans=(1,))
        >>> spectra = np.repeat(np.asarray(spectra), 4, axis=0)  # four equal frames
        >>> start = jaxsep.Dictionary(jnp.array([[1.0, 0.4]]))
        >>> found = alternation(jaxsep.TonePursuit(), spectra, [start], spacing=0.01)
        >>> found.loss.shape, found.dictionary.harmonics.shape, len(found.cost_trace)
        ((4,), (1, 2), 3)
    """

    voices: VoiceModel | Voices = VoiceModel()
    rounds: int = eqx.field(static=True, default=2)
    stride: int = eqx.field(static=True, default=2)
    spans: tuple[int, ...] = eqx.field(static=True, default=(1, 2, 6, 12, 24))
    learn: bool = eqx.field(static=True, default=True)
    timbre: bool = eqx.field(static=True, default=True)

    def num_steps(self, num_starts: int, num_instruments: int) -> int:
        """How often `advance` is called at most for so many dictionaries of so many instruments."""
        left = num_starts + 2 if self.learn else num_starts
        steps = left + 2
        for _ in range(self.rounds):
            steps += left
            left = _half(left)
        regrouping = 1 + _SEARCHES * (self.rounds + 1) + _DOUBLED
        return steps + (regrouping if self._splits(num_instruments) else 0)

    def _splits(self, num_instruments):
        """Whether instruments may be taken for others."""
        return self.learn and self.rounds > 0 and num_instruments > 2

    def __call__(
        self,
        model: ToneFit,
        spectra: Float[np.ndarray, "frames bins"],
        dictionaries: Sequence[Dictionary] | int,
        spacing: float,
        advance: Callable[[str], None] = lambda note: None,
        *,
        dry: Float[np.ndarray, "frames bins"] | None = None,
        noise: float = 0.0,
        find: Finder = pursue,
        begin: Known | None = None,
        known: Known | None = None,
    ) -> SearchResult:
        """Tones and dictionary of a recording.

        Arguments:
            model: how tones are fitted; also what `find` takes.
            spectra: log-frequency magnitudes, peak about 1.
            dictionaries: to begin with, the most promising first; or the number of instruments, of which
                nothing is known.
            spacing: of the frames, in seconds.
            advance: hears of every start and every exploration.
            dry: the spectra without what only rings on (`foreground`); by default they are the same.
            noise: ν of `VoiceModel`; where costs are relative to the mean loss it counts as loss, too, as
                otherwise everything would be free where all but noise is explained.
            find: begins, with each frame by itself.
            begin: notes that take the place of what was found; then there is one start for each dictionary,
                and one way.
            known: notes that stay as they are, from beginning to end.

        Raises: `ValueError` without a dictionary where it may not change, or notes are given.
        """
        trace: list[float] = []
        tick = lambda: advance(f"cost {trace[-1]:.3f}" if trace else "")
        dry = spectra if dry is None else dry
        near = tuple(sorted({max(1, round(span / self.stride)) for span in self.spans}))
        notes = [None if each is None else each.every(self.stride) for each in (begin, known)]
        among = model, dry[:: self.stride], near, self.stride * spacing, self.voices
        energy = mean_energy(dry)
        few = Frames(*among, 1.0, tick, noise, energy, *notes)
        among = model, dry, self.spans, spacing, self.voices
        every = Frames(*among, 1.0, tick, noise, energy, begin, known, strict=True)
        given = () if isinstance(dictionaries, int) else dictionaries
        if not given and not (self.learn and begin is None and known is None):
            raise ValueError(
                "dictionaries: expected some where they stay as they are or notes are known, got "
                f"{dictionaries!r}"
            )
        number, size = given[0].harmonics.shape if given else (dictionaries, NUM_HARMONICS)
        starts = [few.each_alone(find, dictionary.plain) for dictionary in given]
        if self.learn and begin is None:
            starts = [few.begun(start.tones, start.dictionary) for start in starts]
            if known is None and not (given and number == 1):
                starts += few.one_sound(find, number, size)
        few = few.scaled(starts[0])
        rough = self._roughly(few, starts, trace)
        if self._splits(number) and begin is None and known is None:
            few = few.scaled(rough)
            rough = self._regrouped(few, rough, find, trace)
            rough = self._doubled(few, rough, trace)
        # A given dictionary sounds from here on as it was learned.
        every, state = self._closely(every, rough, rough.dictionary if self.learn else given[0], trace)
        last = eqx.tree_at(lambda frames: frames.spectra, every, spectra)
        rung, voices = last.ring(state)
        trace.append(rung.cost)
        dictionary = state.dictionary
        found = without_faint(model, spectra, dictionary, rung.found, known)
        if self.learn and dictionary.by_pitch is not None:
            dictionary = fit_timbre(model.objective, spectra, found.tones, dictionary)
        # In the last round nothing is offered but other edges.
        confidence = rung.confidence if state.confidence is None else state.confidence
        owned = Streams(model.objective, dry, model.polyphony(number), spacing)
        margins = owned.margins(found.tones, dictionary, known)
        confidence = np.minimum(confidence, OWNED * margins).astype(np.float32)
        return SearchResult(found.tones, found.loss, dictionary, tuple(trace), confidence, voices)

    def _roughly(self, few, starts, trace):
        """What is cheapest of several starts after the rounds with few frames."""
        for _ in range(self.rounds):
            ends = sorted((self._round(few, start, doubly=True) for start in starts), key=few.total)
            starts = ends[: _half(len(ends))]
            trace.append(starts[0].cost)
        return starts[0]

    def _regrouped(self, few, rough, find, trace):
        """What is cheapest of a state and what comes of it after a split and a merge."""
        rough = few.priced(rough)
        other = split_and_merge(few, rough)
        if other is None:
            return rough
        other = self._round(few, other, doubly=True)
        trace.append(other.cost)
        if few.total(other) > _NEAR * few.total(rough):
            return rough
        for _ in range(_SEARCHES):
            other = self._roughly(few, [few.each_alone(find, other.dictionary)], trace)
            enough = few.total(other) > _LESS * few.total(rough)
            rough = min(rough, other, key=few.total)
            if enough:
                break
        return rough

    def _doubled(self, few, rough, trace):
        """A state, or what comes of it where somebody doubles another."""
        other = doubled(few, rough)
        if other is None:
            return rough
        for _ in range(_DOUBLED):
            other = self._round(few, other, doubly=True)
            trace.append(other.cost)
        return other if few.total(other) < _NEAR * few.total(few.priced(rough)) else rough

    def _closely(self, every, rough, dictionary, trace):
        """All frames, with the scale of their costs, and what a round that begins with few makes of them."""
        # What was wrong at first made the loss, and with it the costs, larger than they should be.
        every = every.scaled(rough)
        tones = _spread(rough.tones, self.stride, len(every.spectra))
        state = every.refitted(every.bound(tones), dictionary)
        if self.rounds:
            state = self._round(every, state)
            trace.append(state.cost)
        return every, state

    def _round(self, frames, state, doubly=False):
        """Tones, then who plays them, then the dictionary."""
        explored = frames.explore(state, frames.costs(state), frames.moves(state, doubly))
        if not self.learn:
            return State(explored.found, state.dictionary, explored.cost, explored.confidence)
        tones, streamed = explored.found.tones, frames.streamed(explored.found.tones, state.dictionary)
        ends = [frames.fitted(tones, state.dictionary, self.timbre, streamed.before)]
        if streamed.after < streamed.before:
            ends.append(frames.fitted(streamed.tones, state.dictionary, self.timbre, streamed.after))
        return dataclasses.replace(min(ends, key=frames.total), confidence=explored.confidence)


def _spread(tones, stride, num_frames):
    """The tones of few frames as a start for all."""
    nearest = np.minimum(np.arange(num_frames) // stride, tones.active.shape[0] - 1)
    return jax.tree.map(lambda x: x[nearest], tones)


def _half(count):
    return -(-count // 2)

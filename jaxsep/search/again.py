"""A recording that was searched before, searched again where corrections of its notes touch it."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxsep.learning.fit import fit_timbre
from jaxsep.pursuit.refinement import ToneFit
from jaxsep.search.alternation import OWNED, SearchResult
from jaxsep.search.faint import without_faint
from jaxsep.search.frames import EDGES, RINGING, mean_energy
from jaxsep.search.given import heard_dictionary, in_turns, refitted
from jaxsep.search.hypotheses import LEAST_SCALE, Exploration, explore, moves
from jaxsep.search.known import Known
from jaxsep.search.moves import arrange, from_neighbours, ringing, without
from jaxsep.search.streams import Streams
from jaxsep.search.voices import VoiceModel, best_path
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

__all__ = ["SearchAgain"]

#: Tones that are offered to some frames, from the frames with their tones, instruments and dictionary.
_Offer = Callable[[Float[np.ndarray, "frames bins"], Tones, int, Dictionary], Iterator[Tones]]


class SearchAgain(eqx.Module):
    """Minimises the cost C of `VoiceModel` where it is touched, from what was found before.

    1. Where it is touched, the listed notes take the place of what was found. Who plays what elsewhere
       follows from those that are known (`Streams.follow`), and is touched, too. If nothing is, all stays as
       it was. All frames together teach the dictionary, anew, and again after each of the rounds.
    2. Rounds as those with all frames of `Alternation`, in which only touched frames are offered others.
    3. Its last round, likewise: notes may ring on.

    Arguments:
        voices: the costs beyond P1's loss.
        rounds: at least 1.
        stride: distance of the frames that teach the dictionary.
        spans: distances, in frames, over which frames offer each other their tones.
        timbre: whether the harmonics may change with the pitch.
    """

    voices: VoiceModel = VoiceModel()
    rounds: int = eqx.field(static=True, default=2)
    stride: int = eqx.field(static=True, default=2)
    spans: tuple[int, ...] = eqx.field(static=True, default=(1, 2, 6, 12, 24))
    timbre: bool = eqx.field(static=True, default=True)

    @property
    def num_steps(self) -> int:
        """How often `advance` is called."""
        return self.rounds + 2

    def __call__(
        self,
        model: ToneFit,
        spectra: Float[np.ndarray, "frames bins"],
        tones: Tones,
        dictionary: Dictionary,
        touched: Bool[np.ndarray, " frames"],
        confidence: Float[np.ndarray, " frames"],
        spacing: float,
        *,
        dry: Float[np.ndarray, "frames bins"],
        noise: float = 0.0,
        begin: Known,
        known: Known | None = None,
        advance: Callable[[str], None] = lambda note: None,
    ) -> SearchResult:
        """Tones and dictionary of a recording.

        Arguments:
            model: how tones are fitted.
            spectra: log-frequency magnitudes, peak about 1.
            tones: `[frames, any]`, that were found before.
            dictionary: that they were found with.
            touched: where to search.
            confidence: of what was found before.
            spacing: of the frames, in seconds.
            dry: the spectra without what only rings on (`foreground`).
            noise: ν of `VoiceModel`, which counts as loss, too (`Alternation`).
            begin: the notes as they are listed now.
            known: those that stay as they are.
            advance: hears of every step.

        Returns: what explains the recording; the confidence is as it was where it is not touched.
        """
        number = dictionary.num_instruments
        most = model.polyphony(number)
        more = tuple(one + 1 for one in most)
        streams = Streams(model.objective, dry, most, spacing)
        bound = (lambda tones: tones) if known is None else known.bind
        before = arrange(tones, number, more)
        now = _where(touched, arrange(begin.sounding(max(more)), number, more), before)
        if known is not None:
            followed = streams.follow(now, tones, dictionary, known)
            touched = touched | np.any((followed.instrument != now.instrument) & now.active, axis=1)
            now = followed
        energy = mean_energy(dry)
        playing = number, model.tones_per_instrument, model.objective.axis
        costs = lambda found, scale: self.voices.fit(found.tones, *playing, scale, noise, energy)
        if not touched.any():
            found = refitted(model, spectra, dictionary, bound(before))
            voices = costs(found, _scale(found, noise))
            cost = _cost(voices, found)
            return SearchResult(found.tones, found.loss, dictionary, (cost,), confidence, voices)
        now = bound(arrange(now, number, most))
        suited = functools.partial(self._suited, model, dry, known)
        # What notes were wrong have taught is forgotten: it would hide those that were put in their place.
        heard = heard_dictionary(*self._few((dry, now)), number, model.objective.axis)
        dictionary, found = suited(now, heard, turns=2)
        advance("")
        scale, trace = _scale(found, noise), []

        def explored(spectra, found, voices, offer) -> Exploration:
            done = _explored(model, spectra, found, dictionary, voices, offer, touched, known)
            trace.append(done.cost)
            advance(f"cost {done.cost:.3f}")
            return done

        small = lambda spectra, tones, number, dictionary: moves(
            model, spectra, dictionary.harmonics, tones, self.spans
        )
        for _ in range(self.rounds):
            searched = explored(dry, found, costs(found, scale).strict(), small)
            dictionary, found = suited(searched.found.tones, dictionary, turns=1)
        wide = _where(touched, arrange(found.tones, number, more), before)
        found = refitted(model, spectra, dictionary, bound(wide))
        voices = costs(found, scale)
        edges = dataclasses.replace(voices, model=jax.tree.map(jnp.float32, EDGES))
        found = explored(spectra, found, edges, _edges).found
        found = without_faint(model, spectra, dictionary, found, known)
        if self.timbre:
            dictionary = fit_timbre(model.objective, *self._few((spectra, found.tones)), dictionary)
        margins = streams.margins(found.tones, dictionary, known)
        sure = np.minimum(searched.confidence, OWNED * margins).astype(np.float32)
        sure = np.where(touched, sure, confidence)
        return SearchResult(found.tones, found.loss, dictionary, tuple(trace), sure, voices)

    def _suited(self, model, spectra, known, tones, dictionary, turns):
        """The dictionary that suits given tones, and the tones refined with it."""
        few, bound = self._few((spectra, tones)), lambda tones: tones
        if known is not None:
            bound = known.every(self.stride).bind
        dictionary, some = in_turns(model, *few, dictionary, bound, turns)
        if self.timbre:
            dictionary = fit_timbre(model.objective, few[0], some, dictionary)
        return dictionary, refitted(model, spectra, dictionary, tones)

    def _few(self, frames):
        return jax.tree.map(lambda x: x[:: self.stride], frames)


def _edges(spectra, tones, number, dictionary):
    """Other beginnings and ends of notes."""
    del spectra, dictionary
    near = from_neighbours(tones, number, RINGING)
    return itertools.chain(near, without(tones), ringing(tones, number, RINGING))


def _explored(model, spectra, found, dictionary, voices, offer, touched, known) -> Exploration:
    """As `explore`, where it is touched; the frame on either side stays, so that the path joins."""
    rows = np.flatnonzero(np.convolve(touched, np.ones(3), "same") > 0)
    here, inside = jax.tree.map(lambda x: x[rows], found), touched[rows, None]
    known = None if known is None else known.at(rows)
    bound = (lambda tones: tones) if known is None else known.bind
    offers = map(bound, offer(spectra[rows], here.tones, dictionary.num_instruments, dictionary))
    offers = (eqx.tree_at(lambda t: t.active, tones, tones.active & inside) for tones in offers)
    holds = None if known is None else known.holds
    done = explore(model, spectra[rows], dictionary, here, voices, offers, holds)
    found = found.put(rows, done.found)
    confidence = np.full(touched.size, np.inf, np.float32)
    confidence[rows] = done.confidence
    return Exploration(found, _cost(voices, found), confidence)


def _cost(voices, found):
    """The mean cost C of a frame."""
    alone = jax.tree.map(lambda x: x[:, None], found)
    return best_path(voices, alone.tones, alone.loss).cost / found.loss.size


def _scale(found, noise):
    """What costs are relative to: what is left unexplained, noise included."""
    return max(float(found.loss.mean()) + noise, LEAST_SCALE)


def _where(touched, new, old):
    """Some tones where it is touched, others elsewhere."""
    return jax.tree.map(lambda x, y: np.where(touched[:, None], x, y), new, old)

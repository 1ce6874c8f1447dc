"""The tones of a recording whose notes are known, with the dictionary that suits them."""

import itertools
from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxsep.learning.fit import fit_dictionary, fit_timbre
from jaxsep.pursuit.recording import Hypotheses, refit
from jaxsep.pursuit.refinement import ToneFit
from jaxsep.search.alternation import SearchResult
from jaxsep.search.hypotheses import LEAST_SCALE, Exploration, explore
from jaxsep.search.known import Known
from jaxsep.search.moves import arrange, from_neighbours, ringing, without
from jaxsep.search.voices import VoiceModel, Voices
from jaxsep.tones.dictionary import NUM_HARMONICS, Dictionary
from jaxsep.tones.tones import Tones

__all__ = ["GivenNotes", "fitted", "heard_dictionary", "in_turns", "refitted"]


class GivenNotes(eqx.Module):
    """Finds the tones of notes that are all known: their pitch, loudness and edges in every frame.

    1. The dictionary begins as the partials of the notes are heard, and is fitted in turn with the tones.
    2. Near its edges a note sounds or not, as costs least over all frames; then the harmonics may change with
       the pitch.
    3. The same once more, where each instrument has a slot more in which a note may ring on beside the next.

    Arguments:
        voices: the costs beyond P1's loss, low since the notes say what sounds; what they say of registers
            and crossing voices does not count.
        turns: of tones and dictionary, with every `stride`-th frame.
        stride: distance of these frames.
        spans: distances, in frames, over which frames offer each other their tones.
        timbre: whether the harmonics may change with the pitch.
    """

    voices: VoiceModel = VoiceModel(change=0.05, sounding=0.0, ringing=0.0)
    turns: int = eqx.field(static=True, default=2)
    stride: int = eqx.field(static=True, default=2)
    spans: tuple[int, ...] = eqx.field(static=True, default=(1, 2, 4, 8, 16, 32))
    timbre: bool = eqx.field(static=True, default=True)

    #: How often `advance` is called.
    num_steps = 4

    def __call__(
        self,
        model: ToneFit,
        spectra: Float[np.ndarray, "frames bins"],
        known: Known,
        dictionary: Dictionary | None = None,
        advance: Callable[[str], None] = lambda note: None,
    ) -> SearchResult:
        """Tones and dictionary of a recording.

        Arguments:
            model: how tones are fitted; each instrument needs as many slots as it plays notes at a time.
            spectra: log-frequency magnitudes, peak about 1.
            known: what the notes say of the tones of every frame.
            dictionary: stays as it is, if there is one.
            advance: hears of every step.
        """
        number, learn = known.bound.shape[1], dictionary is None
        most = model.polyphony(number)
        tones = arrange(known.sounding(max(most)), number, most)
        if learn:
            few = jax.tree.map(lambda x: x[:: self.stride], (spectra, tones))
            dictionary = heard_dictionary(*few, number, model.objective.axis)
            bound = known.every(self.stride).bind
            dictionary, _ = in_turns(model, *few, dictionary, bound, self.turns)
        advance("")
        found = refitted(model, spectra, dictionary, tones)
        scale = max(float(found.loss.mean()), LEAST_SCALE)
        trace = []

        def explored(found, slots) -> Exploration:
            wide = Hypotheses(arrange(found.tones, number, slots), found.loss)
            voices = self._costs(wide.tones, number, model, scale)
            offers = map(known.bind, self._offers(wide.tones, number))
            done = explore(model, spectra, dictionary, wide, voices, offers, known.agrees)
            trace.append(done.cost)
            advance(f"cost {done.cost:.3f}")
            return done

        found = explored(found, most).found
        if learn:
            dictionary, tones = fitted(model, spectra, found.tones, dictionary)
            if self.timbre:
                dictionary = fit_timbre(model.objective, spectra, tones, dictionary)
            found = refitted(model, spectra, dictionary, tones)
        advance("")
        last = explored(found, tuple(one + 1 for one in most))
        if learn and self.timbre:
            dictionary = fit_timbre(model.objective, spectra, last.found.tones, dictionary)
        voices = self._costs(last.found.tones, number, model, scale)
        return SearchResult(
            last.found.tones, last.found.loss, dictionary, tuple(trace), last.confidence, voices
        )

    def _offers(self, tones, number) -> Iterator[Tones]:
        return itertools.chain(
            from_neighbours(tones, number, self.spans), without(tones), ringing(tones, number, self.spans)
        )

    def _costs(self, tones, number, model, scale) -> Voices:
        voices = self.voices.fit(tones, number, model.tones_per_instrument, model.objective.axis, scale)
        nothing = jnp.zeros((), jnp.float32)
        return eqx.tree_at(lambda v: (v.model.register, v.model.crossing), voices, (nothing, nothing))


def heard_dictionary(
    spectra: Float[np.ndarray, "frames bins"], tones: Tones, num_instruments: int, axis
) -> Dictionary:
    """Harmonics of each instrument as they are heard at the places of its tones.

    Of each harmonic it is the median over all tones, which others that sound there once in a while do not
    change. An instrument without tones has every harmonic alike.
    """
    frame, slot = np.nonzero(tones.active)
    position, owner = tones.fundamental[frame, slot], tones.instrument[frame, slot]
    offsets = axis.bins_per_neper * np.log(np.arange(1, NUM_HARMONICS + 1))
    bins = np.round(position[:, None] + offsets).astype(int)
    inside = (bins > 0) & (bins < axis.num_bins - 1)
    bins = np.clip(bins, 1, axis.num_bins - 2)
    heard = np.max([spectra[frame[:, None], bins + n] for n in (-1, 0, 1)], axis=0) * inside
    heard /= np.maximum(heard.max(axis=1, keepdims=True, initial=0), np.finfo(heard.dtype).tiny)
    rows = np.ones((num_instruments, NUM_HARMONICS), spectra.dtype)
    for number in range(num_instruments):
        if np.any(owner == number):
            row = np.median(heard[owner == number], axis=0)
            rows[number] = row / row.max() if row.max() > 0 else 1
    return Dictionary(jnp.asarray(rows))


def in_turns(
    model: ToneFit,
    spectra: Float[np.ndarray, "frames bins"],
    tones: Tones,
    dictionary: Dictionary,
    bound: Callable[[Tones], Tones],
    turns: int,
) -> tuple[Dictionary, Tones]:
    """Dictionary and tones that suit each other, fitted in turn so many times.

    Arguments:
        bound: makes tones agree with what is known of them: what a dictionary that does not suit has lost
            comes back, and can teach the next.
    """
    for _ in range(turns):
        tones = bound(refitted(model, spectra, dictionary, tones).tones)
        dictionary, tones = fitted(model, spectra, tones, dictionary)
    return dictionary, tones


def fitted(
    model: ToneFit, spectra: Float[np.ndarray, "frames bins"], tones: Tones, dictionary: Dictionary
) -> tuple[Dictionary, Tones]:
    """The dictionary of least loss at the tones, with a peak of 1, and the tones that go with it."""
    rows = np.asarray(fit_dictionary(model.objective, spectra, tones, dictionary.plain).harmonics)
    peak = rows.max(axis=1)
    peak = np.where(peak > 0, peak, 1).astype(rows.dtype)
    louder = tones.amplitude * peak[tones.instrument]
    return Dictionary(jnp.asarray(rows / peak[:, None])), eqx.tree_at(lambda t: t.amplitude, tones, louder)


def refitted(
    model: ToneFit, spectra: Float[np.ndarray, "frames bins"], dictionary: Dictionary, tones: Tones
) -> Hypotheses:
    """The tones refined, in their slots."""
    slots = tones.capacity // dictionary.num_instruments
    found = refit(model, spectra, dictionary, tones)
    return Hypotheses(arrange(found.tones, dictionary.num_instruments, slots), found.loss)

"""Two instruments that play what one does are merged, and one that plays what two do is split.

Who doubles another's octave all the time was his harmonics as long as nobody's sound was known, and the
instrument that was left over shares the notes of a third: no change of single frames leads out of this.
"""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsep.pursuit.recording import refit
from jaxsep.search.frames import Frames, State
from jaxsep.search.hypotheses import improve
from jaxsep.search.moves import arrange
from jaxsep.tones.dictionary import Dictionary

__all__ = ["split_and_merge"]

#: So many frames, evenly spaced, tell what is worth to be tried with all.
_ENOUGH = 256

#: The loss in these, relative to what it was, up to which it is. Who is needed cannot be merged: four duets
#: and a trio came to 1.3 and more, two quartets to 0.94 to 1.14.
_PROMISING = 1.2

#: How far above the other an instrument may be found that was its harmonics: octave, twelfth, double octave.
_FACTORS = (2, 3, 4)

#: Part of these harmonics that the lower one keeps, before the dictionary is fitted.
_KEPT = 0.3


def split_and_merge(frames: Frames, state: State) -> State | None:
    """Another dictionary of as many instruments, with one sound of each, that is nearly as good or better.

    The instrument whose tones the others can play best becomes every second, third or fourth harmonic of
    another, and tones that much higher, as mixtures of Gaussians are led out of local optima (Ueda, Nakano,
    Ghahramani, Hinton: SMEM algorithm for mixture models, 2000).

    Arguments:
        frames: all of which the dictionary is to explain; their notes are not known.
        state: what explains them, at least two instruments.

    Returns: dictionary and tones of all frames, without a cost; None where nothing comes near what there is.
    """
    step = -(-len(frames.spectra) // _ENOUGH)
    few = eqx.tree_at(lambda f: f.spectra, frames, frames.spectra[::step])
    thin = dataclasses.replace(state, found=jax.tree.map(lambda x: x[::step], state.found))
    instruments, rows = range(state.dictionary.num_instruments), state.dictionary.plain
    merges = {one: _merged(few, thin, one) for one in instruments}
    free = min(merges, key=lambda one: _loss(merges[one]))
    merged = few.learned(merges[free].tones, rows)
    pairs = [(one, factor) for one in instruments if one != free for factor in _FACTORS]
    sounds = np.asarray(merged.dictionary.harmonics)
    splits = {
        (one, factor): _split(few, merged, free, one, factor)
        for one, factor in pairs
        if sounds[one, factor - 1 :: factor].any()
    }
    best = min(splits, key=lambda pair: _loss(splits[pair]), default=None)
    if best is None or _loss(splits[best]) > _PROMISING * _loss(few.learned(thin.tones, rows)):
        return None
    return _split(frames, frames.learned(_merged(frames, state, free).tones, rows), free, *best)


def _merged(frames, state, free):
    """Without an instrument, whose tones the others play where that lowers the loss."""
    model, number = frames.model, state.dictionary.num_instruments
    mine = state.tones.active & (state.tones.instrument == free)
    others = eqx.tree_at(lambda t: t.active, state.tones, state.tones.active & ~mine)
    fit = lambda tones: refit(
        model, frames.spectra, state.dictionary, arrange(tones, number, model.tones_per_instrument)
    )
    merged = fit(others)
    for other in range(number):
        if other != free:
            owners = np.where(mine, other, state.tones.instrument)
            given = fit(eqx.tree_at(lambda t: t.instrument, state.tones, owners))
            merged = improve(merged, np.arange(merged.loss.size), given)
    return State(merged, state.dictionary)


def _split(frames, state, free, one, factor):
    """The harmonics of one instrument that are multiples of a factor become the sound of another."""
    rows, axis = np.array(state.dictionary.harmonics), frames.model.objective.axis
    multiples = rows[one, factor - 1 :: factor].copy()
    rows[free] = 0
    rows[free, : multiples.size] = (1 - _KEPT) * multiples
    rows[one, factor - 1 :: factor] = _KEPT * multiples
    tones, slots = jax.tree.map(np.array, state.tones), state.tones.capacity // len(rows)
    lower, higher = (slice(i * slots, (i + 1) * slots) for i in (one, free))
    for values in (tones.amplitude, tones.fundamental, tones.width, tones.inharmonicity, tones.active):
        values[:, higher] = values[:, lower]
    tones.fundamental[:, higher] += axis.bins_per_neper * math.log(factor)
    tones = arrange(tones, len(rows), frames.model.tones_per_instrument)
    begun = frames.refitted(tones, Dictionary(jnp.asarray(rows)))
    return frames.learned(begun.tones, begun.dictionary)


def _loss(state):
    return float(state.found.loss.mean())

"""An instrument that doubles another's octave or twelfth for a while, and passed for its harmonics then.

Those harmonics were learned where it was not found, and hide it there: neither other tones nor another
dictionary alone leads out of this.
"""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsep.search.frames import Frames, State
from jaxsep.search.moves import arrange
from jaxsep.tones.dictionary import Dictionary

__all__ = ["doubled"]

#: So many frames, evenly spaced, tell whether anybody doubles another.
_ENOUGH = 256

#: What frames may cost with the tones of one who does, relative to what they cost: a wind quartet came to
#: 0.91 and 0.94 (its tones then cost half), a trio, a string quartet and ten duets to 0.99 and more.
_PROMISING = 0.97

#: How far above the other one may be that was its harmonics: octave, twelfth, double octave.
_FACTORS = (2, 3, 4)

#: Part of these harmonics that the lower one keeps, before the dictionary is fitted, and what of its
#: amplitude the higher one begins with at least.
_KEPT, _LEAST = 0.3, 0.1


def doubled(frames: Frames, state: State) -> State | None:
    """Tones of the instrument that doubles another where it had none, and the dictionary that suits them.

    Of every two instruments one is tried at twice, three and four times the fundamentals of the other, in the
    frames in which it is silent.

    Arguments:
        frames: all of which the dictionary is to explain; their notes are not known.
        state: what explains them.

    Returns: dictionary and tones of all frames, without a cost, of those who cost least; None where that is
    not clearly less than with the tones that there are.
    """
    step = -(-len(frames.spectra) // _ENOUGH)
    few = eqx.tree_at(lambda f: f.spectra, frames, frames.spectra[::step])
    thin = jax.tree.map(lambda x: x[::step], state.found.tones)
    thin = few.learned(thin, state.dictionary.plain)
    voices = few.usual(thin)
    each = float(voices.scale * voices.model.sounding)
    cost = lambda state: float(np.mean(state.found.loss + each * np.sum(state.tones.active, axis=1)))
    pairs = itertools.permutations(range(state.dictionary.num_instruments), 2)
    ways = {(*pair, factor): _with(few, thin, *pair, factor) for pair in pairs for factor in _FACTORS}
    best = min(ways, key=lambda way: cost(ways[way]), default=None)
    if best is None or not cost(ways[best]) < _PROMISING * cost(thin):
        return None
    return _with(frames, frames.learned(state.tones, state.dictionary.plain), *best)


def _with(frames, state, lower, higher, factor):
    """Where one instrument is silent it plays so many times the fundamentals of another."""
    rows, axis = np.array(state.dictionary.harmonics), frames.model.objective.axis
    loudness = max(rows[lower, factor - 1 : factor].max(initial=0), _LEAST)
    rows[lower, factor - 1 :: factor] *= _KEPT
    tones, slots = jax.tree.map(np.array, state.tones), state.tones.capacity // len(rows)
    below, above = (slice(i * slots, (i + 1) * slots) for i in (lower, higher))
    place = tones.fundamental[:, below] + axis.bins_per_neper * math.log(factor)
    silent = ~np.any(tones.active[:, above], axis=1)[:, None]
    new = silent & tones.active[:, below] & (place < axis.num_bins - 1)
    played = jax.tree.map(lambda x: x[:, below], tones)
    fields = loudness * played.amplitude, place, np.full_like(played.instrument, higher)
    played = eqx.tree_at(lambda t: (t.amplitude, t.fundamental, t.instrument), played, fields)
    for values, others in zip(jax.tree.leaves(tones), jax.tree.leaves(played), strict=True):
        values[:, above] = np.where(new, others, values[:, above])
    tones = arrange(tones, len(rows), frames.model.tones_per_instrument)
    begun = frames.refitted(tones, Dictionary(jnp.asarray(rows)))
    return frames.learned(begun.tones, begun.dictionary)

"""Tones that nobody hears beside what their instrument usually plays."""

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from jaxsep.pursuit.recording import Hypotheses, refit
from jaxsep.pursuit.refinement import ToneFit
from jaxsep.search.known import Known
from jaxsep.search.moves import arrange
from jaxsep.tones.dictionary import Dictionary

__all__ = ["without_faint"]

#: What a tone may be, relative to the median of its instrument's: -50 dB, below any pianissimo.
_FAINT = 10 ** (-50 / 20)


def without_faint(
    model: ToneFit,
    spectra: Float[np.ndarray, "frames bins"],
    dictionary: Dictionary,
    found: Hypotheses,
    known: Known | None = None,
) -> Hypotheses:
    """What was found, less tones more than 50 dB below the median of their instrument's.

    In a rest in which nobody plays, whatever rings on below hearing is all that there is to explain.

    Arguments:
        model: how the others are fitted, where some go.
        spectra: of all frames.
        dictionary: of the instruments.
        found: tones `[frames, slots]`, each instrument in its own slots, and losses.
        known: notes that sound for sure, however faint.
    """
    tones, number = found.tones, dictionary.num_instruments
    usual = np.zeros(number, tones.amplitude.dtype)
    for instrument in range(number):
        mine = tones.amplitude[tones.active & (tones.instrument == instrument)]
        usual[instrument] = np.median(mine) if mine.size else 0
    faint = tones.active & (tones.amplitude < _FAINT * usual[tones.instrument])
    if known is not None:
        faint &= ~known.sure(tones)
    rows = np.flatnonzero(np.any(faint, axis=1))
    if not rows.size:
        return found
    loud = jax.tree.map(lambda x: x[rows], eqx.tree_at(lambda t: t.active, tones, tones.active & ~faint))
    fitted = refit(model, spectra, dictionary, loud, frames=rows)
    return found.put(rows, Hypotheses(arrange(fitted.tones, number, tones.capacity // number), fitted.loss))

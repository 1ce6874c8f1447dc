"""Several explanations of every frame of a recording, and the cheapest path through them.

Greedy selection goes wrong at octaves, unisons, thirds and note changes, where the right tones mostly have a
much lower loss. A frame nearby that got them right offers them: refined and kept only when the loss drops,
they lower P1's objective without changing it.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxsep.numerics.devices import map_chunks
from jaxsep.pursuit.recording import Hypotheses, pursue, refit
from jaxsep.pursuit.refinement import ToneFit
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.search.moves import arrange, exchanged, from_neighbours, reselected, without
from jaxsep.search.voices import VoiceModel, Voices, best_path
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

__all__ = [
    "LEAST_SCALE",
    "Exploration",
    "deepen",
    "double_moves",
    "explore",
    "improve",
    "moves",
    "propagate",
    "reselect",
]

#: Tones of the same instrument nearer than this, in bins, are one hypothesis: refinement joins them.
_SAME = 1.0

#: What separates instruments in a signature, and the place of an empty slot, in bins.
_FAR, _NOWHERE = 1e6, 1e9

#: Tones at least so far apart, in bins (over half a semitone), are different notes.
_APART = 5.0

#: Hypotheses of a frame from which the path is chosen.
POOL = 32

#: Loss above the present one, relative to the scale of the costs, up to which a hypothesis is followed.
_MARGIN = 0.3

#: Least mean loss of a frame that costs are relative to: of silence the mean would be 0, and every
#: explanation as good as any other.
LEAST_SCALE = 1e-9

#: A relative decrease of the loss below this is rounding, not a better hypothesis.
_GAIN = 1e-4


class Exploration(eqx.Module):
    """What a search found in a recording.

    - `found`: tones and loss of every frame.
    - `cost`: mean cost of a frame (`VoiceModel`).
    - `confidence`: `[frames]`, by how much the recording would cost more, in units of the costs' scale, with
      any other notes that were considered for the frame; infinite where there were none.
    """

    found: Hypotheses
    cost: float
    confidence: Float[np.ndarray, " frames"]


def reselect(
    model: ToneFit,
    spectra: Float[np.ndarray, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"],
    tones: Tones,
    instruments: Iterable[int] | None = None,
) -> Iterator[Tones]:
    """For each instrument in turn (all, or some), the best other tones given those of all others."""
    for instrument in range(harmonics.shape[0]) if instruments is None else instruments:
        number = jnp.asarray(instrument)  # an array: one compiled program for all
        run = lambda *chunk, number=number: _reselected(model, harmonics, number, *chunk)
        alternatives = map_chunks(run, spectra, tones)
        for place in range(alternatives.active.shape[1]):
            yield jax.tree.map(lambda x, place=place: x[:, place], alternatives)


def moves(
    model: ToneFit,
    spectra: Float[np.ndarray, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"],
    tones: Tones,
    spans: Iterable[int],
) -> Iterator[Tones]:
    """All small changes of tones `[frames, slots]`: chosen anew, from frames nearby, exchanged, left out."""
    number = harmonics.shape[0]
    yield from reselect(model, spectra, harmonics, tones)
    yield from from_neighbours(tones, number, spans)
    for pair in itertools.combinations(range(number), 2):
        yield exchanged(tones, number, pair)
    yield from without(tones)


def double_moves(
    model: ToneFit,
    spectra: Float[np.ndarray, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"],
    tones: Tones,
) -> Iterator[Tones]:
    """The tones of two instruments exchanged, and then those of one of them chosen anew.

    What one instrument explains alone may be a tone of the other, and one of its own an octave above.
    """
    number = harmonics.shape[0]
    for pair in itertools.combinations(range(number), 2):
        yield from reselect(model, spectra, harmonics, exchanged(tones, number, pair), pair)


def deepen(
    pursuit: TonePursuit,
    spectra: Float[np.ndarray, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"],
    *,
    rounds: int = 3,
    spans: Iterable[int] = (1,),
) -> Hypotheses:
    """Tones of lower loss than the greedy ones in every frame: P1's objective, searched better.

    Arguments:
        pursuit: begins, and fits.
        spectra: log-frequency magnitudes, peak about 1.
        harmonics: rows of the dictionary.
        rounds: how often every frame is offered small changes of its tones.
        spans: distances of frames whose tones are offered too.

    Returns: tones, in the slots of each instrument, and losses, none above that of the greedy pursuit.

    Example:
        >>> partial = lambda place: jnp.exp(-0.5 * ((jnp.arange(1024.0) - place) / 1.91) ** 2)
        >>> spectra = (partial(400.25) + 0.5 * partial(502.65))[None]  # an octave is 102.4 bins
        >>> harmonics = jnp.array([[1.0, 0.5]])
        >>> greedy = jax.jit(jaxsep.TonePursuit())(spectra, harmonics)
        >>> found = jaxsep.deepen(jaxsep.TonePursuit(), np.asarray(spectra), harmonics, rounds=1)
        >>> bool(found.loss[0] <= greedy.loss[0])
        True
    """
    number, dictionary = harmonics.shape[0], Dictionary(harmonics)
    most = pursuit.polyphony(number)
    found = pursue(pursuit, spectra, harmonics)
    found = Hypotheses(arrange(found.tones, number, most), found.loss)
    for _ in range(rounds):
        scale = max(float(found.loss.mean()), LEAST_SCALE)
        free = VoiceModel.free().fit(found.tones, number, most, pursuit.objective.axis, scale)
        offers = itertools.chain(
            moves(pursuit, spectra, harmonics, found.tones, spans),
            double_moves(pursuit, spectra, harmonics, found.tones),
        )
        found = explore(pursuit, spectra, dictionary, found, free, offers).found
    return found


def explore(
    model: ToneFit,
    spectra: Float[np.ndarray, "frames bins"],
    dictionary: Dictionary,
    found: Hypotheses,
    voices: Voices,
    proposals: Iterable[Tones],
    agrees: Callable[[Int[np.ndarray, " proposed"], Tones], Bool[np.ndarray, " proposed"]] | None = None,
) -> Exploration:
    """Refines what is proposed for the frames and takes the cheapest path through all hypotheses.

    Arguments:
        model: how to fit.
        spectra: of all frames.
        dictionary: of the instruments.
        found: the tones so far, `[frames, slots]`, the first hypothesis of each frame.
        voices: costs of tones and changes; the result never costs more than `found`.
        proposals: tones for every frame, `[frames, slots]`. What a frame has seen, to a bin, is skipped.
        agrees: from frames and refined tones, whether these agree with what is known (default: all do).

    Returns: the path's tones with their loss, its cost per frame, and the confidence in each frame.
    """
    number, slots = dictionary.num_instruments, voices.slots(found.tones.capacity)
    frames, tones = _new(found.tones, (arrange(tones, number, slots) for tones in proposals))
    # What is far worse than the present tones of a frame is given up early.
    goal = found.loss + _MARGIN * float(voices.scale)
    refined = refit(model, spectra, dictionary, tones, goal[frames], frames)
    arranged = arrange(refined.tones, number, slots)
    kept = True if agrees is None else agrees(frames, arranged)
    refined = Hypotheses(arranged, np.where(kept, refined.loss, np.inf).astype(refined.loss.dtype))
    pool = _pool(found, frames, refined)
    if agrees is not None:
        # What disagrees is left where anything agrees.
        first = agrees(np.arange(found.loss.size), found.tones) | ~np.isfinite(pool.loss[:, 1:]).any(axis=1)
        pool.loss[~first, 0] = np.inf
    path = best_path(voices, pool.tones, pool.loss)
    rows = np.arange(found.loss.size)
    chosen = jax.tree.map(lambda x: x[rows, path.choice], pool)
    mark = _signature(pool.tones)
    other = np.any(np.abs(mark - mark[rows, path.choice][:, None]) > _APART, axis=2)
    # Sums along the path are rounded: what comes out cheaper than the best is as good as it.
    gap = np.maximum(np.min(np.where(other, path.marginal, np.inf), axis=1) - path.cost, 0)
    return Exploration(chosen, path.cost / rows.size, gap / float(voices.scale))


def _new(tones, proposals):
    """Proposals that differ from all before them: frames, and their tones, in one list."""
    seen, frames, kept = [_signature(tones)], [], []
    for proposal in proposals:
        mark = _signature(proposal)
        fresh = np.any(proposal.active, axis=1) & ~_doubled(proposal)
        for other in seen:
            fresh &= np.any(np.abs(mark - other) > _SAME, axis=1)
        seen.append(np.where(fresh[:, None], mark, np.inf))
        frames.append(np.flatnonzero(fresh))
        kept.append(_take(proposal, frames[-1]))
    return np.concatenate(frames), jax.tree.map(lambda *x: np.concatenate(x), *kept)


def _doubled(tones):
    """Whether an instrument plays one pitch twice."""
    place = tones.instrument * _FAR + tones.fundamental
    empty = _NOWHERE * (1 + np.arange(tones.capacity))
    gaps = np.diff(np.sort(np.where(tones.active, place, empty), axis=1), axis=1)
    return np.any(gaps < _APART, axis=1)


def _pool(found, frames, refined):
    """Hypotheses `[frames, POOL]`: those found so far first, then the refined ones of least loss."""
    order = np.lexsort((refined.loss, frames))
    frames = frames[order]
    place = 1 + np.arange(frames.size) - np.searchsorted(frames, frames)
    fits = place < POOL
    order, frames, place = order[fits], frames[fits], place[fits]

    def gather(first, others):
        pool = np.repeat(first[:, None], POOL, axis=1)
        pool[frames, place] = others[order]
        return pool

    loss = np.full((found.loss.size, POOL), np.inf, np.float32)
    loss[:, 0] = found.loss
    loss[frames, place] = refined.loss[order]
    return Hypotheses(jax.tree.map(gather, found.tones, refined.tones), loss)


def improve(found: Hypotheses, frames: Int[np.ndarray, " selected"], refined: Hypotheses) -> Hypotheses:
    """Takes over the refined proposals that lower the loss of their frame."""
    better = refined.loss < (1 - _GAIN) * found.loss[frames]
    return found.put(frames[better], jax.tree.map(lambda x: x[better], refined))


def propagate(
    model: ToneFit,
    spectra: Float[np.ndarray, "frames bins"],
    dictionary: Dictionary,
    found: Hypotheses,
    spans: Iterable[int],
) -> Hypotheses:
    """Tries in every frame the tones of the frames `spans` before and after it, near ones first.

    Only frames whose neighbour holds a different hypothesis are tried, so that work goes where frames
    disagree. The loss never rises.
    """
    for span in spans:
        for offset in (span, -span):
            frames = np.arange(max(0, -offset), min(spectra.shape[0], spectra.shape[0] - offset))
            theirs = _take(found.tones, frames + offset)
            different = _differ(_take(found.tones, frames), theirs) & np.any(theirs.active, axis=1)
            frames, theirs = frames[different], _take(theirs, np.flatnonzero(different))
            if frames.size:
                refined = refit(model, spectra, dictionary, theirs, found.loss[frames], frames)
                found = improve(found, frames, refined)
    return found


@eqx.filter_jit
def _reselected(model, harmonics, instrument, spectra, tones):
    return reselected(model, spectra, harmonics, tones, instrument)


def _take(tones, frames):
    return jax.tree.map(lambda x: x[frames], tones)


def _differ(tones: Tones, others: Tones) -> Bool[np.ndarray, " frames"]:
    """Whether two hypotheses of each frame are more than a refinement apart."""

    return np.any(np.abs(_signature(tones) - _signature(others)) > _SAME, axis=1)


def _signature(tones):
    """Positions `[frames, slots]` in an order that does not depend on the slots."""
    # Instruments are many axes apart, so that sorting pairs the tones of each instrument.
    return np.sort(np.where(tones.active, tones.instrument * _FAR + tones.fundamental, _NOWHERE), axis=-1)

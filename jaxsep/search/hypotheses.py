"""Tones of a whole recording: greedy pursuit, then a search that lets neighbouring frames help each other.

Greedy selection goes wrong at octaves, unisons, thirds and note changes, where the right tones mostly have a
much lower loss. A frame nearby that got them right offers them: refined and kept only when the loss drops,
they lower P1's objective without changing it.
"""

import threading
from collections.abc import Callable, Iterable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxsep.numerics.devices import chunk_size
from jaxsep.pursuit.recording import Decomposition, _chunked, _rows, pursue, refit
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.search.moves import arrange, exchanged, from_neighbours, reselected, without
from jaxsep.search.voices import Path, VoiceModel, Voices, best_path
from jaxsep.tones.dictionary import Timbre
from jaxsep.tones.tones import Tones

__all__ = [
    "Explored",
    "cheapest",
    "deepen",
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

#: How often `explore` reports its progress.
EXPLORE_STEPS = 20

#: Hypotheses of a frame from which the path is chosen.
POOL = 32

#: Loss above the present one, relative to the scale of the costs, up to which a hypothesis is followed.
_MARGIN = 0.6

#: Least mean loss to which a margin is relative.
_LEAST_SCALE = 1e-9

#: A relative decrease of the loss below this is rounding, not a better hypothesis.
_GAIN = 1e-4


class Explored(eqx.Module):
    """What a search found in a recording.

    - `found`: tones and loss of every frame.
    - `cost`: mean cost of a frame (`VoiceModel`).
    - `confidence`: `[frames]`, by how much the recording would cost more, in units of the costs' scale, with
      any other notes that were considered for the frame; infinite where there were none.
    """

    found: Decomposition
    cost: float
    confidence: Float[np.ndarray, " frames"]


def reselect(
    pursuit: TonePursuit,
    spectra: Float[np.ndarray, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"],
    tones: Tones,
) -> Iterator[Tones]:
    """For each instrument in turn, the best other tones given those of all other instruments."""
    for instrument in range(harmonics.shape[0]):
        number = jnp.asarray(instrument)  # an array: one compiled program for all

        def run(rows, instrument=number):
            here = jax.tree.map(lambda x: jnp.asarray(_rows(x, rows)), tones)
            spectrum = jnp.asarray(_rows(spectra, rows))
            return jax.tree.map(np.asarray, _reselected(pursuit, spectrum, harmonics, here, instrument))

        alternatives = _chunked(run, np.arange(spectra.shape[0]))
        for number in range(alternatives.active.shape[1]):
            yield jax.tree.map(lambda x, number=number: x[:, number], alternatives)


def moves(
    pursuit: TonePursuit,
    spectra: Float[np.ndarray, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"],
    tones: Tones,
    spans: Iterable[int],
) -> Iterator[Tones]:
    """All small changes of tones `[frames, slots]`: chosen anew, from frames nearby, exchanged, left out."""
    number = harmonics.shape[0]
    yield from reselect(pursuit, spectra, harmonics, tones)
    yield from from_neighbours(tones, number, spans)
    yield from exchanged(tones, number)
    yield from without(tones)


def deepen(
    pursuit: TonePursuit,
    spectra: Float[np.ndarray, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"],
    *,
    rounds: int = 3,
    spans: Iterable[int] = (1,),
) -> Decomposition:
    """Tones of lower loss than the greedy ones in every frame: P1's objective, searched better.

    Arguments:
        pursuit: begins, and its objective and solver are used.
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
    number, limit = harmonics.shape[0], pursuit.tones_per_instrument
    found = pursue(pursuit, spectra, harmonics)
    found = Decomposition(arrange(found.tones, number, limit), found.loss)
    for _ in range(rounds):
        scale = max(float(found.loss.mean()), _LEAST_SCALE)
        free = VoiceModel.free().fit(found.tones, number, limit, pursuit.objective.axis, scale)
        offers = moves(pursuit, spectra, harmonics, found.tones, spans)
        found = explore(pursuit, spectra, harmonics, found, free, offers).found
    return found


def explore(
    pursuit: TonePursuit,
    spectra: Float[np.ndarray, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"] | Timbre,
    found: Decomposition,
    voices: Voices,
    proposals: Iterable[Tones],
    advance: Callable[[], None] = lambda: None,
) -> Explored:
    """Refines what is proposed for the frames and takes the cheapest path through all hypotheses.

    Arguments:
        pursuit: its objective and solver are used.
        spectra: of all frames.
        harmonics: rows of the dictionary, or a timbre.
        found: the tones so far, `[frames, slots]`, the first hypothesis of each frame.
        voices: costs of tones and changes; the result never costs more than `found`.
        proposals: tones for every frame, `[frames, slots]`. What a frame has seen, to a bin, is skipped.
        advance: is called `EXPLORE_STEPS` times in the course of the work.

    Returns: the path's tones with their loss, its cost per frame, and the confidence in each frame.
    """
    frames, tones = _new(found.tones, proposals)
    # What is far worse than the present tones of a frame is given up early.
    goal = found.loss + _MARGIN * float(voices.scale)
    evenly = _Evenly(advance, -(-frames.size // chunk_size()), EXPLORE_STEPS)
    refined = refit(pursuit, spectra, harmonics, tones, goal[frames], frames, evenly)
    number = voices.surprisal.shape[0]
    arranged = arrange(refined.tones, number, found.tones.capacity // number)
    refined = Decomposition(arranged, refined.loss)
    pool = _pool(found, frames, refined)
    path = cheapest(voices, pool)
    evenly.finish()
    rows = np.arange(found.loss.size)
    chosen = jax.tree.map(lambda x: x[rows, path.choice], pool)
    mark = _signature(pool.tones)
    other = np.any(np.abs(mark - mark[rows, path.choice][:, None]) > _APART, axis=2)
    # Sums along the path are rounded: what comes out cheaper than the best is as good as it.
    gap = np.maximum(np.min(np.where(other, path.marginal, np.inf), axis=1) - path.cost, 0)
    return Explored(chosen, float(path.cost) / rows.size, gap / float(voices.scale))


def cheapest(voices: Voices, pool: Decomposition) -> Path:
    """`best_path` through several hypotheses per frame, compiled once for every `chunk_size` of frames."""
    num_frames = pool.loss.shape[0]
    padding = -num_frames % chunk_size()
    repeat = lambda x: np.pad(np.asarray(x), [(0, padding)] + [(0, 0)] * (x.ndim - 1), mode="edge")
    padded = jax.tree.map(repeat, pool)
    path = best_path(voices, padded.tones, padded.loss, jnp.asarray(num_frames))
    path = jax.tree.map(np.asarray, path)
    return Path(path.choice[:num_frames], path.cost, path.marginal[:num_frames])


class _Evenly:
    """Calls `advance` so many times in the course of about so many calls, from any thread."""

    def __init__(self, advance, num_calls, num_steps):
        self.advance, self.num_calls, self.num_steps = advance, max(num_calls, 1), num_steps
        self.calls, self.steps, self.lock = 0, 0, threading.Lock()

    def __call__(self):
        with self.lock:
            self.calls += 1
            self._reach(min(self.num_steps, self.calls * self.num_steps // self.num_calls))

    def finish(self):
        self._reach(self.num_steps)

    def _reach(self, steps):
        for _ in range(self.steps, steps):
            self.advance()
        self.steps = steps


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
    return Decomposition(jax.tree.map(gather, found.tones, refined.tones), loss)


def improve(
    found: Decomposition, frames: Int[np.ndarray, " selected"], refined: Decomposition
) -> tuple[Decomposition, Bool[np.ndarray, " selected"]]:
    """Takes over the refined proposals that lower the loss of their frame, and tells which did."""
    better = refined.loss < (1 - _GAIN) * found.loss[frames]

    def put(old, new):
        new_all = old.copy()
        new_all[frames[better]] = new[better]
        return new_all

    return jax.tree.map(put, found, refined), better


def propagate(
    pursuit: TonePursuit,
    spectra: Float[np.ndarray, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"],
    found: Decomposition,
    spans: Iterable[int],
    advance: Callable[[], None] = lambda: None,
) -> Decomposition:
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
                refined = refit(pursuit, spectra, harmonics, theirs, found.loss[frames], frames)
                found = improve(found, frames, refined)[0]
            advance()
    return found


@eqx.filter_jit
def _reselected(pursuit, spectra, harmonics, tones, instrument):
    return reselected(pursuit, spectra, harmonics, tones, instrument)


def _take(tones, frames):
    return jax.tree.map(lambda x: x[frames], tones)


def _differ(tones: Tones, others: Tones) -> Bool[np.ndarray, " frames"]:
    """Whether two hypotheses of each frame are more than a refinement apart."""

    return np.any(np.abs(_signature(tones) - _signature(others)) > _SAME, axis=1)


def _signature(tones):
    """Positions `[frames, slots]` in an order that does not depend on the slots."""
    # Instruments are many axes apart, so that sorting pairs the tones of each instrument.
    return np.sort(np.where(tones.active, tones.instrument * _FAR + tones.fundamental, _NOWHERE), axis=-1)

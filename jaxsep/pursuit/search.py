"""Tones of a whole recording: greedy pursuit, then a search that lets neighbouring frames help each other.

Greedy selection goes wrong at octaves, unisons, thirds and note changes, where the right tones mostly have a
much lower loss. A frame nearby that got them right offers them: refined and kept only when the loss drops,
they lower P1's objective without changing it.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxsep.pursuit.refinement import refine
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.tones.tones import Tones

__all__ = ["Decomposition", "improve", "parallel_map", "propagate", "pursue", "refit"]

#: Frames per compiled call: one shape for every recording and every list of frames.
CHUNK = 256

#: Tones of the same instrument nearer than this, in bins, are one hypothesis: refinement joins them.
_SAME = 1.0

#: A relative decrease of the loss below this is rounding, not a better hypothesis.
_GAIN = 1e-4


class Decomposition(eqx.Module):
    """Tones of every frame of a recording, `[frames, tones]`, and the lifted loss of each; on the host."""

    tones: Tones
    loss: Float[np.ndarray, " frames"]


def pursue(
    pursuit: TonePursuit,
    spectra: Float[np.ndarray, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"],
    advance: Callable[[], None] = lambda: None,
) -> Decomposition:
    """Greedy pursuit of every frame (P1), in chunks; `advance` is called after each."""

    def run(frames):
        result = _pursue(pursuit, jnp.asarray(_rows(spectra, frames)), harmonics)
        found = _to_host(result)
        advance()
        return found

    return _chunked(run, np.arange(spectra.shape[0]))


def refit(
    pursuit: TonePursuit,
    spectra: Float[np.ndarray, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"],
    tones: Tones,
    goal: Float[np.ndarray, " selected"],
    frames: Int[np.ndarray, " selected"] | None = None,
) -> Decomposition:
    """Refines the tones proposed for the given frames (all by default).

    Arguments:
        pursuit: its objective and solver are used.
        spectra: of all frames.
        harmonics: rows of the dictionary.
        tones: proposals, `[selected, tones]`, in the order of `frames`.
        goal: loss of each proposal's frame below which it is of interest; the rest is given up early.
        frames: indices of the frames.
    """
    frames = np.arange(spectra.shape[0]) if frames is None else frames

    def run(rows):
        start = jax.tree.map(lambda x: jnp.asarray(_rows(x, rows)), tones)
        here = jnp.asarray(_rows(spectra, frames[rows])), jnp.asarray(_rows(goal, rows))
        result = _refine(pursuit, here[0], start, harmonics, here[1])
        return _to_host(result)

    return _chunked(run, np.arange(frames.size))


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


def parallel_map(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
    """`map` in order, on a CPU with a thread per core: compiled programs of one device run side by side."""
    workers = (os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(function, items)
    finally:
        # After an error or an interruption nobody waits for what still runs.
        pool.shutdown(wait=False, cancel_futures=True)


@eqx.filter_jit
def _pursue(pursuit, spectra, harmonics):
    return pursuit(spectra, harmonics)


@eqx.filter_jit
def _refine(pursuit, spectra, tones, harmonics, goal):
    return refine(spectra, tones, harmonics, pursuit.objective, solver=pursuit.solver, goal=goal)


def _chunked(run, rows):
    """Results of `run` on chunks of rows, the last one filled up with repetitions that are dropped."""

    def chunk(start):
        return run(np.resize(rows[start : start + CHUNK], CHUNK))

    parts = list(parallel_map(chunk, range(0, rows.size, CHUNK)))
    return jax.tree.map(lambda *x: np.concatenate(x)[: rows.size], *parts)


def _to_host(result):
    return Decomposition(*jax.tree.map(np.asarray, (result.tones, result.loss)))


def _rows(array, rows):
    return np.asarray(array)[rows]


def _take(tones, frames):
    return jax.tree.map(lambda x: x[frames], tones)


def _differ(tones: Tones, others: Tones) -> Bool[np.ndarray, " frames"]:
    """Whether two hypotheses of each frame are more than a refinement apart."""

    def signature(t):
        # Instruments are many axes apart, so that sorting pairs the tones of each instrument.
        place = np.where(t.active, t.instrument * 1e6 + t.fundamental, 1e9)
        return np.sort(place, axis=1)

    return np.any(np.abs(signature(tones) - signature(others)) > _SAME, axis=1)

"""Tones of all frames of a recording: pursued one by one, or refined from proposals."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsep.numerics.devices import chunk_size, parallel_map
from jaxsep.pursuit.refinement import refine
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.tones.dictionary import Timbre
from jaxsep.tones.tones import Tones

__all__ = ["Decomposition", "pursue", "refit"]


class Decomposition(eqx.Module):
    """Tones of every frame of a recording, `[frames, tones]`, and the lifted loss of each; on the host.

    Several hypotheses per frame have a second axis.
    """

    tones: Tones
    loss: Float[np.ndarray, "*frames"]


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
    harmonics: Float[Array, "instruments harmonics"] | Timbre,
    tones: Tones,
    goal: Float[np.ndarray, " selected"],
    frames: Int[np.ndarray, " selected"] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Decomposition:
    """Refines the tones proposed for the given frames (all by default).

    Frames with no more tones than the instruments usually play are solved in that many slots, which is
    cheaper than in all.

    Arguments:
        pursuit: its objective and solver are used.
        spectra: of all frames.
        harmonics: rows of the dictionary, or a timbre: a tone has its rows at the pitch where it begins.
        tones: proposals, `[selected, tones]`, in the order of `frames`.
        goal: loss of each proposal's frame below which it is of interest; the rest is given up early.
        frames: indices of the frames.
        advance: is called after each chunk.
    """
    frames = np.arange(spectra.shape[0]) if frames is None else frames
    if not isinstance(harmonics, Timbre):
        harmonics = Timbre.constant(harmonics, pursuit.objective.axis)
    rows_at_pitches = harmonics.finely()
    order = np.argsort(~np.asarray(tones.active), axis=1, kind="stable")
    tones = jax.tree.map(lambda x: np.take_along_axis(np.asarray(x), order, axis=1), tones)
    usual = min(rows_at_pitches.shape[0] * pursuit.tones_per_instrument, tones.capacity)
    many = np.sum(tones.active, axis=1) > usual
    result = Decomposition(tones, np.empty(frames.size, spectra.dtype))

    for rows, slots in ((np.flatnonzero(~many), usual), (np.flatnonzero(many), tones.capacity)):

        def run(rows, slots=slots):
            start = jax.tree.map(lambda x: jnp.asarray(x[rows, :slots]), tones)
            here = jnp.asarray(_rows(spectra, frames[rows])), jnp.asarray(_rows(goal, rows))
            refined = _to_host(_refine(pursuit, here[0], start, rows_at_pitches, here[1]))
            advance()
            return refined

        if rows.size:
            _assign(result, rows, _chunked(run, rows))
    # In silence a tone that a neighbour offers shrinks to nothing the loss could see.
    audible = result.tones.active & (result.tones.amplitude > pursuit.objective.offset)
    amplitude = np.where(audible, result.tones.amplitude, 0)
    return eqx.tree_at(lambda r: (r.tones.active, r.tones.amplitude), result, (audible, amplitude))


@eqx.filter_jit
def _pursue(pursuit, spectra, harmonics):
    return pursuit(spectra, harmonics)


@eqx.filter_jit
def _refine(pursuit, spectra, tones, harmonics, goal):
    objective, (_, pitches, size) = pursuit.objective, harmonics.shape
    # An instrument at one of its pitches is an instrument of its own.
    own = tones.instrument * pitches + Timbre.nearest(tones.fundamental, objective.axis)
    start = eqx.tree_at(lambda t: t.instrument, tones, own)
    found = refine(spectra, start, harmonics.reshape(-1, size), objective, solver=pursuit.solver, goal=goal)
    return eqx.tree_at(lambda r: r.tones.instrument, found, tones.instrument)


def _chunked(run, rows):
    """Results of `run` on chunks of rows, the last one filled up with repetitions that are dropped."""
    size = chunk_size()

    def chunk(start):
        return run(np.resize(rows[start : start + size], size))

    parts = list(parallel_map(chunk, range(0, rows.size, size)))
    return jax.tree.map(lambda *x: np.concatenate(x)[: rows.size], *parts)


def _to_host(result):
    return Decomposition(*jax.tree.map(np.asarray, (result.tones, result.loss)))


def _rows(array, rows):
    return np.asarray(array)[rows]


def _assign(result, rows, part):
    slots = part.tones.capacity

    def put(all_, some):
        all_[rows, :slots] = some

    jax.tree.map(put, result.tones, part.tones)
    result.loss[rows] = part.loss

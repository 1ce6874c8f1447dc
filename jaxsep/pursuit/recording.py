"""Tones of all frames of a recording: pursued one by one, or refined from proposals."""

from collections.abc import Callable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsep.numerics.devices import map_chunks
from jaxsep.pursuit.refinement import ToneFit, refine
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

__all__ = ["Hypotheses", "pursue", "refit"]


class Hypotheses(eqx.Module):
    """Tones of every frame of a recording, `[frames, tones]`, and the lifted loss of each; on the host.

    Several hypotheses per frame have a second axis.
    """

    tones: Tones
    loss: Float[np.ndarray, "*frames"]

    def put(self, frames: Int[np.ndarray, " selected"], others: "Hypotheses") -> "Hypotheses":
        """A copy with others in the place of some frames."""

        def changed(old, new):
            both = np.array(old)
            both[frames] = new
            return both

        return jax.tree.map(changed, self, others)


def pursue(
    pursuit: TonePursuit,
    spectra: Float[np.ndarray, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"],
    advance: Callable[[], None] = lambda: None,
) -> Hypotheses:
    """Greedy pursuit of every frame (P1), in chunks; `advance` is called after each."""
    found = map_chunks(lambda chunk: _pursue(pursuit, chunk, harmonics), spectra, advance=advance)
    return Hypotheses(*found)


def refit(
    model: ToneFit,
    spectra: Float[np.ndarray, "frames bins"],
    dictionary: Dictionary,
    tones: Tones,
    goal: Float[np.ndarray, " selected"] | None = None,
    frames: Int[np.ndarray, " selected"] | None = None,
) -> Hypotheses:
    """Refines the tones proposed for the given frames (all by default).

    Frames with few tones are solved in few slots, which is cheaper than in all: as many as there are
    instruments, twice as many and so on up to those of all that they usually play. A tone that leaves the
    bounds of the model is dropped, and the others are refined again.

    Arguments:
        model: how to fit.
        spectra: of all frames.
        dictionary: a tone has the harmonics of its instrument at the pitch where it begins.
        tones: proposals, `[selected, tones]`, in the order of `frames`.
        goal: loss of each proposal's frame below which it is of interest; the rest is given up early
            (default: all are of interest).
        frames: indices of the frames.
    """
    frames = np.arange(spectra.shape[0]) if frames is None else frames
    goal = np.full(frames.size, np.inf, spectra.dtype) if goal is None else goal
    order = np.argsort(~np.asarray(tones.active), axis=1, kind="stable")
    tones = jax.tree.map(lambda x: np.take_along_axis(np.asarray(x), order, axis=1), tones)
    usual = min(sum(model.polyphony(dictionary.num_instruments)), tones.capacity)
    sizes = _sizes(dictionary.num_instruments, usual, tones.capacity)
    size = np.searchsorted(sizes, np.sum(tones.active, axis=1))
    result = Hypotheses(tones, np.empty(frames.size, spectra.dtype))

    def refined_chunk(spectra, tones, goal):
        # Apart, so that one compiled program serves dictionaries with and without a timbre.
        harmonics = dictionary.of(tones, model.objective.axis)
        return _refine(model.objective, model.solver, spectra, tones, harmonics, goal)

    for number, slots in enumerate(sizes):
        rows = np.flatnonzero(size == number)
        if rows.size:
            start = jax.tree.map(lambda x, rows=rows, slots=slots: x[rows, :slots], tones)
            refined = map_chunks(refined_chunk, spectra[frames[rows]], start, goal[rows])
            _assign(result, rows, Hypotheses(*refined))
    # In silence a tone that a neighbour offers shrinks to nothing the loss could see.
    audible = result.tones.active & (result.tones.amplitude > model.objective.offset)
    amplitude = np.where(audible, result.tones.amplitude, 0)
    result = eqx.tree_at(lambda r: (r.tones.active, r.tones.amplitude), result, (audible, amplitude))
    low, high = float(model.lowest), float(model.highest)
    inside = (result.tones.fundamental >= low) & (result.tones.fundamental <= high)
    rows = np.flatnonzero(np.any(audible & ~inside, axis=1))
    if rows.size:
        left = eqx.tree_at(lambda t: t.active, result.tones, audible & inside)
        left = jax.tree.map(lambda x: x[rows], left)
        _assign(result, rows, refit(model, spectra, dictionary, left, goal[rows], frames[rows]))
    return result


def _sizes(least, usual, capacity):
    """Numbers of slots for which there is a compiled program each."""
    sizes = {usual, capacity}
    while least < usual:
        sizes.add(least)
        least *= 2
    return sorted(sizes)


@eqx.filter_jit
def _pursue(pursuit, spectra, harmonics):
    found = pursuit(spectra, harmonics)
    return found.tones, found.loss


@eqx.filter_jit
def _refine(objective, solver, spectra, tones, harmonics, goal):
    found = refine(spectra, tones, harmonics, objective, solver=solver, goal=goal)
    return found.tones, found.loss


def _assign(result, rows, part):
    slots = part.tones.capacity

    def put(all_, some):
        all_[rows, :slots] = some

    jax.tree.map(put, result.tones, part.tones)
    result.loss[rows] = part.loss

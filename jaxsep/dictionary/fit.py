"""The dictionary that explains a recording best at given tones."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsep.devices import chunk_size, parallel_map
from jaxsep.pursuit.lifting import LiftedLoss
from jaxsep.pursuit.refinement import pack
from jaxsep.tones.tones import Tones

__all__ = ["fit_dictionary"]

#: A harmonic below this part of the tone's amplitude, -120 dB, is none.
_LEAST = 1e-6

#: Relative decrease of the loss below which the dictionary is at rest, and steps after which it stays.
_TOLERANCE, _MAX_STEPS = 1e-3, 12

#: Marquardt's damping at first and at least, and its factors after a step that lowers the loss, and one that
#: does not.
_DAMPING, _LEAST_DAMPING, _SHRINK, _GROW = 1e-3, 1e-6, 1 / 4, 4

#: Frames whose derivatives are in memory at a time.
_TOGETHER = 8


def fit_dictionary(
    objective: LiftedLoss,
    spectra: Float[np.ndarray, "frames bins"],
    tones: Tones,
    harmonics: Float[Array, "instruments harmonics"],
    *,
    max_steps: int = _MAX_STEPS,
) -> Float[Array, "instruments harmonics"]:
    """The dictionary of least mean loss at given tones, by Levenberg–Marquardt over all frames at once.

    The unknowns are the harmonics to the power q: so the lifted spectrum of partials that do not overlap is
    linear in them, as it is in the tones' amplitudes.

    Arguments:
        objective: the lifted loss.
        spectra: magnitudes with a peak of about 1.
        tones: of every frame, `[frames, slots]`.
        harmonics: rows to begin with; those of an instrument that does not play stay as they are.
        max_steps: at most so many evaluations of all frames.

    Returns: rows; their peaks are where the tones' amplitudes put them, near 1.
    """
    lift, shape = objective.lift, harmonics.shape
    evaluate = _sum_over_frames(objective, spectra, tones, shape)
    roots = np.maximum(np.asarray(harmonics, np.float64).reshape(-1), _LEAST) ** lift
    least, damping = _LEAST**lift, _DAMPING
    loss, hessian, gradient = evaluate(roots)
    free = np.diagonal(hessian) > 0
    for _ in range(max_steps):
        moved = np.maximum(roots + _step(roots, hessian, gradient, damping, least), least)
        trial = np.where(free, moved, roots)
        new = evaluate(trial)
        if new[0] >= loss:
            damping *= _GROW
            continue
        settled = loss - new[0] < _TOLERANCE * loss
        roots, damping = trial, max(damping * _SHRINK, _LEAST_DAMPING)
        loss, hessian, gradient = new
        if settled:
            break
    rows = np.where(free & (roots <= least), 0, roots ** (1 / lift)).reshape(shape)
    return jnp.where(free.reshape(shape), jnp.asarray(rows, harmonics.dtype), harmonics)


def _step(roots, hessian, gradient, damping, least):
    """The damped Gauss–Newton step of those that do not press against the bound."""
    free = (np.diagonal(hessian) > 0) & ((roots > least) | (gradient < 0))
    step = np.zeros_like(roots)
    system = hessian[np.ix_(free, free)]
    step[free] = np.linalg.solve(system + damping * np.diag(np.diagonal(system)), -gradient[free])
    return step


def _sum_over_frames(objective, spectra, tones, shape) -> Callable[[np.ndarray], tuple]:
    """Loss, Gauss–Newton matrix and gradient by the roots, as a function of the roots."""
    lift, size = objective.lift, chunk_size()

    def evaluate(roots):
        rows = jnp.asarray((roots ** (1 / lift)).reshape(shape), spectra.dtype)

        def chunk(start):
            frames = np.arange(start, start + size)
            within = np.minimum(frames, spectra.shape[0] - 1)
            here = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[within]), (spectra, tones))
            weights = jnp.asarray(frames < spectra.shape[0], spectra.dtype)
            parts = _equations(objective, *here, rows, weights)
            return [np.asarray(part, np.float64) for part in parts]

        parts = parallel_map(chunk, range(0, spectra.shape[0], size))
        loss, hessian, gradient = map(sum, zip(*parts, strict=True))
        by_root = roots ** (1 / lift - 1) / lift
        return loss, hessian * np.outer(by_root, by_root), gradient * by_root

    return evaluate


@eqx.filter_jit
def _equations(objective, spectra, tones, harmonics, weights):
    theta = pack(tones, objective.lift)
    together = lambda x: x.reshape(-1, _TOGETHER, *x.shape[1:])

    def add(total, inputs):
        spectra, theta, instrument, weights = inputs
        equations = objective.dictionary_equations(theta, instrument, harmonics, spectra, weights)
        return jax.tree.map(jnp.add, total, equations), None

    inputs = jax.tree.map(together, (spectra, theta, tones.instrument, weights))
    number, dtype = harmonics.size, spectra.dtype
    nothing = jnp.zeros((), dtype), jnp.zeros((number, number), dtype), jnp.zeros(number, dtype)
    return jax.lax.scan(add, nothing, inputs)[0]

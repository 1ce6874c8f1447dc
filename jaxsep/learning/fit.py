"""The dictionary that explains a recording best at given tones, with or without a timbre."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from jaxsep.numerics.devices import map_chunks, over_chunks
from jaxsep.numerics.lanes import map_frames
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.refinement import pack
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

__all__ = ["fit_dictionary", "fit_timbre"]

#: A harmonic below this part of the tone's amplitude, -120 dB, is none.
_LEAST = 1e-6

#: Promised relative decrease of the loss below which the rows are at rest, and steps after which they stay.
_TOLERANCE, _MAX_STEPS = 1e-3, 12

#: Marquardt's damping at first and at least, and its factors after a step that lowers the loss, and one that
#: does not.
_DAMPING, _LEAST_DAMPING, _SHRINK, _GROW = 1e-3, 1e-6, 1 / 4, 4

#: Part of what frames say of the best known harmonic of a row, below which one is drawn to 0: of what lies
#: beside the axis they see the last of its tail, and could make anything of it.
_FAINT = 1e-3

#: So many frames teach, evenly spaced: neighbours say much the same.
_ENOUGH = 512

#: Frames whose derivatives are computed at once: those of two stay in the cache of a CPU.
_BLOCKS = 2, 256

#: Pitches of a timbre: four in an octave. What holds neighbours together, relative to what frames say of one.
_PITCHES, _STIFFNESS = 41, 0.1


def fit_dictionary(
    objective: LiftedLoss,
    spectra: Float[np.ndarray, "frames bins"],
    tones: Tones,
    dictionary: Dictionary,
    *,
    max_steps: int = _MAX_STEPS,
) -> Dictionary:
    """The harmonics of least mean loss at given tones, whatever the pitch.

    By Levenberg–Marquardt over at most 512 frames at once, evenly spaced.

    The unknowns are the harmonics to the power q: so the lifted spectrum of partials that do not overlap is
    linear in them, as it is in the tones' amplitudes.

    Arguments:
        objective: the lifted loss.
        spectra: magnitudes with a peak of about 1.
        tones: of every frame, `[frames, slots]`.
        dictionary: to begin with; an instrument that does not play stays as it is.
        max_steps: at most so many evaluations of these frames.

    Returns: harmonics whose peaks are where the tones' amplitudes put them, near 1.

    Example:
        >>> partial = lambda place: jnp.exp(-0.5 * ((jnp.arange(1024.0) - place) / 1.91) ** 2)
        >>> spectra = (partial(400.25) + 0.5 * partial(502.65))[None]  # an octave is 102.4 bins
        >>> tones = jaxsep.Tones.plain(jnp.ones((1, 1)), jnp.array([[400.25]]), jnp.array([[0]]))
        >>> start = jaxsep.Dictionary(jnp.array([[0.8, 0.8]]))
        >>> found = jaxsep.fit_dictionary(jaxsep.LiftedLoss(), np.asarray(spectra), tones, start)
        >>> print(found.harmonics.round(2))
        [[1.  0.5]]
    """
    rows = np.asarray(dictionary.harmonics)
    mixing = np.eye(rows.shape[0], dtype=spectra.dtype)[np.asarray(tones.instrument)]
    free = np.zeros((rows.shape[0], rows.shape[0]))
    return Dictionary(jnp.asarray(_fit(objective, spectra, tones, mixing, rows, free, max_steps)))


def fit_timbre(
    objective: LiftedLoss,
    spectra: Float[np.ndarray, "frames bins"],
    tones: Tones,
    dictionary: Dictionary,
    *,
    stiffness: float = _STIFFNESS,
) -> Dictionary:
    """As `fit_dictionary`, with harmonics that change smoothly with the pitch.

    Arguments:
        objective: the lifted loss.
        spectra: magnitudes with a peak of about 1.
        tones: of every frame, `[frames, slots]`.
        dictionary: its harmonics at each pitch begin, or if it has none, those whatever the pitch; the latter
            stay beside those at each pitch, and are those of instruments that do not play.
        stiffness: what ties the harmonics at neighbouring pitches together, relative to how much the tones
            say about those at one pitch.

    Example:
        >>> partial = lambda place: jnp.exp(-0.5 * ((jnp.arange(1024.0) - place) / 1.91) ** 2)
        >>> spectra = (partial(400.25) + 0.5 * partial(502.65))[None]  # an octave is 102.4 bins
        >>> tones = jaxsep.Tones.plain(jnp.ones((1, 1)), jnp.array([[400.25]]), jnp.array([[0]]))
        >>> start, axis = jaxsep.Dictionary(jnp.array([[0.8, 0.8]])), jaxsep.LogAxis()
        >>> found = jaxsep.fit_timbre(jaxsep.LiftedLoss(), np.asarray(spectra), tones, start)
        >>> print(found.of(tones, axis).round(2))
        [[[1.  0.5]]]
    """
    number, pitches, axis = dictionary.num_instruments, _PITCHES, objective.axis
    rows = np.repeat(np.asarray(dictionary.harmonics)[:, None], pitches, axis=1)
    places = axis.to_hz(jnp.linspace(0, axis.num_bins - 1, pitches, dtype=rows.dtype))
    if dictionary.by_pitch is not None and np.allclose(dictionary.pitches, places):
        rows = np.array(dictionary.by_pitch)
    start = Dictionary(dictionary.harmonics, jnp.asarray(rows), places)
    own = np.eye(number)[np.asarray(tones.instrument)]
    shares = map_chunks(lambda tones: start.shares(tones, axis), tones)
    mixing = own[..., None] * shares[..., None, :]
    mixing = mixing.reshape(*mixing.shape[:2], -1).astype(spectra.dtype)

    # Pitches that are played; the others become like the nearest one that is.
    played = np.any(mixing * np.asarray(tones.active)[..., None], axis=(0, 1))
    chosen = np.flatnonzero(played)
    if not chosen.size:
        return start
    mixing, flat = mixing[..., chosen], rows.reshape(number * pitches, -1)[chosen]
    ties = np.zeros((flat.shape[0], flat.shape[0]))
    for k in range(chosen.size - 1):
        if chosen[k] // pitches == chosen[k + 1] // pitches:
            ties[k : k + 2, k : k + 2] += stiffness * np.array([[1, -1], [-1, 1]])
    fitted = _fit(objective, spectra, tones, mixing, flat, ties, _MAX_STEPS)
    for instrument in range(number):
        mine = np.flatnonzero(chosen // pitches == instrument)
        if mine.size:
            distance = np.abs(chosen[mine] % pitches - np.arange(pitches)[:, None])
            rows[instrument] = fitted[mine[np.argmin(distance, axis=1)]]
    return Dictionary(dictionary.harmonics, jnp.asarray(rows), places)


def _fit(objective, spectra, tones, mixing, rows, ties, max_steps):
    """Rows of least loss, where the harmonics of each tone are a mixture of rows.

    Arguments:
        mixing: `[frames, slots, rows]`.
        rows: to begin with.
        ties: `[rows, rows]`, the matrix of a quadratic penalty on differences of rows.
    """
    lift, (number, size) = objective.lift, rows.shape
    every = -(-spectra.shape[0] // _ENOUGH)
    some = jax.tree.map(lambda x: np.asarray(x)[::every], (spectra, tones, mixing))
    sum_over_frames = _sum_over_frames(objective, *some)
    roots = np.maximum(rows.astype(np.float64), _LEAST) ** lift
    here = sum_over_frames(roots)
    curvature = np.diagonal(here[1]).reshape(number, size)
    free = curvature.reshape(-1) > 0
    # A tie pulls as hard as the tones of an average row.
    strength = np.sum(curvature, axis=0) / max(1, np.count_nonzero(np.any(curvature > 0, axis=1)))
    penalty = np.einsum("kl,hg->khlg", ties, np.diag(strength)).reshape(number * size, number * size)
    best = np.max(curvature, axis=1, keepdims=True)
    drawn = _FAINT * best / (1 + curvature / np.where(best > 0, _FAINT * best, 1))
    penalty += np.diag(np.where(curvature > 0, drawn, 0).reshape(-1))
    free |= np.diagonal(penalty) > 0

    def with_ties(roots, loss, hessian, gradient):
        pull = penalty @ roots
        return loss + 0.5 * roots @ pull, hessian + penalty, gradient + pull

    roots, least, damping = roots.reshape(-1), _LEAST**lift, _DAMPING
    loss, hessian, gradient = with_ties(roots, *here)
    for _ in range(max_steps):
        moved = np.maximum(roots + _step(roots, hessian, gradient, damping, least), least)
        trial = np.where(free, moved, roots)
        step = trial - roots
        if -step @ (gradient + 0.5 * hessian @ step) < _TOLERANCE * loss:
            break
        new = with_ties(trial, *sum_over_frames(trial.reshape(number, size)))
        if new[0] >= loss:
            damping *= _GROW
            continue
        roots, damping = trial, max(damping * _SHRINK, _LEAST_DAMPING)
        loss, hessian, gradient = new
    fitted = np.where(roots <= least, 0, roots ** (1 / lift)).astype(rows.dtype)
    return np.where(free.reshape(rows.shape), fitted.reshape(rows.shape), rows)


def _step(roots, hessian, gradient, damping, least):
    """The damped Gauss–Newton step of those that do not press against the bound."""
    free = (np.diagonal(hessian) > 0) & ((roots > least) | (gradient < 0))
    step = np.zeros_like(roots)
    system = hessian[np.ix_(free, free)]
    step[free] = np.linalg.solve(system + damping * np.diag(np.diagonal(system)), -gradient[free])
    return step


def _sum_over_frames(objective, spectra, tones, mixing) -> Callable[[np.ndarray], tuple]:
    """Loss, Gauss–Newton matrix and gradient by the roots of the rows, as a function of these."""
    lift, places, shares = objective.lift, *_shares(mixing)

    def evaluate(roots):
        rows = roots ** (1 / lift)
        harmonics = (mixing @ rows).astype(spectra.dtype)

        def chunk(frames, _):
            here = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[frames]), (spectra, tones, harmonics))
            return _equations(objective, *here)

        loss, first = 0.0, 0
        hessian, gradient = np.zeros((len(rows) ** 2, rows.shape[1] ** 2)), np.zeros(rows.shape)
        for parts in over_chunks(chunk, spectra.shape[0]):
            losses, by_harmonics, slopes = (x[: spectra.shape[0] - first] for x in parts)
            here = slice(first, first + len(losses))
            loss += losses.sum(dtype=np.float64)
            to_rows, to_pairs = _adding(places[here], shares[here], len(rows))
            hessian += to_pairs @ by_harmonics.swapaxes(2, 3).reshape(-1, hessian.shape[1])
            gradient += to_rows @ slopes.reshape(-1, gradient.shape[1])
            first += len(losses)
        by_root = (roots ** (1 / lift - 1) / lift).reshape(-1)
        size = len(rows), len(rows), rows.shape[1], rows.shape[1]
        hessian = hessian.reshape(size).swapaxes(1, 2).reshape(by_root.size, -1)
        return loss, hessian * np.outer(by_root, by_root), gradient.reshape(-1) * by_root

    return evaluate


def _shares(mixing):
    """The rows in each tone's mixture, and their shares: the few that are not 0."""
    most = max(1, int(np.count_nonzero(mixing, axis=-1).max(initial=0)))
    places = np.argsort(-mixing, axis=-1, kind="stable")[..., :most]
    return places, np.take_along_axis(mixing, places, axis=-1)


def _adding(places, shares, number):
    """Sparse matrices that add what tones, and pairs of tones of a frame, say to rows and pairs of rows."""
    pairs = places[:, :, None, :, None] * number + places[:, None, :, None, :]
    of_pairs = shares[:, :, None, :, None] * shares[:, None, :, None, :]
    return _sparse(places, shares, number, 2), _sparse(pairs, of_pairs, number**2, 3)


def _sparse(rows, values, number, axes):
    """The matrix with these values in these rows; the first axes count the columns."""
    size = math.prod(rows.shape[:axes])
    columns = np.repeat(np.arange(size), rows.size // size)
    return csr_array((values.reshape(-1), (rows.reshape(-1), columns)), (number, size))


@eqx.filter_jit
def _equations(objective, spectra, tones, harmonics):
    frames = pack(tones, objective.lift), harmonics, objective.lifted(spectra)
    return map_frames(lambda frame: objective.harmonic_equations(*frame), frames, _BLOCKS)

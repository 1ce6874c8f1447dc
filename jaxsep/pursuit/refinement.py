"""Bounded minimisation of the lifted loss by a projected Levenberg–Marquardt method."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from jaxsep.numerics.adjoint import Adjoint, Implicit, Problem, freeze, known
from jaxsep.numerics.dot import dot
from jaxsep.numerics.lanes import default_lanes, map_frames, queue, run_lanes
from jaxsep.pursuit.loss import LiftedLoss, power
from jaxsep.tones.tones import Polyphony, Tones, parameter_bounds, parameters_of, polyphony_of

__all__ = [
    "LevenbergMarquardt",
    "Refinement",
    "ToneFit",
    "differentiable",
    "minimise",
    "pack",
    "prune",
    "refine",
    "unpack",
]

_MAX_DAMPING = 1e8

#: A descent is given up that would not reach its goal in so many more steps like the last; they gain less.
_STEPS_LEFT = 4


class Refinement(eqx.Module):
    """Tones at a minimum of the lifted loss of each frame, the loss, and the solver's steps."""

    tones: Tones
    loss: Float[Array, " frames"]
    steps: Int[Array, " frames"]


class LevenbergMarquardt(eqx.Module):
    """A projected Levenberg–Marquardt method for a few tones, one evaluation of the model per step.

    `(JᵀJ + λ diag JᵀJ) d = −Jᵀr`, with the damping λ, is solved over the free parameters (those at a bound
    with a gradient that points outwards are held), the step is clipped to the bounds, and kept when
    the loss drops. The damping is relative to each parameter's own curvature and nothing is added that
    would tie parameters of different scale together: an absolute floor slows convergence tenfold.

    Arguments:
        tolerance: relative decrease of the loss at which a minimisation ends.
        damping: λ of the first step; a smaller one can jump to another basin.
        max_steps: evaluations of one minimisation at most.
        adjoint: how the minimum is differentiated, `Implicit()` or `Unrolled()`. Tolerance and damping have
            the derivative 0.

    Example:
        >>> partial = lambda place: jnp.exp(-0.5 * ((jnp.arange(1024.0) - place) / 1.91) ** 2)
        >>> spectra = (partial(400.25) + 0.5 * partial(502.65))[None]  # an octave is 102.4 bins
        >>> exact = jaxsep.LevenbergMarquardt(tolerance=1e-7, max_steps=100)
        >>> found = jax.jit(jaxsep.TonePursuit(solver=exact))(spectra, jnp.array([[1.0, 0.5]]))
        >>> print(found.tones.fundamental[0, 0].round(2))
        400.25
    """

    tolerance: float | Float[Array, ""] = 1e-5
    damping: float | Float[Array, ""] = 1.0
    max_steps: int = eqx.field(static=True, default=60)
    adjoint: Adjoint = Implicit()


class ToneFit(eqx.Module):
    """How the tones of a frame are fitted, whatever proposes them: a `TonePursuit` is one that selects them.

    Arguments:
        objective: the lifted loss and its axis.
        tones_per_instrument: tones that each instrument may play at a time, at least 1: one number for all,
            or one for each.
        solver: how the tones are refined.
        lowest, highest: bins between which fundamentals are.

    Example:
        >>> jaxsep.ToneFit(tones_per_instrument=2).objective.axis.num_bins
        1024
    """

    objective: LiftedLoss = LiftedLoss()
    tones_per_instrument: Polyphony = eqx.field(static=True, default=1)
    solver: LevenbergMarquardt = LevenbergMarquardt()
    lowest: float | Float[Array, ""] = eqx.field(default=-math.inf, kw_only=True)
    highest: float | Float[Array, ""] = eqx.field(default=math.inf, kw_only=True)

    def __check_init__(self):
        if np.min(self.tones_per_instrument) < 1:
            raise ValueError(f"tones_per_instrument: expected at least 1, got {self.tones_per_instrument}")

    def polyphony(self, num_instruments: int) -> tuple[int, ...]:
        """How many tones each of the instruments may play at a time."""
        return polyphony_of(self.tones_per_instrument, num_instruments)

    def inside(self, position: Real[Array, "*shape"]) -> Bool[Array, "*shape"]:
        """Whether a fundamental may be at a position in bins."""
        return (position >= self.lowest) & (position <= self.highest)


class Descent(eqx.Module):
    """State of one minimisation: the best parameters with their model, and the trial to evaluate next."""

    theta: Float[Array, "tones parameters"]
    loss: Float[Array, ""]
    hessian: Float[Array, "unknowns unknowns"]
    gradient: Float[Array, " unknowns"]
    trial: Float[Array, "tones parameters"]
    predicted: Float[Array, ""]  # decrease that the quadratic model promises for the trial
    damping: Float[Array, ""]
    growth: Float[Array, ""]
    decrease: Float[Array, ""]  # relative decrease of the last step that was kept
    steps: Int[Array, ""]
    ended: Bool[Array, ""]


def start_descent(solver: LevenbergMarquardt, theta: Float[Array, "tones parameters"]) -> Descent:
    """The state before the first evaluation."""
    dtype, size = theta.dtype, theta.size
    infinite = jnp.array(jnp.inf, dtype)
    return Descent(
        theta=theta,
        loss=infinite,
        hessian=jnp.zeros((size, size), dtype),
        gradient=jnp.zeros(size, dtype),
        trial=theta,
        predicted=infinite,
        damping=jnp.asarray(solver.damping, dtype),
        growth=jnp.array(2.0, dtype),
        decrease=infinite,
        steps=jnp.int32(0),
        ended=jnp.array(False),
    )


def step_descent(
    solver: LevenbergMarquardt,
    objective: LiftedLoss,
    state: Descent,
    active: Bool[Array, " tones"],
    harmonics: Float[Array, "tones harmonics"],
    target: Float[Array, " bins"],
) -> Descent:
    """Evaluates the trial, keeps it if the loss dropped, and proposes the next."""
    loss, hessian, gradient = objective.normal_equations(state.trial, harmonics, target)
    first = jnp.isinf(state.predicted)
    better = loss < state.loss
    fall = state.loss - loss
    tiny = jnp.finfo(loss.dtype).tiny

    gain = fall / jnp.maximum(state.predicted, tiny)
    shrink = jnp.maximum(
        state.damping * jnp.maximum(1 / 3, 1 - (2 * gain - 1) ** 3), 4 * jnp.finfo(loss.dtype).eps
    )
    damping = jnp.where(better, shrink, state.damping * state.growth)
    damping = jnp.where(first, state.damping, damping)
    growth = jnp.where(better, 2.0, 2 * state.growth)

    decrease = jnp.where(first, jnp.inf, jnp.where(better, fall / jnp.maximum(loss, tiny), state.decrease))
    # A rejected step that promised next to nothing ends it too: the rest is rounding.
    rejected = jnp.where(better, False, state.predicted <= solver.tolerance * state.loss)
    keep = lambda new, old: jnp.where(better, new, old)
    theta, loss = keep(state.trial, state.theta), keep(loss, state.loss)
    hessian, gradient = keep(hessian, state.hessian), keep(gradient, state.gradient)
    trial, predicted = _propose(theta, hessian, gradient, active, damping)

    return Descent(
        theta=theta,
        loss=loss,
        hessian=hessian,
        gradient=gradient,
        trial=trial,
        predicted=predicted,
        damping=damping,
        growth=growth.astype(loss.dtype),
        decrease=decrease,
        steps=state.steps + 1,
        ended=(decrease <= solver.tolerance)
        | (rejected & ~first)
        | (damping > _MAX_DAMPING)
        | jnp.all(trial == theta)
        | (state.steps + 1 >= solver.max_steps),
    )


def _free(theta, hessian, gradient, active):
    """Which parameters may move: not those at a bound with a gradient that points outwards."""
    lower, upper = _bounds(theta)
    here, low, high = theta.reshape(-1), lower.reshape(-1), upper.reshape(-1)
    held = ((here <= low) & (gradient > 0)) | ((here >= high) & (gradient < 0))
    # A parameter without curvature (a tone of amplitude 0) cannot move.
    return jnp.repeat(active, theta.shape[-1]) & ~held & (jnp.diagonal(hessian) > 0)


def _propose(theta, hessian, gradient, active, damping):
    lower, upper = _bounds(theta)
    here, low, high = theta.reshape(-1), lower.reshape(-1), upper.reshape(-1)
    diagonal = jnp.diagonal(hessian)
    free = _free(theta, hessian, gradient, active)
    system = jnp.where(free[:, None] & free, hessian, 0) + jnp.diag(jnp.where(free, damping * diagonal, 1))
    factor = jax.scipy.linalg.cho_factor(system)
    direction = jax.scipy.linalg.cho_solve(factor, jnp.where(free, -gradient, 0))
    trial = jnp.clip(here + direction, low, high)
    move = trial - here
    predicted = -dot(gradient + 0.5 * dot(hessian, move), move)
    return trial.reshape(theta.shape), predicted


def _bounds(theta):
    return tuple(jnp.broadcast_to(bound, theta.shape) for bound in parameter_bounds(theta.dtype))


def pack(tones: Tones, lift: float) -> Float[Array, "*frames tones parameters"]:
    """The solver's unknowns: the parameters within their bounds, with a^q in place of the amplitude."""
    theta = _lifted(parameters_of(tones), tones.active, lift)
    return jnp.clip(theta, *_bounds(theta))


def _lifted(parameters, active, lift):
    amplitude = power(jnp.where(active, parameters[..., 0], 0), lift)
    return jnp.concatenate([amplitude[..., None], parameters[..., 1:]], axis=-1)


def unpack(
    theta: Float[Array, "*frames tones parameters"],
    tones: Tones,
    lift: float,
    active: Bool[Array, "*frames tones"],
) -> Tones:
    """Tones with the unknowns of the solver and the instruments of `tones`."""
    return tones.moved(_lifted(theta, active, 1 / lift), active)


def prune(
    amplitude: Float[Array, " tones"],
    instrument: Int[Array, " tones"],
    active: Bool[Array, " tones"],
    tones_per_instrument: Polyphony,
) -> Bool[Array, " tones"]:
    """Which tones stay: for each instrument the largest amplitudes, as many as it may play."""
    slot = jnp.arange(amplitude.shape[0])
    same = (instrument[:, None] == instrument) & active
    larger = (amplitude > amplitude[:, None]) | ((amplitude == amplitude[:, None]) & (slot < slot[:, None]))
    most = tones_per_instrument
    most = most if isinstance(most, int) else jnp.asarray(most)[instrument]
    return active & (jnp.sum(same & larger, axis=1) < most)


class _Job(eqx.Module):
    descent: Descent
    active: Bool[Array, " tones"]
    spent: Int[Array, ""]  # steps of the minimisation before pruning


@eqx.filter_jit
def refine(
    spectra: Float[Array, "frames bins"],
    tones: Tones,
    harmonics: Float[Array, "frames tones harmonics"],
    objective: LiftedLoss,
    *,
    solver: LevenbergMarquardt = LevenbergMarquardt(),
    tones_per_instrument: Polyphony | None = None,
    frames: Bool[Array, " frames"] | None = None,
    goal: Float[Array, " frames"] | None = None,
) -> Refinement:
    """Minimises the lifted loss of every frame over the parameters of its tones (P1, sparse pursuit).

    The tones and their loss can be differentiated by the spectra and the harmonics (see `Adjoint`). They do
    not depend on where the descent began: by the starting point the derivative is 0.

    Arguments:
        spectra: nonnegative, peak about 1.
        tones: the starting point, `[frames, tones]`.
        harmonics: relative amplitudes of the harmonics of each tone, as for `render`; they stay as they are.
        objective: the lifted loss and its axis.
        solver: how to minimise, and to differentiate.
        tones_per_instrument: if given, tones beyond so many per instrument are dropped at the minimum, the
            quietest first, and the rest is refined again.
        frames: which frames to refine; the others keep their tones, with infinite loss.
        goal: the descent of a frame ends early once it is unlikely to get below this loss.

    Returns: tones at which the loss is not above that of the start (of what pruning left, if it took
    tones away), the loss, and the number of evaluations.

    Example:
        >>> partial = lambda place: jnp.exp(-0.5 * ((jnp.arange(1024.0) - place) / 1.91) ** 2)
        >>> spectra = (partial(400.25) + 0.5 * partial(502.65))[None]  # an octave is 102.4 bins
        >>> guess = jaxsep.Tones.plain(*jnp.array([[[0.8]], [[401.0]]]), jnp.array([[0]]))  # [frames, tones]
        >>> found = jaxsep.refine(spectra, guess, jnp.array([[[1.0, 0.5]]]), jaxsep.LiftedLoss())
        >>> print(found.tones.fundamental[0, 0].round(2), found.tones.amplitude[0, 0].round(2))
        400.25 1.0
    """
    found = minimise(
        *freeze((spectra, tones, harmonics, objective)),
        solver=freeze(solver),
        tones_per_instrument=tones_per_instrument,
        frames=frames,
        goal=freeze(goal),
    )
    moving = found.tones.active if frames is None else found.tones.active & frames[:, None]
    tones, loss = differentiable(
        found.tones, found.loss, moving, spectra, harmonics, objective, solver.adjoint
    )
    return Refinement(tones, loss, found.steps)


def minimise(
    spectra: Float[Array, "frames bins"],
    tones: Tones,
    harmonics: Float[Array, "frames tones harmonics"],
    objective: LiftedLoss,
    *,
    solver: LevenbergMarquardt = LevenbergMarquardt(),
    tones_per_instrument: Polyphony | None = None,
    frames: Bool[Array, " frames"] | None = None,
    goal: Float[Array, " frames"] | None = None,
) -> Refinement:
    """What `refine` does, without derivatives; arguments as there."""
    num_frames = spectra.shape[0]
    target = objective.lifted(spectra)
    theta = pack(tones, objective.lift)
    empty = parameters_of(Tones.empty((1,), theta.dtype))
    order, count = queue(jnp.ones(num_frames, bool) if frames is None else frames)

    def keeps(job, frame):
        if tones_per_instrument is None:
            return job.active
        return prune(job.descent.theta[:, 0], tones.instrument[frame], job.active, tones_per_instrument)

    def start(frame):
        return _Job(start_descent(solver, theta[frame]), tones.active[frame], jnp.int32(0))

    def step(frame, job):
        # A minimisation that ended with too many tones begins again with those that stay.
        stay = keeps(job, frame)
        again = job.descent.ended & jnp.any(stay != job.active)
        restart = start_descent(solver, jnp.where(stay[:, None], job.descent.theta, empty))
        descent = jax.tree.map(lambda new, old: jnp.where(again, new, old), restart, job.descent)
        active = jnp.where(again, stay, job.active)
        spent = job.spent + jnp.where(again, job.descent.steps, 0)
        descent = step_descent(solver, objective, descent, active, harmonics[frame], target[frame])
        if goal is not None:
            hopeless = descent.loss * (1 - _STEPS_LEFT * descent.decrease) > goal[frame]
            descent = eqx.tree_at(lambda d: d.ended, descent, descent.ended | hopeless)
        return _Job(descent, active, spent)

    def finish(job):
        return job.descent.theta, job.active, job.descent.loss, job.spent + job.descent.steps

    blank = (
        theta,
        tones.active,
        jnp.full(num_frames, jnp.inf, theta.dtype),
        jnp.zeros(num_frames, jnp.int32),
    )
    theta, active, loss, steps = run_lanes(
        start,
        step,
        lambda frame, job: job.descent.ended & jnp.all(keeps(job, frame) == job.active),
        finish,
        order,
        count,
        blank,
        default_lanes(num_frames, theta[0].size),
    )
    return Refinement(unpack(theta, tones, objective.lift, active), loss, steps)


class _FrameFit(Problem):
    """Least squares of one frame over the parameters of its tones, `[tones, parameters]`.

    Data are the spectrum, the harmonics of each tone, which of them are active, and which may move.
    """

    objective: LiftedLoss

    def loss(self, x, data):
        """The lifted loss."""
        spectrum, harmonics, active, _ = data
        # Not by way of a^q, whose second derivative overflows near 0.
        amplitude = jnp.where(active, x[:, 0], 0)
        model = self.objective.spectrum(amplitude, x, harmonics)
        return 0.5 * jnp.sum((self.objective.lifted(model) - self.objective.lifted(spectrum)) ** 2)

    def free(self, x, data):
        """Parameters that the solver would move, of tones that are more than rounding."""
        theta, hessian, gradient = self._normal_equations(x, data)
        audible = data[3] & (x[:, 0] > jnp.finfo(theta.dtype).eps * jnp.max(x[:, 0]))
        return _free(theta, hessian, gradient, audible).reshape(theta.shape)

    def step(self, x, data):
        """A Gauss–Newton step."""
        theta, hessian, gradient = self._normal_equations(x, data)
        theta = _propose(theta, hessian, gradient, data[3], 4 * jnp.finfo(theta.dtype).eps)[0]
        return _lifted(theta, True, 1 / self.objective.lift)

    def _normal_equations(self, x, data):
        spectrum, harmonics, active, _ = data
        theta = _lifted(x, active, self.objective.lift)
        target = self.objective.lifted(spectrum)
        return theta, *self.objective.normal_equations(theta, harmonics, target)[1:]


def differentiable(
    tones: Tones,
    loss: Float[Array, " frames"],
    moving: Bool[Array, "frames tones"],
    spectra: Float[Array, "frames bins"],
    harmonics: Float[Array, "frames tones harmonics"],
    objective: LiftedLoss,
    adjoint: Adjoint,
) -> tuple[Tones, Float[Array, " frames"]]:
    """Tones at a minimum, and the loss there, with derivatives by spectra and harmonics.

    Arguments:
        tones: at a minimum of the lifted loss, `[frames, tones]`.
        loss: the lifted loss at these tones.
        moving: which of the tones depend on the spectra.
        spectra: as `refine` has them, like what follows.
        harmonics: of each tone.
        objective: the lifted loss and its axis.
        adjoint: how to differentiate.
    """
    fit = _FrameFit(objective)
    data = (spectra, harmonics, tones.active, moving)
    found = adjoint(fit, parameters_of(tones), data)
    return tones.moved(found), known(loss, _losses, fit, found, data)


def _losses(fit, x, data):
    return map_frames(lambda frame: fit.loss(*frame), (x, data))

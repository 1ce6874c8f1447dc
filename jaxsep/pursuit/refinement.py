"""Bounded minimisation of the lifted loss by a projected Levenberg–Marquardt method."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsep.pursuit.lanes import default_lanes, queue, run_lanes
from jaxsep.pursuit.lifting import LiftedLoss, power
from jaxsep.tones.tones import MAX_INHARMONICITY, Tones, width_bounds

__all__ = ["LevenbergMarquardt", "Refined", "pack", "refine", "unpack"]

_MAX_DAMPING = 1e8


class Refined(eqx.Module):
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
    """

    tolerance: float | Float[Array, ""] = 1e-5
    damping: float | Float[Array, ""] = 1.0
    max_steps: int = eqx.field(static=True, default=60)


class Descent(eqx.Module):
    """State of one minimisation: the best parameters with their model, and the trial to evaluate next."""

    theta: Float[Array, "tones 4"]
    loss: Float[Array, ""]
    hessian: Float[Array, "parameters parameters"]
    gradient: Float[Array, " parameters"]
    trial: Float[Array, "tones 4"]
    predicted: Float[Array, ""]  # decrease that the quadratic model promises for the trial
    damping: Float[Array, ""]
    growth: Float[Array, ""]
    decrease: Float[Array, ""]  # relative decrease of the last step that was kept
    steps: Int[Array, ""]
    ended: Bool[Array, ""]


def start_descent(solver: LevenbergMarquardt, theta: Float[Array, "tones 4"]) -> Descent:
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


def _propose(theta, hessian, gradient, active, damping):
    lower, upper = _bounds(theta)
    here, low, high = theta.reshape(-1), lower.reshape(-1), upper.reshape(-1)
    held = ((here <= low) & (gradient > 0)) | ((here >= high) & (gradient < 0))
    diagonal = jnp.diagonal(hessian)
    # A parameter without curvature (a tone of amplitude 0) cannot move.
    free = jnp.repeat(active, 4) & ~held & (diagonal > 0)
    system = jnp.where(free[:, None] & free, hessian, 0) + jnp.diag(jnp.where(free, damping * diagonal, 1))
    factor = jax.scipy.linalg.cho_factor(system)
    direction = jax.scipy.linalg.cho_solve(factor, jnp.where(free, -gradient, 0))
    trial = jnp.clip(here + direction, low, high)
    move = trial - here
    predicted = -(gradient @ move + 0.5 * move @ hessian @ move)
    return trial.reshape(theta.shape), predicted


def _bounds(theta):
    narrow, wide = width_bounds()
    infinity = float("inf")
    lower = jnp.array([0, -infinity, narrow, 0], theta.dtype)
    upper = jnp.array([infinity, infinity, wide, MAX_INHARMONICITY], theta.dtype)
    return jnp.broadcast_to(lower, theta.shape), jnp.broadcast_to(upper, theta.shape)


def pack(tones: Tones, lift: float) -> Float[Array, "*frames tones 4"]:
    """Parameters of the solver: (a^q, fundamental, width, inharmonicity), within their bounds."""
    amplitude = power(jnp.where(tones.active, tones.amplitude, 0), lift)
    theta = jnp.stack([amplitude, tones.fundamental, tones.width, tones.inharmonicity], axis=-1)
    lower, upper = _bounds(theta)
    return jnp.clip(theta, lower, upper)


def unpack(
    theta: Float[Array, "*frames tones 4"], tones: Tones, lift: float, active: Bool[Array, "*frames tones"]
) -> Tones:
    """Tones with the parameters of the solver and the instruments of `tones`."""
    return Tones(
        amplitude=jnp.where(active, power(theta[..., 0], 1 / lift), 0),
        fundamental=theta[..., 1],
        width=theta[..., 2],
        inharmonicity=theta[..., 3],
        instrument=tones.instrument,
        active=active,
    )


def prune(
    amplitude: Float[Array, " tones"],
    instrument: Int[Array, " tones"],
    active: Bool[Array, " tones"],
    tones_per_instrument: int,
) -> Bool[Array, " tones"]:
    """Which tones stay: for each instrument the largest amplitudes, as many as it may play."""
    slot = jnp.arange(amplitude.shape[0])
    same = (instrument[:, None] == instrument) & active
    larger = (amplitude > amplitude[:, None]) | ((amplitude == amplitude[:, None]) & (slot < slot[:, None]))
    return active & (jnp.sum(same & larger, axis=1) < tones_per_instrument)


class _Job(eqx.Module):
    descent: Descent
    active: Bool[Array, " tones"]
    spent: Int[Array, ""]  # steps of the minimisation before pruning


def refine(
    spectra: Float[Array, "frames bins"],
    tones: Tones,
    dictionary: Float[Array, "instruments harmonics"],
    objective: LiftedLoss,
    *,
    solver: LevenbergMarquardt = LevenbergMarquardt(),
    tones_per_instrument: int | None = None,
    frames: Bool[Array, " frames"] | None = None,
    goal: Float[Array, " frames"] | None = None,
    num_lanes: int | None = None,
) -> Refined:
    """Minimises the lifted loss of every frame over the parameters of its tones (P1, sparse pursuit).

    Arguments:
        spectra: nonnegative, peak about 1.
        tones: the starting point, `[frames, tones]`.
        dictionary: relative amplitudes of the harmonics.
        objective: the lifted loss and its axis.
        solver: how to minimise.
        tones_per_instrument: if given, tones beyond so many per instrument are dropped at the minimum, the
            quietest first, and the rest is refined again.
        frames: which frames to refine; the others keep their tones, with infinite loss.
        goal: the descent of a frame ends early once it clearly cannot get below this loss.
        num_lanes: frames iterated at once (default: what suits the platform).

    Returns: tones at which the loss is not above that of the start (of what pruning left, if it took
    tones away), the loss, and the number of evaluations.
    """
    num_frames = spectra.shape[0]
    target = objective.lifted(spectra)
    theta = pack(tones, objective.lift)
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
        thinned = jnp.where(stay[:, None], job.descent.theta, jnp.array([0.0, 0, 1, 0], theta.dtype))
        restart = start_descent(solver, jnp.clip(thinned, *_bounds(thinned)))
        descent = jax.tree.map(lambda new, old: jnp.where(again, new, old), restart, job.descent)
        active = jnp.where(again, stay, job.active)
        spent = job.spent + jnp.where(again, job.descent.steps, 0)
        harmonics = dictionary[tones.instrument[frame]]
        descent = step_descent(solver, objective, descent, active, harmonics, target[frame])
        if goal is not None:
            hopeless = (descent.loss > goal[frame]) & (descent.decrease < _HOPELESS)
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
    lanes = default_lanes(num_frames) if num_lanes is None else min(num_lanes, num_frames)
    theta, active, loss, steps = run_lanes(
        start,
        step,
        lambda frame, job: job.descent.ended & jnp.all(keeps(job, frame) == job.active),
        finish,
        order,
        count,
        blank,
        lanes,
    )
    return Refined(unpack(theta, tones, objective.lift, active), loss, steps)


#: A descent above its goal that gains less than this per step is given up.
_HOPELESS = 3e-3

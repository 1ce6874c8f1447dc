"""Discrete measures: a few spikes, and the descent of their amplitudes and positions."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsep.blasso.patterns import Patterns
from jaxsep.numerics.adjoint import Adjoint, Problem, known
from jaxsep.numerics.dot import dot
from jaxsep.numerics.lanes import map_frames

__all__ = ["DAMPING", "SpikeFit", "Spikes", "differentiable_spikes", "slide", "synthesise"]

#: Damping of a first Newton step, relative to each parameter's curvature.
DAMPING = 1e-3

#: Largest damping with which a further descent begins: near the optimum every step is rejected, which says
#: nothing about those that follow when another spike has joined.
_MAX_DAMPING = 1e2

#: Solutions of the linear system in one step, to find out which amplitudes become 0.
_SOLVES = 3

#: Longest step of a position, in bins: less than the width of a sinusoid.
_MAX_STEP = 1.0


class Spikes(eqx.Module):
    """The measures `ν_i = Σ_j amplitude_j · δ(x - position_j)` over the spikes j of pattern i.

    Leading axes are frames; free slots have amplitude 0 and are not active.

    - `amplitude`: ≥ 0; the mass of a spike is `sign · amplitude`.
    - `position`: shift of the pattern, in bins.
    - `pattern`: row of the patterns.
    - `sign`: 1, or -1 where the measures have a sign.
    - `active`: whether the slot holds a spike.

    Example:
        >>> spikes = jaxsep.Spikes.empty((1, 4))  # one frame, four free slots
        >>> print(spikes.mass)
        [[0. 0. 0. 0.]]
    """

    amplitude: Float[Array, "*frames spikes"]
    position: Float[Array, "*frames spikes"]
    pattern: Int[Array, "*frames spikes"]
    sign: Float[Array, "*frames spikes"]
    active: Bool[Array, "*frames spikes"]

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype=jnp.float32) -> "Spikes":
        """Free slots; `shape` ends with the capacity."""
        zero = jnp.zeros(shape, dtype)
        return cls(zero, zero, jnp.zeros(shape, jnp.int32), zero + 1, jnp.zeros(shape, bool))

    @property
    def mass(self) -> Float[Array, "*frames spikes"]:
        """`sign · amplitude`, 0 in free slots."""
        return jnp.where(self.active, self.sign * self.amplitude, 0)


def synthesise(patterns: Patterns, spikes: Spikes) -> Float[Array, "patterns bins"]:
    """The sources `u_i = ψ_i ∗ ν_i` of one frame."""
    shapes, mass = patterns.atoms(spikes.position, spikes.pattern)[0], spikes.mass
    rows = jax.nn.one_hot(spikes.pattern, patterns.num_patterns, dtype=mass.dtype) * mass[:, None]
    return dot(rows.T, shapes)


class SlideResult(eqx.Module):
    """Spikes after a descent, the residual `p = b - Σ u_i` they leave, and how the descent went.

    - `decrease`: of the loss, relative.
    - `damping`: with which a further descent should begin.
    """

    spikes: Spikes
    residual: Float[Array, " bins"]
    decrease: Float[Array, ""]
    damping: Float[Array, ""]


class _Point(eqx.Module):
    amplitude: Float[Array, " spikes"]
    position: Float[Array, " spikes"]
    loss: Float[Array, ""]
    residual: Float[Array, " bins"]
    gradient: Float[Array, " parameters"]
    hessian: Float[Array, "parameters parameters"]


def slide(
    patterns: Patterns,
    target: Float[Array, " bins"],
    bound: Float[Array, ""],
    spikes: Spikes,
    *,
    num_steps: int,
    damping: float | Float[Array, ""] = DAMPING,
) -> SlideResult:
    """Descends `½‖b - Σ_j a_j s_j ψ(· - x_j)‖² + λ Σ_j a_j` over all amplitudes a ≥ 0 and positions x.

    Projected Newton steps with the damping of Levenberg and Marquardt. Of the second derivatives by a
    position, `a² ‖ψ'‖² - a ⟨ψ'', p⟩`, only a negative second term is left out; at a nondegenerate optimum
    there is none, and the convergence is quadratic. A spike whose amplitude arrives at 0 is dropped.

    Arguments:
        patterns: the shapes.
        target: b.
        bound: λ ≥ 0; 0 is the nonnegative least-squares problem.
        spikes: the start.
        num_steps: evaluations of all spikes.
        damping: of the first step, relative to each parameter's curvature.
    """

    evaluate = lambda *x: _evaluate(patterns, target, bound, spikes.pattern, spikes.sign, *x)

    def slope(point):
        return jnp.sum(jnp.where(_free(patterns, point, spikes.active), point.gradient, 0) ** 2)

    def step(_, carry):
        here, damping, growth = carry
        amplitude, position, predicted = _propose(patterns, here, spikes.active, damping)
        there = evaluate(amplitude, position)
        fall = here.loss - there.loss
        # Where the loss can no longer tell, the gradient still does. Both are false for NaN.
        equal = jnp.abs(fall) <= 16 * jnp.finfo(dtype).eps * here.loss
        better = (fall > 0) | (equal & (slope(there) < slope(here)))
        gain = fall / jnp.maximum(predicted, tiny)
        shrunk = damping * jnp.maximum(0.1, 1 - (2 * gain - 1) ** 3)
        damping = jnp.where(better, jnp.maximum(shrunk, 4 * jnp.finfo(dtype).eps), damping * growth)
        growth = jnp.where(better, 2.0, 2 * growth).astype(dtype)
        here = jax.tree.map(lambda new, old: jnp.where(better, new, old), there, here)
        return here, damping, growth

    dtype = target.dtype
    tiny = jnp.finfo(dtype).tiny
    amplitude = jnp.where(spikes.active, spikes.amplitude, 0)
    start = evaluate(amplitude, spikes.position)
    number = lambda x: jnp.asarray(x, dtype)
    carry = (start, number(damping), number(2))
    last, damping, _ = jax.lax.fori_loop(0, num_steps, step, carry)
    active = spikes.active & (last.amplitude > 0)
    found = Spikes(jnp.where(active, last.amplitude, 0), last.position, spikes.pattern, spikes.sign, active)
    decrease = (start.loss - last.loss) / jnp.maximum(last.loss, tiny)
    return SlideResult(found, last.residual, decrease, jnp.minimum(damping, _MAX_DAMPING))


def _evaluate(patterns, target, bound, pattern, sign, amplitude, position) -> _Point:
    shape, slope, curve = patterns.atoms(position, pattern)
    mass = sign * amplitude
    residual = target - dot(mass, shape)
    columns = jnp.concatenate([sign[:, None] * shape, mass[:, None] * slope])
    hessian = dot(columns, columns.T)
    bend = jnp.maximum(-mass * dot(curve, residual), 0)
    loss = 0.5 * dot(residual, residual) + bound * jnp.sum(amplitude)
    price = jnp.concatenate([jnp.full_like(amplitude, bound), jnp.zeros_like(amplitude)])
    return _Point(
        amplitude=amplitude,
        position=position,
        loss=loss,
        residual=residual,
        gradient=price - dot(columns, residual),
        hessian=hessian + jnp.diag(jnp.concatenate([jnp.zeros_like(bend), bend])),
    )


def _free(patterns, point, active):
    """Which parameters may move: not those at a bound with a gradient that points outwards."""
    size = active.shape[0]
    by_amplitude, by_position = point.gradient[:size], point.gradient[size:]
    # A spike of amplitude 0 has no position to move.
    held = ~patterns.free_to_move(point.position, -by_position) | (point.amplitude <= 0)
    return jnp.concatenate([active & ((point.amplitude > 0) | (by_amplitude < 0)), active & ~held])


def _propose(patterns, here, active, damping):
    """The damped Newton step within the bounds, and the decrease that the quadratic model promises for it."""
    size = active.shape[0]
    diagonal = jnp.diagonal(here.hessian)
    free = _free(patterns, here, active) & (diagonal > 0)
    damped = here.hessian + jnp.diag(damping * diagonal)

    def solve(_, carry):
        # What the step took below 0 arrives there now; the others make up for it.
        emptied = carry[0]
        fixed = jnp.concatenate([jnp.where(emptied, -here.amplitude, 0), jnp.zeros(size, damping.dtype)])
        moving = free & ~jnp.concatenate([emptied, emptied])
        system = jnp.where(moving[:, None] & moving, damped, 0) + jnp.diag(jnp.where(moving, 0, 1))
        factor = jax.scipy.linalg.cho_factor(system)
        right = jnp.where(moving, -here.gradient - dot(here.hessian, fixed), 0)
        direction = jax.scipy.linalg.cho_solve(factor, right) + fixed
        return emptied | (moving[:size] & (here.amplitude + direction[:size] < 0)), direction

    start = jnp.zeros(size, bool), jnp.zeros_like(here.gradient)
    emptied, direction = jax.lax.fori_loop(0, _SOLVES, solve, start)
    move = jnp.clip(direction[size:], -_MAX_STEP, _MAX_STEP)
    if not patterns.circle:
        move = patterns.within(here.position + move) - here.position
    amplitude = jnp.where(emptied, 0, jnp.maximum(here.amplitude + direction[:size], 0))
    step = jnp.concatenate([amplitude - here.amplitude, move])
    predicted = -dot(here.gradient + 0.5 * dot(here.hessian, step), step)
    return amplitude, patterns.within(here.position + move), predicted


class SpikeFit(Problem):
    """The descent of `slide` over (amplitudes, positions), with derivatives of its own.

    Data are the target b, the bound λ, and the pattern and sign of each spike with whether it is active.
    """

    patterns: Patterns

    def loss(self, x, data):
        """`½‖b - Σ_j a_j s_j ψ(· - x_j)‖² + λ Σ_j a_j`."""
        (amplitude, _), (_, bound, _, _, active) = x, data
        residual = self.residual(x, data)
        return 0.5 * dot(residual, residual) + bound * jnp.sum(jnp.where(active, amplitude, 0))

    def residual(self, x, data):
        """`b - Σ_j a_j s_j ψ(· - x_j)`."""
        (amplitude, position), (target, _, pattern, sign, active) = x, data
        mass = jnp.where(active, sign * amplitude, 0)
        shapes = self.patterns.atoms(position, pattern)[0]
        return target - dot(mass, shapes)

    def free(self, x, data):
        """Parameters that the descent would move."""
        point, active = self._evaluate(x, data), data[-1]
        free = _free(self.patterns, point, active) & (jnp.diagonal(point.hessian) > 0)
        return free[: active.size], free[active.size :]

    def step(self, x, data):
        """A projected Newton step."""
        point = self._evaluate(x, data)
        damping = jnp.asarray(4 * jnp.finfo(point.loss.dtype).eps, point.loss.dtype)
        return _propose(self.patterns, point, data[-1], damping)[:2]

    def hessian(self, x, data):
        """All second derivatives, from those of the patterns."""
        (amplitude, position), (_, _, pattern, sign, active) = x, data
        _, slope, curve = self.patterns.atoms(position, pattern)
        point, mass = self._evaluate(x, data), jnp.where(active, sign * amplitude, 0)
        size = amplitude.size
        # `_evaluate` leaves out what vanishes at the optimum, and what may be negative away from it.
        mixed = -jnp.diag(sign * dot(slope, point.residual))
        bend = -mass * dot(curve, point.residual)
        missing = jnp.diag(bend - jnp.maximum(bend, 0))
        return point.hessian + jnp.block([[jnp.zeros((size, size), bend.dtype), mixed], [mixed, missing]])

    def _evaluate(self, x, data):
        (amplitude, position), (target, bound, pattern, sign, active) = x, data
        amplitude = jnp.where(active, amplitude, 0)
        return _evaluate(self.patterns, target, bound, pattern, sign, amplitude, position)


def differentiable_spikes(
    spikes: Spikes,
    residual: Float[Array, "frames bins"],
    patterns: Patterns,
    targets: Float[Array, "frames bins"],
    bound: Float[Array, " frames"],
    adjoint: Adjoint,
) -> tuple[Spikes, Float[Array, "frames bins"]]:
    """Spikes at a minimum of `slide`, and the residual there, with derivatives by what follows them."""
    fit = SpikeFit(patterns)
    data = targets, bound, spikes.pattern, spikes.sign, spikes.active
    found = adjoint(fit, (spikes.amplitude, spikes.position), data)
    return Spikes(*found, *data[2:]), known(residual, _residuals, fit, found, data)


def _residuals(fit, x, data):
    return map_frames(lambda frame: fit.residual(*frame), (x, data))

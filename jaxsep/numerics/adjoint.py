"""Derivatives of what an iterative solver found, without going back through its iterations."""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from jaxsep.numerics.dot import dot
from jaxsep.numerics.lanes import map_frames

__all__ = ["Adjoint", "Implicit", "Problem", "Unrolled", "freeze", "known"]


class Problem(eqx.Module):
    """A bounded minimisation `min_x loss(x, data)` of one frame, whose arrays are parameters as well.

    What is solved for, x, and the data are trees of arrays. Fields of the module are what all frames share,
    such as a dictionary. Derivatives pass to both.
    """

    @abstractmethod
    def loss(self, x: PyTree, data: PyTree) -> Float[Array, ""]:
        """What is minimised."""

    @abstractmethod
    def free(self, x: PyTree, data: PyTree) -> PyTree:
        """Which of the variables are free at a solution: not in an empty slot, nor held by a bound."""

    @abstractmethod
    def step(self, x: PyTree, data: PyTree) -> PyTree:
        """One step of the solver, taken whether or not it lowers the loss."""

    def hessian(self, x: PyTree, data: PyTree) -> Float[Array, "variables variables"]:
        """Second derivatives of the loss by all variables, in the order of `ravel_pytree`."""
        flat, unravel = ravel_pytree(x)
        return jax.hessian(lambda v: self.loss(unravel(v), data))(flat)


class Adjoint(eqx.Module):
    """How solutions are differentiated: an `Implicit` or an `Unrolled`.

    Either way the forward program is the solver's alone, the derivatives are those at the point that it
    found, and the discrete part of a solution stays as it is: which tones or spikes there are, of which
    instrument, and which of their parameters are held by a bound. Where one of these changes, the solution
    has a kink or a jump, of which a derivative knows nothing.
    """

    @abstractmethod
    def __call__(self, problem: Problem, solution: PyTree, data: PyTree) -> PyTree:
        """The solution of every frame (the first axis of its arrays and of the data), with derivatives."""


class Implicit(Adjoint):
    """By the implicit function theorem, in a time and memory that do not depend on the solver's steps.

    Over the free variables x the gradient `∂L/∂x` vanishes at a minimum, whatever the parameters p. Hence
    `dx = -(∂²L/∂x²)⁻¹ (∂²L/∂x∂p) dp`, with all second derivatives, also those that a Gauss–Newton method
    leaves out. Variables that are not free have the derivative 0. A singular system, such as that of
    two tones at one place, is solved by its pseudo-inverse: what the data do not determine does not move.

    Forward and reverse mode, and derivatives of derivatives, all work.

    Example:
        >>> partial = lambda place: jnp.exp(-0.5 * ((jnp.arange(1024.0) - place) / 1.91) ** 2)
        >>> spectra = (partial(400.25) + 0.5 * partial(502.65))[None]  # an octave is 102.4 bins
        >>> harmonics, solver = jnp.array([[1.0, 0.5]]), jaxsep.LevenbergMarquardt(adjoint=jaxsep.Implicit())
        >>> pursuit = jaxsep.TonePursuit(solver=solver)
        >>> loudness = lambda gain: pursuit(gain * spectra, harmonics).tones.amplitude[0, 0]
        >>> print(jax.jit(jax.grad(loudness))(1.0).round(2))
        1.0
    """

    def __call__(self, problem: Problem, solution: PyTree, data: PyTree) -> PyTree:
        """The solutions themselves; see `Adjoint`."""
        return _implicit(problem, freeze(solution), data)


class Unrolled(Adjoint):
    """By automatic differentiation of a fixed number of further steps of the solver, from where it ended.

    A check of `Implicit`, at a cost in time and memory that grows with the steps. The error falls
    geometrically with their number, if the solver converges without damping: with Gauss–Newton steps, as
    long as the residual is small.

    Arguments:
        num_steps: how many, at least 1.

    Example:
        >>> partial = lambda place: jnp.exp(-0.5 * ((jnp.arange(1024.0) - place) / 1.91) ** 2)
        >>> spectra = (partial(400.25) + 0.5 * partial(502.65))[None]  # an octave is 102.4 bins
        >>> harmonics, solver = jnp.array([[1.0, 0.5]]), jaxsep.LevenbergMarquardt(adjoint=jaxsep.Unrolled(5))
        >>> pursuit = jaxsep.TonePursuit(solver=solver)
        >>> loudness = lambda gain: pursuit(gain * spectra, harmonics).tones.amplitude[0, 0]
        >>> print(jax.jit(jax.grad(loudness))(1.0).round(2))
        1.0
    """

    num_steps: int = eqx.field(static=True, default=30)

    def __check_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"num_steps: expected at least 1, got {self.num_steps}")

    def __call__(self, problem: Problem, solution: PyTree, data: PyTree) -> PyTree:
        """The solutions as they are; only the derivatives are those of the further steps."""
        further = lambda x, data: jax.lax.fori_loop(0, self.num_steps, lambda _, y: problem.step(y, data), x)
        moved = map_frames(lambda frame: further(*frame), (freeze(solution), data))
        return jax.tree.map(lambda x, y: x + (y - freeze(y)), freeze(solution), moved)


def freeze(tree: PyTree) -> PyTree:
    """The same values without derivatives."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)


def known(value: PyTree, function: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
    """`value`, known to be `function(*arguments)`, with the derivatives of the function.

    The function is evaluated only when differentiated. It may not close over arrays.
    """
    return _known(freeze(value), arguments, function=function)


@eqx.filter_custom_jvp
def _known(value, arguments, *, function):
    return value


@_known.def_jvp
def _known_jvp(primals, tangents, *, function):
    (value, arguments), (_, changes) = primals, tangents
    # Called again, so that the value has its derivatives when the rule itself is differentiated.
    return _known(value, arguments, function=function), eqx.filter_jvp(function, arguments, changes)[1]


@eqx.filter_custom_jvp
def _implicit(problem, solution, data):
    return solution


@_implicit.def_jvp
def _implicit_jvp(primals, tangents):
    (problem, solution, data), (d_problem, _, d_data) = primals, tangents
    # Called again, so that the solution moves when the rule itself is differentiated.
    solution = _implicit(problem, solution, data)

    def frame(inputs):
        x, data, d_data = inputs
        flat, unravel = ravel_pytree(x)
        slope = lambda problem, data: jax.grad(lambda v: problem.loss(unravel(v), data))(flat)
        change = eqx.filter_jvp(slope, (problem, data), (d_problem, d_data))[1]
        if change is None:
            return jax.tree.map(jnp.zeros_like, x)
        free = ravel_pytree(problem.free(x, data))[0]
        return unravel(-_solve(problem.hessian(x, data), free, change))

    return solution, map_frames(frame, (solution, data, d_data))


def _solve(
    hessian: Float[Array, "variables variables"],
    free: Bool[Array, " variables"],
    right: Float[Array, " variables"],
) -> Float[Array, " variables"]:
    """Solution of the symmetric system over the free variables, 0 for the others.

    Variables of different units are brought to one scale before a pseudo-inverse decides what is singular.
    """
    diagonal = jnp.where(free, jnp.abs(jnp.diagonal(hessian)), 0)
    scale = jnp.where(diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 1)
    matrix = jnp.where(free[:, None] & free, hessian * scale[:, None] * scale, 0)
    values, vectors = jnp.linalg.eigh(freeze(matrix))
    size = jnp.abs(values)
    regular = size > 10 * values.size * jnp.finfo(values.dtype).eps * jnp.max(size)
    inverse = jnp.where(regular, 1 / jnp.where(regular, values, 1), 0)

    def solve(_, b):
        turned = dot(vectors.T, b)
        return dot(vectors, inverse * turned)

    # Differentiated again, the solution of the system counts and not its eigenvalues, which may coincide.
    apply = lambda x: dot(matrix, x)
    solution = jax.lax.custom_linear_solve(apply, jnp.where(free, scale * right, 0), solve, symmetric=True)
    return jnp.where(free, scale * solution, 0)  # exactly 0, which eigenvectors are not to rounding

"""Plain references for the Beurling LASSO with signed spikes: Frank–Wolfe methods, in NumPy and SciPy alone.

No released package on the index solves it: these are written from their papers, to compare with.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.optimize
from jaxtyping import Float, Int

__all__ = ["Measure", "SpikeProblem", "polyatomic_frank_wolfe", "sliding_frank_wolfe"]


class Measure(NamedTuple):
    """Spikes: signed masses, shifts in bins, and the rows of their patterns."""

    mass: Float[np.ndarray, " spikes"]
    position: Float[np.ndarray, " spikes"]
    pattern: Int[np.ndarray, " spikes"]


class SpikeProblem(NamedTuple):
    """`min ½‖Σ_j m_j ψ(· - x_j) - b‖² + α Σ_j |m_j|` over shifts x in an interval of the line or the circle.

    `shapes` map distances in bins to values of the patterns and of their derivatives.
    """

    shapes: tuple[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], ...]
    signal: Float[np.ndarray, " bins"]
    alpha: float
    shifts: tuple[float, float]
    circle: bool

    def atoms(self, position, pattern):
        """Shifted patterns and their derivatives by the shift, each `[spikes, bins]`."""
        distance = np.arange(self.signal.size) - np.asarray(position)[:, None]
        if self.circle:  # the nearest turn
            distance = (distance + self.signal.size / 2) % self.signal.size - self.signal.size / 2
        value, slope = np.zeros_like(distance), np.zeros_like(distance)
        for row, shape in enumerate(self.shapes):
            mine = np.asarray(pattern) == row
            value[mine], slope[mine] = shape(distance[mine])
        return value, -slope

    def grid(self, spacing):
        """Shifts and patterns of a grid, and its atoms `[shifts of all patterns, bins]`."""
        low, high = self.shifts
        shifts = np.arange(low, high + (0 if self.circle else 1e-9), spacing)
        position = np.tile(shifts, len(self.shapes))
        pattern = np.repeat(np.arange(len(self.shapes)), shifts.size)
        return position, pattern, self.atoms(position, pattern)[0]


def sliding_frank_wolfe(
    problem: SpikeProblem, grid: tuple, tolerance: float, max_steps: int = 100
) -> Measure:
    """Denoyelle, Duval, Peyré, Soubies 2019: one spike joins, masses are fitted, then all spikes slide.

    It ends when the residual, scaled into the dual set, certifies the relative gap. The largest correlation
    is searched on the grid and refined between its points.
    """
    position, pattern, mass = np.empty(0), np.empty(0, int), np.empty(0)
    for _ in range(max_steps):
        residual = problem.signal - mass @ problem.atoms(position, pattern)[0]
        where, row, value = _largest(problem, grid, residual)
        if _gap(problem, mass, residual, abs(value)) <= tolerance:
            break
        position, pattern = np.append(position, where), np.append(pattern, row)
        sign = np.append(np.sign(mass), np.sign(value))
        mass = _masses(problem, position, pattern, sign)
        mass, position = _slide(problem, mass, position, pattern)
        kept = mass != 0
        mass, position, pattern = mass[kept], position[kept], pattern[kept]
    return Measure(mass, position, pattern)


def polyatomic_frank_wolfe(
    problem: SpikeProblem, grid: tuple, tolerance: float, max_steps: int = 100
) -> Measure:
    """Jarret, Fageot, Simeoni 2022, on a grid: all shifts near the largest correlation join at a time.

    Those within 0.5 · 2 / (step + 2) of the largest, relative to α, join; the masses then descend by
    accelerated proximal gradient. It ends when the gap of the grid's problem is certified.
    """
    position, pattern, atoms = grid
    mass, active = np.zeros(position.size), np.zeros(position.size, bool)
    for step in range(max_steps):
        residual = problem.signal - mass[active] @ atoms[active]
        correlation = np.abs(atoms @ residual)
        if _gap(problem, mass[active], residual, correlation.max()) <= tolerance:
            break
        active |= correlation >= correlation.max() - problem.alpha / (step + 2)
        mass[active] = _descend(atoms[active], problem.signal, problem.alpha, mass[active])
        active &= mass != 0
    return Measure(mass[active], position[active], pattern[active])


def _gap(problem, mass, residual, largest):
    """Relative duality gap, with the residual scaled by θ = min(1, α / largest correlation)."""
    scale = min(1, problem.alpha / largest) if largest > 0 else 1
    primal = 0.5 * residual @ residual + problem.alpha * np.abs(mass).sum()
    dual = scale * residual @ problem.signal - 0.5 * scale**2 * residual @ residual
    return (primal - dual) / primal


def _largest(problem, grid, residual):
    """Shift, pattern and value of the largest correlation in modulus, between the points of the grid."""
    position, pattern, atoms = grid
    size = np.abs(atoms @ residual).reshape(len(problem.shapes), -1)
    left, right = np.roll(size, 1, axis=1), np.roll(size, -1, axis=1)
    if not problem.circle:
        left[:, 0], right[:, -1] = 0, 0
    # Between the points it is a little larger, near the optimum by more than the maxima differ.
    likely = np.flatnonzero((size >= left) & (size >= right) & (size >= 0.98 * size.max()))
    spacing, found = position[1] - position[0], []
    for index in likely:
        loss = lambda x, row=pattern[index]: -abs(problem.atoms([x], [row])[0][0] @ residual)
        low, high = position[index] - spacing, position[index] + spacing
        if not problem.circle:
            low, high = max(low, problem.shifts[0]), min(high, problem.shifts[1])
        limits = {"bounds": (low, high), "method": "bounded", "options": {"xatol": 1e-8}}
        best = scipy.optimize.minimize_scalar(loss, **limits)
        found.append((best.fun, best.x, pattern[index]))
    _, where, row = min(found)
    return where, row, problem.atoms([where], [row])[0][0] @ residual


def _masses(problem, position, pattern, sign):
    """Optimal masses of given signs at given shifts: the LASSO as nonnegative least squares."""
    columns = sign[:, None] * problem.atoms(position, pattern)[0]
    gram = columns @ columns.T
    # Two spikes at one place make it singular.
    factor = np.linalg.cholesky(gram + 1e-12 * np.trace(gram) * np.eye(sign.size))
    right = np.linalg.solve(factor, columns @ problem.signal - problem.alpha)
    return sign * scipy.optimize.nnls(factor.T, right)[0]


def _slide(problem, mass, position, pattern):
    """Masses and shifts at a local minimum, by L-BFGS-B; signs stay as they are."""
    kept = mass != 0
    sign, size = np.sign(mass[kept]), int(kept.sum())

    def loss(x):
        value, slope = problem.atoms(x[size:], pattern[kept])
        residual = problem.signal - (sign * x[:size]) @ value
        total = 0.5 * residual @ residual + problem.alpha * x[:size].sum()
        by_mass = problem.alpha - sign * (value @ residual)
        return total, np.concatenate([by_mass, -sign * x[:size] * (slope @ residual)])

    edges = [(None, None)] * size if problem.circle else [problem.shifts] * size
    start = np.concatenate([np.abs(mass[kept]), position[kept]])
    options = {"maxiter": 1000, "maxcor": 30, "ftol": 1e-13, "gtol": 1e-9}
    bounds = [(0, None)] * size + edges
    found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    mass, position = mass.copy(), position.copy()
    mass[kept], position[kept] = sign * found.x[:size], found.x[size:]
    return mass, position


def _descend(atoms, signal, alpha, mass, steps=2000, change=1e-9):
    """Masses of the LASSO on few atoms, by accelerated proximal gradient with restarts."""
    gram, right = atoms @ atoms.T, atoms @ signal
    step = 1 / np.linalg.eigvalsh(gram)[-1]
    point, momentum = mass, 1.0
    for _ in range(steps):
        moved = point - step * (gram @ point - right)
        new = np.sign(moved) * np.maximum(np.abs(moved) - step * alpha, 0)
        if (point - new) @ (new - mass) > 0:
            momentum = 1.0
        after = 0.5 * (1 + np.sqrt(1 + 4 * momentum**2))
        point = new + (momentum - 1) / after * (new - mass)
        small = np.linalg.norm(new - mass) <= change * max(np.linalg.norm(new), 1e-300)
        mass, momentum = new, after
        if small:
            break
    return mass

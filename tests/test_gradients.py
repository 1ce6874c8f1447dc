"""Derivatives of what the solvers find: finite differences, the unrolled adjoint, silence, and the chain."""

from functools import cache
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import AXIS, DICTIONARY, Note, duets, pack_notes, render_notes

import jaxsep
from benchmarks.commands.training import example
from jaxsep.blasso.certificate import alpha_max
from jaxsep.blasso.lasso import BeurlingLasso
from jaxsep.blasso.patterns import Patterns
from jaxsep.blasso.projection import Projection
from jaxsep.blasso.spikes import SpikeFit
from jaxsep.blasso.support import support
from jaxsep.numerics.adjoint import Implicit, Problem, Unrolled
from jaxsep.pursuit.loss import LiftedLoss, power
from jaxsep.pursuit.refinement import LevenbergMarquardt, refine
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.separation.chain import PursuitSeparator
from jaxsep.signal.axes import LogAxis
from jaxsep.signal.gaussians import width_bounds
from jaxsep.signal.peaks import PeakPursuit
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.rendering import render
from jaxsep.tones.tones import MAX_INHARMONICITY, Tones

pytestmark = pytest.mark.compiles

OBJECTIVE = LiftedLoss(AXIS)
PRECISE = LevenbergMarquardt(1e-13)

#: Problems of each method; so many of them have to keep their support.
NUM_PROBLEMS, LEAST = 56, 50

STEP = 1e-4


# ---- The rule ---------------------------------------------------------------------------------------------


class Quadratic(Problem):
    """`½ xᵀ A x - xᵀ b` over x ≥ 0, the last variable being in an empty slot."""

    matrix: jax.Array

    def loss(self, x, data):
        return 0.5 * x @ self.matrix @ x - x @ data

    def free(self, x, data):
        slope = self.matrix @ x - data
        return ((x > 0) | (slope < 0)) & (jnp.arange(x.size) < x.size - 1)

    def step(self, x, data):
        move = -(self.matrix @ x - data) / jnp.linalg.norm(self.matrix, 2)
        return jnp.where(self.free(x, data), x + move, x)


def quadratic():
    """A singular problem: the first two variables count by their sum alone; the third is held at 0."""
    matrix = jnp.array([[2.0, 2, 0, 0.1], [2, 2, 0, 0.1], [0, 0, 3, 0], [0.1, 0.1, 0, 1]])
    return matrix, jnp.array([[1.0, 1, -1, 5]]), jnp.array([[0.3, 0.2, 0, 0]])


def test_free_variables_move_and_what_is_not_determined_does_not(x64):
    matrix, data, solution = quadratic()
    solve = lambda b: Implicit()(Quadratic(matrix), solution, b)
    np.testing.assert_array_equal(solve(data), solution)
    expected = np.zeros((4, 4))
    expected[:2, :2] = 1 / 8  # the pseudo-inverse
    for jacobian in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(jacobian(solve)(data)[0, :, 0], expected, atol=1e-12)


def test_unrolled_steps_converge_to_the_same_derivative(x64):
    matrix, data, solution = quadratic()
    matrix = matrix.at[0, 0].set(6.0)
    solution = solution.at[0, :2].set(jnp.linalg.solve(matrix[:2, :2], data[0, :2]) + 0.5)  # not quite there
    exact = jax.jacfwd(lambda b: Implicit()(Quadratic(matrix), solution, b))(data)
    for steps, accuracy in ((10, 0.2), (400, 1e-12)):
        solve = lambda b, steps=steps: Unrolled(steps)(Quadratic(matrix), solution, b)
        np.testing.assert_array_equal(solve(data), solution)
        np.testing.assert_allclose(jax.jacrev(solve)(data), exact, atol=accuracy)


@pytest.mark.slow
def test_derivatives_of_derivatives(x64):
    """`x = b/a`, whose second derivative by a is `2b/a³`."""
    a, data = 2.0, jnp.array([[3.0, 0]])
    solution = lambda a: Implicit()(Quadratic(jnp.diag(jnp.stack([a, 1.0]))), data / 2, data)[0, 0]
    np.testing.assert_allclose(jax.grad(solution)(a), -3 / 4)
    np.testing.assert_allclose(jax.grad(jax.grad(solution))(a), 3 / 4)
    np.testing.assert_allclose(jax.hessian(solution)(a), 3 / 4)


def test_a_singular_system_in_single_precision_is_finite():
    matrix, data, solution = quadratic()
    jacobian = jax.jacrev(lambda b: Implicit()(Quadratic(matrix), solution, b))(data)
    assert jacobian.dtype == np.float32
    np.testing.assert_allclose(jacobian[0, :2, 0, :2], 1 / 8, rtol=1e-4)


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0, 1.4, 2.0])
def test_powers_are_finite_at_zero(exponent, dtype):
    x = jnp.array([0.0, 0.49, 2.0], dtype)
    value = lambda x: power(x, exponent)
    first = jax.vmap(jax.grad(value))(x)
    second = jax.vmap(jax.grad(jax.grad(value)))(x)
    assert first.dtype == second.dtype == dtype
    np.testing.assert_allclose(first[1:], exponent * x[1:] ** (exponent - 1), rtol=1e-5)
    curved = exponent * (exponent - 1) * x[1:] ** (exponent - 2)
    np.testing.assert_allclose(second[1:], curved, rtol=1e-5, atol=1e-6)
    assert first[0] == (exponent == 1)
    assert np.isfinite(second[0])


def test_impossible_number_of_steps():
    with pytest.raises(ValueError, match="num_steps: expected at least 1, got 0"):
        Unrolled(0)


# ---- Tones ------------------------------------------------------------------------------------------------


@cache
def recordings(num_frames=NUM_PROBLEMS):
    """Noisy duets, their directions of change, and tones near the true ones; float64."""
    rng = np.random.default_rng(0)
    frames = duets(num_frames, seed=7, widths=(0.75, 1.2), inharmonicity=0.05 * MAX_INHARMONICITY)
    clean = np.stack([render_notes(notes) for notes in frames])
    spectra = np.abs(clean * (1 + 0.05 * rng.standard_normal(clean.shape)))
    rows = np.array(DICTIONARY)
    changes = 0.1 * rng.standard_normal(spectra.shape) * spectra, rng.standard_normal(rows.shape) * rows
    return spectra, rows, changes, frames


def unknowns(tones):
    """Parameters of each frame on comparable scales, `[frames, 4 tones]`."""
    fields = tones.amplitude, tones.fundamental, tones.width, tones.inharmonicity / MAX_INHARMONICITY
    return jnp.concatenate(fields, axis=1)


@jax.jit
def polished(spectra, rows, tones):
    """Tones at the minimum to rounding, by Newton's method on a loss with another renderer.

    Differences of the loss end at half the digits, with which finite differences would be too coarse.
    """
    narrow, wide = width_bounds()
    low, high = jnp.array([0, -jnp.inf, narrow, 0]), jnp.array([jnp.inf, jnp.inf, wide, MAX_INHARMONICITY])
    units = jnp.array([1, 1, 1, MAX_INHARMONICITY])[:, None]

    def frame(spectrum, tone):
        x = jnp.stack([tone.amplitude, tone.fundamental, tone.width, tone.inharmonicity])
        inside = (x > low[:, None]) & (x < high[:, None]) & tone.active

        def loss(x):
            model = render(
                Tones(*x, tone.instrument, tone.active), rows[tone.instrument], AXIS, method="dense"
            )
            return 0.5 * jnp.sum((OBJECTIVE.lifted(model) - OBJECTIVE.lifted(spectrum)) ** 2)

        def newton(_, x):
            scaled = lambda z: loss(x + jnp.where(inside, z * units, 0))
            zero = jnp.zeros_like(x)
            slope, curvature = jax.grad(scaled)(zero), jax.hessian(scaled)(zero)
            fixed = jnp.diag(~inside.ravel() * 1.0)
            step = jnp.linalg.solve(curvature.reshape(x.size, x.size) + fixed, slope.ravel())
            return x - step.reshape(x.shape) * units

        x = jax.lax.fori_loop(0, 3, newton, x)
        return Tones(*x, tone.instrument, tone.active)

    return jax.lax.map(lambda arguments: frame(*arguments), (spectra, tones))


def starts(frames):
    """Tones at the true pitches, of nominal shape."""
    near = [[Note(n.instrument, 0.8 * n.amplitude, n.position + 0.3) for n in notes] for notes in frames]
    return pack_notes(near, 2, jnp.float64)


def refiner(solver):
    start = starts(recordings()[3])

    def find(spectra, rows):
        found = refine(spectra, start, rows[start.instrument], OBJECTIVE, solver=solver)
        return found.tones, found.loss

    return find


def pursuer(solver):
    def find(spectra, rows):
        found = TonePursuit(OBJECTIVE, solver=solver)(spectra, rows)
        return found.tones, found.loss

    return find


METHODS = {"refine": refiner, "pursuit": pursuer}


@eqx.filter_jit
def forward(find, spectra, rows, changes):
    return eqx.filter_jvp(find, (spectra, rows), changes)


@cache
def forward_tones(method, adjoint):
    """Found tones and losses, and their derivatives along the directions."""
    spectra, rows, changes = jax.tree.map(jnp.asarray, recordings()[:3])
    solver = eqx.tree_at(lambda s: s.adjoint, PRECISE, adjoint)
    return forward(METHODS[method](solver), spectra, rows, changes)


def held(tones):
    """Which parameters of active tones are at a bound."""
    narrow, wide = width_bounds()
    at = [tones.width <= narrow, tones.width >= wide, tones.inharmonicity <= 0]
    return tones.active & jnp.stack([*at, tones.inharmonicity >= MAX_INHARMONICITY])


@pytest.mark.parametrize("method", ["refine", pytest.param("pursuit", marks=pytest.mark.slow)])
def test_tones_move_as_finite_differences_say(method, x64):
    spectra, rows, (by_spectra, by_rows), _ = recordings()
    (tones, _), (moved, fell) = forward_tones(method, Implicit())
    find = eqx.filter_jit(METHODS[method](PRECISE))
    ends = []
    for sign in (1, -1):
        there = jnp.asarray(spectra + sign * STEP * by_spectra), jnp.asarray(rows + sign * STEP * by_rows)
        found, loss = find(*there)
        ends.append((unknowns(polished(*there, found)), loss, found))
    same = jnp.all(tones.active & (ends[0][2].active == ends[1][2].active), axis=1)
    same &= jnp.all(ends[0][2].instrument == ends[1][2].instrument, axis=1)
    same &= jnp.all(jnp.array([held(e[2]) == held(tones) for e in ends]), axis=(0, 1, 3))
    assert jnp.sum(same) >= LEAST
    assert jnp.sum(held(tones)) >= 5  # bounds that are active are among them
    expected = (ends[0][0] - ends[1][0]) / (2 * STEP)
    error = jnp.linalg.norm(unknowns_change(moved) - expected, axis=1)
    assert jnp.max(jnp.where(same, error / jnp.linalg.norm(expected, axis=1), 0)) <= 1e-5
    slope = (ends[0][1] - ends[1][1]) / (2 * STEP)
    np.testing.assert_allclose(jnp.where(same, fell, 0), jnp.where(same, slope, 0), rtol=1e-5, atol=1e-8)


def unknowns_change(moved):
    """As `unknowns`, of tangents, which have no instruments."""
    fields = moved.amplitude, moved.fundamental, moved.width, moved.inharmonicity / MAX_INHARMONICITY
    return jnp.concatenate(fields, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_implicit_and_unrolled_agree(method, x64):
    (_, _), (implicit, fell) = forward_tones(method, Implicit())
    (found, loss), (unrolled, sank) = forward_tones(method, Unrolled(40))
    exact = forward_tones(method, Implicit())[0]
    # Two programs, each with its own rounding.
    np.testing.assert_allclose(found.fundamental, exact[0].fundamental, rtol=1e-9)
    np.testing.assert_allclose(loss, exact[1], rtol=1e-9)
    change, other = unknowns_change(implicit), unknowns_change(unrolled)
    error = jnp.linalg.norm(change - other, axis=1) / jnp.linalg.norm(change, axis=1)
    assert jnp.max(error) < 1e-6
    np.testing.assert_allclose(sank, fell, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["refine", pytest.param("pursuit", marks=pytest.mark.slow)])
def test_reverse_mode_is_the_transpose(method, x64):
    spectra, rows, changes, _ = recordings()
    (_, _), (moved, fell) = forward_tones(method, Implicit())
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(unknowns_change(moved).shape))
    find = METHODS[method](PRECISE)

    @jax.jit
    @jax.grad
    def gradient(arguments):
        tones, loss = find(*arguments)
        return jnp.sum(weights * unknowns(tones)) + jnp.sum(loss)

    slopes = gradient((jnp.asarray(spectra), jnp.asarray(rows)))
    actual = sum(jnp.sum(slope * change) for slope, change in zip(slopes, changes, strict=True))
    np.testing.assert_allclose(actual, jnp.sum(weights * unknowns_change(moved)) + jnp.sum(fell), rtol=1e-9)


@pytest.mark.slow
def test_a_loose_tolerance_differentiates_the_conditions_where_it_ends(x64):
    """The derivative there is `-H⁻¹ ∂g`, by another renderer."""
    spectra, rows, (by_spectra, by_rows), frames = recordings()
    count = 4
    here, along = jnp.asarray(spectra[:count]), jnp.asarray(by_spectra[:count])
    start = jax.tree.map(lambda x: x[:count], starts(frames))
    loose = LevenbergMarquardt(jnp.asarray(1e-2))
    find = lambda spectra, rows: refine(spectra, start, rows[start.instrument], OBJECTIVE, solver=loose).tones
    tones, moved = forward(find, here, jnp.asarray(rows), (along, jnp.asarray(by_rows)))
    for frame in range(count):
        tone = jax.tree.map(lambda x, frame=frame: x[frame], tones)
        flat, unravel = ravel_pytree([tone.amplitude, tone.fundamental, tone.width, tone.inharmonicity])

        def loss(x, spectrum, rows, tone=tone, unravel=unravel):
            model = render(
                Tones(*unravel(x), tone.instrument, tone.active), rows[tone.instrument], AXIS, method="dense"
            )
            return 0.5 * jnp.sum((OBJECTIVE.lifted(model) - OBJECTIVE.lifted(spectrum)) ** 2)

        slope = lambda spectrum, rows, loss=loss, flat=flat: jax.grad(loss)(flat, spectrum, rows)
        arguments = here[frame], jnp.asarray(rows)
        _, change = jax.jvp(slope, arguments, (along[frame], jnp.asarray(by_rows)))
        hessian = jax.hessian(loss)(flat, *arguments)
        low, high = width_bounds()
        free = ravel_pytree(
            [
                tone.active,
                tone.active,
                (tone.width > low) & (tone.width < high),
                (tone.inharmonicity > 0) & (tone.inharmonicity < MAX_INHARMONICITY),
            ]
        )[0]
        fixed = jnp.where(free[:, None] & free, hessian, 0) + jnp.diag(jnp.where(free, 0, 1.0))
        expected = unravel(-jnp.linalg.solve(fixed, jnp.where(free, change, 0)))
        np.testing.assert_allclose(moved.fundamental[frame], expected[1], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(moved.amplitude[frame], expected[0], rtol=1e-4, atol=1e-6)


def test_bounds_that_hold_and_empty_slots_have_no_derivative(x64):
    (tones, _), (moved, _) = forward_tones("refine", Implicit())
    at_bound = held(tones)
    assert np.all(np.where(at_bound[0] | at_bound[1], moved.width, 0) == 0)
    assert np.all(np.where(at_bound[2] | at_bound[3], moved.inharmonicity, 0) == 0)
    assert np.all(np.where(~tones.active, moved.fundamental, 0) == 0)


def silent_and_odd(dtype):
    """Silence, a unison of two equal rows, a frame with NaN, and one tone; with a row that is zero.

    More frames than are mapped at once, and no multiple of that.
    """
    tone = render_notes([Note(0, 0.8, 203.4)])
    spectra = jnp.asarray(np.stack([0 * tone, tone, np.full_like(tone, np.nan), *[tone] * 8]), dtype)
    rows = jnp.asarray(np.stack([DICTIONARY[0], DICTIONARY[0], 0 * DICTIONARY[1]]), dtype)
    return spectra, rows


def test_gradients_are_finite_at_silence_and_where_the_solution_is_not_unique(dtype):
    spectra, rows = silent_and_odd(dtype)
    note = lambda i: Note(i, 0.4, 203.0)
    frames = [[], [note(0), note(1)], [note(0)], *[[note(2), note(0)]] * 8]
    start = pack_notes(frames, 3, dtype)
    spectra = jnp.where(jnp.isnan(spectra), 0, spectra)

    @jax.jit
    @jax.grad
    def gradient(arguments):
        spectra, rows = arguments
        found = refine(spectra, start, rows[start.instrument], OBJECTIVE)
        return jnp.sum(found.tones.amplitude + found.tones.fundamental) + jnp.sum(found.loss)

    by_spectra, by_rows = gradient((spectra, rows))
    assert by_spectra.dtype == by_rows.dtype == dtype
    assert np.all(np.isfinite(by_spectra))
    assert np.all(np.isfinite(by_rows))
    assert np.any(by_rows != 0)


@pytest.mark.slow
def test_pursuit_of_silence_and_impossible_frames_has_no_gradient(dtype):
    spectra, rows = silent_and_odd(dtype)

    @jax.jit
    @jax.grad
    def gradient(arguments):
        found = TonePursuit(OBJECTIVE)(*arguments)
        return jnp.sum(found.tones.amplitude + found.tones.fundamental + found.tones.width)

    by_spectra, by_rows = gradient((spectra, rows))
    assert by_spectra.dtype == by_rows.dtype == dtype
    assert np.all(np.isfinite(by_rows))
    assert np.all(np.isfinite(by_spectra))
    np.testing.assert_array_equal(by_spectra[jnp.array([0, 2])], 0)


@pytest.mark.slow
def test_solver_options_have_no_derivative_and_start_none(x64):
    spectra, rows, _, frames = recordings()
    here, start = jnp.asarray(spectra[:2]), jax.tree.map(lambda x: x[:2], starts(frames))

    def total(options):
        tolerance, damping, amplitude = options
        begin = eqx.tree_at(lambda t: t.amplitude, start, start.amplitude * amplitude)
        solver = LevenbergMarquardt(tolerance, damping)
        return jnp.sum(
            refine(
                here, begin, jnp.asarray(rows)[start.instrument], OBJECTIVE, solver=solver
            ).tones.fundamental
        )

    slopes = jax.jit(jax.grad(total))((jnp.asarray(1e-5), jnp.asarray(1.0), jnp.asarray(1.0)))
    assert all(slope == 0 for slope in slopes)


@pytest.mark.slow
def test_gradients_under_vmap_are_a_loop(x64):
    spectra, rows, _, frames = recordings()
    start = jax.tree.map(lambda x: x[:2], starts(frames))
    several = jnp.stack([jnp.asarray(rows), jnp.asarray(rows) * 0.9])

    def total(rows):
        found = refine(jnp.asarray(spectra[:2]), start, rows[start.instrument], OBJECTIVE, solver=PRECISE)
        return jnp.sum(jnp.sin(found.tones.fundamental)) + jnp.sum(found.tones.amplitude)

    gradient = jax.jit(jax.grad(total))
    mapped = jax.jit(jax.vmap(jax.grad(total)))(several)
    for one, expected in zip(mapped, map(gradient, several), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-6, atol=1e-9)


# ---- Spikes -----------------------------------------------------------------------------------------------

BINS = 160
SHORT = LogAxis(num_bins=BINS)
CHORDS = np.array([[1.0, 0.6, 0.3], [0.4, 1.0, 0.7]])


@cache
def mixtures():
    """Random tones of two instruments on a short axis with noise, and directions of change; float64."""
    rng = np.random.default_rng(3)
    count = NUM_PROBLEMS

    def frame():
        low, first = rng.uniform(30, 60), int(rng.integers(2))
        notes = [
            Note(first, rng.uniform(0.4, 1), low),
            Note(1 - first, rng.uniform(0.4, 1), low + rng.uniform(7, 11)),
        ]
        return render_notes(notes, CHORDS, SHORT)

    signals = np.stack([frame() for _ in range(count)])
    signals += 0.01 * rng.standard_normal(signals.shape)
    changes = 0.03 * rng.standard_normal(signals.shape), rng.standard_normal(CHORDS.shape) * CHORDS
    return signals, CHORDS, (*changes, rng.standard_normal(count))


def in_order(spikes):
    """Spikes by position, the free slots last, in which position and pattern mean nothing."""
    order = jnp.argsort(jnp.where(spikes.active, spikes.position, jnp.inf))
    spikes = jax.tree.map(lambda x: x[order], spikes)
    blank = jnp.where(spikes.active, spikes.position, 0), jnp.where(spikes.active, spikes.pattern, 0)
    return eqx.tree_at(lambda s: (s.position, s.pattern), spikes, blank)


def decomposer(adjoint, proximal_steps=0):
    """Sources, dual point, measures and primal value, as a function of signals, dictionary and α."""
    # With no tolerance, the descent goes on until rounding ends it.
    lasso = BeurlingLasso(Projection(max_spikes=10, tolerance=0.0, adjoint=adjoint), proximal_steps)

    def find(signals, rows, alpha):
        patterns = Patterns.from_dictionary(rows, SHORT, oversampling=10)
        found = lasso(patterns, signals, alpha)
        spikes = jax.vmap(in_order)(found.spikes)
        measures = spikes.amplitude, spikes.position
        return found.sources, found.point, *measures, found.certificate.primal, spikes

    return find


@cache
def bounds():
    signals, rows, _ = mixtures()
    patterns = Patterns.from_dictionary(jnp.asarray(rows), SHORT)
    return 0.2 * jax.vmap(lambda b: alpha_max(patterns, b))(jnp.asarray(signals))


def arguments():
    signals, rows, (by_signals, by_rows, by_alpha) = mixtures()
    alpha = bounds()
    changes = jnp.asarray(by_signals), jnp.asarray(by_rows), alpha * jnp.asarray(by_alpha)
    return (jnp.asarray(signals), jnp.asarray(rows), alpha), changes


@cache
def forward_spikes(adjoint):
    here, changes = arguments()
    find = lambda *here: decomposer(adjoint)(*here)[:5]
    return eqx.filter_jit(lambda here, changes: eqx.filter_jvp(find, here, changes))(here, changes)


def relative(actual, expected):
    """Error of each frame relative to its size."""
    flat = lambda x: jnp.asarray(x).reshape(len(x), -1)
    return jnp.linalg.norm(flat(actual - expected), axis=1) / jnp.linalg.norm(flat(expected), axis=1)


@pytest.mark.slow
def test_measures_move_as_finite_differences_say(x64):
    here, changes = arguments()
    find = eqx.filter_jit(decomposer(Implicit()))
    ends = [find(*(x + sign * STEP * dx for x, dx in zip(here, changes, strict=True))) for sign in (1, -1)]
    first, second = (end[-1] for end in ends)
    stable = jnp.all((first.active == second.active) & (first.pattern == second.pattern), axis=1)
    assert jnp.sum(stable) >= LEAST
    _, moved = forward_spikes(Implicit())
    for actual, high, low in zip(moved, ends[0], ends[1], strict=False):
        error = relative(actual, (high - low) / (2 * STEP))
        assert jnp.max(jnp.where(stable, error, 0)) <= 1e-5


@pytest.mark.slow
def test_measures_by_unrolling(x64):
    implicit, unrolled = forward_spikes(Implicit()), forward_spikes(Unrolled(6))
    for value, same in zip(implicit[0], unrolled[0], strict=True):
        np.testing.assert_allclose(value, same, rtol=1e-12, atol=1e-12)
    for actual, expected in zip(unrolled[1], implicit[1], strict=True):
        assert jnp.max(relative(actual, expected)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("proximal_steps", [0, 3])
def test_reverse_mode_of_measures_is_the_transpose(proximal_steps, x64):
    (signals, rows, alpha), changes = arguments()
    count = 6
    short = lambda tree: (tree[0][:count], tree[1], tree[2][:count])
    here, along = short((signals, rows, alpha)), short(changes)
    find = decomposer(Implicit(), proximal_steps)

    def total(here):
        sources, point, amplitude, position, primal, _ = find(*here)
        return jnp.sum(jnp.sin(sources)) + jnp.sum(point**2) + jnp.sum(amplitude + position) + jnp.sum(primal)

    slopes = jax.jit(jax.grad(total))(here)
    _, expected = jax.jit(lambda here, along: jax.jvp(total, (here,), (along,)))(here, along)
    actual = sum(jnp.sum(slope * change) for slope, change in zip(slopes, along, strict=True))
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_curvature_of_measures_is_that_of_their_loss(x64):
    patterns = Patterns.from_dictionary(jnp.asarray(CHORDS), SHORT)
    fit, rng = SpikeFit(patterns), np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0.2, 1, 3)), jnp.array([30.3, 41.8, 47.1])
    active = jnp.array([True, True, False])
    data = jnp.asarray(rng.uniform(0, 1, BINS)), jnp.asarray(0.1), jnp.array([0, 1, 1]), jnp.ones(3), active
    expected = jax.jit(lambda x: Problem.hessian(fit, x, data))(x)
    used = jnp.tile(active, 2)
    both = used[:, None] & used
    np.testing.assert_allclose(
        jnp.where(both, fit.hessian(x, data), 0), jnp.where(both, expected, 0), atol=1e-9
    )


@pytest.mark.slow
def test_measures_of_silence_have_no_gradient(dtype):
    rows = jnp.asarray(CHORDS, dtype).at[0, 2].set(0)
    signal = jnp.asarray(mixtures()[0][0], dtype)
    signals = jnp.stack([jnp.zeros_like(signal), signal, signal.at[3].set(jnp.nan)])

    @jax.jit
    @jax.grad
    def gradient(here):
        signals, rows, alpha = here
        patterns = Patterns.from_dictionary(rows, SHORT, lift=0.5)
        found = BeurlingLasso(Projection(max_spikes=8), 0)(patterns, power(signals, 0.5), alpha)
        return jnp.sum(found.sources) + jnp.sum(found.spikes.position) + jnp.sum(found.certificate.primal)

    slopes = gradient((jnp.abs(signals), rows, jnp.asarray(0.3, dtype)))
    for slope in slopes:
        assert slope.dtype == dtype
        assert np.all(np.isfinite(slope))
    np.testing.assert_array_equal(slopes[0][jnp.array([0, 2])], 0)


@pytest.mark.slow
def test_support_moves_as_finite_differences_say(x64):
    (signals, rows, alpha), (by_signals, by_rows, _) = arguments()
    signals, by_signals = signals[:8], by_signals[:8]
    spikes = decomposer(Implicit())(signals, rows, alpha[:8])[-1]

    @jax.jit
    def fit(signals, rows):
        tones = support(Patterns.from_dictionary(rows, SHORT, oversampling=10), signals, spikes)
        return tones.amplitude, tones.fundamental, tones.active

    _, (moved, shifted, _) = jax.jit(lambda *x: jax.jvp(fit, x, (by_signals, by_rows)))(signals, rows)
    ends = [fit(signals + sign * STEP * by_signals, rows + sign * STEP * by_rows) for sign in (1, -1)]
    stable = jnp.all(ends[0][2] == ends[1][2], axis=1)
    assert jnp.sum(stable) >= 6
    for actual, high, low in zip((moved, shifted), ends[0], ends[1], strict=False):
        error = relative(actual, (high - low) / (2 * STEP))
        assert jnp.max(jnp.where(stable, error, 0)) <= 1e-4


# ---- From samples to stems --------------------------------------------------------------------------------

RATE = 6000


def separator(dtype, adjoint=Implicit()):
    """The published window's duration at a low rate, with half the bins."""
    solver = LevenbergMarquardt(1e-14 if dtype == np.float64 else 1e-5, adjoint=adjoint)
    return PursuitSeparator(
        jnp.asarray(DICTIONARY, dtype),
        share=jnp.asarray(1e-3, dtype),
        pursuit=TonePursuit(OBJECTIVE, solver=solver),
        peaks=PeakPursuit(floor=1e-2),  # a peak that comes or goes makes the stems jump
        stft=GaussianSTFT(window_std=128, hop=256),
        sample_rate=RATE,
    )


def duet(dtype, num_samples=1200):
    """Two notes that swell and fade, with partials that are not quite those of the dictionary."""
    time, rng = np.arange(num_samples) / RATE, np.random.default_rng(5)
    sound = np.zeros(num_samples)
    for row, fundamental in zip(DICTIONARY, (262.3, 415.9), strict=True):
        for number, height in enumerate(row, start=1):
            if number * fundamental < 0.45 * RATE:
                height *= rng.uniform(0.8, 1.2)
                phase = 2 * np.pi * (number * fundamental * time + rng.uniform())
                sound += height * np.sin(phase)
    # Without clicks at the ends, whose spectrum is full of faint peaks that come and go.
    return jnp.asarray(0.1 * sound * swell(num_samples), dtype)


def swell(num_samples):
    return np.sin(np.pi * (np.arange(num_samples) + 0.5) / num_samples)


@pytest.mark.slow
def test_stems_move_as_finite_differences_say(x64):
    model, samples = separator(np.float64), duet(np.float64)
    rng = np.random.default_rng(2)
    weights = jnp.stack([samples, -samples])
    # Slow modulations: what is dark between the partials stays dark, where |Z| has its kinks.
    turns = np.outer([0.7, 1.3, 2.1], np.arange(samples.size)) / samples.size + rng.uniform(size=(3, 1))
    by_samples = samples * jnp.asarray(np.sum(np.sin(2 * np.pi * turns), axis=0))
    by_rows = 0.3 * jnp.asarray(rng.standard_normal(DICTIONARY.shape)) * model.harmonics

    @jax.jit
    def total(samples, rows):
        stems = eqx.tree_at(lambda m: m.harmonics, model, rows)(samples)
        return jnp.sum(weights * stems)

    slopes = jax.jit(jax.grad(total, argnums=(0, 1)))(samples, model.harmonics)
    # Differences of fourth order: the solver's own accuracy is 1e-9, and its bounds are near.
    for slope, along, h in zip(slopes, ((by_samples, 0), (0, by_rows)), (1e-3, 1e-2), strict=True):
        change = along[0] if slope.ndim == 1 else along[1]
        at = lambda s, along=along: total(samples + s * along[0], model.harmonics + s * along[1])
        expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        np.testing.assert_allclose(jnp.sum(slope * change), expected, rtol=1e-5)


@pytest.mark.slow
def test_stems_sum_to_the_samples_and_silence_has_finite_gradients(dtype):
    model, samples = separator(dtype), duet(dtype)

    def energy(pair):
        model, samples = pair
        stems = model(samples)
        return jnp.sum(stems[0] ** 2), stems

    total = eqx.filter_jit(eqx.filter_value_and_grad(energy, has_aux=True))
    (_, stems), (by_model, by_samples) = total((model, samples))
    assert stems.dtype == by_samples.dtype == by_model.harmonics.dtype == dtype
    np.testing.assert_allclose(jnp.sum(stems, axis=0), samples, atol=1e-5 * float(jnp.max(jnp.abs(samples))))
    assert np.any(by_model.harmonics != 0)
    assert np.all(np.isfinite(by_model.harmonics))
    (_, stems), (by_model, by_samples) = total((model, jnp.zeros_like(samples)))
    np.testing.assert_array_equal(stems, 0)
    np.testing.assert_array_equal(by_model.harmonics, 0)
    assert np.all(np.isfinite(by_samples))


@pytest.mark.slow
def test_separators_run_under_vmap(x64):
    model, samples = separator(np.float64), duet(np.float64)
    batch = jnp.stack([samples, samples[::-1]])
    one = jax.jit(lambda samples: model(samples))
    several = jax.jit(jax.vmap(lambda samples: model(samples)))(batch)
    for actual, expected in zip(several, map(one, batch), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.slow
def test_the_example_of_the_readme_trains_a_dictionary(monkeypatch):
    """As it stands, but for the blind separation and the number of steps; the notes share partials."""
    time = np.arange(12_000) / 48_000
    sines = lambda row, f: sum(a * np.sin(2 * np.pi * h * f * time) for h, a in enumerate(row, start=1))
    truth = jnp.asarray(
        [sines(row, f) for row, f in zip(DICTIONARY, (262.0, 393.0), strict=True)], jnp.float32
    )
    rng = np.random.default_rng(1)
    near = np.clip(DICTIONARY * rng.uniform(0.5, 1.5, DICTIONARY.shape), 0, 1).astype(np.float32)
    blind = SimpleNamespace(dictionary=Dictionary(jnp.asarray(near)))
    monkeypatch.setattr(jaxsep, "separate", lambda *_, **__: blind)
    names = {"mixture": jnp.sum(truth, axis=0), "truth": truth}
    exec(example().replace("range(100)", "range(4)"), names)
    assert len(names["figures"]) == 4
    assert names["figures"][-1] > names["figures"][0] + 0.1
    np.testing.assert_allclose(np.max(names["trained"], axis=1), 1, rtol=1e-6)

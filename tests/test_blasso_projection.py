"""Projections and proximal maps: brute force, soft thresholding, feasibility between all grid points."""

import sys
from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from marks import DOUBLE_IS_SLOW
from problems import in_one_size

from jaxsep.blasso.lasso import BeurlingLasso
from jaxsep.blasso.patterns import Patterns
from jaxsep.blasso.projection import Projection, ProjectionOutcome
from jaxsep.blasso.spikes import Spikes, synthesise

pytestmark = pytest.mark.compiles

BINS = 40
WIDTHS = (1.6, 2.1)


def shapes():
    """A bump, and one with an echo at 0.7 times its height."""
    bump = lambda t, width: jnp.exp(-0.5 * (t / width) ** 2)
    return [lambda t: bump(t, WIDTHS[0]), lambda t: bump(t, WIDTHS[1]) + 0.7 * bump(t - 9.4, WIDTHS[1])]


def numpy_atoms(row, shifts, circle=False):
    """`ψ(k - x)`, `[shifts, bins]`, from the formulas."""
    total = np.zeros((len(shifts), BINS))
    for turn in (-1, 0, 1) if circle else (0,):
        t = np.arange(BINS) - np.asarray(shifts)[:, None] + turn * BINS
        for centre, height in ((0, 1.0), (9.4, 0.7))[: row + 1]:
            total += height * np.exp(-0.5 * ((t - centre) / WIDTHS[row]) ** 2)
    return total


@cache
def patterns_of(dtype, circle=False):
    return Patterns.from_functions(shapes(), BINS, (-17.0, 27.0), circle=circle, dtype=dtype)


def one(patterns, row):
    return eqx.tree_at(
        lambda p: (p.table, p.transforms, p.scale),
        patterns,
        tuple(x[row : row + 1] for x in (patterns.table, patterns.transforms, patterns.scale)),
    )


project = partial(in_one_size, size=12)


def signals_of(count, seed=0, dtype=np.float64):
    """Smoothed noise of random level."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, BINS + 4))
    kernel = np.array([0.2, 0.6, 1.0, 0.6, 0.2])
    smooth = np.stack([np.convolve(row, kernel, "valid") for row in noise])
    return jnp.asarray(smooth * rng.uniform(0.2, 3, (count, 1)), dtype)


def brute_force(signal, bound, rows, signed, circle):
    """Sum of the sources that minimises the Beurling LASSO, by general-purpose minimisers of SciPy.

    The LASSO on a grid, then all amplitudes and positions of its clusters together.
    """
    grid = np.arange(0, BINS if circle else BINS - 1 + 1e-9, 0.05)
    signs = (1, -1) if signed else (1,)
    spikes = [(row, sign, x) for row in rows for sign in signs for x in grid]
    atoms = np.concatenate([sign * numpy_atoms(row, grid, circle) for row in rows for sign in signs])

    # A row of small numbers turns nonnegative least squares into the LASSO, but for ½ (small · Σ a)².
    small = 1e-4
    system = np.concatenate([atoms.T, np.full((1, len(spikes)), small)])
    a, _ = scipy.optimize.nnls(system, np.append(signal, -bound / small), maxiter=100 * len(spikes))
    clusters, last = [], None
    for number in np.flatnonzero(a > 1e-6 * a.max(initial=0)):
        row, sign, x = spikes[number]
        if last is not None and last[:2] == (row, sign) and x - last[2] < 0.12:
            clusters[-1].append((x, a[number]))
        else:
            clusters.append([(x, a[number])])
            kinds = [(row, sign)] if last is None else [*kinds, (row, sign)]
        last = row, sign, x
    if not clusters:
        return np.zeros(BINS)
    x = np.array([np.average([p for p, _ in c], weights=[m for _, m in c]) for c in clusters])
    mass = np.array([sum(m for _, m in c) for c in clusters])

    def parts(position):
        return np.array(
            [s * numpy_atoms(row, [p], circle)[0] for (row, s), p in zip(kinds, position, strict=True)]
        )

    def loss(theta):
        amplitude, position = np.split(theta, 2)
        shapes, step = parts(position), 1e-5
        slopes = (parts(position + step) - parts(position - step)) / (2 * step)
        residual = amplitude @ shapes - signal
        gradient = np.concatenate([shapes @ residual + bound, amplitude * (slopes @ residual)])
        return 0.5 * residual @ residual + bound * amplitude.sum(), gradient

    low, high = (-1, BINS) if circle else (0, BINS - 1)
    limits = [(0, None)] * x.size + [(low, high)] * x.size
    theta = np.concatenate([mass, x])
    options = {"maxiter": 20_000, "maxfun": 50_000, "ftol": 0, "gtol": 1e-12, "maxcor": 50}
    for _ in range(5):  # each begins with a fresh memory
        theta = scipy.optimize.minimize(
            loss, theta, jac=True, method="L-BFGS-B", bounds=limits, options=options
        ).x
    return theta[: x.size] @ parts(theta[x.size :])


@pytest.mark.slow
@pytest.mark.parametrize("circle", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_proximal_maps_equal_brute_force(signed, circle, x64):
    patterns, signals = patterns_of(jnp.float64, circle), signals_of(2)
    projection = Projection(signed=signed, tolerance=1e-12)
    for rows in ([0], [1], [0, 1]):
        bank = patterns if len(rows) == 2 else one(patterns, rows[0])
        found = project(projection, bank, signals, 0.6)
        assert np.all(found.outcome == ProjectionOutcome.solved)
        for number, signal in enumerate(np.asarray(signals)):
            expected = brute_force(signal, 0.6, rows, signed, circle)
            scale = np.linalg.norm(signal)
            np.testing.assert_allclose(signal - found.point[number], expected, atol=1e-6 * scale)


@pytest.mark.parametrize("signed", [False, True])
@DOUBLE_IS_SLOW
def test_a_dirac_pattern_is_soft_thresholding(signed, dtype):
    hat = lambda t: jnp.maximum(1 - jnp.abs(t), 0)
    patterns = Patterns.from_functions([hat], 24, (-1.0, 1.0), oversampling=1, dtype=dtype)
    w = np.random.default_rng(0).standard_normal((5, 24)).astype(dtype)
    found = Projection(signed=signed, num_candidates=8)(patterns, jnp.asarray(w), 0.4)
    assert np.all(found.outcome == ProjectionOutcome.solved)
    expected = np.maximum(w - 0.4, 0) - (np.maximum(-w - 0.4, 0) if signed else 0)
    prox = np.asarray(jax.vmap(lambda s: synthesise(patterns, s)[0])(found.spikes))
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(prox, expected, atol=16 * eps)
    # The point is scaled by the maximum of a correlation that comes from FFTs.
    np.testing.assert_allclose(w - found.point, expected, atol=256 * eps)
    assert 0 < np.count_nonzero(prox) < prox.size


def correlations(points, row, circle=False, seed=1, count=10_000):
    """Largest correlation of each point with the pattern at random shifts, which no grid contains."""
    shifts = np.random.default_rng(seed + row).uniform(0, BINS if circle else BINS - 1, count)
    values = numpy_atoms(row, shifts, circle) @ np.asarray(points).T
    return values.max(axis=0), values.min(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize(("signed", "circle", "count"), [(False, False, 1000), (True, True, 100)])
def test_projections_are_feasible_at_all_shifts(signed, circle, count, x64):
    patterns, signals = patterns_of(jnp.float64, circle), signals_of(count, seed=2)
    bound = jnp.asarray(np.random.default_rng(3).uniform(0.1, 1.5, count))
    # Even a rough solution must keep to the bound everywhere.
    for tolerance in (1e-9, 1e-2):
        found = project(Projection(signed=signed, tolerance=jnp.asarray(tolerance)), patterns, signals, bound)
        before = np.max([correlations(signals, row, circle)[0] for row in (0, 1)], axis=0)
        assert np.mean(before > 1.01 * bound) > 0.9  # most signals need the projection
        for row in (0, 1):
            largest, smallest = correlations(found.point, row, circle)
            assert np.max(largest / bound) <= 1 + 1e-9
            if signed:
                assert np.min(smallest / bound) >= -1 - 1e-9
        if tolerance < 1e-3:
            assert np.all(found.certificate.relative_gap <= 1e-6)


@pytest.mark.slow
def test_projecting_again_changes_nothing(x64):
    patterns, signals = patterns_of(jnp.float64), signals_of(8, seed=4)
    once = project(Projection(), patterns, signals, 0.5)
    twice = project(Projection(), patterns, once.point, 0.5)
    assert np.all((twice.outcome == ProjectionOutcome.zero) | (twice.outcome == ProjectionOutcome.solved))
    np.testing.assert_allclose(twice.point, once.point, atol=1e-6)


@pytest.mark.slow
def test_projections_do_not_expand(x64):
    patterns, signals = patterns_of(jnp.float64), signals_of(40, seed=5)
    p = np.asarray(project(Projection(), patterns, signals, 0.5).point)
    before = np.linalg.norm(signals[:20] - signals[20:], axis=1)
    assert np.all(np.linalg.norm(p[:20] - p[20:], axis=1) <= before * (1 + 1e-6))


def test_multipliers_are_where_the_bound_is_attained(x64):
    patterns, signals = patterns_of(jnp.float64), signals_of(10, seed=6)
    found = project(Projection(tolerance=1e-12), patterns, signals, 0.5)
    for number in range(10):
        spikes = jax.tree.map(lambda x, n=number: np.asarray(x[n]), found.spikes)
        for row, x in zip(spikes.pattern[spikes.active], spikes.position[spikes.active], strict=True):
            correlation = (numpy_atoms(row, [x]) @ np.asarray(found.point[number]))[0]
            assert correlation == pytest.approx(0.5, rel=1e-5)
        assert np.all(spikes.amplitude[spikes.active] > 0)
        assert np.all(spikes.amplitude[~spikes.active] == 0)


# ---- Batches, precision, outcomes -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_batch_is_a_loop(dtype):
    patterns, signals = patterns_of(jnp.dtype(dtype)), signals_of(11, dtype=dtype)
    bound = jnp.asarray(np.linspace(0.2, 1, 11), dtype)
    found = project(Projection(), patterns, signals, bound)
    assert found.point.dtype == found.spikes.amplitude.dtype == found.certificate.gap.dtype == dtype
    for number in range(0, 11, 5):
        alone = Projection()(patterns, signals[number : number + 1], bound[number])
        # Both are as far from the projection as the root of twice their gaps at most.
        gaps = np.array([found.certificate.gap[number], alone.certificate.gap[0]])
        apart = np.linalg.norm(found.point[number] - alone.point[0])
        assert apart <= np.sum(np.sqrt(2 * np.maximum(gaps, 0))) + 1e-6
        assert float(found.certificate.primal[number]) == pytest.approx(
            float(alone.certificate.primal[0]), rel=1e-4
        )


@pytest.mark.slow
def test_jit_is_eager(x64):
    patterns, signals = patterns_of(jnp.float64), signals_of(1, seed=7)
    eager, jitted = Projection()(patterns, signals, 0.7), jax.jit(Projection())(patterns, signals, 0.7)
    np.testing.assert_allclose(eager.point, jitted.point, atol=1e-7)
    np.testing.assert_array_equal(eager.outcome._value, jitted.outcome._value)


@pytest.mark.slow
def test_a_warm_start_takes_fewer_steps(x64):
    patterns, signals = patterns_of(jnp.float64), signals_of(10, seed=8)
    cold = project(Projection(), patterns, signals, 0.3)
    warm = project(Projection(), patterns, 1.01 * signals, 0.3, cold.spikes)
    again = project(Projection(), patterns, 1.01 * signals, 0.3)
    assert np.sum(warm.steps) < 0.8 * np.sum(again.steps)
    np.testing.assert_allclose(warm.point, again.point, atol=1e-5)


@pytest.mark.slow
def test_impossible_signals_say_so_and_leave_the_others(dtype):
    patterns, signals = patterns_of(jnp.dtype(dtype)), signals_of(5, seed=9, dtype=dtype)
    broken = signals.at[1, 3].set(jnp.nan).at[2, 0].set(jnp.inf)
    bound = jnp.array([0.5, 0.5, 0.5, -0.1, 0.5], dtype)
    found, expected = (project(Projection(), patterns, s, b) for s, b in ((broken, bound), (signals, 0.5)))
    kinds = ProjectionOutcome
    for number, outcome in enumerate(
        [kinds.solved, kinds.invalid_signal, kinds.invalid_signal, kinds.invalid_bound]
    ):
        assert (found.outcome == outcome)[number]
    for leaf in jax.tree.leaves(eqx.filter(found, eqx.is_inexact_array)):
        assert np.all(np.isfinite(leaf))
    np.testing.assert_array_equal(found.point[1:4], 0)
    for good in (0, 4):
        np.testing.assert_array_equal(found.point[good], expected.point[good])
    assert "NaN" in kinds[kinds.invalid_signal]


@pytest.mark.slow
def test_other_outcomes(x64):
    patterns, signals = patterns_of(jnp.float64), signals_of(1, seed=10)

    def outcome(bound=0.3, patterns=patterns, **options):
        found = project(Projection(**options), patterns, signals, bound)
        assert np.all(np.isfinite(found.point))
        return found.outcome

    kinds = ProjectionOutcome
    assert outcome() == kinds.solved
    assert outcome(100.0) == kinds.zero
    assert outcome(max_spikes=2) == kinds.full
    assert outcome(max_steps=1) == kinds.steps_used
    assert outcome(tolerance=-1.0) == kinds.stalled
    assert outcome(float("nan")) == kinds.invalid_bound
    silent = eqx.tree_at(lambda p: p.scale, patterns, jnp.array([1.0, 0.0]))
    assert outcome(patterns=silent) == kinds.invalid_pattern


@DOUBLE_IS_SLOW
def test_silence_needs_no_spike(dtype):
    found = project(Projection(), patterns_of(jnp.dtype(dtype)), jnp.zeros((1, BINS), dtype), 0.1)
    assert found.outcome == ProjectionOutcome.zero
    assert not np.any(found.spikes.active)
    assert found.certificate.relative_gap[0] == 0


def test_impossible_arguments(x64):
    patterns = patterns_of(jnp.float64)
    with pytest.raises(ValueError, match="signals: expected 40 bins as the patterns, got 41"):
        Projection()(patterns, jnp.ones((1, 41)), 0.1)
    with pytest.raises(ValueError, match="signals: expected at least 1 frame, got 0"):
        Projection()(patterns, jnp.ones((0, 40)), 0.1)
    for name in ("max_spikes", "num_candidates", "num_slides", "max_steps"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
            Projection(**{name: 0})


def test_sources_are_sums_of_shifted_patterns(x64):
    spikes = Spikes(
        jnp.array([0.5, 2.0, 7.0]),
        jnp.array([3.3, 20.9, 8.0]),
        jnp.array([1, 0, 0], jnp.int32),
        jnp.array([1.0, -1.0, 1.0]),
        jnp.array([True, True, False]),
    )
    expected = np.stack([-2 * numpy_atoms(0, [20.9])[0], 0.5 * numpy_atoms(1, [3.3])[0]])
    np.testing.assert_allclose(synthesise(patterns_of(jnp.float64), spikes), expected, atol=1e-10)


@pytest.mark.parametrize(
    "method", [Projection(max_spikes=4), BeurlingLasso(Projection(max_spikes=4), proximal_steps=0)]
)
def test_another_bound_needs_no_other_program(method, monkeypatch):
    traced, module = [], sys.modules[type(method).__module__]
    check = module.check_input
    monkeypatch.setattr(module, "check_input", lambda *given: traced.append(1) or check(*given))
    bump = lambda distance: jnp.exp(-0.5 * (distance / 2) ** 2)
    patterns = Patterns.from_functions([bump], num_bins=45, support=(-12.0, 12.0))
    found = [method(patterns, bump(jnp.arange(45.0) - 20.25)[None], bound) for bound in (0.5, 0.25)]
    assert len(traced) == 1
    assert np.all(found[0].spikes.amplitude.sum() < found[1].spikes.amplitude.sum())

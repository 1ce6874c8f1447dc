"""The Beurling LASSO: certificates, a fine-grid LASSO of another package, recovered spikes, bad input."""

from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from problems import DICTIONARY, PROBLEMS, in_one_size

from jaxsep.blasso.certificate import alpha_max
from jaxsep.blasso.lasso import BeurlingLasso
from jaxsep.blasso.patterns import Patterns
from jaxsep.blasso.projection import Projection, ProjectionOutcome
from jaxsep.blasso.spikes import Spikes, synthesise
from jaxsep.blasso.support import spikes_as_tones, support

pytestmark = pytest.mark.compiles

BINS = 128


def shapes():
    """Two patterns that overlap wherever they lie: a narrow chord and a wide bump with an overtone."""
    bump = lambda t, width: jnp.exp(-0.5 * (t / width) ** 2)
    return [
        lambda t: bump(t, 1.9) + 0.6 * bump(t - 11.3, 1.9) + 0.4 * bump(t - 18.2, 1.9),
        lambda t: bump(t, 3.1) + 0.8 * bump(t - 16.4, 3.1),
    ]


@cache
def patterns_of(dtype):
    return Patterns.from_functions(shapes(), BINS, (-26.0, 44.0), dtype=dtype)


@cache
def mixtures(dtype):
    """Frames with 1 to 6 spikes of each pattern, and the spikes."""
    rng, frames = np.random.default_rng(0), []
    for count in range(1, 7):
        position = np.concatenate([np.sort(rng.uniform(5, 120, count)) for _ in (0, 1)])
        row = np.repeat([0, 1], count)
        blank = np.zeros(12 - 2 * count)
        fill = lambda x, blank=blank: np.concatenate([x, blank])
        amplitude = fill(rng.uniform(0.3, 1, 2 * count))
        frames.append((amplitude, fill(position), fill(row).astype(np.int32), amplitude > 0))
    amplitude, position, row, active = (np.stack(x) for x in zip(*frames, strict=True))
    spikes = Spikes(
        jnp.asarray(amplitude, dtype),
        jnp.asarray(position, dtype),
        jnp.asarray(row),
        jnp.ones(amplitude.shape, dtype),
        jnp.asarray(active),
    )
    patterns = patterns_of(dtype)
    return jax.vmap(lambda s: synthesise(patterns, s).sum(axis=0))(spikes), spikes


decompose = partial(in_one_size, size=8)


@eqx.filter_jit
def largest_alpha(patterns, signals, *, signed=False):
    return jax.vmap(lambda b: alpha_max(patterns, b, signed=signed))(signals)


@cache
def solved(dtype, proximal_steps, fraction=0.1):
    signals, _ = mixtures(dtype)
    lasso = BeurlingLasso(Projection(max_spikes=24), proximal_steps)
    patterns = patterns_of(dtype)
    alpha = fraction * largest_alpha(patterns, signals)
    return decompose(lasso, patterns, signals, alpha), alpha


# ---- Certificates -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("proximal_steps", [0, 400])
def test_gaps_are_closed(proximal_steps, dtype):
    found, alpha = solved(jnp.dtype(dtype), proximal_steps)
    signals, _ = mixtures(jnp.dtype(dtype))
    assert found.sources.dtype == found.certificate.gap.dtype == dtype
    assert np.all(found.outcome == ProjectionOutcome.solved)
    assert np.all(found.certificate.relative_gap <= (1e-6 if dtype == np.float64 else 1e-3))
    # Primal and dual value from their definitions.
    residual = signals - found.sources.sum(axis=1)
    mass = found.spikes.amplitude.sum(axis=1)
    primal = 0.5 * np.sum(residual**2, axis=1) + alpha * mass
    point = np.asarray(found.point, np.float64)
    dual = np.sum(point * signals, axis=1) - 0.5 * np.sum(point**2, axis=1)
    rounding = 1e-10 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(found.certificate.primal, primal, rtol=rounding)
    np.testing.assert_allclose(found.certificate.dual, dual, rtol=rounding)
    # The dual point is feasible at shifts that are on no grid.
    shifts = jnp.asarray(np.random.default_rng(1).uniform(0, BINS - 1, 2000), dtype)
    for row in (0, 1):
        atoms = patterns_of(jnp.dtype(dtype)).atoms(shifts, jnp.full(2000, row, jnp.int32))[0]
        excess = np.max(np.asarray(atoms) @ np.asarray(found.point).T / alpha) - 1
        assert excess <= (1e-9 if dtype == np.float64 else 1e-4)


@pytest.mark.slow
def test_the_proximal_gradient_and_one_projection_agree(x64):
    direct, iterated = solved(jnp.dtype("float64"), 0)[0], solved(jnp.dtype("float64"), 400)[0]
    assert np.all(iterated.proximal_steps < 400)  # it certified itself
    assert np.all(iterated.exchanges <= 1)
    assert np.all(direct.proximal_steps == 0)
    np.testing.assert_allclose(iterated.certificate.primal, direct.certificate.primal, rtol=1e-8)
    scale = np.max(np.abs(direct.sources))
    np.testing.assert_allclose(iterated.sources, direct.sources, atol=1e-4 * scale)


@pytest.mark.slow
def test_a_few_proximal_steps_are_finished_by_the_projection(x64):
    few, direct = solved(jnp.dtype("float64"), 3)[0], solved(jnp.dtype("float64"), 0)[0]
    assert np.all(few.proximal_steps == 3)
    assert np.all(few.outcome == ProjectionOutcome.solved)
    np.testing.assert_allclose(few.certificate.primal, direct.certificate.primal, rtol=1e-8)


@pytest.mark.slow
def test_the_smallest_alpha_without_spikes(x64):
    patterns, (signals, _) = patterns_of(jnp.dtype("float64")), mixtures(jnp.dtype("float64"))
    limit = largest_alpha(patterns, signals)
    lasso = BeurlingLasso(Projection(max_spikes=24), proximal_steps=0)
    above, below = (decompose(lasso, patterns, signals, factor * limit) for factor in (1.0001, 0.999))
    assert np.all(above.outcome == ProjectionOutcome.zero)
    assert np.all(above.sources == 0)
    assert np.all(below.spikes.active.sum(axis=1) >= 1)
    negative = largest_alpha(patterns, -signals)
    both = largest_alpha(patterns, signals, signed=True)
    np.testing.assert_allclose(both, np.maximum(limit, negative), rtol=1e-12)
    assert np.all(largest_alpha(patterns, -jnp.abs(signals)) < 1e-13)


def grid_lasso(patterns, signal, alpha, spacing):
    """Optimal value of the LASSO on a grid of shifts, by coordinate descent of scikit-learn."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    shifts = jnp.arange(0, BINS - 1 + 1e-9, spacing)
    atoms = np.concatenate(
        [patterns.atoms(shifts, jnp.full(shifts.size, row, jnp.int32))[0] for row in (0, 1)]
    )
    solver = linear_model.Lasso(
        alpha=float(alpha) / BINS, positive=True, fit_intercept=False, max_iter=200_000, tol=1e-10
    )
    a = solver.fit(np.asfortranarray(atoms.T), np.asarray(signal)).coef_
    residual = signal - a @ atoms
    return 0.5 * residual @ residual + float(alpha) * a.sum()


@pytest.mark.slow
def test_a_grid_approaches_the_continuum_with_the_square_of_its_spacing(x64):
    patterns, (signals, _) = patterns_of(jnp.dtype("float64")), mixtures(jnp.dtype("float64"))
    found, alpha = solved(jnp.dtype("float64"), 0, 0.3)
    spacings = np.array([1, 1 / 2, 1 / 4, 1 / 8])
    excess = []
    for frame in (1, 2, 4):
        optimum = float(found.certificate.dual[frame])
        values = [grid_lasso(patterns, signals[frame], alpha[frame], spacing) for spacing in spacings]
        excess.append(np.array(values) / optimum - 1)
        assert min(excess[-1]) > -1e-9  # no grid does better
    mean = np.mean(excess, axis=0)
    rate = np.polyfit(np.log(spacings), np.log(mean), 1)[0]
    assert 1.5 < rate < 2.5
    assert mean[-1] < 1e-3


# ---- Spikes -----------------------------------------------------------------------------------------------


def separated_spikes():
    """So far apart that the patterns do not overlap."""
    return Spikes(
        jnp.array([0.8, 0.5, 1.0, 0.6]),
        jnp.array([8.37, 73.62, 40.81, 104.14]),
        jnp.array([0, 0, 1, 1], jnp.int32),
        jnp.ones(4),
        jnp.ones(4, bool),
    )


@pytest.mark.slow
def test_well_separated_spikes_are_recovered_as_alpha_vanishes(x64):
    patterns, truth = patterns_of(jnp.dtype("float64")), separated_spikes()
    signal = synthesise(patterns, truth).sum(axis=0)[None]
    fractions = (1e-3, 1e-5)
    for fraction in fractions:
        alpha = fraction * largest_alpha(patterns, signal)
        found = decompose(BeurlingLasso(Projection(max_spikes=24), 0), patterns, signal, alpha)
        assert found.outcome == ProjectionOutcome.solved
        spikes = jax.tree.map(lambda x: np.asarray(x[0]), found.spikes)
        # Where the certificate touches the bound elsewhere, there are spikes whose mass vanishes with α.
        true = _loud(spikes.amplitude, spikes.position, spikes.pattern)
        np.testing.assert_array_equal(spikes.pattern[true], truth.pattern)
        np.testing.assert_allclose(spikes.position[true], truth.position, atol=min(0.05, 5 * fraction))
        np.testing.assert_allclose(spikes.amplitude[true], truth.amplitude, atol=10 * fraction)
        assert np.sum(spikes.amplitude) - np.sum(spikes.amplitude[true]) < 10 * fraction
    tones = jax.tree.map(lambda x: np.asarray(x[0]), jax.jit(support)(patterns, signal, found.spikes))
    true = _loud(tones.amplitude, tones.fundamental, tones.instrument)
    np.testing.assert_array_equal(tones.instrument[true], truth.pattern)
    np.testing.assert_allclose(tones.fundamental[true], truth.position, atol=1e-5)
    np.testing.assert_allclose(tones.amplitude[true], truth.amplitude, rtol=1e-5)


def _loud(amplitude, position, pattern):
    """Slots of all but tiny spikes, by pattern and position."""
    loud = np.flatnonzero(amplitude > 0.02 * amplitude.max())
    return loud[np.lexsort((position[loud], pattern[loud]))]


@pytest.mark.slow
def test_without_the_penalty_amplitudes_are_those_of_nonnegative_least_squares(x64):
    patterns, (signals, _) = patterns_of(jnp.dtype("float64")), mixtures(jnp.dtype("float64"))
    found, _ = solved(jnp.dtype("float64"), 0)
    tones = jax.jit(lambda b, s: support(patterns, b, s))(signals, found.spikes)
    biased = jax.vmap(lambda s: spikes_as_tones(patterns, s))(found.spikes)
    for frame in range(len(signals)):
        active = np.asarray(tones.active[frame])
        atoms = patterns.atoms(tones.fundamental[frame], tones.instrument[frame])[0][active]
        residual = signals[frame] - tones.amplitude[frame][active] @ atoms
        _, least = scipy.optimize.nnls(np.asarray(atoms).T, np.asarray(signals[frame]))
        assert np.linalg.norm(residual) <= least + 1e-3 * np.linalg.norm(signals[frame])
        before = signals[frame] - found.sources[frame].sum(axis=0)
        assert np.linalg.norm(residual) < 0.5 * np.linalg.norm(before)
        assert biased.amplitude[frame].sum() < tones.amplitude[frame].sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if p.nominal and p.exact and p.name != "silent"], ids=lambda p: p.name
)
def test_problems_of_all_methods(problem, x64):
    """Spectra add up exactly: a vanishing penalty finds the notes (P1's tone model, q = 1)."""
    patterns = Patterns.from_dictionary(jnp.asarray(DICTIONARY, jnp.float64), problem.axis)
    spectra = jnp.asarray(problem.spectra)
    alpha = 1e-3 * largest_alpha(patterns, spectra)
    found = decompose(BeurlingLasso(Projection(max_spikes=24), 0), patterns, spectra, alpha)
    assert np.all(found.certificate.relative_gap <= 1e-6)
    tones = jax.jit(lambda b, s: support(patterns, b, s))(spectra, found.spikes)
    for frame, notes in enumerate(problem.frames):
        # Bins near the edges of the axis cut patterns, and rounding may leave specks there.
        loud = np.asarray(tones.amplitude[frame] > 1e-3 * tones.amplitude[frame].max())
        found_notes = sorted(
            zip(
                *(np.asarray(x[frame][loud]) for x in (tones.instrument, tones.fundamental, tones.amplitude)),
                strict=True,
            )
        )
        wanted = sorted((n.instrument, n.position, n.amplitude) for n in notes)
        np.testing.assert_allclose(np.array(found_notes), np.array(wanted), rtol=5e-3, atol=0)


# ---- Batches, starts, errors ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_batch_is_a_loop_and_jit_is_eager(x64):
    patterns, (signals, _) = patterns_of(jnp.dtype("float64")), mixtures(jnp.dtype("float64"))
    found, alpha = solved(jnp.dtype("float64"), 3)
    lasso = BeurlingLasso(Projection(max_spikes=24), 3)
    for frame in (0, 3):
        alone = lasso(patterns, signals[frame : frame + 1], alpha[frame])
        np.testing.assert_allclose(alone.sources[0], found.sources[frame], atol=1e-6)
    jitted = jax.jit(lasso)(patterns, signals[:1], alpha[0])
    np.testing.assert_allclose(jitted.sources[0], found.sources[0], atol=1e-6)


@pytest.mark.slow
def test_measures_of_a_similar_frame_are_a_good_start(x64):
    patterns, (signals, _) = patterns_of(jnp.dtype("float64")), mixtures(jnp.dtype("float64"))
    found, alpha = solved(jnp.dtype("float64"), 0)
    lasso = lambda steps: BeurlingLasso(Projection(max_spikes=24), steps)
    for steps, count in ((0, lambda r: r.exchanges), (400, lambda r: r.proximal_steps)):
        cold = decompose(lasso(steps), patterns, signals, alpha)
        warm = decompose(lasso(steps), patterns, signals, alpha, found.spikes)
        assert np.sum(count(warm)) < 0.7 * np.sum(count(cold))
        np.testing.assert_allclose(warm.certificate.primal, cold.certificate.primal, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 3])
def test_impossible_frames_say_so_and_leave_the_others(steps, dtype):
    patterns, (signals, _) = patterns_of(jnp.dtype(dtype)), mixtures(jnp.dtype(dtype))
    broken = signals.at[1, 3].set(jnp.nan).at[2, 0].set(-jnp.inf)
    alpha = jnp.array([0.3, 0.3, 0.3, 0.0, 0.3, 0.3], dtype)
    lasso = BeurlingLasso(Projection(max_spikes=24), steps)
    found, expected = decompose(lasso, patterns, broken, alpha), decompose(lasso, patterns, signals, 0.3)
    kinds = ProjectionOutcome
    assert np.flatnonzero(found.outcome == kinds.invalid_signal).tolist() == [1, 2]
    assert np.flatnonzero(found.outcome == kinds.invalid_bound).tolist() == [3]
    for leaf in jax.tree.leaves(eqx.filter(found, eqx.is_inexact_array)):
        assert np.all(np.isfinite(leaf))
    np.testing.assert_array_equal(found.sources[1:4], 0)
    for good in (0, 4, 5):
        np.testing.assert_array_equal(found.sources[good], expected.sources[good])


@pytest.mark.slow
def test_a_zero_instrument_says_so(dtype):
    silent = Patterns.from_dictionary(jnp.asarray(DICTIONARY * [[1], [0]], dtype), PROBLEMS[0].axis)
    assert silent.scale[1] == 0
    patterns = eqx.tree_at(lambda p: p.scale, patterns_of(jnp.dtype(dtype)), silent.scale)
    signals, _ = mixtures(jnp.dtype(dtype))
    found = decompose(BeurlingLasso(Projection(max_spikes=24), 3), patterns, signals, 0.1)
    assert np.all(found.outcome == ProjectionOutcome.invalid_pattern)
    assert np.all(found.sources == 0)


def test_impossible_arguments(x64):
    patterns = patterns_of(jnp.dtype("float64"))
    with pytest.raises(ValueError, match="signals: expected 128 bins as the patterns, got 127"):
        BeurlingLasso()(patterns, jnp.ones((1, 127)), 0.1)
    with pytest.raises(ValueError, match="proximal_steps: expected at least 0, got -1"):
        BeurlingLasso(proximal_steps=-1)

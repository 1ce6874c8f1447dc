"""The path over α, the choice on it, and spikes without bias and with a sign."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsep.blasso.lasso import BeurlingLasso
from jaxsep.blasso.path import lasso_path
from jaxsep.blasso.patterns import Patterns
from jaxsep.blasso.projection import Projection, ProjectionOutcome
from jaxsep.blasso.spikes import Spikes, synthesise
from jaxsep.blasso.support import debias

pytestmark = pytest.mark.compiles

BINS, NOISE = 120, 0.03
FRACTIONS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
LASSO = BeurlingLasso(Projection(signed=True, max_spikes=16), proximal_steps=0)
#: Signed spikes of two waveforms: mass, shift and row.
TRUTH = [(1.0, 20.3, 0), (-0.6, 55.8, 1), (0.8, 88.4, 0), (-0.5, 101.2, 1)]


def wavelet(width):
    return lambda t: (1 - (t / width) ** 2) * jnp.exp(-0.5 * (t / width) ** 2)


def patterns_of(dtype):
    return Patterns.from_functions([wavelet(2.5), wavelet(5.0)], BINS, (-45.0, 45.0), dtype=dtype)


def measures(dtype):
    mass, position, row = (np.array(x) for x in zip(*TRUTH, strict=True))
    return Spikes(
        jnp.asarray(np.abs(mass), dtype), jnp.asarray(position, dtype), jnp.asarray(row, jnp.int32),
        jnp.asarray(np.sign(mass), dtype), jnp.ones(4, bool),
    )  # fmt: skip


def signals_of(dtype, count=3):
    clean = np.asarray(synthesise(patterns_of(dtype), measures(dtype)).sum(axis=0))
    noise = np.random.default_rng(0).standard_normal((count, BINS))
    return jnp.asarray(clean + NOISE * noise, dtype)


def matches(spikes, frame):
    """Whether the active spikes of a frame are the true ones, in place, pattern and mass."""
    mine = jax.tree.map(lambda x: np.asarray(x[frame]), spikes)
    found = sorted(
        x for *x, on in zip(mine.mass, mine.position, mine.pattern, mine.active, strict=True) if on
    )
    return len(found) == len(TRUTH) and np.allclose(found, sorted(TRUTH), atol=0.25)


@pytest.mark.slow
def test_every_value_is_the_decomposition_for_it(dtype):
    patterns, signals = patterns_of(dtype), signals_of(dtype)
    path = lasso_path(patterns, signals, jnp.array(FRACTIONS), LASSO)
    assert path.alpha.shape == path.energy.shape == (6, 3)
    assert path.alpha.dtype == path.energy.dtype == dtype
    assert np.all((path.found.outcome == ProjectionOutcome.zero)[0])
    # In single precision a gap may end just above the tolerance.
    assert np.all(path.found.certificate.relative_gap <= (1e-9 if dtype == np.float64 else 1e-3))
    alone = eqx.filter_jit(LASSO)(patterns, signals, path.alpha[3])
    tolerance = 1e-3 if dtype == np.float32 else 1e-8
    np.testing.assert_allclose(path.found.certificate.primal[3], alone.certificate.primal, rtol=tolerance)
    np.testing.assert_allclose(path.found.sources[3], alone.sources, atol=20 * tolerance)
    for value in (2, 5):
        model = jax.vmap(lambda s: synthesise(patterns, s).sum(axis=0))(
            jax.tree.map(lambda x, value=value: x[value], path.debiased)
        )
        energy = np.sum(np.square(np.asarray(signals - model, np.float64)), axis=1)
        np.testing.assert_allclose(path.energy[value], energy, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [None, NOISE])
def test_the_chosen_value_has_the_true_spikes(noise, x64):
    patterns, signals = patterns_of(jnp.float64), signals_of(jnp.float64, 8)
    path = lasso_path(patterns, signals, jnp.array(FRACTIONS), LASSO, noise=noise)
    chosen = path.at(path.best())
    np.testing.assert_array_equal(chosen.criterion[0], path.criterion.min(axis=0))
    assert sum(matches(jax.tree.map(lambda x: x[0], chosen.debiased), frame) for frame in range(8)) >= 7
    # The criterion is its formula.
    price, count = np.log(BINS) + 2 * np.log(BINS * 4), np.asarray(path.debiased.active.sum(axis=2))
    misfit = path.energy / NOISE**2 if noise else BINS * np.log(path.energy / BINS)
    np.testing.assert_allclose(path.criterion, misfit + price * count, rtol=1e-9)
    # What was left out for a small α is what noise had.
    assert np.all(count[-1] < path.found.spikes.active[-1].sum(axis=1))


@pytest.mark.slow
def test_noise_alone_gets_no_spikes(x64):
    noise = jnp.asarray(np.random.default_rng(1).standard_normal((20, BINS)))
    for known in (None, 1.0):
        path = lasso_path(patterns_of(jnp.float64), noise, jnp.array(FRACTIONS[:4]), LASSO, noise=known)
        assert not np.any(path.at(path.best()).debiased.active)
    assert np.all(path.found.spikes.active[3].sum(axis=1) > 0)


@pytest.mark.slow
def test_silent_and_impossible_frames_say_so_and_leave_the_others(dtype):
    signals = signals_of(dtype).at[0].set(0).at[1, 5].set(jnp.nan)
    path = lasso_path(patterns_of(dtype), signals, jnp.array(FRACTIONS), LASSO)
    assert np.all((path.found.outcome == ProjectionOutcome.invalid_bound)[:, 0])
    assert np.all((path.found.outcome == ProjectionOutcome.invalid_signal)[:, 1])
    for leaf in jax.tree.leaves(eqx.filter(path, eqx.is_inexact_array)):
        assert np.all(np.isfinite(leaf))
    assert np.all(np.isfinite(path.criterion))
    assert not np.any(path.debiased.active[:, :2])
    np.testing.assert_array_equal(path.best()[:2], 0)
    assert matches(jax.tree.map(lambda x: x[0], path.at(path.best()).debiased), 2)


@pytest.mark.slow
def test_debiased_spikes_keep_their_signs_and_are_least_squares(x64):
    patterns, signals = patterns_of(jnp.float64), signals_of(jnp.float64)
    found = eqx.filter_jit(LASSO)(patterns, signals, 0.5).spikes
    fitted = debias(patterns, signals, found)
    for frame in range(3):
        active = np.asarray(fitted.active[frame])
        assert np.any(np.asarray(fitted.mass[frame]) < 0)
        atoms = np.asarray(patterns.atoms(fitted.position[frame], fitted.pattern[frame])[0])[active]
        least = np.linalg.lstsq(atoms.T, np.asarray(signals[frame]), rcond=None)[0]
        np.testing.assert_allclose(fitted.mass[frame][active], least, rtol=1e-5)


@pytest.mark.slow
def test_gradients_arrive_at_the_signal(x64):
    patterns, signals = patterns_of(jnp.float64), signals_of(jnp.float64, 1)
    mass = lambda s: jnp.sum(lasso_path(patterns, s, jnp.array([0.5, 0.2]), LASSO).debiased.mass[1])
    slope = jax.grad(mass)(signals)
    direction = jnp.asarray(np.random.default_rng(2).standard_normal((1, BINS)))
    step = 1e-5
    difference = (mass(signals + step * direction) - mass(signals - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(slope * direction), difference, rtol=1e-4)

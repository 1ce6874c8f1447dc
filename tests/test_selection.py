"""Selection of the next tone: correlation by FFT against inner products with shifted patterns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import AXIS, DICTIONARY, Note, render_notes

from benchmarks import scipy_baseline as baseline
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.selection import PatternBank, select
from jaxsep.signal.axes import LogAxis

SMALL = LogAxis(num_bins=80, f_min=100.0, f_max=1600.0)


def shifted_patterns(dictionary, axis, lift):
    """Lifted unit tones at every position `[instruments, bins, bins]`, and the norm of a whole one."""
    wide = LogAxis(num_bins=4 * axis.num_bins, f_min=axis.f_min, f_max=axis.f_min * _octaves(axis) ** 4)
    start = axis.num_bins  # room on both sides for a whole pattern
    whole = [render_notes([Note(i, 1.0, start)], dictionary, wide) ** lift for i in range(len(dictionary))]
    bins = np.arange(axis.num_bins)
    shifted = np.stack([[row[start - position + bins] for position in bins] for row in whole])
    return shifted, np.linalg.norm(whole, axis=1)


def _octaves(axis):
    return axis.f_max / axis.f_min


@pytest.mark.parametrize(
    ("axis", "num_harmonics", "lift"), [(SMALL, 3, 0.5), (SMALL, 9, 1.0), (AXIS, 8, 0.5)]
)
def test_correlation_is_the_inner_product_with_every_shift(axis, num_harmonics, lift, dtype):
    rng = np.random.default_rng(0)
    dictionary = rng.uniform(0.1, 1, (3, num_harmonics))
    residual = rng.standard_normal(axis.num_bins)
    shifted, norms = shifted_patterns(dictionary, axis, lift)
    expected = shifted @ residual / norms[:, None]

    @jax.jit
    def correlate(dictionary, residual):
        bank = PatternBank.build(dictionary, LiftedLoss(axis, lift=lift))
        return bank.correlate(residual), bank.inverse_norms

    actual, inverse_norms = correlate(jnp.asarray(dictionary, dtype), jnp.asarray(residual, dtype))
    assert actual.dtype == inverse_norms.dtype == dtype
    # The root of a Gaussian that ends at 9.4 standard deviations has lost 1e-10.
    tolerance = 1e-8 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max())
    np.testing.assert_allclose(inverse_norms, 1 / norms, rtol=tolerance)


@partial(jax.jit, static_argnums=(2, 3))
def best(dictionary, residual, axis=AXIS, lift=0.5):
    """The next tone, and the bank it was taken from."""
    bank = PatternBank.build(dictionary, LiftedLoss(axis, lift=lift))
    return *select(bank, residual, lift), bank


@pytest.mark.parametrize("lift", [0.5, 1.0])
def test_a_tone_of_nominal_shape_is_selected_exactly(lift, dtype):
    for instrument, level in ((0, 1.0), (1, 3e-3)):
        residual = jnp.asarray(render_notes([Note(instrument, level, 203.0)]) ** lift, dtype)
        amplitude, position, found, _ = best(jnp.asarray(DICTIONARY, dtype), residual, AXIS, lift)
        assert (int(found), float(position)) == (instrument, 203)
        assert amplitude.dtype == position.dtype == dtype
        np.testing.assert_allclose(amplitude, level, rtol=1e-8 if dtype == np.float64 else 1e-4)


def test_amplitude_is_that_of_the_best_fit_to_the_residual(x64):
    """`(⟨r, ψ⟩ / ‖ψ‖²)^(1/q)` for the pattern that it names, the same as the baseline's."""
    rng = np.random.default_rng(1)
    residual = np.sqrt(render_notes([Note(0, 0.4, 200.3), Note(1, 0.2, 240.9)]))
    residual += 0.02 * rng.standard_normal(AXIS.num_bins)
    amplitude, position, instrument, _ = best(jnp.asarray(DICTIONARY), residual)
    shifted, norms = shifted_patterns(DICTIONARY, AXIS, 0.5)
    correlation = shifted @ residual / norms[:, None]
    assert (int(instrument), int(position)) == np.unravel_index(correlation.argmax(), correlation.shape)
    np.testing.assert_allclose(amplitude, (correlation.max() / norms[int(instrument)]) ** 2, rtol=1e-8)

    found = baseline._tone_selector(DICTIONARY, AXIS.num_bins, 0.5, 1.0)(residual)
    assert (found.instrument[0], found.position[0]) == (int(instrument), float(position))
    np.testing.assert_allclose(amplitude, found.amplitude[0], rtol=1e-5)


def test_nothing_correlates_with_silence_or_a_negative_residual(dtype):
    amplitude = lambda *x: best(*x, SMALL)[0]
    dictionary = jnp.asarray(DICTIONARY, dtype)
    assert amplitude(dictionary, jnp.zeros(80, dtype)) == 0
    assert amplitude(dictionary, -jnp.ones(80, dtype)) < 1e-8
    assert amplitude(dictionary, jnp.ones(80, dtype)) > 0.01
    assert amplitude(jnp.zeros((2, 8), dtype), jnp.ones(80, dtype)) == 0


def test_an_instrument_without_harmonics_is_never_selected(x64):
    dictionary = jnp.asarray([np.zeros(8), DICTIONARY[1]])
    amplitude, _, instrument, bank = best(dictionary, render_notes([Note(0, 1.0, 30)], axis=SMALL), SMALL)
    assert int(instrument) == 1
    assert amplitude > 0
    assert np.all(np.isfinite(bank.transforms))


def test_vmap_is_a_loop(x64):
    residuals = jnp.asarray(np.random.default_rng(2).standard_normal((4, 80)))
    *_, bank = best(jnp.asarray(DICTIONARY), residuals[0], SMALL)
    one = lambda residual: select(bank, residual, 0.5)
    loop = [one(residual) for residual in residuals]
    for actual, expected in zip(jax.jit(jax.vmap(one))(residuals), zip(*loop, strict=True), strict=True):
        np.testing.assert_allclose(actual, jnp.stack(expected), rtol=1e-12)

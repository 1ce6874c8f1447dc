"""Patterns at real shifts: against the functions themselves, the renderer, sums in NumPy, dense sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import AXIS, DICTIONARY, Note, render_notes

from jaxsep.blasso.patterns import Patterns

WIDTH = 1.7
BINS = 60


def bump(distance):
    return jnp.exp(-0.5 * (distance / WIDTH) ** 2)


def comb(distance):
    return bump(distance) + 0.6 * bump(distance - 7.3) - 0.4 * bump(distance - 12.9)


def bump_slopes(distance):
    """Value, first and second derivative by the shift."""
    value = np.exp(-0.5 * (distance / WIDTH) ** 2)
    return value, value * distance / WIDTH**2, value * (distance**2 / WIDTH**2 - 1) / WIDTH**2


def slopes(distance):
    """The same of both patterns, `[3, 2, ...]`."""
    one, two, three = (np.array(bump_slopes(distance - by)) for by in (0, 7.3, 12.9))
    return np.stack([one, one + 0.6 * two - 0.4 * three], axis=1)


def make(dtype=jnp.float64, **options):
    return Patterns.from_functions([bump, comb], BINS, (-15.0, 28.0), dtype=dtype, **options)


def distances(shift, circle):
    """Bins from a shift; on a circle those of all images that matter."""
    bins = np.arange(BINS)
    return np.stack([bins - shift + turn * BINS for turn in ((-1, 0, 1) if circle else (0,))])


def expected_atoms(shift, pattern, circle):
    return slopes(distances(shift, circle)).sum(axis=2)[:, pattern]


@pytest.mark.parametrize("circle", [False, True])
def test_atoms_are_the_functions_and_their_derivatives(circle, x64):
    rng = np.random.default_rng(0)
    shifts = np.concatenate([rng.uniform(0, BINS - 1, 50), [0.0, 17.0, BINS - 1.0]])
    rows = rng.integers(2, size=shifts.size)
    actual = make(circle=circle).atoms(jnp.asarray(shifts), jnp.asarray(rows, jnp.int32))
    for number, (shift, row) in enumerate(zip(shifts, rows, strict=True)):
        value, slope, curve = expected_atoms(shift, row, circle)
        np.testing.assert_allclose(actual[0, number], value, atol=1e-10)
        np.testing.assert_allclose(actual[1, number], slope, atol=3e-9)
        np.testing.assert_allclose(actual[2, number], curve, atol=3e-7)


def test_shifts_outside_the_bins(x64):
    patterns = make(shifts=(-20, 70))
    for shift in (-19.3, -0.4, 64.2, 70.0):
        actual = patterns.atoms(jnp.array([shift]), jnp.array([1], jnp.int32))[0, 0]
        np.testing.assert_allclose(actual, expected_atoms(shift, 1, False)[0], atol=1e-10)
    np.testing.assert_array_equal(patterns.within(jnp.array([-20.5, 3.0, 71.0])), [-20, 3, 70])


@pytest.mark.parametrize(("circle", "shifts"), [(False, None), (False, (-11, 64)), (True, None)])
def test_correlation_is_the_adjoint_of_the_atoms(circle, shifts, dtype):
    patterns = make(dtype, circle=circle, shifts=shifts)
    signal = jnp.asarray(np.random.default_rng(1).standard_normal(BINS), dtype)
    first, last = (0, BINS) if circle else shifts or (0, BINS - 1)
    values = patterns.correlate(signal)
    assert values.dtype == dtype
    assert values.shape == (2, last - first, patterns.oversampling + 1)
    nodes = np.sin(0.5 * np.pi * np.arange(patterns.oversampling + 1) / patterns.oversampling) ** 2
    positions = (np.arange(first, last)[:, None] + nodes).reshape(-1)
    for row in (0, 1):
        atoms = patterns.atoms(jnp.asarray(positions, dtype), jnp.full(positions.size, row, jnp.int32))[0]
        tolerance = 1e-11 if dtype == np.float64 else 2e-5
        np.testing.assert_allclose(values[row].reshape(-1), atoms @ signal, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("circle", [False, True])
def test_peaks_are_the_maxima_of_each_bin_of_shifts(circle, x64):
    patterns = make(circle=circle)
    signal = np.random.default_rng(2).standard_normal(BINS)
    maxima = patterns.maxima(jnp.asarray(signal), signed=True)
    fractions = np.linspace(0, 1, 2001)
    for cell in range(BINS if circle else BINS - 1):
        shifts = cell + fractions
        dense = np.stack([slopes(distances(x, circle)).sum(axis=2)[0] @ signal for x in shifts], axis=1)
        for row, values in enumerate(np.concatenate([dense, -dense])):
            best = values.max()
            assert (
                best - 1e-12 <= maxima.value[row, cell] <= best + 1e-7
            )  # 2001 samples miss the top by so much
            assert abs(np.interp(maxima.position[row, cell], shifts, values) - best) < 1e-6


def test_without_a_sign_there_are_only_positive_peaks(x64):
    signal = jnp.asarray(np.random.default_rng(3).standard_normal(BINS))
    both, positive = make().maxima(signal, signed=True), make().maxima(signal)
    np.testing.assert_array_equal(positive.value, both.value[:2])
    np.testing.assert_allclose(make().maxima(-signal).value, both.value[2:], rtol=1e-12)


@pytest.mark.parametrize("lift", [1.0, 0.5])
def test_dictionary_patterns_are_lifted_spectra_of_unit_norm(lift, dtype):
    patterns = Patterns.from_dictionary(jnp.asarray(DICTIONARY, dtype), AXIS, lift=lift)
    for instrument, position in ((0, 120.0), (1, 150.37), (1, 203.93)):
        lifted = render_notes([Note(instrument, 1.0, position)]) ** lift
        atom = patterns.atoms(jnp.array([position], dtype), jnp.array([instrument], jnp.int32))[0, 0]
        assert atom.dtype == patterns.scale.dtype == dtype
        np.testing.assert_allclose(atom * patterns.scale[instrument], lifted, atol=3e-6)
        assert float(jnp.linalg.norm(atom)) == pytest.approx(1, abs=1e-5)


def test_linear_interpolation_with_one_node_per_bin(x64):
    hat = Patterns.from_functions(
        [lambda t: jnp.maximum(1 - jnp.abs(t), 0)], 8, (-1.0, 1.0), oversampling=1, dtype=jnp.float64
    )
    value, slope, curve = hat.atoms(jnp.array([3.25]), jnp.zeros(1, jnp.int32))[:, 0]
    np.testing.assert_allclose(value, [0, 0, 0, 0.75, 0.25, 0, 0, 0], atol=1e-15)
    np.testing.assert_array_equal([slope, curve], 0)
    signal = jnp.array([0.3, -2.0, 0.1, 1.5, 1.4, -0.2, 0.7, 0.9])
    assert float(jnp.max(hat.maxima(signal).value)) == pytest.approx(1.5, rel=1e-14)


def test_distances_on_line_and_circle(x64):
    one, two = jnp.array([1.0, 30.0]), jnp.array([58.0, 41.0])
    np.testing.assert_array_equal(make().distance(one, two), [57, 11])
    np.testing.assert_array_equal(make(circle=True).distance(one, two), [3, 11])
    np.testing.assert_allclose(make(circle=True).within(jnp.array([-1.0, 61.5, -1e-20])), [59, 1.5, 0])


def test_jit_is_eager_and_vmap_is_a_loop(x64):
    patterns = make()
    signals = jnp.asarray(np.random.default_rng(4).standard_normal((3, BINS)))
    eager = [patterns.maxima(signal) for signal in signals]
    mapped = jax.jit(jax.vmap(patterns.maxima))(signals)
    for number, maxima in enumerate(eager):
        np.testing.assert_allclose(mapped.value[number], maxima.value, rtol=1e-12, atol=1e-13)
    single = patterns.single()
    parts = jax.vmap(lambda p: p.correlate(signals[0]))(single)[:, 0]
    np.testing.assert_allclose(parts, patterns.correlate(signals[0]), atol=1e-13)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"functions": [bump, lambda t: 0 * t]},
            "got only zero values in pattern 1",
        ),
        ({"functions": [lambda t: t / 0.0]}, "got infinite or NaN values in pattern 0"),
        (
            {"functions": [lambda t: bump(20 * t)]},
            "functions: expected .* oversampling=10, got .* in pattern 0, which changes too fast",
        ),
        ({"num_bins": 1}, "patterns: expected num_bins >= 2"),
        ({"oversampling": 0}, r"patterns: .*oversampling >= 1.*got .*oversampling=0"),
        ({"support": (3.0, 3.0)}, "patterns: .*increasing support and shifts"),
        ({"shifts": (5, 5)}, r"patterns: .*increasing support and shifts.*shifts=\(5, 5\)"),
    ],
)
def test_impossible_patterns(change, message):
    arguments = {"functions": [bump], "num_bins": BINS, "support": (-15.0, 15.0)} | change
    with pytest.raises(ValueError, match=message):
        Patterns.from_functions(**arguments)


# ---- Fourier coefficients ---------------------------------------------------------------------------------


def test_patterns_of_fourier_coefficients_are_their_sums(dtype):
    rng = np.random.default_rng(5)
    coefficients = rng.standard_normal((2, 9)) + 1j * rng.standard_normal((2, 9))
    coefficients[:, 0] = coefficients[:, 0].real
    kind = jnp.complex64 if dtype == np.float32 else jnp.complex128
    patterns = Patterns.from_fourier(jnp.asarray(coefficients, kind), 30)
    assert patterns.table.dtype == dtype
    shifts, rows = np.array([0.0, 3.25, 29.9]), np.array([0, 1, 1])
    found = patterns.atoms(jnp.asarray(shifts, dtype), jnp.asarray(rows, jnp.int32))
    wave = np.exp(2j * np.pi * np.arange(9) * (np.arange(30) - shifts[:, None])[..., None] / 30)
    weight = np.where(np.arange(9) > 0, 2, 1) / 30
    turn = -2j * np.pi * np.arange(9) / 30
    for order in range(3):
        wanted = np.sum(wave * (weight * coefficients[rows] * turn**order)[:, None], axis=2).real
        np.testing.assert_allclose(found[order], wanted, atol=1e-3 if dtype == np.float32 else 1e-6)


def test_measured_coefficients_are_a_signal_of_the_patterns(x64):
    weights = jnp.asarray(1 / (1 + np.arange(11)) + 0j)
    patterns = Patterns.from_fourier(weights[None], 21)
    measured = weights * jnp.exp(-2j * jnp.pi * jnp.arange(11) * 7.3 / 21)
    atom = patterns.atoms(jnp.array([7.3]), jnp.array([0]))[0][0]
    np.testing.assert_allclose(jnp.fft.irfft(measured, 21), atom, atol=1e-8)


@pytest.mark.parametrize(("count", "bins", "oversampling"), [(0, 21, 9), (12, 21, 9), (3, 21, 0), (2, 1, 9)])
def test_fourier_coefficients_that_no_signal_has(count, bins, oversampling):
    with pytest.raises(ValueError, match="coefficients: expected 1 to"):
        Patterns.from_fourier(jnp.ones((1, count), jnp.complex64), bins, oversampling=oversampling)


def test_too_little_oversampling_for_the_highest_frequency():
    with pytest.raises(ValueError, match="oversampling: expected an error of the highest frequency below"):
        Patterns.from_fourier(jnp.ones((1, 11), jnp.complex64), 21, oversampling=3)

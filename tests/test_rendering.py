"""Rendering of tones, windowed and dense, against the double sum of the tone model in NumPy."""

from functools import partial
from inspect import unwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import AXIS, DICTIONARY, PROBLEMS

from benchmarks import scipy_baseline as baseline
from jaxsep.signal.axes import LinearAxis, LogAxis
from jaxsep.signal.gaussians import SINUSOID_WIDTH, Windowed, on_bins, sum_gaussians, width_bounds
from jaxsep.tones.rendering import render, render_instruments
from jaxsep.tones.tones import Tones

pytestmark = pytest.mark.compiles

LOG = LogAxis(256)
LINEAR = LinearAxis(256, 10.0)
METHODS = ("windowed", "dense")


@partial(jax.jit, static_argnums=(2,), static_argnames=("exponent", "method"))
def spectra(tones, dictionary, axis=LOG, *, exponent=1.0, method="auto"):
    """The spectrum, and that of each instrument."""
    options = {"exponent": exponent, "method": method}
    rows = dictionary[tones.instrument]
    return render(tones, rows, axis, **options), render_instruments(tones, rows, axis, 3, **options)


def some_dictionary():
    h = np.arange(1, 8)
    return np.stack([h**-1.5, (h % 2 + 0.05) / h, np.exp(-(((h - 4) / 3) ** 2))])


def some_tones(dtype=jnp.float32, axis=LOG):
    """Four tones of which one is silent by its mask and one lies partly beyond the axis."""
    position = [61.3, 97.8, 80.0, 231.6] if axis is LOG else [20.4, 31.7, 25.0, 77.1]
    return Tones(
        amplitude=jnp.array([0.7, 1.3, 5.0, 0.4], dtype),
        fundamental=jnp.array(position, dtype),
        width=jnp.array([1.7, 2.1, 2.0, width_bounds()[1]], dtype),
        inharmonicity=jnp.array([2e-4, 0.0, 0.0, 1.5e-3], dtype),
        instrument=jnp.array([0, 2, 1, 0]),
        active=jnp.array([True, True, False, True]),
    )


def double_sum(tones, dictionary, axis, exponent):
    """Spectrum of each instrument, evaluated at every bin."""
    bins = np.arange(axis.num_bins)
    total = np.zeros((len(dictionary), axis.num_bins))
    for k in np.flatnonzero(tones.active):
        a, f0, width, b, i = (
            np.asarray(getattr(tones, name)[k], float)
            for name in ("amplitude", "fundamental", "width", "inharmonicity", "instrument")
        )
        for h, d in enumerate(dictionary[int(i)], start=1):
            stretch = h * np.sqrt(1 + b * h * h)
            log = isinstance(axis, LogAxis)
            c = axis.num_bins / np.log(axis.f_max / axis.f_min) if log else None
            centre = f0 + c * np.log(stretch) if log else f0 * stretch
            total[int(i)] += (a * d * np.exp(-0.5 * ((bins - centre) / width) ** 2)) ** exponent
    return total


@pytest.mark.parametrize("axis", [LOG, LINEAR], ids=["log", "linear"])
@pytest.mark.parametrize("exponent", [1.0, 1.5])
@pytest.mark.parametrize("method", METHODS)
def test_spectrum_is_the_double_sum(axis, exponent, method, dtype):
    tones, dictionary = some_tones(dtype, axis), some_dictionary()
    powers = double_sum(tones, dictionary, axis, exponent)
    whole, parts = spectra(tones, jnp.asarray(dictionary, dtype), axis, exponent=exponent, method=method)
    assert whole.dtype == parts.dtype == dtype
    assert powers.max() > 0.5
    assert not parts[1].any()  # its only tone is not active
    # Windows end where a partial has fallen to 2e-8 of its height, and positions in float32 have 1e-5 bins.
    tolerance = 3e-8 if dtype == np.float64 and exponent == 1 else 1e-5
    np.testing.assert_allclose(whole, powers.sum(0) ** (1 / exponent), atol=tolerance, rtol=0)
    np.testing.assert_allclose(parts, powers ** (1 / exponent), atol=tolerance, rtol=0)


def test_powers_of_the_instruments_add_up(x64):
    tones, dictionary = some_tones(jnp.float64), jnp.asarray(some_dictionary())
    whole, parts = spectra(tones, dictionary, exponent=1.5, method="windowed")
    np.testing.assert_allclose(np.sum(np.asarray(parts) ** 1.5, axis=0), np.asarray(whole) ** 1.5, atol=1e-14)


def test_methods_agree_up_to_the_widest_partial(x64):
    wide = eqx.tree_at(lambda t: t.width, some_tones(jnp.float64), jnp.full(4, width_bounds()[1]))
    dictionary = jnp.asarray(some_dictionary())
    windowed, dense = (spectra(wide, dictionary, method=method)[0] for method in METHODS)
    np.testing.assert_allclose(windowed, dense, atol=3e-8 * float(jnp.max(dense)), rtol=0)
    suited = windowed if jax.default_backend() == "cpu" else dense
    np.testing.assert_allclose(spectra(wide, dictionary)[0], suited, atol=1e-14)


def test_agrees_with_the_baseline(x64):
    tones, dictionary = some_tones(jnp.float64), some_dictionary()
    fields = (tones.amplitude, tones.fundamental, tones.width, tones.inharmonicity, tones.instrument)
    plain = baseline.Tones(*(np.asarray(field)[np.asarray(tones.active)] for field in fields))
    expected = baseline.render(plain, dictionary, LOG.num_bins)
    np.testing.assert_allclose(spectra(tones, jnp.asarray(dictionary))[0], expected, atol=5e-8)


@pytest.mark.parametrize("tones_per_instrument", [1, 2])
def test_problems_are_rendered_as_they_say(tones_per_instrument):
    problems = [p for p in PROBLEMS if p.tones_per_instrument == tones_per_instrument]
    tones = jax.tree.map(lambda *x: jnp.concatenate(x), *(problem.tones() for problem in problems))
    rows = jnp.asarray(DICTIONARY, jnp.float32)
    rendered = jax.jit(jax.vmap(lambda tone: render(tone, rows[tone.instrument], AXIS)))(tones)
    noise = np.concatenate([np.full(len(problem.frames), problem.noise) for problem in problems])
    wanted = np.concatenate([problem.spectra for problem in problems])
    assert np.all(np.abs(rendered - wanted) <= 6 * noise[:, None] + 1e-5)


def weighted_sum(exponent, method):
    """A number that depends on all parameters of some tones and on the dictionary."""
    tones = some_tones()
    weights = np.random.default_rng(0).standard_normal(LOG.num_bins)

    def weighted(amplitude, fundamental, width, inharmonicity, dictionary):
        changed = Tones(amplitude, fundamental, width, inharmonicity, tones.instrument, tones.active)
        rows = dictionary[tones.instrument]
        spectrum = render(changed, rows, LOG, exponent=exponent, method=method)
        return jnp.asarray(weights, spectrum.dtype) @ spectrum

    return weighted


@pytest.mark.parametrize(("exponent", "method"), [(1.0, "windowed"), (1.5, "windowed"), (1.5, "dense")])
def test_gradient_is_the_finite_difference(exponent, method, x64):
    function = weighted_sum(exponent, method)
    value, gradient = jax.jit(function), jax.jit(jax.grad(function, argnums=range(5)))
    derivative = jax.jit(lambda point, change: jax.jvp(function, point, change)[1])
    tones, rng = some_tones(jnp.float64), np.random.default_rng(1)
    # Narrow enough for the cut of the windows not to show.
    point = [tones.amplitude, tones.fundamental, np.full(4, 1.8), tones.inharmonicity, some_dictionary()]
    point = tuple(np.array(x) for x in point)
    slopes = gradient(*point)
    for argument, step in enumerate([1e-5, 1e-5, 1e-5, 1e-9, 1e-6]):
        change = [np.zeros_like(x) for x in point]
        change[argument] = rng.standard_normal(point[argument].shape)
        up, down = ([x + s * step * d for x, d in zip(point, change, strict=True)] for s in (1, -1))
        expected = (value(*up) - value(*down)) / (2 * step)
        assert abs(expected) > 1e-2
        np.testing.assert_allclose(np.sum(slopes[argument] * change[argument]), expected, rtol=1e-5)
        np.testing.assert_allclose(derivative(point, tuple(change)), expected, rtol=1e-5)


@pytest.mark.parametrize(("exponent", "method"), [(1.0, "windowed"), (1.5, "windowed"), (1.5, "dense")])
def test_gradients_are_finite_at_silence(exponent, method):
    tones = some_tones()
    gradient = jax.jit(jax.value_and_grad(weighted_sum(exponent, method), argnums=range(5)))
    for dictionary in (some_dictionary(), np.zeros((3, 7))):
        point = np.zeros(4), tones.fundamental, tones.width, tones.inharmonicity, dictionary
        value, slopes = gradient(*(np.asarray(x, np.float32) for x in point))
        assert value == 0
        assert all(np.all(np.isfinite(slope)) for slope in slopes)


@pytest.mark.parametrize("method", METHODS)
def test_jit_and_vmap(method, x64):
    dictionary = jnp.asarray(some_dictionary())
    places = np.array([[50.2, 71.4, 92.6, 113.8], [63.9, 85.1, 0.0, -20.0], [170.3, 12.5, 33.7, 300.0]])

    def one(place):
        tones = eqx.tree_at(lambda t: t.fundamental, some_tones(jnp.float64), place)
        return render_instruments(tones, dictionary[tones.instrument], LOG, 3, method=method)

    eager = jnp.stack([one(jnp.asarray(place)) for place in places])
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(places), eager, atol=1e-14)


def test_tones_beyond_the_axis_are_not_heard(x64):
    far = eqx.tree_at(lambda t: t.fundamental, some_tones(jnp.float64), jnp.array([-500.0, 1e4, 0.0, 1e9]))
    dictionary = jnp.asarray(some_dictionary()[:, :1])
    np.testing.assert_array_equal(spectra(far, dictionary)[0], 0)
    half = eqx.tree_at(lambda t: t.fundamental, far, jnp.array([-1.0, 255.6, 0.0, 1e9]))
    expected = double_sum(half, some_dictionary()[:, :1], LOG, 1.0).sum(0)
    assert expected.max() > 0.4
    np.testing.assert_allclose(spectra(half, dictionary)[0], expected, atol=3e-8)


@pytest.mark.parametrize("rows", [(), (3,), (2, 3)])
def test_windows_are_added_where_they_belong(rows, dtype):
    rng, bins = np.random.default_rng(0), Windowed(80)
    nearest = np.broadcast_to([-40, -3, 0, 7, 7, 60, 79, 84, 3000], (*rows, 9))
    nearest = rng.permuted(nearest, axis=-1)
    length = bins.offsets(dtype).shape[0]
    values = rng.standard_normal((*rows, 9, length))
    expected = np.zeros((*rows, 80))
    for place in np.ndindex(nearest.shape):
        for offset, x in zip(range(-(length // 2), length // 2 + 1), values[place], strict=True):
            if 0 <= nearest[place] + offset < 80:
                expected[(*place[:-1], nearest[place] + offset)] += x
    actual = bins.add(jnp.asarray(values, dtype), jnp.asarray(nearest))
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, expected, atol=30 * jnp.finfo(dtype).eps)


def test_reading_near_bins_is_the_adjoint_of_adding(x64):
    rng, bins = np.random.default_rng(0), Windowed(80)
    nearest = jnp.array([-40, -3, 0, 7, 7, 60, 79, 84, 3000])
    values, signal = rng.standard_normal((9, bins.offsets(float).size)), rng.standard_normal(80)
    one = np.vdot(bins.add(jnp.asarray(values), nearest), signal)
    other = np.vdot(values, bins.near(jnp.asarray(signal), nearest))
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_gaussians_in_windows_are_those_in_all_bins(x64):
    rng = np.random.default_rng(0)
    height, position = rng.uniform(size=(2, 5)), rng.uniform(-20, 100, size=(2, 5))
    width = rng.uniform(*width_bounds(), size=(2, 5))
    arrays = [jnp.asarray(x) for x in (height, position, width)]
    windowed, dense = (sum_gaussians(*arrays, 80, method=method) for method in METHODS)
    distance = (np.arange(80) - position[..., None]) / width[..., None]
    np.testing.assert_allclose(
        dense, np.sum(height[..., None] * np.exp(-0.5 * distance**2), axis=1), atol=1e-14
    )
    np.testing.assert_allclose(windowed, dense, atol=3e-8)


def test_empty_slots_are_silent_tones_of_nominal_width(dtype):
    tones = Tones.empty((5, 4), dtype)
    assert tones.capacity == 4
    assert {x.shape for x in jax.tree.leaves(tones)} == {(5, 4)}
    assert tones.amplitude.dtype == tones.width.dtype == dtype
    assert not tones.active.any()
    np.testing.assert_allclose(tones.width, SINUSOID_WIDTH)
    row = jax.tree.map(lambda x: x[0], tones)
    np.testing.assert_array_equal(spectra(row, jnp.asarray(some_dictionary(), dtype))[0], 0)


def test_plain_tones_are_harmonic_sinusoids_that_sound(dtype):
    places = jnp.array([61.3, 97.8], dtype)
    tones = Tones.plain(jnp.ones(2, dtype), places, jnp.array([0, 2]))
    assert {x.dtype for x in jax.tree.leaves(tones)[:4]} == {dtype}
    np.testing.assert_allclose(tones.width, SINUSOID_WIDTH)
    assert not tones.inharmonicity.any()
    assert tones.active.all()


@pytest.mark.parametrize("axis", [LOG, LINEAR], ids=["log", "linear"])
def test_tones_in_hertz_are_those_on_the_axis(axis, dtype):
    tones = some_tones(dtype, axis)
    hertz = tones.in_hz(axis, 2.0)
    np.testing.assert_allclose(hertz.amplitude, 2 * tones.amplitude)
    expected = np.where(tones.active, axis.to_hz(tones.fundamental), 0)
    np.testing.assert_allclose(hertz.fundamental, expected, rtol=1e-6)
    far = eqx.tree_at(lambda t: t.fundamental, tones, jnp.full(4, 1e30, dtype))
    assert np.all(np.isfinite(far.in_hz(axis).fundamental))


def test_unknown_method():
    with pytest.raises(ValueError, match="method: expected 'auto', 'windowed' or 'dense', got 'sparse'"):
        unwrap(on_bins)(
            lambda bins: None, 80, method="sparse"
        )  # unwrapped, since the type checks of the test run would object

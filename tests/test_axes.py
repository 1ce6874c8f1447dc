"""Frequency axes: the map between Hz and bins, and the positions of partials."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsep.signal.axes import LinearAxis, LogAxis

AXES = [LinearAxis(6144, 48_000 / 12_288), LogAxis(), LogAxis(num_bins=300, f_min=55.0, f_max=7040.0)]


partials = jax.jit(lambda axis, *point: axis.partials(*point, 25), static_argnums=0)


def partials_in_hz(fundamental, inharmonicity, num_harmonics):
    h = np.arange(1, num_harmonics + 1)
    return fundamental * h * np.sqrt(1 + inharmonicity * h**2)


def test_linear_bins_are_equally_spaced(x64):
    axis = LinearAxis(100, 3.90625)
    np.testing.assert_allclose(axis.to_hz(jnp.array([0.0, 1.0, 64.0])), [0, 3.90625, 250])
    np.testing.assert_allclose(axis.to_bin(jnp.array([0.0, 250.0])), [0, 64])


def test_log_axis_runs_from_f_min_to_f_max(x64):
    axis = LogAxis(num_bins=1200, f_min=20.0, f_max=20480.0)
    np.testing.assert_allclose(axis.to_hz(jnp.array([0.0, 120.0, 1200.0])), [20, 40, 20480])
    np.testing.assert_allclose(axis.to_bin(jnp.array([20.0, 640.0])), [0, 600], atol=1e-11)


def test_default_log_axis_is_that_of_the_paper():
    axis = LogAxis()
    assert (axis.num_bins, axis.f_min, axis.f_max) == (1024, 20.0, 20480.0)
    assert axis.bins_per_neper == pytest.approx(1024 / np.log(1024))


@pytest.mark.parametrize("axis", AXES)
def test_bins_and_hz_are_inverse(axis, dtype):
    hertz = jnp.asarray(np.geomspace(30, 20_000, 50), dtype)
    back = axis.to_hz(axis.to_bin(hertz))
    assert back.dtype == axis.to_bin(hertz).dtype == dtype
    np.testing.assert_allclose(back, hertz, rtol=100 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("axis", AXES)
def test_numbers_on_the_host_stay_there(axis):
    hertz = np.geomspace(30, 20_000, 50, dtype=np.float32)
    bins = axis.to_bin(hertz)
    assert type(bins) is type(axis.to_hz(bins)) is np.ndarray
    assert bins.dtype == np.float32
    np.testing.assert_allclose(bins, axis.to_bin(jnp.asarray(hertz)), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(axis.to_hz(bins), hertz, rtol=1e-5)
    assert float(axis.to_bin(440.0)) == pytest.approx(float(axis.to_bin(jnp.asarray(440.0))), rel=1e-5)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("inharmonicity", [0.0, 7e-4, 2e-3])
def test_partials_are_where_a_stiff_string_has_them(axis, inharmonicity, dtype):
    fundamental = axis.to_bin(jnp.asarray(220.0, dtype))
    position, *_ = partials(axis, fundamental, jnp.asarray(inharmonicity, dtype))
    assert position.dtype == dtype
    expected = partials_in_hz(220.0, inharmonicity, 25)
    np.testing.assert_allclose(axis.to_hz(position), expected, rtol=100 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("axis", AXES)
def test_derivatives_of_partials(axis, x64):
    automatic = jax.jit(jax.jacfwd(lambda *point: axis.partials(*point, 25)[0], argnums=(0, 1)))
    for inharmonicity in (0.0, 7e-4):
        point = np.array([axis.to_bin(jnp.asarray(220.0)), inharmonicity])
        _, *derivatives = partials(axis, *point)
        for derivative, other, step in zip(
            derivatives, automatic(*point), ([1e-4, 0], [0, 1e-9]), strict=True
        ):
            difference = partials(axis, *point + step)[0] - partials(axis, *point - step)[0]
            np.testing.assert_allclose(derivative, other, rtol=1e-12)
            np.testing.assert_allclose(derivative, difference / (2 * np.sum(step)), rtol=1e-3)


def test_a_change_of_pitch_shifts_the_partials_of_the_log_axis(x64):
    low, high = (partials(LogAxis(), fundamental, 1e-3)[0] for fundamental in (100.0, 237.7))
    np.testing.assert_allclose(high - low, 137.7, rtol=1e-12)


@pytest.mark.parametrize("axis", AXES)
def test_jit_and_vmap(axis, x64):
    points = jnp.array([100.0, 200.5, 301.2]), jnp.array([0, 1e-3, 2e-3])
    eager = [axis.partials(*point, 25) for point in zip(*points, strict=True)]
    mapped = jax.jit(jax.vmap(lambda *point: axis.partials(*point, 25)))(*points)
    for part, rows in zip(mapped, zip(*eager, strict=True), strict=True):
        np.testing.assert_allclose(part, jnp.stack(rows), rtol=1e-14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearAxis(0, 1.0), "LinearAxis: expected num_bins >= 1.*got num_bins=0"),
        (lambda: LinearAxis(8, 0.0), "resolution > 0 Hz, got num_bins=8, resolution=0.0"),
        (lambda: LinearAxis(8, float("nan")), "resolution=nan"),
        (lambda: LogAxis(0), "LogAxis: expected num_bins >= 1.*got num_bins=0"),
        (lambda: LogAxis(8, f_min=0.0), "0 < f_min < f_max, got num_bins=8, f_min=0.0"),
        (lambda: LogAxis(8, f_min=90.0, f_max=80.0), "f_min=90.0, f_max=80.0"),
    ],
)
def test_impossible_axes(make, message):
    with pytest.raises(ValueError, match=message):
        make()

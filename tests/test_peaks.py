"""Peak pursuit against closed forms, brute force, the SciPy baseline and recorded results."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import scipy_baseline as baseline
from jaxsep.pursuit import banded
from jaxsep.pursuit.peaks import PeakOutcome, PeakPursuit, Peaks, map_frames, render_peaks
from jaxsep.tones.axes import LinearAxis
from jaxsep.tones.tones import width_bounds

REFERENCE = Path(__file__).resolve().parents[1] / ".." / "shared" / "reference"
SMALL = PeakPursuit.full(max_peaks=24, max_rounds=6, num_steps=8)


def gaussians(amplitude, position, width, num_bins):
    f = np.arange(num_bins)[:, None]
    return np.exp(-((f - np.array(position)) ** 2) / (2 * np.array(width) ** 2)) @ np.array(amplitude)


def crowded(num_frames, num_bins=300, seed=0):
    """Frames of overlapping peaks 5 to 25 bins apart over a little noise."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(num_frames):
        position = 8 + np.cumsum(rng.uniform(5, 25, 18))
        position = position[position < num_bins - 8]
        amplitude, width = rng.uniform(0.05, 1, len(position)), rng.uniform(1.7, 2.6, len(position))
        noise = 2e-3 * rng.uniform(0, 1, num_bins)
        frames.append(gaussians(amplitude, position, width, num_bins) + noise)
    return np.stack(frames)


def found(peaks, frame=0):
    """Amplitude, position and width of a frame's active peaks, in order of position."""
    one = jax.tree.map(lambda x: np.asarray(x[frame]), peaks)
    columns = np.stack([one.amplitude, one.position, one.width])[:, one.active]
    return columns[:, np.argsort(columns[1])]


def relative(peaks, spectrum, frame=0):
    return np.linalg.norm(gaussians(*found(peaks, frame), len(spectrum)) - spectrum) / np.linalg.norm(
        spectrum
    )


def test_closed_form_is_exact_for_isolated_gaussians():
    narrowest, widest = width_bounds()
    truth = np.array([[0.3, 1.0, 0.02], [60.0, 200.49, 341.27], [1.01 * narrowest, 2.0, 0.99 * widest]])
    with jax.enable_x64(True):
        result = PeakPursuit(max_peaks=8)(jnp.asarray(gaussians(*truth, 400))[None])
        assert result.peaks.amplitude.dtype == jnp.float64
        np.testing.assert_allclose(found(result.peaks), truth, rtol=1e-9)
        assert result.relative_residual[0] < 1e-8


@pytest.mark.parametrize("kind", ["impulse", "plateau", "edges"])
def test_closed_form_stays_admissible(kind):
    spectrum = np.zeros(64, np.float32)
    spectrum[{"impulse": slice(20, 21), "plateau": slice(20, 26), "edges": slice(0, 64, 63)}[kind]] = 0.7
    peaks = found(PeakPursuit(max_peaks=4)(jnp.asarray(spectrum)[None]).peaks)
    narrowest, widest = np.float32(width_bounds())
    assert peaks.shape[1] == (2 if kind == "edges" else 1)
    assert np.isfinite(peaks).all()
    assert ((peaks[2] >= narrowest) & (peaks[2] <= widest)).all()
    assert (np.abs(peaks[1] - np.rint(peaks[1])) <= 0.5).all()
    np.testing.assert_allclose(peaks[0], 0.7, rtol=0.2)


def test_maxima_are_those_of_a_brute_force_search_and_the_strongest_are_kept():
    spectrum = np.random.default_rng(1).uniform(0.01, 1, 1001).astype(np.float32)
    maxima = [f for f in range(1001) if spectrum[f] >= spectrum[max(f - 2, 0) : f + 3].max()]
    every = found(PeakPursuit(floor=0.0, max_peaks=400)(jnp.asarray(spectrum)[None]).peaks)
    np.testing.assert_array_equal(np.rint(every[1]), maxima)
    for kept in (1, 7, 50):
        few = found(PeakPursuit(floor=0.0, max_peaks=kept)(jnp.asarray(spectrum)[None]).peaks)
        strongest = np.sort(np.argsort(-spectrum[maxima])[:kept])
        np.testing.assert_array_equal(np.rint(few[1]), np.array(maxima)[strongest])
    above = found(PeakPursuit(floor=jnp.array(0.9), max_peaks=400)(jnp.asarray(spectrum)[None]).peaks)
    loud = [f for f in maxima if spectrum[f] > 0.9 * spectrum.max()]
    np.testing.assert_array_equal(np.rint(above[1]), loud)


def test_correlations_are_the_integrals_of_the_derivatives():
    position, width = np.array([30.0, 33.1, 33.9, 41.0, 60.2]), np.array([1.6, 2.8, 1.9, 2.2, 1.7])
    f = np.arange(100)[:, None]
    d = f - position
    shape = np.exp(-(d**2) / (2 * width**2))
    columns = np.stack([shape, shape * d / width**2, shape * d**2 / width**3])  # [3, bins, peaks]
    columns /= np.linalg.norm(columns, axis=1, keepdims=True)
    gram = np.einsum("afk,bfl->abkl", columns, columns)
    with jax.enable_x64(True):
        band = np.asarray(banded._correlations(jnp.asarray(position), jnp.asarray(width)))
    reach = band.shape[0] // 2
    for k in range(5):
        for offset in range(-reach, reach + 1):
            expected = gram[:, :, k, k + offset] if 0 <= k + offset < 5 else np.zeros((3, 3))
            np.testing.assert_allclose(band[reach + offset, :, :, k], expected, atol=1e-7)


def test_full_recovers_overlapping_gaussians():
    truth = np.array([[1.0, 0.6, 0.8, 0.3], [100.2, 106.0, 150.7, 158.0], [1.8, 2.3, 2.6, 1.7]])
    with jax.enable_x64(True):
        pursuit = PeakPursuit.full(max_peaks=4, max_rounds=4, num_steps=20)
        result = pursuit(jnp.asarray(gaussians(*truth, 300))[None])
        np.testing.assert_allclose(found(result.peaks), truth, rtol=1e-5)
        assert result.relative_residual[0] < 1e-5


def test_full_separates_peaks_that_share_one_maximum():
    spectrum = gaussians([1.0, 0.6], [100.2, 103.6], [1.9, 1.9], 200)
    one = PeakPursuit(max_peaks=8)(jnp.asarray(spectrum, jnp.float32)[None])
    assert found(one.peaks).shape[1] == 1
    several = PeakPursuit.full(max_peaks=8, num_steps=20)(jnp.asarray(spectrum, jnp.float32)[None])
    assert several.relative_residual[0] < 0.02 < one.relative_residual[0]


def test_residual_is_at_most_the_baseline_s():
    spectra = crowded(3)
    with jax.enable_x64(True):
        result = SMALL(jnp.asarray(spectra))
        for frame, spectrum in enumerate(spectra):
            peaks = baseline.peak_pursuit(spectrum, max_peaks=24, rounds=6)
            theirs = np.linalg.norm(baseline.render_peaks(peaks, len(spectrum)) - spectrum)
            ours = relative(result.peaks, spectrum, frame)
            assert ours <= 1.001 * theirs / np.linalg.norm(spectrum)
            np.testing.assert_allclose(result.relative_residual[frame], ours, rtol=1e-5)


@pytest.mark.parametrize("pursuit", [PeakPursuit(max_peaks=24), SMALL], ids=["default", "full"])
def test_bounds_hold_and_the_residual_is_that_of_the_peaks(pursuit):
    spectra = crowded(4).astype(np.float32)
    result = pursuit(jnp.asarray(spectra))
    narrowest, widest = np.float32(width_bounds())
    assert result.peaks.amplitude.shape == (4, 24)
    for frame, spectrum in enumerate(spectra):
        amplitude, _, width = found(result.peaks, frame)
        assert (amplitude > 0).all()
        assert ((width >= narrowest) & (width <= widest)).all()
        np.testing.assert_allclose(
            result.relative_residual[frame], relative(result.peaks, spectrum, frame), rtol=1e-3
        )
    idle = ~np.asarray(result.peaks.active)
    assert not np.asarray(result.peaks.amplitude)[idle].any()


def test_more_rounds_and_steps_lower_the_residual():
    spectra = jnp.asarray(crowded(4), jnp.float32)
    settings = [(1, 0), (1, 6), (3, 6), (20, 6)]
    runs = [PeakPursuit.full(max_peaks=40, max_rounds=r, num_steps=s)(spectra) for r, s in settings]
    residuals = np.stack([run.relative_residual for run in runs])
    assert (np.diff(residuals, axis=0) <= 0).all()
    assert (residuals[-1] < 0.2 * residuals[0]).all()
    assert jnp.all(runs[1].outcome == PeakOutcome.rounds_used)
    assert (runs[2].num_rounds <= 3).all()
    assert (runs[2].num_steps <= 6 * runs[2].num_rounds).all()
    strict = eqx.tree_at(lambda p: p.improvement, PeakPursuit.full(max_peaks=40, max_rounds=20), 1e-3)(
        spectra
    )
    assert jnp.all(strict.outcome == PeakOutcome.explained)
    assert (strict.num_rounds == 1).all()


@pytest.mark.parametrize("level", [1e-4, 1e4])
@pytest.mark.parametrize("pursuit", [PeakPursuit(max_peaks=24), SMALL], ids=["default", "full"])
def test_level_only_scales_the_amplitudes(pursuit, level):
    with jax.enable_x64(True):
        spectra = jnp.asarray(crowded(2))
        plain, scaled = pursuit(spectra).peaks, pursuit(level * spectra).peaks
        np.testing.assert_array_equal(plain.active, scaled.active)
        np.testing.assert_allclose(scaled.amplitude, level * plain.amplitude, rtol=1e-5)
        np.testing.assert_allclose(scaled.position, plain.position, rtol=1e-6)
        np.testing.assert_allclose(scaled.width, plain.width, rtol=1e-5)


@pytest.mark.parametrize("pursuit", [PeakPursuit(max_peaks=12), SMALL], ids=["default", "full"])
def test_jit_equals_eager(pursuit):
    with jax.enable_x64(True):
        spectra = jnp.asarray(crowded(1, num_bins=150))
        jitted = pursuit(spectra)
        with jax.disable_jit():
            eager = pursuit(spectra)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), jitted, eager)


@pytest.mark.parametrize("pursuit", [PeakPursuit(max_peaks=24), SMALL], ids=["default", "full"])
def test_frames_do_not_depend_on_each_other(pursuit):
    with jax.enable_x64(True):
        spectra = jnp.asarray(crowded(19))  # more than one block
        together = pursuit(spectra)
        for frame in (0, 9, 18):
            alone = pursuit(spectra[frame : frame + 1])
            here = jax.tree.map(lambda x, i=frame: x[i : i + 1], together)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), alone, here)


@pytest.mark.parametrize("pursuit", [PeakPursuit(max_peaks=24), SMALL], ids=["default", "full"])
def test_float32_agrees_with_float64(pursuit):
    spectra = crowded(3)
    with jax.enable_x64(True):
        double = pursuit(jnp.asarray(spectra))
        single = pursuit(jnp.asarray(spectra, jnp.float32))
    assert {x.dtype for x in jax.tree.leaves(eqx.filter(single, eqx.is_inexact_array))} == {
        np.dtype("float32")
    }
    assert {x.dtype for x in jax.tree.leaves(eqx.filter(double, eqx.is_inexact_array))} == {
        np.dtype("float64")
    }
    np.testing.assert_allclose(single.relative_residual, double.relative_residual, rtol=0.05)


@pytest.mark.parametrize("pursuit", [PeakPursuit(max_peaks=24), SMALL], ids=["default", "full"])
def test_silent_and_invalid_frames_say_so_and_leave_the_others_alone(pursuit):
    good = crowded(1, num_bins=100)[0]
    spectra = np.stack([good, np.zeros(100), good, good, good]).astype(np.float32)
    spectra[2, 3], spectra[3, 50], spectra[4, 7] = np.nan, np.inf, -1e-3
    result = pursuit(jnp.asarray(spectra))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
    silent = np.asarray(result.outcome == PeakOutcome.silent)
    invalid = np.asarray(result.outcome == PeakOutcome.invalid)
    np.testing.assert_array_equal(silent, [False, True, False, False, False])
    np.testing.assert_array_equal(invalid, [False, False, True, True, True])
    assert result.peaks.active[0].any()
    assert not result.peaks.active[1:].any()
    np.testing.assert_array_equal(result.relative_residual[1:], [0, 1, 1, 1])
    assert "NaN" in PeakOutcome[PeakOutcome.invalid]


def test_swept_numbers_do_not_retrace():
    traces = []

    @eqx.filter_jit
    def run(pursuit, spectra):
        traces.append(pursuit)
        return pursuit(spectra).relative_residual

    spectra = jnp.asarray(crowded(2), jnp.float32)
    for floor in (1e-4, 1e-2, 0.5):
        residual = run(PeakPursuit(floor=jnp.array(floor), max_peaks=24), spectra)
    assert len(traces) == 1
    assert (residual > 0.1).all()


def test_render_peaks_is_the_dense_sum():
    truth = np.array([[0.5, 1.0, 0.3], [-2.0, 50.3, 120.0], [1.7, 2.0, 2.8]])
    with jax.enable_x64(True):
        peaks = Peaks(*jnp.asarray(truth), jnp.array([True, True, False]))
        rendered = render_peaks(peaks, LinearAxis(100, 4.0))
        np.testing.assert_allclose(rendered, gaussians(*truth[:, :2], 100), atol=1e-8)


def test_map_frames_is_a_loop():
    frames = jnp.arange(37 * 3.0).reshape(37, 3)
    mapped = map_frames(lambda x: (jnp.sum(x), x[::-1]), frames)
    np.testing.assert_allclose(mapped[0], [float(x.sum()) for x in frames])
    np.testing.assert_array_equal(mapped[1], frames[:, ::-1])


def test_no_frames_give_no_peaks():
    result = PeakPursuit(max_peaks=4)(jnp.zeros((0, 50)))
    assert result.peaks.position.shape == (0, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PeakPursuit(max_peaks=0), "max_peaks: expected at least 1, got 0"),
        (lambda: PeakPursuit(max_rounds=0), "max_rounds: expected at least 1, got 0"),
        (lambda: PeakPursuit(num_steps=-1), "num_steps: expected at least 0, got -1"),
        (lambda: PeakPursuit()(jnp.ones((2, 4))), "magnitudes: expected at least 5 bins, got 4"),
    ],
)
def test_errors_name_argument_expected_and_got(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_full_reaches_the_recorded_residuals():
    path = REFERENCE / "peak_frames.npz"
    if not path.exists():
        pytest.skip(f"recorded results not found: {path}")
    recorded = np.load(path)
    spectra = recorded["linear_spectra"]
    result = PeakPursuit.full()(jnp.asarray(spectra))
    assert result.peaks.active.shape == (34, 1000)
    true = np.array([relative(result.peaks, spectra[k].astype(float), k) for k in range(0, 34, 11)])
    np.testing.assert_allclose(result.relative_residual[::11], true, rtol=1e-2)
    assert np.mean(result.relative_residual <= recorded["relative_residual"]) >= 0.9
    cheap = PeakPursuit()(jnp.asarray(spectra)).relative_residual
    assert np.median(cheap) < 4 * np.median(recorded["relative_residual"])

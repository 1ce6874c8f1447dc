"""Peak pursuit against closed forms, brute force, the SciPy baseline and recorded results."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import scipy_baseline as baseline
from jaxsep.numerics.lanes import map_frames
from jaxsep.signal import peak_fit as banded
from jaxsep.signal import peaks as peaks_module
from jaxsep.signal.axes import LinearAxis
from jaxsep.signal.gaussians import width_bounds
from jaxsep.signal.peaks import PeakOutcome, PeakPursuit, Peaks, render_peaks

REFERENCE = Path(__file__).resolve().parents[1] / ".." / "shared" / "reference"
NUM_FRAMES, NUM_BINS = 5, 300


def default():
    return PeakPursuit(max_peaks=24)


def full():
    return PeakPursuit.full(max_peaks=24, max_rounds=6, num_steps=8)


both = pytest.mark.parametrize("make", [default, full])


def gaussians(amplitude, position, width, num_bins=NUM_BINS):
    f = np.arange(num_bins)[:, None]
    return np.exp(-((f - np.array(position)) ** 2) / (2 * np.array(width) ** 2)) @ np.array(amplitude)


def crowded():
    """Frames of overlapping peaks 5 to 25 bins apart over a little noise."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(NUM_FRAMES):
        position = 8 + np.cumsum(rng.uniform(5, 25, 18))
        position = position[position < NUM_BINS - 8]
        amplitude, width = rng.uniform(0.05, 1, len(position)), rng.uniform(1.7, 2.6, len(position))
        frames.append(gaussians(amplitude, position, width) + 2e-3 * rng.uniform(0, 1, NUM_BINS))
    return np.stack(frames)


def frames_of(spectrum):
    """A batch that holds a spectrum first, then silence."""
    return jnp.asarray(np.pad(spectrum[None], ((0, NUM_FRAMES - 1), (0, 0))))


def found(peaks, frame=0):
    """Amplitude, position and width of a frame's active peaks, in order of position."""
    one = jax.tree.map(lambda x: np.asarray(x[frame]), peaks)
    columns = np.stack([one.amplitude, one.position, one.width])[:, one.active]
    return columns[:, np.argsort(columns[1])]


def relative(peaks, spectrum, frame=0):
    return np.linalg.norm(gaussians(*found(peaks, frame), len(spectrum)) - spectrum) / np.linalg.norm(
        spectrum
    )


def assert_close(actual, desired, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, desired)


def test_closed_form_is_exact_for_isolated_gaussians():
    narrowest, widest = width_bounds()
    truth = np.array([[0.3, 1.0, 0.02], [60.0, 150.49, 241.27], [1.01 * narrowest, 2.0, 0.99 * widest]])
    with jax.enable_x64(True):
        result = default()(frames_of(gaussians(*truth)))
        assert result.peaks.amplitude.dtype == jnp.float64
        np.testing.assert_allclose(found(result.peaks), truth, rtol=1e-9)
        assert result.relative_residual[0] < 1e-8


@pytest.mark.parametrize("bins", [slice(20, 21), slice(20, 26), slice(0, NUM_BINS, NUM_BINS - 1)])
def test_closed_form_stays_admissible(bins):
    """One impulse, one plateau, and impulses at both edges."""
    spectrum = np.zeros(NUM_BINS, np.float32)
    spectrum[bins] = 0.7
    peaks = found(default()(frames_of(spectrum)).peaks)
    narrowest, widest = np.float32(width_bounds())
    assert peaks.shape[1] == (2 if bins.step else 1)
    assert np.isfinite(peaks).all()
    assert ((peaks[2] >= narrowest) & (peaks[2] <= widest)).all()
    assert (spectrum[np.rint(peaks[1]).astype(int)] > 0).all()
    np.testing.assert_allclose(peaks[0], 0.7, rtol=0.2)


@pytest.mark.parametrize("num_bins", [999, 1000, 1001])
def test_maxima_are_those_of_a_brute_force_search(num_bins):
    residual = np.random.default_rng(1).normal(size=num_bins).astype(np.float32)
    largest = [residual[max(f - 2, 0) : f + 3].max() for f in range(num_bins)]
    maxima = np.flatnonzero((residual == largest) & (residual > 0))
    height, position = (np.asarray(x) for x in peaks_module._local_maxima(jnp.asarray(residual)))
    np.testing.assert_array_equal(position[height > 0], maxima)
    np.testing.assert_array_equal(height[height > 0], residual[maxima])


def test_the_strongest_maxima_above_the_floor_are_kept():
    spectrum = np.random.default_rng(1).uniform(0.01, 1, NUM_BINS).astype(np.float32)
    maxima = [f for f in range(NUM_BINS) if spectrum[f] == spectrum[max(f - 2, 0) : f + 3].max()]
    assert len(maxima) > 24
    strongest = np.sort(np.argsort(-spectrum[maxima])[:24])
    kept = found(default()(frames_of(spectrum)).peaks)
    np.testing.assert_array_equal(np.rint(kept[1]), np.array(maxima)[strongest])
    loud = [f for f in maxima if spectrum[f] > 0.95 * spectrum.max()]
    assert 0 < len(loud) < 24
    kept = found(PeakPursuit(floor=jnp.array(0.95), max_peaks=24)(frames_of(spectrum)).peaks)
    np.testing.assert_array_equal(np.rint(kept[1]), loud)


def test_correlations_are_the_integrals_of_the_derivatives():
    position, width = np.array([30.0, 33.1, 33.9, 41.0, 60.2]), np.array([1.6, 2.8, 1.9, 2.2, 1.7])
    d = np.arange(100)[:, None] - position
    shape = np.exp(-(d**2) / (2 * width**2))
    columns = np.stack([shape, shape * d / width**2, shape * d**2 / width**3])  # [3, bins, peaks]
    columns /= np.linalg.norm(columns, axis=1, keepdims=True)
    gram = np.einsum("afk,bfl->abkl", columns, columns)
    with jax.enable_x64(True):
        band = np.asarray(jax.jit(banded._correlations)(jnp.asarray(position), jnp.asarray(width)))
    reach = band.shape[0] // 2
    for k in range(5):
        for offset in range(-reach, reach + 1):
            expected = gram[:, :, k, k + offset] if 0 <= k + offset < 5 else np.zeros((3, 3))
            np.testing.assert_allclose(band[reach + offset, :, :, k], expected, atol=1e-7)


def test_gradient_of_the_fit_is_the_finite_difference():
    parameters = np.array([[1.0, 0.4, 0.7], [30.2, 34.9, 70.4], [1.8, 2.2, 1.6]])
    spectrum = jnp.asarray(gaussians(*(1.02 * parameters), 100))
    with jax.enable_x64(True):
        evaluate = jax.jit(lambda p: banded._evaluate(p, jnp.ones(3, bool), spectrum))
        gradient = evaluate(jnp.asarray(parameters))[1] / banded._scales(jnp.asarray(parameters[2]))
        gradient = gradient * jnp.stack([jnp.ones(3), parameters[0], parameters[0]])
        for index in np.ndindex(3, 3):
            step = np.zeros((3, 3))
            step[index] = 1e-6
            up, down = (0.5 * jnp.sum(evaluate(parameters + s)[0] ** 2) for s in (step, -step))
            np.testing.assert_allclose(gradient[index], (up - down) / 2e-6, rtol=1e-5, atol=1e-7)


def test_full_recovers_overlapping_gaussians():
    truth = np.array([[1.0, 0.6, 0.8, 0.3], [100.2, 106.0, 150.7, 158.0], [1.8, 2.3, 2.6, 1.7]])
    with jax.enable_x64(True):
        result = full()(frames_of(gaussians(*truth)))
        peaks = found(result.peaks)
        np.testing.assert_allclose(peaks[:, peaks[0] > 1e-2], truth, rtol=1e-2)
        assert result.relative_residual[0] < 1e-4


def test_full_separates_peaks_that_share_one_maximum():
    spectrum = gaussians([1.0, 0.6], [100.2, 103.6], [1.9, 1.9]).astype(np.float32)
    one, several = default()(frames_of(spectrum)), full()(frames_of(spectrum))
    assert found(one.peaks).shape[1] == 1
    assert found(several.peaks).shape[1] > 1
    assert several.relative_residual[0] < 0.02 < one.relative_residual[0]


def test_residual_is_at_most_the_baseline_s():
    spectra = crowded()
    with jax.enable_x64(True):
        result = full()(jnp.asarray(spectra))
    for frame, spectrum in enumerate(spectra):
        peaks = baseline.peak_pursuit(spectrum, max_peaks=24, rounds=6)
        theirs = np.linalg.norm(baseline.render_peaks(peaks, NUM_BINS) - spectrum) / np.linalg.norm(spectrum)
        assert relative(result.peaks, spectrum, frame) <= 1.001 * theirs


@both
def test_bounds_hold_and_the_residual_is_that_of_the_peaks(make):
    spectra = crowded().astype(np.float32)
    result = make()(jnp.asarray(spectra))
    narrowest, widest = np.float32(width_bounds())
    assert result.peaks.amplitude.shape == (NUM_FRAMES, 24)
    for frame, spectrum in enumerate(spectra):
        amplitude, _, width = found(result.peaks, frame)
        assert (amplitude > 0).all()
        assert ((width >= narrowest) & (width <= widest)).all()
        expected = relative(result.peaks, spectrum, frame)
        np.testing.assert_allclose(result.relative_residual[frame], expected, rtol=1e-3)
    assert not np.asarray(result.peaks.amplitude)[~np.asarray(result.peaks.active)].any()


def test_rounds_end_as_the_outcome_says():
    spectra = jnp.asarray(crowded(), jnp.float32)
    one, several = default()(spectra), full()(spectra)
    assert jnp.all(one.outcome == PeakOutcome.rounds_used)
    assert (several.relative_residual < 0.6 * one.relative_residual).all()
    assert 1 < several.num_rounds.max() <= 6
    assert (several.num_rounds >= 1).all()
    assert ((several.num_steps > 0) & (several.num_steps <= 8 * several.num_rounds)).all()
    ended = several.num_rounds < 6
    assert jnp.all((several.outcome == PeakOutcome.explained) | ~ended)
    demanding = PeakPursuit(improvement=1e-3, max_peaks=24, max_rounds=3)(spectra)
    assert jnp.all(demanding.outcome == PeakOutcome.explained)
    assert (demanding.num_rounds == 1).all()
    assert_close(demanding.relative_residual, one.relative_residual, rtol=1e-5)


@pytest.mark.parametrize("level", [1e-4, 1e4])
@both
def test_level_only_scales_the_amplitudes(make, level):
    with jax.enable_x64(True):
        spectra = jnp.asarray(crowded())
        plain, scaled = make()(spectra).peaks, make()(level * spectra).peaks
        assert_close(eqx.tree_at(lambda p: p.amplitude, scaled, scaled.amplitude / level), plain, rtol=1e-5)


@pytest.mark.slow
def test_jit_equals_eager():
    pursuit = PeakPursuit.full(max_peaks=4, max_rounds=2, num_steps=1)
    with jax.enable_x64(True):
        spectra = jnp.asarray(crowded()[:1, :60])
        jitted = pursuit(spectra)
        with jax.disable_jit():
            eager = pursuit(spectra)
        assert_close(jitted, eager, rtol=1e-8, atol=1e-12)


@both
def test_frames_do_not_depend_on_each_other(make):
    with jax.enable_x64(True):
        spectra = jnp.asarray(crowded())
        together = make()(spectra)
        assert_close(make()(spectra[::-1]), jax.tree.map(lambda x: x[::-1], together), rtol=1e-6, atol=1e-9)
        alone = make()(frames_of(spectra[2]))
        assert_close(
            *(jax.tree.map(lambda x, i=i: x[i], r) for r, i in ((alone, 0), (together, 2))), rtol=1e-6
        )


@both
def test_dtype_is_kept_and_float32_agrees_with_float64(make):
    spectra = crowded()
    with jax.enable_x64(True):
        double = make()(jnp.asarray(spectra))
    single = make()(jnp.asarray(spectra, jnp.float32))
    for result, dtype in ((double, "float64"), (single, "float32")):
        real = jax.tree.leaves(eqx.filter(result, eqx.is_inexact_array))
        assert [x.dtype for x in real] == [np.dtype(dtype)] * 4
    np.testing.assert_allclose(single.relative_residual, double.relative_residual, rtol=0.05)


@both
def test_silent_and_invalid_frames_say_so_and_leave_the_others_alone(make):
    spectra = crowded()[[0] * NUM_FRAMES].astype(np.float32)
    spectra[1] = 0
    spectra[2, 3], spectra[3, 50], spectra[4, 7] = np.nan, np.inf, -1e-3
    result = make()(jnp.asarray(spectra))
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

    spectra = jnp.asarray(crowded(), jnp.float32)
    residuals = [
        run(PeakPursuit(floor=jnp.array(floor), max_peaks=24), spectra) for floor in (1e-3, 0.2, 0.6)
    ]
    assert len(traces) == 1
    direct = PeakPursuit(floor=jnp.array(0.6), max_peaks=24)(spectra).relative_residual
    np.testing.assert_allclose(residuals[-1], direct, rtol=1e-5)
    assert (np.diff(np.stack(residuals), axis=0) > 0).all()


def test_render_peaks_is_the_dense_sum():
    truth = np.array([[0.5, 1.0, 0.3], [-2.0, 50.3, 120.0], [1.7, 2.0, 2.8]])
    with jax.enable_x64(True):
        peaks = Peaks(*jnp.asarray(truth), jnp.array([True, True, False]))
        rendered = render_peaks(peaks, LinearAxis(100, 4.0))
        np.testing.assert_allclose(rendered, gaussians(*truth[:, :2], 100), atol=1e-8)


@pytest.mark.parametrize("most", [None, (1, 1), (5, 5)])
def test_map_frames_is_a_loop(most):
    frames = jnp.arange(37 * 3.0).reshape(37, 3)
    mapped = map_frames(lambda x: (jnp.sum(x), x[::-1]), frames, most)
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


@pytest.mark.slow
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

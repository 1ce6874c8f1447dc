"""Log-frequency spectrogram against the dense sum, the baseline, finite differences and recorded results."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import scipy_baseline as baseline
from jaxsep.numerics.lanes import map_frames
from jaxsep.signal.axes import LinearAxis, LogAxis
from jaxsep.signal.gaussians import SINUSOID_WIDTH
from jaxsep.signal.log_frequency import log_frequency_spectrogram, log_frequency_spectrum
from jaxsep.signal.peaks import PeakPursuit, Peaks

REFERENCE = Path(__file__).resolve().parents[1] / ".." / "shared" / "reference"
LINEAR, LOG = LinearAxis(6144, 48_000 / 12_288), LogAxis()
NARROW = LinearAxis(400, 4.0), LogAxis(200, 20.0, 1600.0)  # a small pair of axes


def gaussian_frames(amplitude, position, num_bins=400, width=SINUSOID_WIDTH):
    f = np.arange(num_bins)[:, None]
    return np.exp(-((f - np.array(position)) ** 2) / (2 * width**2)) @ np.array(amplitude)


def dense_sum(amplitude, position, width, linear, log):
    heard = position > 0
    neper = log.num_bins / np.log(log.f_max / log.f_min)
    centre = neper * np.log(position[heard] * linear.resolution / log.f_min)
    j = np.arange(log.num_bins)[:, None]
    return np.exp(-((j - centre) ** 2) / (2 * width[heard] ** 2)) @ amplitude[heard]


def some_peaks(dtype=np.float64):
    amplitude = np.array([0.5, 1.0, 0.3, 0.8, 0.2, 0.7], dtype)
    position = np.array([10.2, 110.7, 111.9, 6000.3, -3.0, 0.0], dtype)
    width = np.array([1.9, 2.4, 1.6, 2.8, 1.9, 1.9], dtype)
    return amplitude, position, width


def test_peaks_keep_amplitude_and_width_in_bins():
    amplitude, position, width = some_peaks()
    with jax.enable_x64(True):
        peaks = Peaks(*map(jnp.asarray, some_peaks()), jnp.ones(6, bool))
        spectrum = jax.jit(lambda peaks: log_frequency_spectrum(peaks, LINEAR, LOG))(peaks)
    np.testing.assert_allclose(spectrum, dense_sum(amplitude, position, width, LINEAR, LOG), atol=1e-8)
    theirs = baseline.log_frequency_spectrum(baseline.Peaks(amplitude, position, width))
    np.testing.assert_allclose(spectrum, theirs, atol=1e-8)


def test_octaves_are_equally_far_apart_and_sinusoids_look_alike():
    with jax.enable_x64(True):
        position = 30.3 * 2.0 ** np.arange(4)
        frames = jnp.asarray(gaussian_frames(np.ones(4), position))[None]
        spectrum = log_frequency_spectrogram(frames, *NARROW, PeakPursuit(max_peaks=8))[0]
        centre = NARROW[1].to_bin(jnp.asarray(position * 4.0))
        np.testing.assert_allclose(np.diff(centre), 200 * np.log(2) / np.log(80), rtol=1e-9)
        j = np.arange(200)[:, None]
        expected = np.exp(-((j - np.asarray(centre)) ** 2) / (2 * SINUSOID_WIDTH**2)).sum(1)
        np.testing.assert_allclose(spectrum, expected, atol=1e-6)


def test_frames_are_those_of_the_pursuit():
    rng = np.random.default_rng(0)
    frames = jnp.asarray(
        [gaussian_frames(rng.uniform(0.1, 1, 9), rng.uniform(5, 395, 9)) for _ in range(19)], jnp.float32
    )
    pursuit = PeakPursuit(max_peaks=16)
    spectrogram = log_frequency_spectrogram(frames, *NARROW, pursuit)
    peaks = jax.tree.map(np.asarray, pursuit(frames).peaks)
    for k in range(19):
        expected = dense_sum(peaks.amplitude[k], peaks.position[k], peaks.width[k], *NARROW)
        np.testing.assert_allclose(spectrogram[k], expected, atol=1e-5)


def test_jit_equals_eager_without_the_inactive_peaks():
    every = Peaks(*map(jnp.asarray, some_peaks(np.float32)), jnp.arange(6) < 2)
    eager = log_frequency_spectrum(every, *NARROW)
    assert eager.dtype == jnp.float32
    jitted = jax.jit(lambda peaks: log_frequency_spectrum(peaks, *NARROW))
    np.testing.assert_allclose(jitted(every), eager, atol=1e-5)
    fewer = jax.tree.map(lambda x: jnp.where(every.active, x, jnp.zeros_like(x)), every)
    np.testing.assert_allclose(jitted(fewer), eager, atol=1e-5)
    assert not jitted(jax.tree.map(jnp.zeros_like, every)).any()


def test_gradient_is_the_finite_difference():
    with jax.enable_x64(True):
        frame = gaussian_frames([1.0, 0.4, 0.7], [60.3, 107.1, 115.5]) + 1e-3
        weight = jnp.asarray(np.random.default_rng(0).normal(size=200))

        def total(frame):
            return weight @ log_frequency_spectrogram(frame[None], *NARROW, PeakPursuit(max_peaks=8))[0]

        gradient, total = jax.jit(jax.grad(total))(jnp.asarray(frame)), jax.jit(total)
        for f in (59, 60, 61, 106, 107, 108, 114, 115, 116):
            step = 1e-6 * (np.arange(400) == f)
            slope = (total(jnp.asarray(frame + step)) - total(jnp.asarray(frame - step))) / 2e-6
            assert abs(slope) > 1e-3
            np.testing.assert_allclose(gradient[f], slope, rtol=1e-4)


def test_silent_and_invalid_frames_give_zeros_and_finite_gradients():
    frames = np.zeros((4, 400), np.float32)
    frames[1] = gaussian_frames([1.0], [50.2])
    frames[2, 30] = 1.0  # neighbours are exactly zero
    frames[3, 30] = np.nan

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def energy(frames):
        spectrogram = log_frequency_spectrogram(frames, *NARROW, PeakPursuit(max_peaks=16))
        return jnp.sum(spectrogram**2), spectrogram

    (_, spectrogram), gradient = energy(jnp.asarray(frames))
    assert np.isfinite(spectrogram).all()
    np.testing.assert_array_equal(np.max(spectrogram, axis=1) > 0.9, [False, True, True, False])
    assert not spectrogram[jnp.array([0, 3])].any()
    assert np.isfinite(gradient).all()
    assert not gradient[jnp.array([0, 3])].any()
    assert np.abs(gradient[1]).max() > 0.1


def test_wrong_number_of_bins_is_named():
    with pytest.raises(ValueError, match="magnitudes: expected 400 bins as linear_axis has, got 401"):
        log_frequency_spectrogram(jnp.zeros((1, 401)), *NARROW)


def test_agrees_with_the_recorded_spectrograms():
    path = REFERENCE / "peak_frames.npz"
    if not path.exists():
        pytest.skip(f"recorded results not found: {path}")
    recorded = np.load(path)
    frames, theirs = jnp.asarray(recorded["linear_spectra"]), recorded["log_spectra"]

    def difference(pursuit):
        move = jax.jit(lambda peaks: map_frames(lambda p: log_frequency_spectrum(p, LINEAR, LOG), peaks))
        ours = move(pursuit(frames).peaks)
        return np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)

    # Both explain the linear spectra to a few percent of their norm, with peaks of their own.
    full, default = difference(PeakPursuit.full()), difference(PeakPursuit())
    assert np.median(full) < 0.06
    assert full.max() < 0.12
    assert np.median(default) < 0.12
    assert default.max() < 0.3

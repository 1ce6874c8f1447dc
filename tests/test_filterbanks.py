"""Log-frequency spectrograms by filter banks, against their defining sums."""

from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxsep.signal.axes import LogAxis
from jaxsep.signal.filterbanks import constant_q_spectrogram, mel_spectrogram
from jaxsep.signal.stft import GaussianSTFT

SINUSOID_STD = 6 / np.pi
RATE = 2000.0
AXIS = LogAxis(num_bins=150, f_min=40.0, f_max=780.0)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def relative_error(actual, expected):
    return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


def frequencies_of(axis):
    return axis.f_min * (axis.f_max / axis.f_min) ** (np.arange(axis.num_bins) / axis.num_bins)


def mel_of(magnitudes):
    return mel_spectrogram(magnitudes, sample_rate=RATE, axis=AXIS)


def constant_q_of(samples):
    return constant_q_spectrogram(samples, sample_rate=RATE, hop=24, axis=AXIS)


def sinusoid_magnitudes(frequency, amplitude=1.0):
    """STFT magnitudes of a stationary sinusoid, and the transform."""
    stft = GaussianSTFT(window_std=64, hop=256)
    time = np.arange(2000)
    samples = amplitude * np.cos(2 * np.pi * frequency / RATE * time + 1)
    return jnp.abs(stft.analyse(jnp.asarray(samples), first_frame=4, num_frames=1)), stft


def peak_of_parabola(values):
    """Position and standard deviation of a sampled Gaussian, from its three largest samples' logarithms."""
    top = int(np.argmax(values))
    left, middle, right = np.log(values[top - 1 : top + 2])
    curvature = 2 * middle - left - right
    return top + (right - left) / (2 * curvature), 1 / np.sqrt(curvature)


def test_mel_is_the_sum_over_all_linear_bins(dtype):
    num_linear = 385
    magnitudes = np.abs(noise(3, num_linear))
    hz_per_bin = RATE / (2 * (num_linear - 1))
    expected = np.zeros((3, AXIS.num_bins))
    for j in range(AXIS.num_bins):
        centre = 40 * (780 / 40) ** (j / 150) / hz_per_bin
        std = SINUSOID_STD * max(1, centre / (150 / np.log(780 / 40)))
        height = np.sqrt(SINUSOID_STD**2 + std**2) / (SINUSOID_STD * np.sqrt(2 * np.pi) * std)
        expected[:, j] = magnitudes @ (height * np.exp(-((np.arange(num_linear) - centre) ** 2) / 2 / std**2))
    actual = mel_of(jnp.asarray(magnitudes, dtype))
    assert actual.dtype == dtype
    # Beyond 6 standard deviations the filters are cut, at 1.5e-8 of their peak.
    assert relative_error(actual, expected) < (1e-5 if dtype == np.float32 else 3e-8)


@pytest.mark.parametrize("bin_index", [30, 75, 120])
def test_mel_keeps_the_peak_of_a_sinusoid(x64, bin_index):
    frequency = frequencies_of(AXIS)[bin_index]
    magnitudes, stft = sinusoid_magnitudes(frequency, amplitude=0.6)
    spectrum = np.asarray(mel_of(magnitudes))[0]
    assert np.argmax(spectrum) == pytest.approx(bin_index, abs=1)
    assert spectrum[bin_index] == pytest.approx(0.3, rel=1e-5)
    # Where the filters are proportional to frequency, the peak's width on the log axis is known.
    bins_per_log = AXIS.num_bins / np.log(AXIS.f_max / AXIS.f_min)
    centre = frequency / RATE * stft.n_fft
    smeared = np.hypot(SINUSOID_STD, SINUSOID_STD * max(1, centre / bins_per_log))
    assert peak_of_parabola(spectrum)[1] == pytest.approx(smeared * bins_per_log / centre, rel=0.1)


def test_mel_above_half_the_sample_rate_is_empty():
    magnitudes = jnp.asarray(np.abs(noise(2, 385)), jnp.float32)
    axis = LogAxis(num_bins=200, f_min=100.0, f_max=10_000.0)
    spectrum, frequencies = mel_spectrogram(magnitudes, sample_rate=RATE, axis=axis), frequencies_of(axis)
    assert np.all(spectrum[:, frequencies < 900] > 0)
    assert np.all(spectrum[:, frequencies > 2500] == 0)


def test_mel_at_the_published_size():
    """The full axis of a 48 kHz recording: a 440 Hz sinusoid appears at its bin with half its amplitude."""
    stft = GaussianSTFT()
    linear = 440 / 48_000 * stft.n_fft
    peak = 0.5 * np.exp(-((np.arange(stft.num_bins) - linear) ** 2) / (2 * SINUSOID_STD**2))
    spectrum = mel_spectrogram(jnp.asarray(peak[None], jnp.float32), sample_rate=48_000.0)[0]
    position, _ = peak_of_parabola(np.asarray(spectrum, float))
    assert spectrum.shape == (1024,)
    assert np.max(spectrum) == pytest.approx(0.5, rel=5e-3)
    assert position == pytest.approx(1024 / np.log(1024) * np.log(440 / 20), abs=0.5)


@pytest.mark.parametrize("num_samples", [1, 701])
def test_constant_q_is_the_windowed_fourier_sum(dtype, num_samples):
    samples = noise(num_samples)
    relative_std = SINUSOID_STD * np.log(780 / 40) / 150
    num_frames = 1 + int(np.ceil((num_samples - 1) / 24))
    seconds = (np.arange(num_samples) - 24 * np.arange(num_frames)[:, None]) / RATE
    expected = []
    for frequency in frequencies_of(AXIS):
        std = relative_std * frequency
        window = std * np.sqrt(2 * np.pi) * np.exp(-2 * (np.pi * std * seconds) ** 2) / RATE
        expected.append(np.abs(np.sum(samples * window * np.exp(-2j * np.pi * frequency * seconds), axis=1)))
    actual = constant_q_of(jnp.asarray(samples, dtype))
    assert actual.dtype == dtype
    assert actual.shape == (num_frames, 150)
    # The windows of the sum see a little of negative frequencies and of those above half the rate.
    assert relative_error(actual, np.array(expected).T) < (1e-5 if dtype == np.float32 else 1e-6)


def test_constant_q_of_a_sinusoid_is_a_gaussian_on_the_log_axis(x64):
    frequency, amplitude = 310.0, 0.7
    samples = jnp.asarray(amplitude * np.cos(2 * np.pi * frequency / RATE * np.arange(4000)))
    spectrum = np.asarray(constant_q_of(samples))[80]
    position, std = peak_of_parabola(spectrum)
    assert position == pytest.approx(150 * np.log(310 / 40) / np.log(780 / 40), abs=0.2)
    assert std == pytest.approx(SINUSOID_STD, rel=0.05)
    assert np.max(spectrum) == pytest.approx(amplitude / 2, rel=0.04)
    axis = LogAxis(num_bins=1, f_min=310.0, f_max=312.0)
    exact = constant_q_spectrogram(samples, sample_rate=RATE, hop=24, axis=axis)
    assert exact[80, 0] == pytest.approx(amplitude / 2, rel=1e-6)


def test_constant_q_width_is_an_option(x64):
    samples = jnp.asarray(np.cos(2 * np.pi * 310 / RATE * np.arange(4000)))
    spectrum = constant_q_spectrogram(samples, sample_rate=RATE, width_bins=4.0, hop=50, axis=AXIS)[40]
    assert peak_of_parabola(np.asarray(spectrum))[1] == pytest.approx(4, rel=0.05)


def test_constant_q_has_the_frames_of_the_stft():
    for num_samples in (1, 240, 241, 242):
        spectrogram = jax.eval_shape(constant_q_of, jax.ShapeDtypeStruct((num_samples,), jnp.float32))
        assert spectrogram.shape[0] == GaussianSTFT(window_std=64, hop=24).num_frames(num_samples)


@pytest.mark.parametrize(("transform", "shape"), [(mel_of, (4, 193)), (constant_q_of, (200,))])
def test_vmap_equals_a_loop(transform, shape):
    batch = jnp.asarray(np.abs(noise(2, *shape)), jnp.float32)
    loop = jnp.stack([transform(element) for element in batch])
    assert relative_error(jax.vmap(transform)(batch), loop) < 1e-5


def test_jit_equals_eager(x64):
    few = {"sample_rate": RATE, "axis": LogAxis(num_bins=3, f_min=100.0, f_max=500.0)}
    magnitudes, samples = jnp.asarray(np.abs(noise(2, 97))), jnp.asarray(noise(100))
    with jax.disable_jit():
        mel = mel_spectrogram(magnitudes, **few)
        constant_q = constant_q_spectrogram(samples, **few)
    assert relative_error(mel_spectrogram(magnitudes, **few), mel) < 1e-14
    assert relative_error(constant_q_spectrogram(samples, **few), constant_q) < 1e-12


@pytest.mark.parametrize(("transform", "shape"), [(mel_of, (2, 97)), (constant_q_of, (60,))])
def test_gradients_match_finite_differences(x64, transform, shape):
    def loss(inputs):
        return jnp.sum(jnp.sin(3 * transform(jnp.asarray(inputs))))

    check_grads(jax.jit(loss), (np.abs(noise(*shape)),), order=1, modes=("fwd", "rev"), rtol=1e-4)


@pytest.mark.parametrize(("transform", "shape"), [(mel_of, (2, 97)), (constant_q_of, (60,))])
def test_silence_gives_zeros_and_finite_gradients(transform, shape):
    silence = jnp.zeros(shape, jnp.float32)
    total, gradient = jax.jit(jax.value_and_grad(lambda inputs: jnp.sum(transform(inputs))))(silence)
    assert total == 0  # a sum of nonnegative numbers
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mel_spectrogram(jnp.ones((2, 1)), sample_rate=RATE),
            "magnitudes: expected at least 2 bins, got 1",
        ),
        (
            lambda: mel_spectrogram(jnp.ones((2, 9)), sample_rate=0.0),
            "sample_rate: expected a positive number of Hz, got 0.0",
        ),
        # Unwrapped, since the type checks of the test run would object first.
        (
            lambda: unwrap(mel_spectrogram)(jnp.ones((2, 9), jnp.int16), sample_rate=RATE),
            "magnitudes: expected floating-point numbers, got int16",
        ),
        (
            lambda: unwrap(constant_q_spectrogram)(jnp.ones(9, jnp.int16), sample_rate=RATE),
            "samples: expected floating-point numbers, got int16",
        ),
        (lambda: constant_q_of(jnp.ones(0)), "samples: expected at least 1 sample, got 0"),
        (
            lambda: constant_q_spectrogram(jnp.ones(9), sample_rate=-1.0),
            "sample_rate: expected a positive number, got -1",
        ),
        (
            lambda: constant_q_spectrogram(jnp.ones(9), sample_rate=RATE, hop=0),
            "hop: expected a positive number, got 0",
        ),
        (
            lambda: constant_q_spectrogram(jnp.ones(9), sample_rate=RATE, width_bins=0.0),
            "width_bins: expected a positive number, got 0.0",
        ),
    ],
)
def test_errors_name_argument_expected_and_got(call, message):
    with pytest.raises(ValueError, match=message):
        call()

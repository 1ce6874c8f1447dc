"""The Gaussian STFT against plain Fourier sums, and its inverse as a projection."""

from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxsep.signal.stft import GaussianSTFT, normalise_overlap

pytestmark = pytest.mark.compiles


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def complex_noise(*shape, seed=0):
    return noise(*shape, seed=seed) + 1j * noise(*shape, seed=seed + 1)


def window_of(window_std):
    time = np.arange(-6 * window_std, 6 * window_std)
    window = np.exp(-(time**2) / (2 * window_std**2))
    return window / window.sum()


def plain_stft(samples, window_std, hop):
    """Fourier sums, frame by frame, with time counted from the frame's centre."""
    n_fft = 12 * window_std
    time = np.arange(-n_fft // 2, n_fft // 2)
    waves = np.exp(-2j * np.pi * np.outer(time, np.arange(n_fft // 2 + 1)) / n_fft)
    num_frames = 1
    while (num_frames - 1) * hop < len(samples) - 1:
        num_frames += 1
    padded = np.pad(samples, (n_fft // 2, n_fft // 2 + num_frames * hop))
    frames = [padded[n * hop : n * hop + n_fft] * window_of(window_std) for n in range(num_frames)]
    return np.stack(frames) @ waves


def plain_overlap_add(frames, hop):
    total = np.zeros((len(frames) - 1) * hop + frames.shape[1])
    for n, frame in enumerate(frames):
        total[n * hop : n * hop + len(frame)] += frame
    return total


def bin_weights(stft):
    """Weights that make the inner product of one-sided spectra that of the two-sided ones."""
    weights = np.full(stft.num_bins, 2.0)
    weights[[0, -1]] = 1
    return weights


def relative_error(actual, expected):
    return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


def test_default_constants():
    stft = GaussianSTFT()
    assert (stft.window_std, stft.hop, stft.n_fft, stft.num_bins) == (1024, 256, 12288, 6145)
    assert stft.sinusoid_std == pytest.approx(6 / np.pi)


@pytest.mark.parametrize(("num_samples", "expected"), [(1, 1), (2, 2), (11, 2), (12, 3), (101, 11)])
def test_last_frame_is_centred_at_or_past_the_last_sample(num_samples, expected):
    assert GaussianSTFT(window_std=8, hop=10).num_frames(num_samples) == expected


@pytest.mark.parametrize(("num_samples", "hop"), [(1, 5), (333, 7), (500, 32)])
def test_analysis_is_the_windowed_fourier_sum(dtype, num_samples, hop):
    samples = noise(num_samples)
    spectrogram = GaussianSTFT(window_std=8, hop=hop).analyse(jnp.asarray(samples, dtype))
    expected = plain_stft(samples, 8, hop)
    assert spectrogram.dtype == jnp.result_type(dtype, jnp.complex64)
    assert spectrogram.shape == expected.shape
    assert relative_error(spectrogram, expected) < 20 * jnp.finfo(dtype).eps


def test_sinusoid_is_a_gaussian_of_half_its_amplitude(x64):
    stft = GaussianSTFT(window_std=32, hop=64)
    amplitude, position = 0.8, 50.3
    time = np.arange(3000)
    samples = amplitude * np.cos(2 * np.pi * position / stft.n_fft * time + 0.4)
    frame = np.abs(stft.analyse(jnp.asarray(samples)))[20]
    bins = np.arange(stft.num_bins)
    expected = amplitude / 2 * np.exp(-((bins - position) ** 2) / (2 * stft.sinusoid_std**2))
    np.testing.assert_allclose(frame, expected, atol=1e-8)


def test_phase_refers_to_the_window_centre(x64):
    stft = GaussianSTFT(window_std=32, hop=100)
    frequency, centre = 40.7 / stft.n_fft, 9 * 100
    samples = np.cos(2 * np.pi * frequency * (np.arange(2000) - centre) + 0.3)
    frame = np.asarray(stft.analyse(jnp.asarray(samples)))[9, 37:45]
    np.testing.assert_allclose(np.angle(frame), 0.3, atol=1e-6)


@pytest.mark.parametrize(("num_samples", "hop"), [(1, 8), (97, 32), (1501, 25), (1501, 128)])
def test_synthesis_inverts_analysis(dtype, num_samples, hop):
    stft = GaussianSTFT(window_std=32, hop=hop)
    samples = jnp.asarray(noise(num_samples), dtype)
    restored = stft.synthesise(stft.analyse(samples), num_samples)
    assert restored.dtype == dtype
    assert restored.shape == samples.shape
    assert relative_error(restored, samples) < (1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("hop", [100, 256, 1024])
def test_synthesis_inverts_analysis_with_the_default_window(hop):
    stft = GaussianSTFT(hop=hop)
    samples = jnp.asarray(noise(9001), jnp.float32)
    assert relative_error(stft.synthesise(stft.analyse(samples), 9001), samples) < 1e-5


@pytest.mark.parametrize("hop", [7, 96])
def test_synthesis_is_the_orthogonal_projection(x64, hop):
    stft = GaussianSTFT(window_std=24, hop=hop)
    num_samples = 701
    spectrogram = complex_noise(stft.num_frames(num_samples), stft.num_bins)
    projected = stft.analyse(stft.synthesise(jnp.asarray(spectrogram), num_samples))
    consistent = stft.analyse(jnp.asarray(noise(num_samples, seed=5)))

    def inner(a, b):
        return np.sum(bin_weights(stft) * np.real(np.conj(a) * b))

    size = np.sqrt(inner(spectrogram, spectrogram) * inner(consistent, consistent))
    assert abs(inner(spectrogram, consistent)) > 1e-4 * size
    assert abs(inner(spectrogram - projected, consistent)) < 1e-13 * size
    again = stft.analyse(stft.synthesise(projected, num_samples))
    assert relative_error(again, projected) < 1e-12


@pytest.mark.parametrize(("num_frames", "hop"), [(1, 8), (70, 7), (33, 32)])
def test_overlap_add_is_the_plain_sum(dtype, num_frames, hop):
    stft = GaussianSTFT(window_std=8, hop=hop)
    spectrogram = complex_noise(num_frames, stft.num_bins)
    signs = (-1.0) ** np.arange(stft.num_bins)
    frames = np.fft.irfft(spectrogram * signs) * window_of(8)
    summed = stft.overlap_add(jnp.asarray(spectrogram, jnp.result_type(dtype, jnp.complex64)))
    power = stft.window_power(num_frames, dtype)
    assert summed.dtype == power.dtype == dtype
    assert summed.shape == power.shape == (stft.span(num_frames),)
    tolerance = 20 * jnp.finfo(dtype).eps
    assert relative_error(summed, plain_overlap_add(frames, hop)) < tolerance
    squares = np.tile(window_of(8) ** 2, (num_frames, 1))
    assert relative_error(power, plain_overlap_add(squares, hop)) < tolerance


def test_samples_without_a_frame_are_zero(dtype):
    stft = GaussianSTFT(window_std=8, hop=8)
    spectrogram = jnp.asarray(complex_noise(3, stft.num_bins), jnp.result_type(dtype, jnp.complex64))
    samples = stft.synthesise(spectrogram, 400)
    last = 2 * 8 + stft.n_fft // 2
    assert samples.shape == (400,)
    assert np.all(samples[last:] == 0)
    # Half a window of the signal is well covered, and no sample near the rim is blown up.
    assert np.all(samples[: 2 * 8] != 0)
    assert np.max(np.abs(samples)) < np.max(np.abs(spectrogram)) / jnp.sqrt(jnp.finfo(dtype).eps)


def test_signal_is_recovered_wherever_few_frames_cover_it(dtype):
    stft = GaussianSTFT(window_std=8, hop=8)
    samples = jnp.asarray(noise(400), dtype)
    restored = stft.synthesise(stft.analyse(samples, num_frames=3), 400)
    near = slice(0, 2 * 8 + 2 * 8)  # to two standard deviations past the last centre
    assert relative_error(restored[near], samples[near]) < 100 * jnp.finfo(dtype).eps


def test_ranges_of_frames_are_those_of_the_whole(dtype):
    stft = GaussianSTFT(window_std=16, hop=10)
    samples = jnp.asarray(noise(777), dtype)
    whole = stft.analyse(samples)
    traces = 0

    @jax.jit
    def chunk(first_frame):
        nonlocal traces
        traces += 1
        return stft.analyse(samples, first_frame=first_frame, num_frames=9)

    starts = range(0, whole.shape[0], 9)
    chunks = np.concatenate([chunk(start) for start in starts])
    assert traces == 1
    assert relative_error(chunks[: whole.shape[0]], whole) < 10 * jnp.finfo(dtype).eps
    tail = stft.analyse(samples, first_frame=70)
    assert tail.shape[0] == whole.shape[0] - 70
    assert relative_error(tail, whole[70:]) < 10 * jnp.finfo(dtype).eps


def test_frames_past_the_end_hold_the_rest_of_the_signal_and_then_nothing(x64):
    stft = GaussianSTFT(window_std=16, hop=10)
    samples = noise(300)
    expected = stft.analyse(jnp.asarray(np.pad(samples, (0, 700))))[20:90]
    beyond = stft.analyse(jnp.asarray(samples), first_frame=20, num_frames=70)
    np.testing.assert_allclose(beyond, expected, atol=1e-14)
    assert np.any(beyond[12] != 0)
    assert np.all(beyond[-30:] == 0)
    assert np.all(stft.analyse(jnp.asarray(samples), first_frame=500, num_frames=3) == 0)


def test_synthesis_in_pieces_equals_the_whole(x64):
    stft = GaussianSTFT(window_std=16, hop=10)
    num_samples = 777
    spectrogram = complex_noise(stft.num_frames(num_samples), stft.num_bins)
    total = np.zeros(stft.span(len(spectrogram)))
    for first in range(0, len(spectrogram), 20):
        piece = np.asarray(stft.overlap_add(jnp.asarray(spectrogram[first : first + 20])))
        total[first * stft.hop :][: len(piece)] += piece
    power = stft.window_power(len(spectrogram))
    samples = normalise_overlap(jnp.asarray(total), power)[stft.n_fft // 2 :][:num_samples]
    whole = stft.synthesise(jnp.asarray(spectrogram), num_samples)
    np.testing.assert_allclose(samples, whole, rtol=1e-10, atol=1e-10)


def test_jit_equals_eager_and_vmap_equals_a_loop(x64):
    stft = GaussianSTFT(window_std=4, hop=6)
    batch = jnp.asarray(noise(2, 32))

    def filtered(samples):
        spectrogram = stft.analyse(samples)
        return spectrogram, stft.synthesise(spectrogram * (1 + 1j), 32)

    with jax.disable_jit():
        eager = filtered(batch[0])
    loop = [jnp.stack(outputs) for outputs in zip(*map(filtered, batch), strict=True)]
    for actual, expected in zip(jax.jit(filtered)(batch[0]), eager, strict=True):
        assert relative_error(actual, expected) < 1e-14
    for actual, expected in zip(jax.vmap(filtered)(batch), loop, strict=True):
        assert relative_error(actual, expected) < 1e-14


def test_gradients_match_finite_differences(x64):
    stft = GaussianSTFT(window_std=4, hop=7)
    factors = jnp.asarray(complex_noise(stft.num_frames(61) - 1, stft.num_bins))

    def loss(samples):
        spectra = stft.analyse(jnp.asarray(samples), first_frame=1)
        return jnp.sum(jnp.sin(stft.synthesise(factors * (spectra + spectra**2), 50)))

    check_grads(jax.jit(loss), (noise(61),), order=1, modes=("fwd", "rev"), rtol=1e-4)


def test_transposes_under_vmap(x64):
    """⟨A x, z⟩ = ⟨x, Aᵀ z⟩ for both directions of the transform, in a batch."""
    stft = GaussianSTFT(window_std=8, hop=7)
    samples = jnp.asarray(noise(2, 200))
    spectra = jnp.asarray(complex_noise(2, stft.num_frames(200), stft.num_bins))
    spans = jnp.asarray(noise(2, stft.span(spectra.shape[1])))
    cases = ((stft.analyse, samples, spectra), (stft.overlap_add, spectra, spans))
    for f, inputs, cotangents in cases:
        outputs, pull_back = jax.vjp(jax.vmap(f), inputs)
        forward = jnp.sum(outputs * cotangents).real
        backward = jnp.sum(inputs * pull_back(cotangents)[0]).real
        np.testing.assert_allclose(backward, forward, rtol=1e-12)


def test_silence_stays_silent_with_finite_gradients():
    stft = GaussianSTFT(window_std=8, hop=8)
    silence = jnp.zeros(60, jnp.float32)

    def energy(samples):
        spectrogram = stft.analyse(samples)
        restored = stft.synthesise(spectrogram, 200)
        return jnp.sum(jnp.abs(spectrogram)) + jnp.sum(restored**2), restored

    (total, restored), gradient = jax.jit(jax.value_and_grad(energy, has_aux=True))(silence)
    assert total == 0
    assert np.all(restored == 0)
    assert np.all(np.isfinite(gradient))


def test_temporaries_do_not_grow_with_the_signal():
    """Neither the transforms nor their derivatives hold all windowed frames at once."""
    stft = GaussianSTFT(window_std=256, hop=64)
    samples = jax.ShapeDtypeStruct((150_000,), jnp.float32)
    spectra = jax.eval_shape(stft.analyse, samples)
    spans = jax.eval_shape(stft.overlap_add, spectra)

    def pull_back(f):
        return lambda inputs, cotangents: jax.vjp(f, inputs)[1](cotangents)[0]

    def temporary_bytes(f, *arguments):
        return jax.jit(f).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    all_frames = spectra.shape[0] * stft.n_fft * 4
    assert temporary_bytes(stft.analyse, samples) < all_frames / 10
    assert temporary_bytes(stft.overlap_add, spectra) < all_frames / 10
    assert temporary_bytes(pull_back(stft.analyse), samples, spectra) < all_frames / 10
    assert temporary_bytes(pull_back(stft.overlap_add), spectra, spans) < all_frames / 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: GaussianSTFT(window_std=0), "window_std: expected at least 1 sample, got 0"),
        (lambda s: GaussianSTFT(window_std=8, hop=0), r"hop: expected 1 to .* = 32 samples, got 0"),
        (lambda s: GaussianSTFT(window_std=8, hop=33), r"hop: expected 1 to .* = 32 samples, got 33"),
        (lambda s: s.num_frames(0), "num_samples: expected at least 1, got 0"),
        (lambda s: s.analyse(jnp.zeros(0)), "num_samples: expected at least 1, got 0"),
        # Unwrapped, since the type checks of the test run would object first.
        (
            lambda s: unwrap(GaussianSTFT.analyse)(s, jnp.zeros(9, jnp.int16)),
            "samples: expected floating-point numbers, got int16",
        ),
        (lambda s: s.analyse(jnp.zeros(9), first_frame=-1), "first_frame: expected at least 0, got -1"),
        (lambda s: s.analyse(jnp.zeros(9), num_frames=0), "num_frames: expected at least 1, got 0"),
        (
            lambda s: s.analyse(jnp.zeros(9), first_frame=5),
            r"num_frames: .* got -2 \(the signal has 3 frames\)",
        ),
        (
            lambda s: jax.jit(lambda i: s.analyse(jnp.zeros(9), first_frame=i))(1),
            "num_frames: expected a number when first_frame is traced",
        ),
        (lambda s: s.synthesise(jnp.zeros((2, 49), complex), 0), "num_samples: expected at least 1, got 0"),
        (lambda s: s.synthesise(jnp.zeros((2, 48), complex), 9), "spectrogram: expected 49 bins, got 48"),
        (
            lambda s: s.overlap_add(jnp.zeros((0, 49), complex)),
            "spectrogram: expected at least 1 frame, got 0",
        ),
        (lambda s: s.window_power(0), "num_frames: expected at least 1, got 0"),
    ],
)
def test_errors_name_argument_expected_and_got(call, message):
    with pytest.raises(ValueError, match=message):
        call(GaussianSTFT(window_std=8, hop=4))

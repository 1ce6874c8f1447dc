"""Ratio masks and the Griffin–Lim iteration."""

from inspect import unwrap
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxsep.signal.masks import griffin_lim, ratio_masks
from jaxsep.signal.stft import GaussianSTFT

STFT = GaussianSTFT(window_std=8, hop=6)
NUM_SAMPLES = 175  # 30 frames


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def magnitudes_with_silence():
    """Three instruments over (frames, bins), with bins where some or all models or the mixture are zero."""
    magnitudes, mixture = np.abs(noise(3, 4, 6)), np.abs(noise(4, 6, seed=1))
    magnitudes[:, 0, :3] = 0
    magnitudes[1, 1] = 0
    mixture[0, 0] = mixture[2, 2] = 0
    return magnitudes, mixture


def test_masks_are_the_ratio_and_sum_to_one(dtype):
    magnitudes, mixture = magnitudes_with_silence()
    masks = ratio_masks(jnp.asarray(magnitudes, dtype), jnp.asarray(mixture, dtype), share=0.01)
    assert masks.dtype == dtype
    shared = 0.01 * mixture
    heard = magnitudes.sum(0) + shared > 0
    expected = ((magnitudes + shared / 3) / np.where(heard, magnitudes.sum(0) + shared, 1))[:, heard]
    np.testing.assert_allclose(masks[:, heard], expected, rtol=10 * jnp.finfo(dtype).eps)
    np.testing.assert_allclose(masks[:, ~heard], 1 / 3, rtol=jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.sum(masks, axis=0), 1, rtol=4 * jnp.finfo(dtype).eps)
    assert np.sum(~heard) == 1


def test_without_a_share_unexplained_energy_is_dropped(dtype):
    magnitudes, mixture = magnitudes_with_silence()
    masks = np.asarray(ratio_masks(jnp.asarray(magnitudes, dtype), jnp.asarray(mixture, dtype), share=0.0))
    played = magnitudes.sum(0) > 0
    np.testing.assert_allclose(
        masks[:, played], (magnitudes / magnitudes.sum(0).clip(1e-9))[:, played], rtol=1e-5
    )
    assert np.all(masks[:, ~played] == 0)
    assert np.sum(~played) == 3


def test_with_an_exponent_powers_are_compared(dtype):
    magnitudes, mixture = (jnp.asarray(x, dtype) for x in magnitudes_with_silence())
    for share in (0.01, 0.0):
        ratios = np.asarray(ratio_masks(magnitudes, mixture, share=share), float)
        masks = ratio_masks(magnitudes, mixture, share=share, exponent=2.0)
        assert masks.dtype == dtype
        total = np.sum(ratios**2, axis=0)
        expected = ratios**2 / np.where(total > 0, total, 1)
        np.testing.assert_allclose(masks, expected, rtol=1e-5, atol=1e-30)
        assert not np.allclose(masks, ratios, atol=0.1)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_masks_and_gradients_are_finite_down_to_silence(dtype, exponent):
    magnitudes, mixture = (jnp.asarray(x, dtype) for x in magnitudes_with_silence())

    @jax.jit
    def masks_and_gradients(magnitudes, mixture, share):
        def weighted(magnitudes, mixture, share):
            masks = ratio_masks(magnitudes, mixture, share=share, exponent=exponent)
            return jnp.sum(masks * jnp.arange(1.0, 4.0, dtype=dtype)[:, None, None]), masks

        (_, masks), gradients = jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True)(
            magnitudes, mixture, share
        )
        return masks, gradients

    for scale in (1.0, 1e-12, 1e-25, 1e-38, 1e-44, 0.0):
        for share in (0.0, 1e-4):
            masks, gradients = masks_and_gradients(
                scale * magnitudes, scale * mixture, jnp.asarray(share, dtype)
            )
            assert np.all((masks >= 0) & (masks <= 1))
            total = np.sum(masks, axis=0)
            assert np.all((np.abs(total - 1) < 1e-6) | ((share == 0) & (total == 0)))
            assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_share_can_vary_without_retracing():
    magnitudes, mixture = (jnp.asarray(x, jnp.float32) for x in magnitudes_with_silence())
    traces = 0

    @jax.jit
    def masked(share):
        nonlocal traces
        traces += 1
        return ratio_masks(magnitudes, mixture, share=share)

    results = [masked(jnp.asarray(share)) for share in (0.0, 1e-4, 0.5)]
    assert traces == 1
    for share, result in zip((0.0, 1e-4, 0.5), results, strict=True):
        np.testing.assert_allclose(result, ratio_masks(magnitudes, mixture, share=share), rtol=1e-6)
    assert not np.allclose(results[0], results[2])


def test_masks_under_vmap(dtype):
    magnitudes, mixture = (jnp.asarray(x, dtype) for x in magnitudes_with_silence())
    by_frame = jax.vmap(ratio_masks, in_axes=(1, 0), out_axes=1)(magnitudes, mixture)
    np.testing.assert_allclose(by_frame, ratio_masks(magnitudes, mixture), rtol=10 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0])
def test_mask_gradients_match_finite_differences(x64, exponent):
    magnitudes, mixture = 0.1 + np.abs(noise(3, 5)), 0.1 + np.abs(noise(5, seed=1))

    def masked(magnitudes, mixture, share):
        magnitudes, mixture, share = map(jnp.asarray, (magnitudes, mixture, share))
        return ratio_masks(magnitudes, mixture, share=share, exponent=exponent)

    check_grads(
        jax.jit(masked), (magnitudes, mixture, np.array(0.1)), order=1, modes=("fwd", "rev"), rtol=1e-4
    )


def example(dtype):
    """Spectrogram of a mixture, and the magnitudes of a part of it."""
    part, rest = (jnp.asarray(noise(NUM_SAMPLES, seed=seed), dtype) for seed in (0, 1))
    return STFT.analyse(part + rest), jnp.abs(STFT.analyse(part))


def test_one_iteration_is_the_inverse_with_the_given_phase(dtype):
    mixture, wanted = example(dtype)
    phase = np.exp(1j * np.angle(np.asarray(mixture, complex)))
    spectrogram = jnp.asarray(np.asarray(wanted) * phase, mixture.dtype)
    expected = STFT.synthesise(spectrogram, NUM_SAMPLES)
    samples = griffin_lim(STFT, wanted, mixture, NUM_SAMPLES)
    assert samples.dtype == dtype
    np.testing.assert_allclose(samples, expected, atol=50 * jnp.finfo(dtype).eps * np.max(np.abs(expected)))


def test_a_signal_is_its_own_fixed_point():
    samples = jnp.asarray(noise(NUM_SAMPLES), jnp.float32)
    mixture = STFT.analyse(samples)
    restored = griffin_lim(STFT, jnp.abs(mixture), mixture, NUM_SAMPLES, num_iterations=4)
    np.testing.assert_allclose(restored, samples, atol=1e-4)


def test_iterations_bring_the_magnitudes_closer(x64):
    mixture, wanted = example(np.float64)
    weights = np.full(STFT.num_bins, 2.0)
    weights[[0, -1]] = 1  # the distance that the inverse minimises

    @jax.jit
    def distance(samples):
        return jnp.sum(weights * (jnp.abs(STFT.analyse(samples)) - wanted) ** 2)

    results = [griffin_lim(STFT, wanted, mixture, NUM_SAMPLES, num_iterations=n) for n in (1, 2, 40)]
    distances = [float(distance(samples)) for samples in results]
    assert all(later < earlier for earlier, later in pairwise(distances))
    assert distances[-1] < 0.5 * distances[0]


def test_iterations_follow_the_plain_loop(x64):
    mixture, wanted = example(np.float64)
    spectrogram = np.asarray(mixture)
    for _ in range(3):
        samples = STFT.synthesise(jnp.asarray(wanted * spectrogram / np.abs(spectrogram)), NUM_SAMPLES)
        spectrogram = np.asarray(STFT.analyse(samples))
    actual = griffin_lim(STFT, wanted, mixture, NUM_SAMPLES, num_iterations=3)
    np.testing.assert_allclose(actual, samples, atol=1e-10)


def test_griffin_lim_jit_and_vmap(x64):
    stft = GaussianSTFT(window_std=3, hop=4)
    mixtures = jax.vmap(stft.analyse)(jnp.asarray(noise(2, 25)))
    wanted = jnp.abs(mixtures[::-1])

    def restore(wanted, mixture):
        return griffin_lim(stft, wanted, mixture, 25, num_iterations=2)

    loop = jnp.stack([restore(*pair) for pair in zip(wanted, mixtures, strict=True)])
    np.testing.assert_allclose(jax.jit(restore)(wanted[0], mixtures[0]), loop[0], atol=1e-12)
    np.testing.assert_allclose(jax.vmap(restore)(wanted, mixtures), loop, atol=1e-12)


def test_griffin_lim_gradient_matches_finite_differences(x64):
    stft = GaussianSTFT(window_std=3, hop=4)
    mixture = stft.analyse(jnp.asarray(noise(29)))

    def loss(wanted):
        samples = griffin_lim(stft, jnp.asarray(wanted), mixture, 29, num_iterations=2)
        return jnp.sum(jnp.sin(samples))

    wanted = 0.5 * np.abs(np.asarray(mixture)) + 0.01
    check_grads(jax.jit(loss), (wanted,), order=1, modes=("fwd", "rev"), rtol=1e-3, eps=1e-6)


def test_silence_gives_silence_with_finite_gradients():
    mixture, wanted = example(np.float32)
    nothing = jnp.zeros_like(wanted)

    @jax.jit
    def energy_and_gradients(wanted, mixture):
        def energy(wanted, mixture):
            return jnp.sum(griffin_lim(STFT, wanted, mixture, NUM_SAMPLES, num_iterations=2) ** 2)

        return jax.value_and_grad(energy, argnums=(0, 1))(wanted, mixture)

    for magnitudes, spectrogram in ((nothing, mixture), (wanted, 0 * mixture), (nothing, 0 * mixture)):
        energy, gradients = energy_and_gradients(magnitudes, spectrogram)
        assert np.isfinite(energy)
        assert (energy == 0) == (magnitudes is nothing)
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        # Unwrapped, since the shape checks of the test run would object first.
        (
            lambda: unwrap(ratio_masks)(jnp.ones((2, 3)), jnp.ones(4)),
            r"shape \(instruments, \*\(4,\)\).*got \(2, 3\)",
        ),
        (lambda: ratio_masks(jnp.ones((0, 4)), jnp.ones(4)), r"at least 1 instrument, got \(0, 4\)"),
        (
            lambda: ratio_masks(jnp.ones((2, 4)), jnp.ones(4), share=-0.1),
            "share: expected at least 0, got -0.1",
        ),
        (
            lambda: ratio_masks(jnp.ones((2, 4)), jnp.ones(4), exponent=0.5),
            "exponent: expected at least 1, got 0.5",
        ),
        (
            lambda: griffin_lim(STFT, jnp.ones((3, 49)), jnp.ones((3, 49), complex), 9, num_iterations=0),
            "num_iterations: expected at least 1, got 0",
        ),
        (
            lambda: unwrap(griffin_lim)(STFT, jnp.ones((3, 49)), jnp.ones((2, 49), complex), 9),
            r"initial: expected the shape \(3, 49\) of magnitudes, got \(2, 49\)",
        ),
        (
            lambda: griffin_lim(STFT, jnp.ones((3, 9)), jnp.ones((3, 9), complex), 9),
            "spectrogram: expected 49 bins, got 9",
        ),
    ],
)
def test_errors_name_argument_expected_and_got(call, message):
    with pytest.raises(ValueError, match=message):
        call()

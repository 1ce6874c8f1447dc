"""The U-Net and the spectra of tones: convolutions, least squares, losses, and their gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import DOUBLE_IS_SLOW

from jaxsep.neural.inputs import harmonic_stack, network_inputs, num_inputs
from jaxsep.neural.losses import PredictionLoss, magnitude_distance, radial_distance
from jaxsep.neural.network import PartialPrediction, PolicyNetwork, ToneNetwork, render_tone
from jaxsep.neural.partials import RIDGE, Partials, fit_harmonics, safe_abs, safe_phase
from jaxsep.neural.policy import Choice, Policy
from jaxsep.neural.prediction import predict
from jaxsep.neural.settings import NeuralSettings
from jaxsep.neural.unet import Convolution, TransposedConvolution, UNet
from jaxsep.signal.axes import LinearAxis

pytestmark = pytest.mark.compiles

AXIS = LinearAxis(96, 25.0)


def array(*shape, seed=0, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def spectrum(seed=0, size=96):
    x = array(2, size, seed=seed)
    return jax.lax.complex(x[0], x[1])


# ---- Convolutions ------------------------------------------------------------------------------------------


def brute_convolution(x, weight, stride):
    kernel = weight.shape[0]
    left = (kernel - stride + 1) // 2
    out = np.zeros((len(x) // stride, weight.shape[2]))
    for place in range(len(out)):
        for tap in range(kernel):
            source = place * stride + tap - left
            if 0 <= source < len(x):
                out[place] += x[source] @ weight[tap]
    return out


@pytest.mark.parametrize(("kernel", "stride"), [(5, 4), (5, 3), (5, 2), (3, 1), (1, 1), (5, 5)])
def test_convolutions_and_their_adjoints(kernel, stride, x64):
    x, weight = array(60, 3), array(kernel, 3, 4, seed=1)
    z = array(60 // stride, 4, seed=2)
    expected = brute_convolution(np.asarray(x), np.asarray(weight), stride)
    for method in ("matmul", "conv", "auto"):
        y = Convolution(weight, None, stride, method)(x)
        np.testing.assert_allclose(y, expected, atol=1e-12)
        back = TransposedConvolution(jnp.swapaxes(weight, 1, 2), jnp.zeros(3), stride, method)(z)
        assert back.shape == x.shape
        assert float(jnp.vdot(y, z)) == pytest.approx(float(jnp.vdot(x, back)), rel=1e-10)


@pytest.mark.slow
def test_the_network_is_the_same_by_both_methods_and_in_a_batch(x64):
    def net(method):
        made = UNet.create(3, 5, strides=(4, 3, 2), widths=(4, 6, 8), method=method, key=jax.random.key(0))
        return jax.tree.map(lambda x: x.astype(jnp.float64) if eqx.is_array(x) else x, made)

    x = array(2, 48, 3)
    expected = jnp.stack([net("conv")(one) for one in x])
    got = jax.jit(jax.vmap(net("matmul")))(x)
    assert got.shape == (2, 48, 5)
    np.testing.assert_allclose(got, expected, atol=1e-10)
    grown = jax.grad(lambda x: jnp.sum(net("matmul")(x) ** 2))(x[0])
    np.testing.assert_allclose(grown, jax.grad(lambda x: jnp.sum(net("conv")(x) ** 2))(x[0]), atol=1e-8)


def test_impossible_networks():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="widths: expected one for each of 2 strides, got 1"):
        UNet.create(1, 1, strides=(2, 2), widths=(4,), key=key)
    with pytest.raises(ValueError, match="kernel: expected at least the largest stride 4, got 3"):
        UNet.create(1, 1, strides=(4,), widths=(4,), kernel=3, key=key)
    with pytest.raises(ValueError, match="expected a number of bins that 4 divides, got 10"):
        UNet.create(1, 1, strides=(4,), widths=(4,), key=key)(jnp.zeros((10, 1)))
    with pytest.raises(ValueError, match="method: expected 'auto', 'matmul' or 'conv', got 'fft'"):
        Convolution(jnp.zeros((1, 1, 1)), None, 1, "fft")(jnp.zeros((4, 1)))


# ---- Inputs and the start ----------------------------------------------------------------------------------


def test_the_stack_shows_each_bin_its_harmonics(x64):
    row = np.abs(array(2, 30, seed=3))
    got = harmonic_stack(jnp.asarray(row), 4)
    factors = [1 / 3, 1 / 2, 1, 2, 3, 4]
    bins = np.arange(30)
    for number, (factor, which) in enumerate((f, w) for f in factors for w in range(2)):
        expected = np.interp(factor * bins, bins, row[which], right=0)
        np.testing.assert_allclose(got[number], expected, atol=1e-12)


def test_the_network_sees_the_lifted_frame_and_what_is_left_of_it(x64):
    frame, modelled = spectrum(1), jnp.stack([0.3 * spectrum(2), 0 * spectrum(1)])
    seen = network_inputs(frame, modelled, 0.1 * modelled, 3)
    assert seen.shape == (96, num_inputs(2, 3))
    left = np.asarray(frame - modelled[0])
    np.testing.assert_allclose(seen[:, 0], (left / np.sqrt(np.abs(left))).real, atol=1e-3)
    # Of the stack, after two subharmonics of four spectra.
    np.testing.assert_allclose(seen[:, 15 + 8], np.sqrt(np.abs(frame)), atol=1e-3)
    np.testing.assert_allclose(seen[:48, 15 + 12], np.sqrt(np.abs(frame))[::2], atol=1e-3)


def test_without_a_stack_the_inputs_are_those_of_p2(x64):
    frame, modelled = spectrum(1), jnp.stack([0.3 * spectrum(2), 0 * spectrum(1)])
    seen = network_inputs(frame, modelled, 0.1 * modelled, 0)
    assert seen.shape == (96, num_inputs(2, 0)) == (96, 15)
    np.testing.assert_allclose(seen[:, 0], (frame - modelled[0]).real)
    np.testing.assert_allclose(seen[:, 6], np.abs(frame - modelled[0]))


def test_a_direct_prediction_takes_a_part_of_what_is_left(x64):
    network = ToneNetwork.create(2, strides=(4, 4), widths=(8, 8), key=jax.random.key(0))
    weight = network.unet.head[-1].weight
    chosen = 0.1 * jax.random.normal(jax.random.key(1), weight.shape)
    network = eqx.tree_at(lambda n: n.unet.head[-1].weight, network, chosen)
    frame = spectrum()
    before = PartialPrediction.nothing(frame, 2)
    taken = frame * (jnp.arange(96) < 48)  # by a tone before
    before = eqx.tree_at(lambda p: p.direct, before, before.direct.at[0].set(taken))
    policy = network(frame, before)
    direct = policy.features[..., 6] + 1j * policy.features[..., 7]
    assert np.all(direct[:48] == 0)
    factors = np.asarray(direct[48:] / frame[48:, None])
    assert np.std(factors.real) > 1e-3
    assert np.std(factors.imag) > 1e-3
    assert np.max(np.abs(factors - 1)) < 2


@pytest.mark.parametrize("seed", [0, 1])
def test_a_network_begins_without_preferences(seed, x64):
    """Or its policy is collapsed before the first step, and nothing is ever tried."""
    options = {"strides": (4, 4), "widths": (8, 8), "bounds": (10.0, 60.0), "key": jax.random.key(seed)}
    network, frame = ToneNetwork.create(2, **options), spectrum(seed)
    policy = network(frame, PartialPrediction.nothing(frame, 2))
    logits = NeuralSettings.small().coolest * policy.logits()
    choices = jax.nn.softmax(logits)
    entropy = -jnp.sum(choices * jnp.log(jnp.maximum(choices, 1e-30)))
    assert float(entropy) > 0.9 * np.log(2 * 51)
    assert float(policy.entropy()) == pytest.approx(float(entropy), rel=1e-5)
    assert 10 <= int(policy.mode().bin) <= 60
    assert bool(policy.mode().present)
    # The direct prediction begins with the frame itself.
    np.testing.assert_allclose(policy.parameters(policy.mode()).direct, frame, atol=1e-6)


# ---- Tones -------------------------------------------------------------------------------------------------


def gaussians(fundamental, width, b, count):
    h = np.arange(1, count + 1)
    place = fundamental * h * np.sqrt(1 + b * h**2)
    return np.exp(-0.5 * ((np.arange(96) - place[:, None]) / width) ** 2)


def test_partials_are_gaussians_and_correlation_is_their_adjoint(x64):
    partials = Partials.of(jnp.asarray(13.3), jnp.asarray(1.9), jnp.asarray(1e-3), 6, AXIS)
    amplitude = spectrum(1, 6)
    np.testing.assert_allclose(partials.add(amplitude), amplitude @ gaussians(13.3, 1.9, 1e-3, 6), atol=1e-7)
    z = spectrum(2)
    got, expected = jnp.vdot(partials.add(amplitude), z), jnp.vdot(amplitude, partials.correlate(z))
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_harmonics_beyond_the_last_bin_are_silent(x64):
    partials = Partials.of(jnp.asarray(40.0), jnp.asarray(1.9), jnp.asarray(0.0), 5, AXIS)
    fitted = fit_harmonics(partials, spectrum())
    np.testing.assert_array_equal(fitted[2:], 0)
    for place in (-3.0, 0.0, 200.0):
        partials = Partials.of(jnp.asarray(place), jnp.asarray(1.9), jnp.asarray(0.0), 3, AXIS)
        assert np.all(np.isfinite(partials.add(fit_harmonics(partials, spectrum()))))


def test_harmonic_amplitudes_are_those_of_ridge_regression(x64):
    partials = Partials.of(jnp.asarray(9.4), jnp.asarray(2.1), jnp.asarray(1e-3), 6, AXIS)
    g, z = gaussians(9.4, 2.1, 1e-3, 6), spectrum()
    expected = np.linalg.solve(g @ g.T + RIDGE * np.eye(6), g @ np.asarray(z))
    np.testing.assert_allclose(fit_harmonics(partials, z), expected, atol=1e-6)


# ---- Losses ------------------------------------------------------------------------------------------------


def test_distances_from_their_definitions(x64):
    a, b = spectrum(1), spectrum(2)
    lift = lambda x: np.sqrt(np.abs(x) + 1e-7) - np.sqrt(1e-7)
    assert float(magnitude_distance(a, b)) == pytest.approx(np.mean((lift(a) - lift(b)) ** 2))
    apart = lift(a) * a / abs(a) - lift(b) * b / abs(b)
    assert float(radial_distance(a, b)) == pytest.approx(np.mean(abs(apart) ** 2))
    turned = np.exp(1j * 0.7)
    assert float(radial_distance(turned * a, turned * b)) == pytest.approx(float(radial_distance(a, b)))
    weights = PredictionLoss(1.0, 2.0, 3.0, 4.0, 0.5)
    tones, direct = jnp.stack([a, b]), jnp.stack([b, 2 * a])
    terms = weights.terms(jnp.asarray(a + b), tones, direct, jnp.array([1.0, 0.0]))
    assert float(terms.magnitude) == pytest.approx(0, abs=1e-12)
    assert float(terms.sparse) == pytest.approx(0.5 * float(magnitude_distance(a + b, a)))
    assert float(terms.agreement) == pytest.approx(
        float(radial_distance(a, b)) + float(radial_distance(b, 2 * a))
    )
    assert float(terms.direct) == pytest.approx(float(radial_distance(a + b, 2 * a + b)))
    assert float(weights(terms)) == pytest.approx(
        float(2 * terms.sparse + 3 * terms.agreement + 4 * terms.direct + terms.magnitude)
    )


def test_distances_are_smooth_at_zero(dtype):
    zero = jnp.zeros(4, jnp.result_type(dtype, jnp.complex64))
    some = zero.at[1].set(0.3 + 0.1j)
    for distance in (magnitude_distance, radial_distance):
        for a, b in ((zero, zero), (some, zero), (zero, some)):
            real = lambda x, y, a=a, b=b, d=distance: d(a, jax.lax.complex(x, y) + b)
            gradient = jax.grad(real, (0, 1))(zero.real, zero.imag)
            assert np.all(np.isfinite(gradient))
            if not np.any(a - b):
                np.testing.assert_array_equal(gradient, 0)
    for function in (lambda z: safe_abs(z), lambda z: safe_phase(z).real):
        gradient = jax.grad(lambda x, f=function: jnp.sum(f(jax.lax.complex(x, x))))(zero.real)
        np.testing.assert_array_equal(gradient, 0)


def pathwise(x, frame, harmonics, choice):
    """Loss of one tone at a fixed choice."""
    policy = Policy(x, jnp.zeros(2, bool))
    modelled, direct = render_tone(choice, policy.parameters(choice), harmonics, AXIS)
    done = PartialPrediction.nothing(frame, 2).add(choice, modelled, direct)
    loss = PredictionLoss(magnitude=1.0)
    return loss(loss.terms(frame, done.modelled, done.direct, done.present))


@pytest.mark.parametrize("silent", ["nothing", "frame", "dictionary", "amplitude"])
def test_pathwise_gradients_are_finite_differences(silent, x64):
    x = 0.5 * array(96, 2, 9, seed=4)
    frame, harmonics = spectrum(5), jnp.abs(array(2, 5, seed=6))
    if silent == "frame":
        frame = jnp.zeros_like(frame)
    if silent == "dictionary":
        harmonics = harmonics.at[1].set(0)
    choice = Choice(jnp.int32(1), jnp.int32(14), jnp.asarray(True), jnp.asarray(1e-3))
    if silent == "amplitude":  # |a| has a kink at 0: its derivative there is the middle one, 0
        x = x.at[14, 1, 1].set(0)
    run = jax.jit(lambda x, d: pathwise(x, frame, d, choice))
    by_features, by_dictionary = jax.jit(jax.grad(run, (0, 1)))(x, harmonics)
    assert np.all(np.isfinite(by_features))
    # Around silence the lift changes its slope within δ = 1e-7.
    rng, step = np.random.default_rng(7), 1e-11 if silent == "dictionary" else 1e-6
    for _ in range(6):
        direction = jnp.asarray(rng.normal(size=x.shape))
        other = jnp.asarray(rng.normal(size=harmonics.shape))
        if silent == "amplitude":
            direction = direction.at[14, 1, 1].set(0)
        ahead = run(x + step * direction, harmonics + step * other)
        behind = run(x - step * direction, harmonics - step * other)
        slope = jnp.vdot(by_features, direction) + jnp.vdot(by_dictionary, other)
        assert float(slope) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-4, abs=1e-8)


@pytest.mark.slow
def test_exact_zeros_everywhere_have_finite_gradients(dtype):
    x, zero = jnp.zeros((96, 2, 9), dtype), jnp.zeros(96, jnp.result_type(dtype, jnp.complex64))
    choice = Choice(jnp.int32(0), jnp.int32(0), jnp.asarray(False), jnp.asarray(0, dtype))
    for harmonics in (jnp.zeros((2, 5), dtype), jnp.ones((2, 5), dtype)):
        gradient = jax.grad(pathwise, (0, 2))(x, zero, harmonics, choice)
        assert all(np.all(np.isfinite(g)) for g in gradient)


# ---- Invariances -------------------------------------------------------------------------------------------


def test_a_turned_frame_turns_the_direct_prediction(x64):
    x, frame, harmonics = array(96, 2, 9, seed=8), spectrum(9), jnp.abs(array(2, 5, seed=10))
    choice = Choice(jnp.int32(0), jnp.int32(11), jnp.asarray(True), jnp.asarray(1e-4))
    turn = jnp.exp(1j * 1.1)
    direct = jax.lax.complex(x[..., 6], x[..., 7]) * turn
    turned = x.at[..., 6].set(direct.real).at[..., 7].set(direct.imag)
    before, after = pathwise(x, frame, harmonics, choice), pathwise(turned, turn * frame, harmonics, choice)
    assert float(after) == pytest.approx(float(before), rel=1e-12)


class Fixed(PolicyNetwork):
    """Features that are the same whatever plays."""

    features: jax.Array
    num_instruments: int = eqx.field(static=True, default=2)

    def __call__(self, frame, predicted):
        return Policy(self.features, predicted.playing)


def test_exchanged_instruments_exchange_the_prediction(x64):
    x, harmonics, frame = array(96, 2, 9, seed=11), jnp.abs(array(2, 5, seed=12)), spectrum(13)
    run = lambda x, d: predict(Fixed(x), d, frame, AXIS)
    found, other = run(x, harmonics), run(x[:, ::-1], harmonics[::-1])
    for name in ("modelled", "direct"):
        np.testing.assert_allclose(getattr(other, name), getattr(found, name)[::-1], atol=1e-12)
    np.testing.assert_array_equal(found.tones.instrument, [0, 1])
    np.testing.assert_allclose(other.tones.fundamental, found.tones.fundamental[::-1])


@DOUBLE_IS_SLOW
def test_features_have_their_scales_and_silence_is_finite(dtype):
    network = ToneNetwork.create(2, strides=(4, 4), widths=(8, 8), key=jax.random.key(0))
    network = jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, network)
    frame = jnp.zeros(96, jnp.result_type(dtype, jnp.complex64))
    policy = network(frame, PartialPrediction.nothing(frame, 2))
    assert policy.features.shape == (96, 2, 9)
    assert policy.features.dtype == dtype
    np.testing.assert_allclose(np.exp(network.log_scales), [100, 1, 3, 1, 1, 1, 1, 1, 1], rtol=1e-5)
    harmonics = jnp.ones((2, 4), dtype)
    found = jax.jit(lambda z: predict(network, harmonics, z, AXIS))(frame)
    for leaf in jax.tree.leaves(found):
        assert np.all(np.isfinite(leaf))

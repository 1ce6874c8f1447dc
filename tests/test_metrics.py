"""Separation figures against projections written out in NumPy, mir_eval and fast_bss_eval."""

import functools
import itertools
import os
import pathlib
import warnings

import fast_bss_eval
import jax
import jax.numpy as jnp
import mir_eval
import numpy as np
import pytest
import scipy.optimize
import scipy.signal
import soundfile

from jaxsep.metrics.bss_eval import sdr_sir_sar_filter, sdr_sir_sar_gain
from jaxsep.metrics.matching import best_permutation
from jaxsep.metrics.si_sdr import permutation_invariant_si_sdr, si_sdr

pytestmark = pytest.mark.compiles

FIGURES = ("sdr", "sir", "sar")
SAMPLES = 300  # one size where size does not matter, so that compiled programs are shared


def few_taps(references, estimates):
    return sdr_sir_sar_filter(references, estimates, filter_length=5)


MEASURES = pytest.mark.parametrize("measure", [sdr_sir_sar_gain, few_taps], ids=["gain", "filter"])


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def separation(num_instruments, samples=SAMPLES, seed=0, noise=0.1, dtype=np.float64):
    """Correlated, coloured sources, and shuffled estimates with leakage, filtering and noise."""
    rng = np.random.default_rng(seed)
    references = scipy.signal.lfilter(
        [1.0, 0.6], [1.0, -0.7], rng.standard_normal((num_instruments, samples))
    )
    references[1:] += 0.3 * references[:-1]
    leakage = 0.05 * rng.standard_normal((num_instruments, num_instruments)) @ references
    filtered = scipy.signal.lfilter([1.0, 0.3, -0.2], [1.0], references)
    estimates = filtered + leakage + noise * rng.standard_normal(references.shape)
    return references.astype(dtype), estimates[rng.permutation(num_instruments)].astype(dtype)


def gain_scores_by_projection(references, estimates):
    """The definition, in loops: (sdr, sir, sar, permutation), from orthonormal bases."""

    def project(signals, signal):
        basis, _ = np.linalg.qr(np.atleast_2d(signals).T)
        return basis @ (basis.T @ signal)

    def decibels(wanted, unwanted):
        return 10 * np.log10(np.sum(wanted**2) / np.sum(unwanted**2))

    count = len(references)
    figures = np.zeros((count, count, 3))
    for i, k in np.ndindex(count, count):
        target, explained = project(references[i], estimates[k]), project(references, estimates[k])
        figures[i, k] = (
            decibels(target, estimates[k] - target),
            decibels(target, explained - target),
            decibels(explained, estimates[k] - explained),
        )
    permutation = max(
        itertools.permutations(range(count)), key=lambda p: sum(figures[i, k, 1] for i, k in enumerate(p))
    )
    return (*figures[np.arange(count), list(permutation)].T, permutation)


def mir_eval_scores(references, estimates):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return mir_eval.separation.bss_eval_sources(references, estimates)


def assert_scores(scores, expected, atol):
    for name, figures in zip(FIGURES, expected[:3], strict=True):
        np.testing.assert_allclose(getattr(scores, name), figures, atol=atol, rtol=0, err_msg=name)
    np.testing.assert_array_equal(scores.permutation, expected[3])


def tree_allclose(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second)


# Compiled once for all tests that need them.
compiled_si_sdr = jax.jit(si_sdr)
si_sdr_gradient = jax.jit(jax.grad(si_sdr, argnums=(0, 1)))


def weighted_sum(measure, references, estimates):
    """One number to differentiate, in which every figure counts differently."""
    scores = measure(references, estimates)
    weights = np.array([[1.0, -0.4], [0.3, 0.9], [-0.7, 0.5]])
    return jnp.sum(weights * jnp.stack([scores.sdr, scores.sir, scores.sar]))


@functools.cache
def gradient_of(measure):
    return jax.jit(jax.grad(functools.partial(weighted_sum, measure), argnums=(0, 1)))


def assert_derivatives(function, gradients, arguments, step=1e-5):
    """Gradients by each argument against central differences along random directions."""
    rng = np.random.default_rng(0)
    for place, (gradient, argument) in enumerate(zip(gradients, arguments, strict=True)):
        direction = rng.standard_normal(argument.shape)
        shifted = [list(arguments), list(arguments)]
        shifted[0][place], shifted[1][place] = argument + step * direction, argument - step * direction
        difference = (function(*shifted[0]) - function(*shifted[1])) / (2 * step)
        np.testing.assert_allclose(np.vdot(gradient, direction), difference, rtol=1e-6)


# Values


@pytest.mark.parametrize("count", [2, 3, 4])
def test_gain_scores_are_the_projections_of_the_definition(count):
    references, estimates = separation(count, seed=count)
    scores = sdr_sir_sar_gain(jnp.asarray(references), jnp.asarray(estimates))
    assert_scores(scores, gain_scores_by_projection(references, estimates), atol=1e-9)


def test_interference_decides_the_permutation():
    """The estimate with less of the second source is the first one's, however noisy."""
    first, second, noise = np.linalg.qr(np.random.default_rng(0).standard_normal((SAMPLES, 3)))[0].T
    references = np.stack([first, second])
    estimates = np.stack([first + 0.3 * second + 0.1 * noise, first + 0.2 * second + 30 * noise])
    scores = sdr_sir_sar_gain(jnp.asarray(references), jnp.asarray(estimates))
    assert_scores(scores, gain_scores_by_projection(references, estimates), atol=1e-9)
    np.testing.assert_array_equal(scores.permutation, [1, 0])


@MEASURES
def test_one_source_has_no_interference(measure):
    references, estimates = separation(1)
    scores = measure(jnp.asarray(references), jnp.asarray(estimates))
    np.testing.assert_allclose(scores.sdr, scores.sar, atol=1e-9)
    assert scores.sir > 250
    if measure is sdr_sir_sar_gain:
        np.testing.assert_allclose(
            scores.sdr[0], si_sdr(jnp.asarray(references[0]), jnp.asarray(estimates[0]))
        )


def test_filter_scores_agree_with_mir_eval_and_fast_bss_eval():
    references, estimates = separation(3, 6000)
    scores = sdr_sir_sar_filter(jnp.asarray(references), jnp.asarray(estimates))
    assert_scores(scores, mir_eval_scores(references, estimates), atol=0.01)
    assert_scores(scores, fast_bss_eval.bss_eval_sources(references, estimates, filter_length=512), atol=0.01)


def test_filter_scores_of_music_in_both_precisions():
    root = pathlib.Path(__file__).parents[1] / ".." / "shared" / "corpus"
    piece = pathlib.Path(os.environ.get("JAXSEP_CORPUS", root)) / "k487_08_recorder_violin"
    if not piece.is_dir():
        pytest.skip(f"needs the development corpus at {piece.parent} (set JAXSEP_CORPUS)")
    stems = [soundfile.read(piece / f"{name}.flac", frames=3 * 44100)[0] for name in ("recorder", "violin")]
    references = np.stack(stems)
    # Ratio masks: estimates as spectral separation makes them, nearly empty above the instruments' partials.
    spectra = scipy.signal.stft(references, nperseg=2048)[2]
    masks = np.abs(spectra) / (np.abs(spectra).sum(0) + 1e-9)
    estimates = scipy.signal.istft(masks * spectra.sum(0), nperseg=2048)[1][::-1, : references.shape[1]]
    expected = mir_eval_scores(references, estimates)
    assert_scores(sdr_sir_sar_filter(jnp.asarray(references), jnp.asarray(estimates)), expected, atol=0.01)
    single = jnp.asarray(references, jnp.float32), jnp.asarray(estimates, jnp.float32)
    assert_scores(sdr_sir_sar_filter(*single), expected, atol=0.05)


def test_one_tap_is_a_gain_and_more_taps_forgive_more():
    references, estimates = separation(2)
    references, estimates = jnp.asarray(references), jnp.asarray(estimates)
    gain = sdr_sir_sar_gain(references, estimates)
    tree_allclose(sdr_sir_sar_filter(references, estimates, filter_length=1), gain, atol=1e-8)
    assert np.all(few_taps(references, estimates).sdr > gain.sdr + 1)
    assert np.all(few_taps(references, estimates).sar > gain.sar + 1)


def test_a_filtered_source_is_perfect_only_for_the_filter_measure():
    references, _ = separation(2)
    references[:, -10:] = 0  # room for the tail of the filter
    estimates = scipy.signal.lfilter([0.5, -0.4, 0.3], [1.0], references)
    filtered = few_taps(jnp.asarray(references), jnp.asarray(estimates))
    gain = sdr_sir_sar_gain(jnp.asarray(references), jnp.asarray(estimates))
    assert np.all(filtered.sdr > 200)
    assert np.all(gain.sdr < 20)


def test_si_sdr_closed_form():
    """Orthogonal distortion of relative level 1/r: exactly 20 log10 r."""
    phase = 2 * np.pi * 7 * np.arange(SAMPLES) / SAMPLES
    reference, distortion = np.sin(phase), np.cos(phase)
    for ratio in (0.1, 1.0, 7.0, 1e4):
        figure = compiled_si_sdr(jnp.asarray(reference), jnp.asarray(-3 * (reference + distortion / ratio)))
        np.testing.assert_allclose(figure, 20 * np.log10(ratio), atol=1e-6)


def test_si_sdr_agrees_with_fast_bss_eval():
    references, estimates = separation(1)
    figure = compiled_si_sdr(jnp.asarray(references[0]), jnp.asarray(estimates[0]))
    np.testing.assert_allclose(figure, fast_bss_eval.numpy.si_sdr(references, estimates)[0], atol=1e-6)


@pytest.mark.parametrize("noise", [0.1, 3e-3])
def test_gain_scores_in_float32_of_half_a_minute(noise):
    """Sums over 1.3 million samples whose level varies by 40 dB keep 0.01 dB up to 60 dB."""
    rng = np.random.default_rng(1)
    samples = 30 * 44100
    envelope = np.exp(2.3 * np.sin(np.arange(samples) / 3e4))
    references = (rng.standard_normal((2, samples)) * envelope).astype(np.float32)
    errors = noise * (rng.standard_normal((2, samples)) + 0.3 * references[::-1])
    estimates = (1e-3 * (references + errors)[::-1]).astype(np.float32)
    expected = gain_scores_by_projection(references.astype(np.float64), estimates.astype(np.float64))
    assert_scores(sdr_sir_sar_gain(jnp.asarray(references), jnp.asarray(estimates)), expected, atol=0.01)


# Permutations


@pytest.mark.parametrize(
    ("references", "estimates"), [(1, 1), (2, 2), (3, 3), (4, 4), (2, 5), (7, 7), (3, 12)]
)
def test_best_permutation_is_the_optimal_assignment(references, estimates):
    rng = np.random.default_rng(references)
    for trial in range(5):
        scores = rng.normal(0, 20, (references, estimates)).astype(np.float32)
        expected = scipy.optimize.linear_sum_assignment(scores, maximize=True)[1]
        np.testing.assert_array_equal(jax.jit(best_permutation)(jnp.asarray(scores)), expected)
        if trial == 0:
            np.testing.assert_array_equal(best_permutation(jnp.asarray(scores)), expected)


@pytest.mark.parametrize("count", [3, 7])
def test_best_permutation_under_vmap(count):
    scores = np.random.default_rng(0).standard_normal((4, count, count))
    batched = jax.jit(jax.vmap(best_permutation))(jnp.asarray(scores))
    np.testing.assert_array_equal(batched, [jax.jit(best_permutation)(jnp.asarray(s)) for s in scores])


@pytest.mark.parametrize("count", [3, 7])
def test_best_permutation_avoids_scores_that_are_not_finite(count):
    scores = np.full((count, count), np.nan, np.float32)
    order = np.random.default_rng(0).permutation(count)
    scores[np.arange(count), order] = 1.0
    scores[0, order[0]] = np.inf
    scores[1, order[0]] = -np.inf
    np.testing.assert_array_equal(best_permutation(jnp.asarray(scores)), order)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_permutation_invariant_si_sdr_is_the_best_of_all_orders(count):
    references, estimates = (jnp.asarray(x) for x in separation(count))
    estimates = estimates[np.random.default_rng(3).permutation(count)]
    pairs = np.array([[compiled_si_sdr(r, e) for e in estimates] for r in references])
    orders = [list(order) for order in itertools.permutations(range(count))]
    expected = max((pairs[np.arange(count), order] for order in orders), key=np.sum)
    np.testing.assert_allclose(permutation_invariant_si_sdr(references, estimates), expected, atol=1e-9)
    with jax.disable_jit():
        np.testing.assert_allclose(permutation_invariant_si_sdr(references, estimates), expected, atol=1e-9)


def test_permutation_invariant_si_sdr_under_vmap_and_at_silence():
    references, estimates = (jnp.asarray(x) for x in separation(2))
    batch = jnp.stack([estimates, estimates[::-1], 0 * estimates])
    figures = jax.jit(jax.vmap(permutation_invariant_si_sdr, (None, 0)))(references, batch)
    expected = [permutation_invariant_si_sdr(references, e) for e in batch]
    np.testing.assert_allclose(figures, expected, atol=1e-9)
    np.testing.assert_allclose(figures[0], figures[1], atol=1e-9)
    mean = lambda e: jnp.mean(permutation_invariant_si_sdr(references, e))
    assert np.all(np.isfinite(jax.jit(jax.grad(mean))(batch[2])))


@pytest.mark.parametrize(
    ("measure", "count"),
    [(few_taps, 2)] + [(sdr_sir_sar_gain, count) for count in (2, 3, 4, 7)],
)
def test_shuffled_estimates_are_found(measure, count):
    references, _ = separation(count, seed=count)
    order = np.random.default_rng(count).permutation(count)
    estimates = np.empty_like(references)
    estimates[order] = references + 0.1 * np.random.default_rng(9).standard_normal(references.shape)
    scores = measure(jnp.asarray(references), jnp.asarray(estimates))
    matched = measure(jnp.asarray(references), jnp.asarray(estimates[order]))
    np.testing.assert_array_equal(scores.permutation, order)
    np.testing.assert_array_equal(matched.permutation, np.arange(count))
    tree_allclose([getattr(scores, n) for n in FIGURES], [getattr(matched, n) for n in FIGURES], atol=1e-8)


# Invariance, limits and silence


@MEASURES
def test_levels_do_not_matter(measure):
    references, estimates = separation(2)
    gains = np.array([[1e-4], [-30.0]])
    scores = measure(jnp.asarray(references), jnp.asarray(estimates))
    scaled = measure(jnp.asarray(gains * references), jnp.asarray(gains[::-1] * estimates))
    figure = compiled_si_sdr(jnp.asarray(references[0]), jnp.asarray(estimates[0]))
    figure_scaled = compiled_si_sdr(jnp.asarray(-1e-6 * references[0]), jnp.asarray(1e5 * estimates[0]))
    tree_allclose(scaled, scores, atol=1e-8)
    np.testing.assert_allclose(figure_scaled, figure, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@MEASURES
def test_perfect_estimates_have_large_finite_figures(measure, dtype):
    references, _ = separation(2, dtype=dtype)
    limit = -20 * np.log10(np.finfo(dtype).eps)
    scores = measure(jnp.asarray(references), jnp.asarray(0.7 * references))
    figure = compiled_si_sdr(jnp.asarray(references[0]), jnp.asarray(references[0]))
    gradient = si_sdr_gradient(jnp.asarray(references[0]), jnp.asarray(references[0]))
    for value in (scores.sdr, scores.sir, scores.sar, figure):
        assert np.all(np.asarray(value) > limit - 20)
        assert np.all(np.asarray(value) <= limit + 0.01)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@MEASURES
def test_silence_scores_lowest(measure, dtype):
    references, estimates = separation(2, dtype=dtype)
    lowest = 20 * np.log10(np.finfo(dtype).eps)
    silent_references, silent_estimates = references.copy(), estimates.copy()
    silent_references[1] = silent_estimates[1] = 0
    sound = measure(jnp.asarray(references), jnp.asarray(estimates))
    no_reference = measure(jnp.asarray(silent_references), jnp.asarray(estimates))
    no_estimate = measure(jnp.asarray(references), jnp.asarray(silent_estimates))
    nothing = measure(jnp.zeros((2, SAMPLES), dtype), jnp.zeros((2, SAMPLES), dtype))
    np.testing.assert_allclose([no_reference.sdr[1], no_reference.sir[1]], lowest, rtol=1e-6)
    assert np.all(np.isfinite(no_reference.sar))
    np.testing.assert_array_equal(no_reference.permutation, sound.permutation)
    np.testing.assert_allclose(np.delete(no_reference.sdr, 1), np.delete(sound.sdr, 1), rtol=1e-4)
    missing = int(np.argmax(np.asarray(no_estimate.permutation) == 1))
    np.testing.assert_allclose([getattr(no_estimate, name)[missing] for name in FIGURES], lowest, rtol=1e-6)
    np.testing.assert_allclose(np.delete(no_estimate.sdr, missing), np.delete(sound.sdr, missing), rtol=1e-4)
    np.testing.assert_allclose([getattr(nothing, name) for name in FIGURES], lowest, rtol=1e-6)


@pytest.mark.parametrize("silent", ["reference", "estimate", "both"])
@MEASURES
def test_gradients_at_silence_are_finite(measure, silent):
    references, estimates = separation(2)
    if silent != "estimate":
        references[0] = 0
    if silent != "reference":
        estimates[0] = 0
    for gradient in gradient_of(measure)(jnp.asarray(references), jnp.asarray(estimates)):
        assert np.all(np.isfinite(gradient))
        assert np.any(gradient != 0)  # the sounding signals still have one


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_si_sdr_of_silence(dtype):
    (sound,), _ = separation(1, dtype=dtype)
    silence = np.zeros_like(sound)
    for reference, estimate in ((silence, sound), (sound, silence), (silence, silence)):
        pair = jnp.asarray(reference), jnp.asarray(estimate)
        np.testing.assert_allclose(compiled_si_sdr(*pair), 20 * np.log10(np.finfo(dtype).eps), rtol=1e-6)
        np.testing.assert_array_equal(si_sdr_gradient(*pair), np.zeros((2, SAMPLES)))


@MEASURES
def test_equal_references_are_finite(measure):
    """Two identical sources leave the span singular: nothing can be interference."""
    references, estimates = separation(1)
    alone = measure(jnp.asarray(references), jnp.asarray(estimates))
    scores = measure(*(jnp.asarray(np.repeat(signals, 2, axis=0)) for signals in (references, estimates)))
    np.testing.assert_allclose(scores.sdr, np.repeat(alone.sdr, 2), atol=1e-6)
    assert np.all(scores.sir > 200)
    assert np.all(np.isfinite(scores.sir))


@MEASURES
def test_samples_that_are_not_finite_show(measure):
    references, estimates = separation(2, dtype=np.float32)
    estimates[0, 7] = np.nan
    scores = measure(jnp.asarray(references), jnp.asarray(estimates))
    matched = int(np.argmax(np.asarray(scores.permutation) == 0))
    assert np.isnan(scores.sdr[matched])
    assert np.isfinite(scores.sdr[1 - matched])
    assert np.isnan(compiled_si_sdr(jnp.asarray(references[0]), jnp.asarray(estimates[0])))
    assert np.isnan(compiled_si_sdr(jnp.asarray(estimates[0]), jnp.asarray(references[0])))


# Transformations


@pytest.mark.slow  # every operation is compiled alone
@MEASURES
def test_jit_is_eager(measure):
    """The measures compile themselves; without compilation they are the same."""
    references, estimates = (jnp.asarray(x) for x in separation(2))
    scores, figure = measure(references, estimates), compiled_si_sdr(references[0], estimates[0])
    with jax.disable_jit():
        tree_allclose(scores, measure(references, estimates), atol=1e-8)
        np.testing.assert_allclose(figure, si_sdr(references[0], estimates[0]), atol=1e-9)


@MEASURES
def test_vmap_is_a_loop(measure):
    pairs = [[jnp.asarray(x) for x in separation(2, seed=seed)] for seed in range(3)]
    references, estimates = (jnp.asarray(np.stack(side)) for side in zip(*pairs, strict=True))
    batched = jax.vmap(measure)(references, estimates)
    loop = [measure(*pair) for pair in pairs]
    tree_allclose(batched, jax.tree.map(lambda *leaves: np.stack(leaves), *loop), atol=1e-8)


def test_si_sdr_under_vmap_is_a_loop():
    references, estimates = (jnp.asarray(x) for x in separation(4))
    figures = jax.jit(jax.vmap(si_sdr))(references, estimates)
    expected = [compiled_si_sdr(r, e) for r, e in zip(references, estimates, strict=True)]
    np.testing.assert_allclose(figures, expected, atol=1e-9)


@MEASURES
def test_gradient_is_the_difference_quotient(measure):
    arguments = tuple(jnp.asarray(x) for x in separation(2))
    assert_derivatives(functools.partial(weighted_sum, measure), gradient_of(measure)(*arguments), arguments)


def test_si_sdr_gradient_is_the_difference_quotient():
    arguments = tuple(jnp.asarray(x[0]) for x in separation(1))
    assert_derivatives(compiled_si_sdr, si_sdr_gradient(*arguments), arguments)


def test_permutation_invariant_si_sdr_gradient_is_the_difference_quotient():
    mean = lambda references, estimates: jnp.mean(permutation_invariant_si_sdr(references, estimates))
    arguments = tuple(jnp.asarray(x) for x in separation(2))
    assert_derivatives(mean, jax.jit(jax.grad(mean, argnums=(0, 1)))(*arguments), arguments)


def test_gradient_passes_the_host_assignment():
    """Seven sources are matched on the host; the figures stay differentiable."""

    def mean_sdr(references, estimates):
        return jnp.mean(sdr_sir_sar_gain(references, estimates).sdr)

    arguments = tuple(jnp.asarray(x) for x in separation(7))
    assert_derivatives(mean_sdr, jax.jit(jax.grad(mean_sdr, argnums=(0, 1)))(*arguments), arguments)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@MEASURES
def test_dtype_is_kept(measure, dtype):
    references, estimates = (jnp.asarray(x) for x in separation(2, dtype=dtype))
    scores = measure(references, estimates)
    assert {getattr(scores, name).dtype for name in FIGURES} == {np.dtype(dtype)}
    assert compiled_si_sdr(references[0], estimates[0]).dtype == dtype
    assert si_sdr_gradient(references[0], estimates[0])[1].dtype == dtype


# Errors


@MEASURES
def test_errors_name_argument_got_and_expected(measure):
    sources = jnp.ones((2, 100))
    with pytest.raises(ValueError, match=r"estimates: expected 2 signals as in references, got 3"):
        measure(sources, jnp.ones((3, 100)))
    with pytest.raises(ValueError, match=r"estimates: expected 2 signals as in references, got 1"):
        measure(sources, jnp.ones((1, 100)))
    with pytest.raises(ValueError, match=r"estimates: expected 100 samples as in references, got 99"):
        measure(sources, jnp.ones((2, 99)))
    with pytest.raises(
        ValueError, match=r"references: expected 2 dimensions, none empty, got shape \(2, 0\)"
    ):
        measure(jnp.ones((2, 0)), jnp.ones((2, 0)))
    with pytest.raises(ValueError, match=r"estimates: expected float32 or float64, got float16"):
        measure(sources, jnp.ones((2, 100), jnp.float16))


def test_errors_of_single_arguments():
    with pytest.raises(ValueError, match=r"estimates: expected 2 signals as in references, got 3"):
        permutation_invariant_si_sdr(jnp.ones((2, 10)), jnp.ones((3, 10)))
    with pytest.raises(ValueError, match=r"estimate: expected 10 samples as in reference, got 9"):
        si_sdr(jnp.ones(10), jnp.ones(9))
    with pytest.raises(ValueError, match=r"filter_length: expected at least 1, got 0"):
        sdr_sir_sar_filter(jnp.ones((2, 10)), jnp.ones((2, 10)), filter_length=0)
    with pytest.raises(ValueError, match=r"scores: expected at least 3 estimates \(references\), got 2"):
        best_permutation(jnp.ones((3, 2)))

"""The measures of the literature against museval and mir_eval, to a thousandth of a decibel."""

import sys
import types
import warnings
from unittest import mock

import fast_bss_eval
import jax
import jax.numpy as jnp
import mir_eval
import numpy as np
import pytest
import scipy.signal

from jaxsep.metrics.bss_eval import sdr_sir_sar_filter
from jaxsep.metrics.si_sdr import si_sdr, si_sdr_improvement
from jaxsep.metrics.snr import frame_snr, snr
from jaxsep.results.document import evaluation_document

#: museval needs its data set's reader, and that the ffmpeg program, only to read data sets.
with mock.patch.dict(sys.modules, {"musdb": sys.modules.get("musdb", types.ModuleType("musdb"))}):
    import museval.metrics

RATE = 1000
EXACT = {"atol": 1e-3, "rtol": 0}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def stems(count=2, samples=5 * RATE, seed=0):
    """Coloured sources, and estimates with leakage, filtering, noise and another level."""
    rng = np.random.default_rng(seed)
    references = scipy.signal.lfilter([1.0, 0.6], [1.0, -0.7], rng.standard_normal((count, samples)))
    leakage = 0.2 * rng.standard_normal((count, count)) @ references
    filtered = scipy.signal.lfilter([0.9, 0.2, -0.1], [1.0], references)
    return references, filtered + leakage + 0.1 * rng.standard_normal(references.shape)


def random():
    return stems()


def three():
    return stems(3, seed=1)


def silent_frames():
    """A reference rests for a second, an estimate for another."""
    references, estimates = stems(seed=2)
    references[0, RATE : 2 * RATE] = 0
    estimates[1, 3 * RATE : 4 * RATE] = 0
    return references, estimates


def short():
    """Shorter than a frame."""
    return stems(samples=700, seed=3)


def uneven():
    """The last part of a second belongs to no frame."""
    return stems(samples=4 * RATE + 321, seed=4)


def swapped():
    references, estimates = stems(seed=5)
    return references, estimates[::-1].copy()


CASES = pytest.mark.parametrize("case", [random, three, silent_frames, short, uneven, swapped])


def museval_v4(references, estimates, window, **options):
    """SDR of every frame and the permutation; the filters of its other figures are kept short."""
    signals = references[..., None], estimates[..., None]
    found = museval.metrics.bss_eval(*signals, window=window, hop=window, filters_len=8, **options)
    return found[0], found[-1]


def permuted(references, estimates):
    """Estimates in the order of the references, as museval's search has it."""
    _, permutation = museval_v4(references, estimates, np.inf, compute_permutation=True)
    return estimates[permutation[:, 0]]


def of_pairs(measure, references, estimates):
    pairs = zip(references, estimates, strict=True)
    return [float(measure(jnp.asarray(reference), jnp.asarray(estimate))) for reference, estimate in pairs]


@CASES
def test_snr_is_the_sdr_of_museval(case):
    references, estimates = case()
    estimates = permuted(references, estimates)
    wanted, _ = museval_v4(references, estimates, np.inf)
    np.testing.assert_allclose(of_pairs(snr, references, estimates), wanted[:, 0], **EXACT)


@CASES
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_snr_is_the_image_sdr_of_mir_eval(case):
    references, estimates = case()
    sdr, *_, permutation = mir_eval.separation.bss_eval_images(references, estimates)
    figures = of_pairs(snr, references, estimates[permutation])
    np.testing.assert_allclose(figures, sdr, **EXACT)


@CASES
def test_frames_are_those_of_museval(case):
    references, estimates = case()
    estimates = permuted(references, estimates)
    wanted, _ = museval_v4(references, estimates, RATE)
    figures = frame_snr(jnp.asarray(references), jnp.asarray(estimates), frame_length=RATE)
    np.testing.assert_array_equal(np.isnan(figures), np.isnan(wanted))
    np.testing.assert_allclose(figures, wanted, **EXACT)
    assert np.isnan(figures).any() == (case is silent_frames)


def test_overlapping_frames_are_those_of_museval():
    references, estimates = uneven()
    signals = references[..., None], estimates[..., None]
    wanted = museval.metrics.bss_eval(*signals, window=RATE, hop=300, filters_len=8)[0]
    figures = frame_snr(jnp.asarray(references), jnp.asarray(estimates), frame_length=RATE, hop=300)
    np.testing.assert_allclose(figures, wanted, **EXACT)


@CASES
def test_filter_scores_are_those_of_both(case):
    references, estimates = case()
    scores = sdr_sir_sar_filter(jnp.asarray(references), jnp.asarray(estimates), filter_length=512)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        sources = mir_eval.separation.bss_eval_sources(references, estimates)
    one_channel = museval.metrics.bss_eval_sources(references[..., None], estimates[..., None])
    for sdr, sir, sar, permutation in (sources, [np.asarray(x).reshape(-1) for x in one_channel]):
        np.testing.assert_array_equal(scores.permutation, permutation)
        for figures, wanted in zip((scores.sdr, scores.sir, scores.sar), (sdr, sir, sar), strict=True):
            np.testing.assert_allclose(figures, wanted, **EXACT)


@CASES
def test_improvement_is_over_the_mixture(case):
    references, estimates = case()
    estimates = permuted(references, estimates)
    mixture = references.sum(axis=0)
    found = of_pairs(lambda r, e: si_sdr_improvement(r, e, jnp.asarray(mixture)), references, estimates)
    before = [fast_bss_eval.numpy.si_sdr(reference[None], mixture[None])[0] for reference in references]
    after = [
        fast_bss_eval.numpy.si_sdr(*pair)[0]
        for pair in zip(references[:, None], estimates[:, None], strict=True)
    ]
    np.testing.assert_allclose(found, np.array(after) - before, **EXACT)
    assert of_pairs(lambda r, e: si_sdr_improvement(r, e, e), references, estimates) == [0] * len(references)


@CASES
def test_the_document_has_them(case):
    """Matched as by the gain-only measure, the median over the frames of a second."""
    references, estimates = case()
    names = [str(n) for n in range(len(references))]
    document = evaluation_document(references, estimates, names, names, sample_rate=RATE)
    matched = permuted(references, estimates)
    np.testing.assert_allclose(document["snr"], museval_v4(references, matched, np.inf)[0][:, 0], **EXACT)
    frames = museval_v4(references, matched, RATE)[0]
    np.testing.assert_allclose(document["snr_frames"], np.nanmedian(frames, axis=1), **EXACT)
    mixture = jnp.asarray(references.sum(axis=0))
    before = np.array([float(si_sdr(jnp.asarray(reference), mixture)) for reference in references])
    improvement = np.array(document["si_sdr"]) - before
    np.testing.assert_allclose(document["si_sdr_improvement"], improvement, **EXACT)


def test_the_improvement_is_over_the_mixture_that_is_given():
    references, estimates = random()
    louder = references[0] + 3 * references[1]
    options = {"reference_names": ["a", "b"], "estimate_names": ["x", "y"], "sample_rate": RATE}
    document = evaluation_document(references, estimates, mixture=louder, **options)
    gained = np.array(document["si_sdr"]) - document["si_sdr_improvement"]
    before = of_pairs(si_sdr, references, [louder, louder])
    np.testing.assert_allclose(gained, before, **EXACT)


def test_a_silent_estimate_has_no_figures():
    references, estimates = random()
    estimates[0] = 0
    document = evaluation_document(references, estimates, ["a", "b"], ["x", "y"], sample_rate=RATE)
    mixture = jnp.asarray(references.sum(axis=0))
    improvement = lambda reference, estimate: si_sdr_improvement(reference, estimate, mixture)
    for name, measure in {"snr": snr, "si_sdr": si_sdr, "si_sdr_improvement": improvement}.items():
        assert document[name][0] is None
        assert document[name][1] == pytest.approx(of_pairs(measure, references, estimates)[1])
    assert document["snr_frames"] == [None, None]  # museval has no frame either


# Values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("level", [1e-12, 1.0, 1e12])
def test_snr_in_closed_form(dtype, level):
    reference = level * np.sin(2 * np.pi * 7 * np.arange(300) / 300).astype(dtype)
    bound = 20 * np.log10(np.finfo(dtype).eps)
    for gain, wanted in [(0.9, 20.0), (0, 0.0), (2, 0.0), (-1, -20 * np.log10(2)), (11, -20.0), (1, -bound)]:
        figure = snr(jnp.asarray(reference), jnp.asarray((gain * reference).astype(dtype)))
        assert figure.dtype == dtype
        np.testing.assert_allclose(figure, wanted, atol=1e-4 if dtype == np.float32 else 1e-9)
    silence = np.zeros_like(reference)
    for estimate in (reference, silence):
        np.testing.assert_allclose(snr(jnp.asarray(silence), jnp.asarray(estimate)), bound, rtol=1e-6)
    assert np.isnan(snr(jnp.asarray(reference), jnp.asarray(reference).at[3].set(np.nan)))


def test_snr_gradient_is_the_difference_quotient():
    (reference, *_), (estimate, *_) = stems(samples=300)
    gradient = jax.grad(snr, argnums=(0, 1))(jnp.asarray(reference), jnp.asarray(estimate))
    for place, pair in enumerate(((1e-5, 0), (0, 1e-5))):
        direction = np.random.default_rng(place).standard_normal(300)
        ahead, behind = (
            snr(
                *(
                    jnp.asarray(x + sign * step * direction)
                    for x, step in zip((reference, estimate), pair, strict=True)
                )
            )
            for sign in (1, -1)
        )
        np.testing.assert_allclose(np.vdot(gradient[place], direction), (ahead - behind) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize("silent", ["reference", "estimate", "both"])
def test_snr_gradient_at_silence_is_finite(silent):
    (reference, *_), (estimate, *_) = stems(samples=300)
    reference, estimate = reference * (silent == "estimate"), estimate * (silent == "reference")
    gradients = jax.grad(snr, argnums=(0, 1))(jnp.asarray(reference), jnp.asarray(estimate))
    assert np.isfinite(gradients).all()


def test_errors_name_argument_got_and_expected():
    signals = jnp.ones((2, 10))
    with pytest.raises(ValueError, match=r"frame_length: expected at least 1, got 0"):
        frame_snr(signals, signals, frame_length=0)
    with pytest.raises(ValueError, match=r"hop: expected at least 1, got -1"):
        frame_snr(signals, signals, frame_length=5, hop=-1)
    with pytest.raises(ValueError, match=r"estimate: expected 10 samples as in reference, got 9"):
        snr(jnp.ones(10), jnp.ones(9))
    with pytest.raises(ValueError, match=r"estimates: expected 2 signals as in references, got 3"):
        frame_snr(signals, jnp.ones((3, 10)), frame_length=5)

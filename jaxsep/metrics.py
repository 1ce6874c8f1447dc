"""How well estimated stems match the true ones: SDR, SIR and SAR, SI-SDR, and the assignment of stems.

Every figure is a ratio of energies in dB and does not depend on the level of any signal. What can be told is
limited by the rounding error of the samples, `eps = finfo(dtype).eps` of their size: all figures lie within
±20·log10(1/eps) dB (±138 dB in float32, ±313 dB in float64). So a perfect estimate scores a large finite
figure, and silence has finite figures and gradients. A signal whose energy under- or overflows its type
counts as silent.
"""

import abc
import functools
import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int
from scipy.fft import next_fast_len
from scipy.optimize import linear_sum_assignment

__all__ = [
    "SeparationScores",
    "best_permutation",
    "permutation_invariant_si_sdr",
    "sdr_sir_sar_filter",
    "sdr_sir_sar_gain",
    "si_sdr",
]

#: Up to six sources (6! = 720) it is cheapest to try every permutation inside the compiled program.
_MAX_PERMUTATIONS = 720
#: A projection is repeated on its own residual: the second pass removes the rounding error of the first, and
# most of what the loading of an ill-conditioned Gram matrix (delayed signals) left over.
_PASSES = 2


class SeparationScores(eqx.Module):
    """Figures of a separation in dB (larger is better), in the order of the references.

    - `sdr`: target against everything else, the overall figure.
    - `sir`: target against what leaked in from the other sources.
    - `sar`: what the sources explain together against what none of them does (noise, lost partials).
    - `permutation`: `permutation[i]` is the index of the estimate that is matched to reference i.

    Example:
        >>> references = jnp.stack([jnp.sin(0.1 * jnp.arange(999.0)), jnp.sin(0.3 * jnp.arange(999.0))])
        >>> scores = jaxsep.sdr_sir_sar_gain(references, references[::-1])
        >>> scores.permutation.tolist()
        [1, 0]
    """

    sdr: Float[Array, "instruments"]
    sir: Float[Array, "instruments"]
    sar: Float[Array, "instruments"]
    permutation: Int[Array, "instruments"]


def sdr_sir_sar_gain(
    references: Float[Array, "instruments samples"], estimates: Float[Array, "_instruments _samples"]
) -> SeparationScores:
    """SDR, SIR and SAR where only a constant gain of each true source is forgiven; the measure P1 reports.

    With `P_i` the orthogonal projection onto reference s_i and `P` the one onto the span of all references,
    an estimate ŝ of s_i has

        target = P_i ŝ,    interference = P ŝ − P_i ŝ,    artifacts = ŝ − P ŝ,
        SDR = ‖target‖² / ‖ŝ − target‖²,  SIR = ‖target‖² / ‖interference‖²,  SAR = ‖P ŝ‖² / ‖artifacts‖²,

    and the estimates are matched to the references by the permutation with the largest sum of SIR.

    Arguments:
        references: true sources, `(instruments, samples)`, float32 or float64, any level.
        estimates: estimated sources of the same shape, in any order, any level.

    Returns: `SeparationScores`. The lowest figure, −20·log10(1/eps) dB, stands for a silent estimate (all
    three) and for a silent reference (SDR and SIR; SAR does not depend on a single reference). Samples that
    are not finite give NaN.

    Raises: `ValueError` if the numbers of signals, their lengths or their types do not fit.

    Source: E. Vincent, R. Gribonval, C. Févotte, "Performance measurement in blind audio source separation",
    IEEE Trans. Audio Speech Lang. Process. 14(4), 2006; a time-invariant gain is the allowed distortion (P1).

    Example:
        >>> references = jnp.stack([jnp.sin(0.1 * jnp.arange(999.0)), jnp.sin(0.3 * jnp.arange(999.0))])
        >>> estimates = references + 0.1 * references[::-1]  # a tenth of the other leaks in
        >>> print(jaxsep.sdr_sir_sar_gain(references, estimates).sir.round())
        [20. 20.]
    """
    references, estimates = _checked(references, estimates, ndim=2)
    return _best_scores(references, estimates, filter_length=1)


def sdr_sir_sar_filter(
    references: Float[Array, "instruments samples"],
    estimates: Float[Array, "_instruments _samples"],
    *,
    filter_length: int = 512,
) -> SeparationScores:
    """SDR, SIR and SAR where a short time-invariant filter of each true source is forgiven ("BSS Eval v3").

    The formulas of `sdr_sir_sar_gain`, with `P_i` the projection onto the span of s_i delayed by
    0 … filter_length−1 samples and `P` the one onto the span of all sources so delayed. More is forgiven, so
    SDR and SAR are **higher** than by the gain-only measure; SIR may move either way, since the filters also
    explain more of an estimate as interference. Say which measure a figure is.

    Arguments:
        references: true sources, `(instruments, samples)`, float32 or float64, any level.
        estimates: estimated sources of the same shape, in any order, any level.
        filter_length: number of filter taps, at least 1; 512 is customary, 1 allows only a gain.

    Returns: `SeparationScores`, with silence as in `sdr_sir_sar_gain`. The delayed signals of real music are
    nearly dependent, which float32 resolves less well: its figures are off by hundredths of a decibel. Use
    float64 for figures to be published.

    Raises: `ValueError` if the numbers of signals, their lengths, their types or `filter_length` do not fit.

    Source: Vincent et al. 2006 as for `sdr_sir_sar_gain`; the same measure as `bss_eval_sources` of mir_eval
    (C. Raffel et al., ISMIR 2014).

    Example:
        >>> references = jnp.stack([jnp.sin(0.1 * jnp.arange(999.0)), jnp.sin(0.3 * jnp.arange(999.0))])
        >>> noise = 0.1 * jax.random.normal(jax.random.key(0), references.shape)
        >>> scores = jaxsep.sdr_sir_sar_filter(references, references + noise, filter_length=8)
        >>> bool(jnp.all(scores.sdr > jaxsep.sdr_sir_sar_gain(references, references + noise).sdr))
        True
    """
    if filter_length < 1:
        raise ValueError(f"filter_length: expected at least 1, got {filter_length}")
    references, estimates = _checked(references, estimates, ndim=2)
    return _best_scores(references, estimates, filter_length=filter_length)


@jax.jit
def si_sdr(reference: Float[Array, "samples"], estimate: Float[Array, "_samples"]) -> Float[Array, ""]:
    """Scale-invariant signal-to-distortion ratio of one estimate, in dB; a training loss when negated.

        SI-SDR = 10 log10( ‖α s‖² / ‖ŝ − α s‖² ),    α = ⟨s, ŝ⟩ / ‖s‖²

    Means are not removed.

    Arguments:
        reference: true source s, `(samples,)`, float32 or float64, any level.
        estimate: estimated source ŝ of the same length, any level.

    Returns: the figure in dB. Silence in either argument gives −20·log10(1/eps) dB with a zero gradient.
    Samples that are not finite give NaN.

    Raises: `ValueError` if the lengths or the types do not fit.

    Source: J. Le Roux et al., "SDR – half-baked or well done?", ICASSP 2019.

    Example:
        >>> reference, other = jnp.sin(0.1 * jnp.arange(999.0)), jnp.sin(0.3 * jnp.arange(999.0))
        >>> print(jaxsep.si_sdr(reference, 3 * (reference + 0.1 * other)).round())  # any gain is forgiven
        20.0
    """
    reference, estimate = _checked(reference, estimate, ndim=1)
    references, estimate = _unit_energy(reference[None]), _unit_energy(estimate)
    target = _gain_span(references).project(estimate)
    sdr = _decibels(target, estimate - target)
    return _lowest_where(_silent(references[0]) | _silent(estimate), sdr)


@jax.jit
def permutation_invariant_si_sdr(
    references: Float[Array, "instruments samples"], estimates: Float[Array, "_instruments _samples"]
) -> Float[Array, "instruments"]:
    """SI-SDR in dB of each true source by the estimate that is matched to it; a training loss when negated.

    Of all ways to match them the one with the largest sum counts (permutation-invariant training).

    Arguments:
        references: true sources, `(instruments, samples)`, float32 or float64, any level.
        estimates: estimated sources of the same shape, in any order, any level.

    Returns: figures in the order of the references, as by `si_sdr`. No gradient flows through the choice.

    Raises: `ValueError` if the numbers of signals, their lengths or their types do not fit.

    Source: M. Kolbæk et al., "Multitalker speech separation with utterance-level permutation invariant
    training of deep recurrent neural networks", IEEE/ACM Trans. Audio Speech Lang. Process. 25(10), 2017.

    Example:
        >>> references = jnp.stack([jnp.sin(0.1 * jnp.arange(999.0)), jnp.sin(0.3 * jnp.arange(999.0))])
        >>> estimates = references[::-1] + 0.1 * references  # a tenth of the other leaks in
        >>> print(jaxsep.permutation_invariant_si_sdr(references, estimates).round())
        [20. 20.]
    """
    references, estimates = _checked(references, estimates, ndim=2)
    figures = jax.vmap(lambda s: jax.vmap(lambda e: si_sdr(s, e))(estimates))(references)
    return figures[jnp.arange(len(references)), best_permutation(figures)]


@jax.jit
def best_permutation(scores: Float[Array, "references estimates"]) -> Int[Array, "references"]:
    """Assignment of a different estimate to each reference that maximises the sum of the scores.

        argmax_π Σ_i scores[i, π(i)]

    Up to 720 assignments (six of six) are compared inside the compiled program; of equal sums the first in
    lexicographic order wins. For more, SciPy's `linear_sum_assignment` runs on the host through a callback.

    Arguments:
        scores: figure of estimate k for reference i, `(references, estimates)`, at least as many estimates as
            references, finite, larger is better. No gradient flows through the choice.

    Returns: for each reference the index of its estimate. A score that is NaN counts as the worst one.

    Raises: `ValueError` if there are fewer estimates than references.

    Example:
        >>> print(jaxsep.best_permutation(jnp.array([[3.0, 9.0], [1.0, 2.0]])))  # 9 + 1 > 3 + 2
        [1 0]
    """
    num_references, num_estimates = scores.shape
    if num_estimates < num_references:
        raise ValueError(
            f"scores: expected at least {num_references} estimates (references), got {num_estimates}"
        )
    limits = jnp.finfo(scores.dtype)
    # Far inside the range of the type, so that a sum over the references cannot overflow.
    bound = float(limits.max) / (4 * max(num_references, 1))
    finite = jnp.clip(jnp.nan_to_num(jax.lax.stop_gradient(scores), nan=-bound), -bound, bound)
    if math.perm(num_estimates, num_references) > _MAX_PERMUTATIONS:
        shape = jax.ShapeDtypeStruct((num_references,), jnp.int32)
        return jax.pure_callback(_assign_on_host, shape, finite, vmap_method="sequential")
    choices = np.array(list(itertools.permutations(range(num_estimates), num_references)), dtype=np.int32)
    sums = jnp.sum(finite[np.arange(num_references), choices], axis=1)
    return jnp.asarray(choices)[jnp.argmax(sums)]


def _assign_on_host(scores) -> np.ndarray:
    return linear_sum_assignment(np.asarray(scores), maximize=True)[1].astype(np.int32)


class _Span(eqx.Module):
    """Signals that the allowed distortions can make of some sources."""

    @abc.abstractmethod
    def _project_once(self, signal: Float[Array, "samples"]) -> Float[Array, "samples"]: ...

    def project(self, signal: Float[Array, "samples"]) -> Float[Array, "samples"]:
        """Nearest signal of the span."""
        projection = jnp.zeros_like(signal)
        for _ in range(_PASSES):
            projection += self._project_once(signal - projection)
        return projection


class _GainSpan(_Span):
    """Linear combinations of the sources."""

    sources: Float[Array, "instruments samples"]
    cholesky: Float[Array, "instruments instruments"]

    def _project_once(self, signal: Float[Array, "samples"]) -> Float[Array, "samples"]:
        gains = _solve(self.cholesky, _inner(self.sources, signal))
        return jnp.sum(gains[:, None] * self.sources, axis=0)


class _FilterSpan(_Span):
    """Sums of the sources, each filtered by `filter_length` taps; the signals end in enough zeros."""

    transforms: Complex[Array, "instruments frequencies"]
    cholesky: Float[Array, "delays delays"]
    filter_length: int = eqx.field(static=True)

    def _project_once(self, signal: Float[Array, "samples"]) -> Float[Array, "samples"]:
        samples = signal.shape[0]
        spectra = jnp.conj(self.transforms) * jnp.fft.rfft(signal)
        correlations = jnp.fft.irfft(spectra, samples)[:, : self.filter_length]
        taps = _solve(self.cholesky, correlations.ravel()).reshape(correlations.shape)
        return jnp.fft.irfft(jnp.sum(self.transforms * jnp.fft.rfft(taps, samples), axis=0), samples)


def _gain_span(sources: Float[Array, "instruments samples"]) -> _GainSpan:
    return _GainSpan(sources, _loaded_cholesky(_inner(sources[:, None], sources[None])))


def _filter_span(sources: Float[Array, "instruments samples"], filter_length: int) -> _FilterSpan:
    """Gram matrix of the delayed sources: block Toeplitz, ⟨s_i(·−a), s_j(·−b)⟩ = r_ij(a − b)."""
    transforms = jnp.fft.rfft(sources)
    spectra = jnp.conj(transforms[:, None]) * transforms[None]
    correlations = jnp.fft.irfft(spectra, sources.shape[-1])
    delays = np.arange(filter_length)
    # A negative lag counts from the end, which is where the circular correlation has it.
    blocks = correlations[:, :, delays[:, None] - delays[None, :]]
    gram = blocks.transpose(0, 2, 1, 3).reshape(len(sources) * filter_length, -1)
    return _FilterSpan(transforms, _loaded_cholesky(gram), filter_length)


def _loaded_cholesky(gram: Float[Array, "rows rows"]) -> Float[Array, "rows rows"]:
    """Cholesky factor of a Gram matrix of unit vectors, loaded by its rounding error so that it exists."""
    size = gram.shape[0]
    loading = size * jnp.finfo(gram.dtype).eps
    return jnp.linalg.cholesky(gram + loading * jnp.eye(size, dtype=gram.dtype))


def _solve(cholesky: Float[Array, "rows rows"], vector: Float[Array, "rows"]) -> Float[Array, "rows"]:
    return jax.scipy.linalg.cho_solve((cholesky, True), vector)


# Compiled as a whole: energies of products are then summed without storing the products.
@functools.partial(jax.jit, static_argnames="filter_length")
def _best_scores(
    references: Float[Array, "instruments samples"],
    estimates: Float[Array, "instruments samples"],
    *,
    filter_length: int,
) -> SeparationScores:
    references, estimates = _unit_energy(references), _unit_energy(estimates)
    make_span = _gain_span
    if filter_length > 1:
        # Zeros for the tail of the filtered sources: circular convolution is then linear.
        samples = references.shape[1]
        padding = ((0, 0), (0, next_fast_len(samples + filter_length - 1, real=True) - samples))
        references, estimates = jnp.pad(references, padding), jnp.pad(estimates, padding)
        make_span = functools.partial(_filter_span, filter_length=filter_length)
    single = jax.vmap(make_span)(references[:, None])
    full = make_span(references)
    # One estimate at a time: memory for instruments × samples, not instruments² × samples.
    score = functools.partial(_score_estimate, single, full, _silent(references))
    sdr, sir, sar = (figures.T for figures in jax.lax.map(score, estimates))
    permutation = best_permutation(sir)
    matched = jnp.arange(len(references)), permutation
    return SeparationScores(sdr[matched], sir[matched], sar[matched], permutation)


def _score_estimate(
    single: _Span,
    full: _Span,
    silent_references: Bool[Array, "instruments"],
    estimate: Float[Array, "samples"],
) -> tuple[Float[Array, "instruments"], Float[Array, "instruments"], Float[Array, "instruments"]]:
    """SDR, SIR and SAR of one estimate for each reference it might belong to."""
    target = jax.vmap(lambda span: span.project(estimate))(single)
    explained = full.project(estimate)
    sdr = _decibels(target, estimate - target)
    sir = _decibels(target, explained - target)
    sar = _decibels(explained, estimate - explained)
    silent = _silent(estimate)
    absent = silent | silent_references
    sar = jnp.broadcast_to(_lowest_where(silent, sar), sdr.shape)
    return _lowest_where(absent, sdr), _lowest_where(absent, sir), sar


def _decibels(
    wanted: Float[Array, "*batch samples"], unwanted: Float[Array, "*batch samples"]
) -> Float[Array, "*batch"]:
    """Ratio of two parts of a signal of unit energy, both raised by the energy of its rounding error."""
    floor = jnp.finfo(wanted.dtype).eps ** 2
    return 10 * (jnp.log10(_energy(wanted) + floor) - jnp.log10(_energy(unwanted) + floor))


def _lowest_where(silent: Bool[Array, "*batch"], decibels: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    return jnp.where(silent, 20 * math.log10(jnp.finfo(decibels.dtype).eps), decibels)


def _unit_energy(signals: Float[Array, "*batch samples"]) -> Float[Array, "*batch samples"]:
    """Each signal divided by its norm; silence becomes exact zeros."""
    # No figure depends on the level, so the norm is a constant to the derivative: none of a root at zero.
    energy = jax.lax.stop_gradient(_energy(signals))[..., None]
    silent = energy <= jnp.finfo(signals.dtype).tiny
    return jnp.where(silent, 0, signals / jnp.sqrt(jnp.where(silent, 1, energy)))


def _silent(signals: Float[Array, "*batch samples"]) -> Bool[Array, "*batch"]:
    return _energy(signals) == 0


def _energy(signals: Float[Array, "*batch samples"]) -> Float[Array, "*batch"]:
    return _inner(signals, signals)


def _inner(
    first: Float[Array, "*first samples"], second: Float[Array, "*second samples"]
) -> Float[Array, "..."]:
    # Multiply and sum, not a matrix product: some devices round the operands of those to fewer bits.
    return jnp.sum(first * second, axis=-1)


def _checked(references: Array, estimates: Array, *, ndim: int) -> tuple[Array, Array]:
    """Both as arrays of one type, once it is clear that they can be compared."""
    references, estimates = jnp.asarray(references), jnp.asarray(estimates)
    plural = "s" if ndim == 2 else ""
    for name, signals in ((f"reference{plural}", references), (f"estimate{plural}", estimates)):
        if signals.ndim != ndim or 0 in signals.shape:
            raise ValueError(f"{name}: expected {ndim} dimensions, none empty, got shape {signals.shape}")
        if signals.dtype not in (jnp.float32, jnp.float64):
            raise ValueError(f"{name}: expected float32 or float64, got {signals.dtype}")
    if len(estimates) != len(references) and ndim == 2:
        raise ValueError(
            f"estimates: expected {len(references)} signals as in references, got {len(estimates)}"
        )
    if estimates.shape[-1] != references.shape[-1]:
        got, expected = estimates.shape[-1], references.shape[-1]
        raise ValueError(f"estimate{plural}: expected {expected} samples as in reference{plural}, got {got}")
    dtype = jnp.result_type(references, estimates)
    return references.astype(dtype), estimates.astype(dtype)

"""SDR, SIR and SAR, where a gain or a short filter of each true source is forgiven."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from scipy.fft import next_fast_len

from jaxsep.metrics.matching import best_permutation
from jaxsep.metrics.projections import Span, filter_span, gain_span
from jaxsep.metrics.ratios import checked, decibels, is_silent, lowest_where, unit_energy

__all__ = ["SeparationScores", "sdr_sir_sar_filter", "sdr_sir_sar_gain"]


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
    references, estimates = checked(references, estimates, ndim=2)
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
    references, estimates = checked(references, estimates, ndim=2)
    return _best_scores(references, estimates, filter_length=filter_length)


# Compiled as a whole: energies of products are then summed without storing the products.
@functools.partial(jax.jit, static_argnames="filter_length")
def _best_scores(
    references: Float[Array, "instruments samples"],
    estimates: Float[Array, "instruments samples"],
    *,
    filter_length: int,
) -> SeparationScores:
    references, estimates = unit_energy(references), unit_energy(estimates)
    make_span = gain_span
    if filter_length > 1:
        # Zeros for the tail of the filtered sources: circular convolution is then linear.
        samples = references.shape[1]
        padding = ((0, 0), (0, next_fast_len(samples + filter_length - 1, real=True) - samples))
        references, estimates = jnp.pad(references, padding), jnp.pad(estimates, padding)
        make_span = functools.partial(filter_span, filter_length=filter_length)
    single = jax.vmap(make_span)(references[:, None])
    full = make_span(references)
    # One estimate at a time: memory for instruments × samples, not instruments² × samples.
    score = functools.partial(_score_estimate, single, full, is_silent(references))
    sdr, sir, sar = (figures.T for figures in jax.lax.map(score, estimates))
    permutation = best_permutation(sir)
    matched = jnp.arange(len(references)), permutation
    return SeparationScores(sdr[matched], sir[matched], sar[matched], permutation)


def _score_estimate(
    single: Span,
    full: Span,
    silent_references: Bool[Array, "instruments"],
    estimate: Float[Array, "samples"],
) -> tuple[Float[Array, "instruments"], Float[Array, "instruments"], Float[Array, "instruments"]]:
    """SDR, SIR and SAR of one estimate for each reference it might belong to."""
    target = jax.vmap(lambda span: span.project(estimate))(single)
    explained = full.project(estimate)
    sdr = decibels(target, estimate - target)
    sir = decibels(target, explained - target)
    sar = decibels(explained, estimate - explained)
    silent = is_silent(estimate)
    absent = silent | silent_references
    sar = jnp.broadcast_to(lowest_where(silent, sar), sdr.shape)
    return lowest_where(absent, sdr), lowest_where(absent, sir), sar

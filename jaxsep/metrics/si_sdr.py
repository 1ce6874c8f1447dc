"""SI-SDR, which forgives a gain, and how much better than the mixture it is."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsep.metrics.matching import best_permutation
from jaxsep.metrics.projections import gain_span
from jaxsep.metrics.ratios import checked, decibels, is_silent, lowest_where, unit_energy

__all__ = ["permutation_invariant_si_sdr", "si_sdr", "si_sdr_improvement"]


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
    reference, estimate = checked(reference, estimate, ndim=1)
    references, estimate = unit_energy(reference[None]), unit_energy(estimate)
    target = gain_span(references).project(estimate)
    sdr = decibels(target, estimate - target)
    return lowest_where(is_silent(references[0]) | is_silent(estimate), sdr)


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
    references, estimates = checked(references, estimates, ndim=2)
    figures = jax.vmap(lambda s: jax.vmap(lambda e: si_sdr(s, e))(estimates))(references)
    return figures[jnp.arange(len(references)), best_permutation(figures)]


def si_sdr_improvement(
    reference: Float[Array, "samples"], estimate: Float[Array, "_samples"], mixture: Float[Array, "_samples"]
) -> Float[Array, ""]:
    """By how many dB the SI-SDR of an estimate exceeds that of the mixture ("SI-SDRi").

    Arguments:
        reference: true source, `(samples,)`, float32 or float64, any level.
        estimate: estimated source of the same length, any level.
        mixture: what it was estimated from, of the same length, any level.

    Returns: the difference in dB; 0 for the mixture itself, and for a silent reference.

    Raises: `ValueError` if the lengths or the types do not fit.

    Source: Y. Luo, N. Mesgarani, "Conv-TasNet: Surpassing ideal time–frequency magnitude masking for speech
    separation", IEEE/ACM Trans. Audio Speech Lang. Process. 27(8), 2019.

    Example:
        >>> reference, other = jnp.sin(0.1 * jnp.arange(999.0)), jnp.sin(0.3 * jnp.arange(999.0))
        >>> mixture, estimate = reference + other, reference + 0.1 * other
        >>> print(jaxsep.si_sdr_improvement(reference, estimate, mixture).round())
        20.0
    """
    return si_sdr(reference, estimate) - si_sdr(reference, mixture)

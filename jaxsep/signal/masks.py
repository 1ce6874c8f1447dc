"""Masks that divide a mixture among instruments, and phases for given magnitudes."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex, Float

from jaxsep.signal.stft import GaussianSTFT

__all__ = ["griffin_lim", "ratio_masks", "unit_phase"]


def ratio_masks(
    magnitudes: Float[Array, "instruments *shape"],
    mixture_magnitude: Float[Array, "*shape"],
    *,
    share: float | Float[Array, ""] = 1e-4,
    exponent: float = 1.0,
) -> Float[Array, "instruments *shape"]:
    """Fraction of the mixture that belongs to each instrument.

    `mask_i = r_i^p / Σ_j r_j^p` with the ratios `r_i = (Y_i + ε|Z|/I) / (Σ_j Y_j + ε|Z|)` for I instruments.
    With the exponent p = 1 magnitudes add up, as in P1; with p = 2 powers do, as those of independent sounds
    on average: that is Wiener's filter, and leaves less of the others. With a positive share ε, energy that
    no model explains is divided evenly, and the masks sum to 1 everywhere: the stems add up to the mixture.
    With ε = 0 it is dropped: `Y_i^p / Σ_j Y_j^p`, and 0 where no instrument plays.

    Arguments:
        magnitudes: modelled magnitudes Y_i of the instruments, nonnegative.
        mixture_magnitude: magnitude |Z| of the mixture, nonnegative.
        share: ε ≥ 0, without unit.
        exponent: p ≥ 1, known when tracing.

    Returns: masks between 0 and 1. Where the denominator is 0, or so small (1e-19 in float32) that the
    derivative would overflow, they are constant: 1/I, or 0 for ε = 0.

    Raises: `ValueError` when the shapes do not match, for a negative share known when tracing, or for an
    exponent below 1.

    Source: P1 (masking); the share and the exponent are additions.

    Example:
        >>> magnitudes = jnp.array([[3.0, 1.0, 0.0], [1.0, 1.0, 0.0]])  # [instruments, bins]
        >>> print(jaxsep.ratio_masks(magnitudes, jnp.array([4.0, 2.0, 1.0]), share=0.0))
        [[0.75 0.5  0.  ]
         [0.25 0.5  0.  ]]
    """
    if magnitudes.ndim < 1 or magnitudes.shape[1:] != mixture_magnitude.shape or magnitudes.shape[0] < 1:
        raise ValueError(
            f"magnitudes: expected shape (instruments, *{mixture_magnitude.shape}) "
            f"with at least 1 instrument, got {magnitudes.shape}"
        )
    if isinstance(share, int | float) and share < 0:
        raise ValueError(f"share: expected at least 0, got {share}")
    if not exponent >= 1:
        raise ValueError(f"exponent: expected at least 1, got {exponent}")
    num_instruments = magnitudes.shape[0]
    share = jnp.asarray(share, magnitudes.dtype)
    shared = share * mixture_magnitude
    total = jnp.sum(magnitudes, axis=0) + shared
    # The derivative of the quotient contains 1/total².
    divisible = total > jnp.sqrt(jnp.finfo(total.dtype).tiny)
    masks = (magnitudes + shared / num_instruments) / jnp.where(divisible, total, 1)
    masks = jnp.where(divisible, masks, jnp.where(share > 0, 1 / num_instruments, 0))
    if exponent == 1:
        return masks
    powers = masks**exponent
    total = jnp.sum(powers, axis=0)  # at least I^(1-p), unless all masks are 0
    return powers / jnp.where(total > 0, total, 1)


def griffin_lim(
    stft: GaussianSTFT,
    magnitudes: Float[Array, "frames bins"],
    initial: Complex[Array, "frames bins"],
    num_samples: int,
    *,
    num_iterations: int = 1,
) -> Float[Array, " samples"]:
    """Signal whose spectrogram has nearly the given magnitudes, by the iteration of Griffin and Lim.

    `x ← synthesise(Y · Z/|Z|)`, `Z ← analyse(x)`, starting with the phase of `initial`, usually the
    mixture's spectrogram. The distance between Y and the magnitudes of the result's spectrogram
    never grows from one iteration to the next.

    Arguments:
        stft: the transform.
        magnitudes: wanted magnitudes Y, nonnegative.
        initial: spectrogram whose phase starts the iteration; a bin that is 0 has phase zero.
        num_samples: length of the signal, at least 1.
        num_iterations: at least 1; 1 is the plain inverse with the initial phase.

    Raises: `ValueError` for num_iterations < 1, different shapes, or what `stft.synthesise` refuses.

    Source: P1 (resynthesis), after D. Griffin and J. Lim, IEEE Trans. ASSP 32(2), 1984.

    Example:
        >>> stft = jaxsep.GaussianSTFT(window_std=64, hop=32)
        >>> samples = jnp.sin(0.3 * jnp.arange(960.0))
        >>> mixture = stft.analyse(samples)
        >>> half = jaxsep.griffin_lim(stft, 0.5 * jnp.abs(mixture), mixture, samples.size)
        >>> bool(jnp.allclose(half, 0.5 * samples, atol=1e-5))
        True
    """
    if num_iterations < 1:
        raise ValueError(f"num_iterations: expected at least 1, got {num_iterations}")
    if magnitudes.shape != initial.shape:
        raise ValueError(f"initial: expected the shape {magnitudes.shape} of magnitudes, got {initial.shape}")

    def iterate(_, samples):
        spectrogram = stft.analyse(samples, num_frames=magnitudes.shape[0])
        return stft.synthesise(magnitudes * unit_phase(spectrogram), num_samples)

    samples = stft.synthesise(magnitudes * unit_phase(initial), num_samples)
    return lax.fori_loop(1, num_iterations, iterate, samples)


def unit_phase(spectrogram: Array) -> Array:
    """Phase factor `Z/|Z|` of each bin, 1 where Z is 0 or too small to have one."""
    modulus = jnp.abs(spectrogram)
    # Relative to the smallest normal number, whose inverse square the derivative would contain.
    nonzero = modulus > jnp.sqrt(jnp.finfo(modulus.dtype).tiny)
    return jnp.where(nonzero, spectrogram / jnp.where(nonzero, modulus, 1), 1)

"""SNR, which forgives nothing: of a whole signal, and of its frames."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsep.metrics.ratios import checked, energy, is_silent, lowest_where

__all__ = ["frame_snr", "snr"]


@jax.jit
def snr(reference: Float[Array, "samples"], estimate: Float[Array, "_samples"]) -> Float[Array, ""]:
    """Signal-to-noise ratio of one estimate in dB, which forgives neither a gain nor a filter.

        SNR = 10 log10( ‖s‖² / ‖s − ŝ‖² )

    It is the SDR of museval since its version 4 (`sdr` of `bss_eval_images`), and of the Music Demixing
    Challenge. Unlike all other figures here it depends on the level of the estimate: silence has 0 dB, and
    what is as loud as the source but has nothing of it −3 dB.

    Arguments:
        reference: true source s, `(samples,)`, float32 or float64.
        estimate: estimated source ŝ of the same length, in the units of s.

    Returns: the figure in dB, within ±20·log10(1/eps); the lowest for a silent reference, even if the
    estimate is silent, too. Samples that are not finite give NaN.

    Raises: `ValueError` if the lengths or the types do not fit.

    Source: F.-R. Stöter, A. Liutkus, N. Ito, "The 2018 signal separation evaluation campaign", LVA/ICA 2018.

    Example:
        >>> reference = jnp.sin(0.1 * jnp.arange(999.0))
        >>> print(jaxsep.snr(reference, 0.9 * reference).round(1))  # a gain is an error
        20.0
    """
    return _ratio(*checked(reference, estimate, ndim=1))


@functools.partial(jax.jit, static_argnames=("frame_length", "hop"))
def frame_snr(
    references: Float[Array, "instruments samples"],
    estimates: Float[Array, "_instruments _samples"],
    *,
    frame_length: int,
    hop: int | None = None,
) -> Float[Array, "instruments frames"]:
    """SNR in dB of every frame; the median over frames of one second is what SiSEC and museval report.

    Frame n has the samples from n·hop on, as many as there are whole frames; a shorter signal is one frame.
    There is no figure, but NaN, for a frame in which *any* reference or estimate is silent, as in museval:
    take the median by `jnp.nanmedian`.

    Arguments:
        references: true sources, `(instruments, samples)`, float32 or float64.
        estimates: the estimated source of each, in the same order and the same units.
        frame_length: in samples, at least 1.
        hop: samples from frame to frame, at least 1; `frame_length` by default.

    Returns: figures as by `snr`, or NaN.

    Raises: `ValueError` if the numbers of signals, their lengths, their types or the sizes do not fit.

    Source: as for `snr`.

    Example:
        >>> references = jnp.stack([jnp.sin(0.1 * jnp.arange(999.0)), jnp.sin(0.3 * jnp.arange(999.0))])
        >>> estimates = (0.9 * references).at[1, :400].set(0)  # silent in the first frame
        >>> print(jaxsep.frame_snr(references, estimates, frame_length=333)[0].round())
        [nan 20. 20.]
    """
    references, estimates = checked(references, estimates, ndim=2)
    samples = references.shape[1]
    hop = frame_length if hop is None else hop
    for name, size in (("frame_length", frame_length), ("hop", hop)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    length = min(frame_length, samples)
    starts = jnp.arange(0, samples - length + 1, hop)

    def frame(start):
        cut = lambda signals: jax.lax.dynamic_slice_in_dim(signals, start, length, axis=1)
        here, found = cut(references), cut(estimates)
        absent = jnp.any(is_silent(here) | is_silent(found))
        return jnp.where(absent, jnp.nan, jax.vmap(_ratio)(here, found))

    return jax.lax.map(frame, starts).T


def _ratio(reference, estimate):
    power = energy(reference)
    silent = power <= jnp.finfo(reference.dtype).tiny
    # In units of the reference, so that no energy leaves the range of the type.
    scale = jax.lax.stop_gradient(1 / jnp.sqrt(jnp.where(silent, 1, power)))
    floor = jnp.finfo(reference.dtype).eps ** 2
    wanted = jnp.where(silent, 1, energy(scale * reference))
    # As bad as silence at worst, however loud the estimate is.
    unwanted = jnp.minimum(energy(scale * (reference - estimate)) + floor, 1 / floor)
    return lowest_where(silent, 10 * (jnp.log10(wanted) - jnp.log10(unwanted)))

"""The whole chain from samples to stems as one module: to be trained, mapped, and built into other models."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.separation.chunks import ANALYSIS_RATE, instrument_spectra
from jaxsep.signal.log_frequency import log_frequency_spectrogram
from jaxsep.signal.masks import ratio_masks
from jaxsep.signal.peaks import PeakPursuit
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.dictionary import harmonics_of
from jaxsep.tones.tones import Tones

__all__ = ["PursuitSeparator"]


class PursuitSeparator(eqx.Module):
    """Separation of an excerpt with given instruments by greedy pursuit, a pure function of arrays (P1).

        samples ─ STFT ─▶ log-frequency spectra ─ pursuit ─▶ tones ─ render ─▶ masks ─▶ stems

    It runs inside `jit`, `vmap` and `grad`. Stems can be differentiated by the samples, the harmonics and the
    share, with the selected tones held fixed (see `Adjoint`), in memory that does not depend on the
    iterations of the pursuit. Whole recordings, and the search across frames, are for `separate`.

    Arguments:
        harmonics: rows of the dictionary, ≥ 0; the stems depend on the ratios within a row alone.
        share: part of the energy that no tone explains that the masks share among the instruments, ≥ 0.
        pursuit: how tones are found.
        peaks: how peaks are found; several rounds of peaks have no gradient in reverse mode.
        stft: the transform.
        sample_rate: in Hz. The defaults belong to 48 kHz; for another, keep the window's duration.

    Example:
        >>> mixture, _, rate = jaxsep.demo_recording()
        >>> samples = jnp.asarray(jaxsep.resample(mixture[: rate // 2], rate, 48_000))
        >>> separator = jaxsep.PursuitSeparator(jnp.array([[1.0, 0.3, 0.1], [1.0, 0.0, 0.5]]))
        >>> stems = jax.jit(lambda samples: separator(samples))(samples)
        >>> stems.shape, bool(jnp.allclose(stems.sum(axis=0), samples, atol=1e-5))
        ((2, 24000), True)
    """

    harmonics: Float[Array, "instruments harmonics"]
    share: float | Float[Array, ""] = 1e-4
    pursuit: TonePursuit = TonePursuit()
    peaks: PeakPursuit = PeakPursuit()
    stft: GaussianSTFT = GaussianSTFT(hop=512)
    sample_rate: int = eqx.field(static=True, default=ANALYSIS_RATE)

    def __call__(self, samples: Float[Array, " samples"]) -> Float[Array, "instruments samples"]:
        """Stems of one channel; with a share above 0 they sum to the samples."""
        mixture = self.stft.analyse(samples)
        magnitude = jnp.abs(mixture)
        tones, number = self.tones(magnitude), self.harmonics.shape[0]
        harmonics = harmonics_of(tones, self.harmonics.astype(samples.dtype))
        model = instrument_spectra(tones, harmonics, number, self.stft, self.sample_rate)
        masks = ratio_masks(model, magnitude, share=self.share)
        return jax.vmap(lambda mask: self.stft.synthesise(mask * mixture, samples.shape[0]))(masks)

    def tones(self, magnitude: Float[Array, "frames bins"]) -> Tones:
        """Tones of every frame of a spectrogram, `[frames, tones]`; fundamentals in Hz."""
        log_axis, axis = self.pursuit.objective.axis, self.stft.axis(self.sample_rate)
        spectra = log_frequency_spectrogram(magnitude[:, :-1], axis, log_axis, self.peaks)
        # The pursuit expects a peak of 1.
        peak = jnp.max(spectra)
        peak = jnp.where(peak > 0, peak, 1)
        return self.pursuit(spectra / peak, self.harmonics).tones.in_hz(log_axis, peak)

"""The whole chain from samples to stems as one module: to be trained, mapped, and built into other models."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.separation.chunks import ANALYSIS_RATE
from jaxsep.signal.axes import LinearAxis
from jaxsep.signal.log_frequency import log_frequency_spectrogram
from jaxsep.signal.masks import ratio_masks
from jaxsep.signal.peaks import PeakPursuit
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.rendering import render_instruments
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
        tones = self.tones(magnitude)
        render = lambda frame: render_instruments(frame, self.harmonics.astype(samples.dtype), self.axis)
        model = jnp.swapaxes(jax.vmap(render)(tones), 0, 1)
        model = jnp.pad(model, ((0, 0), (0, 0), (0, 1)))  # no tone reaches the Nyquist bin
        masks = ratio_masks(model, magnitude, share=self.share)
        return jax.vmap(lambda mask: self.stft.synthesise(mask * mixture, samples.shape[0]))(masks)

    def tones(self, magnitude: Float[Array, "frames bins"]) -> Tones:
        """Tones of every frame of a spectrogram, `[frames, tones]`; fundamentals in bins of `axis`."""
        log_axis = self.pursuit.objective.axis
        spectra = log_frequency_spectrogram(magnitude[:, :-1], self.axis, log_axis, self.peaks)
        # The pursuit expects a peak of 1.
        peak = jnp.max(spectra)
        peak = jnp.where(peak > 0, peak, 1)
        tones = self.pursuit(spectra / peak, self.harmonics).tones
        # A tone that drifted far off the axis is silent, but its frequency may not overflow.
        position = jnp.clip(tones.fundamental, -log_axis.num_bins, 2 * log_axis.num_bins)
        position = self.axis.to_bin(log_axis.to_hz(position))
        fields = tones.amplitude * peak, jnp.where(tones.active, position, 0)
        return eqx.tree_at(lambda t: (t.amplitude, t.fundamental), tones, fields)

    @property
    def axis(self) -> LinearAxis:
        """Bins of the spectrogram that are modelled: all but the Nyquist bin."""
        return LinearAxis(self.stft.n_fft // 2, self.sample_rate / self.stft.n_fft)

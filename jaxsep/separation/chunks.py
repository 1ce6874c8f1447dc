"""Spectra and stems of recordings of any length, in chunks of frames that overlap in the samples."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.fft import next_fast_len

from jaxsep.numerics.devices import chunk_size, over_chunks
from jaxsep.numerics.lanes import map_frames
from jaxsep.separation.coherent import coherent_partials, in_lines
from jaxsep.separation.settings import SeparationSettings
from jaxsep.signal.axes import LogAxis
from jaxsep.signal.log_frequency import log_frequency_spectrum
from jaxsep.signal.masks import ratio_masks, unit_phase
from jaxsep.signal.noise import MEAN_NOISE, above_noise, noise_level, without_hum
from jaxsep.signal.peaks import PeakPursuit
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.rendering import render_instruments
from jaxsep.tones.tones import Tones

__all__ = [
    "ANALYSIS_RATE",
    "Spectra",
    "analyse_chunk",
    "excerpt_of",
    "instrument_spectra",
    "log_spectra",
    "overlap_into",
    "resynthesise",
    "total_power",
]

#: Rate in Hz at which recordings are analysed; the papers' constants belong to it.
ANALYSIS_RATE = 48000


class Spectra(NamedTuple):
    """Log-frequency spectra of a recording, or of a stretch of it.

    - `pitched`: magnitudes of what rises above the noise; 0 where hardly anything does, be it a crackle here
      and there: noise alone has no pitch.
    - `noise`: of each frame, the sum of the other magnitudes.
    """

    pitched: Float[np.ndarray, "frames bins"]
    noise: Float[np.ndarray, " frames"]


def log_spectra(
    samples: Float[np.ndarray, " samples"],
    stft: GaussianSTFT,
    axis: LogAxis,
    peaks: PeakPursuit,
    advance: Callable[[], None],
    lowest: float,
) -> Spectra:
    """Log-frequency spectrogram of a signal at the analysis rate: what rises above its noise, and the noise.

    Arguments:
        samples: the signal.
        stft: the transform.
        axis: of the result.
        peaks: finds the peaks of each frame.
        advance: is called after each chunk.
        lowest: frequency in Hz below which all is rumble, which counts for nothing.
    """
    num_frames = stft.num_frames(samples.shape[-1])
    given = stft, axis, peaks, jnp.asarray(lowest, jnp.float32)
    run = lambda frames, _: _log_spectra(excerpt_of(samples, stft, int(frames[0])), *given)
    risen, total = zip(*over_chunks(run, num_frames, advance), strict=True)
    risen, total = np.concatenate(risen)[:num_frames], np.concatenate(total)[:num_frames]
    risen = without_hum(risen, axis)
    if risen.sum() <= _PITCHED * total.sum():
        risen = np.zeros_like(risen)
    return Spectra(risen, np.maximum(total - risen.sum(axis=1), 0))


#: Least part of the magnitudes of a recording that rises above the noise where anything has a pitch.
_PITCHED = 0.15


@eqx.filter_jit
def _log_spectra(excerpt, stft, axis, peaks, lowest):
    """What rises above the noise, and the sum of all magnitudes of each frame."""
    magnitudes, linear = jnp.abs(analyse_chunk(excerpt, stft))[:, :-1], stft.axis(ANALYSIS_RATE)
    found = peaks(magnitudes).peaks
    heard = found.active & (linear.to_hz(found.position) > lowest)
    found = eqx.tree_at(
        lambda p: (p.amplitude, p.active), found, (jnp.where(heard, found.amplitude, 0), heard)
    )
    moved = lambda peaks: map_frames(lambda p: log_frequency_spectrum(p, linear, axis), peaks)
    return moved(above_noise(found, noise_level(magnitudes))), jnp.sum(moved(found), axis=1)


def resynthesise(
    samples: Float[np.ndarray, "channels samples"],
    tones: Tones,
    harmonics: Float[np.ndarray, "frames tones harmonics"],
    num_instruments: int,
    stft: GaussianSTFT,
    settings: SeparationSettings,
    advance: Callable[[], None],
) -> Float[np.ndarray, "instruments channels samples"]:
    """Stems of a recording (P1, separation).

    Arguments:
        samples: at the analysis rate.
        tones: `[frames, tones]`, amplitudes in the units of the spectrogram, fundamentals in Hz.
        harmonics: of each tone.
        num_instruments: how many stems.
        stft: the transform whose frames the tones belong to.
        settings: masking, share, noise and phase iterations.
        advance: is called after each chunk of every phase iteration.
    """
    num_frames = stft.num_frames(samples.shape[1])
    phases = np.broadcast_to(samples, (num_instruments, *samples.shape))
    power = total_power(stft, num_frames, samples.shape[1])
    # The masks count every tone a little before, after and beside itself, and partials last longer.
    margin = round(max(_REACH * _LASTING, _AROUND) * ANALYSIS_RATE / stft.hop)
    coherent = settings.masking and settings.phase_iterations == 1
    slots, owners = in_lines(tones, num_instruments) if coherent else (None, None)
    apart = settings.noise == "apart"
    options = num_instruments, stft, settings.masking, settings.share, margin, apart
    for _ in range(settings.phase_iterations):

        def run(frames, exist, phases=phases):
            around = int(frames[0]) + np.arange(-margin, exist.size + margin)
            inside = (around >= 0) & (around < num_frames)
            around = np.clip(around, 0, num_frames - 1)
            here, rows = jax.tree.map(lambda x: np.asarray(x)[around], (tones, harmonics))
            here = eqx.tree_at(lambda t: t.active, here, here.active & inside[:, None])
            first = int(frames[0])
            partials = None
            if coherent:
                before = (first - margin) * stft.hop
                heard = _between(samples, before, before + around.size * stft.hop)
                lined = _in_slots(here, rows, slots[around])
                partials = _partials(heard, *lined, owners, num_instruments, stft, margin)
            excerpts = excerpt_of(samples, stft, first), excerpt_of(phases, stft, first)
            return first, _stems(*excerpts, exist, here, rows, partials, *options)

        stems = np.zeros((num_instruments, *samples.shape), samples.dtype)
        for first, piece in over_chunks(run, num_frames, advance):
            overlap_into(stems, piece, int(first) * stft.hop - stft.n_fft // 2)
        phases = stems = stems / power
    return stems


def _in_slots(tones, harmonics, slots):
    """Tones and harmonics of frames in other slots, by their indices; empty ones for -1."""
    index = np.maximum(slots, 0)
    tones = jax.tree.map(lambda x: np.take_along_axis(x, index, axis=1), tones)
    tones = eqx.tree_at(lambda t: t.active, tones, tones.active & (slots >= 0))
    return tones, np.take_along_axis(harmonics, index[..., None], axis=1)


@partial(jax.jit, static_argnums=(4, 5, 6))
def _partials(samples, tones, harmonics, owners, num_instruments, stft, margin):
    """What the partials of each instrument are, as signals of the excerpts that `_stems` has."""
    signals = coherent_partials(samples, tones, harmonics, stft, ANALYSIS_RATE)
    mine = jax.nn.one_hot(owners, num_instruments, dtype=signals.dtype, axis=0)
    begin = margin * stft.hop - stft.n_fft // 2
    signals = signals[..., begin : begin + stft.span(chunk_size())]
    return jnp.einsum("is,sct->ict", mine, signals, precision="highest")


@partial(jax.jit, static_argnums=(6, 7, 8, 10, 11))
def _stems(
    excerpt, phases, exist, tones, harmonics, signals, num_instruments, stft, masking, share, margin, apart
):
    model = instrument_spectra(tones, harmonics, num_instruments, stft, ANALYSIS_RATE)
    likely = _spread(model, stft, margin)
    model = model[:, margin : margin + exist.size]
    spectra = jax.vmap(partial(analyse_chunk, stft=stft))(excerpt)  # [channels, frames, bins]
    # Frames past the last one fill up the chunk; they are not part of the inverse.
    spectra = jnp.where(exist[:, None], spectra, 0)
    magnitude = jnp.abs(jnp.mean(spectra, axis=0))
    masks = ratio_masks(likely, magnitude, share=0.0, exponent=_EXPONENT)
    # Noise, and what no tone explains, are nobody's. They are shared evenly, if at all, also where somebody
    # plays: else they would come and go with the notes.
    others = MEAN_NOISE * noise_level(magnitude) + share * magnitude
    others = others if apart else jnp.where(share > 0, others, 0)
    played = ratio_masks(jnp.stack([jnp.sum(likely, axis=0), others]), magnitude, share=0.0)[0]
    evenly = 0 if apart else jnp.where(share > 0, 1 / num_instruments, 0)
    masks = played * masks + (1 - played) * evenly

    analyse = partial(_each, partial(analyse_chunk, stft=stft))
    if signals is not None:
        signals = jnp.where(exist[:, None], analyse(signals), 0)
        # What sounds beside, before and after the tones is left to the masks.
        heard, counted = jnp.sum(model, axis=0), jnp.sum(likely, axis=0)
        trust = jnp.minimum(1, 2 * heard / jnp.maximum(counted, jnp.finfo(counted.dtype).tiny))
        masks = masks[:, None]
        own = signals - masks * jnp.sum(signals, axis=0)
        return _each(stft.overlap_add, masks * spectra + trust * own)
    wanted = masks[:, None] * jnp.abs(spectra) if masking else model[:, None]
    return _each(stft.overlap_add, wanted * unit_phase(analyse(phases)))


def _each(function, signals):
    """A function of each channel of each instrument, on a CPU one after the other."""
    flat = map_frames(function, signals.reshape(-1, *signals.shape[2:]), (1, 256))
    return flat.reshape(*signals.shape[:2], *flat.shape[1:])


#: Of masks: Wiener's. P1's 1 leaves 1.5 dB more of the other instruments, and hardly more of the own one.
_EXPONENT = 2.0

#: Standard deviations in seconds and Hz by which masks spread tones, how much what lies beside them counts,
#: and standard deviations after which the spread in time ends.
_LASTING, _BESIDE, _FAINT, _REACH = 0.085, 78.0, 0.03, 3

#: Seconds on either side with which the partials of a chunk are estimated.
_AROUND = 0.5


def _spread(model, stft, margin):
    """Spectra of the instruments, with what sounds of each tone shortly before, after and beside it.

    No Gaussian of a frame explains attacks, reverberation and noise of a bow or of breath: they belong to the
    instrument that plays there most.

    Arguments:
        model: `[instruments, frames, bins]`, with `margin` frames more at either end.
    """
    num_frames, num_bins = model.shape[1] - 2 * margin, model.shape[2]
    distance = jnp.arange(num_frames)[:, None] + margin - jnp.arange(model.shape[1])
    weight = jnp.exp(-0.5 * (distance * stft.hop / ANALYSIS_RATE / _LASTING) ** 2)
    weight = jnp.where(jnp.abs(distance) <= margin, weight, 0)
    lasting = jnp.einsum("fg,igb->ifb", weight / jnp.sum(weight, axis=1, keepdims=True), model)
    width = _BESIDE * stft.n_fft / ANALYSIS_RATE
    # So much longer that the ends do not meet.
    size = next_fast_len(num_bins + math.ceil(12 * width), real=True)
    damping = jnp.exp(-0.5 * (2 * jnp.pi * width * jnp.arange(size // 2 + 1) / size) ** 2)
    beside = jnp.fft.irfft(jnp.fft.rfft(lasting, size) * damping, size)[..., :num_bins]
    return model[:, margin : margin + num_frames] + lasting + _FAINT * jnp.maximum(beside, 0)


def instrument_spectra(
    tones: Tones,
    harmonics: Float[Array, "frames tones harmonics"],
    num_instruments: int,
    stft: GaussianSTFT,
    sample_rate: int,
) -> Float[Array, "instruments frames bins"]:
    """What each instrument's tones, with fundamentals in Hz, are in all bins of an STFT (P1, separation)."""
    axis = stft.axis(sample_rate)
    tones = eqx.tree_at(lambda t: t.fundamental, tones, axis.to_bin(tones.fundamental))
    render = lambda frame: render_instruments(*frame, axis, num_instruments)
    model = jnp.swapaxes(map_frames(render, (tones, harmonics)), 0, 1)
    return jnp.pad(model, ((0, 0), (0, 0), (0, 1)))  # no tone reaches the Nyquist bin


def analyse_chunk(excerpt: Float[Array, " samples"], stft: GaussianSTFT):
    """Spectra of a chunk of frames, from its excerpt."""
    return stft.analyse(excerpt, first_frame=stft.n_fft // 2 // stft.hop, num_frames=chunk_size())


def excerpt_of(samples: np.ndarray, stft: GaussianSTFT, first: int) -> np.ndarray:
    """The samples that the chunk from frame `first` on reaches, zero beyond the ends; last axis is time."""
    start = first * stft.hop - stft.n_fft // 2
    return _between(samples, start, start + stft.span(chunk_size()))


def _between(samples, start, stop):
    """The samples from `start` on, and as many as lie before `stop`; zero beyond the ends."""
    inside = samples[..., max(0, start) : max(0, stop)]
    before = min(max(0, -start), stop - start)
    after = stop - start - before - inside.shape[-1]
    return np.pad(inside, [(0, 0)] * (samples.ndim - 1) + [(before, after)])


def overlap_into(total: np.ndarray, piece: np.ndarray, start: int) -> None:
    """Adds a piece to the total from sample `start` on, as far as it lies inside."""
    begin, stop = max(0, start), min(total.shape[-1], start + piece.shape[-1])
    total[..., begin:stop] += piece[..., begin - start : stop - start]


def total_power(stft: GaussianSTFT, num_frames: int, num_samples: int) -> np.ndarray:
    """Sum of the squared windows of all frames at every sample."""
    power = np.zeros(num_samples)
    one = np.asarray(stft.window_power(1))
    for frame in range(num_frames):
        overlap_into(power, one, frame * stft.hop - stft.n_fft // 2)
    return power.astype(np.float32)

"""Chunked passes over a recording: samples to log-frequency spectra, and tones to stems."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsep.numerics.devices import chunk_size, parallel_map
from jaxsep.signal.axes import LinearAxis, LogAxis
from jaxsep.signal.log_frequency import log_frequency_spectrogram
from jaxsep.signal.masks import ratio_masks, unit_phase
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.rendering import render_instruments
from jaxsep.tones.tones import Tones

__all__ = [
    "ANALYSIS_RATE",
    "analyse_chunk",
    "excerpt_of",
    "log_spectra",
    "num_chunks",
    "overlap_into",
    "resynthesise",
    "total_power",
]

#: Rate in Hz at which recordings are analysed; the papers' constants belong to it.
ANALYSIS_RATE = 48000


def linear_axis(stft: GaussianSTFT) -> LinearAxis:
    """Axis of the bins that are modelled: all but the Nyquist bin."""
    return LinearAxis(stft.n_fft // 2, ANALYSIS_RATE / stft.n_fft)


def log_spectra(samples, stft: GaussianSTFT, axis: LogAxis, peaks, advance) -> np.ndarray:
    """Log-frequency spectrogram `[frames, bins]` of a signal `[samples]` at the analysis rate."""

    def run(first):
        spectra = _log_spectra(excerpt_of(samples, stft, first), stft, axis, peaks)
        advance()
        return np.asarray(spectra)

    num_frames = stft.num_frames(samples.shape[-1])
    return np.concatenate(list(parallel_map(run, range(0, num_frames, chunk_size()))))[:num_frames]


def num_chunks(stft: GaussianSTFT, num_samples: int) -> int:
    """Number of chunks of a signal."""
    return -(-stft.num_frames(num_samples) // chunk_size())


@eqx.filter_jit
def _log_spectra(excerpt, stft, axis, peaks):
    magnitudes = jnp.abs(analyse_chunk(excerpt, stft))[:, :-1]
    return log_frequency_spectrogram(magnitudes, linear_axis(stft), axis, peaks)


def resynthesise(
    samples, tones: Tones, harmonics, num_instruments: int, stft: GaussianSTFT, settings, advance
) -> np.ndarray:
    """Stems `[instruments, channels, samples]` of a recording `[channels, samples]` (P1, separation).

    Arguments:
        samples: at the analysis rate.
        tones: `[frames, tones]`, amplitudes in the units of the spectrogram, fundamentals in Hz.
        harmonics: of each tone, `[frames, tones, harmonics]`.
        num_instruments: how many stems.
        stft: the transform whose frames the tones belong to.
        settings: masking, share and phase iterations.
    """
    num_frames, size = stft.num_frames(samples.shape[1]), chunk_size()
    phases = np.broadcast_to(samples, (num_instruments, *samples.shape))
    power = total_power(stft, num_frames, samples.shape[1])
    for _ in range(settings.phase_iterations):

        def run(first, phases=phases):
            frames = np.arange(first, first + size)
            inside = frames < num_frames
            within = np.minimum(frames, num_frames - 1)
            here, rows = jax.tree.map(lambda x: np.asarray(x)[within], (tones, harmonics))
            here = eqx.tree_at(lambda t: t.active, here, here.active & inside[:, None])
            excerpts = excerpt_of(samples, stft, first), excerpt_of(phases, stft, first)
            options = num_instruments, stft, settings.masking, settings.share
            out = np.asarray(_stems(*excerpts, inside, here, rows, *options))
            advance()
            return first, out

        stems = np.zeros((num_instruments, *samples.shape), samples.dtype)
        for first, out in parallel_map(run, range(0, num_frames, size)):
            overlap_into(stems, out, first * stft.hop - stft.n_fft // 2)
        phases = stems = stems / power
    return stems


@partial(jax.jit, static_argnums=(5, 6, 7))
def _stems(excerpt, phases, inside, tones, harmonics, num_instruments, stft, masking, share):
    axis = linear_axis(stft)

    def render(tones, rows):
        # Every tone has a row of its own.
        alone = eqx.tree_at(lambda t: t.instrument, tones, jnp.arange(tones.capacity))
        spectra = render_instruments(alone, rows, axis)[:, None]
        mine = tones.instrument[:, None] == jnp.arange(num_instruments)
        return jnp.sum(jnp.where(mine[..., None], spectra, 0), axis=0)

    tones = eqx.tree_at(lambda t: t.fundamental, tones, axis.to_bin(tones.fundamental))
    model = jnp.swapaxes(jax.vmap(render)(tones, harmonics), 0, 1)
    model = jnp.pad(model, ((0, 0), (0, 0), (0, 1)))  # no tone reaches the Nyquist bin
    spectra = jax.vmap(partial(analyse_chunk, stft=stft))(excerpt)  # [channels, frames, bins]
    # Frames past the last one fill up the chunk; they are not part of the inverse.
    spectra = jnp.where(inside[:, None], spectra, 0)
    mono = jnp.abs(jnp.mean(spectra, axis=0))
    masks = ratio_masks(model, mono, share=share)

    def stem(mask, magnitude, phase):
        def channel(mixture, own):
            wanted = mask * jnp.abs(mixture) if masking else magnitude
            return stft.overlap_add(wanted * unit_phase(own))

        return jax.vmap(channel)(spectra, jax.vmap(partial(analyse_chunk, stft=stft))(phase))

    return jax.vmap(stem)(masks, model, phases)


def analyse_chunk(excerpt, stft):
    return stft.analyse(excerpt, first_frame=stft.n_fft // 2 // stft.hop, num_frames=chunk_size())


def excerpt_of(samples, stft, first):
    """The samples that a chunk of frames reaches, zero beyond the ends; the last axis is time."""
    start = first * stft.hop - stft.n_fft // 2
    stop = start + stft.span(chunk_size())
    inside = samples[..., max(0, start) : stop]
    before = max(0, -start)
    after = stop - start - before - inside.shape[-1]
    return np.pad(inside, [(0, 0)] * (samples.ndim - 1) + [(before, after)])


def overlap_into(total, piece, start):
    begin, stop = max(0, start), min(total.shape[-1], start + piece.shape[-1])
    total[..., begin:stop] += piece[..., begin - start : stop - start]


def total_power(stft, num_frames, num_samples):
    power = np.zeros(num_samples)
    one = np.asarray(stft.window_power(1))
    for frame in range(num_frames):
        overlap_into(power, one, frame * stft.hop - stft.n_fft // 2)
    return power.astype(np.float32)

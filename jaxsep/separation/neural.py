"""Separation by a network that is trained on the recording itself, with phases of its own (P2)."""

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxsep.audio import mono, resample
from jaxsep.neural.checkpoint import load_checkpoint
from jaxsep.neural.imitation import Guide
from jaxsep.neural.loop import STEPS_PER_LINE, train
from jaxsep.neural.losses import radial_distance
from jaxsep.neural.prediction import predict
from jaxsep.neural.settings import NeuralSettings
from jaxsep.neural.training import Trainer, TrainingState
from jaxsep.numerics.devices import num_chunks, over_chunks
from jaxsep.progress import Progress, listener
from jaxsep.separation.chunks import analyse_chunk, excerpt_of, overlap_into, total_power
from jaxsep.separation.result import Separation, check_request, level_of
from jaxsep.separation.separate import separate
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

__all__ = ["NeuralStems", "predict_stems", "separate_neural", "spectral_peak"]

#: Frames that the network sees side by side: on a CPU what is in between fits its cache.
_BATCH = 4


class NeuralStems(eqx.Module):
    """What a trained network makes of a recording at its own rate.

    - `direct`: stems with phases of their own, `[instruments, channels, samples]`.
    - `modelled`: with the dictionary's amplitudes, and the phases of the direct ones.
    - `tones`: `[frames, instruments]`, of the average of the channels; fundamentals in bins.
    - `loss`: of each frame, `d_rad` between the mixture and the sum of the direct predictions.
    """

    direct: Float[np.ndarray, "instruments channels samples"]
    modelled: Float[np.ndarray, "instruments channels samples"]
    tones: Tones
    loss: Float[np.ndarray, " frames"]


def separate_neural(
    samples: Float[np.ndarray | Array, "*channels samples"],
    sample_rate: int | np.integer,
    num_instruments: int | np.integer,
    *,
    settings: NeuralSettings = NeuralSettings.small(),
    dictionary: Dictionary | None = None,
    minutes: float | None = None,
    checkpoint: str | os.PathLike | None = None,
    resume: bool = False,
    log: str | os.PathLike | None = None,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> Separation:
    """Separates a recording by a U-Net that is trained on the recording itself by policy gradients (P2).

    It begins with nothing: no choice is preferred, and a dictionary that is not given is found on the way. If
    the settings have steps of imitation, it begins with a pursuit instead: with its dictionary, and with
    imitating its tones.

    The stems are the network's direct predictions, with phases of their own: they do not sum to the input,
    and hold nothing above half the settings' rate.

    Arguments:
        samples: `[samples]` or `[channels, samples]`; the network is trained on the average of the channels,
            and predicts each.
        sample_rate: in Hz.
        num_instruments: at least 1.
        settings: options; `NeuralSettings.paper()` has P2's sizes.
        dictionary: where the dictionary begins, such as one that `separate` learned.
        minutes: > 0, budget for the training, without compilation and without the pursuit.
        checkpoint: new file in which the training is kept, every two minutes, at its end and on
            interruption.
        resume: whether to go on from that file.
        log: file for a JSON line every 50 steps.
        progress: hears how the work proceeds.
        key: the same key gives the same result, if no budget ends the training.

    Raises: `ValueError` for impossible samples or instruments, for a checkpoint to resume that does not fit,
    and for one that is there already otherwise; `FloatingPointError` if the training diverges.

    Example:
        >>> sizes = {"rate": 6000, "window_std": 8, "hop": 8, "strides": (4,), "widths": (8,)}
        >>> settings = jaxsep.NeuralSettings(**sizes, batch=2, branches=2, steps=2)
        >>> samples = np.sin(0.3 * np.arange(2000))
        >>> result = jaxsep.separate_neural(samples, 6000, 1, settings=settings, key=jax.random.key(0))
        >>> result.stems.shape
        (1, 2000)
    """
    samples = np.asarray(samples)
    sample_rate, num_instruments = check_request(samples, sample_rate, num_instruments, dictionary)
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ValueError(f"minutes: expected a number above 0, got {minutes!r}")
    if resume and checkpoint is None:
        raise ValueError("resume: expected a checkpoint to resume from, got none")
    if checkpoint is not None and not resume and os.path.lexists(checkpoint):
        raise ValueError(f"checkpoint: {checkpoint} exists; resume it, or name another file")
    trainer, progress = Trainer(settings, num_instruments), listener(progress)
    level = level_of(samples)
    channels = (np.atleast_2d(samples) / level).astype(np.float32)
    analysed = np.ascontiguousarray(resample(channels, sample_rate, settings.rate))
    seconds, begin = {}, time.perf_counter()

    peak = spectral_peak(mono(analysed), trainer)
    if not peak > 0:
        raise ValueError("samples: expected sound that the transform sees, got none")
    one = jnp.asarray(mono(analysed) / peak)
    source = hashlib.sha256(np.asarray(one).tobytes()).hexdigest()
    if resume:
        state = load_checkpoint(checkpoint, trainer, source)
    else:
        state = trainer.start(None if dictionary is None else dictionary.harmonics, key=key)
    guide = None
    if int(state.step) < settings.imitation:
        pursued = separate(
            mono(channels),
            sample_rate,
            num_instruments,
            dictionary=dictionary,
            progress=progress,
            key=key,
        )
        spacing = float(pursued.times[1] - pursued.times[0]) * settings.rate
        guide = Guide.of(pursued.tones, spacing, num_instruments, trainer.axis, trainer.bounds)
        if int(state.step) == 0:
            state = trainer.start(pursued.dictionary.harmonics, key=key)
        seconds, begin = dict(pursued.seconds), time.perf_counter()
    left = max(0, settings.steps - int(state.step))
    with progress.stage("training", -(-left // STEPS_PER_LINE)) as advance:
        state = train(
            trainer,
            state,
            one,
            guide=guide,
            minutes=minutes,
            checkpoint=checkpoint,
            source=source,
            log=log,
            advance=advance,
        )
    seconds["training"], begin = time.perf_counter() - begin, time.perf_counter()
    num_tracks = len(channels) + (len(channels) > 1)
    total = num_tracks * num_chunks(trainer.stft.num_frames(analysed.shape[1]))
    with progress.stage("prediction", total) as advance:
        found = predict_stems(trainer, state, analysed / peak, advance)
    seconds["prediction"] = time.perf_counter() - begin
    separation = _separation(found, state, trainer, peak, samples, sample_rate, seconds).louder(level)
    return dataclasses.replace(separation, mixture=samples.astype(np.float32))


def spectral_peak(samples: Float[np.ndarray, " samples"], trainer: Trainer) -> float:
    """The largest magnitude in the spectrogram, by which a recording is divided."""
    stft = trainer.stft
    run = lambda frames, _: _loudest(jnp.asarray(excerpt_of(samples, stft, int(frames[0]))), stft)
    return float(max(over_chunks(run, stft.num_frames(samples.size))))


@eqx.filter_jit
def _loudest(excerpt, stft):
    return jnp.max(jnp.abs(analyse_chunk(excerpt, stft)))


def predict_stems(
    trainer: Trainer,
    state: TrainingState,
    channels: Float[np.ndarray, "channels samples"],
    advance: Callable[[], None] = lambda: None,
) -> NeuralStems:
    """Stems of a recording at the settings' rate, scaled as in training; `advance` is called after chunks."""
    stft, several = trainer.stft, len(channels) > 1
    tracks = np.concatenate([mono(channels)[None], channels]) if several else channels
    num_frames = stft.num_frames(tracks.shape[1])
    stems = np.zeros((2, trainer.num_instruments, *tracks.shape), np.float32)
    frames = []
    for number, track in enumerate(tracks):

        def run(frames, exist, track=track):
            excerpt = jnp.asarray(excerpt_of(track, stft, int(frames[0])))
            return frames[0], *_predict_chunk(trainer, state.network, state.harmonics, excerpt, exist)

        for first, pieces, found in over_chunks(run, num_frames, advance, one_at_a_time=True):
            overlap_into(stems[:, :, number], pieces, int(first) * stft.hop - stft.n_fft // 2)
            frames += [found] if number == 0 else []
    direct, modelled = stems[:, :, several:] / total_power(stft, num_frames, tracks.shape[1])
    tones, loss = jax.tree.map(lambda *x: np.concatenate(x)[:num_frames], *frames)
    return NeuralStems(direct, modelled, tones, loss)


@eqx.filter_jit
def _predict_chunk(trainer, network, harmonics, excerpt, inside):
    stft = trainer.stft
    frames = analyse_chunk(excerpt, stft)[:, :-1]

    def one(frame):
        found = predict(network, harmonics, frame, trainer.axis)
        return found, radial_distance(frame, jnp.sum(found.direct, axis=0))

    found, loss = jax.lax.map(one, frames, batch_size=_BATCH)

    def piece(spectra):
        spectra = jnp.where(inside[:, None, None], spectra, 0)
        return jax.vmap(stft.overlap_add, in_axes=1)(jnp.pad(spectra, ((0, 0), (0, 0), (0, 1))))

    return jnp.stack([piece(found.direct), piece(found.modelled)]), (found.tones, loss)


def _separation(found, state, trainer, peak, samples, sample_rate, seconds):
    num_samples = samples.shape[-1]
    stems = resample(found.direct.reshape(-1, found.direct.shape[-1]), trainer.settings.rate, sample_rate)
    stems = np.pad(stems, [(0, 0), (0, max(0, num_samples - stems.shape[1]))])[:, :num_samples] * peak
    rows = np.asarray(state.harmonics)
    rows = rows / np.maximum(rows.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return Separation(
        stems=stems.reshape(trainer.num_instruments, *samples.shape),
        sample_rate=sample_rate,
        tones=jax.tree.map(np.asarray, found.tones.in_hz(trainer.axis, peak)),
        times=np.arange(found.loss.size) * trainer.settings.hop / trainer.settings.rate,
        dictionary=Dictionary(jnp.asarray(rows)),
        loss=found.loss,
        confidence=np.full(found.loss.size, np.nan, np.float32),
        cost_trace=(float(found.loss.mean()),),
        restart_losses=(),
        seconds=seconds,
        settings=trainer.settings,
    )

"""Recordings of any length: separated in parts that fade into each other, with one dictionary."""

import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from jaxsep.audio import Recording, resample
from jaxsep.progress import Progress
from jaxsep.search.voices import VoiceModel, Voices
from jaxsep.separation.chunks import ANALYSIS_RATE, num_chunks
from jaxsep.separation.result import Separation, check_request
from jaxsep.separation.settings import SeparationSettings
from jaxsep.separation.stages import Clock, Learned, Stages
from jaxsep.tones.dictionary import Dictionary

__all__ = ["separate_parts"]

#: Seconds before and after a part that are explained with it, and forgotten.
_CONTEXT = 3

#: Seconds in which a part fades into the next.
_FADE = 1

#: The instruments are learned from so many excerpts, each of so many seconds.
_EXCERPTS, _EXCERPT = 4, 16


def separate_parts(
    path: str | os.PathLike,
    num_instruments: int,
    *,
    seconds: float = 120.0,
    settings: SeparationSettings = SeparationSettings(),
    voices: VoiceModel = VoiceModel(),
    dictionary: Dictionary | None = None,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> Iterator[Separation]:
    """Separates a recording of any length part by part, in memory that does not grow with it.

    The instruments, their registers, and how loud the recording is, come from excerpts: the loudest 16
    seconds of each quarter. With them every part is explained, together with three seconds on either side,
    and fades into the next in one second. Away from its ends, a recording in one part has the same stems
    after greedy search, and after the full one all but the same: paths of nearly equal cost may differ.

    Arguments:
        path: the recording.
        num_instruments: at least 1.
        seconds: greatest length of a part, at least 1; the parts have equal lengths, in whole seconds.
        settings, voices, dictionary, progress, key: as for `separate`.

    Yields: the separation of every part, in order. Stems laid end to end are those of the recording, and
    sum to it where those of `separate` do; `times` count from its beginning. `seconds`, `cost_trace` and
    `confidence` are those of the part, and `restart_losses` those of the excerpts.

    Raises: `AudioError` for a file that cannot be read as a recording with sound, and what `separate` raises.

    Example:
        >>> mixture, stems, rate = jaxsep.demo_recording()
        >>> jaxsep.write_audio("duet.wav", mixture[: 4 * rate], rate)
        >>> settings = jaxsep.SeparationSettings(restarts=1, steps=3, search="greedy")
        >>> key = jax.random.key(0)
        >>> parts = jaxsep.separate_parts("duet.wav", 2, seconds=2.0, settings=settings, key=key)
        >>> [part.stems.shape for part in parts]
        [(2, 1, 88200), (2, 1, 88200)]
    """
    if not seconds >= 1:
        raise ValueError(f"seconds: expected at least 1, got {seconds}")
    progress, clock = progress or Progress(), Clock()
    with Recording(path) as recording:
        starts = _loudest(recording.energies())
        excerpts = [recording.read(start, start + _EXCERPT) for start in starts]
        for excerpt in excerpts:
            check_request(
                excerpt[:, : recording.num_samples], recording.sample_rate, num_instruments, dictionary
            )
        survey = _survey(
            [excerpt.mean(axis=0) for excerpt in excerpts],
            recording.sample_rate,
            num_instruments,
            dictionary,
            Stages(settings, voices, progress),
            clock,
            key,
        )
        length = math.ceil(recording.duration / math.ceil(recording.duration / seconds))
        tail = None
        firsts = range(0, math.ceil(recording.duration), length)
        name, relay = "parts", _Relay(progress, "parts")
        stages = Stages(settings, voices if survey.voices is None else survey.voices, relay)
        steps = _num_steps(stages, length, survey.learned)
        with progress.stage(name, len(firsts) * steps):
            for number, first in enumerate(firsts, start=1):
                relay.note = f"{number} of {len(firsts)}"
                part, tail = _separate(recording, first, length, tail, survey, stages, clock)
                relay.top_up(number * steps)
                yield part
                clock = Clock()


class _Survey(NamedTuple):
    """What is the same for all parts: instruments, losses of the restarts, registers, and the peak."""

    learned: Learned
    losses: tuple[float, ...]
    voices: Voices | None
    peak: float


def _survey(excerpts, sample_rate, num_instruments, dictionary, stages, clock, key):
    with clock("spectrogram"):
        signals = [resample(excerpt, sample_rate, ANALYSIS_RATE) for excerpt in excerpts]
        spectra = np.concatenate([stages.spectra(signal) for signal in signals])
        peak = float(spectra.max())
    if dictionary is not None:
        learned = Learned.given(dictionary)
    else:
        with clock("learning"):
            learned = stages.learn(spectra / peak, num_instruments, key)
    if dictionary is not None and stages.settings.search == "greedy":
        return _Survey(learned, (), None, peak)  # nothing to be known about voices
    with clock("pursuit"):
        found = stages.decompose(spectra / peak, learned)
    return _Survey(Learned([found.harmonics], (), found.timbre), learned.losses, found.voices, peak)


def _separate(recording, first, length, tail, survey, stages, clock):
    """The part from second `first` on, and what it has of the next one."""
    rate, hop = recording.sample_rate, stages.settings.hop
    begin, end = first - _CONTEXT, first + length + _FADE + _CONTEXT
    channels = recording.read(begin, end)
    # The frames of all parts are those of the recording: the first is centred `skip` samples before `begin`,
    # and has an even number, since the search begins with every other frame.
    pairs, skip = divmod(begin * ANALYSIS_RATE, 2 * hop)
    first_frame = 2 * pairs
    analysed = np.zeros((len(channels), _analysed_length(length, hop)), np.float32)
    analysed[:, skip : skip + (end - begin) * ANALYSIS_RATE] = resample(channels, rate, ANALYSIS_RATE)
    with clock("spectrogram"):
        spectra = stages.spectra(analysed.mean(axis=0)) / survey.peak
    with clock("pursuit"):
        found = stages.decompose(spectra, survey.learned)
    tones = stages.in_hertz(found.tones, survey.peak)
    with clock("resynthesis"):
        harmonics = np.asarray(found.timbre.of(found.tones))
        number = found.harmonics.shape[0]
        stems = stages.stems(analysed, channels, rate, tones, harmonics, number, skip=skip)
    stems = stems[..., _CONTEXT * rate : (_CONTEXT + length + _FADE) * rate]
    if tail is not None:
        fade = np.linspace(0, 1, tail.shape[-1], dtype=np.float32)
        stems[..., : tail.shape[-1]] = fade * stems[..., : tail.shape[-1]] + (1 - fade) * tail

    frames = first_frame + np.arange(found.loss.size)
    last = first + length >= recording.duration
    num_frames = stages.stft.num_frames(round(recording.num_samples * ANALYSIS_RATE / rate))
    stop = num_frames if last else min(num_frames, -(-(first + length) * ANALYSIS_RATE // hop))
    mine = (frames * hop >= first * ANALYSIS_RATE) & (frames < stop)
    part = Separation(
        stems=stems[..., : min(length * rate, recording.num_samples - first * rate)],
        sample_rate=rate,
        tones=jax.tree.map(lambda x: np.asarray(x)[mine], tones),
        times=frames[mine] * hop / ANALYSIS_RATE,
        dictionary=Dictionary(found.harmonics),
        loss=found.loss[mine],
        confidence=found.confidence[mine],
        cost_trace=found.cost_trace,
        restart_losses=survey.losses,
        seconds=clock.seconds,
    )
    return part, stems[..., length * rate :]


def _analysed_length(length, hop):
    """Of every part alike, so that one compiled program serves all."""
    return (length + _FADE + 2 * _CONTEXT) * ANALYSIS_RATE + 2 * hop


def _num_steps(stages, length, learned):
    num_samples = _analysed_length(length, stages.settings.hop)
    passes = (1 + stages.settings.phase_iterations) * num_chunks(stages.stft, num_samples)
    return passes + stages.num_steps(stages.stft.num_frames(num_samples), learned)


def _loudest(energies: Float[np.ndarray, " seconds"]) -> list[int]:
    """Where the loudest excerpt of every quarter begins; quarters without sound have none."""
    starts = []
    for quarter in np.array_split(np.arange(energies.size), min(_EXCERPTS, -(-energies.size // _EXCERPT))):
        sums = np.convolve(energies[quarter], np.ones(_EXCERPT))[_EXCERPT - 1 :]
        sums = sums[: max(1, quarter.size - _EXCERPT + 1)]
        if sums.max() > 0:
            starts.append(int(quarter[0] + sums.argmax()))
    return starts


class _Relay(Progress):
    """Reports the steps of all stages as those of one."""

    def __init__(self, progress, name):
        self.progress, self.name, self.note, self.done = progress, name, "", 0

    def advance(self, name, note=""):
        self.done += 1
        self.progress.advance(self.name, self.note)

    def top_up(self, steps):
        """Reports what was announced and not needed."""
        while self.done < steps:
            self.advance(self.name)

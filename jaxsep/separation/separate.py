"""Separation with a learned dictionary, by sparse pursuit (P1) or the Beurling LASSO (P3).

A recording in memory is explained as a whole. One of any length is explained in parts that fade into each
other, with one dictionary, in memory that does not grow with it.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxsep.audio import Recording, resample
from jaxsep.learning.names import assign_names, name_instruments
from jaxsep.notes.score import Score
from jaxsep.numerics.devices import parallel_map
from jaxsep.progress import Progress, listener
from jaxsep.search.voices import VoiceModel
from jaxsep.separation.chunks import ANALYSIS_RATE, Spectra
from jaxsep.separation.found import Earlier, check_earlier
from jaxsep.separation.result import Separation, check_notes, check_request, level_of
from jaxsep.separation.settings import NOTES_ARE, SeparationSettings
from jaxsep.separation.stages import Part, Stages, Survey
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.instruments import Instruments
from jaxsep.tones.tones import polyphony_of

__all__ = ["separate", "separate_parts"]

#: Seconds before and after a part that are explained with it, and forgotten.
_CONTEXT = 3

#: Seconds in which a part fades into the next.
_FADE = 1

#: The instruments are learned from so many excerpts, each of so many seconds.
_EXCERPTS, _EXCERPT = 4, 16


def separate(
    samples: Float[np.ndarray | Array, "*channels samples"],
    sample_rate: int | np.integer,
    num_instruments: int | np.integer | None = None,
    *,
    notes: Score | None = None,
    notes_are: str = NOTES_ARE[0],
    align: bool = False,
    earlier: Separation | Earlier | None = None,
    settings: SeparationSettings = SeparationSettings(),
    voices: VoiceModel = VoiceModel(),
    dictionary: Dictionary | None = None,
    instruments: Instruments | None = None,
    like: Instruments | None = None,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> Separation:
    """Separates a recording into its instruments, without training data or knowledge of them (P1).

    What a musician knows can be told by notes, which say how many instruments there are, too. If they are
    all, nothing is searched: their pitch, loudness and edges are found, with the dictionary that suits them.

    Arguments:
        samples: `[samples]` or `[channels, samples]`; channels are averaged for the analysis, and the masks
            are applied to each.
        sample_rate: in Hz; the analysis runs at 48 kHz inside.
        num_instruments: at least 1; by default as many as the notes have, or as the given `instruments`.
        notes: of the recording, from `read_notes`. Their times may be roughly right, to a tenth of a second;
            tuning and vibrato are found.
        notes_are: how much they bind. `"all"`: nothing else sounds, and nothing is searched. `"held"`: those
            that are held stay where they are heard, the others begin, and the rest is searched; `Rest`s are
            silent. `"start"`: the search begins there, and may change all.
        align: whether the notes are at another tempo, and first brought to the times of the recording
            (`align_notes`).
        earlier: a separation of this very recording, with the same hop. Its tones and dictionary begin, and
            it is searched only where the notes, which are `"held"`, are others than it found.
        settings: options.
        voices: what notes have in common, for the full search.
        dictionary: instruments learned from another recording; without one they are learned from this.
        instruments: that play, such as `Instruments.orchestra().chosen(["violin", "cello"])`. Learning begins
            with their dictionary, too, and those that it finds have their names, in any order.
        like: instruments that may play: those that were learned are called as the ones that they clearly
            sound like (`name_instruments`), which changes nothing else.
        progress: hears how the work proceeds.
        key: of what is learned from samples, if anything is (`SeparationSettings.num_learned`); the same key
            gives the same result.

    Returns: stems at the rate and length of the input, and everything found on the way. They sum to the input
    with masking, a share above 0 and one phase iteration, as by default, and together with noise that is kept
    apart always. All of it is in memory, 0.4 MB of spectra for each second besides the samples:
    `separate_parts` is for hours.

    Raises: `ValueError` for samples that are not finite, silent, or shorter than a window (0.256 s), for a
    dictionary whose number of instruments is not `num_instruments`, for notes that are no part of it, for
    an earlier separation of something else, and for instruments where nothing is learned with them.

    Example:
        >>> mixture, stems, rate = jaxsep.demo_recording()
        >>> settings = jaxsep.SeparationSettings(restarts=1, steps=3, search="greedy")
        >>> result = jaxsep.separate(mixture[:rate], rate, 2, settings=settings, key=jax.random.key(0))
        >>> result.stems.shape, bool(np.allclose(result.stems.sum(axis=0), mixture[:rate], atol=1e-5))
        ((2, 44100), True)
    """
    samples = np.asarray(samples)
    if num_instruments is None and notes is not None:
        num_instruments = notes.num_instruments
    if num_instruments is None and instruments is not None:
        num_instruments = len(instruments.names)
    sample_rate, num_instruments = check_request(samples, sample_rate, num_instruments, dictionary)
    polyphony_of(settings.tones_per_instrument, num_instruments)
    _check_instruments(instruments, num_instruments, settings, dictionary, notes)
    duration = samples.shape[-1] / sample_rate
    known = check_notes(notes, notes_are, num_instruments, np.inf if align else duration, settings)
    if isinstance(earlier, Separation):
        earlier = Earlier.of(earlier)
    stages, level = Stages(settings, progress), level_of(samples)
    part = Part.whole((np.atleast_2d(samples) / level).astype(np.float32), sample_rate)
    if earlier is not None:
        num_frames = stages.stft.num_frames(part.analysed.shape[1])
        check_earlier(earlier, known, num_instruments, num_frames, settings, dictionary)
        earlier = earlier.quieter(level)
    tasks = [functools.partial(stages.spectra, part.analysed)]
    if settings.search == "full" and notes is None and earlier is None and dictionary is None:
        tasks.append(functools.partial(stages.rehearse, num_instruments))
    spectra, *_ = parallel_map(lambda task: task(), tasks)
    if align and known is not None:
        known = known._replace(score=stages.aligned(spectra, known.score).within(duration))
    survey = stages.survey(spectra, num_instruments, dictionary, voices, key, known, earlier)
    survey = _told(survey, instruments, like)
    found = stages.explain(part, spectra, survey)
    sounds = found.map_sounds(lambda x: x.reshape(*x.shape[:-2], *samples.shape))
    return dataclasses.replace(sounds.louder(level), mixture=samples.astype(np.float32))


def separate_parts(
    path: str | os.PathLike | Recording,
    num_instruments: int | np.integer,
    *,
    seconds: float = 120.0,
    settings: SeparationSettings = SeparationSettings(),
    voices: VoiceModel = VoiceModel(),
    dictionary: Dictionary | None = None,
    instruments: Instruments | None = None,
    like: Instruments | None = None,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> Iterator[Separation]:
    """Separates a recording of any length part by part, in memory that does not grow with it.

    The instruments, their registers, and how loud the recording is, come from excerpts: the loudest 16
    seconds of each quarter. With them every part is explained, together with three seconds on either side,
    and fades into the next in one second. Away from its ends, a recording in one part has the same stems
    after greedy search, and after the full one all but the same: paths of nearly equal cost may differ.

    Arguments:
        path: the recording, or its file.
        num_instruments: at least 1.
        seconds: greatest length of a part, at least 1; the parts have equal lengths, in whole seconds.
        settings, voices, dictionary, instruments, like, progress, key: as for `separate`.

    Yields: the separation of every part, in order. Stems laid end to end are those of the recording, and
    sum to it where those of `separate` do, as does the noise; `times` count from its beginning. `seconds`,
    `cost_trace` and `confidence` are those of the part, and `restart_losses` those of the excerpts.

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
    _check_instruments(instruments, num_instruments, settings, dictionary, None)
    progress = listener(progress)
    stages = Stages(settings, progress)
    with nullcontext(path) if isinstance(path, Recording) else Recording(path) as recording:
        excerpts = [recording.read(start, start + _EXCERPT) for start in _loudest(recording.energies())]
        for excerpt in excerpts:
            sounding = excerpt[:, : recording.num_samples]
            _, num_instruments = check_request(sounding, recording.sample_rate, num_instruments, dictionary)
            polyphony_of(settings.tones_per_instrument, num_instruments)
            if level_of(sounding) != 1:
                raise ValueError(
                    "samples: expected a peak between 1e-6 and 1e6 of a recording in parts, "
                    f"got {np.abs(sounding).max():.3g}"
                )
        analysed = [resample(excerpt, recording.sample_rate, ANALYSIS_RATE) for excerpt in excerpts]
        spectra = Spectra(*map(np.concatenate, zip(*map(stages.spectra, analysed), strict=True)))
        survey = stages.survey(spectra, num_instruments, dictionary, voices, key)
        survey = stages.settled(spectra, _told(survey, instruments, like))
        length = math.ceil(recording.duration / math.ceil(recording.duration / seconds))
        firsts, tail = range(0, math.ceil(recording.duration), length), None
        with progress.stage("parts", len(firsts)) as advance:
            for number, first in enumerate(firsts, start=1):
                part = _part(recording, first, length, settings.hop)
                found = stages.explain(part, stages.spectra(part.analysed), survey)
                found, tail = _trimmed(found, recording, first, length, tail, stages)
                advance(f"{number} of {len(firsts)}")
                yield found


def _check_instruments(instruments, num_instruments, settings, dictionary, notes) -> None:
    """Refuses instruments to begin with where something else decides what they sound like."""
    if instruments is None:
        return
    if len(instruments.names) != num_instruments:
        raise ValueError(f"instruments: expected {num_instruments}, got {len(instruments.names)}")
    others = {
        "a dictionary": dictionary is not None,
        "notes": notes is not None,
        "a greedy search": settings.search == "greedy",
        "restarts": settings.restarts > 0,
    }
    for what, given in others.items():
        if given:
            raise ValueError(f"instruments: expected to be learned by a full search alone, got {what}, too")


def _told(survey: Survey, instruments: Instruments | None, like: Instruments | None) -> Survey:
    """The survey with instruments that play, or may play."""
    if instruments is not None:
        naming = functools.partial(assign_names, instruments=instruments)
        return survey._replace(dictionaries=(instruments.dictionary,), naming=naming)
    return survey._replace(naming=like and functools.partial(name_instruments, instruments=like))


def _part(recording, first, length, hop) -> Part:
    """The seconds from `first` on, with those around them."""
    begin, end = first - _CONTEXT, first + length + _FADE + _CONTEXT
    channels = recording.read(begin, end)
    # The frames of all parts are those of the recording: the first is centred `skip` samples before `begin`,
    # and has an even number, since the search begins with every other frame.
    pairs, skip = divmod(begin * ANALYSIS_RATE, 2 * hop)
    # Of every part alike, so that one compiled program serves all.
    analysed = np.zeros((len(channels), (end - begin) * ANALYSIS_RATE + 2 * hop), np.float32)
    resampled = resample(channels, recording.sample_rate, ANALYSIS_RATE)
    analysed[:, skip : skip + resampled.shape[1]] = resampled
    return Part(channels, recording.sample_rate, analysed, skip, 2 * pairs)


def _trimmed(found, recording, first, length, tail, stages) -> tuple[Separation, Separation]:
    """The separation of a part without what surrounds it, and what it has of the next one."""
    rate, hop = recording.sample_rate, stages.settings.hop
    found = found.map_sounds(lambda x: x[..., _CONTEXT * rate : (_CONTEXT + length + _FADE) * rate])
    if tail is not None:
        found = found.map_sounds(_faded, tail)
    last = first + length >= recording.duration
    num_frames = stages.stft.num_frames(round(recording.num_samples * ANALYSIS_RATE / rate))
    stop = num_frames if last else min(num_frames, -(-(first + length) * ANALYSIS_RATE // hop))
    frames = np.round(found.times * ANALYSIS_RATE / hop).astype(int)
    mine = (frames * hop >= first * ANALYSIS_RATE) & (frames < stop)
    size = min(length * rate, recording.num_samples - first * rate)
    tail = found.map_sounds(lambda x: x[..., length * rate :])
    return found.at_frames(mine).map_sounds(lambda x: x[..., :size]), tail


def _faded(sound, tail):
    """A sound that the tail of the one before fades into."""
    size = tail.shape[-1]
    fade = np.linspace(0, 1, size, dtype=np.float32)
    begin = fade * sound[..., :size] + (1 - fade) * tail
    return np.concatenate([begin, sound[..., size:]], axis=-1)


def _loudest(energies: Float[np.ndarray, " seconds"]) -> list[int]:
    """Where the loudest excerpt of every quarter begins; quarters without sound have none."""
    starts = []
    for quarter in np.array_split(np.arange(energies.size), min(_EXCERPTS, -(-energies.size // _EXCERPT))):
        sums = np.convolve(energies[quarter], np.ones(_EXCERPT))[_EXCERPT - 1 :]
        sums = sums[: max(1, quarter.size - _EXCERPT + 1)]
        if sums.max() > 0:
            starts.append(int(quarter[0] + sums.argmax()))
    return starts

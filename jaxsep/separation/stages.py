"""The stages of a separation by sparse pursuit or the Beurling LASSO: spectra, dictionaries, tones, stems."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from jaxsep.audio import mono, resample
from jaxsep.blasso.decompose import decompose
from jaxsep.learning.learner import DictionaryLearner
from jaxsep.learning.restarts import learn_dictionaries
from jaxsep.notes.alignment import align_notes
from jaxsep.notes.score import Score
from jaxsep.numerics.devices import map_chunks, num_chunks
from jaxsep.progress import Progress, listener
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.recording import pursue
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.search.again import SearchAgain
from jaxsep.search.alternation import Alternation, SearchResult
from jaxsep.search.frames import Finder
from jaxsep.search.given import GivenNotes, heard_dictionary
from jaxsep.search.known import known_tones
from jaxsep.search.moves import no_tones
from jaxsep.search.voices import VoiceModel, Voices
from jaxsep.separation.chunks import ANALYSIS_RATE, Spectra, log_spectra, resynthesise
from jaxsep.separation.found import Earlier
from jaxsep.separation.result import KnownNotes, Separation
from jaxsep.separation.settings import SeparationSettings
from jaxsep.signal.axes import LogAxis
from jaxsep.signal.background import foreground
from jaxsep.signal.peaks import PeakPursuit
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones, polyphony_of

__all__ = ["Clock", "Part", "Stages", "Survey"]

#: Seconds of notes that teach what their instrument sounds like.
_TEACHES = 1.0

#: Seconds by which the edges of a note that was found, or put right by ear and eye, may be wrong.
_CORRECTED = 0.03

#: How far apart in seconds frames offer each other their tones.
_SPANS = (0.01, 0.02, 0.06, 0.13, 0.26)


#: Half a semitone: how much lower or higher than the bounds of its pitch a note may be tuned.
_QUARTER_TONE = 2 ** (1 / 24)

#: Semitones around notes that are known, and may be beyond these bounds.
_AROUND = 2.0


#: Names for instruments with what is known of them: dictionary, and tones with fundamentals in Hz.
Naming = Callable[[Dictionary, Tones], tuple[str | None, ...]]


class Part(NamedTuple):
    """A stretch of a recording, or all of it.

    - `channels`: at the recording's own rate.
    - `sample_rate`: that rate, in Hz.
    - `analysed`: at the analysis rate, on the recording's grid of frames.
    - `skip`: how many samples of `analysed` precede those of `channels`.
    - `first_frame`: number of the first frame of `analysed`, in the recording.
    """

    channels: Float[np.ndarray, "channels samples"]
    sample_rate: int
    analysed: Float[np.ndarray, "channels resampled"]
    skip: int = 0
    first_frame: int = 0

    @classmethod
    def whole(cls, channels: Float[np.ndarray, "channels samples"], sample_rate: int) -> "Part":
        """A whole recording."""
        return cls(
            channels, sample_rate, np.ascontiguousarray(resample(channels, sample_rate, ANALYSIS_RATE))
        )


class Survey(NamedTuple):
    """What is known of a recording before its frames are explained.

    - `num_instruments`: to tell apart.
    - `dictionaries`: to begin with, the most promising first; none where nothing is known.
    - `learn`: whether they may change.
    - `losses`: of all dictionaries that were learned.
    - `voices`: what notes have in common; `Voices` are those of this recording.
    - `peak`: largest value of the spectra, by which they are divided; 0 where nothing has a pitch.
    - `notes`: that are known of it.
    - `earlier`: what was found in it before, if only what the notes change is searched.
    - `naming`: what names the instruments by dictionary and tones, in Hz, if anything does.
    - `labels`: the names that it gave them.
    """

    num_instruments: int
    dictionaries: tuple[Dictionary, ...]
    learn: bool
    losses: tuple[float, ...]
    voices: VoiceModel | Voices
    peak: float
    notes: KnownNotes | None = None
    earlier: Earlier | None = None
    naming: Naming | None = None
    labels: tuple[str | None, ...] = ()

    def labelled(self, dictionary: Dictionary, tones: Tones) -> tuple[str | None, ...]:
        """The names that were given before, or else those for what was found."""
        return self.labels if self.labels or self.naming is None else self.naming(dictionary, tones)


class Stages:
    """What is done to a recording, with everything that the stages share.

    Arguments:
        settings: options.
        progress: hears of every stage.
    """

    def __init__(self, settings: SeparationSettings, progress: Progress | None = None):
        self.settings, self.progress, self.clock = settings, listener(progress), Clock()
        self.stft, self.axis = GaussianSTFT(hop=settings.hop), LogAxis()
        self.lowest = settings.lowest / _QUARTER_TONE
        self.highest = math.inf if settings.highest is None else settings.highest * _QUARTER_TONE
        self.pursuit = self._pursuit(settings.tones_per_instrument, self.lowest, self.highest)

    def _pursuit(self, tones_per_instrument, lowest, highest):
        """A pursuit with bounds in Hz, as arrays: one compiled program for all."""
        bounds = {"lowest": lowest, "highest": highest}
        bounds = {name: jnp.float32(self.axis.to_bin(hz)) for name, hz in bounds.items()}
        return TonePursuit(LiftedLoss(self.axis), tones_per_instrument, **bounds)

    def spectra(self, samples: Float[np.ndarray, "channels samples"]) -> Spectra:
        """Log-frequency spectrogram of the average of channels (`mono`) at the analysis rate."""
        peaks = PeakPursuit.full() if self.settings.full_peaks else PeakPursuit()
        total = num_chunks(self.stft.num_frames(samples.shape[1]))
        with self.clock("spectrogram"), self.progress.stage("log-frequency spectrogram", total) as advance:
            return log_spectra(mono(samples), self.stft, self.axis, peaks, advance, self.lowest)

    def rehearse(self, num_instruments: int) -> None:
        """Compiles the program with which a search begins where nothing is known, on silence.

        It takes the longest of all and needs nothing of a recording: beside the spectrogram it takes no time.
        """
        silence = np.zeros((1, self.axis.num_bins), np.float32)
        each = polyphony_of(self.settings.tones_per_instrument, num_instruments)
        model = dataclasses.replace(self._model(None), tones_per_instrument=sum(each))
        self._finder(model, silence, Dictionary.one_sound().harmonics, lambda: None)

    def aligned(self, spectra: Spectra, score: Score) -> Score:
        """Notes at the times at which a whole recording plays them."""
        pitched = spectra.pitched
        with self.clock("alignment"), self.progress.stage("aligning the notes", 1) as advance:
            times = np.arange(len(pitched)) * self.settings.hop / ANALYSIS_RATE
            moved = align_notes(score, pitched / max(float(pitched.max()), 1e-30), times, self.axis)
            advance()
        return moved

    def survey(
        self,
        spectra: Spectra,
        num_instruments: int,
        dictionary: Dictionary | None,
        voices: VoiceModel,
        key: PRNGKeyArray,
        notes: KnownNotes | None = None,
        earlier: Earlier | None = None,
    ) -> Survey:
        """What is given, or told by notes; dictionaries are learned from samples if asked for."""
        peak = float(spectra.pitched.max())
        known = lambda *dictionaries, learn=True, losses=(): Survey(
            num_instruments, dictionaries, learn, losses, voices, peak, notes
        )
        if earlier is not None:
            return known(earlier.dictionary)._replace(earlier=earlier)
        if dictionary is not None:
            return known(dictionary if self.settings.timbre else dictionary.plain, learn=False)
        if not peak > 0:
            return known()
        if notes is not None:
            all_known = notes.notes_are == "all"
            return known() if all_known else known(self._heard(spectra.pitched / peak, notes.score))
        if not self.settings.num_learned:
            return known()
        learner = DictionaryLearner(
            # The dictionary averages over many frames: tones need not be exact to teach it.
            _with_tolerance(self.pursuit, 1e-4),
            num_instruments,
            batch=self.settings.batch,
            calls=-(-2 * self.settings.steps // 3),
            polish=self.settings.steps // 3,
        )
        with self.clock("learning"):
            learned = learn_dictionaries(
                spectra.pitched / peak, learner, self.settings.num_learned, progress=self.progress, key=key
            )
        losses = tuple(restart.loss for restart in learned)
        return known(Dictionary(learned[0].harmonics), losses=losses)

    def settled(self, spectra: Spectra, survey: Survey) -> Survey:
        """The survey with the one dictionary, and the voices, that explain these spectra best."""
        if not survey.peak > 0 or (not survey.learn and self.settings.search == "greedy"):
            return survey  # nothing to be known about voices
        found = self.search(spectra, survey)
        voices = survey.voices if found.voices is None else found.voices
        labels = survey.labelled(found.dictionary, found.tones.in_hz(self.axis, survey.peak))
        return survey._replace(dictionaries=(found.dictionary,), learn=False, voices=voices, labels=labels)

    def search(self, heard: Spectra, survey: Survey) -> SearchResult:
        """Tones and dictionary that explain spectra."""
        if not survey.peak > 0:
            return _nothing(len(heard.pitched), survey)
        spectra = heard.pitched / survey.peak
        with self.clock("pursuit"):
            if survey.notes is not None and survey.notes.notes_are == "all":
                return self._at_notes(spectra, survey)
            if self.settings.search == "greedy":
                return self._greedy(spectra, survey.dictionaries[0].plain)
            # The lift is a square root, so that half of what noise adds up to is its loss. Half of that is
            # in all costs, and once more in those of a tone.
            noise = 0.25 * float(heard.noise.mean()) / survey.peak
            dry = foreground(spectra, self.settings.hop / ANALYSIS_RATE)
            among = {"dry": dry, "noise": noise, **self._notes(spectra, survey)}
            find = self._fully if survey.earlier is None else self._again
            return find(self._model(survey.notes, survey.earlier), spectra, survey, among)

    def explain(self, part: Part, spectra: Spectra, survey: Survey) -> Separation:
        """Everything that is found in a part of which the spectra are given."""
        found = self.search(spectra, survey)
        tones = jax.tree.map(np.asarray, found.tones.in_hz(self.axis, survey.peak))
        with self.clock("resynthesis"):
            stems = self._stems(part, tones, found.dictionary)
        apart = self.settings.noise == "apart"
        frames = part.first_frame + np.arange(found.loss.size)
        return Separation(
            stems=stems,
            sample_rate=part.sample_rate,
            tones=tones,
            times=frames * self.settings.hop / ANALYSIS_RATE,
            dictionary=found.dictionary,
            loss=found.loss,
            confidence=found.confidence,
            cost_trace=found.cost_trace,
            restart_losses=survey.losses,
            seconds=self.clock.taken(),
            known=survey.notes,
            settings=self.settings,
            noise=part.channels - stems.sum(axis=0) if apart else None,
            labels=survey.labelled(found.dictionary, tones),
        )

    @property
    def _finder(self) -> Finder:
        """What finds the tones of each frame by itself."""
        if self.settings.method == "blasso":
            return functools.partial(decompose, alpha=self.settings.alpha)
        return pursue

    def _model(self, notes: KnownNotes | None, earlier: Earlier | None = None):
        """How tones are fitted, in as many slots as the instruments play at a time, where they play."""
        most, lowest, highest = self.settings.tones_per_instrument, self.lowest, self.highest
        if notes is not None:
            # Notes that were found, and merely ring on beside the next, had a place before.
            score = notes.score if earlier is None else _held(notes.score)
            pairs = zip(polyphony_of(most, score.num_instruments), score.polyphony(), strict=True)
            each = tuple(map(max, pairs))
            most = each if len(set(each)) > 1 else each[0]
            pitches = [note.pitch for note in notes.score.notes] or [69.0]
            hertz = lambda pitch: 440 * 2 ** ((pitch - 69) / 12)
            lowest = min(lowest, hertz(min(pitches) - _AROUND))
            highest = max(highest, hertz(max(pitches) + _AROUND))
        return _with_tolerance(self._pursuit(most, lowest, highest), 3e-4)

    def _known(self, spectra, score, **options):
        """What notes say of every frame of a whole recording."""
        times = np.arange(len(spectra)) * self.settings.hop / ANALYSIS_RATE
        return known_tones(score, times, spectra, self.axis, **options)

    def _at_notes(self, spectra, survey):
        """The tones of notes that are all."""
        settings, model = self.settings, self._model(survey.notes)
        known = self._known(spectra, survey.notes.score, everywhere=True)
        fit = GivenNotes(spans=_spans(settings.hop), timbre=settings.timbre)
        dictionary = None if survey.learn else survey.dictionaries[0]
        with self.progress.stage("fitting the notes", fit.num_steps) as advance:
            return fit(model, spectra, known, dictionary, advance)

    def _notes(self, spectra, survey):
        """The notes with which a search begins, and those that stay."""
        if survey.notes is None:
            return {}
        score, known = survey.notes.score, functools.partial(self._known, spectra, everywhere=False)
        if survey.earlier is not None:
            known = functools.partial(known, edge=_CORRECTED)
        held = _held(score)
        stay = survey.notes.notes_are == "held" and (held.notes or held.rests)
        return {"begin": known(score).as_listed(), "known": known(held) if stay else None}

    def _fully(self, model, spectra, survey, among):
        """Everything searched."""
        settings, starts = self.settings, survey.dictionaries or survey.num_instruments
        search = Alternation(
            survey.voices,
            settings.rounds,
            spans=_spans(settings.hop),
            learn=survey.learn,
            timbre=settings.timbre,
        )
        total = search.num_steps(len(survey.dictionaries), survey.num_instruments)
        spacing = settings.hop / ANALYSIS_RATE
        with self.progress.stage("finding the tones", total) as advance:
            return search(model, spectra, starts, spacing, advance, find=self._finder, **among)

    def _again(self, model, spectra, survey, among):
        """What an earlier separation found, searched where the notes are others."""
        settings, earlier = self.settings, survey.earlier
        touched = earlier.touched(survey.notes.score)
        search = SearchAgain(
            survey.voices, max(1, settings.rounds), spans=_spans(settings.hop), timbre=settings.timbre
        )
        before = earlier.in_bins(self.axis, survey.peak), earlier.dictionary, touched, earlier.confidence
        spacing = settings.hop / ANALYSIS_RATE
        with self.progress.stage("finding the tones", search.num_steps) as advance:
            return search(model, spectra, *before, spacing, advance=advance, **among)

    def _heard(self, spectra, score):
        """The dictionary that is heard at notes; one sound for all whom they hardly teach."""
        known = self._known(spectra, score, everywhere=False)
        tones = known.sounding(max(self._model(KnownNotes(score, "")).polyphony(score.num_instruments)))
        seconds = np.zeros(score.num_instruments)
        for note in score.notes:
            seconds[note.instrument] += note.offset - note.onset
        heard = heard_dictionary(spectra, tones, score.num_instruments, self.axis).harmonics
        taught = jnp.asarray(seconds >= _TEACHES)[:, None]
        return Dictionary(jnp.where(taught, heard, Dictionary.one_sound().harmonics))

    def _greedy(self, spectra, dictionary):
        """The tones of each frame alone (P1)."""
        model = _with_tolerance(self.pursuit, self.pursuit.solver.tolerance)
        with self.progress.stage("finding the tones", num_chunks(len(spectra))) as advance:
            found = self._finder(model, spectra, dictionary.harmonics, advance)
        unknown = np.full(found.loss.size, np.nan, np.float32)
        return SearchResult(found.tones, found.loss, dictionary, (float(found.loss.mean()),), unknown)

    def _stems(self, part: Part, tones: Tones, dictionary: Dictionary):
        """Stems at the recording's own rate and length."""
        settings, num_samples = self.settings, part.channels.shape[1]
        number = dictionary.num_instruments
        total = settings.phase_iterations * num_chunks(self.stft.num_frames(part.analysed.shape[1]))
        with self.progress.stage("resynthesis", total) as advance:
            harmonics = map_chunks(dictionary.of, tones)
            stems = resynthesise(part.analysed, tones, harmonics, number, self.stft, settings, advance)
        stems = np.stack(
            [resample(stem, ANALYSIS_RATE, part.sample_rate) for stem in stems[..., part.skip :]]
        )
        if stems.shape[-1] < num_samples:
            stems = np.pad(stems, [(0, 0), (0, 0), (0, num_samples - stems.shape[-1])])
        stems = stems[..., :num_samples]
        shared = settings.noise == "shared" and settings.share > 0
        if settings.masking and shared and settings.phase_iterations == 1:
            # What two resamplings lost, near the Nyquist frequency, is shared like all that no tone explains.
            stems = stems + (part.channels - stems.sum(axis=0)) / number
        return stems


class Clock:
    """Wall time of stages, added up under each name."""

    def __init__(self):
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measures the time until its context ends."""
        begin = time.perf_counter()
        yield
        self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - begin

    def taken(self) -> dict[str, float]:
        """Seconds of every stage since the last call."""
        seconds, self._seconds = self._seconds, {}
        return seconds


def _nothing(num_frames, survey):
    """What is found where nothing has a pitch."""
    number = survey.num_instruments
    alike = jnp.repeat(Dictionary.one_sound().harmonics, number, axis=0)
    dictionary = survey.dictionaries[0] if survey.dictionaries else Dictionary(alike)
    tones = no_tones((num_frames, number), np.float32)
    sure = np.full(num_frames, np.inf, np.float32)
    return SearchResult(tones, np.zeros(num_frames, np.float32), dictionary, (0.0,), sure)


def _held(score):
    return dataclasses.replace(score, notes=[note for note in score.notes if note.held])


def _spans(hop):
    return tuple(sorted({max(1, round(seconds * ANALYSIS_RATE / hop)) for seconds in _SPANS}))


def _with_tolerance(pursuit, tolerance):
    # An array: one compiled program for every tolerance.
    return eqx.tree_at(lambda p: p.solver.tolerance, pursuit, jnp.asarray(tolerance, jnp.float32))

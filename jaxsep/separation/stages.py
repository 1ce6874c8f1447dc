"""The stages of a separation by sparse pursuit or the Beurling LASSO: spectra, dictionaries, tones, stems."""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxsep.audio import resample
from jaxsep.blasso import decompose as blasso
from jaxsep.learning.learner import DictionaryLearner
from jaxsep.learning.restarts import learn_dictionaries
from jaxsep.numerics.devices import chunk_size
from jaxsep.progress import Progress
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.recording import pursue
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.search.alternation import Alternated, Alternation
from jaxsep.search.voices import VoiceModel, Voices
from jaxsep.separation.chunks import ANALYSIS_RATE, log_spectra, num_chunks, resynthesise
from jaxsep.separation.settings import SeparationSettings
from jaxsep.signal.axes import LogAxis
from jaxsep.signal.peaks import PeakPursuit
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.dictionary import Dictionary, Timbre
from jaxsep.tones.tones import Tones

__all__ = ["Clock", "Learned", "Stages"]

#: Restarts that the search of the whole recording begins with.
_STARTS = 2

#: How far apart in seconds frames offer each other their tones.
_SPANS = (0.01, 0.02, 0.06, 0.13, 0.26)


class Learned(NamedTuple):
    """Rows of the dictionaries to begin with, the most promising first, and the losses of all restarts.

    A given dictionary can have a timbre.
    """

    dictionaries: list[Float[Array, "instruments harmonics"]]
    losses: tuple[float, ...]
    timbre: Timbre | None = None

    @classmethod
    def given(cls, dictionary: Dictionary) -> "Learned":
        """A dictionary that stays as it is."""
        return cls([dictionary.harmonics], ())


class Stages:
    """What is done to a recording, with everything that the stages share.

    Arguments:
        settings: options.
        voices: what notes have in common; `Voices` are those of this recording.
        progress: hears of every stage.
    """

    def __init__(self, settings: SeparationSettings, voices: VoiceModel | Voices, progress: Progress):
        self.settings, self.voices, self.progress = settings, voices, progress
        self.stft, self.axis = GaussianSTFT(hop=settings.hop), LogAxis()
        self.pursuit = TonePursuit(LiftedLoss(self.axis), settings.tones_per_instrument)

    def spectra(self, mono: Float[np.ndarray, " samples"]) -> Float[np.ndarray, "frames bins"]:
        """Log-frequency spectrogram of samples at the analysis rate."""
        peaks = PeakPursuit.full() if self.settings.full_peaks else PeakPursuit()
        name = "log-frequency spectrogram"
        with self.progress.stage(name, num_chunks(self.stft, mono.size)):
            return log_spectra(mono, self.stft, self.axis, peaks, lambda: self.progress.advance(name))

    def learn(
        self, spectra: Float[np.ndarray, "frames bins"], num_instruments: int, key: PRNGKeyArray
    ) -> Learned:
        """Dictionaries from spectra with a peak of about 1."""
        settings = self.settings
        learner = DictionaryLearner(
            # The dictionary averages over many frames: tones need not be exact to teach it.
            _with_tolerance(self.pursuit, 1e-4),
            num_instruments,
            batch=settings.batch,
            calls=-(-2 * settings.steps // 3),
            polish=settings.steps // 3,
        )
        restarts = learn_dictionaries(spectra, learner, settings.restarts, progress=self.progress, key=key)
        dictionaries = [restart.harmonics for restart in restarts[:_STARTS]]
        return Learned(dictionaries, tuple(restart.loss for restart in restarts))

    def decompose(self, spectra: Float[np.ndarray, "frames bins"], learned: Learned) -> Alternated:
        """Tones, harmonics, and how sure they are, from spectra with a peak of about 1."""
        find = pursue
        if self.settings.method == "blasso":
            find = functools.partial(blasso.decompose, alpha=self.settings.alpha)
        name = "finding the tones"
        with self.progress.stage(name, self.num_steps(spectra.shape[0], learned)):
            if self.settings.search == "greedy":
                pursuit = _with_tolerance(self.pursuit, self.pursuit.solver.tolerance)
                harmonics = learned.dictionaries[0]
                found = find(pursuit, spectra, harmonics, lambda: self.progress.advance(name))
                return _unsearched(found, harmonics, self.axis)
            quick = _with_tolerance(self.pursuit, 1e-4)
            advance = lambda note: self.progress.advance(name, note)
            return self._alternation(learned)(quick, spectra, learned.dictionaries, advance, find=find)

    def num_steps(self, num_frames: int, learned: Learned) -> int:
        """How often `decompose` reports its progress at most."""
        if self.settings.search == "greedy":
            return -(-num_frames // chunk_size())
        return self._alternation(learned).num_steps(num_frames, len(learned.dictionaries))

    def _alternation(self, learned):
        spans = tuple(
            sorted({max(1, round(seconds * ANALYSIS_RATE / self.settings.hop)) for seconds in _SPANS})
        )
        # A given dictionary is used as it is.
        return Alternation(
            self.voices,
            self.settings.rounds,
            spans=spans,
            learn=bool(learned.losses),
            pitched=self.settings.timbre,
            timbre=learned.timbre,
        )

    def in_hertz(self, tones: Tones, peak: float) -> Tones:
        """Tones of spectra that were divided by their peak, in Hz and the recording's units."""
        hertz = self.axis.to_hz(jnp.asarray(tones.fundamental))
        return eqx.tree_at(
            lambda t: (t.amplitude, t.fundamental),
            tones,
            (tones.amplitude * peak, np.where(tones.active, hertz, 0)),
        )

    def stems(
        self,
        analysed: Float[np.ndarray, "channels resampled"],
        channels: Float[np.ndarray, "channels samples"],
        sample_rate: int,
        tones: Tones,
        harmonics: Float[np.ndarray, "frames tones harmonics"],
        num_instruments: int,
        *,
        skip: int = 0,
    ) -> Float[np.ndarray, "instruments channels samples"]:
        """Stems at the recording's own rate and length.

        Arguments:
            analysed: at the analysis rate.
            channels: the recording.
            sample_rate: of `channels`, in Hz.
            tones: of the frames of `analysed`, in Hz.
            harmonics: of each tone.
            num_instruments: how many stems.
            skip: how many samples of `analysed` precede those of `channels`.
        """
        settings, name, num_samples = self.settings, "resynthesis", channels.shape[1]
        with self.progress.stage(name, settings.phase_iterations * num_chunks(self.stft, analysed.shape[1])):
            advance = lambda: self.progress.advance(name)
            rows = harmonics, num_instruments
            stems = resynthesise(analysed, tones, *rows, self.stft, settings, advance)[..., skip:]
        stems = np.stack([resample(stem, ANALYSIS_RATE, sample_rate) for stem in stems])
        if stems.shape[-1] < num_samples:
            stems = np.pad(stems, [(0, 0), (0, 0), (0, num_samples - stems.shape[-1])])
        stems = stems[..., :num_samples]
        if settings.masking and settings.share > 0 and settings.phase_iterations == 1:
            # What two resamplings lost, near the Nyquist frequency, is shared like all that no tone explains.
            stems = stems + (channels - stems.sum(axis=0)) / stems.shape[0]
        return stems


class Clock:
    """Wall time of stages, in `seconds`, added up under each name."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measures the time until its context ends."""
        begin = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin


def _with_tolerance(pursuit, tolerance):
    # An array: one compiled program for every tolerance.
    return eqx.tree_at(lambda p: p.solver.tolerance, pursuit, jnp.asarray(tolerance, jnp.float32))


def _unsearched(found, harmonics, axis):
    """Tones that were found without comparing explanations of the recording."""
    unknown = np.full(found.loss.size, np.nan, np.float32)
    timbre = Timbre.constant(harmonics, axis)
    return Alternated(found.tones, found.loss, harmonics, timbre, (float(found.loss.mean()),), unknown)

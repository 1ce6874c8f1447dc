"""Separation with a learned dictionary, by sparse pursuit (P1) or the Beurling LASSO (P3)."""

import functools
import time
from contextlib import contextmanager

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxsep.audio import resample
from jaxsep.dictionary.alternation import Alternated, Alternation
from jaxsep.dictionary.learning import DictionaryLearner
from jaxsep.dictionary.restarts import learn_dictionaries
from jaxsep.progress import Progress
from jaxsep.pursuit.lifting import LiftedLoss
from jaxsep.pursuit.peaks import PeakPursuit
from jaxsep.pursuit.search import CHUNK, pursue
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.pursuit.voices import VoiceModel
from jaxsep.separators import blasso
from jaxsep.separators.separation import PursuitSettings, Separation, check_request
from jaxsep.separators.spectra import ANALYSIS_RATE, log_spectra, num_chunks, resynthesise
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.axes import LogAxis
from jaxsep.tones.dictionary import Dictionary

__all__ = ["separate"]


def separate(
    samples: Float[np.ndarray | Array, "*channels samples"],
    sample_rate: int,
    num_instruments: int,
    *,
    settings: PursuitSettings = PursuitSettings(),
    voices: VoiceModel = VoiceModel(),
    dictionary: Dictionary | None = None,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> Separation:
    """Separates a recording into its instruments, without training data or knowledge of them (P1).

    Arguments:
        samples: `[samples]` or `[channels, samples]`; channels are averaged for the analysis, and the masks
            are applied to each.
        sample_rate: in Hz; the analysis runs at 48 kHz inside.
        num_instruments: at least 1.
        settings: options.
        voices: what notes have in common, for the full search.
        dictionary: instruments learned from another recording; without one they are learned from this.
        progress: hears how the work proceeds.
        key: the same key gives the same result.

    Returns: stems at the rate and length of the input, and everything found on the way. They sum to the input
    with masking, a share above 0 and one phase iteration, as by default.

    Raises: `ValueError` for samples that are not finite, silent, or shorter than a window (0.256 s), and for
    a dictionary whose number of instruments is not `num_instruments`.

    Example:
        >>> mixture, stems, rate = jaxsep.demo_recording()
        >>> settings = jaxsep.PursuitSettings(restarts=1, steps=3, search="greedy")
        >>> result = jaxsep.separate(mixture[:rate], rate, 2, settings=settings, key=jax.random.key(0))
        >>> result.stems.shape, bool(np.allclose(result.stems.sum(axis=0), mixture[:rate], atol=1e-5))
        ((2, 44100), True)
    """
    samples = np.asarray(samples)
    check_request(samples, sample_rate, num_instruments, dictionary)
    progress, clock = progress or Progress(), _Clock()
    stft, objective = GaussianSTFT(hop=settings.hop), LiftedLoss(LogAxis())
    channels = np.atleast_2d(samples).astype(np.float32)
    analysed = np.ascontiguousarray(resample(channels, sample_rate, ANALYSIS_RATE))

    with clock("spectrogram"):
        spectra, peak = _spectra(analysed.mean(axis=0), stft, objective.axis, settings, progress)
    pursuit = TonePursuit(objective, settings.tones_per_instrument)
    dictionaries, losses = [], ()
    if dictionary is not None:
        dictionaries = [dictionary.harmonics]
    else:
        with clock("learning"):
            learner = _learner(pursuit, num_instruments, settings)
            restarts = learn_dictionaries(spectra, learner, settings.restarts, progress=progress, key=key)
        dictionaries = [restart.harmonics for restart in restarts[:_STARTS]]
        losses = tuple(restart.loss for restart in restarts)
    with clock("pursuit"):
        found = _decompose(pursuit, spectra, dictionaries, settings, voices, bool(losses), progress)
    dictionary, tones = Dictionary(found.harmonics), found.tones
    hertz = objective.axis.to_hz(jnp.asarray(tones.fundamental))
    tones = eqx.tree_at(
        lambda t: (t.amplitude, t.fundamental),
        tones,
        (tones.amplitude * peak, np.where(tones.active, hertz, 0)),
    )
    with clock("resynthesis"):
        stems = _stems(analysed, channels, sample_rate, tones, dictionary, stft, settings, progress)
    return Separation(
        stems=stems.reshape(num_instruments, *samples.shape),
        sample_rate=sample_rate,
        tones=tones,
        times=np.arange(found.loss.size) * settings.hop / ANALYSIS_RATE,
        dictionary=dictionary,
        loss=found.loss,
        confidence=found.confidence,
        cost_trace=found.cost_trace,
        restart_losses=losses,
        seconds=clock.seconds,
    )


def _learner(pursuit, num_instruments, settings):
    # The dictionary averages over many frames: tones need not be exact to teach it.
    return DictionaryLearner(
        _with_tolerance(pursuit, 1e-4),
        num_instruments,
        batch=settings.batch,
        calls=-(-2 * settings.steps // 3),
        polish=settings.steps // 3,
    )


def _with_tolerance(pursuit, tolerance):
    # An array: one compiled program for every tolerance.
    return eqx.tree_at(lambda p: p.solver.tolerance, pursuit, jnp.asarray(tolerance, jnp.float32))


def _spectra(mono, stft, axis, settings, progress):
    """Log-frequency spectra with a peak of 1, and the peak they had."""
    peaks = PeakPursuit.full() if settings.full_peaks else PeakPursuit()
    name = "log-frequency spectrogram"
    with progress.stage(name, num_chunks(stft, mono.size)):
        spectra = log_spectra(mono, stft, axis, peaks, lambda: progress.advance(name))
    peak = spectra.max()
    return spectra / peak, peak


def _decompose(pursuit, spectra, dictionaries, settings, voices, learned, progress):
    """Tones, harmonics, and how sure they are, by the method in the settings."""
    spans = tuple(sorted({max(1, round(seconds * ANALYSIS_RATE / settings.hop)) for seconds in _SPANS}))
    quick = _with_tolerance(pursuit, 1e-4)
    find = pursue
    if settings.method == "blasso":
        find = functools.partial(blasso.decompose, alpha=settings.alpha)
    name = "finding the tones"
    if settings.search == "greedy":
        with progress.stage(name, -(-spectra.shape[0] // CHUNK)):
            found = find(
                _with_tolerance(pursuit, pursuit.solver.tolerance),
                spectra,
                dictionaries[0],
                lambda: progress.advance(name),
            )
        return _unsearched(found, dictionaries[0])
    # A given dictionary is used as it is.
    alternation = Alternation(voices, settings.rounds, spans=spans, learn=learned)
    with progress.stage(name, alternation.num_steps(spectra.shape[0], len(dictionaries))):
        advance = lambda note: progress.advance(name, note)
        return alternation(quick, spectra, dictionaries, advance, find=find)


def _unsearched(found, harmonics):
    """Tones that were found without comparing explanations of the recording."""
    unknown = np.full(found.loss.size, np.nan, np.float32)
    return Alternated(found.tones, found.loss, harmonics, (float(found.loss.mean()),), unknown)


#: Restarts that the search of the whole recording begins with.
_STARTS = 2

#: How far apart in seconds frames offer each other their tones.
_SPANS = (0.01, 0.02, 0.06, 0.13, 0.26)


def _stems(analysed, channels, sample_rate, tones, dictionary, stft, settings, progress):
    name = "resynthesis"
    with progress.stage(name, settings.phase_iterations * num_chunks(stft, analysed.shape[1])):
        stems = resynthesise(
            analysed, tones, dictionary.harmonics, stft, settings, lambda: progress.advance(name)
        )
    num_samples = channels.shape[1]
    stems = np.stack([resample(stem, ANALYSIS_RATE, sample_rate) for stem in stems])
    if stems.shape[-1] < num_samples:
        stems = np.pad(stems, [(0, 0), (0, 0), (0, num_samples - stems.shape[-1])])
    stems = stems[..., :num_samples]
    if settings.masking and settings.share > 0 and settings.phase_iterations == 1:
        # What two resamplings lost, near the Nyquist frequency, is shared like all that no tone explains.
        stems = stems + (channels - stems.sum(axis=0)) / stems.shape[0]
    return stems


class _Clock:
    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage):
        begin = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - begin

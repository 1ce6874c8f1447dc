"""Separation with a learned dictionary, by sparse pursuit (P1) or the Beurling LASSO (P3)."""

import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxsep.audio import resample
from jaxsep.progress import Progress
from jaxsep.search.voices import VoiceModel
from jaxsep.separation.chunks import ANALYSIS_RATE
from jaxsep.separation.result import Separation, check_request
from jaxsep.separation.settings import SeparationSettings
from jaxsep.separation.stages import Clock, Learned, Stages
from jaxsep.tones.dictionary import Dictionary

__all__ = ["separate"]


def separate(
    samples: Float[np.ndarray | Array, "*channels samples"],
    sample_rate: int,
    num_instruments: int,
    *,
    settings: SeparationSettings = SeparationSettings(),
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
    with masking, a share above 0 and one phase iteration, as by default. All of it is in memory, 0.4 MB of
    spectra for each second besides the samples: `separate_parts` is for hours.

    Raises: `ValueError` for samples that are not finite, silent, or shorter than a window (0.256 s), and for
    a dictionary whose number of instruments is not `num_instruments`.

    Example:
        >>> mixture, stems, rate = jaxsep.demo_recording()
        >>> settings = jaxsep.SeparationSettings(restarts=1, steps=3, search="greedy")
        >>> result = jaxsep.separate(mixture[:rate], rate, 2, settings=settings, key=jax.random.key(0))
        >>> result.stems.shape, bool(np.allclose(result.stems.sum(axis=0), mixture[:rate], atol=1e-5))
        ((2, 44100), True)
    """
    samples = np.asarray(samples)
    check_request(samples, sample_rate, num_instruments, dictionary)
    stages, clock = Stages(settings, voices, progress or Progress()), Clock()
    channels = np.atleast_2d(samples).astype(np.float32)
    analysed = np.ascontiguousarray(resample(channels, sample_rate, ANALYSIS_RATE))

    with clock("spectrogram"):
        spectra = stages.spectra(analysed.mean(axis=0))
        peak = float(spectra.max())
        spectra = spectra / peak
    if dictionary is not None:
        learned = Learned.given(dictionary)
    else:
        with clock("learning"):
            learned = stages.learn(spectra, num_instruments, key)
    with clock("pursuit"):
        found = stages.decompose(spectra, learned)
    tones = stages.in_hertz(found.tones, peak)
    with clock("resynthesis"):
        harmonics = np.asarray(found.timbre.of(found.tones))
        stems = stages.stems(analysed, channels, sample_rate, tones, harmonics, num_instruments)
    return Separation(
        stems=stems.reshape(num_instruments, *samples.shape),
        sample_rate=sample_rate,
        tones=tones,
        times=np.arange(found.loss.size) * settings.hop / ANALYSIS_RATE,
        dictionary=Dictionary(found.harmonics),
        loss=found.loss,
        confidence=found.confidence,
        cost_trace=found.cost_trace,
        restart_losses=learned.losses,
        seconds=clock.seconds,
    )

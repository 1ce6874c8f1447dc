"""What the command line needs JAX for; `start_jax` alone imports this module."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsep.audio import Recording
from jaxsep.cli.work import Work
from jaxsep.neural.settings import NeuralSettings
from jaxsep.progress import Progress
from jaxsep.report.page import write_page
from jaxsep.report.plots import overview
from jaxsep.report.spectrograms import spectrogram_figure
from jaxsep.results.document import evaluation_document
from jaxsep.results.write import write_results
from jaxsep.separation import neural, parts, separate
from jaxsep.separation.result import Separation
from jaxsep.tones.dictionary import Dictionary

__all__ = [
    "evaluation_document",
    "separate_at_once",
    "separate_in_parts",
    "spectrogram_figure",
    "write_page",
    "write_results",
]

_Pieces = Iterator[tuple[np.ndarray, Separation]]


def separate_at_once(
    work: Work, samples: np.ndarray, sample_rate: int, folder: Path, progress: Progress
) -> _Pieces:
    """A recording `[channels, samples]` and its separation; picture, and log of a training, in `folder`."""
    options = _options(work, progress)
    if isinstance(work.settings, NeuralSettings):
        options |= {"log": folder / "training.jsonl", **work.training}
        separation = neural.separate_neural(samples, sample_rate, work.num_instruments, **options)
    else:
        separation = separate.separate(samples, sample_rate, work.num_instruments, **options)
    with progress.stage("overview", 1):
        overview(separation, samples, sample_rate, folder / "overview.png")
        progress.advance("overview")
    yield samples, separation


def separate_in_parts(work: Work, recording: Path, folder: Path, progress: Progress) -> _Pieces:
    """A recording and its separation part by part; the picture in `folder` has the first that sounds."""
    options = _options(work, progress)
    begin, drawn = 0, False
    with Recording(recording) as source:
        rate = source.sample_rate
        for part in parts.separate_parts(recording, work.num_instruments, seconds=work.part, **options):
            length = part.stems.shape[-1]
            samples = source.read(begin, begin + -(-length // rate))[:, :length]
            if not drawn and samples.any():
                overview(part, samples, rate, folder / "overview.png")
                drawn = True
            begin += length // rate
            yield samples, part


def _options(work: Work, progress: Progress) -> dict[str, Any]:
    """Arguments that all methods have."""
    known = None if work.dictionary is None else Dictionary.load(work.dictionary)
    key = jax.random.key(work.seed)
    return {"settings": work.settings, "dictionary": known, "progress": progress, "key": key}

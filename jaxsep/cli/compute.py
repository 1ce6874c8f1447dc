"""What the command line needs JAX for; `start_jax` alone imports this module."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsep.audio import Recording
from jaxsep.cli.options import Notes
from jaxsep.neural.settings import NeuralSettings
from jaxsep.progress import Progress
from jaxsep.report.page import write_page as write_page
from jaxsep.report.plots import overview
from jaxsep.report.spectrograms import spectrogram_figure as spectrogram_figure
from jaxsep.results.document import evaluation_document as evaluation_document
from jaxsep.results.read import read_earlier, read_instruments
from jaxsep.results.write import write_results as write_results
from jaxsep.separation import neural, separate
from jaxsep.separation.result import Separation
from jaxsep.separation.settings import SeparationSettings
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.instruments import Instruments

__all__ = ["separate_at_once", "separate_in_parts"]

_Pieces = Iterator[tuple[np.ndarray, Separation]]


def separate_at_once(
    samples: np.ndarray,
    sample_rate: int,
    num_instruments: int,
    folder: Path,
    training: dict[str, Any],
    **request: Any,
) -> _Pieces:
    """A recording in one piece, `[channels, samples]`, and its separation.

    The folder receives the picture, and the log of a training, of which `training` are the arguments.
    """
    options = _options(**request)
    if isinstance(options["settings"], NeuralSettings):
        options |= {"log": folder / "training.jsonl", **training}
        separation = neural.separate_neural(samples, sample_rate, num_instruments, **options)
    else:
        separation = separate.separate(samples, sample_rate, num_instruments, **options)
    with options["progress"].stage("overview", 1) as advance:
        overview(separation, samples, sample_rate, folder / "overview.png")
        advance()
    yield samples, separation


def separate_in_parts(
    source: Recording, seconds: float, num_instruments: int, folder: Path, **request: Any
) -> _Pieces:
    """A recording and its separation part by part; the folder receives a picture of the first that sounds."""
    begin, drawn, rate = 0, False, source.sample_rate
    for part in separate.separate_parts(source, num_instruments, seconds=seconds, **_options(**request)):
        length = part.stems.shape[-1]
        samples = source.read(begin, begin + -(-length // rate))[:, :length]
        if not drawn and samples.any():
            overview(part, samples, rate, folder / "overview.png")
            drawn = True
        begin += length // rate
        yield samples, part


def _options(
    settings: SeparationSettings | NeuralSettings,
    dictionary: Path | None,
    seed: int,
    progress: Progress,
    notes: Notes | None = None,
    earlier: Path | None = None,
    **library: Any,
) -> dict[str, Any]:
    """Arguments that all methods have, and notes if there are any; what is given beside them are files."""
    known = None if dictionary is None else Dictionary.load(dictionary)
    options = {"settings": settings, "dictionary": known, "progress": progress, "key": jax.random.key(seed)}
    if notes is not None:
        options |= {"notes": notes.score, "notes_are": notes.are, "align": notes.align}
    if earlier is not None:
        options["earlier"] = read_earlier(earlier)
    return options | _names(**library) if library else options


def _names(players: tuple[str, ...], like: Path | None) -> dict[str, Any]:
    """The instruments that play, if they are told, or those that may play."""
    library = Instruments.orchestra() if like is None else read_instruments(like)
    return {"instruments": library.chosen(players)} if players else {"like": library}

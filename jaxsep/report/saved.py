"""Separations written as the folders that the command line leaves."""

import os

import numpy as np

from jaxsep.files import OutputFolder
from jaxsep.report.plots import mixture_of, overview
from jaxsep.results.write import write_results
from jaxsep.separation.result import Separation

__all__ = ["save_separation"]


def save_separation(separation: Separation, folder: str | os.PathLike, *, force: bool) -> None:
    """Writes a separation; `Separation.save` says what and when."""
    mixture, known = mixture_of(separation), separation.known
    source = {"file": "mixture.wav", "dictionary": None}
    if known is not None:
        source |= {"notes": None, "notes_are": known.notes_are}
    about = {"settings": separation.settings, "seed": None, "source": source}
    with OutputFolder(folder, force=force) as draft:
        if np.any(mixture):
            overview(separation, mixture, separation.sample_rate, draft / "overview.png")
        write_results(draft, [(mixture, separation)], (".wav", "FLOAT"), **about)

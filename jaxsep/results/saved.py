"""Separations read from their folders."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxsep.neural.settings import NeuralSettings
from jaxsep.notes.score import Score, default_name
from jaxsep.results.frames import read_frames
from jaxsep.results.read import Results, read_results
from jaxsep.separation.result import KnownNotes, Separation
from jaxsep.separation.settings import NOTES_ARE, SeparationSettings

__all__ = ["load_separation"]


def load_separation(folder: str | os.PathLike) -> Separation:
    """Reads the folder that `jaxsep separate` or `Separation.save` wrote; `Separation.load` says the rest."""
    folder = Path(folder)
    results = read_results(folder)
    path = folder / "frames.npz"
    found = read_frames(path, len(results.stems)) if path.exists() else _without_frames(results)
    axes = found.pop("stem_axes")
    if axes == 2 and results.mixture.shape[0] != 1:
        raise ValueError(f"{path} is of a recording with one channel, not {results.mixture.shape[0]}.")
    take = (lambda tracks: tracks[..., 0, :]) if axes == 2 else (lambda tracks: tracks)
    document = results.document
    return Separation(
        stems=take(results.stems),
        mixture=take(results.mixture),
        noise=None if results.noise is None else take(results.noise),
        sample_rate=results.sample_rate,
        dictionary=results.dictionary,
        cost_trace=_numbers(document, "cost_trace"),
        restart_losses=_numbers(document, "restart_losses"),
        seconds=_seconds(document),
        known=_known(results),
        settings=_settings(document.get("settings")),
        labels=_labels(results.names),
        **found,
    )


def _without_frames(results: Results) -> dict[str, Any]:
    """What an older folder has of the frames."""
    unknown = np.full(results.times.size, np.nan, np.float32)
    return {
        "tones": results.tones,
        "times": results.times,
        "loss": unknown,
        "confidence": unknown,
        "stem_axes": 3,
    }


def _numbers(document, name):
    """Numbers of a list in the document, in which those that are not finite are None."""
    listed = document.get(name, [])
    if not isinstance(listed, list) or not all(x is None or isinstance(x, int | float) for x in listed):
        raise ValueError(f"separation.json: expected numbers as {name}, got {listed!r}.")
    return tuple(float("nan") if x is None else float(x) for x in listed)


def _seconds(document):
    found = document.get("seconds", {})
    if not isinstance(found, dict) or not all(isinstance(x, int | float) for x in found.values()):
        raise ValueError(f"separation.json: expected numbers as seconds, got {found!r}.")
    return {name: float(x) for name, x in found.items()}


def _known(results: Results) -> KnownNotes | None:
    """The notes that were all known, or else the names that they gave."""
    are = results.document["input"].get("notes_are")
    if are not in NOTES_ARE:
        return None
    return KnownNotes(Score(results.notes if are == "all" else [], results.names), are)


def _labels(names: list[str]) -> tuple[str | None, ...]:
    """The names that are more than numbers; empty where none is."""
    labels = [None if name == default_name(n) else name for n, name in enumerate(names)]
    return tuple(labels) if any(labels) else ()


def _settings(fields) -> SeparationSettings | NeuralSettings | None:
    """Settings of this version, or None: those of another may have other fields."""
    for kind in (SeparationSettings, NeuralSettings):
        if isinstance(fields, dict) and set(fields) == {field.name for field in dataclasses.fields(kind)}:
            values = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
            try:
                return kind(**values)
            except (TypeError, ValueError):
                return None
    return None

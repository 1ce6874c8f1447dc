"""How a dictionary travels: to the rest of its piece and to other pieces, with its timbre and without."""

from typing import Any

import jax
import numpy as np

from benchmarks.common import Piece, Report, load_piece, markdown_table, scores
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings
from jaxsep.tones.dictionary import Dictionary

#: Pieces of which the first half teaches the second.
HALVES = ("k487_08_recorder_violin", "k487_08_clarinet_piano", "devienne_op71_5_oboe_bassoon")

#: Pieces, and others with the same instruments that learn from them.
OTHERS = {
    "k487_08_recorder_violin": "k487_08_recorder_violin_reverb",
    "k487_08_clarinet_piano": "weber_clarinet_piano",
}

_QUICK = {"restarts": 1, "steps": 6, "search": "greedy"}


def main(quick: bool = False) -> None:
    """SDR of pieces with a dictionary of other music for the same instruments."""
    base = _QUICK if quick else {}
    report = Report("timbre", quick=quick, about=f"{SeparationSettings(**base)}, key 0")
    routes = [(name, *halves(load_piece(name))) for name in HALVES]
    routes += [(f"{name} → {other}", load_piece(name), load_piece(other)) for name, other in OTHERS.items()]
    for name, teacher, pupil in routes[: 1 if quick else None]:
        sdr = travel(teacher, pupil, base)
        report.add({"route": name, "sdr": sdr}, f"{name}: {sdr}")
    report.end(table(report.document["runs"]))


def halves(piece: Piece) -> tuple[Piece, Piece]:
    """A piece until its middle, and from there on."""
    middle = piece.mixture.size // 2
    cut = lambda part: piece._replace(mixture=piece.mixture[part], stems=piece.stems[:, part])
    return cut(slice(middle)), cut(slice(middle, None))


def travel(teacher: Piece, pupil: Piece, base: dict[str, Any]) -> dict[str, float]:
    """Mean gain-only SDR of a piece with the dictionary of another, and with its own."""
    learned = separated(teacher, None, base).dictionary
    return {
        "with the timbre": mean_sdr(pupil, separated(pupil, learned, base)),
        "without": mean_sdr(pupil, separated(pupil, learned.plain, base)),
        "its own dictionary": mean_sdr(pupil, separated(pupil, None, base)),
    }


def separated(piece: Piece, dictionary: Dictionary | None, base: dict[str, Any]):
    settings, key = SeparationSettings(**base), jax.random.key(0)
    request = piece.mixture, piece.sample_rate, len(piece.instruments)
    return separate(*request, settings=settings, dictionary=dictionary, key=key)


def mean_sdr(piece: Piece, separation) -> float:
    return round(float(np.mean(scores(piece.stems, separation.stems)["sdr"])), 2)


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown of the mean SDR of each route."""
    names = list(runs[0]["sdr"])
    rows = [[run["route"], *(f"{run['sdr'][name]:.2f}" for name in names)] for run in runs]
    return markdown_table(["dictionary", *(f"{name} (dB)" for name in names)], rows)

"""What each default that differs from P1 does to the SDR, every piece with one dictionary throughout."""

from typing import Any

import jax
import numpy as np

from benchmarks.common import Pieces, Report, Seconds, chosen_pieces, load_piece, markdown_table, scores
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings

#: Settings that are compared: the defaults, and one of them at a time as in P1.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "hop 256": {"hop": 256},
    "refined peaks": {"full_peaks": True},
    "unexplained energy dropped": {"share": 0.0},
    "no masking": {"masking": False},
    "greedy": {"search": "greedy"},
    "greedy, hop 256": {"search": "greedy", "hop": 256},
    "greedy, refined peaks": {"search": "greedy", "full_peaks": True},
}


def main(
    quick: bool = False,
    seconds: Seconds = 12.0,
    pieces: Pieces = "",
) -> None:
    """SDR of the defaults against P1's settings, with the dictionary that the defaults learned."""
    base = {"restarts": 1, "steps": 6} if quick else {}
    names = chosen_pieces(pieces)[: 1 if quick else None]
    about = f"first {seconds or 'all'} seconds of {', '.join(names)}"
    report = Report("settings", quick=quick, about=about, seconds=seconds)
    for name in names:
        sdr = compare(name, seconds, base)
        line = ", ".join(f"{variant} {value:.2f}" for variant, value in sdr.items())
        report.add({"piece": name, "sdr": sdr}, f"{name}: {line}")
    report.end(table(report.document["runs"]))


def compare(name: str, seconds: float | None, base: dict[str, Any]) -> dict[str, float]:
    """Mean gain-only SDR of a piece with each of the variants."""
    piece = load_piece(name, seconds)
    request = piece.mixture, piece.sample_rate, len(piece.instruments)
    key = jax.random.key(0)
    dictionary = separate(*request, settings=SeparationSettings(**base), key=key).dictionary

    def sdr(options):
        settings = SeparationSettings(**base, **options)
        separation = separate(*request, settings=settings, dictionary=dictionary, key=key)
        return float(np.mean(scores(piece.stems, separation.stems)["sdr"]))

    return {variant: sdr(options) for variant, options in VARIANTS.items()}


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown of the mean SDR of each variant, and its difference from the default."""
    means = {variant: float(np.mean([run["sdr"][variant] for run in runs])) for variant in VARIANTS}
    rows = [[variant, f"{sdr:.2f}", f"{sdr - means['default']:+.2f}"] for variant, sdr in means.items()]
    return markdown_table(["settings", "mean SDR (dB)", "against the default"], rows)

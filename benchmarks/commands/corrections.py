"""Decibels per corrected note: a simulated user corrects what a blind run has found, which is run again."""

import time
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import numpy as np
import typer
from matplotlib.figure import Figure

from benchmarks.commands.known import true_score
from benchmarks.common import (
    PICTURES,
    Piece,
    Report,
    Seconds,
    SomePieces,
    chosen_pieces,
    load_piece,
    markdown_table,
    scores,
)
from benchmarks.listener import corrected, most_doubtful, played_by
from jaxsep.metrics.bss_eval import sdr_sir_sar_gain
from jaxsep.notes.score import Score
from jaxsep.separation.found import notes_of
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings

PICTURE = PICTURES / "corrections.png"

#: Two, three and four instruments, dry, in a room, with reverberation; something of each is found wrong.
PIECES = (
    "bwv784_violin_cello_room,bwv794_violin_clarinet_bassoon,corelli_two_violins,k155_wind_quartet,"
    "k487_08_recorder_violin_reverb,k80_string_quartet"
)

#: The order by doubt, and orders by chance.
DOUBT, CHANCE = "doubt", "chance"

Fast = Annotated[bool, typer.Option("--fast", help="Half the frames.")]
Draws = Annotated[int, typer.Option(help="Orders by chance, of which the mean counts.", min=1)]


def main(
    quick: bool = False,
    seconds: Seconds = 12.0,
    pieces: SomePieces = PIECES,
    draws: Draws = 2,
    fast: Fast = False,
    seed: int = 0,
) -> None:
    """SDR over the number of corrected notes, the most doubtful ones first and in any order."""
    seconds, draws = (min(seconds, 3.0), 1) if quick else (seconds, draws)
    settings = SeparationSettings.fast() if fast else SeparationSettings()
    about = f"first {seconds:g} seconds, {draws} orders by chance, seed {seed}, {settings}"
    report = Report("corrections", quick=quick, about=about, seconds=seconds, seed=seed)
    for name in chosen_pieces(pieces)[: 1 if quick else None]:
        piece, most = load_piece(name, seconds), 2 if quick else None
        for run in runs_of(piece, seconds, draws, seed, settings, most):
            report.add(run, " · ".join(row(run)))
    if not quick:
        draw(report.document["runs"])
    report.end(table(report.document["runs"]), gains(report.document["runs"]))


def runs_of(
    piece: Piece, seconds: float, draws: int, seed: int, settings: SeparationSettings, most: int | None = None
) -> Iterator[dict[str, Any]]:
    """The blind separation of a piece, and one for every number of corrections in every order."""
    recording, begin = (piece.mixture, piece.sample_rate), time.perf_counter()
    options = {"settings": settings, "key": jax.random.key(seed)}
    blind = separate(*recording, len(piece.instruments), **options)
    taken = time.perf_counter() - begin
    found, played = notes_of(blind), _played(piece, blind, seconds)
    fact = {"piece": piece.name, "instruments": piece.instruments, "notes": len(found)}
    yield fact | {"order": "", "count": 0, "sdr": _sdr(piece, blind), "seconds": taken}
    random = np.random.default_rng(seed)
    orders = [(DOUBT, most_doubtful(found))]
    orders += [(CHANCE, [found[n] for n in random.permutation(len(found))]) for _ in range(draws)]
    for name, order in orders:
        for count in [*counts(len(found)), None][:most]:
            score = corrected(found, played.notes, order, count, played.names)
            begin = time.perf_counter()
            known = {"notes": score, "notes_are": "held", "earlier": blind}
            again = separate(*recording, **known, **options)
            figures = {"sdr": _sdr(piece, again), "seconds": time.perf_counter() - begin}
            yield fact | {"order": name, "count": len(found) if count is None else count} | figures


def counts(num_notes: int) -> list[int]:
    """1, 2, 4, … and then all at once."""
    return [2**n for n in range(20) if 2**n < 0.75 * num_notes]


def _played(piece, blind, seconds) -> Score:
    """What is played, by the numbers that the blind separation gives the instruments."""
    order = np.asarray(sdr_sir_sar_gain(piece.stems, blind.stems).permutation)
    return played_by(true_score(piece.name, seconds), order)


def _sdr(piece, separation) -> float:
    return float(np.mean(scores(piece.stems, separation.stems)["sdr"]))


def row(run: dict[str, Any]) -> list[str]:
    """A run as cells."""
    order = f"{run['count']} of {run['notes']} by {run['order']}" if run["order"] else "blind"
    return [run["piece"], order, f"{run['sdr']:.2f} dB", f"{run['seconds']:.1f} s"]


def means(runs: list[dict[str, Any]], order: str) -> dict[str, list[tuple[int, float]]]:
    """Numbers of corrections and mean SDR of every piece in an order, from the blind separation on."""
    curves = {}
    for piece in dict.fromkeys(run["piece"] for run in runs):
        mine = [run for run in runs if run["piece"] == piece and run["order"] in ("", order)]
        at = sorted({run["count"] for run in mine})
        curves[piece] = [(n, float(np.mean([r["sdr"] for r in mine if r["count"] == n]))) for n in at]
    return curves


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: SDR of every piece over the number of corrections, in both orders."""
    shown = sorted({run["count"] for run in runs if run["count"] != run["notes"]})
    rows = []
    for order in (DOUBT, CHANCE):
        for piece, curve in means(runs, order).items():
            values, last = dict(curve), max(curve)
            cells = [f"{values[n]:.2f}" if n in values and n != last[0] else "" for n in shown]
            rows.append([piece, order, *cells, f"{last[1]:.2f} ({last[0]})"])
    return markdown_table(["piece", "order", *map(str, shown), "all"], rows)


def gains(runs: list[dict[str, Any]]) -> str:
    """Markdown: what a number of corrections is worth on the mean of all pieces that have so many."""
    curves = {order: {p: dict(c) for p, c in means(runs, order).items()} for order in (DOUBT, CHANCE)}
    rows = []
    for count in sorted({run["count"] for run in runs if 0 < run["count"] < run["notes"]}):
        both = [piece for piece in curves[CHANCE] if all(count in curves[o][piece] for o in curves)]
        if both:
            gained = [np.mean([c[piece][count] - c[piece][0] for piece in both]) for c in curves.values()]
            rows.append([str(count), *(f"{gain:+.2f}" for gain in gained), str(len(both))])
    return markdown_table(["corrections", "by doubt (dB)", "by chance (dB)", "pieces"], rows)


def draw(runs: list[dict[str, Any]]) -> None:
    """SDR over the number of corrections: a panel for each piece."""
    pieces = list(dict.fromkeys(run["piece"] for run in runs))
    across = min(3, len(pieces))
    down = -(-len(pieces) // across)
    figure = Figure(figsize=(3.3 * across, 2.5 * down), dpi=110, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, piece in zip(panels, pieces, strict=False):
        for order, colour in ((CHANCE, "#D55E00"), (DOUBT, "#0072B2")):
            count, sdr = zip(*means(runs, order)[piece], strict=True)
            axes.plot(count, sdr, "o-", ms=3.5, lw=1.3, color=colour, label=f"by {order}")
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xlim(left=0)
        ticks = [0, 1, 2, 4, 8, 16, 32, 64]
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_title(piece.replace("_", " "), fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(pieces) :]:
        axes.set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("corrected notes", fontsize=10)
    figure.supylabel("mean SDR in dB", fontsize=10)
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURE)

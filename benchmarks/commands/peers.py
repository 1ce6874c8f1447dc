"""Separation beside what else there is: other blind methods, floors, and oracle masks, on the same pieces."""

import time
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import typer
from matplotlib.figure import Figure

from benchmarks import folders
from benchmarks.commands.corpus import chosen, numbers
from benchmarks.commands.notes import onset_and_pitch
from benchmarks.common import (
    MEASURES,
    PICTURES,
    Pieces,
    Report,
    Seconds,
    markdown_table,
    mean_of,
    scores,
    shared_folder,
)
from benchmarks.peers import PEERS, Peer
from jaxsep.metrics.bss_eval import sdr_sir_sar_gain
from jaxsep.results.document import paired_figures

#: Shown in the table, each with its title.
_SHOWN = {name: MEASURES[name] for name in ("snr", "snr_frames", "si_sdr_improvement")}

#: Behind a label in the picture.
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}

#: Of the wall, and of all cores together, which depends less on what else the machine does.
_CLOCKS = ("seconds", "core seconds")


def main(
    quick: bool = False,
    folder: Annotated[
        Path | None,
        typer.Option(help="Recordings with their true stems, as for corpus.  [default: the corpus]"),
    ] = None,
    voices: Annotated[str, typer.Option(help="As for corpus.")] = "",
    methods: Annotated[
        str, typer.Option(help=f"Some of {', '.join(PEERS)}, separated by semicolons.  [default: all]")
    ] = "",
    seconds: Seconds = 12.0,
    pieces: Pieces = "",
    seed: int = 0,
) -> None:
    """Quality over seconds of jaxsep and of its peers.

    A method whose packages are missing says so in one line. The same command goes on after an interruption.
    """
    names = _methods(methods)
    if quick:
        names, seconds = [name for name in names if not name.startswith("jaxsep")], 3.0
    place = shared_folder("corpus") if folder is None else folder
    wanted = chosen(place, voices, pieces)[: 1 if quick else None]
    facts = {"seconds": seconds, "seed": seed, "folder": str(place.resolve()), "voices": voices}
    title = "peers" if folder is None else f"peers-{place.resolve().name}"
    report = Report(title, quick=quick, about=f"first {seconds or 'all'} seconds, seed {seed}", **facts)
    there = {(run["piece"], run["method"]) for run in report.unfinished()}
    found = {piece.name: piece for piece in folders.find_pieces(place, numbers(voices))}
    for method in names:
        if why := PEERS[method].missing():
            print(f"{method}: cannot be had here, as {why}.", flush=True)
            continue
        first = True
        for name in wanted:
            if (name, method) not in there and (run := measured(method, found[name], seconds, seed)):
                # What the first piece of a method takes is compilation as well.
                report.add(run | {"first": first}, _line(run))
                first = False
    runs = report.document.get("runs", [])
    if not quick and any("sdr" in run for run in runs):
        draw(runs)
    report.end(stems_table(runs), notes_table(runs))


def _methods(listed: str) -> list[str]:
    names = [entry.strip() for entry in listed.split(";") if entry.strip()] or list(PEERS)
    for name in names:
        if name not in PEERS:
            raise SystemExit(f"There is no method {name}: expected some of {', '.join(PEERS)}.")
    return names


def measured(method: str, found: folders.Found, seconds: float | None, seed: int) -> dict[str, Any] | None:
    """A method on a piece: what its stems and notes are worth; None for a piece that is not for it."""
    peer: Peer = PEERS[method]
    try:
        piece, played = folders.load(found, seconds), folders.played_notes(found)
    except ValueError as error:
        print(f"{found.name}: {error}", flush=True)
        return None
    if peer.most is not None and len(piece.instruments) > peer.most:
        return None
    begin, begin_busy = time.perf_counter(), time.process_time()
    stems, notes = peer.run(piece, seed)
    seconds, busy = time.perf_counter() - begin, time.process_time() - begin_busy
    run = {
        "method": method,
        "about": peer.about,
        "oracle": peer.oracle,
        "piece": found.name,
        "instruments": piece.instruments,
        "seconds": seconds,
        "cpu_seconds": busy,
    }
    if stems is not None:
        matched = sdr_sir_sar_gain(*(jnp.asarray(x, jnp.float32) for x in (piece.stems, stems)))
        order = np.asarray(matched.permutation)
        pairs = paired_figures(piece.stems, stems[order], piece.mixture, piece.sample_rate)
        run |= scores(piece.stems, stems) | {"literature": pairs}
    duration = piece.mixture.size / piece.sample_rate
    if notes is not None and set(played) == set(piece.instruments):
        truth = np.concatenate([rows[rows[:, 0] < duration] for rows in played.values()])
        run["notes"] = onset_and_pitch(truth, notes)
    return run


def _line(run):
    figures = [f"SDR {np.mean(run['sdr']):.2f}"] if "sdr" in run else []
    figures += [f"notes F {run['notes'][2]:.3f}"] if "notes" in run else []
    return " · ".join([run["method"], run["piece"], f"{run['seconds']:.1f} s", *figures])


def _by_method(runs, what):
    """Runs of each method that have something."""
    groups = {name: [run for run in runs if run["method"] == name and what in run] for name in PEERS}
    return {name: mine for name, mine in groups.items() if mine}


def _seconds(runs, clock="seconds"):
    """Median over the pieces, without the first if there are others."""
    later = [run[clock] for run in runs if not run["first"]]
    return float(np.median(later or [run[clock] for run in runs]))


def _times(runs):
    return [f"{_seconds(runs):.1f}", f"{_seconds(runs, 'cpu_seconds'):.1f}"]


def _ordered(groups, value):
    """Blind methods first, then the oracles, each by falling value."""
    return sorted(groups, key=lambda name: (PEERS[name].oracle, -value(groups[name])))


def _mean_sdr(runs):
    return float(np.mean([np.mean(run["sdr"]) for run in runs]))


def stems_table(runs: list[dict[str, Any]]) -> str:
    """Markdown: means over instruments and pieces in dB, and median seconds, the best blind method first."""
    groups = _by_method(runs, "sdr")
    rows = []
    for name in _ordered(groups, _mean_sdr):
        mine = groups[name]
        figures = [np.mean([np.mean(run[figure]) for run in mine]) for figure in ("sdr", "sir", "sar")]
        figures += [mean_of([mean_of(run["literature"][figure]) for run in mine]) for figure in _SHOWN]
        kind = "oracle" if PEERS[name].oracle else "blind"
        cells = [f"{name} ({PEERS[name].about})", kind, str(len(mine))]
        rows.append([*cells, *(f"{figure:.2f}" for figure in figures), *_times(mine)])
    header = ["method", "kind", "pieces", "SDR", "SIR", "SAR", *_SHOWN.values(), *_CLOCKS]
    return markdown_table(header, rows)


def notes_table(runs: list[dict[str, Any]]) -> str:
    """Markdown: notes of all instruments together, by onset and pitch, as means over the pieces."""
    groups = _by_method(runs, "notes")
    value = lambda mine: np.mean([run["notes"][2] for run in mine])
    rows = [
        [name, str(len(groups[name]))]
        + [f"{mean:.3f}" for mean in np.mean([run["notes"] for run in groups[name]], axis=0)]
        + _times(groups[name])
        for name in _ordered(groups, value)
    ]
    return markdown_table(["merged notes", "pieces", "precision", "recall", "F", *_CLOCKS], rows)


def draw(runs: list[dict[str, Any]]) -> None:
    """Mean SDR over seconds of the blind methods; the oracles are bounds."""
    groups = _by_method(runs, "sdr")
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    bounds = sorted((name for name in groups if PEERS[name].oracle), key=lambda name: _mean_sdr(groups[name]))
    blind = [name for name in groups if not PEERS[name].oracle]
    for name in blind:
        mine = groups[name]
        ours = name.startswith("jaxsep")
        place = max(_seconds(mine, "cpu_seconds"), 1e-2), _mean_sdr(mine)
        each = [np.mean(run["sdr"]) for run in mine]
        colour = "#D55E00" if ours else "#0072B2"
        axes.plot([place[0]] * len(each), each, "_", color=colour, alpha=0.4, markersize=9)
        axes.plot(*place, "o", color=colour, markersize=8)
        axes.annotate(name, place, (9, -3), textcoords="offset points", fontsize=9, bbox=_PAPER)
    axes.set_xscale("log")
    axes.margins(x=0.2)
    for number, name in enumerate(bounds):
        level = _mean_sdr(groups[name])
        axes.axhline(level, color="0.5", linestyle="--", linewidth=1)
        side, align = ((0.01, "left"), (0.3, "left"))[number % 2]
        axes.annotate(
            f"{name} (knows the truth)",
            (side, level),
            (0, 4 if name == bounds[-1] else -11),  # below the line, where another may be near above
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha=align,
            fontsize=8,
            color="0.35",
        )
    axes.set_xlabel("core seconds for a piece (median, without the first, which compiles)")
    axes.set_ylabel("SDR, a gain forgiven (dB)")
    axes.set_title("points: means over the pieces, bars: each piece", loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / "peers.png")

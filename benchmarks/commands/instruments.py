"""Seconds of a separation over the number of instruments, of which each plays a single line."""

import time
from typing import Annotated, Any

import jax
import numpy as np
import typer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.common import PICTURES, Report, load_piece, markdown_table, scores
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings

PICTURE = PICTURES / "instruments.png"

#: Whose stems play together: four winds, and the outer voices of four strings.
STEMS = (("k155_wind_quartet", (0, 1, 2, 3)), ("k80_string_quartet", (0, 3)))


def main(
    quick: bool = False,
    most: Annotated[int, typer.Option(min=1, max=6, help="Instruments at the end.")] = 6,
    seconds: Annotated[float, typer.Option(min=1, help="Length of the music.")] = 10.0,
) -> None:
    """Wall and processor seconds for 1 to 6 instruments; a first run of each, not counted, compiles."""
    seconds, most = (1.0, 2) if quick else (seconds, most)
    about = f"first {seconds:g} seconds, seed 0, {SeparationSettings()}"
    report = Report("instruments", quick=quick, about=about, seconds=seconds)
    stems, rate = lines(seconds)
    for number in range(1, most + 1):
        found = run(stems[:number], rate)
        report.add(found, " · ".join(row(found)))
    if not quick:
        draw(report.document["runs"])
    report.end(table(report.document["runs"]))


def lines(seconds: float) -> tuple[np.ndarray, int]:
    """Six stems of equal power, and their rate."""
    stems = []
    for name, chosen in STEMS:
        piece = load_piece(name, seconds)
        stems += [piece.stems[number] for number in chosen]
    level = [np.sqrt(np.mean(stem**2)) for stem in stems]
    return 0.1 * np.stack(
        [s / max(one, 1e-6) for s, one in zip(stems, level, strict=True)]
    ), piece.sample_rate


def run(stems: np.ndarray, rate: int) -> dict[str, Any]:
    """The second of two separations, whose programs the first has compiled."""
    for _ in range(2):
        wall, processor = time.perf_counter(), time.process_time()
        result = separate(stems.sum(axis=0), rate, len(stems), key=jax.random.key(0))
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    sdr = scores(stems, result.stems)["sdr"]
    return {"instruments": len(stems), "wall_seconds": wall, "cpu_seconds": processor, "sdr": sdr}


def row(run: dict[str, Any]) -> list[str]:
    """A run as cells."""
    seconds = [f"{run[name]:.1f}" for name in ("wall_seconds", "cpu_seconds")]
    return [str(run["instruments"]), *seconds, f"{run['cpu_seconds'] / run['instruments']:.1f}"]


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown of all runs."""
    return markdown_table(["instruments", "wall s", "CPU s", "CPU s per instrument"], [*map(row, runs)])


def draw(runs: list[dict[str, Any]]) -> None:
    """Seconds over instruments, beside what is linear from two on."""
    number = np.array([run["instruments"] for run in runs])
    figure = Figure(figsize=(5, 3.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for name, label, colour in (("wall_seconds", "wall", "#0072B2"), ("cpu_seconds", "CPU", "#D55E00")):
        seconds = np.array([run[name] for run in runs])
        axes.plot(number, seconds, "o-", color=colour, label=label)
        if number.size > 1:
            axes.plot(number, seconds[1] * number / 2, ":", color=colour, lw=1)
    axes.set(xlabel="instruments (dotted: in proportion to two)", ylabel="seconds, nothing compiled")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE)

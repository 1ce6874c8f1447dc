"""Quality over time: from the quickest settings to the most thorough ones, each run in a fresh process."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import (
    FRESH,
    PICTURES,
    Report,
    Seconds,
    SomePieces,
    call_worker,
    chosen_pieces,
    markdown_table,
)
from jaxsep.separation.settings import SeparationSettings

PICTURE = PICTURES / "tradeoff.png"
#: An easy piece, one in which instruments sound alike, and one that is hard to search.
PIECES = "k487_08_recorder_violin,bwv784_violin_cello,k487_08_clarinet_piano"

#: From quick to thorough; the fields of `SeparationSettings` that differ from the defaults.
VARIANTS: dict[str, dict[str, Any]] = {
    "greedy": {"restarts": 2, "steps": 48, "search": "greedy"},
    "fast": SeparationSettings.FAST,
    "1 round": {"rounds": 1},
    "default": {},
    "4 rounds": {"rounds": 4},
    "hop 256": {"hop": 256},
}


def main(
    quick: bool = False,
    pieces: SomePieces = PIECES,
    seconds: Seconds = None,
) -> None:
    """Mean SDR over wall time, compilation included."""
    report = Report("tradeoff", quick=quick, worker=True)
    for name in chosen_pieces(pieces)[: 1 if quick else None]:
        for variant, options in list(VARIANTS.items())[: 1 if quick else None]:
            request = {"name": name, "seconds": 3.0 if quick else seconds, "seed": 0, "settings": options}
            found = call_worker("benchmarks.commands.corpus", request, FRESH)
            run = {"piece": name, "variant": variant, "sdr": float(np.mean(found["sdr"]))}
            run |= {"instruments": found["instruments"], "seconds": found["wall_seconds"]}
            line = f"{name}, {variant}: {run['sdr']:.2f} dB in {run['seconds']:.1f} s"
            report.add(run | {"environment": found["environment"]}, line)
    if not quick:
        draw(report.document["runs"])
    report.end(table(report.document["runs"]))


def means(runs) -> dict[str, tuple[float, float]]:
    """Mean wall time and SDR of each variant over the pieces."""
    return {
        variant: tuple(
            float(np.mean([run[key] for run in runs if run["variant"] == variant]))
            for key in ("seconds", "sdr")
        )
        for variant in dict.fromkeys(run["variant"] for run in runs)
    }


def table(runs) -> str:
    """Markdown of the means."""
    cells = [[name, f"{time:.1f}", f"{sdr:.2f}"] for name, (time, sdr) in means(runs).items()]
    return markdown_table(["settings", "wall s", "mean SDR (dB)"], cells)


def draw(runs) -> None:
    """SDR over wall time: the means, and each piece."""
    figure = Figure(figsize=(6.5, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for number, piece in enumerate(dict.fromkeys(run["piece"] for run in runs)):
        mine = [run for run in runs if run["piece"] == piece]
        label = ", ".join(mine[0]["instruments"])
        colour = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"][number % 4]
        axes.plot(
            [r["seconds"] for r in mine], [r["sdr"] for r in mine], "o", ms=4, color=colour, label=label
        )
    for number, (name, (time, sdr)) in enumerate(means(runs).items()):
        axes.plot(time, sdr, "k_", ms=14)
        # Alternately below and above: neighbours are close.
        place = {"xytext": (0, 6 if number % 2 else -13), "ha": "center"}
        axes.annotate(name, (time, sdr), textcoords="offset points", fontsize=9, **place)
    axes.set_xlabel("wall time of 30 s of music in s, compilation included")
    axes.set_ylabel("mean SDR in dB")
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE)

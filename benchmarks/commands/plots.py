"""The pictures of `RESULTS.md`, drawn from the JSON that the benchmarks have written."""

import json
from typing import Any

from matplotlib.figure import Figure

from benchmarks.commands import blasso, corrections, neural, peers, tradeoff
from benchmarks.commands.suite import per_frame
from benchmarks.common import PICTURES, RESULTS
from benchmarks.machine import NAMES

__all__ = ["draw_suite", "main"]

#: Results with a picture of their own: the part of the document that it shows, and what draws it.
_PARTS = {
    "blasso": ("grid", blasso.draw),
    "corrections": ("runs", corrections.draw),
    "neural": ("runs", neural.draw),
    "peers": ("runs", peers.draw),
    "tradeoff": ("runs", tradeoff.draw),
}
_COLOURS = {"products": "#0072B2", "elementwise": "#56B4E9", "transcendental": "#D55E00", "moved": "#009E73"}


def main() -> None:
    """Draws the pictures of benchmarks/RESULTS.md anew, of all results that are in benchmarks/results."""
    drawn = 0
    for path in sorted(RESULTS.glob("*.json")):
        # Those of a quick run tell nothing about the quality.
        if path.stem in _PARTS or (path.stem.startswith("suite-") and not path.stem.endswith("-quick")):
            part, draw = _PARTS.get(path.stem, (None, draw_suite))
            document = json.loads(path.read_text(encoding="utf-8"))
            if part is None or part in document:
                draw(document if part is None else document[part])
                drawn += 1
                print(f"drawn from {path.name}")
    if not drawn:
        raise SystemExit(
            f"{RESULTS}: expected results to draw, got none; `python -m benchmarks run` writes some"
        )


def draw_suite(document: dict[str, Any]) -> None:
    """Time of the stages with their share of the machine's limits, and how time grows."""
    figure = Figure(figsize=(10, 7), dpi=110, layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.2, 1))
    _draw_stages(top, document["stages"])
    _draw_scaling(bottom, document["scaling"], document["devices"])
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / f"suite-{document['environment']['platform']}.png")


def _draw_stages(figure, rows):
    times, limits = figure.subplots(1, 2, sharey=True)
    names, place = [row["name"] for row in rows], range(len(rows))
    times.barh(place, [per_frame(row) for row in rows], color="#666666", height=0.6)
    times.set_xscale("log")
    for position, row in zip(place, rows, strict=True):
        time = per_frame(row)
        text = f"{time:,.0f}" if time >= 100 else f"{time:.3g}"
        times.annotate(text, (time, position), (3, -3), textcoords="offset points")
    times.margins(x=0.15)
    times.set_yticks(place, names)
    times.invert_yaxis()
    times.set_xlabel("µs per frame")
    for offset, kind in zip((-0.27, -0.09, 0.09, 0.27), _COLOURS, strict=True):
        shares = [100 * row["shares"][kind] for row in rows]
        limits.barh([p + offset for p in place], shares, 0.18, color=_COLOURS[kind], label=NAMES[kind])
    limits.set_xlim(0, 100)
    limits.set_xlabel("% of the machine's highest rate")
    limits.legend(frameon=False, fontsize=8, loc="lower right")
    for axes in (times, limits):
        axes.spines[["top", "right"]].set_visible(False)


def _draw_scaling(figure, rows, devices):
    kinds = list(dict.fromkeys(row["axis"] for row in rows))
    panels = figure.subplots(1, len(kinds) + 1)
    for axes, kind in zip(panels, kinds, strict=False):
        mine = [row for row in rows if row["axis"] == kind]
        names = list(dict.fromkeys(row["name"] for row in mine))
        for name, colour in zip(names, _COLOURS.values(), strict=False):
            line = [row for row in mine if row["name"] == name]
            values = [row["value"] for row in line]
            axes.plot(values, [per_frame(row) for row in line], "o-", ms=4, color=colour, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, values)
        axes.set_xlabel(kind)
        if len(names) == 1:
            axes.set_ylim(0, 1.1 * max(map(per_frame, mine)))
            axes.set_title(names[0], fontsize=9)
        else:
            axes.set_yscale("log")
            axes.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1))
    panels[0].set_ylabel("µs per frame")
    numbers = [row["number"] for row in devices]
    panels[-1].plot(numbers, [devices[0]["seconds"] / row["seconds"] for row in devices], "ko-", ms=4)
    panels[-1].plot([0, numbers[-1]], [0, numbers[-1]], ":", color="#999999")
    panels[-1].set_xticks(numbers)
    panels[-1].set_xlabel("devices")
    panels[-1].set_title("speed-up, pursuit", fontsize=9)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)

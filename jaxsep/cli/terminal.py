"""What the command line shows: progress on stderr, results as tables on stdout."""

import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from jaxsep.cli.process import go_on
from jaxsep.notes.note import note_name
from jaxsep.progress import Progress
from jaxsep.tones.library import About

__all__ = ["TerminalProgress", "show_evaluation", "show_library", "show_separation"]


class TerminalProgress(Progress):
    """A bar for each stage on stderr while in its context; elsewhere than on a terminal, a line at its end.

    Until the first step of a stage has ended, the bar says that the program compiles. After Ctrl-C or SIGTERM
    the next step of every thread raises `Stopped`.

    Arguments:
        console: by default stderr; bars are shown where it is a terminal.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True, force_terminal=sys.stderr.isatty())
        self._lock = threading.Lock()
        self._stages: dict[str, _Stage] = {}
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> "TerminalProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """A line above the bars."""
        self._console.print(line, highlight=False, markup=False)

    def begin(self, name: str, total: int) -> None:
        """A stage begins."""
        task = self._bars.add_task(name, total=None, note="compiling…")
        with self._lock:
            self._stages[name] = _Stage(task, total)

    def advance(self, name: str, note: str = "") -> None:
        """One step of a stage has ended."""
        go_on()
        with self._lock:
            stage = self._stages[name]
            stage.done += 1
        self._bars.update(stage.task, total=stage.total, completed=stage.done, note=note)

    def end(self, name: str) -> None:
        """A stage has ended."""
        with self._lock:
            stage = self._stages.pop(name)
        if sys.exc_info()[0] is not None:  # it is being left by an exception
            return
        self._bars.update(stage.task, total=stage.total, completed=stage.total, note="")
        if self._bars.disable:
            self._console.print(f"{name}: {time.perf_counter() - stage.start:.1f} s", highlight=False)


class _Stage:
    def __init__(self, task: TaskID, total: int):
        self.task, self.total, self.done = task, total, 0
        self.start = time.perf_counter()


def show_separation(document: dict[str, Any], output: Path) -> None:
    """Prints the summary of a separation.

    Arguments:
        document: as `separation_document` makes it.
        output: the folder of the results.
    """
    console = _stdout()
    seconds = document["seconds"]
    console.print(
        f"{document['input']['file']}: {document['input']['duration_s']:.1f} s separated into "
        f"{document['num_instruments']} instruments in {sum(seconds.values()):.1f} s on {document['device']}",
    )
    stages = _table("stage", "seconds")
    for name, value in seconds.items():
        stages.add_row(name, f"{value:.1f}")
    console.print(stages)
    if losses := document["restart_losses"]:
        chosen, *others = ("—" if loss is None else f"{loss:.4f}" for loss in losses)
        console.print(f"loss of each restart: {chosen} (chosen)", *others)
    if not document["num_tones"]:
        noise = document.get("noise")
        where = f"all of it is in {noise}" if noise else "the stems share the recording evenly"
        console.print(f"nothing with a pitch was found: {where}")
    if gain := document.get("gain_db"):
        console.print(f"all tracks are {-gain:.1f} dB lower, as integers hold no more than full scale")
    console.print(f"results: {output}/")
    for file in sorted(output.iterdir()):
        console.print(f"  {file.name}")


def show_library(about: About) -> None:
    """Prints the instruments of a library, their ranges, where they come from, and the licence."""
    console, table = _stdout(), _table("instrument", "lowest", "highest")
    for name, (lowest, highest) in zip(about.names, about.ranges.tolist(), strict=True):
        table.add_row(name, note_name(lowest), note_name(highest))
    console.print(table)
    console.print(f"from {about.source}; licence: {about.licence}")


#: Measures of one figure each: key in the document, and title.
_SINGLE = {
    "snr": "plain (SNR)",
    "snr_frames": "plain, median of 1 s",
    "si_sdr": "SI-SDR",
    "si_sdr_improvement": "SI-SDR over mixture",
}

#: Which paper uses which measure.
_PAPERS = (
    "who reports which, and what it forgives:",
    "  gain only: P1 (Schulze, King 2021); one gain for each source",
    "  512-tap filter: BSS Eval v2 and v3 (Vincent et al. 2006), mir_eval, most work on NMF; a filter",
    "  plain (SNR): Music Demixing Challenge (Mitsufuji et al. 2022), whole pieces; nothing",
    "  plain, median of 1 s: SiSEC 2018, museval or BSS Eval v4 (Stöter et al. 2018), Open-Unmix; nothing",
    "  SI-SDR: Le Roux et al. 2019; one gain for each source",
    "  SI-SDR over mixture: Conv-TasNet (Luo, Mesgarani 2019), Slakh (Manilow et al. 2019)",
)


def show_evaluation(document: dict[str, Any], papers: bool = False) -> None:
    """Prints the figures of an evaluation, as `evaluation_document` makes it, in dB.

    Arguments:
        document: of the evaluation.
        papers: whether to say which paper uses which measure.
    """
    console = _stdout()
    table = _table("reference", "estimate", "measure", "SDR", "SIR", "SAR")
    references, estimates = _short(document["references"]), _short(document["estimates"])
    for row, reference in enumerate(references):
        named = ""
        for measure, title in (("gain", "gain only"), ("filter_512", "512-tap filter")):
            scores = document[measure]
            estimate = estimates[scores["permutation"][row]]
            figures = (_figure(scores[name][row]) for name in ("sdr", "sir", "sar"))
            # The measures hardly ever match the estimates differently.
            table.add_row("" if named else reference, "" if named == estimate else estimate, title, *figures)
            named = estimate
        for name, title in _SINGLE.items():
            last = name == "si_sdr_improvement"
            table.add_row("", "", title, _figure(document[name][row]), "", "", end_section=last)
    console.print(table)
    console.print("all figures in dB; larger is better; silence has none")
    if papers:
        console.print("\n".join(_PAPERS))


def _figure(value):
    return "—" if value is None else f"{value:.2f}"


def _short(paths):
    """File names without their folders, where they still tell the files apart."""
    names = [Path(path).name for path in paths]
    return names if len(set(names)) == len(names) else paths


def _stdout():
    # File names may look like markup.
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True)


def _table(*columns):
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column in ("seconds", "SDR", "SIR", "SAR")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table

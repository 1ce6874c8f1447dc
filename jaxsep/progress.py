"""Progress of long work: what the library reports, and who listens."""

import html
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

__all__ = ["NotebookProgress", "Progress", "listener"]


class Progress:
    """Listener that hears how long work proceeds; this one is silent.

    Derive from it and override `begin`, `advance` and `end` to show a bar. `advance` may be called from
    several threads.

    Example:
        >>> class Printed(jaxsep.Progress):
        ...     def begin(self, name, total):
        ...         print(f"{name}: {total} steps")
        >>> with Printed().stage("tuning", 3) as advance:
        ...     advance()
        tuning: 3 steps
    """

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[..., None]]:
        """Marks a stage of the work that consists of `total` steps; yields what each of them calls.

        That is `advance` of this stage, with or without a note.
        """
        self.begin(name, total)
        try:
            yield partial(self.advance, name)
        finally:
            self.end(name)

    def begin(self, name: str, total: int) -> None:
        """A stage begins; until its first step ends, it mostly compiles."""

    def advance(self, name: str, note: str = "") -> None:
        """One step of a stage has ended."""

    def end(self, name: str) -> None:
        """A stage has ended."""


class NotebookProgress(Progress):
    """A bar for each stage in the output of a notebook's cell, which at its end becomes the stage's seconds.

    Work without a listener has this one in a notebook; hand it a `Progress()` for silence.

    Example:
        >>> isinstance(jaxsep.NotebookProgress(), jaxsep.Progress)
        True
    """

    #: Seconds between two pictures of the bars.
    _PAUSE = 0.1

    def __init__(self):
        self._lock = threading.RLock()
        self._stages: dict[str, dict[str, Any]] = {}
        self._display, self._drawn = None, 0.0

    def begin(self, name: str, total: int) -> None:
        """A stage begins."""
        with self._lock:
            stage = {"total": total, "done": 0, "note": "compiling…", "start": time.perf_counter()}
            self._stages[name] = stage | {"seconds": None}
            self._draw()

    def advance(self, name: str, note: str = "") -> None:
        """One step of a stage has ended."""
        with self._lock:
            stage = self._stages[name]
            stage["done"], stage["note"] = stage["done"] + 1, note
            if time.perf_counter() - self._drawn > self._PAUSE:
                self._draw()

    def end(self, name: str) -> None:
        """A stage has ended."""
        with self._lock:
            stage = self._stages[name]
            stage["seconds"] = time.perf_counter() - stage["start"]
            self._draw()

    def _draw(self):
        from IPython.display import HTML, display

        self._drawn = time.perf_counter()
        shown = HTML("".join(_row(name, **stage) for name, stage in self._stages.items()))
        if self._display is None:
            self._display = display(shown, display_id=True)
        else:
            self._display.update(shown)


def _row(name, *, total, done, note, start, seconds):
    if seconds is not None:
        return f"<div>{html.escape(name)}: {seconds:.1f} s</div>"
    # A bar without a value moves.
    value = f' value="{done}" max="{max(total, 1)}"' if done else ""
    label = html.escape(f"{name} {note}".strip())
    return f"<div><progress{value}></progress> {label}</div>"


def listener(progress: Progress | None) -> Progress:
    """Who listens: whoever is given; else bars in a notebook, and nobody elsewhere."""
    if progress is not None:
        return progress
    return NotebookProgress() if _in_notebook() else Progress()


def _in_notebook() -> bool:
    """Whether a kernel runs this, whose outputs a page shows."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None

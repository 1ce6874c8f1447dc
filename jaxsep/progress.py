"""Progress of long work: what the library reports, and who listens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

__all__ = ["Progress"]


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

"""What the command line needs of its process: signals, JAX on a device, files that appear whole."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import NamedTuple, NoReturn

from jaxsep.files import replacing

__all__ = ["Backend", "Stopped", "check_outside", "is_stopping", "new_file", "start_jax", "stoppable"]

#: Set by Ctrl-C or SIGTERM while `stoppable`.
_stopping = threading.Event()


class Stopped(BaseException):
    """Ctrl-C or SIGTERM: the number of the signal."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into `Stopped`, so that `with` blocks clean up; ignores more."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        _stopping.set()
        raise Stopped(number)

    _stopping.clear()
    # A shell lets the programs it starts in the background ignore Ctrl-C.
    caught = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, stop) for number in caught}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def is_stopping() -> bool:
    """Whether Ctrl-C or SIGTERM has come; threads then better end."""
    return _stopping.is_set()


class Backend(NamedTuple):
    """Where JAX computes, or `None` for the fastest device, and where it keeps compiled programs."""

    device: str | None = None
    cache: Path | None = None
    no_cache: bool = False


def start_jax(backend: Backend) -> ModuleType:
    """Imports JAX on the wanted device, with its persistent compilation cache, and what needs it.

    Returns: `jaxsep.cli.compute`. Nothing else of the command line imports JAX, so that help and mistakes are
    answered at once.
    """
    device, cache, no_cache = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own log is not for users
    for name in ("jax", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import jax

    if device is not None:
        # JAX's own choice prefers a GPU, of any make.
        jax.config.update("jax_platforms", "cpu" if device == "cpu" else "")
    try:
        platform = jax.default_backend()
    except RuntimeError as error:
        raise ValueError(f"JAX finds no device: {error}") from error
    if device == "gpu" and platform != "gpu":
        raise ValueError("--device gpu: JAX finds no GPU; leave the option out, or install JAX for GPUs.")
    if not no_cache:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = cache or Path(caches) / "jaxsep"
        # A cache that cannot be written or read costs time only.
        warnings.filterwarnings("ignore", message=".*persistent compilation cache")
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    from jaxsep.cli import compute

    return compute


def check_outside(output: Path, *inputs: Path | None) -> None:
    """Refuses a folder of results around an input, which replacing the folder would delete."""
    for path in filter(None, inputs):
        for place in (path.resolve(), path.parent.resolve() / path.name):  # what a link names, and the link
            if output.resolve() in place.parents:
                raise ValueError(f"{path} lies in the output folder {output}; name another folder.")


@contextmanager
def new_file(path: Path, force: bool, suffix: str = ".png") -> Iterator[Path]:
    """A draft beside `path` that takes its name when the block ends, and is removed when the block raises."""
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path} has the suffix {path.suffix!r}, expected {suffix!r}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file.")
    if path.exists() and not force:
        raise ValueError(f"{path} exists; name another file or replace it with --force.")
    with replacing(path) as draft:
        yield draft

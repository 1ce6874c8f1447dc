"""What the command line needs of its process: signals, JAX on a device, files that appear whole."""

import io
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple, NoReturn

from jaxsep.files import AudioWarning, discard_drafts, replacing

__all__ = [
    "Backend",
    "Stopped",
    "check_outside",
    "end",
    "go_on",
    "new_file",
    "sentence",
    "start_jax",
    "stoppable",
    "voices",
]

#: Seconds after Ctrl-C or SIGTERM in which the main thread may end by itself.
_PATIENCE = 2

#: The signal that came while `stoppable`, if one did.
_came: list[int] = []


class Stopped(BaseException):
    """Ctrl-C or SIGTERM: the number of the signal."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into `Stopped`, so that `with` blocks clean up; ignores more.

    Callbacks of other libraries swallow exceptions, and long work in C delays them: where the block has not
    ended after two seconds, another thread ends the process, and leaves nothing half-done.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for each in caught:
            signal.signal(each, signal.SIG_IGN)
        _came.append(number)
        raise Stopped(number)

    _came.clear()
    # A shell lets the programs it starts in the background ignore Ctrl-C.
    caught = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    watch = threading.Thread(target=_watch, args=(reader, caught), daemon=True)
    previous = {number: signal.signal(number, stop) for number in caught}
    others = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(others)
        for number, handler in previous.items():
            signal.signal(number, handler)
        writer.close()
        watch.join()
        reader.close()
        came = _came[:1]
        _came.clear()
        for number in came:  # whoever has swallowed it
            raise Stopped(number)


def _watch(reader: socket.socket, caught: list[int]) -> None:
    """Ends the process when a signal has come and the main thread does not see to it."""
    while received := reader.recv(1):
        if received[0] in caught:
            _came.append(received[0])
            break
    reader.settimeout(_PATIENCE)
    with suppress(TimeoutError):
        while received:
            received = reader.recv(64)  # nothing when the other end is closed
    if received:
        end(_came[0])


def go_on() -> None:
    """Raises `Stopped` if Ctrl-C or SIGTERM has come, whoever has swallowed it."""
    if _came:
        raise Stopped(_came[0])


def end(number: int) -> NoReturn:
    """Ends the process after a signal, with its status and without what is half-done."""
    discard_drafts()
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"jaxsep: {'interrupted' if number == signal.SIGINT else 'terminated'}\n")
        sys.stderr.flush()
        sys.stdout.flush()
    os._exit(128 + number)  # threads that still compile would hold the process for half a minute


class _Patient:
    """A stream of text for which nothing is lost that cannot be written."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


@contextmanager
def voices(warn: Callable[[str], Any]) -> Iterator[None]:
    """Stdout and stderr on which names that cannot be shown are escaped, and stderr may be closed or full.

    Arguments:
        warn: hears what is odd about a recording.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # was closed before the process began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with redirect_stderr(_Patient(sys.stderr)), warnings.catch_warnings():
        warnings.simplefilter("always", AudioWarning)
        show = warnings.showwarning

        def show_warning(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            is_ours = issubclass(category, AudioWarning)
            warn(str(message)) if is_ours else show(message, category, *place, **more)

        warnings.showwarning = show_warning
        yield


def sentence(error: Exception) -> str:
    """What to say of an error, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "not enough memory"
    return " ".join(str(error).split()) or type(error).__name__


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
        # Without a home the name stays as it is, and nothing can be made there.
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache").replace("~", os.devnull)
        folder = cache or Path(caches) / "jaxsep"
        # A cache that cannot be written or read costs time only.
        warnings.filterwarnings("ignore", message=".*persistent compilation cache")
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))
            # Small ones, too: there are some fifty, and together they take seconds.
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
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

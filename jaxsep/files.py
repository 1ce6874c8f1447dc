"""Results that appear whole or not at all."""

import ctypes
import os
import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType

__all__ = [
    "AudioError",
    "AudioWarning",
    "OutputFolder",
    "discard_drafts",
    "native",
    "reason",
    "replacing",
    "write_reason",
]

#: What is being written, each with the folders that were made for it.
_drafts: dict[Path, list[Path]] = {}

#: Held while something takes its name, or must be written to its end.
_naming = threading.RLock()


class AudioError(ValueError):
    """A recording or an output place that cannot be used; the message is one sentence for the user.

    Example:
        >>> try:
        ...     jaxsep.read_audio("missing.wav")
        ... except jaxsep.AudioError as error:
        ...     print(error)
        missing.wav does not exist.
    """


class AudioWarning(UserWarning):
    """What is odd about a recording that can be used; the message is one sentence for the user."""


@contextmanager
def replacing(path: str | os.PathLike, *, durable: bool = False) -> Iterator[Path]:
    """A draft beside `path` that takes its name when the block ends, and is removed when the block raises.

    Arguments:
        path: an existing file is replaced in one step.
        durable: whether not even a power failure may leave a file that is not whole.

    Raises: `AudioError` for one sentence naming `path`, if nothing can be written there.
    """
    path = Path(path)
    draft = _hidden_sibling(path, path.suffix)  # by the suffix many libraries tell what to write
    try:
        with _naming if durable else nullcontext():
            _drafts[draft] = []
            draft.touch()  # not every library says why a file cannot be created
            yield draft
            if durable:
                with draft.open("rb+") as file:
                    os.fsync(file.fileno())
            os.replace(draft, path)
    except OSError as error:
        if error.filename in (draft, str(draft)):
            raise AudioError(f"{path} cannot be written: {reason(error)}.") from error
        raise
    finally:
        _discard(draft)


class OutputFolder:
    """Context manager for a folder of results that appears whole or not at all.

    The block writes into a hidden folder beside the final one, which takes the final name when the block ends
    and is removed when the block raises, `KeyboardInterrupt` included.

    Arguments:
        path: the final folder; missing parents are created.
        force: replace an existing folder, with all it contains, and only once the new one is complete.

    Raises: `AudioError` for one sentence, on entry: if the path is a file, a folder with content (without
    `force`) or a folder around the working or home folder, or if nothing can be written there. If the
    finished folder cannot take its name, the sentence says where the results are.

    Example:
        >>> with jaxsep.OutputFolder("separated") as folder:
        ...     jaxsep.write_audio(folder / "stem-1.wav", np.zeros(480), 48_000)
        >>> jaxsep.read_audio("separated/stem-1.wav", allow_silence=True)[0].shape
        (1, 480)
    """

    def __init__(self, path: str | os.PathLike, *, force: bool = False):
        self.path = Path(path).resolve()
        self.force = force

    def __enter__(self) -> Path:
        self._draft = _hidden_sibling(self.path)
        try:
            self._check_free()
            _drafts[self._draft] = [parent for parent in self.path.parents if not parent.exists()]
            self._draft.mkdir(parents=True)
        except OSError as error:
            _discard(self._draft)
            raise AudioError(f"The folder {self.path} cannot be written: {reason(error)}.") from error
        except BaseException:
            _discard(self._draft)
            raise
        return self._draft

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            _discard(self._draft)

    def discard(self) -> None:
        """Removes results that could not take their name."""
        shutil.rmtree(self._draft, ignore_errors=True)

    def _check_free(self) -> None:
        """Refuse a place that is taken, and one whose replacement would take the user's files with it."""
        home = Path(os.path.expanduser("~")).resolve()
        if any(place.is_relative_to(self.path) for place in (Path.cwd(), home)):
            raise AudioError(f"{self.path} is or contains the working or home folder; name another folder.")
        if self.path.is_dir():
            if not self.force and any(self.path.iterdir()):
                raise AudioError(
                    f"The folder {self.path} is not empty; name another or force its replacement."
                )
        elif self.path.exists():
            raise AudioError(f"{self.path} is a file; name a folder for the results.")

    def _publish(self) -> None:
        """Give the draft its final name, or say where it is: it may have taken hours."""
        with _naming:
            try:
                if self.force and self.path.is_dir():
                    _exchange(self._draft, self.path)
                else:
                    with suppress(
                        OSError
                    ):  # an empty folder makes way; not every system's rename replaces it
                        self.path.rmdir()
                    self._draft.rename(self.path)
                _drafts[self._draft] = []  # the folders around are those of the results now
            except OSError as error:
                _drafts.pop(self._draft, None)
                raise AudioError(
                    f"{self.path} cannot be written: {reason(error)}; the results are in {self._draft}."
                ) from error


def discard_drafts() -> None:
    """Removes all that is being written: the process ends, and nothing takes its name any more."""
    _naming.acquire(timeout=60)
    for draft in list(_drafts):
        _discard(draft)


def _discard(draft: Path) -> None:
    """Removes a draft, or what it has replaced, and the folders that were made for it alone."""
    if draft not in _drafts:
        return
    with suppress(OSError):
        draft.unlink() if draft.is_file() else shutil.rmtree(draft)
    _remove_empty(_drafts[draft])
    _drafts.pop(draft, None)


def _exchange(draft: Path, path: Path) -> None:
    """The draft of a folder and an older folder swap their names, in one step where the system can."""
    with suppress(OSError, AttributeError, TypeError):
        system, names = ctypes.CDLL(None), (os.fsencode(draft), os.fsencode(path))
        here, swap = -100, 2
        if sys.platform == "darwin":
            failed = system.renamex_np(*names, swap)
        else:
            failed = system.renameat2(here, names[0], here, names[1], swap)
        if not failed:
            return
    retired = _hidden_sibling(path)
    try:
        path.rename(retired)
        draft.rename(path)
        retired.rename(draft)
    except BaseException:
        if retired.exists():
            retired.rename(draft if path.exists() else path)
        raise


def _hidden_sibling(path: Path, suffix: str = "") -> Path:
    """A new name in the same folder, hence on the same file system, from which renaming is atomic."""
    return path.parent / f".jaxsep-{uuid.uuid4().hex}{suffix}"


def _remove_empty(folders: list[Path]) -> None:
    """Remove nested folders, the innermost first, up to the first that holds something."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def reason(error: Exception) -> str:
    """The cause in words, without the path and number that an OSError adds."""
    words = getattr(error, "strerror", None) or getattr(error, "error_string", None) or str(error)
    return words.rstrip(". ")


def write_reason(error: Exception, folder: str | os.PathLike) -> str:
    """The cause of a failed write in words; where a library has none, those of the system."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(2**20))
    except OSError as cause:
        return reason(cause)
    return reason(error)


def native(path: str | os.PathLike) -> str | bytes:
    """A path as libraries in C take it, which on most systems is bytes that need not be text."""
    return os.fsencode(path) if os.name == "posix" else os.fspath(path)

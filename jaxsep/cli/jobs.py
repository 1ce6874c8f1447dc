"""Many recordings: which of them this process takes, where their results go, and which are there already."""

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Job", "finished_document", "folder_name", "plan"]

#: What some system takes for a separator, a drive, a wildcard or a device.
_SPECIAL = re.compile(r'[\x00-\x1f<>:"/\\|?*]')
_DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\.|$)", re.IGNORECASE)


class Job(NamedTuple):
    """A recording and the folder for its results."""

    recording: Path
    folder: Path


def plan(recordings: Sequence[Path], output: Path, shard: str | None) -> list[Job]:
    """The jobs of one process, with a folder of `output` for each recording, named by `folder_name`.

    Arguments:
        recordings: in the same order for every process.
        output: folder of the folders.
        shard: "I/N" takes the I-th of every N recordings, I from 1 to N; None takes all.

    Raises: `ValueError` for recordings whose folders would be one on some system, for a folder that is a link
    out of `output`, and for anything else than such a shard.
    """
    jobs: dict[str, Job] = {}
    for recording in recordings:
        folder = output / folder_name(recording)
        if folder.resolve().parent != output.resolve():
            raise ValueError(f"{folder} leads out of {output}; remove the link, or name another folder.")
        # Some systems tell neither upper case from lower, nor a letter with an accent from the two signs.
        key = unicodedata.normalize("NFD", folder.name).casefold()
        if key in jobs:
            raise ValueError(
                f"{jobs[key].recording} and {recording} would share the folder {folder}; rename one of them."
            )
        jobs[key] = Job(recording, folder)
    number, count = (1, 1) if shard is None else _parse(shard)
    return list(jobs.values())[number - 1 :: count]


def folder_name(recording: Path) -> str:
    """The name of a file without its suffix, changed where it would not name a folder, and that very one.

    Dots and blanks at either end are left out: `..` is the folder around, a dot in front hides, and some
    systems ignore those at the end. What some system reserves is `_`, or follows it.

    Example:
        >>> [folder_name(Path(file)) for file in ("Suite 1: Air.wav", "...wav", "aux.wav")]
        ['Suite 1_ Air', '_', '_aux']
    """
    name = _SPECIAL.sub("_", recording.stem).strip(". ") or "_"
    return f"_{name}" if _DEVICES.match(name) else name


def _parse(shard):
    parts = shard.split("/")
    if len(parts) == 2 and all(part.isascii() and part.isdecimal() for part in parts):
        number, count = map(int, parts)
        if 1 <= number <= count:
            return number, count
    raise ValueError(f"--shard: expected I/N with 1 <= I <= N, such as 2/8, got {shard!r}.")


def finished_document(
    folder: Path, wanted: dict[str, Any], suffix: str, report: bool
) -> dict[str, Any] | None:
    """The document of a folder's results, if they are of a separation that was asked for in the same way.

    Arguments:
        folder: of the results, which appears complete or not at all.
        wanted: `num_instruments`, `seed`, `settings` and `input` that its document must have; of the input,
            what is known before it is read.
        suffix: of the stems.
        report: whether the listening page must be there.
    """
    try:
        document = json.loads((folder / "separation.json").read_text(encoding="utf-8"))
        given = {**{name: document[name] for name in wanted}, "input": {}}
        given["input"] = {name: document["input"][name] for name in wanted["input"]}
        files = [document["mixture"], *document["stems"]]
        files += [document["noise"]] if "noise" in document else []
    except (OSError, KeyError, TypeError, ValueError):
        return None
    # Through JSON, in which a tuple is a list.
    same = given == json.loads(json.dumps(wanted))
    there = all((folder / name).is_file() and name.endswith(suffix) for name in files)
    page = not report or (folder / "report.html").is_file()
    return document if same and there and page else None

"""What stands beside the harmonics in a library of instruments: names, ranges, licence; needs no JAX."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = ["SHIPPED", "About", "read_about", "unique_names"]

#: The library that ships with the package; its licence stands in the folder, too.
SHIPPED = Path(__file__).resolve().parents[1] / "data" / "instruments" / "instruments.npz"

#: Characters of a name, of a source and of a licence.
_LONGEST = 200


class About(NamedTuple):
    """What a library tells of its instruments.

    - `names`: one for each.
    - `ranges`: lowest and highest note of each, in semitones as MIDI counts them.
    - `source`, `licence`: where they come from, and under which licence that is.
    """

    names: tuple[str, ...]
    ranges: Float[np.ndarray, "instruments 2"]
    source: str = ""
    licence: str = ""

    def header(self) -> dict[str, Any]:
        """The same as values for JSON, which `read_about` understands."""
        return self._asdict() | {"names": list(self.names), "ranges": np.asarray(self.ranges).tolist()}


def read_about(path: str | os.PathLike) -> About:
    """Reads what the file of a library tells of its instruments. Nothing is unpickled.

    Raises: `ValueError`, one sentence, for anything else than a library.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as content:
            header = json.loads(str(content["header"]))
        ranges = np.array(header["ranges"], np.float32)
        about = About(tuple(header["names"]), ranges, header["source"], header["licence"])
        texts = [*about.names, about.source, about.licence]
        sensible = all(isinstance(text, str) and len(text) <= _LONGEST for text in texts)
        # Names stand in lists with commas between.
        sensible &= all(name.replace(" ", "").isalnum() for name in about.names)
        sensible &= ranges.shape == (len(about.names), 2) and len(set(about.names)) == len(about.names)
    except Exception:  # a damaged or hostile archive can raise nearly anything
        sensible = False
    if not sensible:
        raise ValueError(f"instruments: expected a library of named instruments, got {path}")
    return about


def unique_names(names: Sequence[str]) -> list[str]:
    """Names of which none occurs twice: the second violin is `violin 2`."""
    found: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in found:
            number += 1
            candidate = f"{name} {number}"
        found.append(candidate)
    return found

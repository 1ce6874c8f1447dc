"""What was found in every frame as a file of arrays, in both directions."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsep.separation.result import Separation
from jaxsep.tones.tones import Tones

__all__ = ["read_frames", "write_frames"]

_FORMAT, _VERSION = "jaxsep frames", 1

#: Arrays of a file: the kind of their numbers, and how many axes they have.
_TONES = dict.fromkeys(("amplitude", "fundamental", "width", "inharmonicity"), ("f", 2))
_TONES |= {"instrument": ("i", 2), "active": ("b", 2)}
_FRAMES = {"times": ("f", 1), "loss": ("f", 1), "confidence": ("f", 1)}


def write_frames(path: Path, separation: Separation) -> None:
    """Writes tones, times, losses and confidences as an `.npz` file of a JSON header and the arrays."""
    arrays = {name: np.asarray(getattr(separation.tones, name)) for name in _TONES}
    arrays |= {name: np.asarray(getattr(separation, name)) for name in _FRAMES}
    # A recording of one channel may have had an axis for it, or not.
    header = {"format": _FORMAT, "version": _VERSION, "stem_axes": separation.stems.ndim}
    with path.open("wb") as file:
        np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)


def read_frames(path: Path, num_instruments: int) -> dict[str, Any]:
    """Reads what `write_frames` wrote.

    Returns: `tones`, `times`, `loss` and `confidence` of a separation, and `stem_axes`, how many axes its
    stems had.

    Raises: `ValueError` for one sentence naming the file, for anything but such a file.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            header = json.loads(str(content["header"]))
            arrays = {name: content[name] for name in (*_TONES, *_FRAMES)}
        known = (
            header["format"] == _FORMAT and header["version"] == _VERSION and header["stem_axes"] in (2, 3)
        )
    except Exception:  # a damaged or hostile archive can raise nearly anything
        raise ValueError(f"{path} is not a file of frames written by jaxsep.") from None
    kinds = {name: (array.dtype.kind, array.ndim) for name, array in arrays.items()}
    shapes = {arrays[name].shape for name in _TONES}
    alike = kinds == _TONES | _FRAMES and len(shapes) == 1
    alike = alike and {arrays[name].size for name in _FRAMES} == {next(iter(shapes))[0]}
    if not (known and alike and _sensible(arrays, num_instruments)):
        raise ValueError(f"{path} holds no frames of this recording.")
    tones = Tones(**{name: jnp.asarray(arrays[name]) for name in _TONES})
    return {"tones": tones, "stem_axes": header["stem_axes"]} | {name: arrays[name] for name in _FRAMES}


def _sensible(arrays, num_instruments):
    active = arrays["active"]
    numbers = arrays["instrument"][active]
    finite = all(np.isfinite(arrays[name][active]).all() for name in _TONES)
    inside = np.all((numbers >= 0) & (numbers < num_instruments))
    return finite and inside and np.isfinite(arrays["times"]).all() and np.all(np.diff(arrays["times"]) > 0)

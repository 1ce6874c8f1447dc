"""The documents of results as text: JSON, written, read and checked; needs no JAX."""

import json
from pathlib import Path
from typing import Any

__all__ = ["read_document", "to_json"]


def to_json(document: dict[str, Any] | list[dict[str, Any]]) -> str:
    """Text of a document; a number that is not finite raises `ValueError`, as JSON has none."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(
        "utf-8", "backslashreplace"
    ).decode()  # bytes of names that are no text, as JSON has them


def read_document(folder: Path) -> dict[str, Any]:
    """Reads `separation.json`, and checks what the other files are read by.

    Raises: `ValueError` for one sentence, if it is missing or something else.
    """
    path = folder / "separation.json"
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one that jaxsep separate wrote.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        tracks = [document["mixture"], *document["stems"]]
        names = [*tracks, *([document["noise"]] if "noise" in document else [])]
        instruments = document.get("names", document["stems"])
        known = document["format"] == "jaxsep separation" and document["version"] == 1
        # A name with a folder in it would lead elsewhere.
        plain = len(tracks) > 1 and all(name and Path(name).name == name for name in names)
        known &= len(instruments) == len(tracks) - 1 and all(isinstance(name, str) for name in instruments)
        spacing = document["frame_spacing_s"]
        sensible = isinstance(spacing, float) and spacing > 0 and isinstance(document["input"]["file"], str)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; name a folder that jaxsep separate wrote.") from None
    except (KeyError, TypeError, ValueError) as error:
        what = f": {error} is missing" if isinstance(error, KeyError) else ""
        raise ValueError(f"{path} is not the document of a separation of this version{what}.") from None
    if not (known and plain and sensible):
        raise ValueError(f"{path} is not the document of a separation of this version.")
    return document

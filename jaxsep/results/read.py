"""What a separation left in its folder, read back."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxsep.audio import read_audio
from jaxsep.results.document import TONE_COLUMNS
from jaxsep.signal.gaussians import SINUSOID_WIDTH
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

__all__ = ["Results", "read_document", "read_results", "read_tones"]


@dataclasses.dataclass(frozen=True)
class Results:
    """What a separation left in its folder.

    - `document`: content of `separation.json`.
    - `mixture`: `[channels, samples]`.
    - `stems`: `[instruments, channels, samples]`.
    - `sample_rate`: in Hz.
    - `tones`: `[frames, tones]`, amplitudes in the recording's units, fundamentals in Hz; widths are those of
      a sinusoid, since the table has none.
    - `times`: centre of each frame in seconds.
    - `dictionary`: harmonics of each instrument.
    """

    document: dict[str, Any]
    mixture: Float[np.ndarray, "channels samples"]
    stems: Float[np.ndarray, "instruments channels samples"]
    sample_rate: int
    tones: Tones
    times: Float[np.ndarray, " frames"]
    dictionary: Dictionary


def read_results(folder: Path) -> Results:
    """Reads the folder that `jaxsep separate` wrote.

    Raises: `ValueError`, one sentence, for a folder without results, and for a file that is missing, damaged,
    or does not belong to the others.
    """
    document = read_document(folder)
    mixture, sample_rate = read_audio(folder / document["mixture"])
    stems = []
    for name in document["stems"]:
        samples, rate = read_audio(folder / name, allow_silence=True)
        if (samples.shape, rate) != (mixture.shape, sample_rate):
            raise ValueError(
                f"{folder / name} has another rate, length or number of channels than the mixture."
            )
        stems.append(samples)
    dictionary = Dictionary.load(folder / "dictionary.npz")
    if dictionary.num_instruments != len(stems):
        raise ValueError(
            f"{folder / 'dictionary.npz'} has {dictionary.num_instruments} instruments, "
            f"expected {len(stems)}, as there are stems."
        )
    spacing = document["frame_spacing_s"]
    num_frames = 1 + int(np.ceil(mixture.shape[1] / sample_rate / spacing))
    tones = read_tones(folder / "tones.csv", spacing, num_frames, len(stems))
    times = np.arange(num_frames) * spacing
    return Results(document, mixture, np.stack(stems), sample_rate, tones, times, dictionary)


def read_document(folder: Path) -> dict[str, Any]:
    """Reads `separation.json`, and checks what the other files are read by.

    Raises: `ValueError`, one sentence, if it is missing or something else.
    """
    path = folder / "separation.json"
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one that jaxsep separate wrote.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        names = [document["mixture"], *document["stems"]]
        known = document["format"] == "jaxsep separation" and document["version"] == 1
        # A name with a folder in it would lead elsewhere.
        plain = len(names) > 1 and all(name and Path(name).name == name for name in names)
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


def read_tones(path: Path, spacing: float, num_frames: int, num_instruments: int) -> Tones:
    """Reads what `write_tones` wrote; the table has no widths, and the tones have that of a sinusoid.

    Arguments:
        path: the CSV file.
        spacing: seconds between frames.
        num_frames, num_instruments: of the recording.

    Raises: `ValueError`, one sentence naming the file, for anything but such a table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        table = np.array(rows, float).reshape(-1, len(TONE_COLUMNS))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist.") from None
    except (ValueError, csv.Error):
        raise ValueError(f"{path} is not a table of tones.") from None
    time, number, fundamental, amplitude, inharmonicity = table.T
    frame, instrument = np.round(time / spacing), number - 1
    inside = (frame >= 0) & (frame < num_frames) & np.isin(instrument, np.arange(num_instruments))
    if tuple(header) != TONE_COLUMNS or not (inside.all() and np.all(np.isfinite(table))):
        raise ValueError(f"{path} is not a table of tones of this recording.")
    order = np.argsort(frame, kind="stable")
    frame = frame[order].astype(int)
    # The first row of its frame has slot 0, the next slot 1, …
    slot = np.arange(frame.size) - np.searchsorted(frame, frame)
    shape = num_frames, int(slot.max(initial=0)) + 1

    def placed(values, default, dtype):
        out = np.full(shape, default, dtype)
        out[frame, slot] = values[order]
        return jnp.asarray(out)

    return Tones(
        amplitude=placed(amplitude, 0, np.float32),
        fundamental=placed(fundamental, 0, np.float32),
        width=jnp.full(shape, SINUSOID_WIDTH, np.float32),
        inharmonicity=placed(inharmonicity, 0, np.float32),
        instrument=placed(instrument, 0, np.int32),
        active=placed(np.ones(frame.size, bool), False, bool),
    )

"""The folder of a separation: its tracks are written here, and all of it is read back."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import soundfile
from jaxtyping import Float

from jaxsep.audio import read_audio
from jaxsep.report.tables import TONE_COLUMNS
from jaxsep.separators.separation import Separation
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import SINUSOID_WIDTH, Tones

__all__ = ["Results", "Tracks", "read_document", "read_results", "read_tones", "write_tracks"]


def write_tracks(
    folder: Path, samples: np.ndarray, separation: Separation, suffix: str, subtype: str
) -> dict[str, Any]:
    """Writes the mixture `[samples]` or `[channels, samples]` and the stems; see `Tracks`."""
    with Tracks(folder, len(separation.stems), separation.sample_rate, suffix, subtype) as tracks:
        tracks.append(samples, separation.stems)
    return tracks.written


class Tracks:
    """Context manager that writes mixture and stems, in one piece or in many.

    Integers cannot hold more than full scale, which a stem may exceed where others cancel it: all tracks are
    then lowered alike, when the last piece is known.

    Arguments:
        folder: an existing one.
        num_instruments: how many stems there are.
        sample_rate: in Hz.
        suffix, subtype: as for `write_audio`.

    Afterwards `written` is what the document says of them: the names `mixture` and `stems`, and the `gain` in
    dB.
    """

    def __init__(self, folder: Path, num_instruments: int, sample_rate: int, suffix: str, subtype: str):
        names = ["mixture", *(f"stem-{number}" for number in range(1, num_instruments + 1))]
        self._paths = [folder / f"{name}{suffix}" for name in names]
        self._rate, self._subtype = sample_rate, subtype
        self._drafts: list[soundfile.SoundFile] = []
        self._peak = 0.0
        self.written: dict[str, Any] = {}

    def __enter__(self) -> "Tracks":
        return self

    def append(self, mixture: np.ndarray, stems: np.ndarray) -> None:
        """A piece of the mixture, `[samples]` or `[channels, samples]`, and of the stems."""
        tracks = [np.atleast_2d(track) for track in (mixture, *stems)]
        if not self._drafts:
            options = {"samplerate": self._rate, "channels": len(tracks[0]), "subtype": "FLOAT"}
            self._drafts = [
                soundfile.SoundFile(_draft(path), "w", format="RF64", **options) for path in self._paths
            ]
        for draft, track in zip(self._drafts, tracks, strict=True):
            self._peak = max(self._peak, float(np.abs(track).max()))
            draft.write(track.T)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for draft in self._drafts:
            draft.close()
        gain = 1.0 if self._subtype == "FLOAT" or self._peak <= 1 else 1 / self._peak
        if kind is None:
            for path in self._paths:
                self._convert(path, gain)
        for path in self._paths:
            _draft(path).unlink(missing_ok=True)
        mixture, *stems = (path.name for path in self._paths)
        decibels = round(20 * float(np.log10(gain)), 3)
        self.written = {"mixture": mixture, "stems": stems, "gain_db": decibels}

    def _convert(self, path, gain):
        with soundfile.SoundFile(_draft(path)) as draft:
            # What is longer than WAV can say is RF64, which most programs read as well.
            large = path.suffix == ".wav" and draft.frames * draft.channels * 4 > _LARGEST_WAV
            kind = "RF64" if large else path.suffix[1:].upper()
            options = {"samplerate": self._rate, "channels": draft.channels, "subtype": self._subtype}
            with soundfile.SoundFile(path, "w", format=kind, **options) as target:
                for block in draft.blocks(2**18, dtype="float32"):
                    # Rounding may pass full scale.
                    target.write(np.clip(gain * block, -1, 1) if gain < 1 else block)


#: Bytes of samples that the header of a WAV file can tell.
_LARGEST_WAV = 2**32 - 2**16


def _draft(path):
    return path.parent / f".{path.name}.draft"


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

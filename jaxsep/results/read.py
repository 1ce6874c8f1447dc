"""What a separation left in its folder, read back."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxsep.audio import read_audio
from jaxsep.notes.note import Note
from jaxsep.notes.notes import follow_notes
from jaxsep.notes.reading import read_score
from jaxsep.notes.score import default_name
from jaxsep.results.schema import read_document
from jaxsep.results.tones import read_tones
from jaxsep.separation.found import Earlier
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.instruments import Instruments
from jaxsep.tones.library import unique_names
from jaxsep.tones.tones import Tones

__all__ = ["Results", "read_earlier", "read_instruments", "read_results"]

#: Semitones beyond the notes of a recording that an instrument may play in another one.
_BEYOND = 12


@dataclasses.dataclass(frozen=True)
class Results:
    """What a separation left in its folder.

    - `document`: content of `separation.json`.
    - `mixture`: `[channels, samples]`.
    - `stems`: `[instruments, channels, samples]`.
    - `noise`: `[channels, samples]`, if it was kept apart.
    - `sample_rate`: in Hz.
    - `tones`: `[frames, tones]`, amplitudes in the recording's units, fundamentals in Hz; widths are those of
      a sinusoid, since the table has none.
    - `times`: centre of each frame in seconds.
    - `dictionary`: harmonics of each instrument.
    - `names`: of the instruments.
    - `notes`: of all instruments, with the pitch of their tones.
    """

    document: dict[str, Any]
    mixture: Float[np.ndarray, "channels samples"]
    stems: Float[np.ndarray, "instruments channels samples"]
    sample_rate: int
    tones: Tones
    times: Float[np.ndarray, " frames"]
    dictionary: Dictionary
    names: list[str]
    notes: list[Note]
    noise: Float[np.ndarray, "channels samples"] | None = None


def read_results(folder: Path) -> Results:
    """Reads the folder that `jaxsep separate` wrote.

    Raises: `ValueError` for one sentence, for a folder without results, and for a file that is missing,
    damaged, or does not belong to the others.
    """
    document = read_document(folder)
    mixture, sample_rate = read_audio(folder / document["mixture"])

    def track(name):
        samples, rate = read_audio(folder / name, allow_silence=True)
        if (samples.shape, rate) != (mixture.shape, sample_rate):
            raise ValueError(
                f"{folder / name} has another rate, length or number of channels than the mixture."
            )
        return samples

    stems = np.stack([track(name) for name in document["stems"]])
    noise = track(document["noise"]) if "noise" in document else None
    dictionary, tones, times, listed = _found(folder, document, mixture.shape[1] / sample_rate)
    names = document.get("names") or [default_name(number) for number in range(len(stems))]
    curves = follow_notes(listed, tones, times, dictionary)
    pairs = zip(listed, curves, strict=True)
    notes = [dataclasses.replace(note, times=curve.times, bend=curve.bend) for note, curve in pairs]
    return Results(document, mixture, stems, sample_rate, tones, times, dictionary, names, notes, noise)


def read_earlier(folder: Path) -> Earlier:
    """Reads what a later separation of the same recording takes over; raises what `read_results` does."""
    document = read_document(folder)
    about = document["input"]
    dictionary, tones, times, notes = _found(folder, document, about["samples"] / about["sample_rate"])
    return Earlier.read(tones, times, dictionary, notes)


def read_instruments(folder: str | os.PathLike) -> Instruments:
    """The instruments of an earlier separation that have names.

    Arguments:
        folder: that `jaxsep separate` or `Separation.save` wrote. Their ranges are taken to be an octave
            wider, either way, than what they play there.

    Raises: `ValueError` where no instrument has a name, and what `Separation.load` raises.

    Example:
        >>> melody = 0.1 * np.sin(2 * np.pi * 440 * np.arange(22050) / 44100)
        >>> note = dict(level=-20.0, times=np.array([0.25]), bend=np.array([69.0]))
        >>> note = jaxsep.Note(instrument=0, onset=0.0, offset=0.5, pitch=69.0, **note)
        >>> score = jaxsep.Score([note], names=["whistle"])
        >>> key = jax.random.key(0)
        >>> whole = jaxsep.separate(melody, 44100, notes=score, notes_are="all", key=key)
        >>> whole.save("out")
        >>> jaxsep.read_instruments("out").names
        ('whistle',)
    """
    folder = Path(folder)
    document = read_document(folder)
    about = document["input"]
    dictionary, _, _, notes = _found(folder, document, about["samples"] / about["sample_rate"])
    names = document.get("names") or []
    named = [number for number, name in enumerate(names) if name != default_name(number)]
    if not named:
        raise ValueError(f"instruments: expected some with names in {folder}, got numbers alone")
    ranges = []
    for number in range(len(names)):
        pitches = [note.pitch for note in notes if note.instrument == number] or [0, 127]
        ranges.append([min(pitches) - _BEYOND, max(pitches) + _BEYOND])
    everyone = Instruments(dictionary, tuple(unique_names(names)), np.array(ranges, np.float32), folder.name)
    return everyone.chosen([everyone.names[number] for number in named])


def _found(folder, document, duration):
    """Dictionary, tones with the times of their frames, and notes."""
    number = len(document["stems"])
    dictionary = Dictionary.load(folder / "dictionary.npz")
    if dictionary.num_instruments != number:
        raise ValueError(
            f"{folder / 'dictionary.npz'} has {dictionary.num_instruments} instruments, "
            f"expected {number}, as there are stems."
        )
    spacing = document["frame_spacing_s"]
    num_frames = 1 + int(np.ceil(duration / spacing))
    tones = read_tones(folder / "tones.csv", spacing, num_frames, number)
    score = read_score(folder / "notes.csv")
    if score.num_instruments > number:
        raise ValueError(
            f"{folder / 'notes.csv'} has {score.num_instruments} instruments, "
            f"expected at most {number}, as there are stems."
        )
    return dictionary, tones, np.arange(num_frames) * spacing, score.notes

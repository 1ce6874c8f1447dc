"""Notes: the unit in which people read, correct and hand over what was found; needs no JAX."""

import dataclasses
import re

import numpy as np
from jaxtyping import Float

__all__ = ["Note", "note_name", "read_frequency"]

_NAMES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")


@dataclasses.dataclass(frozen=True)
class Note:
    """A note of one instrument.

    - `instrument`: row of the dictionary, from 0.
    - `onset`, `offset`: in seconds.
    - `pitch`: median over its tones, in semitones as MIDI counts them: 69 is 440 Hz.
    - `level`: median over its tones, in dB; a sinusoid of amplitude 1 has 0.
    - `times`, `bend`: centres of its frames in seconds, and the pitch there.
    - `held`: whether it is known to be right, in a list that is given to a separation.
    - `confidence`: how sure the search is of it, in units of the mean loss of a frame, as `Separation` has it
      for frames; None if nothing was searched.

    Example:
        >>> curve = {"times": np.array([0.5, 1.0]), "bend": np.array([69.0, 69.2])}
        >>> note = jaxsep.Note(instrument=0, onset=0.5, offset=1.0, pitch=69.1, level=-20.0, **curve)
        >>> note.offset - note.onset
        0.5
    """

    instrument: int
    onset: float
    offset: float
    pitch: float
    level: float
    times: Float[np.ndarray, " frames"]
    bend: Float[np.ndarray, " frames"]
    held: bool = False
    confidence: float | None = None


def note_name(pitch: float | int) -> str:
    """Name of the nearest note of the tempered scale, such as `C♯5`."""
    number = round(float(pitch))
    return f"{_NAMES[number % 12]}{number // 12 - 1}"


#: A note as people write it: letter, accidental, octave.
_WRITTEN = re.compile(r"([A-G])([#♯b♭]?)(-?\d+)", re.IGNORECASE)


def read_frequency(text: str) -> float:
    """Frequency in Hz that is written as a number, or as a note of the tempered scale with A4 at 440 Hz.

    Raises: `ValueError` for anything else.

    Example:
        >>> read_frequency("A0"), round(read_frequency("Bb3"), 2), read_frequency("196")
        (27.5, 233.08, 196.0)
    """
    text = text.strip()
    if note := _WRITTEN.fullmatch(text):
        letter, accidental, octave = note.groups()
        sign = {"#": 1, "♯": 1, "b": -1, "♭": -1}.get(accidental.lower(), 0)
        number = _NAMES.index(letter.upper()) + sign + 12 * (int(octave) + 1)
        return 440 * 2 ** ((number - 69) / 12)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected Hz or a note such as A0, C#4 or Bb3, got {text!r}") from None

"""Notes: the unit in which people read, correct and hand over what was found; needs no JAX."""

import dataclasses

import numpy as np
from jaxtyping import Float

__all__ = ["Note", "note_name"]

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

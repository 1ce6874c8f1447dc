"""Tones as a table, in both directions."""

import csv
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxsep.separation.result import Separation
from jaxsep.tones.tones import Tones

__all__ = ["TONE_COLUMNS", "read_tones", "write_tones"]

#: Columns of the table of tones.
TONE_COLUMNS = ("time_s", "instrument", "f0_hz", "amplitude", "inharmonicity")


def write_tones(path: str | os.PathLike, separation: Separation) -> None:
    """Writes every tone that sounds as a row of a CSV file, by time, then instrument, then pitch.

    The columns are the centre of the frame in seconds, the number of the instrument (from 1, as the stems),
    the natural fundamental in Hz, the amplitude, by which the dictionary's harmonics are multiplied to give
    those of the spectrogram (a sinusoid of amplitude 1 has ½ there), and the inharmonicity b of
    `f_h = f_0 · h · sqrt(1 + b h²)`.
    """
    tones = separation.tones
    frame, slot = np.nonzero(np.asarray(tones.active))
    picked = (tones.instrument, tones.fundamental, tones.amplitude, tones.inharmonicity)
    instrument, fundamental, amplitude, inharmonicity = (np.asarray(values)[frame, slot] for values in picked)
    time = np.asarray(separation.times)[frame]
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(TONE_COLUMNS)
        for n in np.lexsort((fundamental, instrument, time)):
            table.writerow(
                [
                    f"{time[n]:.5f}",
                    instrument[n] + 1,
                    f"{fundamental[n]:.4f}",
                    f"{amplitude[n]:.6g}",
                    f"{inharmonicity[n]:.4g}",
                ]
            )


def read_tones(path: Path, spacing: float, num_frames: int, num_instruments: int) -> Tones:
    """Reads what `write_tones` wrote; the table has no widths, and the tones have that of a sinusoid.

    Arguments:
        path: the CSV file.
        spacing: seconds between frames.
        num_frames, num_instruments: of the recording.

    Raises: `ValueError` for one sentence naming the file, for anything but such a table.
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

    return Tones.plain(
        placed(amplitude, 0, np.float32),
        placed(fundamental, 0, np.float32),
        placed(instrument, 0, np.int32),
        placed(np.ones(frame.size, bool), False, bool),
        inharmonicity=placed(inharmonicity, 0, np.float32),
    )

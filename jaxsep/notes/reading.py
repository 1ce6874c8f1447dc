"""Notes from files: tables as this package writes them, and MIDI."""

import csv
import dataclasses
import io
import math
import os
from pathlib import Path

from jaxsep.notes.midi import MidiError, read_midi
from jaxsep.notes.score import Rest, Score, default_name, plain_note

__all__ = ["read_notes", "read_score"]

#: Columns that a table must have.
_NEEDED = ("onset_s", "offset_s", "instrument", "pitch")

#: Bytes of a file, and instruments in a table: more is surely a mistake.
_MOST_BYTES, _MOST_INSTRUMENTS = 2**24, 99

#: What a column of yes and no may hold.
_YES, _NO = ("yes", "true", "1"), ("no", "false", "0", "")


def read_notes(path: str | os.PathLike) -> Score:
    """Reads the notes of a recording from a table or a MIDI file.

    A **table** (CSV) has a header and a row for every note, as `notes.csv` of a separation: `onset_s` and
    `offset_s` in seconds, `instrument` from 1, and `pitch` in semitones as MIDI counts them, in any order of
    the columns. `level_db`, `confidence`, `instrument_name` and `held` (yes or no; without the column all
    are held) may be there; others are ignored. A row without a pitch is a rest.

    Of a **MIDI file** of format 0 or 1 each track that plays is an instrument, called as the track; where
    there is only one, each channel of it. The pitch wheel is followed, the sustain pedal holds notes, tempo
    maps and SMPTE times are understood. Percussion (channel 10) is left out with a warning.

    Either way notes of no length are left out.

    Arguments:
        path: the file; what it is is told by its content.

    Raises: `ValueError`, one sentence, for a file that is missing, something else or damaged, and one without
    any note.

    Example:
        >>> note = dict(level=-20.0, times=np.array([0.5]), bend=np.array([69.0]))
        >>> note = jaxsep.Note(instrument=0, onset=0.5, offset=1.0, pitch=69.0, **note)
        >>> jaxsep.write_midi("notes.mid", [note], num_instruments=1)
        >>> [(note.onset, note.pitch) for note in jaxsep.read_notes("notes.mid").notes]
        [(0.5, 69.0)]
    """
    score = read_score(path)
    if not score.notes:
        raise ValueError(f"notes: expected at least one note, got none in {path}")
    return score


def read_score(path: str | os.PathLike) -> Score:
    """As `read_notes`, also where there are none."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"notes: {path} cannot be read: {error.strerror or error}") from None
    if len(content) > _MOST_BYTES:
        raise ValueError(f"notes: expected a file of at most {_MOST_BYTES >> 20} MiB, got more in {path}")
    try:
        return read_midi(content) if content[:4] in (b"MThd", b"RIFF") else _read_table(content)
    except (MidiError, _TableError) as error:
        raise ValueError(f"notes: {error} in {path}") from None


class _TableError(ValueError):
    """What is wrong with a table; `read_notes` says with which."""


def _read_table(content):
    try:
        text = content.decode("utf-8-sig")
        # Where the comma is the sign before decimals, programs put semicolons between columns.
        semicolons = ";" in text.split("\n", 1)[0]
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=";" if semicolons else ","))
    except (UnicodeDecodeError, csv.Error):
        raise _TableError("expected a table of notes or a MIDI file, got something else") from None
    header = [name.strip() for name in rows[0]] if rows else []
    if not set(_NEEDED) <= set(header):
        got = ", ".join(header)[:80] or "nothing"
        raise _TableError(f"expected the columns {', '.join(_NEEDED)}, got {got!r}")
    notes, rests, names = [], [], {}
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
        value = lambda name, cells=cells, number=number: _number(cells, name, number, semicolons)
        onset, offset, instrument = value("onset_s"), value("offset_s"), value("instrument")
        if instrument not in range(1, _MOST_INSTRUMENTS + 1):
            raise _TableError(f"expected an instrument from 1 on in row {number}, got {instrument:g}")
        if not offset >= onset:
            raise _TableError(f"expected an offset after the onset in row {number}, got {offset:g} s")
        instrument = int(instrument) - 1
        if name := cells.get("instrument_name"):
            names[instrument] = name
        if offset == onset:
            continue
        if not cells.get("pitch"):
            rests.append(Rest(instrument, onset, offset))
            continue
        level = value("level_db") if cells.get("level_db") else 0.0
        held = _truth(cells.get("held", "yes"), number)
        note = plain_note(instrument, onset, offset, value("pitch"), level, held)
        confidence = value("confidence") if cells.get("confidence") else None
        notes.append(dataclasses.replace(note, confidence=confidence))
    last = max([event.instrument for event in (*notes, *rests)] + list(names), default=-1)
    return Score(notes, [names.get(n, default_name(n)) for n in range(last + 1)], rests)


def _number(cells, name, row, semicolons):
    text = cells.get(name, "")
    try:
        value = float(text.replace(",", ".") if semicolons else text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _TableError(f"expected a number as {name} in row {row}, got {text[:40]!r}")
    return value


def _truth(text, row):
    if text.lower() not in _YES + _NO:
        raise _TableError(f"expected yes or no as held in row {row}, got {text[:40]!r}")
    return text.lower() in _YES

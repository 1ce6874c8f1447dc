"""Notes as files for other programs: tables, labels and MIDI."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import mido
import numpy as np

from jaxsep.notes.note import Note, note_name
from jaxsep.notes.score import default_name

__all__ = ["NOTE_COLUMNS", "write_labels", "write_layer", "write_midi", "write_note_files", "write_notes"]

#: Columns of the table of notes.
NOTE_COLUMNS = ("onset_s", "offset_s", "instrument", "pitch", "name", "level_db")

#: 1920 ticks per second: at the usual 120 beats per minute, a beat of 960 ticks.
_TICKS_PER_BEAT, _TEMPO = 960, 500_000
_TICKS_PER_SECOND = _TICKS_PER_BEAT * 1e6 / _TEMPO

#: Semitones that the pitch wheel reaches either way: every synthesiser's default.
_BEND_RANGE = 2
#: Steps of the wheel that are worth a message: 2 cents.
_BEND_STEP = 0.02 / _BEND_RANGE * 8192

#: All channels but the one of percussion.
_CHANNELS = tuple(n for n in range(16) if n != 9)

#: Sustained sounds of General MIDI that are easy to tell apart; the true instruments are unknown.
_PROGRAMS = (73, 42, 71, 56, 70, 40)  # flute, cello, clarinet, trumpet, bassoon, violin


def write_note_files(folder: Path, notes: Sequence[Note], names: Sequence[str]) -> None:
    """Writes `notes.csv`, `notes.mid`, and `audacity-N.txt` and `sonic-visualiser-N.csv` for instrument N."""
    write_notes(folder / "notes.csv", notes, names)
    write_midi(folder / "notes.mid", notes, len(names), names=names)
    for instrument in range(len(names)):
        own = [note for note in notes if note.instrument == instrument]
        write_labels(folder / f"audacity-{instrument + 1}.txt", own)
        write_layer(folder / f"sonic-visualiser-{instrument + 1}.csv", own)


def write_notes(path: str | os.PathLike, notes: Iterable[Note], names: Sequence[str] = ()) -> None:
    """Writes every note as a row of a CSV file, which `read_notes` reads.

    The columns are onset and offset in seconds, the number of the instrument (from 1, as the stems), the
    pitch in semitones as MIDI counts them, with cents after the point, the name of the nearest note of the
    tempered scale, and the level in dB; then the confidence, if there is any, and the name of the instrument,
    where `names` are their own.
    """
    notes = list(notes)
    doubted = any(note.confidence is not None for note in notes)
    named = any(name != default_name(number) for number, name in enumerate(names))
    rows = [
        (
            f"{note.onset:.4f}",
            f"{note.offset:.4f}",
            note.instrument + 1,
            f"{note.pitch:.2f}",
            note_name(note.pitch),
            f"{note.level:.1f}",
            *(["" if note.confidence is None else f"{note.confidence:.2f}"] if doubted else []),
            *([names[note.instrument]] if named else []),
        )
        for note in notes
    ]
    header = [*NOTE_COLUMNS, *(["confidence"] if doubted else []), *(["instrument_name"] if named else [])]
    _write_rows(path, [header, *rows], ",")


def write_labels(path: str | os.PathLike, notes: Iterable[Note]) -> None:
    """Writes a label track of Audacity: onset and offset in seconds and the name, separated by tabs."""
    _write_rows(path, [(f"{n.onset:.6f}", f"{n.offset:.6f}", note_name(n.pitch)) for n in notes], "\t")


def write_layer(path: str | os.PathLike, notes: Iterable[Note]) -> None:
    """Writes a note layer of Sonic Visualiser, without a header, as it exports them itself.

    The columns are onset in seconds, pitch in semitones as MIDI counts them, duration in seconds, level from
    0 to 1, and the name.
    """
    notes = list(notes)
    velocities = _velocities(notes)
    rows = [
        (
            f"{note.onset:.6f}",
            f"{note.pitch:.3f}",
            f"{note.offset - note.onset:.6f}",
            f"{velocity / 127:.3f}",
            note_name(note.pitch),
        )
        for note, velocity in zip(notes, velocities, strict=True)
    ]
    _write_rows(path, rows, ",")


def _write_rows(path, rows, delimiter):
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


def write_midi(
    path: str | os.PathLike, notes: Sequence[Note], num_instruments: int, *, names: Sequence[str] = ()
) -> None:
    """Writes a standard MIDI file of type 1 with a track for each instrument.

    A note is the nearest key, and the pitch wheel, within ± 2 semitones, follows its bend. Notes of an
    instrument that overlap have different channels as long as there are enough, since a channel has one
    wheel. The loudest note has velocity 127, and 40 dB are a factor of ten.

    Arguments:
        path: the file.
        notes: in any order.
        num_instruments: at least 1; instruments without notes have an empty track.
        names: of the instruments, for their tracks; by default `instrument 1` and so on.

    Example:
        >>> curve = {"times": np.array([0.5, 1.0]), "bend": np.array([69.0, 69.2])}
        >>> note = jaxsep.Note(instrument=0, onset=0.5, offset=1.0, pitch=69.1, level=-20.0, **curve)
        >>> jaxsep.write_midi("notes.mid", [note], num_instruments=1)
    """
    file = mido.MidiFile(type=1, ticks_per_beat=_TICKS_PER_BEAT, charset="utf-8")
    file.tracks.append(mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=_TEMPO)]))
    velocities = _velocities(notes)
    for instrument in range(num_instruments):
        own = sorted(
            (pair for pair in zip(notes, velocities, strict=True) if pair[0].instrument == instrument),
            key=lambda pair: pair[0].onset,
        )
        name = names[instrument] if names else default_name(instrument)
        file.tracks.append(_track(name, instrument, num_instruments, own))
    file.save(path)


def _velocities(notes):
    """Velocity v of each note, of which General MIDI says that levels are 40 log10(v / 127) dB."""
    levels = np.array([note.level for note in notes], float)
    return np.clip(np.round(127 * 10 ** ((levels - levels.max(initial=-np.inf)) / 40)), 1, 127).astype(int)


def _track(name, instrument, num_instruments, notes):
    channels = _CHANNELS[instrument % len(_CHANNELS) :: num_instruments]
    name = mido.MetaMessage("track_name", name=name)
    program = _PROGRAMS[instrument % len(_PROGRAMS)]
    # What takes place at the same tick: the end of a note, then the wheel, then the next note.
    events = []
    free = dict.fromkeys(channels, -1)  # the tick from which each channel is free
    for note, velocity in notes:
        start = _tick(note.onset)
        stop = max(start + 1, _tick(note.offset))
        channel = next((c for c in channels if free[c] <= start), min(channels, key=free.get))
        free[channel] = max(free[channel], stop)
        key = int(np.clip(round(note.pitch), 0, 127))
        events += _bends(note, key, start, stop, channel)
        events.append((start, 2, mido.Message("note_on", channel=channel, note=key, velocity=int(velocity))))
        events.append((stop, 0, mido.Message("note_off", channel=channel, note=key, velocity=0)))
    used = sorted({event[2].channel for event in events}) or channels[:1]
    setup = [message for channel in used for message in _setup(channel, program)]
    events.sort(key=lambda event: event[:2])
    # Further instruments than channels have those of another port.
    port = mido.MetaMessage("midi_port", port=instrument // len(_CHANNELS))
    track, now = mido.MidiTrack([name, *[port] * (port.port > 0), *setup]), 0
    for tick, _, message in events:
        track.append(message.copy(time=tick - now))
        now = tick
    return track


def _setup(channel, program):
    """The sound of a channel, and the range of its wheel (registered parameter 0)."""
    controls = ((101, 0), (100, 0), (6, _BEND_RANGE), (38, 0), (101, 127), (100, 127))
    yield mido.Message("program_change", channel=channel, program=program)
    for control, value in controls:
        yield mido.Message("control_change", channel=channel, control=control, value=value)


def _bends(note, key, start, stop, channel):
    """Messages of the wheel while a note lasts, where it moves noticeably."""
    wheel = np.clip(np.round((np.asarray(note.bend) - key) / _BEND_RANGE * 8192), -8192, 8191)
    last = None
    for tick, value in zip(np.maximum(start, _tick(note.times)), wheel, strict=True):
        if (last is None or abs(value - last) >= _BEND_STEP) and tick < stop:
            when = start if last is None else int(tick)
            yield when, 1, mido.Message("pitchwheel", channel=channel, pitch=int(value))
            last = value


def _tick(seconds):
    return np.round(np.asarray(seconds) * _TICKS_PER_SECOND).astype(int)

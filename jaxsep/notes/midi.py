"""MIDI files of any program as notes."""

import io
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import mido
import numpy as np

from jaxsep.files import AudioWarning
from jaxsep.notes.note import Note
from jaxsep.notes.score import Score, default_name
from jaxsep.tones.library import unique_names

__all__ = ["MidiError", "read_midi"]

#: The channel of percussion, counted from 0.
_PERCUSSION = 9

#: Numbers of controllers: data (coarse, fine), pedal, parameter (fine, coarse), and all that ends every note.
_DATA, _DATA_FINE, _PEDAL, _PARAMETER_FINE, _PARAMETER = 6, 38, 64, 100, 101
_SILENCERS = (120, 123, 124, 125, 126, 127)


class MidiError(ValueError):
    """What is wrong with a MIDI file."""


def read_midi(content: bytes) -> Score:
    """The notes of a MIDI file; `read_notes` says how it is understood.

    Raises: `MidiError`, with what was expected and what was found.
    """
    file = _parsed(content)
    seconds = _clock(file)
    notes, names, left_out = [], [], 0
    for name, messages in _parts(file):
        played = list(_played(messages))
        left_out += sum(note.channel == _PERCUSSION for note in played)
        own = [note for note in played if note.channel != _PERCUSSION and note.stop > note.start]
        if own or any(_is_melodic(message) for _, message in messages):
            notes += [_note(note, len(names), seconds) for note in own]
            names.append(name or default_name(len(names)))
    if left_out:
        warnings.warn(
            f"{left_out} notes of percussion, on channel 10, are left out.", AudioWarning, stacklevel=4
        )
    return Score(
        sorted(notes, key=lambda note: (note.onset, note.instrument, note.pitch)), unique_names(names)
    )


def _parsed(content):
    # A RIFF file has the MIDI file as its first chunk.
    start = max(0, content.find(b"MThd", 0, 64))
    try:
        # Values beyond their range are cut, as players do; names are read by byte, and decoded below.
        file = mido.MidiFile(file=io.BytesIO(content[start:]), clip=True, charset="latin1")
    except Exception as error:  # a damaged file can raise nearly anything
        what = str(error)[:80] or "it breaks off"
        raise MidiError(f"expected a whole MIDI file, got a damaged one ({what})") from None
    if file.type not in (0, 1):
        raise MidiError(f"expected a MIDI file of format 0 or 1, got format {file.type}")
    if file.ticks_per_beat == 0 or (file.ticks_per_beat < 0 and not file.ticks_per_beat & 0xFF):
        raise MidiError("expected some ticks in a beat, got none")
    return file


def _clock(file) -> Callable[[Iterable[int]], np.ndarray]:
    """The time in seconds of ticks."""
    if file.ticks_per_beat < 0:  # SMPTE: frames a second, and ticks a frame
        frames, ticks = -(file.ticks_per_beat >> 8), file.ticks_per_beat & 0xFF
        rate = ticks * (30000 / 1001 if frames == 29 else frames)
        return lambda ticks: np.asarray(ticks, float) / rate
    changes = [(0, 500_000)]
    for track in file.tracks:
        changes += [(tick, message.tempo) for tick, message in _timed(track) if message.type == "set_tempo"]
    changes.sort(key=lambda change: change[0])
    at, tempo = np.array(changes, float).T
    each = tempo / 1e6 / file.ticks_per_beat
    since = np.concatenate([[0.0], np.cumsum(np.diff(at) * each[:-1])])

    def seconds(ticks):
        ticks = np.asarray(ticks, float)
        last = np.searchsorted(at, ticks, side="right") - 1
        return since[last] + (ticks - at[last]) * each[last]

    return seconds


def _timed(track):
    """Every message of a track with its tick."""
    tick = 0
    for message in track:
        tick += message.time
        yield tick, message


def _parts(file) -> Iterator[tuple[str, list]]:
    """Name and messages of what may be an instrument each: tracks, or the channels of the only one."""
    tracks = [list(_timed(track)) for track in file.tracks]
    playing = [track for track in tracks if any(_sounds(message) for _, message in track)]
    for track in tracks:
        name = next((_decoded(m.name) for _, m in track if m.type == "track_name"), "")
        groups = _channels(track, file.type) if [track] == playing else []
        if len(groups) < 2:
            yield name, track
            continue
        for group in groups:
            own = [(tick, m) for tick, m in track if m.is_meta or getattr(m, "channel", None) in group]
            yield "", own


def _sounds(message):
    return message.type == "note_on" and message.velocity > 0 and message.channel != _PERCUSSION


def _is_melodic(message):
    """Whether it gives a sound to an instrument, which may rest."""
    return message.type == "program_change" and message.channel != _PERCUSSION


def _channels(track, kind):
    """Groups of channels that are an instrument each.

    In a file of format 1 channels with the same sound belong together: a track that has several plays
    notes on each whose pitch is bent apart.
    """
    programs: dict[int, int] = {}
    for _, message in track:
        if message.type == "program_change":
            programs.setdefault(message.channel, message.program)
    groups = defaultdict(list)
    for channel in dict.fromkeys(message.channel for _, message in track if _sounds(message)):
        groups[channel if kind == 0 else programs.get(channel, 0)].append(channel)
    return list(groups.values())


def _decoded(name):
    """A name in UTF-8, or in Latin-1 where it is none."""
    try:
        return name.encode("latin1").decode("utf-8").strip("\0 ")
    except UnicodeError:
        return name.strip("\0 ")


class _Played:
    """A note of a channel, in ticks, with what the wheel says in semitones while it sounds."""

    def __init__(self, channel, key, velocity, start, wheel):
        self.channel, self.key, self.velocity = channel, key, velocity
        self.start, self.stop, self.wheel = start, start, [(start, wheel)]


class _Channel:
    """What sounds on a channel."""

    def __init__(self):
        self.pressed: dict[int, list[_Played]] = defaultdict(list)
        self.ringing: list[_Played] = []
        self.pedal, self.wheel = False, 0
        self.range, self.parameter = 2.0, (127, 127)

    def sounding(self):
        return [*self.ringing, *(note for notes in self.pressed.values() for note in notes)]

    def control(self, number, value):
        """Follows a controller that has to do with the wheel or the pedal."""
        if number in (_PARAMETER, _PARAMETER_FINE):
            coarse, fine = self.parameter
            self.parameter = (value, fine) if number == _PARAMETER else (coarse, value)
        elif number == _DATA and self.parameter == (0, 0):
            self.range = value + self.range % 1
        elif number == _DATA_FINE and self.parameter == (0, 0):
            self.range = int(self.range) + value / 100
        elif number == _PEDAL:
            self.pedal = value >= 64


def _played(messages) -> Iterator[_Played]:
    """The notes of messages in the order of their ends."""
    channels: dict[int, _Channel] = defaultdict(_Channel)

    def ended(notes, tick):
        for note in list(notes):
            note.stop = tick
            yield note

    tick = 0
    for tick, message in messages:
        if message.is_meta or not hasattr(message, "channel"):
            continue
        channel = channels[message.channel]
        if message.type == "note_on" and message.velocity > 0:
            again = [note for note in channel.ringing if note.key == message.note]
            channel.ringing = [note for note in channel.ringing if note.key != message.note]
            yield from ended(again, tick)
            bend = channel.wheel * channel.range
            note = _Played(message.channel, message.note, message.velocity, tick, bend)
            channel.pressed[message.note].append(note)
        elif message.type in ("note_on", "note_off"):
            # The first that was pressed is the first that is released.
            released = [channel.pressed[message.note].pop(0)] if channel.pressed[message.note] else []
            if channel.pedal:
                channel.ringing += released
            else:
                yield from ended(released, tick)
        elif message.type == "pitchwheel":
            channel.wheel = message.pitch / 8192
            for note in channel.sounding():
                note.wheel.append((tick, channel.wheel * channel.range))
        elif message.type == "control_change":
            channel.control(message.control, message.value)
            silent = message.control in _SILENCERS
            if silent or not channel.pedal:
                yield from ended(channel.sounding() if silent else channel.ringing, tick)
                channel.ringing = []
                channel.pressed = defaultdict(list) if silent else channel.pressed
    for channel in channels.values():
        yield from ended(channel.sounding(), tick)


def _note(note, instrument, seconds):
    # Of messages at one tick the last holds.
    ticks, bends = map(list, zip(*dict(note.wheel).items(), strict=True))
    bends = note.key + np.array(bends, float)
    onset, offset = seconds([note.start, note.stop])
    held = np.diff([*ticks, note.stop])
    # The pitch that lasts longest in the middle, of which the key is the nearest.
    order = np.argsort(bends)
    middle = order[np.searchsorted(np.cumsum(held[order]), 0.5 * held.sum())]
    pitch = float(np.clip(bends[middle], note.key - 0.49, note.key + 0.49))
    level = 40 * math.log10(note.velocity / 127)
    return Note(instrument, float(onset), float(offset), pitch, level, seconds(ticks), bends, held=True)

"""Notes formed from the tones of neighbouring frames."""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.signal import find_peaks

from jaxsep.checks import check_settings, described, setting
from jaxsep.notes.note import Note
from jaxsep.numerics.devices import map_chunks
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

__all__ = ["NoteRule", "find_notes", "follow_notes", "to_midi"]

#: Seconds after the first tone in which a note reaches the level that its onset is measured by.
_ATTACK = 0.1

#: Fall in dB with which a dip begins. In a room the note before rings on, and what it has in common with the
#: next one cancels out at times until well after that has begun.
_FALLEN = 3.0


@described
@dataclasses.dataclass(frozen=True)
class NoteRule:
    """What makes a note; `find_notes` says how the figures are used.

    {fields}

    Example:
        >>> shape, times = (50, 1), 0.01 * np.arange(50)  # half a second of 440 Hz
        >>> tones = jaxsep.Tones.plain(*(jnp.full(shape, x) for x in (0.1, 440.0, 0)))
        >>> dictionary = jaxsep.Dictionary(jnp.ones((1, 1)))
        >>> jaxsep.find_notes(tones, times, dictionary, jaxsep.NoteRule(min_length=1.0))
        []
    """

    quietest: float = setting(
        20.0, "how far below the usual level of its instrument a tone is still heard, in dB.", least=0
    )
    max_step: float = setting(
        0.4, "largest distance between a note's pitch and its next tone, in semitones.", least=0
    )
    memory: float = setting(0.06, "time in which the pitch of a note follows its tones, in seconds.", least=0)
    max_gap: float = setting(0.08, "longest pause within a note, in seconds.", least=0)
    dip: float = setting(
        8.0, "fall and rise of the level that begin another note at the same pitch, in dB.", least=0
    )
    dip_time: float = setting(0.4, "how long the fall and the rise may take together, in seconds.", least=0)
    echo: float = setting(
        3.0, "how far the level after a dip may stay below that before, or all is one note, in dB.", least=0
    )
    repeat: float = setting(
        0.2, "shortest note before and after one at the same pitch that follows at once, in seconds.", least=0
    )
    rise: float = setting(20.0, "how far below the level that a note soon reaches it begins, in dB.", least=0)
    lead: float = setting(
        0.025,
        "how long before its first tone a note begins that takes over from another, in seconds.",
        least=0,
    )
    false_start: float = setting(
        0.15, "longest beginning of a note that may be found an octave off, in seconds.", least=0
    )
    min_length: float = setting(0.08, "shorter notes are left out, in seconds.", least=0)

    def __post_init__(self):
        check_settings(self)


def to_midi(frequency: ArrayLike) -> Float[np.ndarray, "..."]:
    """Pitch in semitones as MIDI counts them, `69 + 12 log2(f / 440 Hz)`, of frequencies above 0."""
    return 69 + 12 * np.log2(np.asarray(frequency, float) / 440)


def find_notes(
    tones: Tones, times: Float[np.ndarray, " frames"], dictionary: Dictionary, rule: NoteRule = NoteRule()
) -> list[Note]:
    """Forms notes from the tones of each instrument.

    1. A tone is heard if its level is at most `quietest` below the 90th percentile of its instrument's.
    2. A tone continues the note whose pitch is nearest, if it is within `max_step`, and if the last tone of
       that note is no longer ago than `max_gap`; otherwise it begins a note. The pitch of a note follows its
       tones like their average over `memory`, so that a step of a semitone begins another note even where
       the frames between glide. Louder tones choose first.
    3. Where the level falls and rises again by at least `dip` within `dip_time`, to at most `echo` below what
       it was, the note is struck again: it ends at the lowest level, and the next has begun midway between
       there and where the level had fallen by 3 dB. Both last at least `repeat`.
    4. A note begins where its level comes within `rise` of what it reaches in its first tenth of a second: a
       window that looks ahead finds a faint tone too early.
    5. A beginning of at most `false_start` that is an octave off belongs to the longer note that follows it
       at once: the attack of many instruments resembles their other octaves.
    6. Notes shorter than `min_length` are left out.
    7. Who plays one tone at a time is found with the next only when it outweighs what rings of the one
       before: a note begins `lead` earlier where another ends at most `max_gap` before or after its begin.

    Arguments:
        tones: `[frames, tones]`, fundamentals in Hz, as in `Separation`.
        times: centre of each frame in seconds, equally spaced.
        dictionary: harmonics of each instrument, which give a tone its level.
        rule: the figures.

    Returns: notes by onset, then instrument; an instrument's notes may overlap.

    Example:
        >>> shape, times = (50, 1), 0.01 * np.arange(50)  # half a second of 440 Hz
        >>> tones = jaxsep.Tones.plain(*(jnp.full(shape, x) for x in (0.1, 440.0, 0)))
        >>> dictionary = jaxsep.Dictionary(jnp.ones((1, 1)))
        >>> [(note.instrument, round(note.pitch)) for note in jaxsep.find_notes(tones, times, dictionary)]
        [(0, 69)]
    """
    times = np.asarray(times, float)
    instrument, level, pitch = _levels_and_pitches(tones, dictionary)
    spacing = float(times[1] - times[0]) if len(times) > 1 else 0.01
    notes = []
    for number in range(dictionary.num_instruments):
        own = np.isfinite(level) & (instrument == number)
        if not own.any():
            continue
        heard = own & (level >= np.percentile(level[own], 90) - rule.quietest)
        parts = []
        for track in _tracks(heard, pitch, level, rule, spacing):
            parts += _struck(track, times, number, rule, spacing)
        parts.sort(key=lambda note: note.onset)
        joined = [n for n in _octaves_joined(parts, rule) if n.offset - n.onset >= rule.min_length]
        notes += _taking_over(joined, rule)
    return sorted(notes, key=lambda note: (note.onset, note.instrument, note.pitch))


def follow_notes(
    notes: Sequence[Note], tones: Tones, times: Float[np.ndarray, " frames"], dictionary: Dictionary
) -> list[Note]:
    """Notes that are known, with the level and the pitch of their tones while they last.

    Times and keys stay as they are; a note without any tone is silent, 100 dB below a sinusoid of amplitude
    1. Other arguments as for `find_notes`.
    """
    instrument, level, pitch = _levels_and_pitches(tones, dictionary)
    times = np.asarray(times, float)
    followed = []
    for note in notes:
        frames = np.flatnonzero((times >= note.onset) & (times < note.offset))
        mine = (instrument[frames] == note.instrument) & np.isfinite(level[frames])
        distance = np.where(mine, np.abs(pitch[frames] - note.pitch), np.inf)
        nearest = np.argmin(distance, axis=1)
        heard = np.flatnonzero(distance[np.arange(frames.size), nearest] < 1)
        frames, slots = frames[heard], nearest[heard]
        if not frames.size:
            followed.append(dataclasses.replace(note, level=-100.0))
            continue
        key = round(note.pitch)
        followed.append(
            dataclasses.replace(
                note,
                pitch=float(np.clip(np.median(pitch[frames, slots]), key - 0.49, key + 0.49)),
                level=float(np.median(level[frames, slots])),
                times=times[frames],
                bend=pitch[frames, slots],
            )
        )
    return followed


def _levels_and_pitches(tones, dictionary):
    """Instrument, level in dB and pitch of each slot `[frames, tones]`; unused ones have the level -inf."""
    instrument, amplitude, fundamental = (
        np.asarray(x) for x in (tones.instrument, tones.amplitude, tones.fundamental)
    )
    # NaN fails both comparisons.
    used = np.asarray(tones.active) & (amplitude > 0) & (fundamental > 0)
    # The spectrogram of a sinusoid of amplitude 1 has ½.
    harmonics = map_chunks(dictionary.of, tones) if len(used) else np.ones((*used.shape, 1))
    loudness = 2 * np.linalg.norm(harmonics, axis=-1)
    level = np.full(used.shape, -np.inf)
    level[used] = 20 * np.log10(amplitude[used].astype(float) * loudness[used])
    pitch = to_midi(np.where(used, fundamental, 440))
    return instrument, level, pitch


def _tracks(heard, pitch, level, rule, spacing):
    """Frames, pitches and levels of tones that continue each other."""
    reach = 1 + _count(rule.max_gap, spacing)
    weight = 1 / _count(rule.memory, spacing)
    done, live = [], []
    frames, slots = np.nonzero(heard)
    order = np.lexsort((-level[frames, slots], frames))
    frames, slots = frames[order], slots[order]
    columns = (x.tolist() for x in (frames, pitch[frames, slots], level[frames, slots]))
    for frame, tone, loudness in zip(*columns, strict=True):
        done += [track for track in live if frame - track.frames[-1] > reach]
        live = [track for track in live if frame - track.frames[-1] <= reach]
        free = [track for track in live if track.frames[-1] < frame]
        nearest = min(free, key=lambda track: abs(track.pitch - tone), default=None)
        if nearest is None or abs(nearest.pitch - tone) > rule.max_step:
            nearest = _Track(tone)
            live.append(nearest)
        nearest.append(frame, tone, loudness, weight)
    return done + live


class _Track:
    """A note in the making."""

    def __init__(self, pitch: float):
        self.pitch = pitch
        self.frames: list[int] = []
        self.pitches: list[float] = []
        self.levels: list[float] = []

    def append(self, frame: int, pitch: float, level: float, weight: float) -> None:
        self.pitch += max(weight, 1 / (1 + len(self.frames))) * (pitch - self.pitch)
        self.frames.append(frame)
        self.pitches.append(pitch)
        self.levels.append(level)


def _struck(track, times, instrument, rule, spacing):
    """Notes of one track: it is divided where it is struck again."""
    frames, pitches, levels = (np.array(x) for x in (track.frames, track.pitches, track.levels))
    begins, dips = _strikes(levels, rule, spacing)
    bounds = [0, *dips, len(levels)]
    notes = []
    for first, last in pairwise(bounds):
        reached = levels[first : min(last, first + _count(_ATTACK, spacing))].max()
        begin = first + int(np.argmax(levels[first:last] >= reached - rule.rise))
        here = slice(begin, last)
        lead = 0.0 if first == 0 else (times[frames[first]] - times[frames[begins[len(notes) - 1]]]) / 2
        notes.append(
            Note(
                instrument=instrument,
                onset=max(0.0, float(times[frames[begin]]) - lead),
                offset=float(times[frames[last - 1]]) + spacing / 2,
                pitch=float(np.median(pitches[here])),
                level=float(np.median(levels[here])),
                times=times[frames[here]],
                bend=pitches[here],
            )
        )
    return notes


def _strikes(levels, rule, spacing):
    """Where a note is struck again: where its level begins to fall, and where it is lowest."""
    half, shortest = max(1, _count(rule.dip_time, spacing) // 2), _count(rule.repeat, spacing)
    dips, _ = find_peaks(-levels, prominence=rule.dip, wlen=2 * half + 1, distance=shortest)
    begins, lowest = [], []
    for dip in dips[(dips >= shortest) & (dips < len(levels) - shortest)]:
        before, after = levels[max(0, dip - half) : dip], levels[dip : dip + half + 1]
        if after.max() >= before.max() - rule.echo:
            begins.append(dip - np.argmax(before[::-1] >= before.max() - _FALLEN) - 1)
            lowest.append(dip)
    return begins, lowest


def _octaves_joined(notes, rule):
    """Notes by onset, each with its beginning that was found an octave off."""
    joined: list[Note] = []
    for note in notes:
        for start in joined[-3:]:
            length = start.offset - start.onset
            octave = abs(abs(start.pitch - note.pitch) - 12) <= rule.max_step
            follows = abs(note.onset - start.offset) <= rule.max_gap
            if octave and follows and length <= rule.false_start and length < note.offset - note.onset:
                joined.remove(start)
                note = dataclasses.replace(note, onset=start.onset)
                break
        joined.append(note)
    return joined


def _taking_over(notes, rule):
    """Notes of an instrument by onset, of which those that take over from another begin earlier."""
    offset, pitch = np.array([(note.offset, note.pitch) for note in notes]).reshape(-1, 2).T
    moved = []
    for place, note in enumerate(notes):
        ends_here = np.abs(offset[:place] - note.onset) <= rule.max_gap
        takes_over = np.any(ends_here & (np.abs(pitch[:place] - note.pitch) > rule.max_step))
        onset = max(0.0, note.onset - rule.lead) if takes_over else note.onset
        moved.append(dataclasses.replace(note, onset=onset))
    return moved


def _count(seconds, spacing):
    """Frames in a time, at least one."""
    return max(1, round(seconds / spacing))

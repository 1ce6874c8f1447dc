"""Notes from tones, and the files that other programs read."""

import csv
import json
import shutil
import subprocess
import warnings
from itertools import pairwise
from pathlib import Path

import jax.numpy as jnp
import mido
import numpy as np
import pytest

from jaxsep.notes.formats import (
    NOTE_COLUMNS,
    write_labels,
    write_layer,
    write_midi,
    write_note_files,
    write_notes,
)
from jaxsep.notes.note import Note, note_name
from jaxsep.notes.notes import NoteRule, find_notes, to_midi
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

SPACING = 512 / 48000
DICTIONARY = Dictionary(jnp.asarray([[1.0, 0.5], [0.5, 1.0]]))


def hertz(pitch):
    return 440 * 2 ** ((np.asarray(pitch, float) - 69) / 12)


def played(*notes, seconds=2.0, slots=4):
    """Tones and times of notes (instrument, onset, offset, pitch or function of time, amplitude)."""
    times = np.arange(round(seconds / SPACING)) * SPACING
    shape = len(times), slots
    arrays = {name: np.zeros(shape, np.float32) for name in ("amplitude", "fundamental", "inharmonicity")}
    instrument, active = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for number, onset, offset, pitch, amplitude in notes:
        for frame in np.flatnonzero((times >= onset) & (times < offset)):
            slot = int(np.argmin(active[frame]))
            height = pitch(times[frame]) if callable(pitch) else pitch
            loudness = amplitude(times[frame]) if callable(amplitude) else amplitude
            arrays["fundamental"][frame, slot] = hertz(height)
            arrays["amplitude"][frame, slot] = loudness
            instrument[frame, slot], active[frame, slot] = number, True
    width = np.full(shape, 1.9, np.float32)
    return tones_of(**arrays, width=width, instrument=instrument, active=active), times


def tones_of(**arrays):
    return Tones(**{name: jnp.asarray(values) for name, values in arrays.items()})


def found(*notes, rule=NoteRule(), **options):
    return find_notes(*played(*notes, **options), DICTIONARY, rule)


def pitches(notes):
    return [round(note.pitch, 1) for note in notes]


class TestRule:
    def test_a_melody_and_an_accompaniment(self):
        melody = [(0, 0.2, 0.5, 72, 0.2), (0, 0.5, 0.9, 73, 0.2), (0, 1.0, 1.4, 79, 0.1)]
        bass = [(1, 0.1, 1.3, 48.3, 0.3)]
        notes = found(*melody, *bass, rule=NoteRule(lead=0.0))
        assert [note.instrument for note in notes] == [1, 0, 0, 0]
        assert pitches(notes) == [48.3, 72, 73, 79]
        for note, (_, onset, offset, *_) in zip(notes, [*bass, *melody], strict=True):
            assert note.onset == pytest.approx(onset, abs=SPACING)
            assert note.offset == pytest.approx(offset, abs=SPACING)

    def test_level_is_that_of_the_spectrum(self):
        """A sinusoid of amplitude 1 has ½ in the spectrogram, and 0 dB."""
        (note,) = find_notes(*played((0, 0, 1, 69, 0.5)), Dictionary(jnp.asarray([[1.0]])))
        assert note.level == pytest.approx(0, abs=1e-4)

    def test_glides_and_vibrato_stay_one_note(self):
        vibrato = lambda t: 70 + 0.3 * np.sin(2 * np.pi * 6 * t)
        glide = lambda t: 60 + 0.8 * t
        notes = found((0, 0.2, 1.2, vibrato, 0.2), (1, 0.3, 1.3, glide, 0.2))
        assert len(notes) == 2
        assert notes[0].pitch == pytest.approx(70, abs=0.1)
        np.testing.assert_allclose(notes[0].bend, vibrato(notes[0].times), atol=1e-3)
        np.testing.assert_allclose(notes[1].bend, glide(notes[1].times), atol=1e-3)

    def test_a_quick_slide_over_a_semitone_parts_two_notes(self):
        slide = lambda t: 76 + np.clip((t - 0.6) / 0.03, 0, 1)
        assert pitches(found((0, 0.2, 1.0, slide, 0.2))) == [76, 77]

    def test_pauses(self):
        rule = NoteRule(max_gap=0.05)
        short = (0, 0.2, 0.6, 72, 0.2), (0, 0.63, 1.0, 72, 0.2)
        long = (0, 0.2, 0.6, 72, 0.2), (0, 0.72, 1.0, 72, 0.2)
        assert len(found(*short, rule=rule)) == 1
        assert len(found(*long, rule=rule)) == 2

    def test_struck_again(self):
        dip = lambda depth: lambda t: 0.2 * 10 ** (-depth * np.exp(-(((t - 1.0) / 0.08) ** 2)) / 20)
        assert len(found((0, 0.2, 1.8, 72, dip(4)))) == 1
        first, second = found((0, 0.2, 1.8, 72, dip(16)))
        # Midway between where it has fallen by 3 dB and where it is lowest.
        fall = 0.08 * np.sqrt(np.log(16 / 3))
        assert second.onset == pytest.approx(1.0 - fall / 2, abs=SPACING)
        assert first.offset == pytest.approx(1.0, abs=SPACING)

    def test_an_echo_strikes_nothing(self):
        """What is left after a dip is 6 dB quieter: the room, or another partial."""
        dip = lambda t: 0.2 * 10 ** (-(16 * np.exp(-(((t - 1.0) / 0.04) ** 2)) + 6 * (t > 1)) / 20)
        (note,) = found((0, 0.2, 1.8, 72, dip))
        assert note.offset == pytest.approx(1.8, abs=SPACING)
        assert len(found((0, 0.2, 1.8, 72, dip), rule=NoteRule(echo=8.0))) == 2

    @pytest.mark.parametrize("place", [0.35, 1.65])
    def test_short_beginnings_and_ends_are_no_notes(self, place):
        dip = lambda t: 0.2 * 10 ** (-16 * np.exp(-(((t - place) / 0.04) ** 2)) / 20)
        assert len(found((0, 0.2, 1.8, 72, dip))) == 1
        assert len(found((0, 0.2, 1.8, 72, dip), rule=NoteRule(repeat=0.1))) == 2

    def test_who_takes_over_has_begun(self):
        """The tone before it was louder till then; after a rest, or from another instrument, it was not."""
        first, second = found((0, 0.2, 0.6, 72, 0.2), (0, 0.63, 1.0, 74, 0.2))
        assert second.onset == pytest.approx(0.63 - NoteRule().lead, abs=SPACING)
        assert first.offset == pytest.approx(0.6, abs=SPACING)
        for other in ((0, 0.75, 1.0, 74, 0.2), (1, 0.63, 1.0, 74, 0.2), (0, 0.75, 1.0, 72, 0.2)):
            second = found((0, 0.2, 0.6, 72, 0.2), other)[-1]
            assert second.onset == pytest.approx(other[1], abs=SPACING)

    def test_onset_of_a_window_that_looks_ahead(self):
        """The faint tones before the attack do not count."""
        rise = lambda t: 0.2 * (1e-3 if t < 0.5 else 1)
        (note,) = found((0, 0.42, 1.0, 72, rise))
        assert note.onset == pytest.approx(0.5, abs=SPACING)

    def test_an_attack_an_octave_off(self):
        (note,) = found((0, 0.5, 0.6, 45, 0.1), (0, 0.6, 1.2, 57, 0.2))
        assert (round(note.pitch), note.onset) == (57, pytest.approx(0.5, abs=SPACING))
        assert len(found((0, 0.5, 0.9, 45, 0.1), (0, 0.9, 1.5, 57, 0.2))) == 2
        assert len(found((0, 0.5, 0.6, 46, 0.1), (0, 0.6, 1.2, 57, 0.2))) == 2

    def test_quiet_and_short_notes_are_left_out(self):
        loud = (0, 0.2, 1.0, 72, 0.2)
        assert len(found(loud, (0, 1.2, 1.6, 60, 0.2 * 10 ** (-50 / 20)))) == 1
        assert len(found(loud, (0, 1.2, 1.24, 60, 0.2))) == 1

    def test_notes_that_overlap(self):
        notes = found((0, 0.2, 1.0, 60, 0.2), (0, 0.4, 1.2, 64, 0.1), (0, 0.9, 1.6, 67, 0.2))
        assert pitches(notes) == [60, 64, 67]
        assert notes[0].offset > notes[1].onset

    def test_order_of_the_slots_does_not_matter(self):
        tones, times = played((0, 0.2, 1.0, 60, 0.2), (0, 0.4, 1.2, 64, 0.1))
        swapped = tones_of(**{name: np.asarray(value)[:, ::-1] for name, value in vars(tones).items()})
        for a, b in zip(*(find_notes(x, times, DICTIONARY) for x in (tones, swapped)), strict=True):
            assert (a.onset, a.offset, a.pitch, a.level) == (b.onset, b.offset, b.pitch, b.level)

    def test_no_tones(self):
        assert found() == []
        assert find_notes(Tones.empty((0, 2)), np.zeros(0), DICTIONARY) == []

    def test_one_frame(self):
        tones = Tones.empty((1, 1))
        assert find_notes(tones, np.zeros(1), DICTIONARY) == []
        sounding = tones_of(
            **{
                **vars(tones),
                "amplitude": np.full((1, 1), 0.2),
                "fundamental": np.full((1, 1), 440.0),
                "active": np.ones((1, 1), bool),
            }
        )
        assert len(find_notes(sounding, np.zeros(1), DICTIONARY, NoteRule(min_length=0.0))) == 1

    def test_nan_in_unused_slots(self):
        tones, times = played((0, 0.2, 1.0, 60, 0.2))
        unused = ~np.asarray(tones.active)
        spoilt = {
            name: np.where(unused, np.nan, np.asarray(getattr(tones, name)))
            for name in ("amplitude", "fundamental", "width", "inharmonicity")
        }
        (note,) = find_notes(tones_of(**{**vars(tones), **spoilt}), times, DICTIONARY)
        assert round(note.pitch, 2) == 60

    @pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
    def test_impossible_rules(self, value):
        with pytest.raises(ValueError, match="max_gap: expected a number of at least 0"):
            NoteRule(max_gap=value)


def test_names():
    assert [note_name(pitch) for pitch in (60, 69.4, 61, 0, 127)] == ["C4", "A4", "C♯4", "C-1", "G9"]
    np.testing.assert_allclose(to_midi([440.0, 880.0, 261.6255653]), [69, 81, 60], atol=1e-6)


def some_notes():
    bend = lambda t: 72.25 + 0.3 * np.sin(2 * np.pi * 5 * t)
    return found(
        (0, 0.2, 0.8, bend, 0.2),
        (0, 0.8, 1.2, 74, 0.05),
        (0, 0.9, 1.4, 79.4, 0.2),
        (1, 0.1, 1.3, 48, 0.1),
    )


class TestTables:
    def test_notes(self, tmp_path):
        notes = some_notes()
        write_notes(tmp_path / "notes.csv", notes)
        with (tmp_path / "notes.csv").open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        assert tuple(header) == NOTE_COLUMNS
        assert [row[2] for row in rows] == [str(note.instrument + 1) for note in notes]
        np.testing.assert_allclose([float(row[0]) for row in rows], [n.onset for n in notes], atol=1e-4)
        assert {row[4] for row in rows} == {"C3", "C5", "D5", "G5"}

    def test_labels_of_audacity(self, tmp_path):
        notes = some_notes()
        write_labels(tmp_path / "labels.txt", notes)
        lines = (tmp_path / "labels.txt").read_text(encoding="utf-8").splitlines()
        assert len(lines) == len(notes)
        for line, note in zip(lines, notes, strict=True):
            start, end, name = line.split("\t")
            assert (float(start), float(end)) == pytest.approx((note.onset, note.offset), abs=1e-6)
            assert name == note_name(note.pitch)

    def test_layer_of_sonic_visualiser(self, tmp_path):
        notes = some_notes()
        write_layer(tmp_path / "layer.csv", notes)
        with (tmp_path / "layer.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        figures = np.array([row[:4] for row in rows], float)
        np.testing.assert_allclose(figures[:, 0] + figures[:, 2], [n.offset for n in notes], atol=2e-6)
        np.testing.assert_allclose(figures[:, 1], [n.pitch for n in notes], atol=1e-3)
        assert figures[:, 3].max() == 1

    def test_files_of_every_instrument(self, tmp_path):
        write_note_files(tmp_path, some_notes(), ["a", "b", "c"])
        names = {f"{kind}-{n}.{end}" for n in (1, 2, 3) for kind, end in LAYERS}
        assert {path.name for path in tmp_path.iterdir()} == {"notes.csv", "notes.mid", *names}
        assert (tmp_path / "audacity-3.txt").read_text() == ""


LAYERS = (("audacity", "txt"), ("sonic-visualiser", "csv"))


def midi(tmp_path, notes, num_instruments=2):
    write_midi(tmp_path / "notes.mid", notes, num_instruments)
    return tmp_path / "notes.mid"


class TestMidi:
    def test_the_same_notes_in_another_program(self, tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pretty_midi = pytest.importorskip("pretty_midi")
            file = pretty_midi.PrettyMIDI(str(midi(tmp_path, some_notes())))
        read = [
            (int(part.name.split()[-1]) - 1, note.start, note.end, note.pitch)
            for part in file.instruments
            for note in part.notes
        ]
        wanted = [(n.instrument, n.onset, n.offset, round(n.pitch)) for n in some_notes()]
        np.testing.assert_allclose(sorted(read), sorted(wanted), atol=1e-3)

    def test_bends(self, tmp_path):
        """Key and wheel together are the pitch, at every time of a note."""
        notes = some_notes()
        track = mido.MidiFile(midi(tmp_path, notes)).tracks[1]
        tick, wheel, keys = 0, {}, {}
        heard = {}
        for message in track:
            tick += message.time
            if message.type == "pitchwheel":
                wheel[message.channel] = message.pitch / 8192 * 2
            elif message.type == "note_on":
                keys[message.channel] = (tick / 1920, message.note)
            elif message.type == "note_off":
                del keys[message.channel]
            if message.type in ("pitchwheel", "note_on") and message.channel in keys:
                onset, key = keys[message.channel]
                heard.setdefault((message.channel, onset), []).append(
                    (tick / 1920, key + wheel[message.channel])
                )
        first = notes[1]
        times, curve = np.array(heard[min(heard, key=lambda x: x[1])]).T
        steps = np.searchsorted(times, first.times + 1 / 1920, side="right") - 1
        np.testing.assert_allclose(curve[np.maximum(steps, 0)], first.bend, atol=0.05)

    def test_overlapping_notes_have_channels_of_their_own(self, tmp_path):
        channels = {
            message.channel: track.name
            for track in mido.MidiFile(midi(tmp_path, some_notes())).tracks
            for message in track
            if message.type == "note_on"
        }
        assert len(channels) == 3
        assert 9 not in channels
        assert sorted(channels.values()) == ["instrument 1", "instrument 1", "instrument 2"]

    def test_velocities(self, tmp_path):
        loud, quiet = (
            Note(0, onset, onset + 0.2, 60.0, level, np.array([onset]), np.array([60.0]))
            for onset, level in ((0.0, -10.0), (0.5, -30.0))
        )
        messages = list(mido.MidiFile(midi(tmp_path, [loud, quiet])).tracks[1])
        assert [m.velocity for m in messages if m.type == "note_on"] == [127, round(127 / 10**0.5)]

    @pytest.mark.parametrize("num_instruments", [1, 16])
    def test_no_notes(self, tmp_path, num_instruments):
        file = mido.MidiFile(midi(tmp_path, [], num_instruments))
        assert len(file.tracks) == 1 + num_instruments

    def test_more_voices_than_channels(self, tmp_path):
        notes = [
            Note(n % 2, 0.01 * n, 1.0 + 0.01 * n, 40.0 + n, -10.0, np.array([0.01 * n]), np.array([40.0 + n]))
            for n in range(40)
        ]
        tracks = mido.MidiFile(midi(tmp_path, notes)).tracks
        for kind in ("note_on", "note_off"):
            assert sum(message.type == kind for track in tracks for message in track) == 40

    def test_pitches_beyond_the_keys(self, tmp_path):
        notes = [
            Note(0, onset, onset + 0.2, pitch, -10.0, np.array([onset]), np.array([pitch]))
            for onset, pitch in ((0.0, -3.0), (0.5, 131.0))
        ]
        messages = list(mido.MidiFile(midi(tmp_path, notes)).tracks[1])
        assert [m.note for m in messages if m.type == "note_on"] == [0, 127]

    def test_a_synthesiser_plays_it(self, tmp_path):
        fonts = [
            Path(folder) / "FluidR3_GM.sf2" for folder in ("/usr/share/sounds/sf2", "/usr/share/soundfonts")
        ]
        font = next(filter(Path.exists, fonts), None)
        if shutil.which("fluidsynth") is None or font is None:
            pytest.skip("fluidsynth or its soundfont FluidR3_GM.sf2 is not installed")
        sound = tmp_path / "notes.wav"
        command = ["fluidsynth", "-ni", "-F", sound, "-r", "16000", font, midi(tmp_path, some_notes())]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        from jaxsep.audio import read_audio

        samples, rate = read_audio(sound)
        envelope = np.abs(samples).max(axis=0)
        before, during = envelope[: round(0.08 * rate)].max(), envelope[round(0.15 * rate) : rate].max()
        assert during > 100 * before


@pytest.mark.slow
def test_notes_of_recorded_tones_match_the_score(corpus):
    """The notes that a stem of the corpus has by itself, found with one instrument."""
    import jax
    from mir_eval.transcription import precision_recall_f1_overlap

    from jaxsep.audio import read_audio
    from jaxsep.separation.separate import separate
    from jaxsep.separation.settings import SeparationSettings

    folder = corpus / "k487_08_recorder_violin"
    samples, rate = read_audio(folder / "recorder.flac")
    settings = SeparationSettings(restarts=1, steps=6, search="greedy")
    separation = separate(samples[:, : 8 * rate], rate, 1, settings=settings, key=jax.random.key(0))
    notes = find_notes(separation.tones, separation.times, separation.dictionary)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    score = np.array([note for note in meta["stems"][0]["notes"] if note[0] < 7.5])
    own = [note for note in notes if note.onset < 7.6]
    f_measure = precision_recall_f1_overlap(
        np.stack([score[:, 0], score[:, 0] + score[:, 1]], axis=1),
        hertz(score[:, 2]),
        np.array([(note.onset, note.offset) for note in own]),
        hertz([note.pitch for note in own]),
        offset_ratio=None,
    )[2]
    assert f_measure > 0.85
    assert all(a.onset <= b.onset for a, b in pairwise(notes))

"""Notes read from tables and from MIDI files as several programs write them."""

import struct
import warnings

import mido
import numpy as np
import pytest
from test_notes import some_notes

from jaxsep.files import AudioWarning
from jaxsep.notes.formats import write_midi, write_notes
from jaxsep.notes.note import Note
from jaxsep.notes.reading import read_notes
from jaxsep.notes.score import Rest, Score, plain_note

SECOND = 960  # ticks at 120 beats per minute


def message(kind, time=0, **fields):
    make = mido.MetaMessage if kind in ("track_name", "set_tempo", "time_signature") else mido.Message
    return make(kind, time=time, **fields)


def note_on(key, time=0, channel=0, velocity=64):
    return message("note_on", time, note=key, channel=channel, velocity=velocity)


def note_off(key, time=0, channel=0):
    return message("note_off", time, note=key, channel=channel)


def midi(path, *tracks, kind=1, ticks=480):
    file = mido.MidiFile(type=kind, ticks_per_beat=ticks)
    file.tracks += [mido.MidiTrack(track) for track in tracks]
    file.save(path / "file.mid")
    return path / "file.mid"


def listed(score):
    """Instrument, onset, offset and pitch of every note."""
    return [(n.instrument, round(n.onset, 3), round(n.offset, 3), round(n.pitch, 2)) for n in score.notes]


def text(path, content):
    (path / "notes.csv").write_text(content, encoding="utf-8")
    return path / "notes.csv"


class TestTable:
    def test_what_is_written_comes_back(self, tmp_path):
        notes = some_notes()
        write_notes(tmp_path / "a.csv", notes, ["recorder", "violin"])
        score = read_notes(tmp_path / "a.csv")
        assert score.names == ("recorder", "violin")
        for read, note in zip(score.notes, notes, strict=True):
            assert read.instrument == note.instrument
            for name, decimals in (("onset", 4), ("offset", 4), ("pitch", 2), ("level", 1)):
                assert getattr(read, name) == pytest.approx(getattr(note, name), abs=0.51 * 10**-decimals)
        write_notes(tmp_path / "b.csv", score.notes, score.names)
        assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()

    def test_without_names_there_is_no_column_for_them(self, tmp_path):
        write_notes(tmp_path / "a.csv", some_notes(), ["instrument 1", "instrument 2"])
        assert "instrument_name" not in (tmp_path / "a.csv").read_text()
        assert read_notes(tmp_path / "a.csv").names == ("instrument 1", "instrument 2")

    def test_columns_in_any_order_and_others(self, tmp_path):
        table = "\ufeffpitch,remark,instrument,offset_s,onset_s\n60,well,2,1.5,0.5\n\n"
        score = read_notes(text(tmp_path, table))
        assert listed(score) == [(1, 0.5, 1.5, 60)]
        assert score.names == ("instrument 1", "instrument 2")

    def test_semicolons_with_decimal_commas(self, tmp_path):
        score = read_notes(text(tmp_path, "onset_s;offset_s;instrument;pitch\n0,5;1,25;1;60,5\n"))
        assert listed(score) == [(0, 0.5, 1.25, 60.5)]

    def test_rests_and_what_is_held(self, tmp_path):
        table = "onset_s,offset_s,instrument,pitch,held\n0,1,1,60,yes\n1,2,1,62,no\n2,3,2,,\n3,3,1,60,yes\n"
        score = read_notes(text(tmp_path, table))
        assert [note.held for note in score.notes] == [True, False]  # none of length 0
        assert score.rests == (Rest(1, 2.0, 3.0),)
        assert score.num_instruments == 2

    def test_without_a_column_all_are_held(self, tmp_path):
        write_notes(tmp_path / "a.csv", some_notes())
        assert all(note.held for note in read_notes(tmp_path / "a.csv").notes)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "expected the columns onset_s, offset_s, instrument, pitch, got 'nothing'"),
            ("a,b\n1,2\n", "expected the columns .*, got 'a, b'"),
            ("onset_s,offset_s,instrument,pitch\n", "expected at least one note, got none"),
            ("onset_s,offset_s,instrument,pitch\nx,1,1,60\n", "a number as onset_s in row 2, got 'x'"),
            ("onset_s,offset_s,instrument,pitch\n0,inf,1,60\n", "a number as offset_s in row 2, got 'inf'"),
            ("onset_s,offset_s,instrument,pitch\n0,1\n", "a number as instrument in row 2, got ''"),
            ("onset_s,offset_s,instrument,pitch\n0,1,0,60\n", "an instrument from 1 on in row 2, got 0"),
            ("onset_s,offset_s,instrument,pitch\n0,1,1.5,60\n", "an instrument from 1 on in row 2, got 1.5"),
            ("onset_s,offset_s,instrument,pitch\n2,1,1,60\n", "an offset after the onset in row 2, got 1 s"),
            (
                "onset_s,offset_s,instrument,pitch\n0,1,1,1e9\n",
                "expected pitches as MIDI counts them, got 1e",
            ),
            ("onset_s,offset_s,instrument,pitch,held\n0,1,1,60,so\n", "yes or no as held in row 2, got 'so'"),
            ('onset_s,offset_s,instrument,pitch\n"0', "a number as offset_s in row 2, got ''"),
        ],
    )
    def test_mistakes(self, tmp_path, content, message):
        with pytest.raises(ValueError, match=f"^notes: (expected )?{message}") as caught:
            read_notes(text(tmp_path, content))
        assert "\n" not in str(caught.value)

    def test_what_is_no_table_at_all(self, tmp_path):
        (tmp_path / "x").write_bytes(bytes(range(256)))
        with pytest.raises(ValueError, match=r"^notes: expected a table of notes or a MIDI file"):
            read_notes(tmp_path / "x")
        with pytest.raises(ValueError, match=r"^notes: .*missing.* cannot be read: No such file"):
            read_notes(tmp_path / "missing")
        with pytest.raises(ValueError, match=r"^notes: .* cannot be read: Is a directory"):
            read_notes(tmp_path)


class TestMidi:
    def test_what_is_written_comes_back_to_the_byte(self, tmp_path):
        """Notes that overlap on channels of their own, and wheels that follow a vibrato."""
        write_midi(tmp_path / "a.mid", some_notes(), 2, names=["recorder", "Geige ♪"])
        score = read_notes(tmp_path / "a.mid")
        assert score.names == ("recorder", "Geige ♪")
        assert len(score.notes) == 4
        write_midi(tmp_path / "b.mid", score.notes, score.num_instruments, names=score.names)
        assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()

    def test_an_instrument_that_rests_comes_back(self, tmp_path):
        own = [note for note in some_notes() if note.instrument == 1]
        write_midi(tmp_path / "a.mid", own, 3)
        score = read_notes(tmp_path / "a.mid")
        assert score.names == ("instrument 1", "instrument 2", "instrument 3")
        assert {note.instrument for note in score.notes} == {1}

    def test_one_instrument_with_notes_that_overlap(self, tmp_path):
        own = [note for note in some_notes() if note.instrument == 0]
        write_midi(tmp_path / "a.mid", own, 1)
        assert read_notes(tmp_path / "a.mid").num_instruments == 1

    def test_the_wheel_is_followed_in_its_range(self, tmp_path):
        wheel = [(101, 0), (100, 0), (6, 12), (38, 50), (101, 127), (100, 127), (6, 1)]
        controls = [message("control_change", control=c, value=v) for c, v in wheel]
        bend = message("pitchwheel", time=480, pitch=4096)
        score = read_notes(midi(tmp_path, [*controls, note_on(60), bend, note_off(60, 480)]))
        np.testing.assert_allclose(score.notes[0].bend, [60, 66.25])
        np.testing.assert_allclose(score.notes[0].times, [0, 0.5])

    def test_a_track_for_each_instrument(self, tmp_path):
        conductor = [message("track_name", name="Suite"), message("time_signature", numerator=3)]
        tracks = [
            [message("track_name", name="Violin"), note_on(60 + n), note_off(60 + n, 480)] for n in (0, 1)
        ]
        score = read_notes(midi(tmp_path, conductor, *tracks))
        assert score.names == ("Violin", "Violin 2")
        assert listed(score) == [(0, 0, 0.5, 60), (1, 0, 0.5, 61)]

    def test_a_channel_for_each_instrument_in_format_0(self, tmp_path):
        track = [note_on(60, channel=3), note_on(48, channel=1), note_off(60, 480, 3), note_off(48, 0, 1)]
        score = read_notes(midi(tmp_path, track, kind=0))
        assert listed(score) == [(0, 0, 0.5, 60), (1, 0, 0.5, 48)]

    def test_one_track_of_several_sounds_in_format_1(self, tmp_path):
        sounds = [message("program_change", channel=n, program=40 + n) for n in (0, 1)]
        notes = [note_on(60), note_on(48, channel=1), note_off(60, 480), note_off(48, channel=1)]
        assert read_notes(midi(tmp_path, [*sounds, *notes])).num_instruments == 2
        assert read_notes(midi(tmp_path, notes)).num_instruments == 1

    def test_running_status_and_note_on_without_velocity(self, tmp_path):
        track = b"\x00\x90\x3c\x40\x83\x60\x3c\x00\x00\x3e\x40\x83\x60\x3e\x00\x00\xff\x2f\x00"
        path = tmp_path / "running.mid"
        head = b"MThd" + struct.pack(">IHHH", 6, 0, 1, 480)
        path.write_bytes(head + b"MTrk" + struct.pack(">I", len(track)) + track)
        assert listed(read_notes(path)) == [(0, 0, 0.5, 60), (0, 0.5, 1, 62)]
        riff = b"RIFF" + struct.pack("<I", 0) + b"RMIDdata" + struct.pack("<I", 0) + path.read_bytes()
        path.write_bytes(riff)
        assert len(read_notes(path).notes) == 2

    def test_a_tempo_map_in_another_track(self, tmp_path):
        """The tempo halves in the middle of the second note."""
        tempi = [message("set_tempo", tempo=500_000), message("set_tempo", time=720, tempo=1_000_000)]
        track = [
            note_on(60),
            note_off(60, 480),
            note_on(62),
            note_off(62, 480),
            note_on(64),
            note_off(64, 480),
        ]
        score = read_notes(midi(tmp_path, tempi, track))
        assert listed(score) == [(0, 0, 0.5, 60), (0, 0.5, 1.25, 62), (0, 1.25, 2.25, 64)]

    @pytest.mark.parametrize(("frames", "rate"), [(25, 25), (30, 30), (29, 30000 / 1001)])
    def test_times_of_film(self, tmp_path, frames, rate):
        ticks = struct.unpack(">h", struct.pack(">bB", -frames, 40))[0]
        score = read_notes(midi(tmp_path, [note_on(60), note_off(60, 1200)], ticks=ticks))
        assert score.notes[0].offset == pytest.approx(30 / rate)

    def test_percussion_is_left_out(self, tmp_path):
        drums = [note_on(36, channel=9), note_off(36, 480, 9)]
        tracks = [note_on(60), note_off(60, 480)], drums
        with pytest.warns(AudioWarning, match="1 notes of percussion, on channel 10, are left out"):
            assert listed(read_notes(midi(tmp_path, *tracks))) == [(0, 0, 0.5, 60)]
        with (
            pytest.warns(AudioWarning),
            pytest.raises(ValueError, match="expected at least one note, got none"),
        ):
            read_notes(midi(tmp_path, drums))

    def test_a_key_that_is_pressed_twice(self, tmp_path):
        track = [note_on(60), note_on(60, 240), note_off(60, 240), note_off(60, 480)]
        assert listed(read_notes(midi(tmp_path, track))) == [(0, 0, 0.5, 60), (0, 0.25, 1, 60)]

    def test_what_is_never_released_ends_with_the_track(self, tmp_path):
        assert listed(read_notes(midi(tmp_path, [note_on(60), note_on(64, 960)]))) == [(0, 0, 1, 60)]

    def test_notes_of_no_length_are_left_out(self, tmp_path):
        track = [note_on(60), note_off(60), note_on(62), note_off(62, 480), note_off(62)]
        assert listed(read_notes(midi(tmp_path, track))) == [(0, 0, 0.5, 62)]

    def test_the_pedal_holds_notes(self, tmp_path):
        pedal = lambda value, time: message("control_change", time, control=64, value=value)
        track = [pedal(127, 0), note_on(60), note_off(60, 240), note_on(64), note_off(64, 240), pedal(0, 480)]
        assert listed(read_notes(midi(tmp_path, track))) == [(0, 0, 1, 60), (0, 0.25, 1, 64)]
        again = [
            pedal(127, 0),
            note_on(60),
            note_off(60, 240),
            note_on(60, 240),
            pedal(0, 240),
            note_off(60, 240),
        ]
        assert listed(read_notes(midi(tmp_path, again))) == [(0, 0, 0.5, 60), (0, 0.5, 1, 60)]

    def test_all_notes_off(self, tmp_path):
        track = [note_on(60), message("control_change", 480, control=123, value=0), note_off(60, 480)]
        assert listed(read_notes(midi(tmp_path, track))) == [(0, 0, 0.5, 60)]

    def test_names_in_latin_1(self, tmp_path):
        track = [message("track_name", name="Flöte"), note_on(60), note_off(60, 480)]
        assert read_notes(midi(tmp_path, track)).names == ("Flöte",)

    @pytest.mark.parametrize("cut", [4, 13, 20, 30, -1])
    def test_damage(self, tmp_path, cut):
        path = midi(tmp_path, [note_on(60), note_off(60, 480), note_on(62), note_off(62, 480)])
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(
            ValueError, match=r"^notes: expected a whole MIDI file, got a damaged one"
        ) as caught:
            read_notes(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("place", "value", "message"),
        [(9, 2, "format 0 or 1, got format 2"), (9, 7, "format 0 or 1, got format 7"), (12, 0, "some ticks")],
    )
    def test_impossible_heads(self, tmp_path, place, value, message):
        path = midi(tmp_path, [note_on(60), note_off(60, 480)], ticks=1)
        content = bytearray(path.read_bytes())
        content[place] = value
        content[13] = 0 if place == 12 else content[13]
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^notes: expected .*{message}"):
            read_notes(path)

    def test_anything_at_all(self, tmp_path):
        """Bytes changed at random: notes, or one sentence."""
        write_midi(tmp_path / "a.mid", some_notes(), 2)
        source = (tmp_path / "a.mid").read_bytes()
        random, said = np.random.default_rng(0), []
        for _ in range(300):
            content = bytearray(source)
            for place in random.integers(len(content), size=random.integers(1, 9)):
                content[place] = random.integers(256)
            (tmp_path / "b.mid").write_bytes(content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AudioWarning)
                try:
                    read_notes(tmp_path / "b.mid")
                except ValueError as error:
                    said.append(str(error))
        assert said
        assert all(sentence.startswith("notes: ") and "\n" not in sentence for sentence in said)


class TestScore:
    def test_polyphony(self):
        score = lambda *notes: Score([plain_note(*note) for note in notes])
        assert score((0, 0, 1, 60), (0, 1, 2, 62)).polyphony() == (1,)
        assert score((0, 0, 1, 60), (0, 0.5, 2, 62), (0, 0.7, 0.8, 64)).polyphony() == (3,)
        assert score((0, 0, 1, 60), (0, 0.5, 2, 60.1)).polyphony() == (1,)
        assert score((0, 0, 1, 60), (1, 0, 1, 62)).polyphony() == (1, 1)
        assert score((0, 0, 1, 60), (1, 0, 1, 62), (1, 0, 1, 64)).polyphony() == (1, 2)
        assert Score([], ["flute"]).polyphony() == (1,)

    def test_within(self):
        score = Score([plain_note(0, 0, 2, 60), plain_note(1, 3, 4, 60)], rests=[Rest(0, 0.5, 9.0)]).within(
            1.5
        )
        assert [(note.onset, note.offset) for note in score.notes] == [(0, 1.5)]
        assert score.rests == (Rest(0, 0.5, 1.5),)
        assert score.num_instruments == 2

    def test_mistakes(self):
        with pytest.raises(ValueError, match="notes: expected instruments from 1 to 1, got 2"):
            Score([plain_note(1, 0, 1, 60)], ["flute"])
        with pytest.raises(ValueError, match="notes: expected an offset after the onset"):
            Score([plain_note(0, 1, 1, 60)])
        with pytest.raises(ValueError, match="notes: expected an offset after the onset"):
            Score([plain_note(0, 0, np.nan, 60)])
        with pytest.raises(ValueError, match="notes: expected pitches as MIDI counts them"):
            Score([Note(0, 0.0, 1.0, np.nan, 0.0, np.zeros(1), np.zeros(1))])

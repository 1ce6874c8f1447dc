"""Separation with notes that are known, in Python and on the command line."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from test_cli import run, workplace, write  # noqa: F401 (a fixture)
from test_report import synthetic_separation
from test_separate import KEY, MELODIES, QUICK, RATE, duet, mixture

from jaxsep.metrics.bss_eval import sdr_sir_sar_gain
from jaxsep.notes.formats import write_midi, write_notes
from jaxsep.notes.notes import to_midi
from jaxsep.notes.reading import read_notes
from jaxsep.notes.score import Score, plain_note
from jaxsep.separation import separate as separation_module
from jaxsep.separation.result import KnownNotes
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings

NAMES = ("hollow", "bright")


def semitones(frequency):
    return float(69 + 12 * np.log2(frequency / 440))


def score(error=0.0):
    """What the duet plays; every onset is off by `error`."""
    notes = [
        plain_note(instrument, 0.5 * n + error * (n > 0), 0.5 * (n + 1), semitones(frequency))
        for instrument, melody in enumerate(MELODIES)
        for n, frequency in enumerate(melody)
    ]
    return Score(notes, NAMES)


@cache
def at_notes():
    return separate(mixture(), RATE, notes=score(), key=KEY)


def measured(stems):
    return sdr_sir_sar_gain(*(jnp.asarray(x, jnp.float32) for x in (duet(), stems)))


def sdr(result):
    return np.asarray(measured(result.stems).sdr)


class TestAll:
    def test_stems(self):
        result = at_notes()
        assert result.names == NAMES
        figures = measured(result.stems)
        assert list(figures.permutation) == [0, 1]  # in the order of the notes
        assert np.min(figures.sdr) > 15
        np.testing.assert_allclose(result.stems.sum(axis=0), mixture(), atol=1e-5)
        assert result.restart_losses == ()

    def test_no_tone_without_a_note(self):
        tones = at_notes().tones
        pitch = to_midi(np.where(tones.active, tones.fundamental, 440.0))
        played = [to_midi(np.array(melody)) for melody in MELODIES]
        for instrument, pitches in enumerate(played):
            mine = tones.active & (tones.instrument == instrument)
            assert np.min(np.abs(pitch[mine][:, None] - pitches), axis=1).max() < 1

    @pytest.mark.slow
    def test_onsets_that_are_off(self):
        result = separate(mixture(), RATE, notes=score(0.05), key=KEY)
        assert np.mean(sdr(result)) > np.mean(sdr(at_notes())) - 0.5

    @pytest.mark.slow
    def test_the_same_key_gives_the_same_result(self):
        again = separate(mixture(), RATE, notes=score(), key=KEY)
        np.testing.assert_array_equal(at_notes().stems, again.stems)

    @pytest.mark.slow
    def test_an_instrument_without_notes_is_silent(self):
        notes = dataclasses.replace(score(), names=(*NAMES, "triangle"))
        result = separate(mixture(), RATE, notes=notes, key=KEY)
        assert result.stems.shape[0] == 3
        assert not np.any(result.tones.active & (result.tones.instrument == 2))


class TestBinding:
    @pytest.mark.slow
    def test_held_and_start(self):
        """The first two notes of each instrument are known."""
        few = dataclasses.replace(score(), notes=[note for note in score().notes if note.onset < 0.9])
        for notes_are in ("held", "start"):
            result = separate(mixture(), RATE, notes=few, notes_are=notes_are, settings=QUICK, key=KEY)
            figures = measured(result.stems)
            assert list(figures.permutation) == [0, 1]
            assert np.min(figures.sdr) > 12

    def test_mistakes(self):
        with pytest.raises(ValueError, match="notes_are: expected 'all' or 'held' or 'start', got 'some'"):
            separate(mixture(), RATE, notes=score(), notes_are="some", key=KEY)
        with pytest.raises(ValueError, match="notes: expected those of at most 1 instruments, got 2"):
            separate(mixture(), RATE, 1, notes=score(), key=KEY)
        with pytest.raises(ValueError, match=r"notes: expected some within the 2.0 s of the recording"):
            separate(mixture(), RATE, notes=Score([plain_note(0, 3, 4, 60)]), key=KEY)
        greedy = SeparationSettings(search="greedy")
        with pytest.raises(ValueError, match=r"notes_are: expected 'all' with greedy search, .* got 'held'"):
            separate(mixture(), RATE, notes=score(), notes_are="held", settings=greedy, key=KEY)
        with pytest.raises(ValueError, match="num_instruments: expected an integer, got None"):
            separate(mixture(), RATE, key=KEY)


@pytest.fixture
def asked(monkeypatch):
    """Replaces the separation by a made-up one; holds the arguments of each call."""
    calls = []

    def made_up(samples, sample_rate, num_instruments, *, notes, notes_are, **_):
        calls.append((num_instruments, notes, notes_are))
        return dataclasses.replace(synthetic_separation(), known=KnownNotes(notes, notes_are))

    monkeypatch.setattr(separation_module, "separate", made_up)
    return calls


@pytest.fixture
def notes_file(workplace):  # noqa: F811
    known = [plain_note(0, 0.1, 0.6, 69), plain_note(1, 0.5, 0.9, 76.02)]
    write_notes("known.csv", known, ["flute", "Violin I"])
    write_midi("known.mid", known, 2, names=["flute", "Violin I"])
    return workplace


class TestCommand:
    def test_names_are_used(self, notes_file, asked):
        code, out, err = run(
            "separate", "mix.wav", "--notes", "known.mid", "-o", "out", "--report", "--json", "--no-cache"
        )
        assert code == 0, err
        assert (asked[0][0], asked[0][2]) == (2, "all")
        document = json.loads(out)
        assert document["stems"] == ["stem-1-flute.wav", "stem-2-Violin-I.wav"]
        assert document["names"] == ["flute", "Violin I"]
        assert (document["input"]["notes"], document["input"]["notes_are"]) == ("known.mid", "all")
        assert read_notes("out/notes.mid").names == ("flute", "Violin I")
        page = Path("out/report.html").read_text(encoding="utf-8")
        assert "Violin I" in page
        assert "Instrument 2" not in page

    def test_all_notes_come_back(self, notes_file, asked):
        run("separate", "mix.wav", "--notes", "known.mid", "-o", "out", "--no-cache")
        given = read_notes("known.mid").notes
        for name in ("notes.mid", "notes.csv"):
            back = read_notes(f"out/{name}").notes
            for a, b in zip(given, back, strict=True):
                assert (a.instrument, round(a.pitch)) == (b.instrument, round(b.pitch))
                assert (a.onset, a.offset) == pytest.approx((b.onset, b.offset), abs=6e-5)

    def test_more_instruments_than_the_notes_have(self, notes_file, asked):
        run(
            "separate",
            "mix.wav",
            "-n",
            3,
            "--notes",
            "known.csv",
            "--notes-are",
            "held",
            "-o",
            "out",
            "--no-cache",
        )
        assert (asked[0][0], asked[0][2]) == (3, "held")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ([], "--instruments: expected their number, or --notes, got neither."),
            (["-n", 2, "--notes-are", "held"], "--notes-are: expected with --notes."),
            (["-n", 2, "--align"], "--align: expected with --notes."),
            (
                ["--notes", "known.csv", "-n", 1],
                "--instruments: expected at least the 2 of known.csv, got 1.",
            ),
            (["--notes", "none.csv"], "notes: none.csv cannot be read: No such file or directory"),
            (["--notes", "mix.wav"], "notes: expected a whole MIDI file"),
            (["--notes", "known.csv", "--notes-are", "some"], "--notes-are"),
            (["--notes", "known.csv", "--method", "neural"], "--notes: expected with --method pursuit"),
            (["--notes", "known.csv", "--method", "blasso"], "--notes: expected with --method pursuit"),
            (["--notes", "known.csv", "--restarts", 2], "--restarts: expected without --notes"),
            (["--notes", "known.csv", "--rounds", 1], "--rounds: expected with notes to search"),
            (["--notes", "known.csv", "--part", 20, "long.wav"], "expected with one recording"),
        ],
    )
    def test_mistakes(self, notes_file, asked, options, message):
        code, out, err = run("separate", "mix.wav", "-o", "out", "--no-cache", *options)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.splitlines()) == 1
        assert not Path("out").exists()

    def test_a_long_recording(self, notes_file, asked):
        write("long.wav", 0.1 * np.ones(25 * 8000), 8000)
        code, _, err = run(
            "separate", "long.wav", "--notes", "known.csv", "--part", 20, "-o", "out", "--no-cache"
        )
        assert (code, "--notes: expected a recording of at most --part 20 s, got 25 s." in err) == (2, True)

    @pytest.mark.slow
    def test_from_end_to_end(self, workplace):  # noqa: F811
        soundfile.write("duet.wav", mixture(), RATE, subtype="FLOAT")
        write_midi("duet.mid", score().notes, 2, names=NAMES)
        code, _, err = run("separate", "duet.wav", "--notes", "duet.mid", "-o", "out", "--no-cache")
        assert code == 0, err
        stems = [soundfile.read(f"out/stem-{n + 1}-{name}.wav")[0] for n, name in enumerate(NAMES)]
        assert np.min(measured(np.stack(stems)).sdr) > 15

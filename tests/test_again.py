"""A separation that goes on from an earlier one, where its notes were corrected."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import equinox as eqx
import numpy as np
import pytest
from test_cli import run, workplace  # noqa: F401 (a fixture)
from test_known_separate import asked, score, sdr  # noqa: F401 (a fixture)
from test_report import synthetic_separation
from test_separate import KEY, RATE, mixture

from jaxsep.notes.formats import write_notes
from jaxsep.notes.notes import to_midi
from jaxsep.notes.score import Rest, Score, plain_note
from jaxsep.results.read import read_earlier
from jaxsep.results.write import write_results
from jaxsep.search import hypotheses
from jaxsep.search.streams import Streams
from jaxsep.separation import separate as separation_module
from jaxsep.separation.found import Earlier, notes_of
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings

QUICK = SeparationSettings(rounds=1, hop=1024)

#: The note with which the earlier separation is wrong: the third of the first instrument, a fifth too high.
WRONG = 4, 7.0


def listed(wrong):
    """What the duet plays, with one wrong note or none; the right one in its place alone is held."""
    notes = sorted(score().notes, key=lambda note: (note.onset, note.instrument))
    number, interval = WRONG
    assert notes[number].instrument == 0
    pitch = notes[number].pitch + interval * wrong
    held = [dataclasses.replace(n, held=k == number) for k, n in enumerate(notes)]
    held[number] = dataclasses.replace(held[number], pitch=pitch)
    return Score(held, score().names)


@cache
def before():
    return separate(mixture(), RATE, notes=listed(wrong=True), settings=QUICK, key=KEY)


@cache
def after():
    known = {"notes": listed(wrong=False), "notes_are": "held", "earlier": before()}
    return separate(mixture(), RATE, **known, settings=QUICK, key=KEY)


def lines(separation):
    """Pitch of each instrument's loudest tone in every frame, NaN where it rests."""
    tones, rows = separation.tones, []
    for instrument in range(2):
        mine = tones.active & (tones.instrument == instrument)
        loudest = np.argmax(np.where(mine, tones.amplitude, -1), axis=1)[:, None]
        pitch = to_midi(np.where(mine, tones.fundamental, 440))
        rows.append(np.take_along_axis(np.where(mine, pitch, np.nan), loudest, axis=1)[:, 0])
    return np.stack(rows, axis=1)


class TestSeparation:
    def test_the_correction_is_heard(self):
        assert np.min(sdr(before())) < 10
        assert np.min(sdr(after())) > 15
        times, pitch = after().times, lines(after())
        inside = (times > 1.1) & (times < 1.4)
        np.testing.assert_allclose(pitch[inside, 0], listed(wrong=False).notes[WRONG[0]].pitch, atol=0.5)

    def test_elsewhere_nothing_is_searched(self):
        touched = Earlier.of(before()).touched(listed(wrong=False))
        assert 0.4 < touched.mean() < 0.7
        np.testing.assert_array_equal(after().confidence[~touched], before().confidence[~touched])
        old, new = lines(before())[~touched], lines(after())[~touched]
        both = np.isfinite(old) & np.isfinite(new)
        assert both.mean() > 0.95
        np.testing.assert_allclose(new[both], old[both], atol=0.2)

    @pytest.mark.slow
    def test_what_follows_is_searched_too(self, monkeypatch):
        touched = Earlier.of(before()).touched(listed(wrong=False))
        frame = np.flatnonzero(~touched)[-5]
        given = []

        def followed(streams, tones, *rest):
            given.append(rest[-1].sure(tones).any())  # the notes that are known
            number = np.array(tones.instrument)
            number[frame] = 1 - number[frame]
            return eqx.tree_at(lambda t: t.instrument, tones, number)

        monkeypatch.setattr(Streams, "follow", followed)
        known = {"notes_are": "held", "earlier": before(), "settings": QUICK, "key": KEY}
        found = separate(mixture(), RATE, notes=listed(wrong=False), **known)
        changed = found.confidence != before().confidence
        assert given == [True]
        assert set(np.flatnonzero(changed & ~touched)) == {frame}

    @pytest.mark.slow
    def test_fewer_explanations_are_tried(self, monkeypatch):
        tried = []
        whole = hypotheses.refit

        def counted(model, spectra, *rest):
            tried.append(len(spectra))
            return whole(model, spectra, *rest)

        monkeypatch.setattr(hypotheses, "refit", counted)
        known = {"notes_are": "held", "earlier": before(), "settings": QUICK, "key": KEY}
        separate(mixture(), RATE, notes=listed(wrong=False), **known)
        assert len(tried) == 2  # a round, and the last one
        assert max(tried) < 0.75 * before().loss.size

    @pytest.mark.parametrize("held", [False, True])
    def test_what_is_right_stays_as_it_was(self, held):
        """Marked so or not."""
        right = [dataclasses.replace(note, held=held) for note in notes_of(after())]
        known = {"notes_are": "held", "earlier": after(), "settings": QUICK, "key": KEY}
        again = separate(mixture(), RATE, notes=Score(right, score().names), **known)
        assert eqx.tree_equal(again.dictionary, after().dictionary)
        np.testing.assert_array_equal(again.confidence, after().confidence)
        np.testing.assert_allclose(sdr(again), sdr(after()), atol=0.1)
        assert len(again.cost_trace) == 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"notes_are": "all"}, "earlier: expected notes that are held, got 'all'"),
            ({"notes": None, "num_instruments": 2}, "earlier: expected notes that are held, got None"),
            ({"num_instruments": 3}, "earlier: expected 3 instruments, got 2"),
            ({"dictionary": synthetic_separation().dictionary}, "earlier: expected no dictionary"),
            ({"settings": SeparationSettings()}, "earlier: expected .* frames, one every 10.67 ms"),
        ],
    )
    def test_mistakes(self, options, message):
        known = {"notes": listed(wrong=False), "notes_are": "held", "earlier": before(), "settings": QUICK}
        with pytest.raises(ValueError, match=message):
            separate(mixture(), RATE, **(known | options), key=KEY)


class TestTouched:
    def earlier(self):
        found = synthetic_separation()
        notes = [plain_note(0, 0.0, 0.3, 69), plain_note(1, 0.6, 0.7, 76)]
        return Earlier.read(found.tones, found.times, found.dictionary, notes)

    def of(self, notes, rests=()):
        earlier = self.earlier()
        return earlier.times[earlier.touched(Score(notes, ("a", "b"), rests))]

    def test_what_is_listed_as_it_was_found(self):
        notes = self.earlier().notes
        assert self.of(notes).size == 0
        rounded = dataclasses.replace(notes[0], onset=0.00004, pitch=69.004, held=False)
        assert self.of([rounded, notes[1]]).size == 0

    @pytest.mark.parametrize(
        "changed",
        [
            [],
            [plain_note(0, 0.6, 0.7, 76)],
            [plain_note(1, 0.6, 0.7, 77)],
            [plain_note(1, 0.6, 0.8, 76)],
        ],
    )
    def test_what_is_changed(self, changed):
        touched = self.of([self.earlier().notes[0], *changed])
        assert 0.3 < touched.min() < 0.6
        assert touched.max() > 0.7

    def test_rests(self):
        touched = self.of(self.earlier().notes, [Rest(1, 0.45, 0.5)])
        assert 0.15 < touched.min() < 0.25
        assert 0.85 < touched.max() < 0.95


@pytest.fixture
def folder(workplace):  # noqa: F811
    """Results of an earlier run, with the notes that it found, one of them corrected."""
    Path("first").mkdir()
    found = synthetic_separation()
    settings = SeparationSettings(rounds=1, share=0.0)
    about = {"settings": settings, "seed": 0, "source": {"file": "mix.wav", "dictionary": None}}
    write_results(Path("first"), [(found.stems.sum(axis=0), found)], (".wav", "FLOAT"), **about)
    notes = [dataclasses.replace(note, pitch=note.pitch + 1) for note in notes_of(found)[:1]]
    write_notes("corrected.csv", [*notes, *notes_of(found)[1:]])
    return workplace


class TestCommand:
    def test_results_are_read_back(self, folder):
        earlier, found = read_earlier(Path("first")), synthetic_separation()
        np.testing.assert_allclose(earlier.tones.fundamental[:90], found.tones.fundamental, atol=1e-3)
        np.testing.assert_allclose(earlier.dictionary.harmonics, found.dictionary.harmonics)
        assert not earlier.touched(Score(notes_of(found))).any()
        # Of a frame it is that of the note there.
        for note in earlier.notes:
            middle = np.argmin(np.abs(earlier.times - (note.onset + note.offset) / 2))
            assert earlier.confidence[middle] <= note.confidence + 0.01

    def test_the_settings_are_those_of_the_earlier_run(self, folder, monkeypatch):
        asked = {}  # noqa: F811

        def made_up(samples, rate, number, **options):
            asked.update(options)
            return synthetic_separation()

        monkeypatch.setattr(separation_module, "separate", made_up)
        options = "--from", "first", "--notes", "corrected.csv", "--phase-iterations", 2
        code, out, err = run("separate", "mix.wav", *options, "-o", "out", "--json", "--no-cache")
        assert code == 0, err
        assert asked["settings"] == SeparationSettings(rounds=1, share=0.0, phase_iterations=2)
        assert asked["notes_are"] == "held"
        assert asked["earlier"].touched(asked["notes"]).any()
        about = json.loads(out)["input"]
        assert (about["from"], about["notes"], about["notes_are"]) == ("first", "corrected.csv", "held")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--from", "first", "-n", 2], "--from: expected with --notes, its notes.csv"),
            (["--notes", "corrected.csv", "--from", "none"], "none is not a folder; name one that"),
            (["--notes", "corrected.csv", "--from", "first", "--notes-are", "all"], "got --notes-are all."),
            (["--notes", "corrected.csv", "--from", "first", "--hop", 256], "--hop: expected without --from"),
            (["--notes", "corrected.csv", "--from", "first", "--tones", 2], "--tones: expected without"),
            (["--notes", "corrected.csv", "--from", "first", "--fast"], "--fast: expected without --from"),
            (["--notes", "corrected.csv", "--from", "first", "--method", "blasso"], "expected with --method"),
            (["--notes", "corrected.csv", "--from", "greedy"], "expected the folder of a full search"),
        ],
    )
    def test_mistakes(self, folder, options, message):
        if "greedy" in options:
            document = json.loads(Path("first/separation.json").read_text())
            document["settings"]["search"] = "greedy"
            Path("greedy").mkdir()
            Path("greedy/separation.json").write_text(json.dumps(document))
        code, out, err = run("separate", "mix.wav", "-o", "out", "--no-cache", *options)
        assert (code, out) == (2, "")
        assert message in err
        assert not Path("out").exists()

"""Names for what was learned: the library that ships, what is clear and what is not, where names appear."""

import dataclasses
import json
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_report import synthetic_separation

import jaxsep
from benchmarks.commands.names import in_order, names_of, outcomes, plain
from benchmarks.common import Piece
from jaxsep.cli import compute
from jaxsep.cli.app import main
from jaxsep.learning.names import assign_names, name_instruments, timbre_distances
from jaxsep.results.read import read_instruments
from jaxsep.separation import separate as separation
from jaxsep.separation.result import KnownNotes
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.instruments import Instruments
from jaxsep.tones.library import SHIPPED, read_about, unique_names
from jaxsep.tones.tones import Tones

RANGE = np.array([[40.0, 90.0]], np.float32)


@pytest.fixture(scope="module")
def orchestra():
    return Instruments.orchestra()


def melodies(instruments, num_notes=12):
    """One note after the other over the middle of each instrument's range, fundamentals in Hz."""
    ranges = instruments.ranges
    places = np.linspace(0.2, 0.8, num_notes)[:, None]
    pitches = ranges[:, 0] + places * (ranges[:, 1] - ranges[:, 0])
    owners = np.broadcast_to(np.arange(len(ranges)), pitches.shape)
    hertz = jnp.asarray(440 * 2 ** ((pitches - 69) / 12), jnp.float32)
    return Tones.plain(jnp.ones(hertz.shape), hertz, jnp.asarray(owners))


def perturbed(dictionary, decibels, seed=0):
    """The same with harmonics that are louder or softer by chance."""
    random = np.random.default_rng(seed)
    louder = lambda x: x * 10 ** (decibels * random.standard_normal(x.shape) / 20)
    rows = louder(np.asarray(dictionary.harmonics))
    rows = np.asarray(rows / rows.max(axis=1, keepdims=True), np.float32)
    by_pitch = np.asarray(louder(np.asarray(dictionary.by_pitch)), np.float32)
    return Dictionary(jnp.asarray(rows), jnp.asarray(by_pitch), dictionary.pitches)


def rows_of(dictionary):
    return dictionary.harmonics, dictionary.by_pitch


class TestLibrary:
    def test_it_is_small_and_says_where_it_comes_from(self, orchestra):
        assert SHIPPED.stat().st_size < 300_000
        assert "Frank Wen" in orchestra.source
        assert orchestra.licence == "MIT"
        assert "Permission is hereby granted" in (SHIPPED.parent / "README.md").read_text()

    def test_every_instrument_can_be_used(self, orchestra):
        orchestra.dictionary.check()
        assert 12 <= len(orchestra.names) == len(set(orchestra.names)) <= 16
        assert orchestra.dictionary.by_pitch.dtype == jnp.float32
        assert not np.any(np.all(np.asarray(orchestra.dictionary.by_pitch) == 0, axis=2))

    def test_odd_harmonics_prevail_in_the_low_clarinet(self, orchestra):
        at = Tones.plain(jnp.ones(1), jnp.array([175.0]), jnp.array([orchestra.names.index("clarinet")]))
        harmonics = np.asarray(orchestra.dictionary.of(at))[0]
        assert min(harmonics[0], harmonics[2]) > 3 * max(harmonics[1], harmonics[3])

    def test_some_are_chosen_in_their_order(self, orchestra):
        some = orchestra.chosen(["cello", "violin", "violin"])
        assert some.names == ("cello", "violin", "violin 2")
        row = orchestra.names.index("cello")
        np.testing.assert_array_equal(some.dictionary.by_pitch[0], orchestra.dictionary.by_pitch[row])
        np.testing.assert_array_equal(some.ranges[0], orchestra.ranges[row])

    def test_an_unknown_one_is_refused(self, orchestra):
        with pytest.raises(ValueError, match=r"^instruments: expected some of piccolo, .*, got kazoo$"):
            orchestra.chosen(["violin", "kazoo"])

    def test_it_is_read_as_it_was_saved(self, orchestra, tmp_path):
        orchestra.chosen(["oboe", "horn"]).save(tmp_path / "two.npz")
        again = Instruments.load(tmp_path / "two.npz")
        assert again.names == ("oboe", "horn")
        assert (again.source, again.licence) == (orchestra.source, orchestra.licence)
        np.testing.assert_array_equal(again.ranges, orchestra.chosen(["oboe", "horn"]).ranges)
        assert Dictionary.load(tmp_path / "two.npz").num_instruments == 2

    def test_shapes_belong_together(self, orchestra):
        with pytest.raises(ValueError, match=r"^names: expected 16, one for each instrument, got 2$"):
            dataclasses.replace(orchestra, names=("a", "b"))
        with pytest.raises(ValueError, match=r"^ranges: expected shape \(16, 2\), got \(1, 2\)$"):
            dataclasses.replace(orchestra, ranges=RANGE)
        with pytest.raises(ValueError, match=r"^ranges: expected finite pitches"):
            dataclasses.replace(orchestra, ranges=orchestra.ranges[:, ::-1])

    @pytest.mark.parametrize(
        "header",
        [
            {},
            {"names": ["a"], "ranges": [[40, 90]], "source": "", "licence": 3},
            {"names": ["a/../b"], "ranges": [[40, 90]], "source": "", "licence": ""},
            {"names": ["a", "a"], "ranges": [[40, 90], [40, 90]], "source": "", "licence": ""},
            {"names": ["a"], "ranges": [[40]], "source": "", "licence": ""},
            {"names": 1, "ranges": [[40, 90]], "source": "", "licence": ""},
        ],
    )
    def test_a_hostile_header_is_refused(self, header, tmp_path):
        Dictionary(jnp.array([[1.0, 0.5]])).save(tmp_path / "odd.npz", header)
        with pytest.raises(ValueError, match=r"^instruments: expected a library of named instruments, got "):
            Instruments.load(tmp_path / "odd.npz")

    def test_names_of_others_are_refused(self, tmp_path):
        header = {"names": ["a", "b"], "ranges": [[40, 90]] * 2, "source": "", "licence": ""}
        Dictionary(jnp.array([[1.0, 0.5]])).save(tmp_path / "odd.npz", header)
        with pytest.raises(ValueError, match=r"odd\.npz cannot be used: names: expected 1, .*, got 2$"):
            Instruments.load(tmp_path / "odd.npz")

    def test_nothing_is_unpickled(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return (open, (str(tmp_path / "sprung"), "w"))

        np.savez(tmp_path / "trap.npz", header=np.array([Trap()], object), harmonics=np.ones((1, 2)))
        (tmp_path / "plain.npz").write_bytes(pickle.dumps(Trap()))
        for name in ("trap.npz", "plain.npz"):
            with pytest.raises(ValueError, match="is not a dictionary written by jaxsep"):
                Instruments.load(tmp_path / name)
            with pytest.raises(ValueError, match="expected a library of named instruments"):
                read_about(tmp_path / name)
        assert not (tmp_path / "sprung").exists()


class TestMatching:
    def test_each_is_known_again(self, orchestra):
        tones = melodies(orchestra)
        assert name_instruments(orchestra.dictionary, tones, orchestra) == orchestra.names

    def test_each_is_nearest_with_other_harmonics(self, orchestra):
        tones, other = melodies(orchestra), perturbed(orchestra.dictionary, 2.0)
        distances = timbre_distances(other, tones, orchestra)
        assert np.all(np.argmin(distances, axis=1) == np.arange(len(orchestra.names)))
        assert assign_names(other, tones, orchestra) == orchestra.names
        given = name_instruments(other, tones, orchestra)
        assert all(name in (None, true) for name, true in zip(given, orchestra.names, strict=True))
        assert sum(name is not None for name in given) > 8

    def test_the_gain_does_not_matter(self, orchestra):
        tones, known = melodies(orchestra), orchestra.dictionary
        softer = Dictionary(known.harmonics / 2, 0.1 * known.by_pitch, known.pitches)
        expected = timbre_distances(known, tones, orchestra)
        np.testing.assert_allclose(timbre_distances(softer, tones, orchestra), expected, atol=1e-3)

    def test_what_is_between_two_has_no_name(self, orchestra):
        two = orchestra.chosen(["oboe", "clarinet"])
        audible = lambda x: jnp.maximum(x / x.max(axis=-1, keepdims=True), 1e-3)
        middle = lambda x: jnp.sqrt(audible(x)[:1] * audible(x)[1:])
        known = two.dictionary
        between = Dictionary(middle(known.harmonics), middle(known.by_pitch), known.pitches)
        tones = melodies(orchestra.chosen(["oboe"]))
        one, other = timbre_distances(between, tones, two)[0]
        assert 1 / 1.2 < one / other < 1.2
        assert name_instruments(between, tones, two) == (None,)

    def test_what_is_far_from_all_has_no_name(self, orchestra):
        even = Dictionary(jnp.tile(jnp.array([[0.01, 1.0]]), (1, 10)))
        tones = melodies(orchestra.chosen(["cello"]))
        assert name_instruments(even, tones, orchestra) == (None,)
        assert name_instruments(even, tones, orchestra.chosen(["cello"])) == (None,)

    def test_only_the_pitches_that_are_played_are_compared(self, orchestra):
        violin = orchestra.chosen(["violin"])
        known = violin.dictionary
        low = np.asarray(known.pitches) < 300
        odd = jnp.where(low[:, None], known.by_pitch[:, :, ::-1], known.by_pitch)
        other = Dictionary(known.harmonics, odd, known.pitches)
        high = lambda hertz: Tones.plain(jnp.ones((3, 1)), jnp.full((3, 1), hertz), jnp.zeros((3, 1), int))
        assert name_instruments(other, high(880.0), orchestra) == ("violin",)
        assert name_instruments(other, high(220.0), orchestra) == (None,)

    def test_nobody_is_called_as_one_that_cannot_play_it(self, orchestra):
        violin = orchestra.chosen(["violin"])
        low = Tones.plain(jnp.ones((3, 1)), jnp.full((3, 1), 90.0), jnp.zeros((3, 1), int))
        off = perturbed(violin.dictionary, 2.0)
        near, far = (
            timbre_distances(off, low, dataclasses.replace(violin, ranges=np.array([ends], np.float32)))
            for ends in ([30.0, 100.0], [55.0, 100.0])
        )
        np.testing.assert_allclose(far, 6 * near, rtol=1e-5)

    def test_two_of_a_kind_are_numbered(self, orchestra):
        two = orchestra.chosen(["violin", "violin"])
        names = name_instruments(two.dictionary, melodies(two), orchestra)
        assert names == ("violin", "violin 2")

    def test_who_plays_nothing_has_no_name(self, orchestra):
        two = orchestra.chosen(["violin", "cello"])
        tones = melodies(two)
        silent = dataclasses.replace(tones, active=tones.active & (tones.instrument == 1))
        assert name_instruments(two.dictionary, silent, orchestra) == (None, "cello")
        assert assign_names(two.dictionary, silent, two) == (None, "cello")

    def test_told_instruments_share_the_names(self, orchestra):
        """Both are nearest to the violin, but a horn plays."""
        known, two = orchestra.chosen(["horn", "violin"]), orchestra.chosen(["violin", "violin"])
        exact, rough = two.dictionary, perturbed(two.dictionary, 2.0)
        rows = (jnp.stack([x[0], y[1]]) for x, y in zip(*map(rows_of, (exact, rough)), strict=True))
        learned, tones = Dictionary(*rows, exact.pitches), melodies(two)
        nearest = np.argmin(timbre_distances(learned, tones, known), axis=1)
        assert nearest.tolist() == [1, 1]
        assert assign_names(learned, tones, known) == ("violin", "horn")

    def test_dictionaries_of_other_shapes_are_compared(self, orchestra):
        flat = Dictionary(orchestra.chosen(["recorder"]).dictionary.harmonics[:, :12])
        tones = melodies(orchestra.chosen(["recorder"]))
        distances = timbre_distances(flat, tones, orchestra)
        assert orchestra.names[int(np.argmin(distances))] == "recorder"


def test_unique_names():
    assert unique_names(["a", "b", "a", "a"]) == ["a", "b", "a 2", "a 3"]


@pytest.fixture(scope="module")
def duet():
    return synthetic_separation()


class TestSeparation:
    def test_blind_names_are_numbers(self, duet):
        assert duet.labels == ()
        assert duet.names == ("instrument 1", "instrument 2")

    def test_labels_are_names_in_the_files(self, duet, tmp_path):
        named = dataclasses.replace(duet, labels=("recorder", None))
        assert named.names == ("recorder", "instrument 2")
        named.save(tmp_path / "duet")
        files = {path.name for path in (tmp_path / "duet").iterdir()}
        assert {"stem-1-recorder.wav", "stem-2.wav"} <= files
        assert "recorder" in (tmp_path / "duet" / "notes.mid").read_bytes().decode("latin1")
        again = jaxsep.Separation.load(tmp_path / "duet")
        assert (again.labels, again.names) == (named.labels, named.names)

    def test_a_result_names_another(self, duet, tmp_path):
        named = dataclasses.replace(duet, labels=("kazoo", None))
        named.save(tmp_path / "earlier")
        known = read_instruments(tmp_path / "earlier")
        assert known.names == ("kazoo",)
        rows = known.dictionary.harmonics
        np.testing.assert_array_equal(rows[0], duet.dictionary.harmonics[0])
        assert duet.named(known).names == ("kazoo", "instrument 2")

    def test_a_result_without_names_names_nothing(self, duet, tmp_path):
        duet.save(tmp_path / "blind")
        with pytest.raises(ValueError, match=r"expected some with names in \S+blind, got numbers alone$"):
            read_instruments(tmp_path / "blind")

    def test_names_of_notes_come_before_those_of_sounds(self, duet):
        score = jaxsep.Score([], names=["instrument 1", "flute"])
        told = dataclasses.replace(duet, known=KnownNotes(score, "start"), labels=("oboe", "horn"))
        assert told.names == ("oboe", "flute")


class TestBeginning:
    """Instruments to begin with, of which the survey hears."""

    @pytest.fixture
    def surveys(self, monkeypatch):
        """What the search would begin with; nothing is searched."""
        seen = []

        def search(self, spectra, survey):
            seen.append(survey)
            raise InterruptedError

        monkeypatch.setattr(separation.Stages, "search", search)
        return seen

    @pytest.fixture
    def sound(self):
        mixture, _, rate = jaxsep.demo_recording()
        return mixture[: rate // 2], rate

    def test_they_begin_and_may_change(self, orchestra, surveys, sound):
        two = orchestra.chosen(["recorder", "clarinet"])
        with pytest.raises(InterruptedError):
            jaxsep.separate(*sound, instruments=two, key=jax.random.key(0))
        (survey,) = surveys
        assert survey.learn
        assert survey.num_instruments == 2
        assert survey.dictionaries == (two.dictionary,)
        assert survey.labelled(two.dictionary, melodies(two)) == two.names

    def test_a_library_changes_nothing_but_names(self, orchestra, surveys, sound):
        for options in ({}, {"like": orchestra}):
            with pytest.raises(InterruptedError):
                jaxsep.separate(*sound, 2, **options, key=jax.random.key(0))
        blind, named = surveys
        assert blind.naming is None
        assert named._replace(naming=None, peak=0) == blind._replace(peak=0)
        two = orchestra.chosen(["horn", "tuba"])
        assert named.labelled(two.dictionary, melodies(two)) == ("horn", "tuba")
        assert named._replace(labels=("a", "b")).labelled(two.dictionary, melodies(two)) == ("a", "b")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_instruments": 3}, "expected 3, got 2"),
            ({"settings": jaxsep.SeparationSettings(restarts=1)}, "got restarts, too"),
            ({"settings": jaxsep.SeparationSettings(search="greedy")}, "got a greedy search, too"),
            ({"dictionary": Dictionary(jnp.ones((2, 2)))}, "got a dictionary, too"),
        ],
    )
    def test_what_contradicts_them_is_refused(self, options, message, orchestra, surveys, sound):
        two = orchestra.chosen(["recorder", "clarinet"])
        with pytest.raises(ValueError, match=rf"^instruments: .*{message}$"):
            jaxsep.separate(*sound, instruments=two, **options, key=jax.random.key(0))
        assert not surveys


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-n", "violin,kazoo"], "--instruments: expected a number, or some of piccolo, "),
        (["-n", "violin,"], "expected a number, or names such as violin,cello, got 'violin,'"),
        (["-n", 2, "--like", "nowhere"], "nowhere is not a folder"),
        (["-n", "oboe,horn", "--restarts", 1], "--restarts: expected without names in --instruments"),
        (["-n", "oboe,horn", "--dictionary", "d.npz"], "--dictionary: expected without names"),
        (["-n", "oboe,horn", "--notes", "n.csv"], "--notes: expected without names in --instruments"),
        (["-n", "oboe,horn", "--method", "neural"], "--instruments: expected a number with --method neural"),
        (["-n", 2, "--like", "orchestra", "--method", "neural"], "--like: expected with --method pursuit"),
    ],
)
def test_what_has_no_effect_or_is_unknown_is_refused(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["separate", "mix.wav", "-o", "out", *map(str, options)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class TestCommandLine:
    """The options and the files; the separation is made up, and names what it is asked to name."""

    @pytest.fixture
    def asked(self, duet, tmp_path, monkeypatch):
        """The arguments of each call."""
        calls = []

        def separate(samples, sample_rate, num_instruments, *, settings, dictionary, progress, key, **more):
            calls.append({"num_instruments": num_instruments} | more)
            if "like" in more:
                return duet.named(more["like"])
            labels = more["instruments"].names if "instruments" in more else ()
            return dataclasses.replace(duet, labels=labels)

        monkeypatch.setattr(separation, "separate", separate)
        monkeypatch.setattr(compute, "overview", lambda *_: None)
        monkeypatch.chdir(tmp_path)
        mixture, _, rate = jaxsep.demo_recording()
        jaxsep.write_audio("duet.wav", mixture[:rate], rate)
        return calls

    def separated(self, folder, *options):
        """Names of the stems, and what the document says of the input."""
        assert main(["separate", "duet.wav", "--no-cache", "-o", folder, *options]) == 0
        about = json.loads(Path(folder, "separation.json").read_text())
        return sorted(path.name for path in Path(folder).glob("stem-*")), about["input"]

    def test_blindly_nothing_has_a_name(self, asked):
        stems, about = self.separated("out", "-n", "2")
        assert stems == ["stem-1.wav", "stem-2.wav"]
        assert asked == [{"num_instruments": 2}]
        assert not {"like", "players"} & set(about)

    def test_instruments_can_be_told(self, asked, orchestra):
        stems, about = self.separated("out", "-n", "violin, double  bass")
        assert stems == ["stem-1-violin.wav", "stem-2-double-bass.wav"]
        (call,) = asked
        assert call["num_instruments"] == 2
        assert call["instruments"].names == ("violin", "double bass")
        assert about["players"] == ["violin", "double bass"]
        assert "violin" in Path("out", "notes.csv").read_text()

    def test_the_library_that_ships_is_called_orchestra(self, asked, orchestra):
        _, about = self.separated("out", "-n", "2", "--like", "orchestra")
        (call,) = asked
        assert call["like"].names == orchestra.names
        assert about["like"] == "orchestra"

    def test_an_earlier_result_names_this_one(self, asked):
        self.separated("earlier", "-n", "horn,oboe")
        stems, _ = self.separated("again", "-n", "2", "--like", "earlier")
        assert stems == ["stem-1-horn.wav", "stem-2-oboe.wav"]
        told, _ = self.separated("told", "-n", "oboe,horn", "--like", "earlier")
        assert told == ["stem-1-oboe.wav", "stem-2-horn.wav"]
        assert main(["separate", "duet.wav", "-o", "not", "-n", "violin,horn", "--like", "earlier"]) == 2

    def test_an_earlier_result_without_names_is_refused(self, asked, capsys):
        self.separated("earlier", "-n", "2")
        assert main(["separate", "duet.wav", "-n", "2", "-o", "out", "--like", "earlier", "--no-cache"]) == 2
        assert "expected some with names in earlier, got numbers alone" in capsys.readouterr().err
        assert not Path("out").exists()


@pytest.mark.slow
def test_the_demo_is_called_by_its_names(orchestra):
    mixture, stems, rate = jaxsep.demo_recording()
    settings = jaxsep.SeparationSettings(hop=2048)
    players = orchestra.chosen(["clarinet", "recorder"])
    told = jaxsep.separate(mixture, rate, instruments=players, settings=settings, key=jax.random.key(0))
    assert sorted(told.names) == ["clarinet", "recorder"]
    truth = np.stack([stems[name] for name in told.names])
    scores = jaxsep.sdr_sir_sar_gain(jnp.asarray(truth), jnp.asarray(told.stems))
    assert scores.permutation.tolist() == [0, 1]
    assert set(told.named(orchestra).names) <= {"clarinet", "recorder", "instrument 1", "instrument 2"}


def test_the_library_is_listed(capsys):
    assert main(["dictionaries"]) == 0
    out = capsys.readouterr().out
    assert "violin" in out
    assert "G3" in out
    assert "licence: MIT" in out
    assert main(["dictionaries", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == list(read_about(SHIPPED).names)


class TestCounting:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("violin-1", "violin"),
            ("violin 2", "violin"),
            ("sax", "saxophone"),
            ("oboe", "oboe"),
            (None, None),
        ],
    )
    def test_numbers_do_not_count(self, name, kind):
        assert plain(name) == kind

    def test_right_wrong_and_none(self):
        run = {"true": ["violin", "violin", "oboe", "horn"], "like": ["violin", "violin 2", None, "tuba"]}
        assert outcomes(run) == {"right": 2, "none": 1, "wrong": 1}

    def test_a_separation_is_counted_in_the_order_of_the_truth(self, orchestra, duet):
        """Made of library instruments whose stems are in the other order."""
        two = orchestra.chosen(["oboe", "trumpet"])
        stems = np.random.default_rng(0).standard_normal((2, 1000))
        made = {"stems": stems, "mixture": None, "dictionary": two.dictionary, "tones": melodies(two)}
        found = dataclasses.replace(duet, **made)
        piece = Piece("two", ("trumpet", "oboe"), stems.sum(axis=0), stems[::-1], duet.sample_rate)
        run = names_of(piece.instruments, in_order(found, piece))
        assert run["true"] == ["trumpet", "oboe"] == list(run["like"]) == run["told"]
        assert outcomes(run, "missing")["right"] == 0

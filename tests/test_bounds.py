"""The lowest and the highest note that are looked for: nothing is found beyond them."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import AXIS, DICTIONARY, OCTAVE, SEMITONE, Note, pack_notes, render_notes

import jaxsep
from jaxsep.blasso.decompose import decompose
from jaxsep.learning.octaves import raise_octaves
from jaxsep.notes.note import note_name, read_frequency
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.recording import pursue, refit
from jaxsep.pursuit.refinement import ToneFit
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.search.moves import reselected
from jaxsep.separation.settings import SeparationSettings
from jaxsep.separation.stages import Stages

OBJECTIVE, HARMONICS = LiftedLoss(AXIS), jnp.asarray(DICTIONARY, jnp.float32)

#: An instrument that plays what another one does an octave higher, at the expense of a weak fundamental.
FALSE = np.array([[0.05, 1.0, 0.05, 0.5, 0.05, 0.33, 0.05, 0.25]])

RATE = 48000


def bounds(lowest=-math.inf, highest=math.inf):
    return {"lowest": jnp.asarray(lowest, jnp.float32), "highest": jnp.asarray(highest, jnp.float32)}


def spectra_of(*notes, dictionary=DICTIONARY):
    return render_notes(notes, dictionary)[None].astype(np.float32)


def places(tones):
    return np.sort(np.asarray(tones.fundamental)[np.asarray(tones.active)])


@pytest.fixture
def octave():
    """A note with all harmonics, which `FALSE` explains best an octave lower, and the place of the note."""
    place = 250.0
    return spectra_of(Note(0, 1.0, place), dictionary=1 / np.arange(1, 9)[None]), place


class TestPursuit:
    def test_without_a_false_low_octave_the_true_one_is_found(self, octave):
        spectra, place = octave
        rows = jnp.asarray(FALSE, jnp.float32)
        free = pursue(TonePursuit(OBJECTIVE), spectra, rows)
        assert places(free.tones) == pytest.approx([place - OCTAVE], abs=0.5)
        bound = pursue(TonePursuit(OBJECTIVE, **bounds(place - 5 * SEMITONE)), spectra, rows)
        assert places(bound.tones) == pytest.approx([place], abs=0.5)

    @pytest.mark.parametrize("edge", [-1.0, 0.5, 2.0, 5.0])
    def test_what_sounds_beyond_is_left_and_hinders_nothing(self, edge):
        """A loud note so many semitones below the lowest, and one inside."""
        spectra = spectra_of(Note(1, 1.0, 200.0), Note(0, 0.4, 225.0))
        lowest = 200.0 + edge * SEMITONE
        found = pursue(TonePursuit(OBJECTIVE, **bounds(lowest)), spectra, HARMONICS)
        assert np.all(places(found.tones) >= lowest)
        assert np.min(np.abs(places(found.tones) - 225.0)) < 1

    def test_one_program_for_all_bounds(self):
        spectra, traces = spectra_of(Note(0, 1.0, 250.0)), []

        @jax.jit
        def run(lowest):
            traces.append(lowest)
            return TonePursuit(OBJECTIVE, lowest=lowest)(jnp.asarray(spectra), HARMONICS).tones

        assert places(run(jnp.asarray(100.0))) == pytest.approx([250.0], abs=0.5)
        assert np.all(places(run(jnp.asarray(300.0))) >= 300)
        assert len(traces) == 1


class TestSearch:
    def test_a_tone_that_leaves_is_dropped_and_the_others_are_refined(self):
        notes = Note(0, 1.0, 200.0), Note(1, 0.5, 330.0)
        spectra, start = spectra_of(*notes), pack_notes([notes], 2)
        model = ToneFit(OBJECTIVE, **bounds(highest=300.0))
        found = refit(model, spectra, jaxsep.Dictionary(HARMONICS), start)
        alone = refit(model, spectra, jaxsep.Dictionary(HARMONICS), pack_notes([notes[:1]], 2))
        assert places(found.tones) == pytest.approx(places(alone.tones), abs=1e-3)
        assert found.loss == pytest.approx(alone.loss, rel=1e-3)
        assert not found.tones.amplitude[~found.tones.active].any()

    def test_alternatives_are_inside(self):
        notes = Note(0, 1.0, 200.0), Note(1, 0.5, 330.0)
        spectra, tones = spectra_of(*notes), pack_notes([notes], 2)
        lowest, highest = 210.0, 260.0
        model = ToneFit(OBJECTIVE, **bounds(lowest, highest))
        for instrument in range(2):
            other = reselected(model, jnp.asarray(spectra), HARMONICS, tones, jnp.asarray(instrument))
            new = np.asarray(other.active) & (np.asarray(other.instrument) == instrument)
            place = np.asarray(other.fundamental)[new]
            assert place.size > 0
            assert np.all((place >= lowest) & (place <= highest))

    def test_octaves_are_raised_as_far_as_they_may(self):
        row = jnp.asarray([[0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.5]])
        for most, factor in [(math.inf, 4), (4.0, 4), (3.9, 2), (1.9, 1)]:
            assert int(raise_octaves(row, jnp.asarray([most]))[1][0]) == factor

    def test_spikes_are_inside(self, octave):
        spectra, place = octave
        rows = jnp.asarray(FALSE, jnp.float32)
        find = lambda lowest: decompose(ToneFit(OBJECTIVE, **bounds(lowest)), spectra, rows, alpha=0.1)
        assert places(find(-math.inf).tones) == pytest.approx([place - OCTAVE], abs=0.5)
        assert places(find(place - 5 * SEMITONE).tones) == pytest.approx([place], abs=0.5)


def tone(pitch, seconds=1.5):
    times = np.arange(round(seconds * RATE)) / RATE
    return (0.2 * sum(np.sin(2 * np.pi * n * pitch * times) / n for n in range(1, 9))).astype(np.float32)


class TestSeparation:
    @pytest.mark.parametrize("search", [pytest.param("full", marks=pytest.mark.slow), "greedy"])
    @pytest.mark.parametrize("method", ["pursuit", "blasso"])
    def test_nothing_is_found_beyond(self, search, method):
        settings = SeparationSettings(
            method=method, search=search, lowest=200.0, highest=500.0, hop=1024, restarts=1, steps=3, rounds=1
        )
        mixture = tone(110.0) + tone(330.0) + tone(1000.0)
        found = jaxsep.separate(mixture, RATE, 2, settings=settings, key=jax.random.key(0))
        hertz = found.tones.fundamental[found.tones.active]
        quarter = 2 ** (1 / 24)
        assert hertz.size > 0
        assert np.all((hertz > 0.999 * 200 / quarter) & (hertz < 1.001 * 500 * quarter))

    def test_known_notes_are_where_they_are(self):
        curve = {"times": np.empty(0), "bend": np.empty(0)}
        note = jaxsep.Note(instrument=0, onset=0.1, offset=1.4, pitch=57.0, level=-20.0, **curve)
        settings = SeparationSettings(lowest=440.0, hop=1024)
        found = jaxsep.separate(
            tone(440.0) + tone(220.0),
            RATE,
            notes=jaxsep.Score([note], ["bass"]),
            settings=settings,
            key=jax.random.key(0),
        )
        # What is below the lowest note is nobody's, so that the known one has its upper partials alone.
        assert np.median(found.tones.fundamental[found.tones.active]) == pytest.approx(220, rel=0.02)

    def test_what_is_lower_is_no_music(self):
        drum = tone(73.4)
        pitched = lambda lowest: (
            Stages(SeparationSettings(hop=1024, lowest=lowest)).spectra(drum[None]).pitched
        )
        low = int(jaxsep.LogAxis().to_bin(jnp.asarray(100.0)))
        assert pitched(27.5)[:, :low].any()
        assert not pitched(200.0)[:, :low].any()


class TestSettings:
    @pytest.mark.parametrize(
        ("text", "hertz"),
        [
            ("A0", 27.5),
            ("a4", 440.0),
            ("C#4", 277.183),
            ("Db4", 277.183),
            ("bb3", 233.082),
            ("C♯-1", 8.662),
            ("Cb4", 246.942),
            ("B#3", 261.626),
            (" 82.4 ", 82.4),
            ("1e3", 1000.0),
        ],
    )
    def test_frequencies_as_they_are_written(self, text, hertz):
        assert read_frequency(text) == pytest.approx(hertz, rel=1e-5)

    def test_names_are_read_as_they_are_written(self):
        for pitch in range(128):
            assert 69 + 12 * math.log2(read_frequency(note_name(pitch)) / 440) == pytest.approx(pitch)

    @pytest.mark.parametrize("text", ["H2", "C##4", "C", "", "A4 Hz", "#4"])
    def test_what_is_no_frequency(self, text):
        with pytest.raises(ValueError, match="expected Hz or a note such as A0, C#4 or Bb3, got"):
            read_frequency(text)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lowest": 19.0}, "lowest: expected a number between 20 and 20480, got 19.0"),
            ({"highest": 20480.0}, "highest: expected a number between 20 and 20480, got 20480.0"),
            ({"highest": math.nan}, "highest: expected a number between 20 and 20480, got nan"),
            ({"lowest": 440.0, "highest": 440.0}, "highest: expected more than lowest=440 Hz, got 440"),
            ({"noise": "gone"}, "noise: expected 'shared' or 'apart', got 'gone'"),
        ],
    )
    def test_impossible_ones(self, options, message):
        with pytest.raises(ValueError, match=f"^{message}$"):
            SeparationSettings(**options)

    @pytest.mark.parametrize("highest", [None, 880.0])
    def test_they_are_json(self, highest):
        settings = SeparationSettings(lowest=55.0, highest=highest, noise="apart")
        assert SeparationSettings(**json.loads(json.dumps(dataclasses.asdict(settings)))) == settings

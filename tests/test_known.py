"""Notes that are known: what they say of every frame, and the tones that are found at them."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import AXIS, DICTIONARY, SEMITONE
from test_search import INSTRUMENTS, LENGTH, PURSUIT, melody, notes_of, recording, right, sketch

from jaxsep.notes.score import Rest, Score, plain_note
from jaxsep.search.alternation import Alternation
from jaxsep.search.given import GivenNotes, heard_dictionary
from jaxsep.search.known import Known, known_tones
from jaxsep.search.voices import VoiceModel
from jaxsep.tones.dictionary import Dictionary

SPACING = 0.05  # so that a note of `LENGTH` frames lasts as long as one of music
TIMES = SPACING * np.arange(4 * LENGTH)


def known_of(*rows, bound=(True, True)):
    """One frame; rows are instrument, position, amplitude, whether listed, and whether it must sound."""
    instrument, position, amplitude, listed, must = (np.array([x]) for x in zip(*rows, strict=True))
    return Known(
        instrument=instrument.astype(np.int32),
        position=position.astype(np.float32),
        amplitude=amplitude.astype(np.float32),
        listed=listed,
        must=must,
        bound=np.array([bound]),
        tolerance=3.0,
    )


def pitch_of(place):
    return float(69 + 12 * np.log2(AXIS.f_min * np.exp(place / AXIS.bins_per_neper) / 440))


def score(error=0.0, seed=0, octave=0):
    """The notes of the duet; onsets and offsets are off by normally distributed errors."""
    random, notes = np.random.default_rng(seed), []
    for number in range(4):
        for note in melody()[number * LENGTH]:
            onset, offset = SPACING * LENGTH * (number + np.array([0, 1])) + error * random.standard_normal(2)
            pitch = pitch_of(note.position) + 12 * octave
            notes.append(plain_note(note.instrument, max(0.0, onset), offset, pitch))
    return Score(notes, ["low", "high"])


def known(notes, everywhere=True, **edge):
    return known_tones(notes, TIMES, recording(), AXIS, everywhere=everywhere, **edge)


# ---- What notes say of a frame ----------------------------------------------------------------------------


def test_tones_beside_the_notes_are_left_out():
    here = known_of((0, 100, 1, True, False), (0, 50, 1, False, False))
    tones = here.bind(sketch((0, 102, 0.5), (0, 110, 0.9), (1, 100, 0.3), None))
    assert notes_of(tones) == [(0, 102)]
    free = known_of((0, 100, 1, True, False), bound=(True, False))
    assert notes_of(free.bind(sketch((0, 110, 0.5), (1, 100, 0.3)))) == [(1, 100)]


def test_a_note_that_must_sound_joins():
    here = known_of((0, 100, 0.25, True, True), (1, 60, 0.1, True, False))
    tones = here.bind(sketch(None, (1, 61, 0.3)))
    assert notes_of(tones) == [(0, 100), (1, 61)]
    assert float(tones.amplitude[0, 0]) == 0.25
    there = here.bind(sketch((0, 99, 1e-5), (1, 61, 0.3)))
    assert notes_of(there) == [(0, 99), (1, 61)]
    assert float(there.amplitude[0, 0]) == np.float32(1e-5)


def test_a_note_that_must_sound_has_a_slot_before_louder_ones():
    here = known_of((0, 100, 1e-4, True, True), (0, 80, 1, False, False))
    assert notes_of(here.bind(sketch((0, 80, 0.9), None))) == [(0, 100)]
    wide = here.bind(sketch((0, 80, 0.9), None, None, None))
    assert notes_of(wide) == [(0, 80), (0, 100)]
    np.testing.assert_array_equal(wide.amplitude[0, :2], np.float32([1e-4, 0.9]))


def test_binding_twice_changes_nothing():
    notes, random = known(score(0.05)), np.random.default_rng(0)
    shape = len(TIMES), 2
    tones = sketch((0, 0, 1), (1, 0, 1))
    tones = jax.tree.map(lambda x: np.repeat(x, len(TIMES), axis=0), tones)
    places = random.uniform(100, 250, shape).astype(np.float32)
    once = notes.bind(eqx.tree_at(lambda t: t.fundamental, tones, places))
    assert np.all(notes.agrees(np.arange(len(TIMES)), once))
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(notes.bind(once)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_agrees():
    here = known_of((0, 100, 1, True, True))
    both = jax.tree.map(lambda x, y: np.concatenate([x, y]), sketch((0, 101, 1)), sketch((0, 105, 1)))
    both = dataclasses.replace(here, bound=np.array([[True]])).agrees(np.array([0, 0]), both)
    np.testing.assert_array_equal(both, [True, False])


def test_notes_where_they_are_listed():
    tones = known(score()).sounding(1)
    assert np.mean(right(tones)) > 0.95


def test_tuning_is_found():
    """A recording a third of a semitone below the notes."""
    off = score()
    off = dataclasses.replace(off, notes=[dataclasses.replace(n, pitch=n.pitch + 0.34) for n in off.notes])
    tones = known(off).sounding(1)
    truth = known(score()).sounding(1)
    apart = np.abs(tones.fundamental - truth.fundamental)[tones.active & truth.active]
    assert np.median(apart) < 0.2 * SEMITONE


def test_bound_where_a_note_sounds_for_sure_or_a_rest_is():
    notes = Score([plain_note(0, 0.6, 1.2, 60)], ["a", "b"], [Rest(1, 1.0, 1.5)])
    bound = known(notes, everywhere=False).bound
    assert not bound[TIMES < 0.6].any()
    assert bound[(TIMES > 0.75) & (TIMES < 1.05), 0].all()
    np.testing.assert_array_equal(bound[:, 1], (TIMES >= 1.0) & (TIMES < 1.5))
    firm = known(notes, everywhere=False, edge=0.03).bound
    assert firm[(TIMES > 0.64) & (TIMES < 1.16), 0].all()
    only_rests = known(dataclasses.replace(notes, notes=[]), everywhere=False)
    assert (
        notes_of(
            only_rests.bind(jax.tree.map(lambda x: np.repeat(x, 48, axis=0), sketch((1, 99, 1), None))), 22
        )
        == []
    )


def test_a_short_note_sounds_in_a_frame():
    assert known(Score([plain_note(0, 1.01, 1.04, 60)]), everywhere=False).must.sum() == 1


# ---- Tones at notes ---------------------------------------------------------------------------------------


def test_the_dictionary_that_is_heard():
    rows = np.asarray(heard_dictionary(recording(), known(score()).sounding(1), 2, AXIS).harmonics)
    for row, true in zip(rows[:, :8], DICTIONARY, strict=True):
        assert row @ true / np.linalg.norm(row) / np.linalg.norm(true) > 0.75  # in octaves all along


@pytest.mark.parametrize("error", [0.0, 0.05])
def test_tones_and_dictionary_of_notes(error):
    """At exact notes, and at notes whose edges are a frame off."""
    fit = GivenNotes(spans=(1, 2), timbre=False)
    found = fit(PURSUIT, recording(), known(score(error)))
    assert np.mean(right(found.tones)) > 0.97
    rows = np.asarray(found.dictionary.harmonics)[:, :8]
    np.testing.assert_allclose(rows / rows.max(axis=1, keepdims=True), DICTIONARY, atol=0.08)
    assert found.cost_trace[-1] <= found.cost_trace[0] + 1e-6


def test_a_given_dictionary_stays():
    found = GivenNotes(spans=(1,))(PURSUIT, recording(), known(score()), INSTRUMENTS)
    assert found.dictionary is INSTRUMENTS
    assert np.mean(right(found.tones)) > 0.97


def test_notes_that_are_held_stay():
    """A note that the search would give to the other instrument."""
    place = melody()[0][1].position
    wrong = Score([plain_note(0, 0.0, LENGTH * SPACING, pitch_of(place))], ["low", "high"])
    held = known(wrong, everywhere=False)
    search = Alternation(VoiceModel(), rounds=1, spans=(1, 2), learn=False)
    found = search(PURSUIT, recording(), [INSTRUMENTS], SPACING, begin=held.as_listed(), known=held)
    sure = np.flatnonzero(held.must[:, 0])
    assert sure.size
    for frame in sure:
        low = [place for instrument, place in notes_of(found.tones, frame) if instrument == 0]
        assert len(low) == 1
        assert abs(low[0] - place) < SEMITONE
    free = search(PURSUIT, recording(), [INSTRUMENTS], SPACING)
    there = lambda frame: any(i == 0 and abs(p - place) < SEMITONE for i, p in notes_of(free.tones, frame))
    assert not any(map(there, sure))


def test_the_search_begins_at_notes():
    begin = known(score(0.02), everywhere=False).as_listed()
    flat = Dictionary(jnp.ones((2, 8)) / jnp.arange(1, 9))
    found = Alternation(rounds=1, spans=(1, 2))(PURSUIT, recording(), [flat], SPACING, begin=begin)
    assert np.mean(right(found.tones)) > 0.9

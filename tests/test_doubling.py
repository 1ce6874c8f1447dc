"""An instrument that doubles another's octave for a while, which passed for its harmonics then."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from problems import SEMITONE, pack_notes
from test_split_merge import DICTIONARY, LENGTH, PURE, PURSUIT, ROWS, frames, notes, state

from jaxsep.pursuit.recording import refit
from jaxsep.search import alternation
from jaxsep.search.doubling import doubled
from jaxsep.search.frames import Frames, State
from jaxsep.search.moves import arrange
from jaxsep.search.voices import VoiceModel
from jaxsep.tones.dictionary import Dictionary


def half_found():
    """The octave is found in every second note, and in the others it is the second harmonic of another."""
    both = DICTIONARY[1].copy()
    both[1::2] += 0.3 * np.array(PURE[:4])
    played = [now[:2] if number // LENGTH % 2 else now for number, now in enumerate(notes())]
    return state(frames(), played, np.stack([DICTIONARY[0], both, PURE]))


def test_who_doubles_another_is_found_where_he_was_his_harmonics():
    before = half_found()
    found = lambda state: np.mean(state.tones.active.reshape(-1, 3), axis=0)
    assert found(before)[2] == pytest.approx(0.5, abs=0.02)
    after = doubled(frames(), before)
    assert np.mean(after.found.loss) < 0.7 * np.mean(before.found.loss)
    np.testing.assert_allclose(found(after), 1, atol=0.05)
    true = np.array([[note.position for note in now] for now in notes()])
    assert np.all(np.abs(after.tones.fundamental - true) < 0.5 * SEMITONE)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.asarray(after.dictionary.harmonics)
    assert np.all(np.sum(unit(rows) * unit(ROWS), axis=1) > 0.9)


@pytest.mark.parametrize(("near", "stays"), [(alternation._NEAR, True), (0.0, False)])
def test_it_stays_if_it_costs_hardly_more(monkeypatch, near, stays):
    monkeypatch.setattr(alternation, "_NEAR", near)
    before, trace = half_found(), []
    before = dataclasses.replace(before, lines=frames().streamed(before.tones, before.dictionary).before)
    after = alternation.Alternation(spans=(1,))._doubled(frames(), before, trace)
    assert len(trace) == 3
    third = np.mean(after.tones.active.reshape(-1, 3)[:, 2])
    assert third > 0.9 if stays else after is before


def test_nothing_doubles_where_all_are_found():
    assert doubled(frames(), state(frames(), notes(), ROWS)) is None


def test_silence_stays_silent():
    silent = Frames(PURSUIT, np.zeros_like(frames().spectra), (1,), 0.02, VoiceModel(), 0.3, lambda: None)
    assert doubled(silent, half_found()) is None


def test_an_instrument_alone_doubles_nobody():
    dictionary = Dictionary(jnp.asarray(ROWS[:1], jnp.float32))
    tones = arrange(pack_notes([now[:1] for now in notes()], 1), 1, 1)
    alone = State(refit(PURSUIT, frames().spectra, dictionary, tones), dictionary).arranged(1)
    assert doubled(frames(), alone) is None

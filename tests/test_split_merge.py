"""Splitting and merging instruments, on spectra of which two were taken for one, and one for two."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from problems import AXIS, DICTIONARY, OCTAVE, SEMITONE, Note, pack_notes, render_notes

from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.recording import refit
from jaxsep.pursuit.refinement import LevenbergMarquardt
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.search.frames import Frames, State
from jaxsep.search.moves import arrange
from jaxsep.search.split_merge import split_and_merge
from jaxsep.search.voices import VoiceModel
from jaxsep.tones.dictionary import Dictionary

PURSUIT = TonePursuit(LiftedLoss(AXIS), solver=LevenbergMarquardt(1e-4))
PURE = [1.0, 0.25, 0.08, 0.05, 0.02, 0.01, 0.01, 0.01]
ROWS = np.concatenate([DICTIONARY, [PURE]])
LENGTH = 4


@cache
def notes(above=(OCTAVE,)):
    """A bass, a bright sound, and a pure one so far above that (in turn), now louder and now softer."""
    low, middle = [0, 5, 7, 3, 2, 0, 7, 5], [8, 13, 10, 12, 6, 3, 11, 9]
    loud = [0.9, 0.3, 0.6, 0.9, 0.4, 0.8, 0.3, 0.7]
    return [
        (
            Note(0, 0.9, 150.3 + low[now] * SEMITONE),
            Note(1, 0.9, 250.1 + middle[now] * SEMITONE),
            Note(2, loud[now], 250.2 + middle[now] * SEMITONE + above[now % len(above)]),
        )
        for now in range(len(low))
        for _ in range(LENGTH)
    ]


@cache
def frames(above=(OCTAVE,)):
    clean = np.stack([render_notes(now, ROWS) for now in notes(above)])
    noise = np.random.default_rng(0).standard_normal(clean.shape)
    spectra = np.maximum(clean + 2e-3 * noise, 0)
    return Frames(PURSUIT, spectra.astype(np.float32), (1,), 0.02, VoiceModel(), 0.3, lambda: None)


def state(among, played, rows):
    """Tones played as notes say, refined with these rows."""
    dictionary = Dictionary(jnp.asarray(rows, jnp.float32))
    tones = arrange(pack_notes(played, 3), 3, 1)
    return State(refit(PURSUIT, among.spectra, dictionary, tones), dictionary).arranged(1)


def confused():
    """The octave is the second harmonic of the bright sound, and two instruments share the bass."""
    both = DICTIONARY[1].copy()
    both[1::2] += 0.6 * np.array(PURE[:4])
    played = [
        (dataclasses.replace(low, instrument=0 if now // LENGTH % 2 else 2), middle)
        for now, (low, middle, _) in enumerate(notes())
    ]
    return state(frames(), played, np.stack([DICTIONARY[0], both, DICTIONARY[0]]))


def test_two_that_play_what_one_does_are_merged_and_one_that_plays_what_two_do_is_split():
    before = confused()
    after = split_and_merge(frames(), before)
    assert np.mean(after.found.loss) < 0.7 * np.mean(before.found.loss)
    tones, true = after.tones, np.array([[note.position for note in now] for now in notes()])
    # Either of the two that shared the bass has become the octave.
    order = [0, 1, 2] if after.dictionary.harmonics[0, 2] > 0.3 else [2, 1, 0]
    mine = jax.tree.map(lambda x: x[:, order], tones)
    assert np.all(np.mean(mine.active & (np.abs(mine.fundamental - true) < 0.5 * SEMITONE), axis=0) > 0.9)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.asarray(after.dictionary.harmonics)[order]
    assert np.all(np.sum(unit(rows) * unit(ROWS), axis=1) > 0.85)


def test_nobody_plays_more_than_he_may():
    most = 1, 2, 1
    chords = dataclasses.replace(frames(), model=dataclasses.replace(PURSUIT, tones_per_instrument=most))
    before = confused()
    tones = arrange(before.tones, 3, most)
    # The one that is split has two tones.
    tones.active[:, 3], tones.amplitude[:, 3] = True, 0.05
    tones.fundamental[:, 3] = tones.fundamental[:, 2] + 7 * SEMITONE
    after = split_and_merge(chords, chords.refitted(tones, before.dictionary))
    playing = after.tones.active.reshape(-1, 3, 2).sum(axis=2)
    assert np.all(playing <= most)
    assert np.all(playing.any(axis=0))


def test_instruments_that_are_right_stay():
    above = tuple(np.array([7, 9, 14, 10, 17]) * SEMITONE)
    assert split_and_merge(frames(above), state(frames(above), notes(above), ROWS)) is None


def test_one_harmonic_cannot_be_split():
    assert split_and_merge(frames(), state(frames(), notes(), np.ones((3, 1)))) is None


def test_silence_stays_silent():
    silent = Frames(PURSUIT, np.zeros_like(frames().spectra), (1,), 0.02, VoiceModel(), 0.3, lambda: None)
    after = split_and_merge(silent, confused())
    assert not after.tones.active.any()
    np.testing.assert_array_equal(after.found.loss, 0)

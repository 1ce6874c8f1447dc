"""Tones that are too faint to be heard beside what their instrument usually plays."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from problems import AXIS, DICTIONARY, SEMITONE, Note, pack_notes, render_notes

from jaxsep.notes.score import Score, plain_note
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.recording import refit
from jaxsep.pursuit.refinement import LevenbergMarquardt
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.search.faint import without_faint
from jaxsep.search.known import known_tones
from jaxsep.search.moves import arrange
from jaxsep.tones.dictionary import Dictionary

PURSUIT = TonePursuit(LiftedLoss(AXIS), solver=LevenbergMarquardt(1e-4))
INSTRUMENTS = Dictionary(jnp.asarray(DICTIONARY, jnp.float32))
QUIET, FAINT = 10 ** (-45 / 20), 10 ** (-60 / 20)


@cache
def song():
    """Two instruments: the first fades while the other rests, the second while the first plays."""
    notes, low, high = [], 150.3, 150.1 + 9 * SEMITONE
    for level in (1.0, 1.0, 1.0, QUIET, FAINT):
        notes.append((Note(0, 0.9 * level, low),))
    for level in (1.0, 1.0, 1.0, QUIET, FAINT):
        notes.append((Note(0, 0.9, low), Note(1, 0.02 * level, high)))
    return notes, np.stack([render_notes(now) for now in notes]).astype(np.float32)


@cache
def found():
    notes, spectra = song()
    fitted = refit(PURSUIT, spectra, INSTRUMENTS, arrange(pack_notes(notes, 2), 2, 1))
    return eqx.tree_at(lambda f: f.tones, fitted, arrange(fitted.tones, 2, 1))


def test_what_nobody_hears_goes_and_the_rest_is_fitted_without_it():
    before, after = found(), without_faint(PURSUIT, song()[1], INSTRUMENTS, found())
    assert before.tones.active.sum() == 15
    gone = before.tones.active & ~after.tones.active
    # Each beside its own instrument's: all of the second one's are 34 dB fainter than the first one's.
    np.testing.assert_array_equal(np.argwhere(gone), [[4, 0], [9, 1]])
    assert np.all(after.loss[[4, 9]] > before.loss[[4, 9]])
    others = np.setdiff1d(np.arange(10), [4, 9])
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[others], y[others]), before, after)
    assert without_faint(PURSUIT, song()[1], INSTRUMENTS, after) is after


def test_notes_that_are_known_stay_however_faint():
    _, spectra = song()
    pitch = 69 + 12 * np.log2(float(AXIS.to_hz(150.3)) / 440)
    note = plain_note(0, 0.0, 0.8, pitch)
    times = 0.1 * np.arange(10)
    known = known_tones(Score([note], ["a", "b"]), times, spectra, AXIS, everywhere=False)
    after = without_faint(PURSUIT, spectra, INSTRUMENTS, found(), known)
    gone = found().tones.active & ~after.tones.active
    np.testing.assert_array_equal(np.argwhere(gone), [[9, 1]])

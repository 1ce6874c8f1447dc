"""Tails of notes, on spectra in which they are known."""

import numpy as np
import pytest

from jaxsep.signal.background import decay_time, foreground, tails

SPACING, BINS = 0.01, 1024


def melody(fade_time, length=20, count=12, seed=0):
    """Notes of 0.2 s, one after the other, each a partial that fades by 60 dB in `fade_time`."""
    rng = np.random.default_rng(seed)
    spectra = np.zeros((length * (count + 5), BINS))
    fade = 10 ** (-3 * SPACING * np.arange(5 * length) / fade_time)
    shape = np.exp(-0.5 * (np.arange(BINS)[:, None] - 300 - 40 * rng.permutation(count)) ** 2 / 1.91**2)
    for note in range(count):
        begin, end = note * length, (note + 1) * length
        spectra[begin:end] += shape[:, note]
        spectra[end : end + fade.size] += 0.5 * fade[:, None] * shape[:, note]
    return spectra


@pytest.mark.parametrize("fade_time", [0.4, 0.6, 0.75])
def test_decay_time_of_a_room(fade_time):
    assert fade_time < decay_time(melody(fade_time), SPACING) < 1.5 * fade_time


def test_notes_that_fade_slowly_stay():
    fade = 10 ** (-3 * SPACING * np.arange(200) / 4.0)  # a string that was struck
    spectra = np.zeros((200, BINS))
    spectra[:, 300:303] = fade[:, None]
    assert np.all(foreground(spectra, SPACING)[:, 301] > 0.25 * spectra[:, 301])


def test_decay_time_where_notes_end_at_once():
    assert decay_time(melody(0.02), SPACING) < 0.1
    assert decay_time(np.zeros((100, BINS)), SPACING) == 0
    assert decay_time(np.zeros((2, BINS)), SPACING) == 0


def test_tails_lie_above_what_rings_on_and_below_what_goes_on():
    wet = melody(0.6)
    late = tails(wet, SPACING, 0.7)
    dry = melody(1e-3)
    after = (dry < 1e-6) & (np.arange(len(wet)) > 30)[:, None] & (wet > 1e-4)
    assert np.mean(late[after] >= wet[after]) > 0.85  # the window needs 64 ms to leave a note
    assert np.all(late[:6] == 0)
    assert np.all(late <= np.maximum.accumulate(wet, axis=0) + 1e-12)


def test_the_foreground_ends_with_its_notes():
    wet, dry = melody(0.6), melody(1e-3)
    front = foreground(wet, SPACING)
    playing = dry > 0.5
    assert np.all(front <= wet)
    assert front[playing].sum() > 0.5 * wet[playing].sum()
    resting = (dry < 1e-6).all(axis=1)
    assert front[resting].sum() < 0.3 * wet[resting].sum()


def test_a_dry_recording_stays_as_it_is():
    dry = melody(1e-3)
    np.testing.assert_allclose(foreground(dry, SPACING), dry, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_type_stays(dtype):
    spectra = melody(0.5).astype(dtype)
    front = foreground(spectra, SPACING)
    assert front.dtype == dtype
    assert np.all(np.isfinite(front))

"""Separation with the Beurling LASSO in place of the pursuit, in Python and on the command line."""

import dataclasses

import jax
import numpy as np
import pytest
from test_cli import contents, quick, run, workplace  # noqa: F401 (fixtures)
from test_separate import MELODIES, RATE, Listener, assert_sum, mixture, true_dictionary, worst_ratio

from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings

SETTINGS = SeparationSettings(method="blasso")


def separated(samples, settings=SETTINGS, **options):
    return separate(
        samples,
        RATE,
        2,
        settings=settings,
        dictionary=true_dictionary(),
        key=jax.random.key(0),
        **options,
    )


@pytest.fixture(scope="module")
def duet():
    listener = Listener()
    return separated(mixture(), progress=listener), listener


@pytest.mark.slow
def test_stems_are_the_instruments_and_sum_to_the_mixture(duet):
    result, listener = duet
    assert_sum(result, mixture())
    assert worst_ratio(result) > 15
    assert listener.open == []
    assert 2 < listener.steps["finding the tones"] <= listener.total["finding the tones"]
    assert set(result.seconds) == {"spectrogram", "pursuit", "resynthesis"}
    np.testing.assert_array_equal(result.dictionary.harmonics, true_dictionary().harmonics)


@pytest.mark.slow
def test_the_largest_spikes_are_the_notes(duet):
    tones, times = duet[0].tones, duet[0].times
    assert tones.amplitude.shape == (times.size, 4)  # a slot each for a note that rings on
    for instrument, melody in enumerate(MELODIES):
        for number, fundamental in enumerate(melody):
            frame = np.argmin(np.abs(times - 0.5 * number - 0.25))  # the middle of the note
            mine = np.flatnonzero(tones.active[frame] & (tones.instrument[frame] == instrument))
            slot = mine[np.argmax(tones.amplitude[frame, mine])]
            assert tones.fundamental[frame, slot] == pytest.approx(fundamental, rel=5e-3)
    assert np.all(tones.amplitude[~tones.active] == 0)


@pytest.mark.slow
def test_the_search_goes_on_from_the_spikes(duet):
    full, spikes = duet[0], separated(mixture(), dataclasses.replace(SETTINGS, search="greedy"))
    assert spikes.cost_trace == (pytest.approx(spikes.loss.mean()),)
    assert full.loss.mean() < spikes.loss.mean()
    pursued = separated(mixture(), SeparationSettings())
    assert full.cost_trace[-1] == pytest.approx(pursued.cost_trace[-1], rel=0.05)
    assert full.loss.mean() < 1.05 * pursued.loss.mean()


@pytest.mark.slow
def test_more_tones_per_instrument():
    settings = dataclasses.replace(SETTINGS, tones_per_instrument=2, alpha=0.2, search="greedy")
    result = separated(mixture(), settings)
    assert result.tones.amplitude.shape[1] == 4
    counts = [np.sum(result.tones.active & (result.tones.instrument == i), axis=1) for i in (0, 1)]
    assert np.max(counts) == 2
    assert_sum(result, mixture())


@pytest.mark.slow
def test_silence_within_a_recording_has_no_tones():
    samples = np.concatenate([np.zeros(RATE, np.float32), mixture()])
    result = separated(samples)
    assert not np.any(result.tones.active[result.times < 0.5])
    assert np.all(np.isfinite(result.stems))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lasso"}, "method: expected 'pursuit' or 'blasso', got 'lasso'"),
        ({"alpha": 0.0}, "alpha: expected a number between 0 and 1, got 0.0"),
        ({"alpha": 1.0}, "alpha: expected a number between 0 and 1, got 1.0"),
        ({"alpha": float("nan")}, "alpha: expected a number between 0 and 1, got nan"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(ValueError, match=message):
        SeparationSettings(**options)


def test_the_command_line_chooses_the_method(workplace, quick):  # noqa: F811
    code, _, err = run("separate", "mix.wav", "-n", 2, "-o", "out", "--method", "blasso", "--alpha", 0.4)
    assert code == 0, err
    assert quick[0][3] == SeparationSettings(method="blasso", alpha=0.4)
    code, _, err = run("separate", "mix.wav", "-n", 2, "-o", "other", "--method", "magic")
    assert code == 2
    assert "magic" in err
    code, _, err = run("separate", "mix.wav", "-n", 2, "-o", "other", "--method", "blasso", "--alpha", 2)
    assert code == 2
    assert "alpha: expected a number between 0 and 1, got 2.0" in err
    assert not any(str(path).startswith("other") for path in contents(workplace))

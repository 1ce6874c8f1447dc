"""Separation of a short artificial duet, with a given dictionary and with a learned one."""

import dataclasses
import os
import subprocess
import sys
from functools import cache
from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from jaxsep.audio import resample
from jaxsep.metrics.bss_eval import sdr_sir_sar_gain
from jaxsep.numerics import devices
from jaxsep.progress import Progress
from jaxsep.pursuit.recording import pursue
from jaxsep.search import voices
from jaxsep.separation import chunks, stages
from jaxsep.separation.chunks import ANALYSIS_RATE, instrument_spectra
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings
from jaxsep.signal.masks import unit_phase
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.dictionary import NUM_HARMONICS, Dictionary

RATE = 44100
KEY = jax.random.key(0)
# A search of one kind and one length, so that the tests share its programs.
QUICK = SeparationSettings(search="full", rounds=1, restarts=2, steps=1, batch=8)

#: Fundamentals in Hz of the notes of each instrument, half a second each.
MELODIES = ((440.0, 493.9, 523.3, 392.0), (261.6, 311.1, 207.7, 233.1))


def harmonics():
    """A hollow and a bright instrument."""
    h = np.arange(1, NUM_HARMONICS + 1)
    bright = np.minimum(h / 3, 1) * np.exp(-h / 6)
    return np.stack([(h % 2 + 0.02) / h**1.3 / 1.02, bright / bright.max()])


@cache
def duet(rate=RATE):
    """Two seconds of both instruments, `[instruments, samples]`, quieter than 1 together."""
    time = np.arange(2 * rate) / rate
    position = np.minimum(time / 0.5, 3.999)
    envelope = np.minimum(1, 30 * (position % 1)) * np.exp(-1.5 * (position % 1))
    rng = np.random.default_rng(0)
    stems = []
    for row, melody in zip(harmonics(), MELODIES, strict=True):
        fundamental = np.array(melody)[position.astype(int)]
        phase = 2 * np.pi * np.cumsum(fundamental) / rate
        partials = (
            d * np.sin(h * phase + rng.uniform(0, 6)) * (h * fundamental < 0.45 * rate)
            for h, d in enumerate(row, start=1)
        )
        stems.append(0.1 * envelope * sum(partials))
    return np.stack(stems).astype(np.float32)


def mixture(rate=RATE):
    return duet(rate).sum(axis=0)


def true_dictionary():
    return Dictionary(jnp.asarray(harmonics(), jnp.float32))


def with_dictionary(samples, rate=RATE, settings=QUICK, **options):
    return separate(samples, rate, 2, settings=settings, dictionary=true_dictionary(), key=KEY, **options)


@cache
def separated():
    """The duet, with its true dictionary."""
    return with_dictionary(mixture())


class Listener(Progress):
    """Counts the steps of each stage."""

    def __init__(self):
        self.total, self.steps, self.open = {}, {}, []

    def begin(self, name, total):
        self.open.append(name)
        self.total[name], self.steps[name] = total, 0

    def advance(self, name, note=""):
        self.steps[name] += 1

    def end(self, name):
        self.open.remove(name)


@cache
def learned():
    """The duet, blindly, and what the listener heard."""
    listener = Listener()
    return separate(mixture(), RATE, 2, settings=QUICK, progress=listener, key=KEY), listener


def assert_sum(result, samples, tolerance=1e-5):
    error = np.abs(result.stems.sum(axis=0) - samples).max()
    assert error <= tolerance * np.abs(samples).max()


def worst_ratio(result, rate=RATE):
    """Energy of a true stem over that of the error, in dB, for the instrument that came out worse."""
    energy, error = np.sum(duet(rate) ** 2, axis=1), np.sum((result.stems - duet(rate)) ** 2, axis=1)
    return np.min(10 * np.log10(energy / error))


# ---- Stems ------------------------------------------------------------------------------------------------


def test_stems_are_the_instruments_and_sum_to_the_mixture():
    result = separated()
    assert result.stems.shape == (2, 2 * RATE)
    assert result.stems.dtype == np.float32
    assert result.sample_rate == RATE
    assert_sum(result, mixture())
    assert worst_ratio(result) > 15


def test_tones_are_in_hertz_and_in_units_of_the_recording():
    result = separated()
    # A slot for each instrument's note, and one for its last note while that rings on.
    assert result.tones.amplitude.shape == (result.times.size, 4)
    np.testing.assert_allclose(result.times[:3], np.arange(3) * 512 / 48000)
    tones = result.tones
    for instrument, melody in enumerate(MELODIES):
        for number, fundamental in enumerate(melody):
            frame = np.argmin(np.abs(result.times - 0.5 * number - 0.25))  # the middle of the note
            (slot,) = np.flatnonzero(tones.active[frame] & (tones.instrument[frame] == instrument))
            assert tones.fundamental[frame, slot] == pytest.approx(fundamental, rel=5e-3)
            # A sinusoid's spectrum has half its amplitude.
            level = 0.05 * np.exp(-1.5 * 0.5)
            assert tones.amplitude[frame, slot] == pytest.approx(level, rel=0.1)
    assert np.all(tones.fundamental[~tones.active] == 0)


def test_every_frame_has_its_loss():
    result = separated()
    assert result.loss.shape == result.times.shape
    assert np.all(np.isfinite(result.loss))
    assert len(result.cost_trace) == 2 + QUICK.rounds
    assert result.cost_trace[-1] < result.cost_trace[0]
    assert result.restart_losses == ()
    np.testing.assert_array_equal(result.dictionary.harmonics, true_dictionary().harmonics)
    assert set(result.seconds) == {"spectrogram", "pursuit", "resynthesis"}
    assert all(seconds >= 0 for seconds in result.seconds.values())


@pytest.mark.parametrize("rate", [22050, pytest.param(48000, marks=pytest.mark.slow)])
def test_other_sample_rates(rate):
    result = with_dictionary(mixture(rate), rate)
    assert result.stems.shape == (2, 2 * rate)
    assert result.sample_rate == rate
    assert_sum(result, mixture(rate))
    assert worst_ratio(result, rate) > 15


@pytest.mark.slow
def test_every_channel_has_its_stems():
    left = mixture()
    result = with_dictionary(np.stack([left, -0.5 * left]))
    assert result.stems.shape == (2, 2, left.size)
    assert_sum(result, np.stack([left, -0.5 * left]))
    # The stems come from the mean of the channels, which is the mixture over 4 here, without any rounding.
    scale = np.abs(left).max()
    np.testing.assert_allclose(result.stems[:, 0], separated().stems, atol=1e-4 * scale)
    np.testing.assert_allclose(result.stems[:, 1], -0.5 * result.stems[:, 0], atol=1e-4 * scale)


def test_one_channel_is_mono():
    result = with_dictionary(mixture()[None])
    assert result.stems.shape == (2, 1, 2 * RATE)
    np.testing.assert_array_equal(result.stems[:, 0], separated().stems)


@pytest.mark.slow
@pytest.mark.parametrize("level", [2.0**13, 2.0**-13])
def test_level_does_not_matter(level):
    """A power of 2 changes nothing but the exponents of all numbers."""
    result, expected = with_dictionary(np.float32(level) * mixture()), separated()
    np.testing.assert_allclose(result.stems / level, expected.stems, atol=1e-6 * np.abs(mixture()).max())
    np.testing.assert_allclose(result.tones.amplitude / level, expected.tones.amplitude, rtol=1e-4)
    np.testing.assert_allclose(result.tones.fundamental, expected.tones.fundamental, rtol=1e-5)
    np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("level", [1e4, pytest.param(1e-4, marks=pytest.mark.slow)])
def test_level_does_not_matter_but_for_rounding(level):
    samples = (level * mixture().astype(float)).astype(np.float32)
    result = with_dictionary(samples)
    assert_sum(result, samples)
    difference = result.stems / level - separated().stems
    # Where two edges of a note cost the same, rounding chooses; partials are heard over more than a frame.
    assert np.sum(difference**2) < 1e-4 * np.sum(mixture() ** 2)
    assert result.loss.mean() == pytest.approx(separated().loss.mean(), rel=5e-3)


@pytest.mark.slow
def test_double_precision_samples_are_the_same_recording():
    result = with_dictionary(mixture().astype(np.float64))
    np.testing.assert_array_equal(result.stems, separated().stems)


# ---- Options ----------------------------------------------------------------------------------------------


def test_tones_alone_are_played_without_masking():
    result = with_dictionary(mixture(), settings=dataclasses.replace(QUICK, masking=False))
    assert worst_ratio(result) > 10
    remainder = result.stems.sum(axis=0) - mixture()
    assert 1e-3 < np.sum(remainder**2) / np.sum(mixture() ** 2) < 0.2


@pytest.mark.slow
def test_more_phase_iterations():
    result = with_dictionary(mixture(), settings=dataclasses.replace(QUICK, phase_iterations=3))
    assert result.stems.shape == (2, 2 * RATE)
    assert worst_ratio(result) > 15
    assert np.max(np.abs(result.stems - separated().stems)) > 1e-5 * np.abs(mixture()).max()


def test_without_a_share_what_no_tone_explains_is_dropped():
    result = with_dictionary(mixture(), settings=dataclasses.replace(QUICK, share=0.0))
    assert np.all(np.isfinite(result.stems))
    assert np.sum(result.stems.sum(axis=0) ** 2) < np.sum(mixture() ** 2)


def test_greedy_search_of_one_instrument_gives_the_mixture():
    settings = dataclasses.replace(QUICK, search="greedy")
    dictionary = Dictionary(true_dictionary().harmonics[:1])
    result = separate(mixture(), RATE, 1, settings=settings, dictionary=dictionary, key=KEY)
    assert result.stems.shape == (1, 2 * RATE)
    assert_sum(result, mixture())
    assert result.cost_trace == (pytest.approx(result.loss.mean()),)


# ---- The timbre travels -----------------------------------------------------------------------------------


def timbre():
    """The true instruments, a little brighter at higher pitches."""
    rows = np.stack([harmonics() ** 1.1, harmonics() ** 0.9], axis=1)
    return Dictionary(true_dictionary().harmonics, jnp.asarray(rows, jnp.float32), jnp.array([200.0, 500.0]))


@cache
def with_timbre(settings=QUICK):
    return separate(mixture(), RATE, 2, settings=settings, dictionary=timbre(), key=KEY)


def test_a_given_timbre_stays_and_matters():
    result = with_timbre()
    for one, other in zip(jax.tree.leaves(result.dictionary), jax.tree.leaves(timbre()), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.any(result.stems != separated().stems)
    plain = with_timbre(dataclasses.replace(QUICK, timbre=False))
    assert plain.dictionary.by_pitch is None
    np.testing.assert_array_equal(plain.stems, separated().stems)


def test_tones_and_the_saved_dictionary_are_the_models_of_the_stems(tmp_path):
    """A stem without masking is the rendered model with the mixture's phase, or 0 where that has none."""
    alone = dataclasses.replace(QUICK, masking=False)
    samples = resample(mixture(), RATE, ANALYSIS_RATE)
    result = separate(samples, ANALYSIS_RATE, 2, settings=alone, dictionary=timbre(), key=KEY)
    result.dictionary.save(tmp_path / "instruments.npz")
    loaded, stft = Dictionary.load(tmp_path / "instruments.npz"), GaussianSTFT(hop=alone.hop)
    tones = jax.tree.map(jnp.asarray, result.tones)
    model = instrument_spectra(tones, loaded.of(tones), 2, stft, ANALYSIS_RATE)
    phase = unit_phase(stft.analyse(jnp.asarray(samples)))
    for spectra, stem in zip(model, result.stems, strict=True):
        expected = stft.synthesise(spectra * phase, samples.size)
        np.testing.assert_allclose(stem, expected, atol=1e-5 * np.abs(stem).max())


# ---- Learning ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dictionary_is_learned_if_none_is_given():
    result, listener = learned()
    assert_sum(result, mixture())
    assert result.dictionary.harmonics.shape == (2, NUM_HARMONICS)
    np.testing.assert_allclose(np.max(result.dictionary.harmonics, axis=1), 1, rtol=1e-6)
    assert len(result.restart_losses) == QUICK.restarts
    assert result.restart_losses == tuple(sorted(result.restart_losses))
    assert 0 < result.restart_losses[0] < 1
    assert len(result.cost_trace) == 2 + QUICK.rounds
    assert result.cost_trace[-1] == min(result.cost_trace)
    assert np.all(result.confidence >= 0)
    assert set(result.seconds) == {"spectrogram", "learning", "pursuit", "resynthesis"}
    assert listener.open == []
    assert listener.steps["learning the instruments"] == QUICK.restarts * QUICK.steps
    for name, total in listener.total.items():
        assert 0 < listener.steps[name] <= total


@pytest.mark.slow
def test_the_same_key_gives_the_same_result():
    first, again = learned()[0], separate(mixture(), RATE, 2, settings=QUICK, key=KEY)
    for one, two in zip(jax.tree.leaves(first.tones), jax.tree.leaves(again.tones), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(first.stems, again.stems)
    np.testing.assert_array_equal(first.dictionary.harmonics, again.dictionary.harmonics)
    assert first.cost_trace == again.cost_trace
    other = separate(mixture(), RATE, 2, settings=QUICK, key=jax.random.key(1))
    assert np.any(other.dictionary.harmonics != first.dictionary.harmonics)


@pytest.mark.slow
def test_a_recording_is_separated_blindly(corpus, tmp_path):
    """By the command line, in a process that optimises its programs; greedy selection has less than 5 dB."""

    def read(name):
        samples, rate = soundfile.read(corpus / "k487_08_clarinet_piano" / f"{name}.flac", dtype="float32")
        return samples[: int(6.4 * rate)], rate

    soundfile.write(tmp_path / "mix.wav", *read("mix"), subtype="FLOAT")
    command = [sys.executable, "-m", "jaxsep", "separate", "mix.wav", "-n", "2", "-o", "out", "--fast"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([*command, "--no-cache"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    found = [soundfile.read(path)[0] for path in sorted((tmp_path / "out").glob("stem*.wav"))]
    truth = [read(name)[0] for name in ("clarinet", "piano")]
    assert np.min(sdr_sir_sar_gain(jnp.asarray(truth), jnp.asarray(found, jnp.float32)).sdr) > 15


class TracedError(Exception):
    """Raised where a program is traced."""


def test_the_search_begins_with_the_program_that_was_compiled_beside_the_spectrogram(monkeypatch):
    seen = []

    def watched(model, spectra, harmonics, advance):
        program = jax.tree.map(lambda x: (jnp.shape(x), jnp.asarray(x).dtype), (model, harmonics))
        seen.append((jax.tree.structure(model), program, spectra.dtype, spectra.any()))
        return pursue(model, spectra, harmonics, advance)

    monkeypatch.setattr(stages, "pursue", watched)
    settings = SeparationSettings(tones_per_instrument=(1, 2), rounds=0)
    separate(mixture()[: RATE // 2], RATE, 2, settings=settings, key=KEY)
    (*rehearsed, silence), (*used, sound) = seen
    assert rehearsed == used
    assert sound
    assert not silence


def test_another_recording_needs_no_other_program(monkeypatch):
    separated()

    def trap(*_, **__):
        raise TracedError

    for name in ("log_frequency_spectrum", "ratio_masks"):
        monkeypatch.setattr(chunks, name, trap)
    monkeypatch.setattr("jaxsep.pursuit.tone_pursuit.select", trap)
    monkeypatch.setattr("jaxsep.pursuit.recording.refine", trap)
    shorter = mixture()[: int(1.2 * RATE)]
    assert_sum(with_dictionary(shorter), shorter)
    with pytest.raises(TracedError):
        with_dictionary(mixture(), settings=dataclasses.replace(QUICK, hop=1024))


# ---- Errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((mixture(), RATE, 0), "num_instruments: expected at least 1, got 0"),
        ((mixture(), RATE, 17), "num_instruments: expected at most 16, got 17"),
        ((np.zeros(RATE, np.float32), RATE, 2), "samples: expected a recording with sound, got silence"),
        (
            (np.full(RATE, np.nan, np.float32), RATE, 2),
            "samples: expected finite .*, got 44100 NaN or",
        ),
        (
            (mixture()[:11000], RATE, 2),
            r"samples: expected at least one window of 0\.256 s, got 0\.249 s",
        ),
        ((mixture(), 0, 2), "sample_rate: expected a whole number of Hz above 0, got 0"),
        ((mixture()[None, None], RATE, 2), r"samples: expected shape .*, got \(1, 1, 88200\)"),
        ((np.ones(RATE, np.int16), RATE, 2), "samples: expected float32 or float64 .*, got int16"),
    ],
)
def test_impossible_recordings(arguments, message):
    with pytest.raises(ValueError, match=message):
        unwrap(separate)(*arguments, key=KEY)  # unwrapped: the type checks of the test run would object first


def test_a_dictionary_of_another_size():
    with pytest.raises(ValueError, match="dictionary: expected 3 instruments, got 2"):
        separate(mixture(), RATE, 3, dictionary=true_dictionary(), key=KEY)


def test_tones_of_another_number_of_instruments():
    settings = SeparationSettings(tones_per_instrument=(1, 2, 2))
    with pytest.raises(ValueError, match="tones_per_instrument: expected 2 numbers, one for each instrument"):
        separate(mixture(), RATE, 2, settings=settings, key=KEY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hop": 500}, "hop: expected a divisor of 6144, got 500"),
        ({"hop": 0}, "hop: expected an integer of at least 1, got 0"),
        (
            {"tones_per_instrument": 0},
            "tones_per_instrument: expected an integer of at least 1, or one for each instrument, got 0",
        ),
        (
            {"tones_per_instrument": (1, 0)},
            "tones_per_instrument: expected an integer of at least 1, or one for each instrument, got .",
        ),
        ({"restarts": True}, "restarts: expected an integer of at least 0, got True"),
        ({"steps": 0}, "steps: expected an integer of at least 1, got 0"),
        ({"batch": -1}, "batch: expected an integer of at least 1, got -1"),
        ({"phase_iterations": 0}, "phase_iterations: expected an integer of at least 1, got 0"),
        ({"search": "wide"}, "search: expected 'full' or 'greedy', got 'wide'"),
        ({"rounds": -1}, "rounds: expected an integer of at least 0, got -1"),
        ({"share": -0.1}, "share: expected a number of at least 0, got -0.1"),
        ({"share": float("nan")}, "share: expected a number of at least 0, got nan"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(ValueError, match=message):
        SeparationSettings(**options)


# ---- Chunks -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 512])
def test_the_size_of_the_chunks_changes_nothing(size, monkeypatch):
    expected, asked = separated(), []
    modules = devices, voices, chunks
    for module in modules:
        monkeypatch.setattr(module, "chunk_size", lambda name=module.__name__: asked.append(name) or size)
    result = with_dictionary(mixture())
    assert {module.__name__ for module in modules} == set(asked)
    np.testing.assert_array_equal(result.tones.active, expected.tones.active)
    np.testing.assert_allclose(result.stems, expected.stems, atol=1e-3 * np.abs(expected.stems).max())


def test_masks_count_what_sounds_around_a_tone():
    stft, margin, place = GaussianSTFT(hop=512), 24, 400
    bins = stft.n_fft // 2 + 1

    def spread(frame):
        """The first instrument sounds once, so many frames from the one asked for; the second never."""
        model = jnp.zeros((2, 1 + 2 * margin, bins)).at[0, margin + frame, place].set(1.0)
        return np.asarray(chunks._spread(model, stft, margin))[:, 0]

    assert spread(0)[0, place] > 1  # the tone itself, and more
    after = [spread(frame)[0, place] for frame in (-2, -8, -16)]
    assert after[0] > after[1] > after[2] > 0
    assert spread(2)[0, place] == pytest.approx(after[0], rel=1e-4)
    assert spread(0)[0, place + 10] > spread(0)[0, place + 40] >= 0
    assert not np.any(spread(0)[1])

"""What people ask a separation to do: odd numbers, odd channels, levels from very faint to very loud."""

import jax
import mido
import numpy as np
import pytest
import soundfile
from test_report import sinusoid

import jaxsep
from jaxsep.audio import check_samples, loudest_alone, mono, write_audio
from jaxsep.files import AudioWarning
from jaxsep.separation.result import check_request

RATE = 48000
SOUND = 0.3 * sinusoid(440.0, sample_rate=RATE).astype(np.float32)
SETTINGS = jaxsep.SeparationSettings(restarts=1, steps=2, batch=8, search="greedy", hop=1024)


def separate(samples, rate=RATE, number=2):
    return jaxsep.separate(samples, rate, number, settings=SETTINGS, key=jax.random.key(0))


class TestMono:
    @pytest.mark.parametrize("num_channels", [1, 2, 6])
    def test_average(self, num_channels):
        samples = np.random.default_rng(0).standard_normal((num_channels, 1000)).astype(np.float32)
        np.testing.assert_array_equal(mono(samples), samples.mean(axis=0))
        assert loudest_alone(samples) is None

    @pytest.mark.parametrize("noise", [0, 1e-5])
    def test_the_loudest_where_the_average_vanishes(self, noise):
        rng = np.random.default_rng(0)
        samples = np.stack([SOUND, -1.01 * SOUND]) + noise * rng.standard_normal((2, RATE))
        np.testing.assert_array_equal(mono(samples), samples[1])

    def test_one_channel_of_many_that_sounds(self):
        samples = np.zeros((6, 1000))
        samples[2] = 1
        assert loudest_alone(samples) is None
        assert loudest_alone(np.zeros((2, 10))) is None

    def test_a_separation_says_it(self):
        with pytest.warns(AudioWarning, match="the channels cancel each other; the loudest one, channel 1,"):
            check_request(np.stack([SOUND, -SOUND]), RATE, 2, None)

    @pytest.mark.filterwarnings("ignore::jaxsep.files.AudioWarning")
    def test_stems_are_of_the_sound(self):
        one, both = separate(SOUND), separate(np.stack([SOUND, -SOUND]))
        np.testing.assert_allclose(both.stems.sum(axis=0), [SOUND, -SOUND], atol=1e-5)
        assert np.count_nonzero(both.tones.active) == np.count_nonzero(one.tones.active) > 0


class TestNumbers:
    def test_transposed(self):
        message = r"expected shape \[channels, samples\], got \(48000, 2\), as if it were transposed"
        with pytest.raises(ValueError, match=message):
            check_request(np.stack([SOUND, SOUND], axis=1), RATE, 2, None)
        with pytest.raises(ValueError, match=message):
            write_audio("a.wav", np.stack([SOUND, SOUND], axis=1), RATE)

    def test_numpy_integers_are_integers(self):
        rate, number = check_request(SOUND, np.int64(RATE), np.int64(2), None)
        assert (rate, number, type(rate), type(number)) == (RATE, 2, int, int)
        result = separate(SOUND, np.int64(RATE), np.int64(2))
        assert (result.stems.shape, type(result.sample_rate)) == ((2, RATE), int)

    @pytest.mark.parametrize("number", [2.0, "2", None])
    def test_other_numbers_are_none(self, number):
        with pytest.raises(ValueError, match=r"^num_instruments: expected an integer, got"):
            check_request(SOUND, RATE, number, None)

    @pytest.mark.parametrize("rate", [2**31, 2**40])
    def test_rates_beyond_what_files_can_tell(self, tmp_path, rate):
        for function in (check_samples, lambda samples, rate: write_audio(tmp_path / "a.wav", samples, rate)):
            with pytest.raises(ValueError, match=r"^sample_rate: expected less than 2\*\*31 Hz"):
                function(SOUND, rate)
        assert list(tmp_path.iterdir()) == []

    def test_more_than_single_precision_holds(self, tmp_path):
        with pytest.raises(ValueError, match=r"^samples: expected values that float32 can hold, got 1e\+300"):
            write_audio(tmp_path / "a.wav", np.full(10, 1e300), RATE)
        write_audio(tmp_path / "a.wav", np.full(10, 1e300), RATE, subtype="DOUBLE")
        assert soundfile.read(tmp_path / "a.wav")[0].max() == 1e300


class TestLevels:
    @pytest.mark.parametrize("level", [2.0**-95, 2.0**-60, 2.0**70, 2.0**99])
    def test_faint_and_loud(self, level):
        wanted, found = separate(SOUND), separate((SOUND * level).astype(np.float32))
        np.testing.assert_allclose(found.stems / level, wanted.stems, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            found.tones.amplitude / level, wanted.tones.amplitude, rtol=1e-3, atol=1e-6
        )

    @pytest.mark.parametrize("level", [1e-37, 1e-300, 1e300])
    def test_beyond(self, level):
        with pytest.raises(ValueError, match=r"^samples: expected a peak between 1e-30 and 1e30, got"):
            check_request(SOUND.astype(float) * level, RATE, 2, None)


def test_the_sixteenth_instrument_has_a_channel_of_its_own(tmp_path):
    curve = {"times": np.array([0.5]), "bend": np.array([60.0])}
    notes = [
        jaxsep.Note(instrument=n, onset=0.5, offset=1.0, pitch=60.0, level=-9.0, **curve) for n in range(16)
    ]
    jaxsep.write_midi(tmp_path / "a.mid", notes, 16)
    places = []
    for track in mido.MidiFile(tmp_path / "a.mid").tracks[1:]:
        ports = [message.port for message in track if message.type == "midi_port"]
        (channel,) = {message.channel for message in track if message.type == "note_on"}
        places.append((*(ports or [0]), channel))
    assert len(set(places)) == 16

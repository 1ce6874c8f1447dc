"""Noise has no pitch: what is found in it, and what is done with it."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import jaxsep
from jaxsep.cli.app import app
from jaxsep.cli.jobs import finished_document
from jaxsep.report.page import listening_page
from jaxsep.report.plots import mixture_of
from jaxsep.results.read import read_results
from jaxsep.separation.chunks import ANALYSIS_RATE
from jaxsep.separation.settings import SeparationSettings
from jaxsep.separation.stages import Stages
from jaxsep.signal.axes import LogAxis
from jaxsep.signal.noise import above_noise, noise_level, without_hum
from jaxsep.signal.peaks import PeakPursuit

RATE = 48000
TIMES = np.arange(3 * RATE) / RATE


def shaped(envelope, seed):
    """Noise whose spectrum has an envelope over the frequencies in Hz, at a usual level."""
    frequency = np.fft.rfftfreq(TIMES.size, 1 / RATE)
    white = np.fft.rfft(np.random.default_rng(seed).standard_normal(TIMES.size))
    noise = np.fft.irfft(white * envelope(frequency), TIMES.size)
    return (0.1 * noise / noise.std()).astype(np.float32)


def pink(seed):
    return shaped(lambda f: 1 / np.sqrt(np.maximum(f, 20)), seed)


def rumble(seed):
    return shaped(lambda f: 1 / (1 + (f / 40) ** 4), seed)


def hum(seed):
    """50 Hz with falling harmonics, and a little noise."""
    partials = [np.cos(2 * np.pi * 50 * n * TIMES + n) * 10 ** (-0.15 * (n - 1)) for n in range(1, 13)]
    return (0.05 * np.sum(partials, axis=0) + 0.05 * pink(seed)).astype(np.float32)


def applause(seed):
    """Sixty clicks a second, more and less."""
    random = np.random.default_rng(seed)
    clicks = np.zeros(TIMES.size)
    clicks[random.integers(0, TIMES.size, 60 * 3)] = random.standard_normal(60 * 3)
    click = np.exp(-np.arange(200) / 30) * random.standard_normal(200)
    sound = np.convolve(clicks, click)[: TIMES.size] * (0.5 + 0.5 * np.sin(2 * TIMES) ** 2)
    return (0.1 * sound / sound.std()).astype(np.float32)


def click(_):
    return (TIMES == 1.5).astype(np.float32)


def below_hearing(_):
    return (0.5 * np.sin(2 * np.pi * 5 * TIMES)).astype(np.float32)


def melody():
    """A second of a note with ten harmonics, one of another, and one of nothing."""
    pitch = np.where(TIMES < 1, 330.0, 392.0)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    sound = sum(np.sin(n * phase) / n for n in range(1, 11)) * (TIMES < 2)
    return (0.2 * sound).astype(np.float32)


def spectra(samples):
    return Stages(SeparationSettings(hop=1024)).spectra(samples[None]).pitched


class TestNoiseAlone:
    @pytest.mark.parametrize("kind", [pink, rumble, hum, applause, click, below_hearing])
    def test_has_no_peaks(self, kind):
        assert not spectra(kind(0)).any()

    @pytest.mark.parametrize("search", ["full", "greedy"])
    def test_is_shared_evenly(self, search):
        noise, settings = pink(0), SeparationSettings(hop=1024, search=search)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = jaxsep.separate(noise, RATE, 3, settings=settings, key=jax.random.key(0))
        assert not found.tones.active.any()
        np.testing.assert_allclose(found.stems, np.stack([noise / 3] * 3), atol=1e-5)
        assert found.dictionary.num_instruments == 3

    def test_is_dropped_where_nothing_is_shared(self):
        settings = SeparationSettings(hop=1024, share=0.0)
        found = jaxsep.separate(pink(0), RATE, 2, settings=settings, key=jax.random.key(0))
        assert not found.stems.any()

    def test_in_parts(self, tmp_path):
        jaxsep.write_audio(tmp_path / "noise.wav", pink(0), RATE)
        settings = SeparationSettings(hop=1024)
        parts = jaxsep.separate_parts(
            tmp_path / "noise.wav", 2, seconds=2.0, settings=settings, key=jax.random.key(0)
        )
        found = np.concatenate([part.stems for part in parts], axis=2)
        np.testing.assert_allclose(found.sum(axis=0)[0], pink(0), atol=1e-4)
        np.testing.assert_allclose(found[0], found[1], atol=1e-5)

    def test_the_command_says_so(self, tmp_path):
        jaxsep.write_audio(tmp_path / "noise.wav", pink(0), RATE)
        run = ["separate", str(tmp_path / "noise.wav"), "-o", str(tmp_path / "out"), "-n", "2", "--fast"]
        result = CliRunner().invoke(app, run)
        assert result.exit_code == 0, result.output
        assert "nothing with a pitch was found: the stems share the recording evenly" in result.output
        assert json.loads((tmp_path / "out" / "separation.json").read_text())["num_tones"] == 0


class TestMusicInNoise:
    @pytest.mark.parametrize("noise", [pink, rumble, applause])
    def test_its_partials_stay(self, noise):
        """20 dB below the music, and what is found where nothing plays."""
        clean, noisy = spectra(melody()), spectra(melody() + 0.1 * noise(0))
        loud = clean > 0.1 * clean.max()
        np.testing.assert_allclose(noisy[loud], clean[loud], atol=0.1 * clean.max())
        resting = round(2.3 * ANALYSIS_RATE / 1024)
        assert noisy[resting:].sum() < 0.01 * noisy[:resting].sum()

    def test_without_the_hum(self):
        clean, noisy = spectra(melody()), spectra(melody() + hum(0))
        axis = LogAxis()
        for partial in (50, 100, 150):
            place = round(float(axis.to_bin(jnp.asarray(float(partial)))))
            assert noisy[20:-20, place].max() < 0.01 * noisy.max()
        loud = clean > 0.2 * clean.max()
        np.testing.assert_allclose(noisy[loud], clean[loud], atol=0.1 * clean.max())

    @pytest.mark.parametrize("pitch", [98.0, 100.0, 200.0, 65.4])
    def test_a_held_note_is_no_hum(self, pitch):
        note = sum(np.sin(2 * np.pi * n * pitch * TIMES + n) / n for n in range(1, 11))
        found = spectra((0.1 * note).astype(np.float32))
        place = round(float(LogAxis().to_bin(jnp.asarray(pitch))))
        assert np.all(found[20:-20, place - 1 : place + 2].max(axis=1) > 0.8 * found.max())

    def test_a_low_note_keeps_its_partials(self):
        """A double bass: partials 41 Hz apart leave less room for noise between them."""
        note = sum(np.sin(2 * np.pi * n * 41.2 * TIMES + n * n) / n for n in range(1, 21))
        samples = (0.1 * note).astype(np.float32)
        found, axis = spectra(samples)[20:-20], LogAxis()
        for number in (1, 2, 5, 10):
            place = round(float(axis.to_bin(jnp.asarray(41.2 * number))))
            height = found[:, place - 1 : place + 2].max(axis=1)
            assert np.all(height > 0.5 * found.max() / number)


def test_noise_counts_in_the_costs():
    """Costs of tones are in units of all that is left unexplained, be it noise."""
    partial = lambda place: np.exp(-0.5 * ((np.arange(1024.0) - place) / 1.91) ** 2)
    frames = np.repeat((partial(400.25) + 0.5 * partial(502.65))[None], 4, axis=0).astype(np.float32)
    start, alternation = jaxsep.Dictionary(jnp.array([[1.0, 0.4]])), jaxsep.Alternation(rounds=1, spans=(1,))
    find = lambda noise: alternation(jaxsep.TonePursuit(), frames, [start], 0.01, noise=noise)
    assert float(find(0.0).voices.scale) < 0.01
    assert float(find(2.0).voices.scale) == pytest.approx(2, abs=0.01)


@pytest.mark.slow
def test_noise_does_not_pump():
    """Between the partials every stem has its share of the noise, who ever plays."""
    noise = 0.03 * pink(0)
    found = jaxsep.separate(
        melody() + noise, RATE, 2, settings=SeparationSettings(hop=1024), key=jax.random.key(0)
    )
    frequency = np.fft.rfftfreq(TIMES.size, 1 / RATE)
    between = (frequency > 2050) & (frequency < 2200)  # no multiple of 330 or 392 Hz
    steady = [1, 2, 3, 6, 7, 8, 11, 12, 13]  # fifths of a second in which nothing begins or ends

    def level(sound):
        band = np.fft.irfft(np.fft.rfft(sound) * between, TIMES.size)
        return 10 * np.log10([np.mean(piece**2) for piece in np.array_split(band, 15)])[steady]

    assert np.mean(found.tones.active.any(axis=1)) > 0.5
    for stem in found.stems:
        share = level(stem) - level(noise)
        np.testing.assert_allclose(share, -6, atol=3)
        assert np.std(share) < 1.5


#: Quick, and deterministic.
GREEDY = SeparationSettings(hop=1024, search="greedy", restarts=1, steps=8, batch=16)


@pytest.fixture(scope="module")
def found():
    """A melody in steady noise, 24 dB lower, with the noise shared and apart."""
    mixture = melody() + 0.09 * pink(0)
    run = lambda noise: jaxsep.separate(
        mixture,
        RATE,
        2,
        settings=dataclasses.replace(GREEDY, noise=noise),
        key=jax.random.key(0),
    )
    return mixture, run("shared"), run("apart")


class TestApart:
    """Noise in a track of its own."""

    def test_stems_and_noise_are_the_mixture(self, found):
        mixture, shared, apart = found
        assert shared.noise is None
        assert apart.noise.shape == mixture.shape
        np.testing.assert_allclose(apart.stems.sum(axis=0) + apart.noise, mixture, atol=1e-6)

    def test_rests_are_silent(self, found):
        """Most of the noise is apart; the melody is not."""
        mixture, shared, apart = found
        power = lambda sound, part: float(np.mean(np.square(sound[..., part], dtype=float)))
        rest, notes = slice(round(2.4 * RATE), round(2.9 * RATE)), slice(RATE // 5, 9 * RATE // 5)
        assert power(apart.stems, rest) < 0.1 * power(shared.stems, rest)
        assert power(apart.noise, rest) == pytest.approx(power(mixture, rest), rel=0.2)
        assert power(apart.noise, notes) < 0.1 * power(mixture, notes)
        assert power(apart.stems.sum(axis=0), notes) > 0.8 * power(mixture, notes)

    @pytest.mark.parametrize("options", [{"share": 0.0}, {"masking": False}, {"phase_iterations": 2}])
    def test_the_sum_holds_where_stems_alone_have_none(self, options):
        samples = np.stack([melody(), 0.5 * melody() + 0.05 * pink(1)])[:, :RATE]
        settings = dataclasses.replace(GREEDY, noise="apart", **options)
        found = jaxsep.separate(samples, RATE, 2, settings=settings, key=jax.random.key(0))
        np.testing.assert_allclose(found.stems.sum(axis=0) + found.noise, samples, atol=1e-5)

    def test_noise_alone_leaves_the_stems_silent(self):
        settings = SeparationSettings(hop=1024, noise="apart")
        found = jaxsep.separate(pink(0), RATE, 3, settings=settings, key=jax.random.key(0))
        assert not found.stems.any()
        np.testing.assert_allclose(found.noise, pink(0), atol=1e-7)

    def test_extreme_levels(self):
        settings = SeparationSettings(hop=1024, noise="apart")
        found = jaxsep.separate(2.0**60 * pink(0), RATE, 2, settings=settings, key=jax.random.key(0))
        np.testing.assert_allclose(found.noise, 2.0**60 * pink(0), rtol=1e-6)

    def test_in_parts(self, tmp_path):
        mixture = melody() + 0.03 * pink(0)
        jaxsep.write_audio(tmp_path / "melody.wav", mixture, RATE)
        settings = dataclasses.replace(GREEDY, noise="apart")
        parts = list(
            jaxsep.separate_parts(
                tmp_path / "melody.wav", 2, seconds=1.0, settings=settings, key=jax.random.key(0)
            )
        )
        assert len(parts) == 3
        whole = lambda sounds: np.concatenate(list(sounds), axis=-1)
        stems, noise = whole(part.stems for part in parts), whole(part.noise for part in parts)
        np.testing.assert_allclose((stems.sum(axis=0) + noise)[0], mixture, atol=1e-6)
        assert np.mean(noise**2) < 0.1 * np.mean(mixture**2)

    def test_saved_and_loaded(self, found, tmp_path):
        mixture, _, apart = found
        apart.save(tmp_path / "out")
        again = jaxsep.Separation.load(tmp_path / "out")
        np.testing.assert_array_equal(again.noise, apart.noise)
        np.testing.assert_array_equal(again.mixture, mixture)
        assert again.stems.shape == apart.stems.shape
        assert again.settings == apart.settings
        (tmp_path / "out" / "noise.wav").unlink()
        with pytest.raises(ValueError, match=r"noise\.wav"):
            jaxsep.Separation.load(tmp_path / "out")

    def test_without_a_mixture_the_sum_stands_for_it(self, found):
        mixture, _, apart = found
        np.testing.assert_allclose(mixture_of(dataclasses.replace(apart, mixture=None)), mixture, atol=1e-6)

    def test_it_is_shown(self, found, tmp_path):
        _, shared, apart = found
        assert ">noise<" in apart._repr_html_()
        assert ">noise<" not in shared._repr_html_()
        apart.save(tmp_path / "out")
        html = listening_page(read_results(tmp_path / "out"))
        assert ">Noise<" in html
        assert "Stems and noise together are the mixture" in html

    def test_the_command_writes_it(self, tmp_path):
        jaxsep.write_audio(tmp_path / "noise.wav", pink(0), RATE)
        run = ["separate", str(tmp_path / "noise.wav"), "-o", str(tmp_path / "out"), "-n", "2", "--fast"]
        run += ["--noise", "apart", "--format", "flac", "--bits", "16"]
        result = CliRunner().invoke(app, run)
        assert result.exit_code == 0, result.output
        assert "nothing with a pitch was found: all of it is in noise.flac" in result.output
        document = json.loads((tmp_path / "out" / "separation.json").read_text())
        assert (document["noise"], document["settings"]["noise"]) == ("noise.flac", "apart")
        assert len(document["stems"]) == 2
        noise, rate = jaxsep.read_audio(tmp_path / "out" / "noise.flac")
        assert rate == RATE
        np.testing.assert_allclose(noise[0], pink(0) * 10 ** (document["gain_db"] / 20), atol=1e-4)
        assert not list((tmp_path / "out").glob(".*"))

    def test_finished_with_its_noise_alone(self, tmp_path):
        """A folder that lacks the track is not finished."""
        names = ["mixture.wav", "stem-1.wav", "noise.wav"]
        document = {"mixture": names[0], "stems": names[1:2], "noise": names[2], "input": {}, "settings": {}}
        (tmp_path / "separation.json").write_text(json.dumps(document))
        for name in names:
            assert finished_document(tmp_path, {"settings": {}, "input": {}}, ".wav", False) is None
            (tmp_path / name).touch()
        assert finished_document(tmp_path, {"settings": {}, "input": {}}, ".wav", False) == document


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_level_is_that_of_the_noise(dtype):
    """Rayleigh magnitudes have their parameter; a few loud partials do not change it."""
    with jax.enable_x64(dtype == np.float64):
        pairs = np.random.default_rng(0).standard_normal((20, 6144, 2)) * 0.3
        magnitudes = np.linalg.norm(pairs, axis=-1)
        level = np.asarray(noise_level(jnp.asarray(magnitudes, dtype)))
        assert level.dtype == dtype
        assert level.mean(axis=0)[64:] == pytest.approx(0.3, rel=0.2)
        magnitudes[:, ::25] += 10.0
        assert noise_level(jnp.asarray(magnitudes, dtype)).mean() == pytest.approx(0.3, rel=0.2)


def test_few_peaks_of_noise_rise_above_it():
    pairs = np.random.default_rng(0).standard_normal((20, 6144, 2))
    magnitudes = jnp.asarray(np.linalg.norm(pairs, axis=-1), jnp.float32)
    peaks = PeakPursuit()(magnitudes).peaks
    kept = above_noise(peaks, noise_level(magnitudes))
    assert 0 < np.sum(kept.active) < 0.03 * np.sum(peaks.active)
    assert not np.any(np.asarray(kept.amplitude)[~np.asarray(kept.active)])


def test_hum_is_steady():
    """What stops and begins again at 50 Hz is music."""
    axis = LogAxis()
    found = np.zeros((100, axis.num_bins), np.float32)
    for partial in (50, 100, 150):
        found[:70, round(float(axis.to_bin(jnp.asarray(float(partial)))))] = 1
    np.testing.assert_array_equal(without_hum(found, axis), found)

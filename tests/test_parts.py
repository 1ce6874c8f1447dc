"""Recordings separated in parts, which must be those of the recording in one part."""

import equinox as eqx
import jax
import numpy as np
import pytest
from test_report import synthetic_separation
from test_separate import mixture, true_dictionary

import jaxsep
from jaxsep.audio import Recording
from jaxsep.results.read import read_results
from jaxsep.results.write import write_results
from jaxsep.separation.separate import _loudest

RATE = 22050
GREEDY = jaxsep.SeparationSettings(restarts=1, steps=2, batch=8, search="greedy")
FULL = jaxsep.SeparationSettings(rounds=1, hop=1024)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Twelve seconds, in two channels: the duet again and again, at other levels."""
    path = tmp_path_factory.mktemp("parts") / "long.wav"
    levels = np.repeat([1.0, 0.6, 0.8, 1.0, 0.5, 0.9], 2 * RATE)
    mono = np.tile(mixture(RATE), 6) * levels
    jaxsep.write_audio(path, np.stack([mono, 0.5 * mono])[:, : -RATE // 3], RATE)
    return path


def parts(path, seconds, settings, **options):
    return list(
        jaxsep.separate_parts(path, 2, seconds=seconds, settings=settings, key=jax.random.key(0), **options)
    )


def joined(parts):
    tones = jax.tree.map(lambda *x: np.concatenate(x), *[part.tones for part in parts])
    return (
        np.concatenate([p.stems for p in parts], axis=-1),
        tones,
        np.concatenate([p.times for p in parts]),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "seconds"), [(GREEDY, 4.0), (FULL, 2.0)])
def test_parts_are_those_of_the_whole(tmp_path, path, settings, seconds):
    samples, rate = jaxsep.read_audio(path)
    samples = samples[:, : round((3 * seconds - 1 / 3) * rate)]  # the full search takes its time
    jaxsep.write_audio(tmp_path / "x.wav", samples, rate)
    among = {"settings": settings, "dictionary": true_dictionary()}
    pieces, whole = (parts(tmp_path / "x.wav", s, **among) for s in (seconds, 1e9))
    assert (len(pieces), len(whole)) == (3, 1)
    stems, tones, times = joined(pieces)
    assert stems.shape == (2, *samples.shape)
    np.testing.assert_allclose(stems.sum(axis=0), samples, atol=1e-5)
    np.testing.assert_array_equal(times, whole[0].times)
    np.testing.assert_allclose(np.diff(times), settings.hop / 48_000, rtol=1e-9)
    inside = slice(rate, -rate)
    error = np.abs(stems - whole[0].stems)[..., inside]
    if settings is GREEDY:
        assert error.max() < 1e-3 * np.abs(samples).max()
    # A path through all frames can differ here and there, where two explanations cost nearly the same.
    assert np.sum(error**2) < 1e-4 * np.sum(whole[0].stems[..., inside] ** 2)
    assert np.mean((tones.active == whole[0].tones.active).all(axis=1)) > 0.98


@pytest.mark.slow
def test_instruments_are_learned_once(path):
    first, *others = parts(path, 4.0, GREEDY)
    assert "learning" in first.seconds
    for part in others:
        np.testing.assert_array_equal(part.dictionary.harmonics, first.dictionary.harmonics)
        assert part.restart_losses == first.restart_losses
        assert "learning" not in part.seconds


def test_excerpts_are_where_sound_is():
    energies = np.zeros(400)
    energies[[50, 60, 150, 390]] = 1
    starts = _loudest(energies)
    assert len(starts) == 3
    assert starts[0] <= 50
    assert starts[0] + 16 > 60
    assert all(energies[start : start + 16].any() for start in starts)
    assert _loudest(np.ones(3)) == [0]


def test_pieces_of_a_file(path):
    samples, rate = jaxsep.read_audio(path)
    with Recording(path) as recording:
        assert (recording.sample_rate, recording.num_channels) == (rate, 2)
        np.testing.assert_array_equal(recording.read(2, 4), samples[:, 2 * rate : 4 * rate])
        np.testing.assert_array_equal(recording.read(-1, 1)[:, :rate], 0)
        np.testing.assert_array_equal(recording.read(-1, 1)[:, rate:], samples[:, :rate])
        end = recording.read(11, 14)
        left = samples.shape[1] - 11 * rate
        np.testing.assert_array_equal(end[:, :left], samples[:, 11 * rate :])
        np.testing.assert_array_equal(end[:, left:], 0)
        assert recording.energies().sum() == pytest.approx(np.sum(samples.astype(float) ** 2))


@pytest.mark.parametrize(("content", "message"), [(0.0, "silence"), (np.nan, "NaN or infinite")])
def test_what_is_no_recording(tmp_path, content, message):
    import soundfile

    soundfile.write(tmp_path / "x.wav", np.full(RATE, content), RATE, subtype="FLOAT")
    with pytest.raises(jaxsep.AudioError, match=message):
        next(jaxsep.separate_parts(tmp_path / "x.wav", 2, key=jax.random.key(0)))


def test_impossible_lengths(path):
    with pytest.raises(ValueError, match=r"seconds: expected at least 1, got 0\.5"):
        next(jaxsep.separate_parts(path, 2, seconds=0.5, key=jax.random.key(0)))


# ---- Folders of recordings that come part by part ---------------------------------------------------------


@pytest.mark.parametrize("audio", [(".wav", "FLOAT"), (".flac", "PCM_16")])
def test_folder_of_parts(tmp_path, audio):
    """Two parts of a second each, in the first of which a stem exceeds full scale."""
    one = synthetic_separation()
    loud = eqx.tree_at(lambda s: s.stems, one, one.stems * np.array([[1.25 / 0.4], [-1.0]], np.float32))
    later = eqx.tree_at(lambda s: s.times, one, one.times + 1)
    pieces = [loud.stems, one.stems]
    mixture = np.concatenate([piece.sum(axis=0) for piece in pieces])
    gain = 1 / np.abs([mixture, *np.concatenate(pieces, axis=1)]).max() if audio[1] == "PCM_16" else 1
    halves = np.split(mixture[None], 2, axis=1)
    parts = (eqx.tree_at(lambda s: s.stems, part, part.stems[:, None]) for part in (loud, later))
    about = {"settings": jaxsep.SeparationSettings(), "seed": 0, "source": {"file": "two.wav"}}
    document = write_results(tmp_path, zip(halves, parts, strict=True), audio, **about)
    results = read_results(tmp_path)
    assert document["input"]["samples"] == mixture.size
    assert document["seconds"] == {"spectrogram": 3.0, "pursuit": 4.5}
    assert document["gain_db"] == pytest.approx(20 * np.log10(gain), abs=1e-3)
    np.testing.assert_allclose(results.mixture[0], gain * mixture, atol=1e-4)
    np.testing.assert_allclose(results.stems[:, 0], gain * np.concatenate(pieces, axis=1), atol=1e-4)
    assert results.tones.active[:180].sum() == 2 * np.sum(one.tones.active)
    assert not list(tmp_path.glob(".*"))

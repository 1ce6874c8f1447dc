"""Separation by a network trained on the recording, in Python and on the command line."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from test_cli import contents, run, workplace  # noqa: F401 (fixture)
from test_report import synthetic_separation
from test_separate import RATE, Listener, duet

from jaxsep.audio import resample
from jaxsep.files import AudioError
from jaxsep.neural import loop
from jaxsep.neural.prediction import predict
from jaxsep.neural.settings import NeuralSettings
from jaxsep.neural.training import Trainer
from jaxsep.results.read import read_results
from jaxsep.separation import neural
from jaxsep.separation.neural import predict_stems, separate_neural, spectral_peak
from jaxsep.tones.dictionary import Dictionary

TINY = NeuralSettings(
    rate=4000, window_std=80, hop=160, strides=(4, 4, 3), widths=(6, 8, 8), batch=2, branches=2, steps=4
)
MIXTURE = duet()[:, : RATE // 2].sum(axis=0)


def separated(samples=MIXTURE, settings=TINY, **options):
    return separate_neural(samples, RATE, 2, settings=settings, key=jax.random.key(0), **options)


@pytest.mark.slow
def test_stems_tones_and_dictionary(monkeypatch):
    monkeypatch.setattr(loop, "STEPS_PER_LINE", 2)
    monkeypatch.setattr(neural, "STEPS_PER_LINE", 2)
    listener = Listener()
    result = separated(progress=listener)
    assert result.stems.shape == (2, MIXTURE.size)
    assert result.stems.dtype == np.float32
    assert np.all(np.isfinite(result.stems))
    frames = result.times.size
    assert result.tones.amplitude.shape == (frames, 2)
    np.testing.assert_array_equal(result.tones.instrument, np.tile([0, 1], (frames, 1)))
    assert np.all((result.tones.fundamental >= -20) & (result.tones.fundamental < 2020))
    assert np.all(result.tones.amplitude[~result.tones.active] == 0)
    np.testing.assert_allclose(np.max(result.dictionary.harmonics, axis=1), 1)
    assert result.loss.shape == (frames,)
    assert result.restart_losses == ()
    assert set(result.seconds) == {"training", "prediction"}
    assert listener.open == []
    assert listener.steps == listener.total == {"training": 2, "prediction": 1}
    np.testing.assert_array_equal(separated().stems, result.stems)


@pytest.mark.slow
def test_channels_have_stems_of_their_own():
    stereo = np.stack([MIXTURE, 0.5 * MIXTURE[::-1]])
    result = separated(stereo)
    assert result.stems.shape == (2, 2, MIXTURE.size)
    assert np.linalg.norm(result.stems[:, 0] - 2 * result.stems[:, 1]) > 0.1 * np.linalg.norm(result.stems)


@pytest.mark.slow
def test_the_level_of_the_recording_does_not_matter():
    loud, quiet = separated(), separated(MIXTURE * np.float32(2**-12))
    np.testing.assert_allclose(quiet.stems * 2**12, loud.stems, atol=1e-5 * np.abs(loud.stems).max())
    np.testing.assert_allclose(quiet.loss, loud.loss, rtol=1e-4)


def test_pieces_of_the_prediction_are_the_whole():
    trainer = Trainer(TINY, 2)
    samples = resample(np.tile(MIXTURE, 24)[None], RATE, TINY.rate)
    assert trainer.stft.num_frames(samples.shape[1]) > 256
    samples = samples / spectral_peak(samples[0], trainer)
    state = trainer.start(key=jax.random.key(3))
    found = predict_stems(trainer, state, samples)
    frames = trainer.stft.analyse(jnp.asarray(samples[0]))[:, :-1]
    assert float(jnp.max(jnp.abs(frames))) == pytest.approx(1, rel=1e-4)
    one = jax.jit(jax.vmap(lambda z: predict(state.network, state.harmonics, z, trainer.axis)))(frames)
    for name in ("direct", "modelled"):
        spectra = jnp.pad(getattr(one, name)[:, 1], ((0, 0), (0, 1)))
        expected = trainer.stft.synthesise(spectra, samples.shape[1])
        np.testing.assert_allclose(getattr(found, name)[1, 0], expected, atol=1e-4)
    np.testing.assert_array_equal(found.tones.active, one.tones.active)


@pytest.mark.slow
def test_resuming_gives_what_one_run_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "STEPS_PER_LINE", 2)
    kept = tmp_path / "kept.npz"
    separated(checkpoint=kept, minutes=1e-9)  # two steps
    resumed = separated(checkpoint=kept, resume=True)
    np.testing.assert_array_equal(resumed.stems, separated().stems)
    with pytest.raises(ValueError, match="exists; resume it, or name another file"):
        separated(checkpoint=kept)
    with pytest.raises(ValueError, match="belongs to another recording"):
        separated(MIXTURE[::-1], checkpoint=kept, resume=True)


@pytest.mark.slow
def test_a_dictionary_to_begin_with():
    rows = np.linspace(1, 0.2, 50, dtype=np.float32).reshape(2, 25)
    result = separated(dictionary=Dictionary(jnp.asarray(rows)), settings=dataclasses.replace(TINY, steps=1))
    np.testing.assert_allclose(result.dictionary.harmonics, rows / rows.max(axis=1, keepdims=True), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 0.0}, "minutes: expected a number above 0, got 0.0"),
        ({"resume": True}, "resume: expected a checkpoint to resume from, got none"),
        ({"samples": np.zeros(RATE, np.float32)}, "samples: expected a recording with sound, got silence"),
        ({"samples": MIXTURE[:1000]}, "samples: expected at least one window"),
        ({"dictionary": Dictionary(jnp.ones((3, 4)))}, "dictionary: expected 2 instruments, got 3"),
    ],
)
def test_impossible_requests(options, message):
    with pytest.raises(ValueError, match=message):
        separated(**options)


# ---- Command line -----------------------------------------------------------------------------------------


@pytest.fixture
def made_up(monkeypatch):
    """Replaces the separation by a made-up one; holds the options of each call."""
    calls = []

    def separate(samples, sample_rate, num_instruments, *, progress, log, **options):
        calls.append(options)
        log.write_text('{"step": 50}\n')
        return synthetic_separation()

    monkeypatch.setattr(neural, "separate_neural", separate)
    return calls


def test_the_command_line_trains_a_network(workplace, made_up):  # noqa: F811
    arguments = ["--method", "neural", "--minutes", 2.5, "--checkpoint", "kept.npz", "--resume", "--no-cache"]
    code, out, err = run("separate", "mix.wav", "-n", 2, "-o", "out", "--json", *arguments)
    assert code == 0, err
    (options,) = made_up
    assert options["settings"] == NeuralSettings.small()
    assert (options["minutes"], options["checkpoint"].name, options["resume"]) == (2.5, "kept.npz", True)
    assert json.loads(out)["settings"]["rate"] == 12_000
    assert (workplace / "out" / "training.jsonl").exists()
    run(
        "separate", "mix.wav", "-n", 2, "-o", "other", "--method", "neural", "--preset", "paper", "--no-cache"
    )
    assert made_up[1]["settings"] == NeuralSettings.paper()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--method", "neural", "--hop", 512],
            "--hop: expected with --method pursuit or blasso, got --method neural",
        ),
        (["--minutes", 3], "--minutes: expected with --method neural, got --method pursuit"),
        (["--alpha", 0.2], "--alpha: expected with --method blasso, got --method pursuit"),
        (["--method", "neural", "--checkpoint", "out/kept.npz"], "lies in the output folder"),
    ],
)
def test_options_of_another_method_are_refused(workplace, made_up, arguments, message):  # noqa: F811
    before = contents(workplace)
    code, out, err = run("separate", "mix.wav", "-n", 2, "-o", "out", "--no-cache", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
    assert contents(workplace) == before


def test_a_checkpoint_that_cannot_be_written_is_known_before_the_training(tmp_path):
    with pytest.raises(AudioError, match=r"kept\.npz cannot be written: No such file"):
        separated(checkpoint=tmp_path / "none" / "kept.npz", settings=dataclasses.replace(TINY, steps=10**9))


def test_a_training_that_diverges_says_so(workplace, monkeypatch):  # noqa: F811
    def diverge(*arguments, **options):
        raise FloatingPointError("the loss is nan after 50 steps")

    monkeypatch.setattr(neural, "separate_neural", diverge)
    code, _, err = run("separate", "mix.wav", "-n", 2, "-o", "out", "--method", "neural", "--no-cache")
    assert (code, err) == (2, "jaxsep: the loss is nan after 50 steps\n")
    assert not (workplace / "out").exists()


@pytest.mark.slow
def test_a_page_of_the_results(workplace, monkeypatch):  # noqa: F811
    monkeypatch.setattr(NeuralSettings, "small", lambda: TINY)
    soundfile.write("duet.wav", MIXTURE, RATE, subtype="FLOAT")
    code, _, err = run(
        "separate", "duet.wav", "-n", 2, "-o", "out", "--method", "neural", "--report", "--no-cache"
    )
    assert code == 0, err
    results = read_results(workplace / "out")
    assert results.times[1] == pytest.approx(TINY.hop / TINY.rate)
    assert (workplace / "out" / "report.html").stat().st_size > 10_000


def test_a_checkpoint_that_is_none_leaves_nothing(workplace):  # noqa: F811
    (workplace / "kept.npz").write_text("nothing")
    arguments = ["--method", "neural", "--checkpoint", "kept.npz", "--resume", "--no-cache"]
    code, _, err = run("separate", "mix.wav", "-n", 2, "-o", "out", *arguments)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "checkpoint: kept.npz is truncated, or no checkpoint written by jaxsep" in err
    assert not (workplace / "out").exists()

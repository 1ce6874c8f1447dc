"""The command line: results, messages, exit codes, and that nothing half-done is left behind."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from rich.console import Console
from test_report import RATE, sinusoid, synthetic_separation

from jaxsep.cli import app as cli
from jaxsep.cli import compute, jobs
from jaxsep.cli import process as runtime
from jaxsep.cli.terminal import TerminalProgress
from jaxsep.results.document import evaluation_document
from jaxsep.results.tones import TONE_COLUMNS
from jaxsep.separation import separate as pursuit
from jaxsep.separation import stages
from jaxsep.separation.result import Separation
from jaxsep.separation.settings import SeparationSettings
from jaxsep.tones.dictionary import Dictionary


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The working folder with a recording, `mix.wav`."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write("mix.wav", sinusoid(440.0) + sinusoid(660.0))
    return place


@pytest.fixture
def quick(monkeypatch):
    """Replaces the separation by a made-up one; holds the arguments of each call."""
    calls = []

    def separate(samples, sample_rate, num_instruments, *, settings, dictionary=None, progress, key):
        calls.append((samples, sample_rate, num_instruments, settings, dictionary, key))
        with progress.stage("separating", 1):
            progress.advance("separating")
        return synthetic_separation()

    monkeypatch.setattr(pursuit, "separate", separate)
    return calls


def write(path, samples, sample_rate=RATE, subtype="FLOAT"):
    soundfile.write(path, np.asarray(samples).T, sample_rate, subtype=subtype)


def run(*arguments):
    """Exit code, stdout and stderr of a command line without compilation cache."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def in_process(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        **options,
    )


RESULTS = {
    "audacity-1.txt",
    "audacity-2.txt",
    "dictionary.npz",
    "frames.npz",
    "mixture.wav",
    "notes.csv",
    "notes.mid",
    "overview.png",
    "separation.json",
    "sonic-visualiser-1.csv",
    "sonic-visualiser-2.csv",
    "stem-1.wav",
    "stem-2.wav",
    "tones.csv",
}


class TestSeparate:
    def test_results(self, workplace, quick):
        code, out, err = run("separate", "mix.wav", "-n", 2, "-o", "new/out", "--no-cache")
        folder, truth = workplace / "new" / "out", synthetic_separation()
        assert (code, {path.name for path in folder.iterdir()}) == (0, RESULTS)
        for number, wanted in enumerate(truth.stems, 1):
            stem, rate = soundfile.read(folder / f"stem-{number}.wav", dtype="float32")
            assert rate == RATE
            np.testing.assert_array_equal(stem, wanted)
        assert (
            Dictionary.load(folder / "dictionary.npz").harmonics.tolist()
            == truth.dictionary.harmonics.tolist()
        )
        document = json.loads((folder / "separation.json").read_text())
        assert document["input"]["file"] == "mix.wav"
        assert document["mixture"] == "mixture.wav"
        assert document["stems"] == ["stem-1.wav", "stem-2.wav"]
        assert document["gain_db"] == 0
        assert {"mix.wav", *RESULTS, "0.2500"} <= set(out.replace(":", " ").split())
        assert [line.split(":")[0] for line in err.splitlines()] == ["separating", "overview"]

    def test_json_alone_on_stdout(self, workplace, quick):
        code, out, _ = run("separate", "mix.wav", "-n", 2, "-o", "out", "--json", "--no-cache")
        assert code == 0
        assert out == (workplace / "out" / "separation.json").read_text()
        assert json.loads(out)["num_instruments"] == 2

    def test_defaults_are_those_of_the_library(self, workplace, quick):
        run("separate", "mix.wav", "-n", 2, "-o", "out", "--no-cache")
        samples, sample_rate, num_instruments, settings, dictionary, key = quick[0]
        assert settings == SeparationSettings()
        assert (samples.shape, sample_rate, num_instruments, dictionary) == ((1, RATE), RATE, 2, None)
        assert jax.random.key_data(key).tolist() == jax.random.key_data(jax.random.key(0)).tolist()

    @pytest.mark.parametrize(
        ("arguments", "name", "value"),
        [
            (["--restarts", 7], "restarts", 7),
            (["--steps", 5, "--restarts", 1], "steps", 5),
            (["--tones", 3], "tones_per_instrument", 3),
            (["--tones", "1,6"], "tones_per_instrument", (1, 6)),
            (["--search", "greedy"], "search", "greedy"),
            (["--rounds", 0], "rounds", 0),
            (["--no-timbre"], "timbre", False),
            (["--hop", 768], "hop", 768),
            (["--full-peaks"], "full_peaks", True),
            (["--no-masking"], "masking", False),
            (["--share", 0], "share", 0),
            (["--lowest", 110], "lowest", 110),
            (["--lowest", "A2"], "lowest", 110),
            (["--highest", "Bb5"], "highest", pytest.approx(932.328)),
            (["--noise", "apart"], "noise", "apart"),
            (["--phase-iterations", 9], "phase_iterations", 9),
        ],
    )
    def test_options(self, workplace, quick, arguments, name, value):
        code, out, _ = run("separate", "mix.wav", "-n", 2, "-o", "out", "--json", "--no-cache", *arguments)
        assert code == 0
        assert getattr(quick[0][3], name) == value != getattr(SeparationSettings(), name)
        written = json.loads(out)["settings"][name]
        assert (tuple(written) if isinstance(written, list) else written) == value

    def test_the_fast_preset_leaves_what_is_given(self, workplace, quick):
        run("separate", "mix.wav", "-n", 2, "-o", "out", "--fast", "--no-cache")
        run(
            "separate",
            "mix.wav",
            "-n",
            2,
            "-o",
            "other",
            "--fast",
            "--restarts",
            4,
            "--hop",
            768,
            "--no-cache",
        )
        assert quick[0][3] == SeparationSettings.fast() != SeparationSettings()
        assert quick[1][3] == dataclasses.replace(SeparationSettings.fast(), restarts=4, hop=768)

    def test_seed_and_dictionary(self, workplace, quick):
        synthetic_separation().dictionary.save("known.npz")
        arguments = ["--seed", 5, "--dictionary", "known.npz", "--json", "--no-cache"]
        _, out, _ = run("separate", "mix.wav", "-n", 2, "-o", "out", *arguments)
        *_, dictionary, key = quick[0]
        assert dictionary.harmonics.shape == (2, 3)
        assert jax.random.key_data(key).tolist() == jax.random.key_data(jax.random.key(5)).tolist()
        assert (json.loads(out)["seed"], json.loads(out)["input"]["dictionary"]) == (5, "known.npz")

    def test_force_replaces_the_old_results(self, workplace, quick):
        (workplace / "out").mkdir()
        (workplace / "out" / "old.txt").write_text("old")
        assert run("separate", "mix.wav", "-n", 2, "-o", "out", "--no-cache")[0] == 2
        assert contents(workplace / "out") == {workplace / "out" / "old.txt": b"old"}
        assert run("separate", "mix.wav", "-n", 2, "-o", "out", "--force", "--no-cache")[0] == 0
        assert {path.name for path in (workplace / "out").iterdir()} == RESULTS

    def test_failure_keeps_the_old_results(self, workplace, quick, monkeypatch):
        def fail(*_):
            raise OSError(28, "No space left on device")

        run("separate", "mix.wav", "-n", 2, "-o", "out", "--no-cache")
        before = contents(workplace)
        monkeypatch.setattr("jaxsep.results.write.write_tones", fail)
        result = run("separate", "mix.wav", "-n", 2, "-o", "out", "--force", "--no-cache")
        assert (result[0], result[2].splitlines()[-1]) == (2, "jaxsep: No space left on device")
        assert contents(workplace) == before

    @pytest.mark.parametrize(
        ("options", "suffix", "subtype"),
        [
            ([], "wav", "FLOAT"),
            (["--bits", 32], "wav", "FLOAT"),
            (["--bits", 16], "wav", "PCM_16"),
            (["--format", "flac"], "flac", "PCM_24"),
            (["--format", "flac", "--bits", 16], "flac", "PCM_16"),
        ],
    )
    def test_format_and_bits(self, workplace, quick, options, suffix, subtype):
        code, out, _ = run("separate", "mix.wav", "-n", 2, "-o", "out", "--json", "--no-cache", *options)
        assert code == 0
        names = [f"{name}.{suffix}" for name in ("mixture", "stem-1", "stem-2")]
        assert [json.loads(out)["mixture"], *json.loads(out)["stems"]] == names
        for name, truth in zip(names[1:], synthetic_separation().stems, strict=True):
            assert soundfile.info(workplace / "out" / name).subtype == subtype
            np.testing.assert_allclose(soundfile.read(workplace / "out" / name)[0], truth, atol=2**-15)

    def test_page(self, workplace, quick):
        write("a.wav", sinusoid(440.0))
        write("b.wav", sinusoid(660.0))
        arguments = ["--report", "--reference", "a.wav", "b.wav", "--no-cache"]
        code, out, err = run("separate", "mix.wav", "-n", 2, "-o", "out", *arguments)
        assert (code, "report.html" in out) == (0, True)
        assert [line.split(":")[0] for line in err.splitlines()] == ["separating", "overview", "report"]
        page = (workplace / "out" / "report.html").read_text(encoding="utf-8")
        assert "mix.wav" in page
        assert "512-tap filter" in page

    @pytest.mark.parametrize("cache", ["mix.wav", "mix.wav/cache"])
    def test_unusable_cache(self, workplace, quick, cache):
        code, _, err = run("separate", "mix.wav", "-n", 2, "-o", "out", "--cache", cache)
        assert (code, "cache" in err) == (0, False)

    @pytest.mark.slow
    def test_a_recording_from_end_to_end(self, workplace):
        time = np.arange(2 * RATE) / RATE
        beats = np.floor(4 * time) % 4
        flute = np.sin(2 * np.pi * 440 * time * 1) * (0.6 + 0.1 * beats)
        reed = sum(np.sin(2 * np.pi * 220 * h * time) / h**0.3 for h in (1, 3, 5, 7, 9)) / 3
        mixture = 0.2 * np.stack([flute + reed, flute - 0.5 * reed]).astype(np.float32)
        write("duet.wav", mixture, RATE)
        quick = ["--restarts", 1, "--steps", 3, "--search", "greedy"]
        code, out, err = run("separate", "duet.wav", "-n", 2, "-o", "out", "--json", "--no-cache", *quick)
        assert code == 0
        assert len(err.splitlines()) <= len(json.loads(out)["seconds"]) + 1
        stems = [soundfile.read(f"out/stem-{number}.wav", dtype="float32")[0].T for number in (1, 2)]
        np.testing.assert_allclose(sum(stems), mixture, atol=1e-5)
        with open("out/tones.csv", newline="") as file:
            header, *rows = csv.reader(file)
        assert tuple(header) == TONE_COLUMNS
        assert {row[1] for row in rows} <= {"1", "2"}
        assert len(rows) == json.loads(out)["num_tones"] > 0
        assert 0 < json.loads(out)["mean_loss"] < np.inf
        assert len(json.loads(out)["restart_losses"]) == 1


def truncated(path):
    write(path, sinusoid(440.0), subtype="PCM_16")
    with open(path, "rb+") as file:
        file.truncate(1000)


def replaced(samples, value):
    samples = samples.copy()
    samples[100] = value
    return samples


#: What makes `bad.wav`, and a part of the message.
BAD_RECORDINGS = {
    "missing": (lambda path: None, "does not exist"),
    "folder": (os.mkdir, "is a folder"),
    "empty": (lambda path: open(path, "w").close(), "is empty"),
    "truncated": (truncated, "is truncated"),
    "not audio": (lambda path: np.arange(9999.0).tofile(path), "is not audio"),
    "no samples": (lambda path: write(path, np.zeros(0)), "0 samples"),
    "one sample": (lambda path: write(path, np.ones(1)), "1 samples"),
    "NaN": (lambda path: write(path, replaced(sinusoid(440.0), np.nan)), "NaN"),
    "infinite": (lambda path: write(path, replaced(sinusoid(440.0), np.inf)), "infinite"),
    "silence": (lambda path: write(path, np.zeros(RATE)), "silence"),
}

#: Options for `separate mix.wav`, and a part of the message.
BAD_OPTIONS = {
    "no instruments": (["-n", 0, "-o", "out"], "--instruments"),
    "too many instruments": (["-n", 17, "-o", "out"], "--instruments"),
    "instruments in words": (["-n", "two", "-o", "out"], "--instruments"),
    "no output": (["-n", 2], "--output"),
    "no option": (["-n", 2, "-o", "out", "--sed", 1], "No such option"),
    "two recordings": (["mix.wav", "-n", 2, "-o", "out"], "mix.wav"),
    "output with content": (["-n", 2, "-o", "full"], "is not empty"),
    "output is a file": (["-n", 2, "-o", "mix.wav"], "is a file"),
    "output in a file": (["-n", 2, "-o", "mix.wav/out"], "cannot be written"),
    "working folder": (["-n", 2, "-o", ".", "--force"], "lies in the output folder"),
    "hop": (["-n", 2, "-o", "out", "--hop", 100], "hop: expected a divisor of 6144"),
    "restarts": (["-n", 2, "-o", "out", "--restarts", -1], "--restarts"),
    "steps of nothing": (["-n", 2, "-o", "out", "--steps", 5], "--steps: expected with --restarts"),
    "share": (["-n", 2, "-o", "out", "--share", "nan"], "share"),
    "search": (["-n", 2, "-o", "out", "--search", "wide"], "--search"),
    "format": (["-n", 2, "-o", "out", "--format", "mp3"], "--format"),
    "bits": (["-n", 2, "-o", "out", "--bits", 12], "--bits"),
    "bits of FLAC": (
        ["-n", 2, "-o", "out", "--format", "flac", "--bits", 32],
        "16 or 24 with --format flac, got 32",
    ),
    "references without a page": (["-n", 2, "-o", "out", "--reference", "mix.wav"], "add --report"),
    "one reference": (["-n", 2, "-o", "out", "--report", "--reference", "mix.wav"], "expected 2 files"),
    "missing reference": (["-n", 1, "-o", "out", "--report", "--reference", "no.wav"], "does not exist"),
    "device": (["-n", 2, "-o", "out", "--device", "abacus"], "--device"),
    "missing dictionary": (["-n", 2, "-o", "out", "--dictionary", "no.npz"], "no file no.npz"),
    "no dictionary": (["-n", 2, "-o", "out", "--dictionary", "mix.wav"], "not a dictionary"),
    "dictionary of another shape": (["-n", 2, "-o", "out", "--dictionary", "flat.npz"], "shape (3,)"),
    "dictionary with NaN": (["-n", 2, "-o", "out", "--dictionary", "nan.npz"], "expected values in [0, 1]"),
    "dictionary of others": (
        ["-n", 2, "-o", "out", "--dictionary", "three.npz"],
        "expected 2 instruments, got 3",
    ),
}


@pytest.fixture
def no_long_work(monkeypatch):
    def fail(*_):
        raise AssertionError("long work began")

    monkeypatch.setattr(stages, "log_spectra", fail)


def save_dictionary(path, harmonics):
    header = {"format": "jaxsep dictionary", "version": 1, "arrays": ["harmonics"]}
    np.savez(path, header=np.array(json.dumps(header)), harmonics=np.asarray(harmonics, np.float32))


@pytest.mark.usefixtures("no_long_work")
class TestMistakes:
    """One line on stderr, exit code 2, and everything as it was."""

    def complaint(self, place, *arguments):
        before = contents(place)
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("jaxsep: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert contents(place) == before
        return err

    @pytest.mark.parametrize("case", BAD_RECORDINGS)
    @pytest.mark.parametrize("command", ["separate", "spectrogram", "evaluate"])
    def test_recording(self, workplace, case, command):
        if (case, command) == ("silence", "evaluate"):
            pytest.skip("a stem may be silent")
        make, message = BAD_RECORDINGS[case]
        make("bad.wav")
        arguments = {
            "separate": ["bad.wav", "-n", 2, "-o", "out", "--no-cache"],
            "spectrogram": ["bad.wav", "-o", "out.png", "--no-cache"],
            "evaluate": ["--reference", "mix.wav", "--estimate", "bad.wav", "--no-cache"],
        }
        err = self.complaint(workplace, command, *arguments[command])
        assert message in err
        assert "bad.wav" in err

    def test_shorter_than_a_window(self, workplace):
        write("short.wav", sinusoid(440.0, seconds=0.25))
        err = self.complaint(workplace, "separate", "short.wav", "-n", 2, "-o", "out", "--no-cache")
        assert "at least one window of 0.256 s, got 0.250 s" in err

    @pytest.mark.parametrize("case", BAD_OPTIONS)
    def test_option(self, workplace, case):
        options, message = BAD_OPTIONS[case]
        (workplace / "full").mkdir()
        (workplace / "full" / "mine.txt").write_text("mine")
        save_dictionary("flat.npz", [1, 0.5, 0.25])
        save_dictionary("nan.npz", [[1, np.nan], [1, 0.5]])
        save_dictionary("three.npz", np.ones((3, 5)))
        assert message in self.complaint(workplace, "separate", "mix.wav", *options, "--no-cache")

    @pytest.mark.parametrize("linked", [False, True])
    def test_input_in_the_folder_to_replace(self, workplace, linked):
        (workplace / "out").mkdir()
        name = "out/../out/mix.wav"
        os.symlink("../mix.wav", name) if linked else os.rename("mix.wav", name)
        arguments = ["-n", 2, "-o", "out", "--force", "--no-cache"]
        assert "lies in the output folder" in self.complaint(workplace, "separate", name, *arguments)

    def test_dictionary_in_the_folder_to_replace(self, workplace):
        (workplace / "out").mkdir()
        save_dictionary("out/mine.npz", np.ones((2, 5)))
        arguments = ["-n", 2, "-o", "out", "--force", "--dictionary", "out/mine.npz"]
        assert "lies in the output folder" in self.complaint(workplace, "separate", "mix.wav", *arguments)

    def test_no_gpu(self, workplace):
        if jax.default_backend() == "gpu":
            pytest.skip("there is a GPU")
        for command in (
            ["separate", "mix.wav", "-n", 2, "-o", "out"],
            ["spectrogram", "mix.wav", "-o", "a.png"],
        ):
            assert "no GPU" in self.complaint(workplace, *command, "--device", "gpu", "--no-cache")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["mix.wav", "-o", "a.jpg"], "expected '.png'"),
            (["mix.wav", "-o", "there.png"], "exists"),
            (["mix.wav", "-o", "folder.png", "--force"], "is a folder"),
            (["mix.wav", "-o", "no/a.png"], "cannot be written"),
            (["there.png", "-o", "there.png", "--force"], "is the recording itself"),
            (["mix.wav", "-o", "a.png", "--kind", "bark"], "--kind"),
        ],
    )
    def test_spectrogram(self, workplace, arguments, message):
        (workplace / "there.png").write_text("old")
        (workplace / "folder.png").mkdir()
        assert message in self.complaint(workplace, "spectrogram", *arguments, "--no-cache")

    def test_evaluate(self, workplace):
        write("fast.wav", sinusoid(440.0), 2 * RATE)
        write("long.wav", sinusoid(440.0, seconds=1.02))
        for estimates, message in {
            ("mix.wav", "mix.wav"): "expected 1 files",
            ("fast.wav",): "fast.wav has 32000 samples per second, expected 16000",
            ("long.wav",): "long.wav has 16320 samples, expected 16000",
        }.items():
            arguments = ["--reference", "mix.wav", "--estimate", *estimates, "--no-cache"]
            assert message in self.complaint(workplace, "evaluate", *arguments)
        assert "--reference" in self.complaint(workplace, "evaluate", "--estimate", "mix.wav")

    def test_report(self, workplace):
        (workplace / "empty").mkdir()
        for folder, message in {
            "no": "is not a folder",
            "mix.wav": "is not a folder",
            "empty": "separation.json does not exist",
        }.items():
            assert message in self.complaint(workplace, "report", folder, "--no-cache")

    def test_unknown_command(self, workplace):
        assert "seperate" in self.complaint(workplace, "seperate", "mix.wav")


class TestEvaluate:
    @pytest.fixture
    def stems(self, workplace):
        truth = np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32) / 8
        noise = np.random.default_rng(1).standard_normal((2, 4000)).astype(np.float32) / 50
        names = ["a.wav", "b.wav", "x.wav", "y.wav"]
        signals = [*truth, *(truth[::-1] + noise)]
        for name, signal_ in zip(names, signals, strict=True):
            write(name, signal_)
        return np.stack(signals)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--reference", "a.wav", "b.wav", "--estimate", "x.wav", "y.wav", "--json"],
            ["--json", "--estimate", "x.wav", "y.wav", "--reference", "a.wav", "b.wav"],
            [
                "--reference",
                "a.wav",
                "--estimate=x.wav",
                "--json",
                "--reference=b.wav",
                "--estimate",
                "y.wav",
            ],
            ["--reference=a.wav", "b.wav", "--estimate", "x.wav", "--estimate", "y.wav", "--json"],
        ],
    )
    def test_figures_are_those_of_the_metrics(self, stems, arguments):
        code, out, _ = run("evaluate", *arguments, "--no-cache")
        wanted = evaluation_document(
            stems[:2], stems[2:], ["a.wav", "b.wav"], ["x.wav", "y.wav"], sample_rate=RATE
        )
        assert (code, json.loads(out)) == (0, wanted | {"note": ""})
        assert json.loads(out)["gain"]["permutation"] == [1, 0]

    def test_table(self, stems):
        code, out, _ = run(
            "evaluate", "--reference", "a.wav", "b.wav", "--estimate", "x.wav", "y.wav", "--no-cache"
        )
        document = evaluation_document(
            stems[:2], stems[2:], ["a.wav", "b.wav"], ["x.wav", "y.wav"], sample_rate=RATE
        )
        assert code == 0
        assert ["a.wav", "y.wav", "gain", "only"] in [line.split()[:4] for line in out.splitlines()]
        for measure in ("gain", "filter_512"):
            for name in ("sdr", "sir", "sar"):
                assert all(f"{figure:.2f}" in out for figure in document[measure][name])
        for name in ("snr", "snr_frames", "si_sdr", "si_sdr_improvement"):
            titles = {"snr": "plain (SNR)", "snr_frames": "median of 1 s", "si_sdr": "SI-SDR"}
            rows = [line for line in out.splitlines() if titles.get(name, "over mixture") in line]
            assert all(any(f"{figure:.2f}" in row for row in rows) for figure in document[name])
        for paper in ("Schulze, King 2021", "museval", "Conv-TasNet", "Music Demixing Challenge"):
            assert paper in out

    def test_the_improvement_is_over_the_mixture_that_is_given(self, stems):
        write("m.wav", stems[0] + 2 * stems[1])
        arguments = ["--reference", "a.wav", "b.wav", "--estimate", "x.wav", "y.wav", "--no-cache", "--json"]
        code, out, _ = run("evaluate", *arguments, "--mixture", "m.wav")
        wanted = evaluation_document(
            stems[:2], stems[2:], ["a"] * 2, ["x"] * 2, sample_rate=RATE, mixture=stems[0] + 2 * stems[1]
        )
        assert code == 0
        assert json.loads(out)["si_sdr_improvement"] == pytest.approx(wanted["si_sdr_improvement"], abs=1e-3)
        assert (
            json.loads(out)["si_sdr_improvement"]
            != json.loads(run("evaluate", *arguments)[1])["si_sdr_improvement"]
        )

    def test_names_in_the_table(self, stems, tmp_path):
        """Folders are left out where the names alone tell the files apart."""
        (tmp_path / "work" / "old").mkdir()
        write("old/a.wav", stems[2])
        estimates = ["--estimate", "a.wav", "b.wav", "--no-cache"]
        table = run("evaluate", "--reference", tmp_path / "work" / "a.wav", "old/a.wav", *estimates)[1]
        first = [line.split()[:2] for line in table.splitlines() if "gain only " in line]
        assert first == [
            [str(tmp_path / "work" / "a.wav")[: len(first[0][0])], "a.wav"],
            ["old/a.wav", "b.wav"],
        ]

    def test_different_lengths_and_channels(self, stems):
        write("x.wav", np.stack([stems[2, :3990] + 0.1, stems[2, :3990] - 0.1]))
        arguments = ["--reference", "a.wav", "b.wav", "--estimate", "x.wav", "y.wav", "--no-cache"]
        code, out, _ = run("evaluate", *arguments, "--json")
        wanted = evaluation_document(
            stems[:2, :3990], stems[2:, :3990], ["a.wav", "b.wav"], ["x.wav", "y.wav"], sample_rate=RATE
        )
        assert (code, json.loads(out)["samples"]) == (0, 3990)
        np.testing.assert_allclose(json.loads(out)["gain"]["sdr"], wanted["gain"]["sdr"], rtol=1e-5)
        assert json.loads(out)["note"] == "cut to the shortest, 3990 samples"
        assert "cut to the shortest" in run("evaluate", *arguments)[1]

    def test_a_silent_stem(self, stems):
        write("y.wav", np.zeros(4000))
        arguments = ["--reference", "a.wav", "b.wav", "--estimate", "x.wav", "y.wav", "--no-cache"]
        code, out, _ = run("evaluate", *arguments, "--json")
        assert code == 0
        scores = json.loads(out)
        assert scores["gain"]["permutation"] == [1, 0]
        assert (scores["gain"]["sdr"][0], scores["si_sdr"][0]) == (None, None)
        wanted = evaluation_document(stems[:2], stems[2:], ["a"] * 2, ["x"] * 2, sample_rate=RATE)
        assert scores["gain"]["sdr"][1] == pytest.approx(wanted["gain"]["sdr"][1])
        assert "—" in run("evaluate", *arguments)[1]

    def test_channels_that_cancel_each_other(self, stems):
        write("x.wav", np.stack([stems[2], -stems[2]]))
        arguments = ["--reference", "a.wav", "b.wav", "--estimate", "x.wav", "y.wav", "--no-cache"]
        wanted = evaluation_document(stems[:2], stems[2:], ["a"] * 2, ["x"] * 2, sample_rate=RATE)
        assert json.loads(run("evaluate", *arguments, "--json")[1])["gain"]["sdr"] == wanted["gain"]["sdr"]


class TestReport:
    @pytest.fixture
    def results(self, workplace, quick):
        assert run("separate", "mix.wav", "-n", 2, "-o", "out", "--no-cache")[0] == 0
        return workplace / "out"

    def test_page(self, results):
        code, out, err = run("report", "out", "--no-cache")
        assert (code, out.split()) == (0, ["results:", "out/report.html"])
        assert err.count("\n") == 1
        assert {path.name for path in results.iterdir()} == {*RESULTS, "report.html"}
        page = (results / "report.html").read_text(encoding="utf-8")
        assert "mix.wav" in page
        assert "512-tap filter" not in page

    def test_references(self, results):
        write("a.wav", sinusoid(440.0))
        write("b.wav", sinusoid(660.0, seconds=0.995))
        run("report", "out", "--reference", "b.wav", "a.wav", "--no-cache")
        page = (results / "report.html").read_text(encoding="utf-8")
        assert page.index("instrument 2</small>") < page.index("instrument 1</small>")

    def test_replacing(self, results):
        (results / "report.html").write_text("old")
        code, _, err = run("report", "out", "--no-cache")
        assert (code, "exists" in err) == (2, True)
        assert (results / "report.html").read_text() == "old"
        assert run("report", "out", "--force", "--no-cache")[0] == 0
        assert (results / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--reference", "a.wav"], "expected 2 files, one for each stem, got 1"),
            (["--reference", "a.wav", "fast.wav"], "fast.wav has 32000 samples per second"),
            (["--reference", "a.wav", "long.wav"], "long.wav has 32000 samples"),
        ],
    )
    def test_mistakes(self, results, options, message):
        write("a.wav", sinusoid(440.0))
        write("fast.wav", sinusoid(660.0, sample_rate=2 * RATE), 2 * RATE)
        write("long.wav", sinusoid(660.0, seconds=2.0))
        before = contents(results)
        code, _, err = run("report", "out", *options, "--no-cache")
        assert (code, err.count("\n"), message in err) == (2, 1, True)
        assert contents(results) == before

    def test_damaged_results(self, results):
        (results / "tones.csv").unlink()
        code, _, err = run("report", "out", "--no-cache")
        assert (code, err) == (2, "jaxsep: out/tones.csv does not exist.\n")
        assert not (results / "report.html").exists()


class TestOthers:
    def test_spectrogram(self, workplace):
        arguments = ["spectrogram", "mix.wav", "-o", "a.png", "--kind", "mel", "--no-cache"]
        code, out, err = run(*arguments)
        assert (code, out, err.count("\n")) == (0, "", 1)
        assert (workplace / "a.png").read_bytes().startswith(b"\x89PNG")
        (workplace / "a.png").write_text("old")
        assert run(*arguments, "--force")[0] == 0
        assert (workplace / "a.png").read_bytes().startswith(b"\x89PNG")
        assert {path.name for path in workplace.iterdir()} == {"mix.wav", "a.png"}

    def test_demo(self, workplace, monkeypatch):
        """A made-up separation of a made-up duet: the truth itself, in another order."""
        truth = np.random.default_rng(0).standard_normal((2, RATE)).astype(np.float32) / 8

        def separate(samples, sample_rate, num_instruments, *, settings, dictionary, progress, key):
            np.testing.assert_allclose(samples[0], truth.sum(axis=0), atol=1e-6)
            assert (num_instruments, settings, dictionary) == (2, SeparationSettings(), None)
            separation = synthetic_separation()
            return Separation(**{**vars(separation), "stems": truth[::-1], "sample_rate": sample_rate})

        files = {"mix": truth.sum(axis=0), "recorder": truth[0], "clarinet": truth[1]}
        for name, samples in files.items():
            write(f"{name}.wav", samples)
        mixture, *stems = (Path(f"{name}.wav") for name in files)
        monkeypatch.setattr(cli, "demo_files", lambda: (mixture, stems))
        monkeypatch.setattr(pursuit, "separate", separate)
        code, out, _ = run("demo", "--no-cache")
        assert code == 0
        assert {path.name for path in (workplace / "jaxsep-demo").iterdir()} == {*RESULTS, "report.html"}
        page = (workplace / "jaxsep-demo" / "report.html").read_text(encoding="utf-8")
        assert "recorder" in page
        assert "512-tap filter" in page
        assert "results: jaxsep-demo/" in out
        rows = [line.split() for line in out.splitlines()]
        (first,) = (row for row in rows if row[:1] == ["recorder"])
        assert first[1:4] == ["stem-2.wav", "gain", "only"]
        assert all(float(figure) > 100 for figure in first[4:])

    def test_version(self, capsys):
        code, out, _ = run("--version")
        assert (code, out.split()[0]) == (0, "jaxsep")

    def test_without_arguments_help(self):
        code, out, _ = run()
        assert code == 0
        assert all(command in out for command in ("separate", "report", "evaluate", "spectrogram", "demo"))


class TestImports:
    def test_help_and_mistakes_do_not_wait_for_jax(self, tmp_path):
        code = (
            "import sys; from jaxsep.cli.app import main\n"
            "codes = [main(['separate', '--help']), main(['separate', 'no.wav', '-n', '2', '-o', 'out'])]\n"
            "print(codes, sorted({'jax', 'matplotlib', 'equinox'} & set(sys.modules)))"
        )
        out, err = in_process(code, cwd=tmp_path).communicate()
        assert out.splitlines()[-1] == "[0, 2] []"
        assert err == "jaxsep: no.wav does not exist.\n"

    def test_settings_need_no_jax(self):
        code = (
            "import sys, jaxsep.separation.settings, jaxsep.neural.settings, jaxsep.cli.app\n"
            "print(sorted({'jax', 'jaxlib', 'matplotlib', 'equinox'} & set(sys.modules)))"
        )
        out, err = in_process(code).communicate()
        assert (out, err) == ("[]\n", "")

    def test_public_names_start_no_backend(self):
        code = (
            "import sys, jaxsep; first = 'jax' in sys.modules\n"
            "from jaxsep import *\n"
            "from jax._src import xla_bridge\n"
            "complete = set(jaxsep.__all__) <= set(globals())\n"
            "print(first, complete, xla_bridge.backends_are_initialized())"
        )
        out, err = in_process(code).communicate()
        assert (out.strip(), err) == ("False True False", "")

    def test_the_old_name_of_the_settings(self):
        import jaxsep

        assert jaxsep.PursuitSettings is jaxsep.SeparationSettings

    def test_unknown_name(self):
        import jaxsep

        with pytest.raises(AttributeError, match="no attribute 'seperate'"):
            _ = jaxsep.seperate


def test_a_network_has_no_parts(workplace):
    code, _, err = run("separate", "mix.wav", "-n", 2, "-o", "out", "--method", "neural", "--part", 30)
    assert code == 2
    assert err == "jaxsep: --part: expected with --method pursuit or blasso, got --method neural.\n"


def test_the_picture_of_parts_is_of_the_first_that_sounds(workplace, monkeypatch):
    write("long.wav", np.concatenate([np.zeros(RATE), sinusoid(440.0, seconds=20)]))
    one, drawn = synthetic_separation(), []

    def separate_parts(path, num_instruments, *, seconds, settings, dictionary, progress, key):
        for begin in range(21):
            yield Separation(**{**vars(one), "stems": one.stems[:, None], "times": one.times + begin})

    monkeypatch.setattr(pursuit, "separate_parts", separate_parts)
    monkeypatch.setattr(compute, "overview", lambda part, samples, *_: drawn.append((part.times[0], samples)))
    code, _, err = run("separate", "long.wav", "-n", 2, "-o", "out", "--part", 20, "--no-cache")
    assert code == 0, err
    ((begin, samples),) = drawn
    assert begin == one.times[0] + 1
    np.testing.assert_array_equal(samples[0], soundfile.read("long.wav", dtype="float32")[0][RATE : 2 * RATE])


def test_a_page_holds_no_long_recording(workplace):
    write("long.wav", sinusoid(440.0, seconds=21))
    code, _, err = run("separate", "long.wav", "-n", 1, "-o", "out", "--report", "--part", 20)
    assert code == 2
    assert err.startswith("jaxsep: --report: expected a recording of at most --part 20 s, got 21 s;")
    assert not (workplace / "out").exists()


#: A separation that waits for its end, in a thread as the library does.
WAITING = """
import signal, sys, time, jaxsep.separation.separate as pursuit
from concurrent.futures import ThreadPoolExecutor
from jaxsep.cli.app import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if this run is in the background
def separate(*args, progress, **options):
    def work(_):
        print("started", flush=True)
        while True:
            time.sleep(0.01)
            progress.advance("waiting")
    with progress.stage("waiting", 10), ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(1)))
pursuit.separate = separate
sys.exit(main(sys.argv[1:]))
"""


class TestProgress:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signals_leave_nothing_behind(self, workplace, number):
        before = contents(workplace)
        process = in_process(WAITING, "separate", "mix.wav", "-n", "2", "-o", "new/out", "--no-cache")
        assert process.stdout.readline() == "started\n"
        assert contents(workplace) != before
        process.send_signal(number)
        begin = time.perf_counter()
        out, err = process.communicate(timeout=60)
        word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
        assert (process.returncode, out, err) == (128 + number, "", f"jaxsep: {word}\n")
        assert contents(workplace) == before
        assert time.perf_counter() - begin < 20

    def test_handlers_are_restored(self):
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        with pytest.raises(runtime.Stopped), runtime.stoppable():
            signal.raise_signal(signal.SIGTERM)
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        with runtime.stoppable():
            runtime.go_on()

    def test_bar(self):
        console = Console(file=io.StringIO(), force_terminal=True, width=100)
        with TerminalProgress(console) as progress, progress.stage("learning", 400):
            time.sleep(0.3)
            assert "compiling" in console.file.getvalue()
            threads = [
                threading.Thread(target=lambda: [progress.advance("learning", "loss 0.5") for _ in range(50)])
                for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            (task,) = progress._bars.tasks
            assert (task.completed, task.total) == (400, 400)
            time.sleep(0.3)
            assert console.file.getvalue().rindex("loss 0.5") > console.file.getvalue().rindex("compiling")

    def test_a_line_for_each_stage_without_a_terminal(self):
        console = Console(file=io.StringIO(), force_terminal=False)
        with contextlib.suppress(ZeroDivisionError), TerminalProgress(console) as progress:
            with progress.stage("learning", 5):
                progress.advance("learning")  # fewer steps than announced
            with progress.stage("pursuit", 1):
                _ = 1 / 0
        assert [line.split(":")[0] for line in console.file.getvalue().splitlines()] == ["learning"]


class TestFolderNames:
    """A folder for each recording, strictly inside the output, whatever a file is called."""

    @pytest.mark.parametrize("file", ["...wav", "..wav", ".. .wav", "....flac", " .wav", "..."])
    def test_nothing_outside_is_touched(self, workplace, quick, file):
        (workplace / "data" / "stems").mkdir(parents=True)
        (workplace / "data" / "thesis.txt").write_text("precious")
        os.link("mix.wav", file)
        code, _, err = run("separate", "mix.wav", file, "-n", 2, "-o", "data/stems", "--force", "--no-cache")
        assert (code, err.count("jaxsep:")) == (0, 0)
        assert (workplace / "data" / "thesis.txt").read_text() == "precious"
        assert {path.name for path in (workplace / "data").iterdir()} == {"stems", "thesis.txt"}
        assert {path.name for path in (workplace / "data" / "stems").iterdir()} == {"mix", "_"}

    @pytest.mark.parametrize(
        ("file", "name"),
        [
            ("a song.wav", "a song"),
            ("7. Allegro.wav", "7. Allegro"),
            ("Käse♯.flac", "Käse♯"),
            (".hidden.wav", "hidden"),
            ("trailing. .wav", "trailing"),
            ("a\\b.wav", "a_b"),
            ("C:.wav", "C_"),
            ("line\nbreak.wav", "line_break"),
            ("NUL.wav", "_NUL"),
            ("com1.mix.wav", "_com1.mix"),
            ("contra.wav", "contra"),
            (f"{'x' * 251}.wav", "x" * 251),
        ],
    )
    def test_names(self, file, name):
        assert jobs.folder_name(Path("music") / file) == name

    @pytest.mark.parametrize(
        "pair", [("Air.wav", "AIR.flac"), ("\u00e9.wav", "e\u0301.wav"), ("..wav", "...wav")]
    )
    def test_folders_that_are_one_on_some_system(self, pair):
        with pytest.raises(ValueError, match="would share the folder"):
            jobs.plan([Path(name) for name in pair], Path("out"), None)

    def test_a_link_out_of_the_output(self, workplace, quick):
        (workplace / "music").mkdir()
        (workplace / "music" / "song.txt").write_text("precious")
        (workplace / "out").mkdir()
        os.symlink("../music", "out/mix")
        code, _, err = run("separate", "mix.wav", "-n", 2, "-o", "out", "--shard", "1/1", "--force")
        assert (code, err.count("\n"), "leads out of out" in err) == (2, 1, True)
        assert contents(workplace / "music") == {workplace / "music" / "song.txt": b"precious"}


class TestWhatCannotBeWritten:
    @pytest.mark.usefixtures("no_long_work")
    @pytest.mark.parametrize(("channels", "rate"), [(9, RATE), (1, 700_000)])
    def test_flac_is_refused_before_the_work(self, workplace, channels, rate):
        write("wide.wav", np.tile(sinusoid(440.0), (channels, 1)), rate)
        code, _, err = run("separate", "wide.wav", "-n", 2, "-o", "out", "--format", "flac", "--no-cache")
        assert (code, err) == (2, f"jaxsep: FLAC cannot hold {channels} channels at {rate} Hz; choose WAV.\n")
        assert not (workplace / "out").exists()

    @pytest.mark.parametrize("error", [RuntimeError, ValueError, MemoryError])
    def test_a_page_that_fails_loses_nothing(self, workplace, quick, monkeypatch, error):
        def fail(folder, target, *_):
            target.write_text("half")
            raise error("no page")

        monkeypatch.setattr(compute, "write_page", fail)
        code, _, err = run("separate", "mix.wav", "-n", 2, "-o", "out", "--report", "--no-cache")
        assert (code, err.splitlines()[-1].partition(": ")[2][:32]) == (2, "out has all results but the page")
        assert {path.name for path in (workplace / "out").iterdir()} == RESULTS

    def test_a_full_disk_is_named(self, workplace, quick, monkeypatch):
        resource = pytest.importorskip("resource")
        monkeypatch.setattr(compute, "overview", lambda *_: None)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            code, _, err = run("separate", "mix.wav", "-n", 2, "-o", "out", "--no-cache")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert code == 2
        assert err.splitlines()[-1] == "jaxsep: The results cannot be written: File too large."
        assert not (workplace / "out").exists()

    def test_what_is_not_finite_is_not_written(self, workplace, monkeypatch):
        broken = Separation(**{**vars(synthetic_separation()), "stems": np.full((2, RATE), np.inf)})
        monkeypatch.setattr(pursuit, "separate", lambda *_, **__: broken)
        monkeypatch.setattr(compute, "overview", lambda *_: None)
        code, _, err = run("separate", "mix.wav", "-n", 2, "-o", "out", "--no-cache")
        assert (code, "the stems are not finite" in err) == (2, True)
        assert not (workplace / "out").exists()

    def test_a_figure_that_json_has_not(self, workplace, monkeypatch):
        odd = Separation(**{**vars(synthetic_separation()), "restart_losses": (np.inf, 0.5)})
        monkeypatch.setattr(pursuit, "separate", lambda *_, **__: odd)
        code, out, _ = run("separate", "mix.wav", "-n", 2, "-o", "out", "--no-cache")
        assert (code, "— (chosen) 0.5000" in out) == (0, True)
        assert json.loads((workplace / "out" / "separation.json").read_text())["restart_losses"] == [
            None,
            0.5,
        ]

    def test_lower_levels_are_said(self, workplace, monkeypatch):
        loud = Separation(**{**vars(synthetic_separation()), "stems": 10 * synthetic_separation().stems})
        monkeypatch.setattr(pursuit, "separate", lambda *_, **__: loud)
        _, out, _ = run("separate", "mix.wav", "-n", 2, "-o", "out", "--bits", 16, "--no-cache")
        gain = json.loads((workplace / "out" / "separation.json").read_text())["gain_db"]
        assert f"all tracks are {-gain:.1f} dB lower" in out
        assert gain < -1


class _Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


class TestVoices:
    def test_a_terminal_that_knows_few_letters(self, workplace, quick):
        os.rename("mix.wav", "é.wav")
        raw = io.BytesIO()
        with io.TextIOWrapper(raw, encoding="ascii") as out, contextlib.redirect_stdout(out):
            assert cli.main(["separate", "é.wav", "-n", "2", "-o", "out", "--no-cache"]) == 0
            out.flush()
            assert b"\\xe9.wav: " in raw.getvalue()

    @pytest.mark.parametrize("stream", [_Full(), None])
    def test_nobody_hears_the_progress(self, workplace, quick, monkeypatch, stream):
        monkeypatch.setattr(sys, "stderr", stream)
        assert cli.main(["separate", "mix.wav", "-n", "2", "-o", "out", "--no-cache", "--json"]) == 0
        assert (workplace / "out").exists()
        sys.stderr.close()

    def test_nobody_hears_the_summary(self, workplace, quick, monkeypatch):
        write("b.wav", sinusoid(550.0))
        monkeypatch.setattr(sys, "stdout", _Full())
        assert cli.main(["separate", "mix.wav", "b.wav", "-n", "2", "-o", "out", "--no-cache"]) == 0
        assert len(list((workplace / "out").iterdir())) == 2

    @pytest.mark.skipif(sys.platform != "linux", reason="names are text")
    def test_names_that_are_no_text(self, workplace, quick):
        os.rename(b"mix.wav", b"caf\xe9.wav")
        name = os.fsdecode(b"caf\xe9.wav")
        code, _, _ = run("separate", name, "-n", 2, "-o", os.fsdecode(b"o\xe9"), "--report", "--no-cache")
        assert code == 0
        folder = workplace / os.fsdecode(b"o\xe9")
        assert {path.name for path in folder.iterdir()} == {*RESULTS, "report.html"}
        assert json.loads((folder / "separation.json").read_text())["input"]["file"] == name
        assert run("report", folder, "--force", "--no-cache")[0] == 0
        assert run("spectrogram", name, "-o", os.fsdecode(b"\xe9.png"), "--no-cache")[0] == 0

    def test_oddities_of_a_recording(self, workplace, quick):
        write("b.wav", sinusoid(440.0))
        (workplace / "b.wav").write_bytes(2 * (workplace / "b.wav").read_bytes())
        code, _, err = run("separate", "b.wav", "-n", 2, "-o", "out", "--no-cache")
        said = "jaxsep: b.wav holds several recordings one after the other, of which only the first is read."
        assert (code, err.splitlines()[0]) == (0, said)

    def test_no_home(self, workplace, quick, monkeypatch):
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        assert run("separate", "mix.wav", "-n", 2, "-o", "out")[0] == 0
        assert {path.name for path in workplace.iterdir()} == {"mix.wav", "out"}


def test_a_pipe(workplace, quick):
    os.mkfifo("pipe")
    threading.Thread(target=lambda: Path("pipe").write_bytes(Path("mix.wav").read_bytes())).start()
    assert run("separate", "pipe", "-n", 2, "-o", "out", "--no-cache")[0] == 0
    np.testing.assert_array_equal(quick[0][0][0], soundfile.read("mix.wav", dtype="float32")[0])


class TestManyRecordings:
    @pytest.fixture
    def three(self, workplace, quick):
        for name, pitch in (("a", 440.0), ("b", 550.0), ("c", 660.0)):
            write(f"{name}.wav", sinusoid(pitch))
        return quick

    def separate(self, *arguments):
        return run("separate", "a.wav", "b.wav", "c.wav", "-n", 2, "-o", "out", *arguments)

    def test_each_has_its_folder(self, three, workplace):
        code, out, err = self.separate()
        assert code == 0
        assert len(three) == 3
        for name in "abc":
            folder = workplace / "out" / name
            assert {path.name for path in folder.iterdir()} == RESULTS
            document = json.loads((folder / "separation.json").read_text())
            assert document["input"]["file"] == f"{name}.wav"
            assert f"results: out/{name}/" in out
        assert "2 of 3, b.wav" in err

    def test_what_is_finished_is_skipped(self, three, workplace):
        assert self.separate("--shard", "2/2")[0] == 0
        assert [path.name for path in (workplace / "out").iterdir()] == ["b"]
        before = contents(workplace / "out" / "b")
        code, out, _ = self.separate()
        assert (code, len(three)) == (0, 3)
        assert "2 of 3, b.wav: finished before, in out/b" in out
        assert contents(workplace / "out" / "b") == before
        assert self.separate("--force")[0] == 0
        assert len(three) == 6

    @pytest.mark.parametrize("change", ["settings", "seed", "input", "instruments", "cut", "suffix", "part"])
    def test_what_was_asked_for_differently_is_not_finished(self, three, workplace, change):
        assert self.separate()[0] == 0
        options = {
            "settings": ["--hop", 256],
            "seed": ["--seed", 1],
            "part": ["--part", 60],
            "suffix": ["--format", "flac"],
        }
        if change == "input":
            write("b.wav", sinusoid(551.0))
        if change == "cut":
            (workplace / "out" / "b" / "stem-1.wav").unlink()
        if change == "instruments":
            options["instruments"] = ["-n", 3]
        before = contents(workplace / "out")
        code, _, err = self.separate(*options.get(change, []))
        assert code == 2
        assert "b.wav: The folder out/b is not empty" in err.replace(str(workplace) + "/", "")
        assert contents(workplace / "out") == before

    def test_one_that_fails_does_not_stop_the_others(self, three, workplace):
        (workplace / "b.wav").write_bytes(b"no sound")
        code, _, err = self.separate()
        assert code == 2
        assert "jaxsep: b.wav: b.wav is not audio" in err
        assert err.splitlines()[-1] == "jaxsep: 1 of 3 recordings failed: b.wav."
        assert sorted(path.name for path in (workplace / "out").iterdir()) == ["a", "c"]

    @pytest.mark.parametrize(
        "error", [RuntimeError("RESOURCE_EXHAUSTED: 9 GiB"), KeyError("a bug"), OSError()]
    )
    def test_whatever_happens_to_one(self, three, workplace, monkeypatch, error):
        separate = pursuit.separate

        def fail(*arguments, **options):
            if len(three) == 1:
                three.append(None)
                raise error
            return separate(*arguments, **options)

        monkeypatch.setattr(pursuit, "separate", fail)
        code, _, err = self.separate()
        assert code == 2
        assert err.splitlines()[-1] == "jaxsep: 1 of 3 recordings failed: b.wav."
        assert ("jaxsep: b.wav: not enough memory" in err) == isinstance(error, RuntimeError)
        assert sorted(path.name for path in (workplace / "out").iterdir()) == ["a", "c"]

    def test_unreadable_ones_are_said_in_their_turn(self, three, workplace, monkeypatch):
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, *mode: str(path) != "b.wav" and access(path, *mode))
        assert self.separate()[0] == 0

    def test_another_process_may_be_quicker(self, three, workplace, monkeypatch):
        separate, others = pursuit.separate, []

        def slow(*arguments, **options):
            if not others:
                others.append(None)
                assert self.separate()[0] == 0
            return separate(*arguments, **options)

        monkeypatch.setattr(pursuit, "separate", slow)
        assert self.separate()[0] == 0
        assert sorted(path.name for path in (workplace / "out").iterdir()) == ["a", "b", "c"]

    def test_shards_share_the_recordings(self, three, workplace):
        assert [self.separate("--shard", f"{n}/2")[0] for n in (1, 2)] == [0, 0]
        assert len(three) == 3
        code, out, _ = self.separate("--json", "--shard", "1/5")
        assert (code, [document["input"]["file"] for document in json.loads(out)]) == (0, ["a.wav"])
        assert len(three) == 3
        assert self.separate("--shard", "5/5")[0] == 0

    @pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/2/3", "-1/2", "a/b", "1/0", "¹/2"])
    def test_impossible_shards(self, three, shard):
        code, _, err = self.separate(f"--shard={shard}")
        assert code == 2
        assert err == f"jaxsep: --shard: expected I/N with 1 <= I <= N, such as 2/8, got {shard!r}.\n"

    def test_what_belongs_to_one_recording(self, three, workplace):
        assert self.separate("--checkpoint", "x.npz", "--method", "neural")[0] == 2
        code, _, err = run(
            "separate", "a.wav", "b.wav", "-n", 1, "-o", "o", "--report", "--reference", "c.wav"
        )
        assert (code, err) == (2, "jaxsep: --reference: expected with one recording, got 2.\n")
        (workplace / "d").mkdir()
        (workplace / "d" / "a.flac").write_bytes(b"")
        code, _, err = run("separate", "a.wav", "d/a.flac", "-n", 2, "-o", "out")
        assert code == 2
        assert err.startswith("jaxsep: a.wav and d/a.flac would share the folder out/a;")
        assert not (workplace / "out").exists()

    @pytest.mark.slow
    def test_a_killed_run_goes_on_and_ends_with_the_same_files(self, workplace):
        for name, pitch in (("a", 440.0), ("b", 550.0), ("c", 660.0)):
            write(f"{name}.wav", sinusoid(pitch))
        code = (
            "import os, signal, sys; sys.path[:0] = sys.argv[1].split(os.pathsep)\n"
            "from test_report import synthetic_separation\n"
            "from jaxsep.cli import app as cli; from jaxsep.separation import separate as pursuit\n"
            "calls = []\n"
            "def separate(*arguments, **options):\n"
            "    calls.append(1)\n"
            "    if len(calls) == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return synthetic_separation()\n"
            "pursuit.separate = separate\n"
            "sys.exit(cli.main(['separate', 'a.wav', 'b.wav', 'c.wav', '-n', '2', '-o', sys.argv[3]]))"
        )
        places = os.pathsep.join(sys.path)
        start = lambda kill, output: in_process(code, places, str(kill), output, cwd=workplace)
        killed = start(2, "out")
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        assert (workplace / "out" / "a").is_dir()
        assert not (workplace / "out" / "b").exists()
        for output in ("out", "whole"):
            process = start(0, output)
            _, err = process.communicate()
            assert process.returncode == 0, err
        for name in "abc":
            mine, other = (workplace / place / name for place in ("out", "whole"))
            assert {path.name for path in mine.iterdir()} == {path.name for path in other.iterdir()}
            for path in mine.iterdir():
                if path.suffix == ".wav":  # the header tells the time of writing
                    np.testing.assert_array_equal(
                        soundfile.read(path)[0], soundfile.read(other / path.name)[0]
                    )
                elif path.name != "separation.json":  # which tells how long it took
                    assert path.read_bytes() == (other / path.name).read_bytes(), path.name

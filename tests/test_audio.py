"""Reading, checking, resampling and writing recordings; folders of results; the demo recording."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jaxsep.audio import check_samples, demo_recording, read_audio, resample, write_audio
from jaxsep.cli.process import Stopped, stoppable
from jaxsep.files import AudioError, OutputFolder, replacing

REPOSITORY = Path(__file__).resolve().parent.parent
DEMO_FOLDER = REPOSITORY / "jaxsep" / "data" / "demo"


def noise(*shape, dtype=np.float32):
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(dtype)


def encoded(path, samples, subtype=None, endian=None):
    """The bytes of a file that libsndfile wrote."""
    soundfile.write(path, samples.T, 44100, subtype=subtype, endian=endian)
    return path.read_bytes()


def complaint(path, function, *arguments, **options):
    """What the `AudioError` says about the file, in one sentence that begins with its name."""
    with pytest.raises(AudioError) as error:
        function(path, *arguments, **options)
    message = str(error.value)
    assert message.startswith(f"{path} ")
    assert message.endswith(".")
    assert "\n" not in message
    return message.removeprefix(f"{path} ")


class TestRead:
    @pytest.mark.parametrize(
        ("suffix", "subtype", "tolerance"),
        [
            ("wav", "FLOAT", 0),
            ("wav", "PCM_16", 2**-15),
            ("flac", "PCM_24", 2**-22),
            ("aiff", "PCM_24", 2**-22),
        ],
    )
    @pytest.mark.parametrize("num_channels", [1, 2])
    def test_samples_and_rate(self, tmp_path, suffix, subtype, tolerance, num_channels):
        samples, path = noise(num_channels, 1000), tmp_path / f"a.{suffix}"
        encoded(path, samples, subtype)
        read, rate = read_audio(str(path))
        assert (read.shape, read.dtype, rate) == (samples.shape, np.float32, 44100)
        np.testing.assert_allclose(read, samples, rtol=0, atol=tolerance)

    @pytest.mark.parametrize("length", [0x7FFFF000, 0xFFFFFFFF])
    def test_streamed_wav_of_unknown_length(self, tmp_path, length):
        path = tmp_path / "a.wav"
        content = encoded(path, noise(500), "PCM_16")
        place = content.index(b"data") + 4
        path.write_bytes(content[:place] + length.to_bytes(4, "little") + content[place + 4 :])
        assert read_audio(path)[0].shape == (1, 500)

    def test_odd_chunk_before_the_samples(self, tmp_path):
        path = tmp_path / "a.wav"
        content = encoded(path, noise(500), "PCM_16")
        place = content.index(b"data")
        path.write_bytes(content[:place] + b"note\x03\x00\x00\x00abc\x00" + content[place:])
        assert read_audio(path)[0].shape == (1, 500)
        path.write_bytes(path.read_bytes()[:-10])
        assert complaint(path, read_audio).startswith("is truncated: 10 bytes of samples")

    def test_missing_folder_empty(self, tmp_path):
        assert complaint(tmp_path / "a.wav", read_audio) == "does not exist."
        assert complaint(tmp_path, read_audio) == "is a folder, expected an audio file."
        (tmp_path / "a.wav").touch()
        assert complaint(tmp_path / "a.wav", read_audio) == "is empty (0 bytes)."

    @pytest.mark.parametrize("name", ["a.wav", "a.txt", "a.raw"])
    @pytest.mark.parametrize("content", [b"words, not sounds\n" * 40, b"RIFF", b"\x00" * 100])
    def test_not_audio(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        expected = "is not audio in a format that can be read (such as WAV or FLAC)."
        assert complaint(tmp_path / name, read_audio) == expected

    def test_forbidden(self, tmp_path, monkeypatch):
        def refuse(self, mode):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "open", refuse)
        assert complaint(tmp_path / "a.wav", read_audio) == "cannot be read: Permission denied."

    @pytest.mark.parametrize(
        ("suffix", "subtype", "endian"),
        [
            ("wav", "PCM_16", None),
            ("wav", "FLOAT", None),
            ("wav", "PCM_24", "BIG"),
            ("aiff", "PCM_16", None),
            ("flac", "PCM_16", None),
        ],
    )
    @pytest.mark.parametrize("share", [0.05, 0.5, 0.999])
    def test_truncated(self, tmp_path, suffix, subtype, endian, share):
        path = tmp_path / f"a.{suffix}"
        content = encoded(path, noise(20000), subtype, endian)
        assert read_audio(path)[0].shape == (1, 20000)
        path.write_bytes(content[: int(share * len(content))])
        assert complaint(path, read_audio).startswith("is truncated")

    @pytest.mark.parametrize("num_samples", [0, 1])
    def test_too_short(self, tmp_path, num_samples):
        encoded(tmp_path / "a.wav", noise(num_samples))
        expected = f"holds {num_samples} samples per channel, expected at least 2."
        assert complaint(tmp_path / "a.wav", read_audio) == expected

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, tmp_path, value):
        samples = noise(2, 100)
        samples[1, [7, 30]] = value
        encoded(tmp_path / "a.wav", samples, "FLOAT")
        expected = "holds 2 NaN or infinite values (the first at sample 7), expected finite numbers."
        assert complaint(tmp_path / "a.wav", read_audio) == expected

    def test_silent(self, tmp_path):
        encoded(tmp_path / "a.flac", np.zeros(100), "PCM_16")
        expected = "holds silence (every sample is exactly 0), expected a recording with sound."
        assert complaint(tmp_path / "a.flac", read_audio) == expected
        samples, rate = read_audio(tmp_path / "a.flac", allow_silence=True)
        assert (samples.shape, bool(samples.any())) == ((1, 100), False)
        assert rate > 0


class TestCheckSamples:
    @pytest.mark.parametrize("shape", [(2,), (1, 2), (3, 100)])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_accepts(self, shape, dtype):
        assert check_samples(noise(*shape, dtype=dtype), 44100) is None

    def test_one_silent_channel_is_no_defect(self):
        assert check_samples(noise(2, 100) * [[1], [0]], 44100) is None

    @pytest.mark.parametrize(
        ("samples", "got", "expected"),
        [
            (noise(1, 2, 3), r"\(1, 2, 3\)", r"shape \[samples\] or \[channels, samples\]"),
            (np.float32(1), r"\(\)", r"shape \[samples\] or \[channels, samples\]"),
            (np.arange(10), "int64", "float32 or float64"),
            (np.ones(10, complex), "complex128", "float32 or float64"),
            (noise(0), "0 samples per channel", "at least 2"),
            (noise(2, 1), "1 samples per channel", "at least 2"),
            (np.array([0.5, np.nan]), r"1 NaN or infinite values \(the first at sample 1\)", "finite"),
            (np.zeros((2, 5)), "silence", "a recording with sound"),
        ],
    )
    def test_defects(self, samples, got, expected):
        with pytest.raises(ValueError, match=f"^recording: expected {expected}.*, got {got}"):
            check_samples(samples, 44100, name="recording")

    @pytest.mark.parametrize("rate", [0, -44100, 44100.5, float("nan"), float("inf")])
    def test_rates(self, rate):
        with pytest.raises(
            ValueError, match=f"^sample_rate: expected a whole number of Hz above 0, got {rate}"
        ):
            check_samples(noise(10), rate)


def sine(frequency, rate, dtype=np.float64):
    """One second of a sine."""
    return np.sin(2 * np.pi * frequency * np.arange(rate) / rate).astype(dtype)


class TestResample:
    @pytest.mark.parametrize("num_samples", [2, 3, 777, 1001, 44100])
    @pytest.mark.parametrize("rates", [(44100, 48000), (44100, 22050), (8000, 44100), (48000, 16000)])
    def test_length(self, num_samples, rates):
        length = round(num_samples * rates[1] / rates[0])
        assert resample(noise(2, num_samples), *rates).shape == (2, length)
        assert resample(noise(num_samples), *rates).shape == (length,)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-7)])
    @pytest.mark.parametrize("rates", [(44100, 48000), (48000, 44100), (44100, 16000)])
    @pytest.mark.parametrize("frequency", [50.0, 997.0, 2000.0])
    def test_sine_is_kept(self, dtype, tolerance, rates, frequency):
        resampled = resample(sine(frequency, rates[0], dtype), *rates)
        assert resampled.dtype == dtype
        difference = resampled - sine(frequency, rates[1])
        inner = slice(rates[1] // 10, -rates[1] // 10)  # away from the switching on and off
        assert np.max(np.abs(difference[inner])) < tolerance

    def test_sine_above_the_new_nyquist_frequency_vanishes(self):
        resampled = resample(sine(10000.0, 48000), 48000, 16000)
        assert np.max(np.abs(resampled[1600:-1600])) < 1e-7

    def test_channels_are_independent(self):
        samples = noise(3, 4000, dtype=np.float64)
        separately = [resample(channel, 44100, 48000) for channel in samples]
        np.testing.assert_array_equal(resample(samples, 44100, 48000), separately)

    def test_equal_rates(self):
        samples = noise(2, 100)
        np.testing.assert_array_equal(resample(samples, 44100, 44100), samples)

    @pytest.mark.parametrize(("rates", "name"), [((0, 44100), "rate_in"), ((44100, -1), "rate_out")])
    def test_rates(self, rates, name):
        with pytest.raises(ValueError, match=f"^{name}: expected a whole number of Hz above 0, got "):
            resample(noise(100), *rates)


class TestWrite:
    @pytest.mark.parametrize("shape", [(1000,), (1, 1000), (2, 1000)])
    def test_wav_keeps_every_bit(self, tmp_path, shape):
        samples, path = 3 * noise(*shape), tmp_path / "a.wav"
        write_audio(path, samples, 48000)
        read, rate = read_audio(path)
        assert (rate, soundfile.info(path).subtype) == (48000, "FLOAT")
        np.testing.assert_array_equal(read, np.atleast_2d(samples))

    def test_float64(self, tmp_path):
        samples, path = noise(1000, dtype=np.float64), tmp_path / "a.wav"
        write_audio(path, samples, 44100, subtype="DOUBLE")
        np.testing.assert_array_equal(soundfile.read(path)[0], samples)

    def test_flac_has_24_bits(self, tmp_path):
        samples, path = noise(2, 1000), tmp_path / "a.FLAC"
        samples[0, :2] = [1, -1]
        write_audio(path, samples, 44100)
        np.testing.assert_allclose(read_audio(path)[0], samples, rtol=0, atol=2**-22)
        assert (soundfile.info(path).format, soundfile.info(path).subtype) == ("FLAC", "PCM_24")

    def test_silence_can_be_written(self, tmp_path):
        """A stem may well be silent."""
        write_audio(tmp_path / "a.wav", np.zeros(10), 44100)
        np.testing.assert_array_equal(soundfile.read(tmp_path / "a.wav")[0], np.zeros(10))

    def test_replaces_and_leaves_nothing_else(self, tmp_path):
        path = tmp_path / "a.wav"
        write_audio(path, noise(10), 44100)
        write_audio(path, noise(20), 44100)
        assert read_audio(path)[0].shape == (1, 20)
        assert os.listdir(tmp_path) == ["a.wav"]

    @pytest.mark.parametrize(("name", "subtype"), [("a.flac", None), ("a.wav", "PCM_16")])
    def test_clipping_is_refused(self, tmp_path, name, subtype):
        message = complaint(tmp_path / name, write_audio, 3 * np.ones(10), 44100, subtype=subtype)
        assert message.startswith("would be clipped: the peak is 3 and PCM_")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize(
        ("name", "subtype", "message"),
        [
            ("a.mp3", None, "has the suffix '.mp3', expected '.wav' or '.flac'."),
            ("a", None, "has the suffix '', expected '.wav' or '.flac'."),
            ("a.flac", "FLOAT", "cannot hold samples of the format FLOAT."),
            ("none/a.wav", None, "cannot be written: No such file or directory."),
        ],
    )
    def test_impossible_files(self, tmp_path, name, subtype, message):
        assert complaint(tmp_path / name, write_audio, noise(10), 44100, subtype=subtype) == message

    @pytest.mark.parametrize(
        ("samples", "rate", "message"),
        [
            (
                np.array([0.1, np.inf]),
                44100,
                "^samples: expected finite numbers, got 1 NaN or",
            ),
            (noise(1, 2, 3), 44100, r"^samples: expected shape .*, got \(1, 2, 3\)"),
            (np.arange(9), 44100, "^samples: expected float32 .*, got int64"),
            (noise(10), 0, "^sample_rate: expected a whole .*, got 0"),
        ],
    )
    def test_impossible_samples(self, tmp_path, samples, rate, message):
        with pytest.raises(ValueError, match=message):
            write_audio(tmp_path / "a.wav", samples, rate)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("suffix", ["wav", "flac"])
    def test_full_disk_keeps_the_old_file(self, tmp_path, suffix):
        resource = pytest.importorskip("resource")
        path = tmp_path / f"a.{suffix}"
        write_audio(path, noise(10), 44100)
        old = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            message = complaint(path, write_audio, noise(100_000), 44100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert message.startswith("cannot be written: ")
        assert os.listdir(tmp_path) == [path.name]
        assert path.read_bytes() == old


def contents(folder):
    """Everything in a folder, hidden files and empty folders included, as {relative path: text}."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else None
        for path in folder.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


def produce(path, text="new", *, force=False, meanwhile=lambda: None):
    """Write one file as a program would; `meanwhile` happens before the folder is complete."""
    with OutputFolder(path, force=force) as folder:
        (folder / "a.txt").write_text(text)
        meanwhile()


def interrupt(error):
    raise error


class TestReplacing:
    def test_takes_the_name_at_the_end(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with replacing(path, durable=True) as draft:
            draft.write_text("new")
            assert (draft.suffix, path.read_text()) == (".txt", "old")
        assert contents(tmp_path) == {"a.txt": "new"}

    @pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
    def test_an_exception_keeps_the_old_file(self, tmp_path, error):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with pytest.raises(error), replacing(path) as draft:
            draft.write_text("new") and interrupt(error)
        assert contents(tmp_path) == {"a.txt": "old"}

    @pytest.mark.parametrize("name", ["folder", "folder/none/a.txt"])
    def test_an_impossible_place_is_named(self, tmp_path, name):
        (tmp_path / "folder").mkdir()
        with (
            pytest.raises(AudioError, match=f"{name} cannot be written: .*director"),
            replacing(tmp_path / name),
        ):
            pass
        assert contents(tmp_path) == {"folder": None}


class TestOutputFolder:
    @pytest.fixture
    def old(self, tmp_path):
        """An output folder of an earlier run."""
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old.txt").write_text("old")
        return tmp_path / "out"

    @pytest.mark.parametrize("name", ["out", "new/deep/out"])
    def test_appears_at_the_end(self, tmp_path, name):
        path, seen = tmp_path / name, []
        produce(path, meanwhile=lambda: seen.append(path.exists()))
        assert seen == [False]
        assert contents(tmp_path) == {f"{name}/a.txt": "new"}

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
    @pytest.mark.parametrize("name", ["out", "new/deep/out"])
    def test_an_exception_leaves_nothing(self, tmp_path, error, name):
        with pytest.raises(error):
            produce(tmp_path / name, meanwhile=lambda: interrupt(error))
        assert contents(tmp_path) == {}

    def test_termination_leaves_nothing(self, tmp_path):
        with pytest.raises(Stopped), stoppable():
            produce(tmp_path / "out", meanwhile=lambda: signal.raise_signal(signal.SIGTERM))
        assert contents(tmp_path) == {}

    def test_handlers_of_signals_are_the_programs(self, tmp_path):
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        with OutputFolder(tmp_path / "out"):
            assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

    def test_works_in_another_thread(self, tmp_path):
        thread = threading.Thread(target=produce, args=[tmp_path / "out"])
        thread.start()
        thread.join()
        assert contents(tmp_path) == {"out/a.txt": "new"}

    def test_empty_folder_is_used(self, tmp_path):
        (tmp_path / "out").mkdir()
        produce(tmp_path / "out")
        assert contents(tmp_path) == {"out/a.txt": "new"}

    def test_full_folder_is_refused(self, tmp_path, old):
        with pytest.raises(AudioError, match=r"out is not empty; name another or force"):
            produce(old)
        assert contents(tmp_path) == {"out/old.txt": "old"}

    def test_force_replaces_at_success_only(self, tmp_path, old):
        with pytest.raises(RuntimeError):
            produce(old, force=True, meanwhile=lambda: interrupt(RuntimeError))
        assert contents(tmp_path) == {"out/old.txt": "old"}
        seen = []
        produce(old, force=True, meanwhile=lambda: seen.append(contents(old)))
        assert seen == [{"old.txt": "old"}]
        assert contents(tmp_path) == {"out/a.txt": "new"}

    @pytest.mark.parametrize("force", [False, True])
    @pytest.mark.parametrize(
        ("name", "message"), [("f", "f is a file"), ("f/out", "out cannot be written: Not a")]
    )
    def test_files_are_never_replaced(self, tmp_path, force, name, message):
        (tmp_path / "f").write_text("precious")
        with pytest.raises(AudioError, match=message):
            OutputFolder(tmp_path / name, force=force).__enter__()
        assert contents(tmp_path) == {"f": "precious"}

    @pytest.mark.parametrize("place", [".", "..", "/", "~"])
    def test_working_and_home_folders_are_refused(self, tmp_path, monkeypatch, place):
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        with pytest.raises(AudioError, match="working or home folder"):
            OutputFolder(os.path.expanduser(place), force=True).__enter__()

    def test_forbidden_parent_is_refused_on_entry(self, tmp_path, monkeypatch):
        def refuse(self, parents):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(AudioError, match=r"^The folder .*out cannot be written: Permission denied\.$"):
            OutputFolder(tmp_path / "out").__enter__()

    def test_results_survive_a_folder_filled_meanwhile(self, tmp_path):
        with pytest.raises(AudioError, match=r"out cannot be written: .*; the results are in") as error:
            produce(tmp_path / "out", meanwhile=lambda: produce(tmp_path / "out", "other"))
        assert contents(Path(str(error.value).split()[-1].rstrip("."))) == {"a.txt": "new"}
        assert contents(tmp_path / "out") == {"a.txt": "other"}

    def test_old_folder_returns_if_the_new_one_cannot_take_its_place(self, tmp_path, old):
        output = OutputFolder(old, force=True)
        output.__enter__().rmdir()
        with pytest.raises(AudioError, match="out cannot be written"):
            output.__exit__(None, None, None)
        assert contents(tmp_path) == {"out/old.txt": "old"}


def harmonic_share(stem, rate, onset, duration, pitch):
    """Share of a note's energy below 5.5 times its fundamental that lies within 3 % of its partials."""
    note = stem[round((onset + 0.05) * rate) : round((onset + duration) * rate)]
    energy = np.abs(np.fft.rfft(note * np.hanning(len(note)), 2**16)) ** 2
    multiple = np.fft.rfftfreq(2**16, 1 / rate) / (440 * 2 ** ((pitch - 69) / 12))
    near = np.abs(multiple / np.maximum(np.rint(multiple), 1) - 1) < 0.03
    return energy[near & (multiple < 5.5)].sum() / energy[multiple < 5.5].sum()


class TestDemo:
    meta = json.loads((DEMO_FOLDER / "meta.json").read_text(encoding="utf-8"))

    def test_stems_sum_to_the_mixture(self):
        mixture, stems, rate = demo_recording()
        assert list(stems) == [stem["name"] for stem in self.meta["stems"]]
        assert rate == self.meta["sample_rate"] == 44100
        assert 8 * rate <= len(mixture) <= 10 * rate
        np.testing.assert_array_equal(sum(stems.values()), mixture)

    def test_files_sum_as_integers(self):
        names = ["mix", *(stem["name"] for stem in self.meta["stems"])]
        mix, *stems = (soundfile.read(DEMO_FOLDER / f"{n}.flac", dtype="int16")[0].astype(int) for n in names)
        np.testing.assert_array_equal(sum(stems), mix)

    def test_levels(self):
        mixture, stems, rate = demo_recording()
        assert abs(np.max(np.abs(mixture)) - 0.85) < 2 * 2**-15
        first, second = (np.sqrt(np.mean(stem.astype(float) ** 2)) for stem in stems.values())
        assert first == pytest.approx(second, rel=1e-4)
        assert np.max(np.abs(mixture[: rate // 50])) < 1e-3
        assert np.max(np.abs(mixture[-rate // 100 :])) < 1e-3

    def test_notes_are_those_that_sound(self):
        mixture, stems, rate = demo_recording()
        for stem in self.meta["stems"]:
            onsets, durations, _ = np.array(stem["notes"]).T
            assert onsets[0] > 0
            assert np.all(onsets[:-1] + durations[:-1] < onsets[1:])
            assert onsets[-1] + durations[-1] < len(mixture) / rate
            for onset, duration, pitch in stem["notes"]:
                shares = [
                    harmonic_share(stems[stem["name"]], rate, onset, duration, pitch + error)
                    for error in (-1, 0, 1)
                ]
                assert shares[1] > 0.7
                assert max(shares[0], shares[2]) < 0.3

    def test_script_plays_the_same_notes(self):
        path = REPOSITORY / "benchmarks" / "render_demo.py"
        specification = importlib.util.spec_from_file_location("render_demo", path)
        script = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(script)
        rng = script.random.Random(script.SEED)
        assert script.description([script.perform(part.score, rng) for part in script.PARTS]) == self.meta

    def test_is_small(self):
        assert sum(path.stat().st_size for path in DEMO_FOLDER.iterdir()) < 900_000


def test_no_jax_needed():
    """Reading and checking recordings must not wait for JAX."""
    path = REPOSITORY / "jaxsep" / "audio.py"
    code = f"import runpy, sys; runpy.run_path({str(path)!r}); sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

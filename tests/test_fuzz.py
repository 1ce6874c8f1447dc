"""Damaged files and odd command lines: one line and status 2, or results that are whole."""

import random
import re
import warnings

import numpy as np
import pytest
import soundfile
from test_cli import RESULTS, contents, run, workplace  # noqa: F401 (a fixture)
from test_decoding import encoded
from test_report import RATE, sinusoid, synthetic_separation

from jaxsep.audio import read_audio
from jaxsep.files import AudioError, AudioWarning
from jaxsep.separation import separate as pursuit

pytestmark = pytest.mark.slow

NUM_FILES, NUM_COMMANDS = 300, 200

CONTAINERS = ("wav", "aiff", "flac", "rf64", "w64", "caf", "au", "mp3", "ogg", "m4a")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Bytes of a file of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 20_000).astype(np.float32)
    files = {}
    for kind in CONTAINERS:
        path = folder / f"a.{kind}"
        if kind in ("mp3", "m4a"):
            encoded(path, samples)
        else:
            soundfile.write(path, samples, 48000, format=kind.upper())
        files[kind] = path.read_bytes(), read_audio(path)[0].shape[1]
    return files


def mutated(content, rng):
    """A damaged file, and what was done to it."""
    how = rng.choice(["cut", "joined", "header", "bytes", "hole"])
    content = bytearray(content)
    if how == "cut":
        del content[rng.randrange(len(content)) :]
    elif how == "joined":
        content *= 2
    elif how == "header":
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(64)] = rng.randrange(256)
    elif how == "bytes":
        for _ in range(rng.randint(1, 50)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    else:
        begin = rng.randrange(len(content))
        del content[begin : begin + rng.randrange(2000)]
    return bytes(content), how


@pytest.mark.parametrize("kind", CONTAINERS)
def test_damaged_files(tmp_path, originals, kind, capfd):
    content, length = originals[kind]
    rng = random.Random(kind)
    for number in range(NUM_FILES // len(CONTAINERS)):
        path = tmp_path / f"{number}.{kind}"
        damaged, how = mutated(content, rng)
        path.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                samples, rate = read_audio(path, allow_silence=True)
            except AudioError as error:
                samples, refused = None, str(error)
        if samples is None:
            assert refused.startswith(f"{path} ")
            assert "\n" not in refused
            continue
        assert {warning.category for warning in caught} <= {AudioWarning}
        said = " ".join(str(warning.message) for warning in caught)
        for seconds in re.findall(r"(\d+\.\d{3}) s", said):
            assert float(seconds) == pytest.approx(samples.shape[1] / rate, abs=1e-3)
        if how == "cut" and not said and rate == 48000:
            # What no packet of a compressed file can tell is less than a tenth of a second.
            assert samples.shape[1] > length - 4900, (number, len(damaged), len(content))
        if how == "joined" and not said:
            assert samples.shape[1] > 1.8 * length, number
    assert capfd.readouterr().err == ""


#: Options of `separate`, with values that make sense and that do not.
OPTIONS = {
    "-n": [2, 2, 2, 0, 17, "two", 2.5, ""],
    "-o": ["out", "out", "full", "mix.wav", ".", "..", "new/deep", "", "\udce9"],
    "--seed": [0, 1, -1, 2**32, "x"],
    "--method": ["pursuit", "blasso", "neural", "x"],
    "--restarts": [1, 0, -3, 10**30],
    "--steps": [3, 0, "1e3"],
    "--tones": [1, 0],
    "--hop": [1024, 512, 100, 0, -1, 7],
    "--share": [0, 1e-4, -1, "nan", "inf"],
    "--search": ["greedy", "full", "x"],
    "--format": ["wav", "flac", "mp3"],
    "--bits": [16, 24, 32, 8, "x"],
    "--part": [20, 19, "nan", "inf", -1],
    "--dictionary": ["known.npz", "mix.wav", "no.npz", "."],
    "--reference": ["mix.wav", "no.wav"],
    "--shard": ["1/1", "1/2", "2/1", "x"],
    "--device": ["cpu", "x"],
    "--checkpoint": ["c.npz", "no/c.npz"],
    "--minutes": [1, 0, -1, "nan"],
    "--report": None,
    "--force": None,
    "--json": None,
    "--fast": None,
    "--resume": None,
    "--no-masking": None,
    "--unknown": None,
}
RECORDINGS = [*9 * ["mix.wav"], "b.wav", "wide.wav", "no.wav", "full", "silent.wav", "cut.wav", "-"]


def arguments(rng):
    given = ["-n", 2, "-o", "out"] if rng.random() < 0.9 else []
    for option in rng.sample(sorted(OPTIONS), rng.randint(0, 3)):
        values = OPTIONS[option]
        given += [option] if values is None else [option, rng.choice(values)]
    return [*rng.sample(RECORDINGS, rng.choice([1, 1, 1, 2, 0])), *given, "--no-cache"]


def test_command_lines(workplace, monkeypatch):  # noqa: F811
    def separate(samples, sample_rate, num_instruments, *, progress, **options):
        if not 1 <= num_instruments <= 16:
            raise AssertionError("was to be refused")
        made = synthetic_separation()
        stems = np.broadcast_to(samples / num_instruments, (num_instruments, *samples.shape))
        return type(made)(**{**vars(made), "stems": stems, "sample_rate": sample_rate})

    monkeypatch.setattr(pursuit, "separate", separate)
    monkeypatch.setattr("jaxsep.separation.neural.separate_neural", lambda *a, log, **o: separate(*a, **o))
    monkeypatch.setattr("jaxsep.cli.compute.overview", lambda *_: None)
    soundfile.write("b.wav", sinusoid(550.0), RATE)
    soundfile.write("wide.wav", np.tile(sinusoid(550.0)[:, None], 9), RATE)
    soundfile.write("silent.wav", np.zeros(RATE), RATE)
    (workplace / "cut.wav").write_bytes((workplace / "b.wav").read_bytes()[:5000])
    synthetic_separation().dictionary.save("known.npz")
    (workplace / "full").mkdir()
    (workplace / "full" / "mine.txt").write_text("mine")
    inputs = contents(workplace)
    rng = random.Random(0)
    statuses = {0: 0, 2: 0}
    for _ in range(NUM_COMMANDS):
        line = arguments(rng)
        status, out, err = run("separate", *line)
        statuses[status] += 1
        assert "Traceback" not in out + err, line
        assert status == 0 or err.splitlines()[-1].startswith("jaxsep: "), (line, err)
        kept = {path: content for path, content in contents(workplace).items() if path in inputs}
        assert kept == inputs or "full" in line, line
        assert not list(workplace.rglob(".jaxsep-*")), line
        assert not list(workplace.rglob(".*.draft")), line
        for document in workplace.rglob("separation.json"):
            names = {path.name for path in document.parent.iterdir()}
            assert {"tones.csv", "dictionary.npz", "notes.mid"} <= names, line
            assert len([name for name in names if name.startswith("stem-")]) >= 1, line
        restore(workplace, inputs)
    assert min(statuses.values()) > 20, statuses


def restore(place, inputs):
    """Takes away what a command has made."""
    for path in sorted(place.rglob("*"), reverse=True):
        if path not in inputs:
            path.rmdir() if path.is_dir() else path.unlink()
    for path, content in inputs.items():
        path.mkdir(exist_ok=True) if content is False else path.write_bytes(content)

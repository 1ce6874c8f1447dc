"""Folders as benchmarks: each layout, made here, and what is said of a wrong one."""

import json

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from benchmarks import common, folders
from benchmarks.__main__ import app
from benchmarks.commands import corpus

RATE = 16_000


def tone(fundamental, seconds=1.0):
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.05 * sum(np.sin(2 * np.pi * h * fundamental * time) / h for h in range(1, 6))).astype(
        np.float32
    )


STEMS = [tone(220.0), tone(311.0), tone(415.0), tone(523.0)]


def write(path, samples, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples.T, rate)


def only(folder):
    (found,) = folders.find_pieces(folder)
    return found


def assert_piece(found, layout, instruments, *, mixed=True, notes=()):
    """It is recognised, its samples are those of the files, and its mixture is their sum."""
    assert (found.layout, tuple(found.stems)) == (layout, instruments)
    assert (found.mixture is not None) == mixed
    piece = folders.load(found)
    assert (piece.instruments, piece.sample_rate) == (instruments, RATE)
    np.testing.assert_allclose(piece.stems.sum(axis=0), piece.mixture, atol=1e-4)
    assert set(folders.played_notes(found)) == set(notes)


# Layouts


def test_bach10(tmp_path):
    parts = ("bassoon", "clarinet", "saxophone", "violin")
    for piece in ("01-AchGottundHerr", "02-AchLiebenChristen"):
        for part, stem in zip(parts, STEMS, strict=True):
            write(tmp_path / piece / f"{piece}-{part}.wav", stem)
        write(tmp_path / piece / f"{piece}.wav", sum(STEMS))
        for name in (f"{piece}.mid", f"{piece}.txt", f"{piece}-GTNotes.mat", f"{piece}-GTF0s.mat"):
            (tmp_path / piece / name).write_text("not read")
    found = folders.find_pieces(tmp_path)
    assert [piece.name for piece in found] == ["01-AchGottundHerr", "02-AchLiebenChristen"]
    for piece in found:
        assert_piece(piece, "Bach10", parts)
    assert_piece(only(tmp_path / "01-AchGottundHerr"), "Bach10", parts)


def test_duets_and_trios_of_a_quartet(tmp_path):
    for part, stem in zip(("bassoon", "clarinet", "saxophone", "violin"), STEMS, strict=True):
        write(tmp_path / "01-Ach" / f"01-Ach-{part}.wav", stem)
    write(tmp_path / "01-Ach" / "01-Ach.wav", sum(STEMS))
    sizes = [len(piece.stems) for piece in folders.find_pieces(tmp_path, [2, 3])]
    assert sizes == [2] * 6 + [3] * 4
    duet = folders.find_pieces(tmp_path, [2])[0]
    assert duet.name == "01-Ach (bassoon, clarinet)"
    assert_piece(duet, "Bach10", ("bassoon", "clarinet"), mixed=False)
    (whole,) = folders.find_pieces(tmp_path, [4])
    assert (whole.name, whole.mixture.name) == ("01-Ach", "01-Ach.wav")
    with pytest.raises(SystemExit, match=r"holds no piece with 5 or more stems: .*\.$"):
        folders.find_pieces(tmp_path, [5])


def test_urmp(tmp_path):
    folder = tmp_path / "01_Jupiter_vn_vc"
    write(folder / "AuMix_01_Jupiter_vn_vc.wav", STEMS[0] + STEMS[1])
    for number, part in enumerate(("vn", "vc")):
        write(folder / f"AuSep_{number + 1}_{part}_01_Jupiter.wav", STEMS[number])
        rows = f"0.100\t{440.0 * 2**number:.3f}\t0.250\n0.500\t220.000\t0.300\n"
        (folder / f"Notes_{number + 1}_{part}_01_Jupiter.txt").write_text(rows)
        (folder / f"F0s_{number + 1}_{part}_01_Jupiter.txt").write_text("0.01\t440\n")
    (folder / "Sco_01_Jupiter_vn_vc.mid").write_bytes(b"not read")
    found = only(tmp_path)
    assert found.name == "01_Jupiter_vn_vc"
    assert_piece(found, "URMP", ("1_vn", "2_vc"), notes=("1_vn", "2_vc"))
    np.testing.assert_allclose(folders.played_notes(found)["2_vc"], [[0.1, 0.25, 81], [0.5, 0.3, 57]])
    (folder / "Notes_1_vn_01_Jupiter.txt").write_text("some words\n")
    with pytest.raises(
        ValueError, match=r"Notes_1_vn.* is not a table of onsets, frequencies and durations\.$"
    ):
        folders.played_notes(found)


def test_musdb(tmp_path):
    parts = ("bass", "drums", "other", "vocals")
    for split in ("train", "test"):
        for part, stem in zip(parts, STEMS, strict=True):
            write(tmp_path / split / "A - Song" / f"{part}.wav", np.stack([stem, stem]))
        write(tmp_path / split / "A - Song" / "mixture.wav", np.stack([sum(STEMS)] * 2))
    found = folders.find_pieces(tmp_path)
    assert [piece.name for piece in found] == ["test/A - Song", "train/A - Song"]
    assert_piece(found[0], "MUSDB", parts)


def test_synthsod(tmp_path):
    for part, stem in zip(("Cello", "Flute", "Violin_1"), STEMS, strict=False):
        write(tmp_path / "symphony_7_2_orch" / "Tree" / f"{part}.flac", stem)
        write(tmp_path / "symphony_7_2_orch" / "Close" / f"{part}.flac", 0.5 * stem)
    found = only(tmp_path)
    assert found.name == "symphony_7_2_orch"
    assert_piece(found, "SynthSOD", ("Cello", "Flute", "Violin_1"), mixed=False)


@pytest.mark.parametrize("mix", ["{}-mix", "{}_mix", "{} mixture"])
def test_duets_in_one_folder(tmp_path, mix):
    """As duets are often handed out: all files of all pieces beside each other."""
    for piece in ("duet-1", "duet-2"):
        write(tmp_path / f"{mix.format(piece)}.wav", STEMS[0] + STEMS[1])
        write(tmp_path / f"{piece}-flute.wav", STEMS[0])
        write(tmp_path / f"{piece}_horn.wav", STEMS[1])
    found = folders.find_pieces(tmp_path)
    assert [piece.name for piece in found] == ["duet-1", "duet-2"]
    assert [tuple(piece.stems) for piece in found] == [("flute", "horn")] * 2
    assert found[0].mixture.stem == mix.format("duet-1")
    np.testing.assert_allclose(folders.load(found[1]).mixture, STEMS[0] + STEMS[1], atol=1e-4)


def test_a_mix_and_stems_with_notes(tmp_path):
    write(tmp_path / "a" / "Mix.wav", STEMS[0] + STEMS[1])
    write(tmp_path / "a" / "flute.flac", STEMS[0])
    write(tmp_path / "a" / "horn.flac", STEMS[1])
    (tmp_path / "a" / "notes.csv").write_text(
        "onset_s,offset_s,instrument,pitch,instrument_name\n0.1,0.4,1,60,Horn\n0.2,0.5,2,72,Flute\n"
    )
    assert_piece(only(tmp_path), "mix and stems", ("flute", "horn"), notes=("flute", "horn"))
    np.testing.assert_allclose(folders.played_notes(only(tmp_path))["flute"], [[0.2, 0.3, 72]])


def test_stems_beside_the_mix(tmp_path):
    write(tmp_path / "track1" / "mix.wav", STEMS[0] + STEMS[1])
    write(tmp_path / "track1" / "stems_audio" / "0_violin.wav", STEMS[0])
    write(tmp_path / "track1" / "stems_audio" / "1_cello.wav", STEMS[1])
    assert_piece(only(tmp_path), "a folder of stems", ("0_violin", "1_cello"))


def test_stems_alone_without_a_silent_one(tmp_path):
    for name, stem in zip(("a", "b"), STEMS, strict=False):
        write(tmp_path / "piece" / f"{name}.wav", stem)
    rests = tone(300.0)
    rests[: RATE // 2] = 0
    write(tmp_path / "piece" / "c.wav", rests)
    assert_piece(only(tmp_path), "stems alone", ("a", "b", "c"), mixed=False)
    begin = folders.load(only(tmp_path), seconds=0.5)
    assert begin.instruments == ("a", "b")
    assert begin.stems.shape == (2, RATE // 2)
    np.testing.assert_allclose(begin.mixture, (STEMS[0] + STEMS[1])[: RATE // 2], atol=1e-4)


# What is wrong


def test_a_wrong_folder_has_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"nowhere is not a folder; name one of recordings .*\.$"):
        folders.find_pieces(tmp_path / "nowhere")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("all of it")
    write(tmp_path / "b" / "alone.wav", STEMS[0])
    with pytest.raises(SystemExit, match=r"holds no piece with its stems: expected mix.wav and .*\.$"):
        folders.find_pieces(tmp_path)
    result = CliRunner().invoke(app, ["corpus", "--folder", str(tmp_path)])
    assert isinstance(result.exception, SystemExit)
    assert "holds no piece" in str(result.exception.code)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda folder: write(folder / "b.wav", STEMS[1], 8000),
            r"b.wav has 8000 samples per second, expected 16000",
        ),
        (lambda folder: write(folder / "b.wav", STEMS[1][:9000]), r"b.wav has 9000 samples, expected 16000"),
        (lambda folder: (folder / "b.wav").write_bytes(b"no sound"), r"b.wav"),
        (
            lambda folder: write(folder / "b.wav", 0 * STEMS[1]),
            r"has 1 stems that sound, expected at least 2",
        ),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, change, sentence):
    write(tmp_path / "piece" / "a.wav", STEMS[0])
    write(tmp_path / "piece" / "b.wav", STEMS[1])
    change(tmp_path / "piece")
    with pytest.raises(ValueError, match=sentence) as caught:
        folders.load(only(tmp_path))
    assert "\n" not in str(caught.value)
    run = corpus.separate_piece("piece", None, 0, {}, folder=str(tmp_path))
    assert run["failed"].startswith("piece: ")


# The command


@pytest.fixture
def workers(monkeypatch, tmp_path):
    """Workers that answer at once: `calls` are their requests, number `stop` is interrupted."""
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    seen = type("Seen", (), {"calls": [], "stop": None})()

    def call(module, request, variables):
        if len(seen.calls) == seen.stop:
            raise KeyboardInterrupt
        seen.calls.append(dict(request))
        if request["name"] == "broken":
            return {"environment": common.environment(), "piece": "broken", "seed": 0, "failed": "broken: no"}
        figures = {name: [1.0, 2.0] for name in ("sdr", "sir", "sar")}
        times = {"wall_seconds": 1.0, "peak_memory": 2**30, "loss": 0.1, "right": None}
        about = {"piece": request["name"], "seed": request["seed"], "instruments": ["a", "b"]}
        literature = {"literature": {name: [3.0, None] for name in common.MEASURES}}
        return {
            "environment": common.environment(),
            "oracle": figures,
            **about,
            **figures,
            **times,
            **literature,
        }

    monkeypatch.setattr(corpus, "call_worker", call)
    for piece in ("one", "two", "three"):
        write(tmp_path / "songs" / piece / "a.wav", STEMS[0])
        write(tmp_path / "songs" / piece / "b.wav", STEMS[1])
    return seen


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_an_interrupted_command_goes_on(workers, tmp_path):
    command = [
        "corpus",
        "--folder",
        tmp_path / "songs",
        "--keys",
        "0,1",
        "--tones",
        "1,2",
        "--method",
        "blasso",
    ]
    workers.stop = 4
    invoke(*command)
    assert len(workers.calls) == 4
    assert workers.calls[0]["settings"] == {
        "search": "full",
        "method": "blasso",
        "tones_per_instrument": (1, 2),
    }
    workers.stop = None
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert "4 runs of an interrupted report are kept." in result.output
    asked = [(call["name"], call["seed"]) for call in workers.calls]
    assert asked == [(name, seed) for name in ("one", "three", "two") for seed in (0, 1)]
    document = json.loads((tmp_path / "results" / "corpus-songs.json").read_text())
    assert [(run["piece"], run["seed"]) for run in document["runs"]] == asked
    assert document["finished"]
    for text in ("| one (a, b)", "SI-SDR over mixture", "512-tap SDR", "| **mean**"):
        assert text in result.output
    # A finished one begins anew, and so does one with other settings.
    invoke(*command)
    assert len(workers.calls) == 12
    workers.stop = 13
    invoke(*command)
    workers.stop = None
    assert "are kept" not in invoke(*command, "--seconds", 1).output
    assert len(workers.calls) == 19


def test_another_program_begins_anew(workers, tmp_path, monkeypatch):
    workers.stop = 2
    invoke("corpus", "--folder", tmp_path / "songs")
    workers.stop = None
    monkeypatch.setattr(common, "_program", lambda: "another")
    assert "are kept" not in invoke("corpus", "--folder", tmp_path / "songs").output
    assert len(workers.calls) == 5


def test_a_piece_that_fails_does_not_stop_the_others(workers, tmp_path):
    write(tmp_path / "songs" / "broken" / "a.wav", STEMS[0])
    write(tmp_path / "songs" / "broken" / "b.wav", STEMS[1])
    result = invoke("corpus", "--folder", tmp_path / "songs")
    assert result.exit_code == 0, result.output
    assert "broken: no" in result.output
    assert len(workers.calls) == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--folder", "{}", "--pieces", "four"], "There is no piece four: "),
        (["--folder", "{}", "--voices", "two"], "--voices: expected numbers such as 2,3, got 'two'."),
        (["--voices", "2"], "--voices: expected with --folder"),
        (
            ["--folder", "{}", "--method", "neural", "--tones", "2"],
            "--tones: expected with pursuit or blasso",
        ),
    ],
)
def test_mistakes_have_one_sentence(workers, tmp_path, arguments, sentence):
    result = invoke("corpus", *(text.format(tmp_path / "songs") for text in arguments))
    assert str(result.exception.code).startswith(sentence)
    assert workers.calls == []


@pytest.mark.slow
def test_a_piece_of_a_folder_is_separated(tmp_path):
    write(tmp_path / "duet" / "a.wav", STEMS[0])
    write(tmp_path / "duet" / "b.wav", STEMS[1])
    (tmp_path / "duet" / "notes.csv").write_text(
        "onset_s,offset_s,instrument,pitch,instrument_name\n0,1,1,57,a\n0,1,2,63,b\n"
    )
    settings = {"restarts": 1, "steps": 3, "search": "greedy"}
    run = corpus.separate_piece("duet", None, 0, settings, folder=str(tmp_path))
    assert len(run["sdr"]) == 2
    assert 0 <= run["right"] <= 1
    assert set(run["literature"]) == set(common.MEASURES)
    assert corpus.literature([run]).count("\n") == 3

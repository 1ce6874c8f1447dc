"""The peers that separation is measured beside: what they make of tones, and what is said of them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from test_folders import RATE, STEMS, tone, write
from typer.testing import CliRunner

from benchmarks import common, folders, peers
from benchmarks.__main__ import app
from benchmarks.commands import peers as command
from jaxsep.metrics.bss_eval import sdr_sir_sar_gain


@pytest.fixture(scope="module")
def duet():
    """A dull and a bright instrument that play in turn."""
    low, high = tone(220.0, 3.0), np.zeros(3 * RATE, np.float32)
    time = np.arange(3 * RATE // 2) / RATE
    high[3 * RATE // 2 :] = 0.02 * sum(np.sin(2 * np.pi * h * 620.0 * time) for h in range(1, 10))
    low[3 * RATE // 2 :] = 0
    stems = np.stack([low, high])
    return common.Piece("duet", ("low", "high"), stems.sum(axis=0), stems, RATE)


def sdr(piece, stems):
    scores = sdr_sir_sar_gain(*(jnp.asarray(x, jnp.float32) for x in (piece.stems, stems)))
    return np.asarray(scores.sdr)


@pytest.mark.parametrize(
    ("name", "least"), [("NMF", 10), ("NMF, oracle", 10), ("ratio mask", 15), ("power mask", 20)]
)
def test_instruments_in_turn_are_separated(duet, name, least):
    peer = peers.PEERS[name]
    if why := peer.missing():
        pytest.skip(why)
    stems, notes = peer.run(duet, 0)
    assert stems.shape == duet.stems.shape
    assert notes is None
    assert sdr(duet, stems).min() > least
    np.testing.assert_allclose(
        stems.sum(axis=0)[RATE // 2 : -RATE // 2], duet.mixture[RATE // 2 : -RATE // 2], atol=5e-3
    )


def test_hpss_tells_clicks_from_tones():
    peer = peers.PEERS["HPSS"]
    if why := peer.missing():
        pytest.skip(why)
    clicks = np.zeros(3 * RATE, np.float32)
    clicks[:: RATE // 4] = 0.5
    stems = np.stack([tone(220.0, 3.0), clicks])
    piece = common.Piece("clicks", ("tone", "clicks"), stems.sum(axis=0), stems, RATE)
    assert sdr(piece, peer.run(piece, 0)[0]).min() > 5


def test_repet_finds_what_repeats():
    peer = peers.PEERS["REPET"]
    if why := peer.missing():
        pytest.skip(why)
    seconds = 16
    background = np.tile(np.concatenate([tone(f, 0.5) for f in (220.0, 262.0)]), seconds)
    glide = 0.05 * np.sin(
        2 * np.pi * (500 * np.arange(seconds * RATE) / RATE) * np.linspace(1, 3, seconds * RATE)
    )
    stems = np.stack([background, glide.astype(np.float32)])
    piece = common.Piece("glide", ("background", "glide"), stems.sum(axis=0), stems, RATE)
    assert sdr(piece, peer.run(piece, 0)[0]).min() > 5


def test_the_mixture_is_its_own_estimate(duet):
    stems, _ = peers.PEERS["mixture"].run(duet, 0)
    np.testing.assert_array_equal(stems, [duet.mixture] * 2)


def test_basic_pitch_finds_notes(duet):
    peer = peers.PEERS["basic-pitch"]
    if why := peer.missing():
        pytest.skip(why)
    stems, notes = peer.run(duet, 0)
    assert stems is None
    assert {57, 75} <= {round(pitch) for _, _, pitch in notes}
    assert np.all(notes[:, 1] > 0)


def test_what_is_missing_is_said_in_one_line(monkeypatch):
    absent = peers.PEERS["NMF"]._replace(packages=("librosa_of_nowhere",))
    why = absent.missing()
    assert why.startswith("it needs librosa_of_nowhere (No module named")
    assert why.endswith('pip install -e ".[peers-nmf]" installs it')
    assert "\n" not in why
    assert peers.PEERS["mixture"].missing() is None


def test_every_extra_is_there():
    import tomllib

    text = (common.ROOT / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    for peer in peers.PEERS.values():
        if peer.packages:
            assert peer.extra.split(".[")[1].split("]")[0] in extras


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A folder of two duets and a trio, methods that answer at once, and one that is missing."""
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "PICTURES", tmp_path / "pictures")
    for name, count in {"one": 2, "two": 2, "trio": 3}.items():
        for number, stem in enumerate(STEMS[:count]):
            write(tmp_path / "songs" / name / f"{'abc'[number]}.wav", stem)
    (tmp_path / "songs" / "one" / "notes.csv").write_text(
        "onset_s,offset_s,instrument,pitch,instrument_name\n0,1,1,57,a\n0,1,2,63,b\n"
    )
    notes = np.array([[0.0, 1.0, 57.0], [0.0, 1.0, 70.0]])
    leaky = lambda piece, seed: (piece.stems + 0.1 * piece.stems[::-1], notes)
    worse = lambda piece, seed: (piece.stems + 0.5 * piece.stems[::-1], None)
    exact = lambda piece, seed: (piece.stems, None)
    several = {
        "jaxsep": peers.Peer(leaky, "ours"),
        "two at most": peers.Peer(worse, "theirs", most=2),
        "absent": peers.Peer(worse, "not here", ("package_of_nowhere",), "the moon"),
        "truth": peers.Peer(exact, "itself", oracle=True),
    }
    for module in (peers, command):
        monkeypatch.setattr(module, "PEERS", several)
    return tmp_path / "songs"


def test_the_command(place, tmp_path):
    result = CliRunner().invoke(app, ["peers", "--folder", str(place)])
    assert result.exit_code == 0, result.output
    assert "absent: cannot be had here, as it needs package_of_nowhere" in result.output
    document = json.loads((tmp_path / "results" / "peers-songs.json").read_text())
    ran = [(run["method"], run["piece"]) for run in document["runs"]]
    assert ran == [
        *(("jaxsep", name) for name in ("one", "trio", "two")),
        *(("two at most", name) for name in ("one", "two")),
        *(("truth", name) for name in ("one", "trio", "two")),
    ]
    rows = [line.split("|")[1].strip() for line in result.output.splitlines() if line.startswith("|")]
    assert [row for row in rows if "(" in row] == ["jaxsep (ours)", "two at most (theirs)", "truth (itself)"]
    # One of two notes that were found is right, and one of two is found; only one piece has notes.
    (merged,) = [line for line in result.output.splitlines() if line.startswith("| jaxsep  ")]
    assert [cell.strip() for cell in merged.split("|")[2:6]] == ["1", "0.500", "0.500", "0.500"]
    picture = tmp_path / "pictures" / "peers.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_better_peer_stands_first(place, tmp_path):
    found = {piece.name: piece for piece in folders.find_pieces(place)}
    runs = [
        command.measured(name, found["two"], None, 0) | {"first": True}
        for name in ("jaxsep", "two at most", "truth")
    ]
    runs[1]["sdr"] = [90.0, 90.0]
    lines = command.stems_table(runs).splitlines()[2:]
    assert [line.split("(")[0].strip("| ") for line in lines] == ["two at most", "jaxsep", "truth"]
    assert [line.split("|")[2].strip() for line in lines] == ["blind", "blind", "oracle"]


def test_a_piece_that_cannot_be_read_is_told(place, capsys):
    soundfile.write(place / "one" / "b.wav", STEMS[1], 2 * RATE)
    found = {piece.name: piece for piece in folders.find_pieces(place)}
    assert command.measured("jaxsep", found["one"], None, 0) is None
    assert "one: " in capsys.readouterr().out


def test_an_unknown_method_has_one_sentence(place):
    result = CliRunner().invoke(app, ["peers", "--folder", str(place), "--methods", "magic"])
    assert str(result.exception.code).startswith("There is no method magic: expected some of jaxsep,")

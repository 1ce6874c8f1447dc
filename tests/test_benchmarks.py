"""The parts of the benchmarks that compute or decide something, apart from the measurements."""

import dataclasses
import importlib
import json
import pkgutil
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

import benchmarks.commands
from benchmarks import common, listener
from benchmarks.commands import ablation, corrections, notes, selection, speed, spikes
from benchmarks.commands.artificial import cosine, make_learner, seen_frames
from benchmarks.commands.corpus import oracle_stems
from benchmarks.commands.evidence import cost
from benchmarks.pitches import sounding_in_rests
from benchmarks.spike_solvers import Measure, polyatomic_frank_wolfe, sliding_frank_wolfe
from benchmarks.workloads import random_tones
from jaxsep.notes.note import Note
from jaxsep.notes.score import Rest, plain_note
from jaxsep.search.voices import VoiceModel
from jaxsep.separation.result import Separation
from jaxsep.separation.settings import SeparationSettings
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

RATE = 16_000


def harmonic_tone(fundamental, seconds=1.0):
    time = np.arange(round(seconds * RATE)) / RATE
    return sum(np.sin(2 * np.pi * h * fundamental * time) / h for h in range(1, 6)).astype(np.float32)


def write_piece(folder, stems, name="duet"):
    (folder / name).mkdir()
    for track, samples in {"mix": sum(stems.values()), **stems}.items():
        soundfile.write(folder / name / f"{track}.flac", 0.2 * samples, RATE)
    (folder / name / "meta.json").write_text(json.dumps({"stems": [{"name": stem} for stem in stems]}))


def test_measures_of_notes():
    def note(instrument, onset, pitch):
        return Note(instrument, onset, onset + 0.3, pitch, -10.0, np.array([onset]), np.array([pitch]))

    played = [np.array([[0.0, 0.4, 60], [0.5, 0.4, 62]]), np.array([[0.0, 1.0, 48]])]
    # The first instrument has number 1: one note in time, one late, one of another pitch.
    found = [note(1, 0.04, 60.4), note(1, 0.56, 62.0), note(1, 0.5, 63.0)]
    figures = notes.measures(played, found, [1, 0])
    assert figures["precision"] == pytest.approx([1 / 3, 0])
    assert figures["recall"] == pytest.approx([1 / 2, 0])
    assert figures["f_measure"] == pytest.approx([0.4, 0])
    runs = [{"piece": "duet", "instruments": ("a", "b"), **figures}]
    assert notes.table(runs).splitlines()[-1].endswith("0.200  |")


def test_environment_names_device_and_versions():
    record = common.environment()
    assert record["platform"] == jax.default_backend()
    assert record["versions"]["jax"] == jax.__version__
    assert record["versions"]["numpy"] == np.__version__
    assert record["cores"] >= 1
    assert json.loads(json.dumps(record)) == record
    line = common.describe(record)
    assert "\n" not in line
    assert all(part in line for part in (record["device"], jax.__version__, record["commit"]))


def test_markdown_table_is_aligned_and_escapes():
    table = common.markdown_table(["a|b", "figure"], [["x", 0.123456], ["longer", 7]])
    lines = table.split("\n")
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").replace("\\|", "¦").split("|")] for line in lines]
    assert cells[0] == ["a¦b", "figure"]
    assert cells[2:] == [["x", "0.1235"], ["longer", "7"]]
    assert set(lines[1]) == {"|", "-"}


def test_measure_keeps_the_first_call_apart():
    ticks = iter([0.0, 5.0, 5.0, 6.0, 6.0, 9.0, 9.0, 11.0])
    calls = []
    timing = common.measure(lambda: calls.append(1), repeats=3, clock=lambda: next(ticks))
    assert len(calls) == 4
    assert timing == common.Timing(first=5.0, minimum=1.0, median=2.0)


def test_peak_memory_is_in_bytes():
    resource = pytest.importorskip("resource")
    block = np.ones(2**23)
    peak = common.peak_memory()
    # What the system reports may hold the peak of the process that started this one, but not less.
    reported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert block.nbytes < peak < 1.05 * reported


def test_an_absent_folder_ends_with_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXSEP_CORPUS", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match=r"There is no folder .*nowhere: .* in JAXSEP_CORPUS\.$"):
        common.piece_names()


def test_pieces_are_read_from_the_corpus(monkeypatch, tmp_path):
    stems = {"low": harmonic_tone(220.0), "high": harmonic_tone(310.0)}
    write_piece(tmp_path, stems)
    monkeypatch.setenv("JAXSEP_CORPUS", str(tmp_path))
    assert common.chosen_pieces("") == common.chosen_pieces("duet, ") == ["duet"]
    with pytest.raises(SystemExit, match="There is no piece trio: the corpus has duet"):
        common.chosen_pieces("trio")
    piece = common.load_piece("duet", seconds=0.5)
    assert piece.instruments == ("low", "high")
    assert piece.stems.shape == (2, RATE // 2)
    np.testing.assert_allclose(piece.stems.sum(axis=0), piece.mixture, atol=1e-4)
    np.testing.assert_allclose(piece.stems[1], 0.2 * stems["high"][: RATE // 2], atol=1e-4)


def test_results_are_written_as_json(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    paths = [common.write_json("some", {"figure": value}, quick=value > 1) for value in (1.0, 2.0)]
    assert [path.name for path in paths] == ["some.json", "some-quick.json"]
    assert [json.loads(path.read_text())["figure"] for path in paths] == [1.0, 2.0]


def test_a_report_is_written_with_every_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    read = lambda: json.loads((tmp_path / "some.json").read_text())
    report = common.Report("some", quick=False, about="two pieces", seconds=3.0)
    report.add({"piece": "a"}, "a: fine")
    assert [run["piece"] for run in read()["runs"]] == ["a"]
    report.part("speed", [1.0], "Seconds per frame", "| 1.0 |")
    report.end("| a |")
    assert read() == {**report.document, "seconds": 3.0, "speed": [1.0]}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == common.describe(report.document["environment"])
    assert [line for line in lines[1:] if line] == [
        "two pieces", "a: fine", "Seconds per frame", "| 1.0 |", "| a |",
        f"Written to {tmp_path / 'some.json'}",
    ]  # fmt: skip


def test_a_report_of_workers_has_their_environment(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    theirs = common.environment() | {"device": "theirs"}
    monkeypatch.setattr(common, "environment", lambda: pytest.fail("the device is the workers'"))
    report = common.Report("some", quick=True, worker=True)
    report.add({"piece": "a", "environment": theirs}, "a: fine")
    report.end()
    assert json.loads((tmp_path / "some-quick.json").read_text())["environment"] == theirs
    assert "theirs" in capsys.readouterr().out


def test_oracle_mask_separates_tones_apart_in_frequency():
    stems = np.stack([harmonic_tone(220.0), 0.5 * harmonic_tone(310.0)])
    mixture = stems.sum(axis=0)
    estimates = oracle_stems(stems, mixture, RATE)
    assert estimates.shape == stems.shape
    inside = slice(100, -100)  # of where the resampling rings
    np.testing.assert_allclose(estimates.sum(axis=0)[inside], mixture[inside], atol=1e-3)
    unmasked = common.scores(stems, np.stack([mixture, mixture]))
    masked = common.scores(stems, estimates)
    assert max(unmasked["sdr"]) < 7
    assert min(masked["sdr"]) > 20
    assert min(masked["sir"]) > 30


def test_the_baseline_is_compared_at_equal_loss():
    runs = [
        {"setting": "coarse", "seconds_per_frame": 1.0, "loss": 0.5},
        {"setting": "fine", "seconds_per_frame": 3.0, "loss": 0.2},
        {"setting": "finest", "seconds_per_frame": 9.0, "loss": 0.1},
    ]
    # At a loss that no run has, the next above; at one that is above all, the fastest.
    chosen = [speed.comparable(runs, loss)["setting"] for loss in (0.6, 0.3, 0.201, 0.15, 0.05)]
    assert chosen == ["coarse", "coarse", "fine", "fine", "finest"]
    lucky = {"setting": "lucky", "seconds_per_frame": 2.0, "loss": 0.01}
    assert speed.comparable([*runs, lucky], 0.15)["setting"] == "lucky"


def test_numpy_stft_is_the_definition():
    samples = np.random.default_rng(1).standard_normal(400)
    hop, window_std = 32, 8
    time = np.arange(-6 * window_std, 6 * window_std)
    window = np.exp(-0.5 * (time / window_std) ** 2)
    padded = np.pad(samples, 200)
    frames = speed.numpy_stft(samples, hop, window_std)
    assert frames.shape == (14, 49)
    for frame, frequency in ((0, 3), (5, 20), (13, 48)):
        wave = np.exp(-2j * np.pi * frequency * time / time.size)
        expected = np.sum(window / window.sum() * padded[200 + frame * hop + time] * wave)
        assert frames[frame, frequency] == pytest.approx(expected, abs=1e-12)


def test_recorded_tones_keep_empty_slots_empty():
    slots = np.full((2, 3, 5), np.nan)
    slots[0, 1] = 1, 0.5, 300.0, 2.0, 1e-4
    tones = speed.recorded_tones(slots)
    assert np.asarray(tones.active).sum() == 1
    assert bool(tones.active[0, 1])
    assert (int(tones.instrument[0, 1]), float(tones.fundamental[0, 1])) == (1, 300.0)
    leaves = jax.tree.leaves(tones)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves)


def test_restarts_are_judged_by_what_their_loss_chooses():
    def restart(restart_loss, loss, cost, sdr, similarity=0.3):
        losses = {"restart_loss": restart_loss, "loss": loss, "cost": cost}
        return {**losses, "sdr": sdr, "similarity": similarity}

    candidates = [
        restart(0.1, 0.9, 1.3, [-1.0, 5.0]),
        restart(0.2, 0.4, 0.8, [9.0, 7.0], similarity=0.99),
        restart(0.3, 0.5, 0.7, [10.0, 8.0]),
    ]
    choice = selection.judge(candidates)
    assert (choice["best"], choice["best_sdr"], choice["best_lost"]) == (2, 9.0, False)
    assert choice["restart_loss"] == {"chosen": 0, "sdr": 2.0, "gap": 7.0, "lost": True}
    assert choice["loss"] == {"chosen": 1, "sdr": 8.0, "gap": 1.0, "lost": True}
    assert choice["cost"] == {"chosen": 2, "sdr": 9.0, "gap": 0.0, "lost": False}
    row = selection.table([{"piece": "duet", "seed": 0, "restarts": candidates, "choice": choice}])
    assert "2 of 3" in row


def test_artificial_problems_keep_to_their_terms():
    for restarts in (1, 2, 3):
        assert 9_600 <= seen_frames(make_learner(restarts, 10_000), restarts) <= 10_000
    tones = random_tones(200, 2, key=jax.random.key(0))
    assert bool(np.all(tones.active))
    np.testing.assert_array_equal(tones.instrument, np.tile([0, 1], (200, 1)))
    pitch, amplitude = np.asarray(tones.fundamental), np.asarray(tones.amplitude)
    assert pitch.min() >= 0
    assert 450 < pitch.max() < 500
    assert 0.9 < amplitude.max() < 1
    assert cosine(np.array([[1.0, 0.0], [1.0, 1.0]])) == pytest.approx(np.sqrt(0.5))


def test_notes_are_right_up_to_the_order_of_the_instruments(monkeypatch):
    times = np.arange(4.0)
    played = np.array([[60.0, 72.0], [np.nan, 72.0], [60.0, 72.0], [np.nan, np.nan]])
    monkeypatch.setattr(ablation, "steady_pitches", lambda name, times: played)
    pitch = np.array([[72.2, 60.0, 50.0], [72.0, 40.0, 50.0], [72.0, 61.0, 50.0], [30.0, 40.0, 50.0]])
    tones = Tones(
        amplitude=jnp.tile(jnp.array([0.5, 0.5, 0.1]), (4, 1)),
        fundamental=jnp.asarray(440 * 2 ** ((pitch - 69) / 12), jnp.float32),
        width=jnp.ones((4, 3)),
        inharmonicity=jnp.zeros((4, 3)),
        instrument=jnp.tile(jnp.array([0, 1, 1], jnp.int32), (4, 1)),
        active=jnp.ones((4, 3), bool),
    )
    separation = SimpleNamespace(tones=tones, times=times)
    np.testing.assert_allclose(ablation.loudest_pitches(separation, 2), pitch[:, :2], atol=1e-3)
    # The third frame has a wrong note; the last one has none to find.
    assert ablation.right_frames("duet", separation) == pytest.approx(2 / 3)
    monkeypatch.setattr(ablation, "steady_pitches", lambda name, times: np.full((4, 2), np.nan))
    assert ablation.right_frames("improvisation", separation) is None


def test_variants_of_the_search_are_compared_with_the_full_one():
    runs = [
        {"piece": piece, "variant": variant, "sdr": sdr, "right": right, "seconds": 1.0}
        for piece, variant, sdr, right in (
            ("a", "full", 10.0, 0.9),
            ("b", "full", 12.0, None),
            ("a", "greedy", 7.0, 0.5),
            ("b", "greedy", 9.0, None),
        )
    ]
    rows = ablation.table(runs).splitlines()
    assert [cell.strip() for cell in rows[2].split("|")][1:5] == ["full", "11.00", "+0.00", "90.0%"]
    assert [cell.strip() for cell in rows[3].split("|")][1:5] == ["greedy", "8.00", "-3.00", "50.0%"]
    for options, costs in ablation.VARIANTS.values():
        SeparationSettings(**options)
        VoiceModel(**costs)


def test_every_benchmark_has_a_command():
    app = importlib.import_module("benchmarks.__main__").app
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
    commands = {command.name: command.callback.__module__ for command in app.registered_commands}
    files = {info.name for info in pkgutil.iter_modules(benchmarks.commands.__path__)}
    assert {module.removeprefix("benchmarks.commands.") for module in commands.values()} == files
    for name in commands:
        shown = CliRunner().invoke(app, [name, "--help"])
        assert shown.exit_code == 0
        assert "--quick" in shown.output or name in ("compare", "plot")


def test_tones_in_rests_are_counted_once_a_note_has_faded():
    times = 0.01 * np.arange(300)
    played = [np.array([[0.0, 1.0, 69.0]]), np.array([[0.0, 3.0, 57.0]])]
    active = np.stack([times < 2.0, times < 3.0], axis=1)
    shape = active.shape
    tones = Tones.plain(
        jnp.ones(shape), jnp.full(shape, 440.0), jnp.broadcast_to(jnp.arange(2), shape), jnp.asarray(active)
    )
    # From 1.3 s on the first rests; until 2 s it has a tone.
    assert sounding_in_rests(tones, times, played, [0, 1]) == pytest.approx(0.7 / 1.7, abs=0.01)
    assert sounding_in_rests(tones, times, played[1:], [1]) != sounding_in_rests(
        tones, times, played[1:], [0]
    )


def test_parts_of_the_cost_of_a_separation():
    shape, active = (50, 1), np.arange(50)[:, None] < 20
    tones = Tones.plain(jnp.ones(shape), jnp.full(shape, 440.0), jnp.zeros(shape, int), jnp.asarray(active))
    separation = Separation(
        stems=np.zeros((1, 1, 8), np.float32),
        sample_rate=8000,
        tones=tones,
        times=0.01 * np.arange(50),
        dictionary=Dictionary(jnp.ones((1, 1))),
        loss=np.zeros(50, np.float32),
        confidence=np.zeros(50, np.float32),
        cost_trace=(0.0,),
        restart_losses=(),
        seconds={},
    )
    costs = VoiceModel()
    assert cost(separation, "sounding") == pytest.approx(costs.sounding * 20 / 50, rel=1e-4)
    assert cost(separation, "change") == pytest.approx(0.5 * costs.change / 50, rel=1e-4)  # it ends once
    assert cost(separation, "crossing") == 0


class TestListener:
    """A user who knows that the first plays 60, 62 and then rests, and the second 72 throughout."""

    played = (
        plain_note(0, 0.0, 1.0, 60),
        plain_note(0, 1.0, 2.0, 62),
        plain_note(1, 0.0, 3.0, 72),
    )

    def after(self, found, count=99):
        found = [dataclasses.replace(note, held=False) for note in found]
        score = listener.corrected(found, self.played, found, count, ("a", "b"))
        rows = {(n.instrument, n.onset, n.offset, n.pitch) for n in score.notes if n.held}
        return rows, [n for n in score.notes if not n.held], score.rests

    def test_what_is_right_stays_as_it_was_found(self):
        found = [plain_note(0, 0.03, 0.9, 60.1), plain_note(1, 0.02, 2.9, 72)]
        held, others, rests = self.after(found)
        assert held == {(0, 0.03, 0.9, 60.1), (1, 0.02, 2.9, 72)}
        assert (others, rests) == ([], ())
        held, others, _ = self.after(found, count=1)
        assert held == {(0, 0.03, 0.9, 60.1)}
        assert [note.instrument for note in others] == [1]

    def test_pitch_length_and_instrument(self):
        held, others, _ = self.after([plain_note(0, 0.0, 1.0, 67)])  # a wrong pitch
        assert (held, others) == ({(0, 0.0, 1.0, 60)}, [])
        held, _, _ = self.after([plain_note(0, 0.0, 0.6, 60)])  # too short
        assert held == {(0, 0.0, 1.0, 60)}
        held, _, rests = self.after([plain_note(0, 2.2, 3.0, 72)])  # the other's
        assert (held, rests) == ({(1, 0.0, 3.0, 72)}, ())

    def test_a_unison_is_drawn_for_both(self, monkeypatch):
        monkeypatch.setattr(self, "played", (plain_note(0, 0.0, 1.0, 60), plain_note(1, 0.1, 1.1, 60)))
        held, others, rests = self.after([plain_note(1, 0.12, 1.1, 60)])
        assert held == {(0, 0.0, 1.0, 60), (1, 0.12, 1.1, 60)}
        assert (others, rests) == ([], ())

    def test_what_nobody_plays_is_deleted(self):
        held, others, rests = self.after([plain_note(0, 2.2, 3.0, 65)])
        assert (held, others) == (set(), [])
        assert rests == (Rest(0, 2.2, 3.0),)

    def test_what_was_replaced_is_passed_over(self):
        """Two pieces of one note are one correction."""
        found = [plain_note(0, 0.0, 0.4, 67), plain_note(0, 0.5, 1.0, 60), plain_note(0, 1.0, 2.0, 65)]
        held, others, _ = self.after(found, count=2)
        assert held == {(0, 0.0, 1.0, 60), (0, 1.0, 2.0, 62)}
        assert others == []

    def test_what_was_not_found_is_drawn_at_the_end(self):
        found = [plain_note(0, 0.0, 1.0, 67)]
        assert self.after(found)[0] == {(0, 0.0, 1.0, 60)}
        held, others, _ = self.after(found, count=None)
        assert held == {(0, 0.0, 1.0, 60), (0, 1.0, 2.0, 62), (1, 0.0, 3.0, 72)}
        assert others == []

    def test_order(self):
        notes = [plain_note(0, n, n + 1, 60, -20.0) for n in range(3)]
        pairs = zip(notes, (3.0, 0.5, 1.5), strict=True)
        notes = [dataclasses.replace(note, confidence=confidence) for note, confidence in pairs]
        assert [note.onset for note in listener.most_doubtful(notes)] == [1, 2, 0]


def test_corrections_are_compared_with_chance():
    blind = {"piece": "a", "instruments": (), "notes": 9, "order": "", "count": 0, "sdr": 5.0, "seconds": 9.0}
    runs, chance = [blind], ((5.5, 6.0, 10.0), (6.5, 7.0, 10.0))
    for order, figures in (("doubt", (7.0, 8.0, 10.0)), *(("chance", figures) for figures in chance)):
        pairs = zip((1, 2, 9), figures, strict=True)
        runs += [blind | {"order": order, "count": count, "sdr": sdr} for count, sdr in pairs]
    assert corrections.means(runs, "chance") == {"a": [(0, 5.0), (1, 6.0), (2, 6.5), (9, 10.0)]}
    cells = lambda text: [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    assert cells(corrections.gains(runs)) == [["1", "+2.00", "+1.00", "1"], ["2", "+3.00", "+1.50", "1"]]
    assert cells(corrections.table(runs))[0] == ["a", "doubt", "5.00", "7.00", "8.00", "10.00 (9)"]
    assert corrections.counts(9) == [1, 2, 4]


@pytest.mark.slow
@pytest.mark.parametrize("name", spikes.KINDS)
def test_solvers_of_spikes_agree(name, x64):
    """Two independent methods, and a grid that is a little worse; the shapes are those of the patterns."""
    kind = spikes.KINDS[name](1)
    problem, (ours,) = kind.problems[0], spikes.jaxsep_solver(kind, 0, together=False)()
    theirs = sliding_frank_wolfe(problem, problem.grid(1 / 4), 1e-6)
    coarse = polyatomic_frank_wolfe(problem, problem.grid(1), 1e-3)
    atoms, slopes = problem.atoms(ours.position, ours.pattern)
    wanted = kind.patterns.atoms(jnp.asarray(ours.position), jnp.asarray(ours.pattern))
    np.testing.assert_allclose(atoms, wanted[0], atol=1e-7)
    np.testing.assert_allclose(slopes, wanted[1], atol=1e-5)

    def value(found):
        residual = problem.signal - found.mass @ problem.atoms(found.position, found.pattern)[0]
        return 0.5 * residual @ residual + problem.alpha * np.abs(found.mass).sum()

    assert spikes.certified_gap(kind, problem, ours) <= 1e-6
    assert spikes.certified_gap(kind, problem, theirs) <= 2e-6
    assert spikes.certified_gap(kind, problem, coarse) > 1e-4
    assert value(theirs) == pytest.approx(value(ours), rel=3e-6)
    assert value(coarse) > value(ours)
    nothing = Measure(np.empty(0), np.empty(0), np.empty(0, int))
    assert spikes.certified_gap(kind, problem, nothing) > 0.1


def test_solvers_of_spikes_take_turns(monkeypatch):
    """A turn that compiles does not count, what is slow has one, and some solve a part of the problems."""
    kind = spikes.Kind(None, ["first", "second", "third"])
    nothing = Measure(np.empty(0), np.empty(0), np.empty(0, int))
    calls, clock = {"compiled": [7.0, 2.0, 1.0], "quick": [3.0, 2.0, 1.0], "slow": [9.0, 9.0, 9.0]}, [0.0]

    def contender(name, count, **more):
        times = iter(calls[name])

        def run():
            clock[0] += next(times)
            return [nothing] * count

        return spikes.Contender(run, count, **more)

    solvers = {
        "compiled": contender("compiled", 3, compiles=True),
        "quick": contender("quick", 3),
        "slow": contender("slow", 2),
    }
    monkeypatch.setattr(spikes, "contenders", lambda kind: solvers)
    monkeypatch.setattr(spikes, "certified_gap", lambda kind, found, measure: float(found == "first"))
    monkeypatch.setattr(spikes, "PATIENCE", 5.0)
    monkeypatch.setattr(spikes, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    rows = {row["solver"]: row for row in spikes.compare(kind, 1)}
    assert rows["compiled"]["seconds"] == pytest.approx(2 / 3)
    assert rows["quick"]["seconds"] == pytest.approx(2 / 3)
    assert rows["slow"]["seconds"] == pytest.approx(9 / 2)
    assert clock[0] == 7 + 2 + 3 + 2 + 9
    assert [rows["slow"][field] for field in ("problems", "solved", "largest gap")] == [2, 1, 1]


def test_the_table_of_solvers_of_spikes():
    row = {"spikes": 10.0, "gap": 1e-7, "largest gap": 2e-7, "solved": 3, "problems": 4}
    rows = [{"solver": "a", "seconds": 0.01, **row}, {"solver": "b", "seconds": 0.1, **row}]
    cells = [cell.strip() for cell in spikes.table(rows).splitlines()[-1].split("|")]
    assert cells[1:-1] == ["b", "100.0", "10", "10.0", "1.0e-07", "2.0e-07", "3 of 4"]

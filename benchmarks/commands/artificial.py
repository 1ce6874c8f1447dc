"""Artificial spectra of two instruments: what the true dictionary separates, and what a learned one does.

Each frame has one tone of each instrument with amplitude U(0, 1) and pitch uniform over 500 bins (P1). Scores
are gain-only SDR, SIR and SAR of each instrument's spectra of all test frames, taken as one signal. All
restarts of a dictionary together see at most 10 000 training frames. One restart that sees them all does
better than two that share them.
"""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from jaxtyping import Array, Float

from benchmarks.commands.fidelity import pursue
from benchmarks.common import Report, decibels, markdown_table, reference, scores, split_list
from benchmarks.workloads import parts, random_tones
from jaxsep.learning.learner import DictionaryLearner, similarity
from jaxsep.learning.restarts import learn_dictionaries
from jaxsep.pursuit.refinement import LevenbergMarquardt
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.signal.axes import LogAxis
from jaxsep.tones.dictionary import random_instruments

MAX_TRAINING_FRAMES = 10_000
#: Distinct frames from which the minibatches are drawn.
POOL_FRAMES = 4096
BATCH = 64


def main(
    quick: bool = False,
    restarts: Annotated[str, typer.Option(help="Numbers of restarts, separated by commas.")] = "1",
) -> None:
    """Separation of artificial spectra with the true dictionary and with learned ones."""
    problems = recorded_problems() + own_problems()
    problems = problems[::6] if quick else problems
    num_test, max_frames = (50, 384) if quick else (500, MAX_TRAINING_FRAMES)
    learners = {int(number): make_learner(int(number), max_frames) for number in split_list(restarts)}
    about = f"{num_test} test frames × {LogAxis().num_bins} bins"
    for number, learner in learners.items():
        about += f"\n{number} restarts: {seen_frames(learner, number)} training frames"
    report = Report("artificial", quick=quick, about=about)
    for problem in problems:
        result = solve(problem, learners, num_test)
        report.add(result, progress(result))
    report.end(table(report.document["runs"]), summary(report.document["runs"]))


# ---- Problems ---------------------------------------------------------------------------------------------


def recorded_problems() -> list[dict[str, Any]]:
    """The three recorded dictionaries, with the published program's scores."""
    content = reference("artificial.npz")
    names = ("true", "learned")
    return [
        {
            "name": f"recorded {k}",
            "dictionary": jnp.asarray(content[f"dictionary_{k}"], jnp.float32),
            # Columns: SDR, SIR, SAR with the true dictionary, then with the learned one.
            "published": dict(zip(names, content[f"sdr_sir_sar_{k}"][:, ::3].T.tolist(), strict=True)),
        }
        for k in range(3)
    ]


def own_problems() -> list[dict[str, Any]]:
    """Ten random dictionaries."""
    dictionaries = [random_instruments(2, key=jax.random.key(100 + k)) for k in range(10)]
    return [
        {"name": f"own {k}", "dictionary": rows, "published": None} for k, rows in enumerate(dictionaries)
    ]


# ---- Solution ---------------------------------------------------------------------------------------------


def make_learner(num_restarts: int, max_frames: int) -> DictionaryLearner:
    """A learner whose restarts together see at most so many frames, a third of them when polishing."""
    calls = max_frames // (BATCH * num_restarts)
    quick = TonePursuit(solver=LevenbergMarquardt(1e-4))
    return DictionaryLearner(quick, batch=BATCH, calls=calls - calls // 3, polish=calls // 3)


def seen_frames(learner: DictionaryLearner, num_restarts: int) -> int:
    """Training frames of all restarts."""
    return num_restarts * (learner.calls + learner.polish) * learner.batch


def solve(problem: dict[str, Any], learners: dict[int, DictionaryLearner], num_test: int) -> dict[str, Any]:
    """Scores of one problem with the true dictionary and with one learned by each of the learners."""
    dictionary = problem["dictionary"]
    test = parts(random_tones(num_test, len(dictionary), key=jax.random.key(7)), dictionary)
    pool = parts(random_tones(POOL_FRAMES, len(dictionary), key=jax.random.key(11)), dictionary).sum(axis=1)
    learned = {}
    for number, learner in learners.items():
        found = learn_dictionaries(pool, learner, number, key=jax.random.key(0))[0]
        learned[number] = {"restart_loss": found.loss, **separated(test, found.harmonics)}
    return {
        "name": problem["name"],
        "cosine": cosine(dictionary),
        "lifted_cosine": float(similarity(dictionary)[0, 1]),
        "true": separated(test, dictionary),
        "learned": learned,
        "published": problem["published"],
    }


def separated(test: Float[Array, "frames instruments bins"], dictionary: Array) -> dict[str, Any]:
    """Scores and mean loss of the pursuit with a dictionary."""
    result = pursue(TonePursuit(), test.sum(axis=1), dictionary)
    flat = lambda spectra: np.moveaxis(np.asarray(spectra), 1, 0).reshape(spectra.shape[1], -1)
    return {**scores(flat(test), flat(parts(result.tones, dictionary))), "loss": float(result.loss.mean())}


def cosine(dictionary: Float[Array, "instruments harmonics"]) -> float:
    """Cosine of the angle between two rows: near 1, no dictionary can tell them apart."""
    first, second = np.asarray(dictionary, float)
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


# ---- Tables -----------------------------------------------------------------------------------------------


def progress(result: dict[str, Any]) -> str:
    """One problem in a line."""
    learned = ", ".join(f"{number}: {decibels(run['sdr'])}" for number, run in result["learned"].items())
    return f"{result['name']}: SDR true {decibels(result['true']['sdr'])}, learned {learned}"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown of all problems; SDR, SIR and SAR of the instruments in dB."""
    header = ["dictionary", "cosine", "of roots", "true SDR", "loss"]
    for number in results[0]["learned"]:
        header += [f"learned SDR ({number} restarts)", "SIR", "SAR", "loss"]
    header += ["published true SDR", "learned SDR"]

    def row(result):
        true = result["true"]
        cells = [result["name"], f"{result['cosine']:.3f}", f"{result['lifted_cosine']:.3f}"]
        cells += [decibels(true["sdr"]), f"{true['loss']:.3f}"]
        for run in result["learned"].values():
            cells += [decibels(run[name]) for name in ("sdr", "sir", "sar")] + [f"{run['loss']:.3f}"]
        published = result["published"] or {"true": [], "learned": []}
        return [*cells, *(decibels(published[name]) for name in ("true", "learned"))]

    return markdown_table(header, [row(result) for result in results])


def summary(results: list[dict[str, Any]]) -> str:
    """Markdown of mean, median and least SDR over dictionaries and instruments."""
    ways = {"true": lambda result: result["true"]["sdr"]}
    for number in results[0]["learned"]:
        ways[f"learned, {number} restarts"] = lambda result, number=number: result["learned"][number]["sdr"]
    groups = {
        "all": results,
        "recorded": [result for result in results if result["published"]],
        "own": [result for result in results if not result["published"]],
    }

    def row(way, group, figures):
        sdr = [figures(result) for result in groups[group]]
        numbers = (f"{statistic(sdr):.2f}" for statistic in (np.mean, np.median, np.min))
        return [way, f"{group} ({len(sdr)})", *numbers]

    rows = [row(way, group, figures) for way, figures in ways.items() for group in groups if groups[group]]
    for way in ("true", "learned"):
        rows.append(row(f"published, {way}", "recorded", lambda result, way=way: result["published"][way]))
    return markdown_table(["dictionary", "problems", "mean SDR", "median SDR", "least SDR"], rows)

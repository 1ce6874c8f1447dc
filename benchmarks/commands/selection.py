"""Whether the loss finds the best restart: the SDR of the restart it chooses, against the best one's.

For each key the restarts run one by one, each through `separate` with a single restart, and their stems are
compared with the truth. Three criteria choose: the loss by which `learn_dictionaries` ranks its restarts, and
the mean loss of all frames and the cost after the search.
"""

import dataclasses
from typing import Annotated, Any

import jax
import numpy as np
import typer

from benchmarks.common import (
    Piece,
    Report,
    SomePieces,
    chosen_pieces,
    decibels,
    load_piece,
    markdown_table,
    scores,
)
from jaxsep.learning.learner import similarity
from jaxsep.numerics.devices import parallel_map
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings

PIECES = "k487_08_recorder_violin,k487_01_trumpet_cello,k487_11_flute_clarinet"
CRITERIA = ("restart_loss", "loss", "cost")
#: Two instruments more similar than this are one, as for the learner.
DUPLICATE = 0.98


def main(
    quick: bool = False,
    keys: Annotated[int, typer.Option(help="Number of keys.", min=1)] = 10,
    restarts: Annotated[int, typer.Option(help="Of each key.", min=1)] = 2,
    search: Annotated[str, typer.Option(help="greedy or full.")] = "greedy",
    seconds: Annotated[float, typer.Option(help="Use the start of each piece alone.", min=0.3)] = 12.0,
    pieces: SomePieces = PIECES,
) -> None:
    """SDR of the restart chosen by its loss, against the best of the restarts."""
    settings = SeparationSettings(search=search)
    names = chosen_pieces(pieces)
    if quick:
        keys, restarts, seconds, names = 2, 2, 3.0, names[:1]
        settings = dataclasses.replace(settings, steps=3)
    about = f"{settings}\n{keys} keys × {restarts} restarts, first {seconds} s"
    facts = {"seconds": seconds, "settings": dataclasses.asdict(settings)}
    report = Report("selection", quick=quick, about=about, **facts)
    for name in names:
        piece = load_piece(name, seconds)
        for seed in range(keys):
            candidates = run_restarts(piece, settings, restarts, seed)
            run = {"piece": name, "seed": seed, "restarts": candidates, "choice": judge(candidates)}
            report.add(run, progress(run))
    report.end(table(report.document["runs"]))


def run_restarts(piece: Piece, settings: SeparationSettings, num_restarts: int, seed: int) -> list[dict]:
    """Every restart of a key, separated and scored."""
    single = dataclasses.replace(settings, restarts=1)
    key = jax.random.key(seed)

    def run(restart):
        return separate(
            piece.mixture,
            piece.sample_rate,
            len(piece.instruments),
            settings=single,
            key=jax.random.fold_in(key, restart),
        )

    return [assess(piece, separation) for separation in parallel_map(run, range(num_restarts))]


def assess(piece: Piece, separation) -> dict[str, Any]:
    """Losses and cost of a separation, the largest similarity of two of its instruments, and its scores."""
    alike = np.array(similarity(separation.dictionary.harmonics))
    np.fill_diagonal(alike, 0)
    return {
        "restart_loss": float(separation.restart_losses[0]),
        "loss": float(np.mean(separation.loss)),
        "cost": separation.cost_trace[-1],
        "similarity": float(alike.max()),
        **scores(piece.stems, separation.stems),
    }


def judge(candidates: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean SDR of the best restart and, for each criterion, its gap to the best and whether it lost one."""
    sdr = [float(np.mean(candidate["sdr"])) for candidate in candidates]
    best = int(np.argmax(sdr))
    choice = {"best": best, "best_sdr": sdr[best], "best_lost": is_lost(candidates[best])}
    for criterion in CRITERIA:
        chosen = int(np.argmin([candidate[criterion] for candidate in candidates]))
        gap, lost = sdr[best] - sdr[chosen], is_lost(candidates[chosen])
        choice[criterion] = {"chosen": chosen, "sdr": sdr[chosen], "gap": gap, "lost": lost}
    return choice


def is_lost(candidate: dict[str, Any]) -> bool:
    """Whether an instrument is missing: an SDR below 0 dB, or two instruments that are the same."""
    return min(candidate["sdr"]) < 0 or candidate["similarity"] > DUPLICATE


def progress(result: dict[str, Any]) -> str:
    """One key in a line: loss and SDR of every restart."""
    restarts = "; ".join(f"{run['restart_loss']:.3f} → {decibels(run['sdr'])}" for run in result["restarts"])
    choice = result["choice"]["restart_loss"]
    chosen = f"chosen {choice['chosen']}, gap {choice['gap']:.2f} dB"
    return f"{result['piece']}, key {result['seed']}: {restarts}; {chosen}"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown of the means of each piece and of all; SDR in dB, lost in keys (in restarts for `any`)."""
    header = ["piece", "mean SDR of restarts", "best"]
    for criterion in CRITERIA:
        header += [f"chosen by {criterion}", "gap", "largest gap", "lost"]
    header += ["lost, best", "lost, any"]

    def row(name, members):
        restarts = [restart for result in members for restart in result["restarts"]]
        choices = [result["choice"] for result in members]
        cells = [name, f"{np.mean([np.mean(restart['sdr']) for restart in restarts]):.2f}"]
        cells += [f"{np.mean([choice['best_sdr'] for choice in choices]):.2f}"]
        for criterion in CRITERIA:
            sdr, gap, lost = ([choice[criterion][k] for choice in choices] for k in ("sdr", "gap", "lost"))
            cells += [f"{np.mean(sdr):.2f}", f"{np.mean(gap):.2f}", f"{np.max(gap):.2f}"]
            cells += [f"{sum(lost)} of {len(lost)}"]
        cells += [f"{sum(choice['best_lost'] for choice in choices)} of {len(choices)}"]
        return [*cells, f"{sum(map(is_lost, restarts))} of {len(restarts)}"]

    names = list(dict.fromkeys(result["piece"] for result in results))
    rows = [row(name, [result for result in results if result["piece"] == name]) for name in names]
    return markdown_table(header, [*rows, row("**all**", results)])

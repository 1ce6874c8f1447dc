"""Separation at known notes: the score of every rendered piece, exact and with onsets that are off."""

from typing import Any

import jax
import numpy as np

from benchmarks.commands.corpus import oracle_stems
from benchmarks.common import (
    Pieces,
    Report,
    Seconds,
    chosen_pieces,
    decibels,
    load_piece,
    markdown_table,
    played_notes,
    scores,
)
from jaxsep.notes.score import Score, plain_note
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings

#: Two instruments that sound alike, which no dictionary can tell apart.
ALIKE = "corelli_two_violins"

#: Standard deviations in seconds of the error of every onset.
ERRORS = (0.0, 0.05)


def main(quick: bool = False, seconds: Seconds = 12.0, pieces: Pieces = "", seed: int = 0) -> None:
    """SDR with the notes that were played, beside the oracle ratio mask."""
    seconds = min(seconds, 3.0) if quick else seconds
    names = [name for name in chosen_pieces(pieces) if played_notes(name) and (pieces or name != ALIKE)]
    about = f"first {seconds:g} seconds, seed {seed}, {SeparationSettings()}"
    report = Report("known", quick=quick, about=about, seconds=seconds, seed=seed)
    for name in names[: 1 if quick else None]:
        found = run(name, seconds, seed)
        report.add(found, " · ".join(row(found)))
    report.end(table(report.document["runs"]))


def run(name: str, seconds: float, seed: int) -> dict[str, Any]:
    """One piece with every error of its onsets."""
    piece = load_piece(name, seconds)
    oracle = scores(piece.stems, oracle_stems(piece.stems, piece.mixture, piece.sample_rate))
    found = {}
    for error in ERRORS:
        notes = true_score(name, seconds, error, seed)
        result = separate(piece.mixture, piece.sample_rate, notes=notes, key=jax.random.key(seed))
        found[f"{error:g}"] = scores(piece.stems, result.stems)["sdr"]
    return {"piece": name, "instruments": piece.instruments, "oracle": oracle["sdr"], "sdr": found}


def true_score(name: str, seconds: float, error: float = 0.0, seed: int = 0) -> Score:
    """The notes of a piece that begin before `seconds`, with normally distributed errors of their onsets."""
    random, played = np.random.default_rng(seed), played_notes(name)
    notes = []
    for instrument, rows in enumerate(played.values()):
        for onset, duration, pitch in rows[rows[:, 0] < seconds]:
            onset = max(0.0, onset + error * random.standard_normal())
            notes.append(plain_note(instrument, onset, onset + duration, pitch))
    return Score(notes, list(played))


def row(run: dict[str, Any]) -> list[str]:
    """A run as cells; figures are in the order of the instruments."""
    means = [float(np.mean(sdr)) for sdr in (run["oracle"], *run["sdr"].values())]
    return [
        f"{run['piece']} ({', '.join(run['instruments'])})",
        *(decibels(sdr) for sdr in run["sdr"].values()),
        *(f"{mean:.2f}" for mean in means),
        f"{means[0] - means[1]:.2f}",
    ]


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown of all runs and the means over the pieces (gain-only SDR, dB)."""
    mean = lambda sdr: float(np.mean([np.mean(sdr(run)) for run in runs]))
    means = [mean(lambda run: run["oracle"])]
    means += [mean(lambda run, error=error: run["sdr"][error]) for error in runs[0]["sdr"]]
    errors = [f"{1000 * error:g} ms off" if error else "exact" for error in ERRORS]
    header = ["piece", *errors, "oracle", *(f"mean, {error}" for error in errors), "below the oracle"]
    last = ["**mean**", *("" for _ in ERRORS), *(f"{m:.2f}" for m in means), f"{means[0] - means[1]:.2f}"]
    return markdown_table(header, [*map(row, runs), last])

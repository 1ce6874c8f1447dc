"""Separation at known notes: those of every rendered piece, exact, with onsets that are off, and aligned."""

import dataclasses
import tempfile
from pathlib import Path
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
from jaxsep.notes.formats import write_midi
from jaxsep.notes.reading import read_notes
from jaxsep.notes.score import Score, plain_note
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings

#: Two instruments that sound alike, which no dictionary can tell apart.
ALIKE = "corelli_two_violins"

#: Standard deviations in seconds of the error of every onset.
ERRORS = (0.0, 0.05)

#: Tempo of a MIDI file beside that of the recording.
TEMPO = 0.8

#: The columns of figures.
COLUMNS = {"exact": "exact", "off": f"{1000 * ERRORS[1]:g} ms off", "aligned": "MIDI, aligned"}


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
    exact, off = (true_score(name, seconds, error, seed) for error in ERRORS)
    given = {"exact": (exact, False), "off": (off, False), "aligned": (through_midi(exact), True)}
    found = {}
    for column, (notes, align) in given.items():
        key = jax.random.key(seed)
        result = separate(piece.mixture, piece.sample_rate, notes=notes, align=align, key=key)
        found[column] = scores(piece.stems, result.stems)["sdr"]
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


def through_midi(score: Score) -> Score:
    """The notes as a MIDI file at another tempo has them: at keys, without loudness."""
    slow = lambda note: dataclasses.replace(note, onset=note.onset / TEMPO, offset=note.offset / TEMPO)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "score.mid"
        write_midi(path, [slow(note) for note in score.notes], score.num_instruments, names=score.names)
        return read_notes(path)


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
    means += [mean(lambda run, column=column: run["sdr"][column]) for column in COLUMNS]
    titles = COLUMNS.values()
    header = ["piece", *titles, "oracle", *(f"mean, {title}" for title in titles), "below the oracle"]
    last = ["**mean**", *("" for _ in titles), *(f"{m:.2f}" for m in means), f"{means[0] - means[1]:.2f}"]
    return markdown_table(header, [*map(row, runs), last])

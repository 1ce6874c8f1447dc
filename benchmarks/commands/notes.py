"""Notes formed from the tones of every rendered piece, against the score that was played."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from benchmarks.common import Pieces, Report, Seconds, chosen_pieces, load_piece, markdown_table, played_notes
from jaxsep.metrics.bss_eval import sdr_sir_sar_gain
from jaxsep.notes.note import Note
from jaxsep.notes.notes import find_notes
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings

#: A note is found if its onset is as near in seconds and its pitch in cents.
ONSET_TOLERANCE, PITCH_TOLERANCE = 0.05, 50.0

_QUICK = {"restarts": 1, "steps": 3, "search": "greedy"}


def main(
    quick: bool = False,
    seconds: Seconds = None,
    pieces: Pieces = "",
    seed: int = 0,
) -> None:
    """Onset-and-pitch F-measure of the notes of every instrument."""
    settings = _QUICK if quick else {}
    seconds = 3.0 if quick and seconds is None else seconds
    names = [name for name in chosen_pieces(pieces) if played_notes(name)][: 1 if quick else None]
    about = f"first {seconds or 'all'} seconds, seed {seed}"
    report = Report("notes", quick=quick, about=about, seconds=seconds, seed=seed)
    for name in names:
        found = run(name, seconds, seed, settings)
        report.add(found, " · ".join(row(found)))
    report.end(table(report.document["runs"]))


def run(name: str, seconds: float | None, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Separates one piece, and measures the notes of each of its instruments."""
    piece = load_piece(name, seconds)
    separation = separate(
        piece.mixture,
        piece.sample_rate,
        len(piece.instruments),
        settings=SeparationSettings(**settings),
        key=jax.random.key(seed),
    )
    order = np.asarray(sdr_sir_sar_gain(piece.stems, separation.stems).permutation)
    notes = find_notes(separation.tones, separation.times, separation.dictionary)
    duration = piece.mixture.size / piece.sample_rate
    played = [notes_of[notes_of[:, 0] < duration] for notes_of in played_notes(name).values()]
    return {"piece": name, "instruments": piece.instruments, **measures(played, notes, order)}


def measures(
    played: Sequence[Float[np.ndarray, "notes 3"]], notes: Sequence[Note], order: Sequence[int]
) -> dict[str, list[float]]:
    """Precision, recall and F-measure of each instrument.

    Arguments:
        played: rows of onset, duration and MIDI pitch of each true instrument.
        notes: those found.
        order: the number that each true instrument has among the notes.
    """
    figures = []
    for truth, number in zip(played, order, strict=True):
        own = [note for note in notes if note.instrument == number]
        found = np.array([(note.onset, note.offset - note.onset, note.pitch) for note in own]).reshape(-1, 3)
        figures.append(onset_and_pitch(truth, found))
    names = ("precision", "recall", "f_measure")
    return {name: [figure[n] for figure in figures] for n, name in enumerate(names)}


def onset_and_pitch(
    played: Float[np.ndarray, "notes 3"], found: Float[np.ndarray, "found 3"]
) -> tuple[float, float, float]:
    """Precision, recall and F-measure of notes, rows of onset, duration and MIDI pitch."""
    from mir_eval.transcription import precision_recall_f1_overlap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no notes at all are worth 0, and no warning
        figures = precision_recall_f1_overlap(
            *_intervals_and_frequencies(played),
            *_intervals_and_frequencies(found),
            onset_tolerance=ONSET_TOLERANCE,
            pitch_tolerance=PITCH_TOLERANCE,
            offset_ratio=None,
        )
    return tuple(float(figure) for figure in figures[:3])


def _intervals_and_frequencies(notes):
    onset, duration, pitch = notes.T
    return np.stack([onset, onset + duration], axis=1), 440 * 2 ** ((pitch - 69) / 12)


def row(run: dict[str, Any]) -> list[str]:
    """A run as cells; figures are in the order of the instruments."""
    figures = (run[name] for name in ("precision", "recall", "f_measure"))
    return [
        f"{run['piece']} ({', '.join(run['instruments'])})",
        *(" / ".join(f"{figure:.2f}" for figure in each) for each in figures),
        f"{np.mean(run['f_measure']):.3f}",
    ]


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown of all runs and the mean over the pieces."""
    mean = float(np.mean([np.mean(run["f_measure"]) for run in runs]))
    last = ["**mean**", "", "", "", f"{mean:.3f}"]
    return markdown_table(["piece", "precision", "recall", "F", "mean F"], [*map(row, runs), last])

"""Notes formed from the tones of every rendered piece, against the score that was played."""

import json
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import numpy as np
import typer
from jaxtyping import Float

from benchmarks.common import (
    chosen_pieces,
    describe,
    environment,
    load_piece,
    markdown_table,
    shared_folder,
    write_json,
)
from jaxsep.metrics import sdr_sir_sar_gain
from jaxsep.notes.notes import Note, find_notes
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings

#: A note is found if its onset is as near in seconds and its pitch in cents.
ONSET_TOLERANCE, PITCH_TOLERANCE = 0.05, 50.0

_QUICK = {"restarts": 1, "steps": 3, "search": "greedy"}


def main(
    quick: bool = False,
    seconds: Annotated[float | None, typer.Option(help="Use the start of each piece alone.", min=0.3)] = None,
    pieces: Annotated[str, typer.Option(help="Names, separated by commas.  [default: all]")] = "",
    seed: int = 0,
) -> None:
    """Onset-and-pitch F-measure of the notes of every instrument."""
    settings = _QUICK if quick else {}
    seconds = 3.0 if quick and seconds is None else seconds
    names = [name for name in chosen_pieces(pieces) if score(name)][: 1 if quick else None]
    document: dict[str, Any] = {"environment": environment(), "seconds": seconds, "seed": seed, "runs": []}
    print(f"{describe(document['environment'])}\nfirst {seconds or 'all'} seconds, seed {seed}\n")
    for name in names:
        document["runs"].append(run(name, seconds, seed, settings))
        print(*row(document["runs"][-1]), sep=" · ", flush=True)
    path = write_json("notes", document, quick=quick)
    print(f"\n{table(document['runs'])}\n\nWritten to {path}")


def score(name: str) -> dict[str, Float[np.ndarray, "notes 3"]]:
    """Onset and duration in seconds and MIDI pitch of what each instrument of a piece plays.

    It is empty for pieces without a score.
    """
    meta = json.loads((shared_folder("corpus") / name / "meta.json").read_text(encoding="utf-8"))
    return {stem["name"]: np.array(stem["notes"]) for stem in meta["stems"] if stem.get("notes")}


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
    played = [notes_of[notes_of[:, 0] < duration] for notes_of in score(name).values()]
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
    from mir_eval.transcription import precision_recall_f1_overlap

    figures = []
    for truth, number in zip(played, order, strict=True):
        own = [note for note in notes if note.instrument == number]
        found = np.array([(note.onset, note.offset - note.onset, note.pitch) for note in own]).reshape(-1, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no notes at all are worth 0, and no warning
            figures.append(
                precision_recall_f1_overlap(
                    *_intervals_and_frequencies(truth),
                    *_intervals_and_frequencies(found),
                    onset_tolerance=ONSET_TOLERANCE,
                    pitch_tolerance=PITCH_TOLERANCE,
                    offset_ratio=None,
                )[:3]
            )
    names = ("precision", "recall", "f_measure")
    return {name: [float(figure[n]) for figure in figures] for n, name in enumerate(names)}


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

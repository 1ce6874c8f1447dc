"""How often learned instruments are given the right name, a wrong one, or none."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import typer

from benchmarks.commands.known import true_score
from benchmarks.common import (
    Piece,
    Pieces,
    Report,
    Seconds,
    chosen_pieces,
    load_piece,
    markdown_table,
    played_notes,
)
from jaxsep.learning.names import assign_names, name_instruments
from jaxsep.metrics.bss_eval import sdr_sir_sar_gain
from jaxsep.separation.result import Separation
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings
from jaxsep.tones.instruments import Instruments

#: What the pieces call otherwise than the library.
_CALLED = {"sax": "saxophone"}

_OUTCOMES = ("right", "wrong", "none")

Given = Annotated[bool, typer.Option("--notes", help="Take the tones of the played notes, unsearched.")]


def main(
    quick: bool = False, seconds: Seconds = None, pieces: Pieces = "", seed: int = 0, notes: Given = False
) -> None:
    """Names by the library, by the library without the true instrument, and where it is told who plays."""
    seconds = 3.0 if quick else seconds
    notes = notes or quick
    names = [name for name in chosen_pieces(pieces) if not notes or played_notes(name)]
    about = f"{'given notes' if notes else 'blindly'}, seed {seed}, {SeparationSettings()}"
    report = Report("names", quick=quick, about=about, seconds=seconds, seed=seed, notes=notes)
    for name in names[: 1 if quick else None]:
        found = run(name, seconds, seed, notes)
        report.add(found, " · ".join(row(found)))
    report.end(table(report.document["runs"]))


def run(name: str, seconds: float | None, seed: int, notes: bool) -> dict[str, Any]:
    """One piece, separated blindly or at the notes that are played."""
    piece, key = load_piece(name, seconds), jax.random.key(seed)
    options = {"notes": true_score(name, seconds or np.inf, seed=seed)} if notes else {}
    found = separate(piece.mixture, piece.sample_rate, len(piece.instruments), **options, key=key)
    return {"piece": name, **names_of(piece.instruments, in_order(found, piece))}


def in_order(found: Separation, piece: Piece) -> Separation:
    """The instruments in the order of the true ones, by the SDR of their stems."""
    sounds = (jnp.asarray(stems, jnp.float32) for stems in (piece.stems, found.stems))
    order = np.asarray(sdr_sir_sar_gain(*sounds).permutation)
    place = np.argsort(order).astype(np.int32)
    rows = jax.tree.map(lambda x: x[order], (found.dictionary.harmonics, found.dictionary.by_pitch))
    fields = lambda s: (s.tones.instrument, s.dictionary.harmonics, s.dictionary.by_pitch)
    return eqx.tree_at(fields, found, (place[found.tones.instrument], *rows))


def names_of(true: Sequence[str], found: Separation) -> dict[str, Any]:
    """The names of instruments, beside the true ones in the same order.

    Returns: those by the library; those by the library without the instrument itself, where none is right;
    and those of the instruments that are told to play.
    """
    library = Instruments.orchestra()
    true = [plain(name) for name in true]
    heard = found.dictionary, found.tones
    missing = []
    for number, name in enumerate(true):
        others = library.chosen([other for other in library.names if other != name])
        missing.append(name_instruments(*heard, others)[number])
    players = library.chosen(true)
    return {
        "true": true,
        "like": name_instruments(*heard, library),
        "missing": missing,
        "told": [plain(name) for name in assign_names(*heard, players)],
    }


def plain(name: str | None) -> str | None:
    """A name as the library has it, without a number: `violin-1` and `violin 2` are `violin`."""
    if name is None:
        return None
    kind = name.rstrip("0123456789").rstrip("- ")
    return _CALLED.get(kind, kind)


def outcomes(run: dict[str, Any], by: str = "like") -> Counter:
    """How many names are right, wrong, and missing."""
    counts = Counter(dict.fromkeys(_OUTCOMES, 0))
    for true, name in zip(run["true"], run[by], strict=True):
        counts["none" if name is None else "right" if plain(name) == true else "wrong"] += 1
    return counts


def row(run: dict[str, Any]) -> list[str]:
    """A run as cells."""
    counts, told, missing = outcomes(run), outcomes(run, "told"), outcomes(run, "missing")
    return [
        f"{run['piece']} ({', '.join(run['true'])})",
        ", ".join(name or "–" for name in run["like"]),
        *(str(counts[outcome]) for outcome in _OUTCOMES),
        str(missing["wrong"]),
        str(told["right"]),
    ]


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown of all runs, and the totals."""
    rows = [row(run) for run in runs]
    totals = [str(sum(int(cells[column]) for cells in rows)) for column in range(2, 7)]
    header = ["piece", "named", *_OUTCOMES, "named if not in the library", "right if told who plays"]
    return markdown_table(header, [*rows, ["**all**", "", *totals]])

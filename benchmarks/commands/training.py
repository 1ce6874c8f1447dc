"""The README's example as it stands: a dictionary trained through the pursuit where the stems are known."""

import re
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from benchmarks.common import ROOT, Report, SomePieces, chosen_pieces, load_piece, markdown_table
from jaxsep.audio import resample
from jaxsep.metrics.si_sdr import permutation_invariant_si_sdr
from jaxsep.separation.chunks import ANALYSIS_RATE


def main(
    quick: bool = False,
    pieces: SomePieces = "k487_08_recorder_violin",
    seconds: Annotated[float, typer.Option(help="Use the start of each piece alone.", min=0.3)] = 6.0,
) -> None:
    """SI-SDR before and after a dictionary is trained on a piece by the gradient of the SI-SDR."""
    report = Report("training", quick=quick)
    for name in chosen_pieces(pieces):
        piece = load_piece(name, 2.0 if quick else seconds)
        tracks = resample(np.stack([piece.mixture, *piece.stems]), piece.sample_rate, ANALYSIS_RATE)
        run = {"piece": name, **trained(jnp.asarray(tracks[0]), jnp.asarray(tracks[1:]))}
        report.add(run, " · ".join(row(run)))
    report.end(table(report.document["runs"]))


def example() -> str:
    """The Python of the README's example."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(r"<!-- training -->\n```python\n(.*?)```", text, re.DOTALL)[1]


def trained(mixture: jax.Array, truth: jax.Array) -> dict[str, Any]:
    """What the example reaches: mean SI-SDR in dB of the blind separation, then before each step."""
    names = {"mixture": mixture, "truth": truth}
    exec(compile(example(), "README.md", "exec"), names)
    stems = jnp.asarray(names["blind"].stems)
    best = float(jnp.mean(permutation_invariant_si_sdr(truth, stems)))
    return {"search": best, "figures": names["figures"]}


def row(run: dict[str, Any]) -> list[str]:
    """A piece as cells, figures in dB."""
    before, after = run["figures"][0], run["figures"][-1]
    return [run["piece"], *(f"{x:.2f}" for x in (run["search"], before, after, after - before))]


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown of all pieces."""
    header = ["piece", "blind, full search", "blind, greedy", "trained, greedy", "gain"]
    return markdown_table(header, [row(run) for run in runs])

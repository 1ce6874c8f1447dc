"""Every piece of the corpus separated blindly, each in a fresh process, beside the oracle ratio mask."""

import json
import time
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from jaxtyping import Float

from benchmarks.common import (
    FRESH,
    Pieces,
    Report,
    Seconds,
    answer,
    call_worker,
    chosen_pieces,
    decibels,
    environment,
    load_piece,
    markdown_table,
    peak_memory,
    played_notes,
    scores,
    split_list,
)
from benchmarks.pitches import part_right
from jaxsep.audio import resample
from jaxsep.metrics import sdr_sir_sar_gain
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings
from jaxsep.signal.masks import ratio_masks
from jaxsep.signal.stft import GaussianSTFT

ANALYSIS_RATE = 48_000
_QUICK = {"restarts": 1, "steps": 3, "search": "greedy"}


def main(
    quick: bool = False,
    search: Annotated[str, typer.Option(help="full or greedy.")] = "full",
    seconds: Seconds = None,
    pieces: Pieces = "",
    seeds: Annotated[str, typer.Option(help="Numbers, separated by commas.")] = "0",
    options: Annotated[str, typer.Option(help="Further fields of SeparationSettings, as JSON.")] = "{}",
) -> None:
    """Quality, wall time and memory of the separation of every piece."""
    settings = {"search": search, **(_QUICK if quick else {}), **json.loads(options)}
    names = chosen_pieces(pieces)[: 1 if quick else None]
    seconds = 3.0 if quick and seconds is None else seconds
    about = f"{SeparationSettings(**settings)}\nfirst {seconds or 'all'} seconds, seeds {seeds}"
    report = Report("corpus", quick=quick, about=about, worker=True, settings=settings, seconds=seconds)
    for name in names:
        for seed in map(int, split_list(seeds)):
            request = {"name": name, "seconds": seconds, "seed": seed, "settings": settings}
            run = call_worker("benchmarks.commands.corpus", request, FRESH)
            report.add(run, " · ".join(row(run)))
    runs = report.document["runs"]
    report.end(table(runs), *([spread(runs)] if len(split_list(seeds)) > 1 else []))


def separate_piece(name: str, seconds: float | None, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Separates one piece; wall time and peak memory are those of a process that does nothing before."""
    piece = load_piece(name, seconds)
    begin = time.perf_counter()
    separation = separate(
        piece.mixture,
        piece.sample_rate,
        len(piece.instruments),
        settings=SeparationSettings(**settings),
        key=jax.random.key(seed),
    )
    wall = time.perf_counter() - begin
    memory = peak_memory()
    return {
        "environment": environment(),
        "piece": name,
        "instruments": piece.instruments,
        "duration": piece.mixture.size / piece.sample_rate,
        "seed": seed,
        "wall_seconds": wall,
        "stage_seconds": separation.seconds,
        "peak_memory": memory,
        "loss": float(np.mean(separation.loss)),
        "restart_losses": [float(loss) for loss in separation.restart_losses],
        "right": _part_right(piece, separation),
        **scores(piece.stems, separation.stems),
        "oracle": scores(piece.stems, oracle_stems(piece.stems, piece.mixture, piece.sample_rate)),
    }


def _part_right(piece, separation) -> float | None:
    """Part of the steady frames with all fundamentals right; None for a piece without a score."""
    duration = piece.mixture.size / piece.sample_rate
    played = [notes[notes[:, 0] < duration] for notes in played_notes(piece.name).values()]
    if not played:
        return None
    order = np.asarray(sdr_sir_sar_gain(piece.stems, separation.stems).permutation)
    part = part_right(separation.tones, separation.times, played, order)
    return None if np.isnan(part) else part


def oracle_stems(
    stems: Float[np.ndarray, "instruments samples"],
    mixture: Float[np.ndarray, " samples"],
    sample_rate: int,
    *,
    hop: int = 512,
) -> Float[np.ndarray, "instruments samples"]:
    """The mixture times `|S_i| / Σ_j |S_j|` of the true stems: what a ratio mask can reach at best.

    The masks act on the Gaussian STFT at 48 kHz, and the phase is the mixture's.
    """
    stft = GaussianSTFT(hop=hop)
    tracks = resample(np.concatenate([mixture[None], stems]), sample_rate, ANALYSIS_RATE)
    mixed = stft.analyse(jnp.asarray(tracks[0]))
    magnitudes = jnp.stack([jnp.abs(stft.analyse(jnp.asarray(track))) for track in tracks[1:]])
    masks = ratio_masks(magnitudes, jnp.abs(mixed))
    estimates = np.stack([np.asarray(stft.synthesise(mask * mixed, tracks.shape[1])) for mask in masks])
    estimates = resample(estimates, ANALYSIS_RATE, sample_rate)[:, : mixture.size]
    return np.pad(estimates, [(0, 0), (0, mixture.size - estimates.shape[1])])


HEADER = ["piece", "seed", "wall s", "peak GiB", "SDR", "SIR", "SAR", "mean SDR", "oracle SDR"]
HEADER += ["notes right %", "loss"]


def row(run: dict[str, Any]) -> list[str]:
    """A run as cells; figures in dB are in the order of the instruments."""
    return [
        f"{run['piece']} ({', '.join(run['instruments'])})",
        str(run["seed"]),
        f"{run['wall_seconds']:.1f}",
        f"{run['peak_memory'] / 2**30:.2f}",
        *(decibels(run[name]) for name in ("sdr", "sir", "sar")),
        f"{np.mean(run['sdr']):.2f}",
        f"{np.mean(run['oracle']['sdr']):.1f}",
        "–" if run["right"] is None else f"{100 * run['right']:.0f}",
        f"{run['loss']:.4f}",
    ]


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown of all runs and their means (gain-only measures, dB)."""

    def mean(figure):
        return float(np.mean([figure(run) for run in runs]))

    judged = [run["right"] for run in runs if run["right"] is not None]
    last = ["**mean**", "", f"{mean(lambda run: run['wall_seconds']):.1f}"]
    last += [f"{mean(lambda run: run['peak_memory']) / 2**30:.2f}"]
    last += [f"{mean(lambda run, name=name: np.mean(run[name])):.2f}" for name in ("sdr", "sir", "sar")]
    last += [f"{mean(lambda run: np.mean(run['sdr'])):.2f}"]
    last += [f"{mean(lambda run: np.mean(run['oracle']['sdr'])):.1f}"]
    last += [f"{100 * np.mean(judged):.0f}" if judged else "–"]
    last += [f"{mean(lambda run: run['loss']):.4f}"]
    return markdown_table(HEADER, [*map(row, runs), last])


def spread(runs: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation of the mean SDR of each piece over its seeds, and the least."""
    rows = []
    for name in dict.fromkeys(run["piece"] for run in runs):
        means = np.array([np.mean(run["sdr"]) for run in runs if run["piece"] == name])
        rows.append([name, str(means.size), f"{means.mean():.2f} ± {means.std():.2f}", f"{means.min():.2f}"])
    return markdown_table(["piece", "seeds", "mean SDR", "least"], rows)


if __name__ == "__main__":
    answer(separate_piece)

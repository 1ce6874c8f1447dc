"""Every piece of a folder separated blindly, each in a fresh process, beside the oracle mask."""

import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import typer
from jaxtyping import Float

from benchmarks import folders
from benchmarks.common import (
    FRESH,
    MEASURES,
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
    mean_of,
    measures,
    peak_memory,
    played_notes,
    scores,
    split_list,
)
from benchmarks.folders import find_pieces
from benchmarks.pitches import part_right
from jaxsep.audio import resample
from jaxsep.metrics.bss_eval import sdr_sir_sar_gain
from jaxsep.neural.settings import NeuralSettings
from jaxsep.separation.neural import separate_neural
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import METHODS, SeparationSettings
from jaxsep.signal.masks import ratio_masks
from jaxsep.signal.stft import GaussianSTFT

ANALYSIS_RATE = 48_000
_QUICK = {"restarts": 1, "steps": 3, "search": "greedy"}


def main(
    quick: bool = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Recordings with their true stems, as of Bach10, URMP, MUSDB or SynthSOD, or stems alone, "
            "instead of the corpus."
        ),
    ] = None,
    voices: Annotated[
        str,
        typer.Option(
            help="Of the folder's pieces all choices of so many stems, such as 2,3 for duets and trios."
        ),
    ] = "",
    method: Annotated[Literal[*METHODS, "neural"], typer.Option(help="As of jaxsep separate.")] = METHODS[0],
    tones: Annotated[
        str, typer.Option(help="That an instrument may play at a time; one number for each, such as 1,6.")
    ] = "1",
    search: Annotated[str, typer.Option(help="full or greedy.")] = "full",
    seconds: Seconds = None,
    pieces: Pieces = "",
    seeds: Annotated[
        str, typer.Option("--seeds", "--keys", help="Seeds of the keys, separated by commas.")
    ] = "0",
    options: Annotated[
        str, typer.Option(help="Further fields of SeparationSettings (of NeuralSettings), as JSON.")
    ] = "{}",
) -> None:
    """Quality, wall time and memory of the separation of every piece.

    The same command goes on after an interruption.
    """
    settings = _settings(method, tones, search, quick, options)
    if folder is None and voices:
        raise SystemExit("--voices: expected with --folder, which has them to choose from.")
    if method == "neural" and tones != "1":
        raise SystemExit("--tones: expected with pursuit or blasso, got neural, which has none.")
    names = chosen_pieces(pieces) if folder is None else chosen(folder, voices, pieces)
    names = names[: 1 if quick else None]
    seconds = 3.0 if quick and seconds is None else seconds
    about = f"{_made(method, settings)}\nfirst {seconds or 'all'} seconds, seeds {seeds}"
    facts = {"method": method, "settings": settings, "seconds": seconds}
    if folder is not None:
        facts |= {"folder": str(folder.resolve()), "voices": voices}
    title = "corpus" if folder is None else f"corpus-{folder.resolve().name}"
    report = Report(title, quick=quick, about=about, worker=True, **facts)
    there = {(run["piece"], run["seed"]) for run in report.unfinished()}
    for name, seed in itertools.product(names, map(int, split_list(seeds))):
        if (name, seed) not in there:
            request = {"name": name, "seed": seed, **facts}
            run = call_worker("benchmarks.commands.corpus", request, FRESH)
            report.add(run, run["failed"] if "failed" in run else " · ".join(row(run)))
    runs = [run for run in report.document.get("runs", []) if "failed" not in run]
    if not runs:
        raise SystemExit("No piece could be separated.")
    report.end(table(runs), literature(runs), *([spread(runs)] if len(split_list(seeds)) > 1 else []))


def _settings(method, tones, search, quick, options) -> dict[str, Any]:
    """Fields of the settings of a method that differ from its defaults."""
    if method == "neural":
        return ({"steps": 3, "imitation": 3} if quick else {}) | json.loads(options)
    chosen = {"search": search, **(_QUICK if quick else {})}
    chosen |= {"method": method} if method != METHODS[0] else {}
    several = tuple(map(int, split_list(tones)))
    chosen |= {"tones_per_instrument": several if len(several) > 1 else several[0]} if several != (1,) else {}
    return chosen | json.loads(options)


def _made(method, settings):
    if method == "neural":
        return dataclasses.replace(NeuralSettings.small(), **settings)
    return SeparationSettings(**settings)


def chosen(folder: Path, voices: str, listed: str) -> list[str]:
    """Names of the pieces of a folder from a list such as `a,b`, all of them if it is empty."""
    found = [piece.name for piece in find_pieces(folder, numbers(voices))]
    # A name may hold commas, as those of chosen voices do.
    wanted = [listed] if listed in found else split_list(listed)
    for name in wanted:
        if name not in found:
            raise SystemExit(f"There is no piece {name}: {folder} has {', '.join(found)}.")
    return wanted or found


def numbers(voices: str) -> list[int]:
    """Numbers of a list such as `2,3`."""
    try:
        return [int(entry) for entry in split_list(voices)]
    except ValueError:
        raise SystemExit(f"--voices: expected numbers such as 2,3, got {voices!r}.") from None


def separate_piece(
    name: str,
    seconds: float | None,
    seed: int,
    settings: dict[str, Any],
    method: str = METHODS[0],
    folder: str | None = None,
    voices: str = "",
) -> dict[str, Any]:
    """Separates one piece; wall time and peak memory are those of a process that does nothing before.

    Of a piece that cannot be read or separated it says why, as `failed`.
    """
    try:
        if folder is None:
            piece, played = load_piece(name, seconds), played_notes(name)
        else:
            found = next(piece for piece in find_pieces(Path(folder), numbers(voices)) if piece.name == name)
            piece, played = folders.load(found, seconds), folders.played_notes(found)
        separation, wall = _separated(piece, seed, method, settings)
    except ValueError as error:
        return {"environment": environment(), "piece": name, "seed": seed, "failed": f"{name}: {error}"}
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
        "right": _part_right(piece, played, separation),
        **scores(piece.stems, separation.stems),
        "oracle": scores(piece.stems, oracle_stems(piece.stems, piece.mixture, piece.sample_rate)),
        "literature": measures(piece, separation.stems),
    }


def _separated(piece, seed, method, settings):
    run = separate_neural if method == "neural" else separate
    begin = time.perf_counter()
    request = {"settings": _made(method, settings), "key": jax.random.key(seed)}
    separation = run(piece.mixture, piece.sample_rate, len(piece.instruments), **request)
    return separation, time.perf_counter() - begin


def _part_right(piece, played, separation) -> float | None:
    """Part of the steady frames with all fundamentals right; None for a piece without a score."""
    duration = piece.mixture.size / piece.sample_rate
    rows = [
        notes[notes[:, 0] < duration] for notes in map(played.get, piece.instruments) if notes is not None
    ]
    if len(rows) < len(piece.instruments):
        return None
    matched = sdr_sir_sar_gain(jnp.asarray(piece.stems), jnp.asarray(separation.stems))
    order = np.asarray(matched.permutation)
    part = part_right(separation.tones, separation.times, rows, order)
    return None if np.isnan(part) else part


def oracle_stems(
    stems: Float[np.ndarray, "instruments samples"],
    mixture: Float[np.ndarray, " samples"],
    sample_rate: int,
    *,
    hop: int = 512,
    exponent: float = 1.0,
) -> Float[np.ndarray, "instruments samples"]:
    """The mixture times `|S_i|^p / Σ_j |S_j|^p` of the true stems: about what a mask can reach at best.

    p is the `exponent`: 1 for the ratio mask, 2 for that of the powers.

    The masks act on the Gaussian STFT at 48 kHz, and the phase is the mixture's.
    """
    stft = GaussianSTFT(hop=hop)
    tracks = resample(np.concatenate([mixture[None], stems]), sample_rate, ANALYSIS_RATE)
    mixed = stft.analyse(jnp.asarray(tracks[0]))
    magnitudes = jnp.stack([jnp.abs(stft.analyse(jnp.asarray(track))) for track in tracks[1:]])
    masks = ratio_masks(magnitudes, jnp.abs(mixed), exponent=exponent)
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


def literature(runs: list[dict[str, Any]]) -> str:
    """Markdown of the measures of the literature, as means over the instruments of each piece, in dB."""
    rows = [
        [run["piece"], str(run["seed"]), f"{np.mean(run['sdr']):.2f}"]
        + [f"{mean_of(run['literature'][name]):.2f}" for name in MEASURES]
        for run in runs
    ]
    means = [np.mean([np.mean(run["sdr"]) for run in runs])]
    means += [mean_of([mean_of(run["literature"][name]) for run in runs]) for name in MEASURES]
    last = ["**mean**", "", *(f"{mean:.2f}" for mean in means)]
    return markdown_table(["piece", "seed", "gain-only SDR", *MEASURES.values()], [*rows, last])


def spread(runs: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation of the mean SDR of each piece over its seeds, and the least."""
    rows = []
    for name in dict.fromkeys(run["piece"] for run in runs):
        means = np.array([np.mean(run["sdr"]) for run in runs if run["piece"] == name])
        rows.append([name, str(means.size), f"{means.mean():.2f} ± {means.std():.2f}", f"{means.min():.2f}"])
    return markdown_table(["piece", "seeds", "mean SDR", "least"], rows)


if __name__ == "__main__":
    answer(separate_piece)

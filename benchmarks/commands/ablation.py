"""What each ingredient of the full search does: switched off in turn, SDR, notes found, and seconds.

Every variant learns from the same key. Notes are right in a frame when every instrument that plays a steady
note has a tone within half a semitone of it; the played notes are those of the corpus.
"""

import dataclasses
import itertools
import json
import time
from typing import Annotated, Any

import jax
import numpy as np
import typer

from benchmarks.common import (
    Piece,
    Pieces,
    Report,
    Seconds,
    chosen_pieces,
    load_piece,
    markdown_table,
    scores,
    shared_folder,
    split_list,
)
from jaxsep.search.voices import VoiceModel
from jaxsep.separation.result import Separation
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings

#: Settings and costs that differ from the defaults.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "full": ({}, {}),
    "greedy": ({"search": "greedy"}, {}),
    "no rounds": ({"rounds": 0}, {}),
    "dictionaries learned from samples, too": ({"restarts": 2}, {}),
    "the same harmonics at every pitch": ({"timbre": False}, {}),
    "no register": ({}, {"register": 0.0}),
    "voices may cross": ({}, {"crossing": 0.0}),
    "changes cost nothing": ({}, {"change": 0.0}),
    "tones cost nothing": ({}, {"sounding": 0.0}),
    "no notes that ring on": ({}, {"ringing": 1e3}),
    "loss alone": ({}, dict.fromkeys(("register", "crossing", "change", "sounding", "ringing"), 0.0)),
}
#: A note is steady that began and ends at least so long ago, in seconds.
STEADY = 0.03
A4 = 440.0


def main(
    quick: bool = False,
    seconds: Seconds = 12.0,
    pieces: Pieces = "",
    variants: Annotated[str, typer.Option(help="Names, separated by commas.  [default: all]")] = "",
) -> None:
    """SDR, notes found and seconds with each ingredient of the search switched off."""
    names = chosen_pieces(pieces)[: 1 if quick else None]
    chosen = split_list(variants) or list(VARIANTS)[: 2 if quick else None]
    base = SeparationSettings(rounds=1) if quick else SeparationSettings()
    about = f"first {seconds or 'all'} seconds of {', '.join(names)}"
    report = Report("ablation", quick=quick, about=about, seconds=seconds)
    for name in names:
        piece = load_piece(name, seconds)
        for variant in chosen:
            result = {"piece": name, "variant": variant, **run(piece, variant, base)}
            report.add(result, progress(result))
    report.end(table(report.document["runs"]))


def run(piece: Piece, variant: str, base: SeparationSettings) -> dict[str, Any]:
    """Mean SDR, part of the steady frames with the right notes, loss, and seconds of a variant."""
    options, costs = VARIANTS[variant]
    begin = time.perf_counter()
    separation = separate(
        piece.mixture,
        piece.sample_rate,
        len(piece.instruments),
        settings=dataclasses.replace(base, **options),
        voices=VoiceModel(**costs),
        key=jax.random.key(0),
    )
    elapsed = time.perf_counter() - begin
    figures = scores(piece.stems, separation.stems)
    return {
        "sdr": float(np.mean(figures["sdr"])),
        "right": right_frames(piece.name, separation),
        "loss": float(np.mean(separation.loss)),
        "seconds": elapsed,
        "stages": separation.seconds,
    }


def right_frames(name: str, separation: Separation) -> float | None:
    """Part of the frames with steady notes in which each of them was found; None without a score."""
    played = steady_pitches(name, np.asarray(separation.times))
    if not np.any(np.isfinite(played)):
        return None
    found = loudest_pitches(separation, played.shape[1])
    sounding = np.isfinite(played)

    def part(order):
        near = np.abs(found[:, list(order)] - played) < 0.5
        return float(np.mean(np.all(near | ~sounding, axis=1)[np.any(sounding, axis=1)]))

    return max(part(order) for order in itertools.permutations(range(played.shape[1])))


def steady_pitches(name: str, times: np.ndarray) -> np.ndarray:
    """MIDI pitch `[frames, instruments]` of steady notes; NaN where an instrument has none."""
    meta = json.loads((shared_folder("corpus") / name / "meta.json").read_text(encoding="utf-8"))
    pitches = np.full((times.size, len(meta["stems"])), np.nan)
    for instrument, stem in enumerate(meta["stems"]):
        for onset, duration, pitch in stem.get("notes", []):
            pitches[(times >= onset + STEADY) & (times < onset + duration - STEADY), instrument] = pitch
    return pitches


def loudest_pitches(separation: Separation, num_instruments: int) -> np.ndarray:
    """MIDI pitch `[frames, instruments]` of each instrument's loudest tone; NaN where it has none."""
    tones = separation.tones
    pitch = 69 + 12 * np.log2(np.where(tones.active, tones.fundamental, A4) / A4)
    rows = np.arange(tones.active.shape[0])
    pitches = []
    for instrument in range(num_instruments):
        loudness = np.where(tones.active & (tones.instrument == instrument), tones.amplitude, -1)
        loudest = np.argmax(loudness, axis=1)
        pitches.append(np.where(loudness[rows, loudest] > 0, pitch[rows, loudest], np.nan))
    return np.stack(pitches, axis=1)


def progress(result: dict[str, Any]) -> str:
    """One run in a line."""
    notes = "" if result["right"] is None else f", notes {result['right']:.1%}"
    return f"{result['piece']}, {result['variant']}: {result['sdr']:.2f} dB{notes}, {result['seconds']:.1f} s"


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown of the means over the pieces."""
    full = [result["sdr"] for result in runs if result["variant"] == "full"]

    def row(variant):
        mine = [result for result in runs if result["variant"] == variant]
        sdr = float(np.mean([result["sdr"] for result in mine]))
        against = f"{sdr - np.mean(full):+.2f}" if full else ""
        right = [result["right"] for result in mine if result["right"] is not None]
        notes = f"{np.mean(right):.1%}" if right else ""
        return [variant, f"{sdr:.2f}", against, notes, f"{np.mean([r['seconds'] for r in mine]):.1f}"]

    names = list(dict.fromkeys(result["variant"] for result in runs))
    header = ["search", "mean SDR (dB)", "against full", "notes right", "s"]
    return markdown_table(header, [row(name) for name in names])

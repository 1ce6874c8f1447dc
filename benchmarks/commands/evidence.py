"""What the search finds beside the notes that were played: whether the cost or the search is to blame."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.commands.corpus import oracle_stems
from benchmarks.commands.known import true_score
from benchmarks.common import (
    Pieces,
    Report,
    Seconds,
    chosen_pieces,
    load_piece,
    markdown_table,
    played_notes,
    scores,
)
from benchmarks.pitches import part_right, sounding_in_rests
from jaxsep.metrics.bss_eval import sdr_sir_sar_gain
from jaxsep.pursuit.recording import Hypotheses
from jaxsep.search.moves import arrange
from jaxsep.search.voices import VoiceModel, best_path
from jaxsep.separation.result import Separation
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings
from jaxsep.signal.axes import LogAxis

#: Parts of the cost beyond the loss.
_PARTS = ("register", "crossing", "change", "sounding", "ringing")


def main(quick: bool = False, seconds: Seconds = 12.0, pieces: Pieces = "", seed: int = 0) -> None:
    """Loss and cost C as found and at the true notes, in parts, and what the search makes of these."""
    seconds = min(seconds, 3.0) if quick else seconds
    names = [name for name in chosen_pieces(pieces) if played_notes(name)][: 1 if quick else None]
    settings = {"restarts": 1, "steps": 3} if quick else {}
    about = f"first {seconds:g} seconds, seed {seed}, {SeparationSettings(**settings)}"
    report = Report("evidence", quick=quick, about=about, seconds=seconds, seed=seed)
    for name in names:
        found = run(name, seconds, seed, settings)
        report.add(found, " · ".join(row(found)))
    report.end(table(report.document["runs"]))


def run(name: str, seconds: float, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One piece, as found and with its true notes."""
    piece, key = load_piece(name, seconds), jax.random.key(seed)
    recording, options = (piece.mixture, piece.sample_rate), SeparationSettings(**settings)
    found = separate(*recording, len(piece.instruments), settings=options, key=key)
    score = true_score(name, seconds)
    true = separate(*recording, notes=score, settings=options, key=key)
    begun = separate(*recording, notes=score, notes_are="start", settings=options, key=key)
    played = [notes[notes[:, 0] < seconds] for notes in played_notes(name).values()]
    scale = float(np.mean(true.loss))
    return {
        "piece": name,
        "instruments": piece.instruments,
        "oracle": scores(piece.stems, oracle_stems(piece.stems, piece.mixture, piece.sample_rate))["sdr"],
        "found": judged(found, piece.stems, played, scale),
        "true": judged(true, piece.stems, played, scale),
        "begun": judged(begun, piece.stems, played, scale),
    }


def judged(separation: Separation, stems, played, scale: float) -> dict[str, Any]:
    """Quality of a separation, and what it costs, in units of the mean loss at the true notes."""
    measures = sdr_sir_sar_gain(stems, separation.stems)
    order = np.asarray(measures.permutation)
    where = separation.tones, separation.times, played, order
    return {
        "sdr": np.asarray(measures.sdr).tolist(),
        "right": part_right(*where),
        "resting": sounding_in_rests(*where),
        "loss": float(np.mean(separation.loss)) / scale,
        **{part: cost(separation, part) for part in _PARTS},
    }


def cost(separation: Separation, part: str) -> float:
    """A part of the cost C, per frame, relative to its scale."""
    axis, number = LogAxis(), separation.dictionary.num_instruments
    tones = jax.tree.map(np.asarray, separation.tones)
    audible = tones.active & (tones.fundamental > 0)
    place = np.asarray(axis.to_bin(jnp.asarray(np.where(audible, tones.fundamental, 440.0))))
    slots = np.max(np.sum(audible[:, :, None] & (tones.instrument[:, :, None] == np.arange(number)), axis=1))
    tones = eqx.tree_at(lambda t: (t.fundamental, t.active), tones, (place, audible))
    tones = arrange(tones, number, max(1, int(slots)))
    only = VoiceModel(**{name: getattr(VoiceModel(), name) if name == part else 0.0 for name in _PARTS})
    voices = only.fit(tones, number, 1, axis, 1.0)
    alone = Hypotheses(tones, np.zeros(len(separation.times), np.float32))
    one = jax.tree.map(lambda x: x[:, None], alone)
    return best_path(voices, one.tones, one.loss).cost / len(separation.times)


HEADER = [
    "piece",
    "SDR found",
    "at true notes",
    "begun there",
    "oracle",
    "right % found",
    "true",
    "sounding in rests %",
]
HEADER += ["C found", "true", *(f"{part} found, true" for part in ("loss", *_PARTS))]


def row(run: dict[str, Any]) -> list[str]:
    """A piece as cells."""
    found, true = run["found"], run["true"]
    total = lambda side: sum(side[part] for part in ("loss", *_PARTS))
    return [
        run["piece"],
        f"{np.mean(found['sdr']):.1f}",
        f"{np.mean(true['sdr']):.1f}",
        f"{np.mean(run['begun']['sdr']):.1f}",
        f"{np.mean(run['oracle']):.1f}",
        *(f"{100 * side['right']:.0f}" for side in (found, true)),
        f"{100 * found['resting']:.0f}",
        *(f"{total(side):.2f}" for side in (found, true)),
        *(f"{found[part]:.2f}, {true[part]:.2f}" for part in ("loss", *_PARTS)),
    ]


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown of all pieces."""
    return markdown_table(HEADER, [row(run) for run in runs])

"""Losses that the pursuits reach, against those recorded of the published program on the same frames."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import Report, markdown_table, reference
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.search.hypotheses import deepen
from jaxsep.signal.axes import LinearAxis, LogAxis
from jaxsep.signal.log_frequency import log_frequency_spectrum
from jaxsep.signal.peaks import PeakPursuit

SETTINGS = ("trained_tone1", "trained_tone2", "random4_tone1", "random4_tone2")
PRECISIONS = ("float32", "float64")
#: Axis of the recorded linear spectra: 48 kHz, frames of 12 288 samples, without the Nyquist bin.
LINEAR_AXIS = LinearAxis(6144, 48_000 / 12_288)
#: A loss above the recorded one by less than this factor counts as equal.
EQUAL = 1.02
#: A relative difference that rounding explains.
ROUNDING = 1e-5


def main(quick: bool = False) -> None:
    """Losses of the tone pursuit and residuals of the peak pursuit, against recorded ones."""
    report = Report("fidelity", quick=quick)
    step = 16 if quick else 1
    settings = SETTINGS[:1] if quick else SETTINGS
    tones = [tone_losses(setting, dtype, step) for setting in settings for dtype in PRECISIONS]
    title = f"Tone pursuit, {tones[0]['frames']} frames: lifted loss"
    report.part("tones", tones, title, tone_table(tones))
    peaks = [peak_residuals(dtype, step) for dtype in PRECISIONS]
    title = f"Peak pursuit, full, {peaks[0]['frames']} frames: norm of the residual / norm of the spectrum"
    report.part("peaks", peaks, title, peak_table(peaks))
    report.end()


@eqx.filter_jit
def pursue(pursuit, spectra, dictionary):
    """Pursuit of all frames, compiled once for each shape."""
    return pursuit(spectra, dictionary)


def tone_losses(setting: str, dtype: str, step: int = 1) -> dict[str, Any]:
    """Mean loss of the default tone pursuit in one of the recorded settings."""
    recorded = reference("tone_frames.npz")
    losses = recorded[f"{setting}_loss"][::step]
    with jax.enable_x64(dtype == "float64"):
        spectra = jnp.asarray(recorded["log_spectra"][::step], dtype)
        dictionary = jnp.asarray(recorded[f"{setting}_dictionary"], dtype)
        result = pursue(TonePursuit(tones_per_instrument=int(setting[-1])), spectra, dictionary)
        ours, steps = np.asarray(result.loss), np.asarray(result.steps)
        pursuit = TonePursuit(tones_per_instrument=int(setting[-1]))
        searched = deepen(pursuit, np.asarray(spectra), dictionary).loss
    return {
        "setting": setting,
        "dtype": dtype,
        "frames": losses.size,
        "recorded_loss": float(losses.mean()),
        "loss": float(ours.mean()),
        "searched_loss": float(searched.mean()),
        "worse_frames": int(np.sum(searched > ours * (1 + ROUNDING))),
        "equal_fraction": float(np.mean(ours <= EQUAL * losses)),
        "largest_ratio": float(np.max(ours / losses)),
        "recorded_evaluations": float(recorded[f"{setting}_evaluations"][::step].mean()),
        "evaluations": float(steps.mean()),
    }


def peak_residuals(dtype: str, step: int = 1) -> dict[str, Any]:
    """Relative residual of the full peak pursuit, and the distance of the log-frequency spectra it makes."""
    recorded = reference("peak_frames.npz")
    residuals, expected = recorded["relative_residual"][::step], recorded["log_spectra"][::step]
    with jax.enable_x64(dtype == "float64"):
        magnitudes = jnp.asarray(recorded["linear_spectra"][::step], dtype)
        result = PeakPursuit.full()(magnitudes)
        spectra = jax.vmap(lambda peaks: log_frequency_spectrum(peaks, LINEAR_AXIS, LogAxis()))(result.peaks)
        ours = np.asarray(result.relative_residual)
        distance = np.linalg.norm(np.asarray(spectra) - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return {
        "dtype": dtype,
        "frames": residuals.size,
        "recorded_residual": float(residuals.mean()),
        "residual": float(ours.mean()),
        "lower_fraction": float(np.mean(ours <= residuals)),
        "log_spectrum_distance": float(distance.mean()),
    }


def tone_table(rows: list[dict[str, Any]]) -> str:
    """Markdown of `tone_losses`."""
    header = ["setting", "precision", "recorded", "jaxsep", f"within {EQUAL}×", "largest ratio"]
    header += ["evaluations recorded", "jaxsep", "searched", "against greedy", "worse frames"]
    cells = [
        [
            row["setting"],
            row["dtype"],
            f"{row['recorded_loss']:.5f}",
            f"{row['loss']:.5f}",
            f"{row['equal_fraction']:.0%}",
            row["largest_ratio"],
            f"{row['recorded_evaluations']:.0f}",
            f"{row['evaluations']:.0f}",
            f"{row['searched_loss']:.5f}",
            f"{row['searched_loss'] / row['loss'] - 1:+.1%}",
            row["worse_frames"],
        ]
        for row in rows
    ]
    return markdown_table(header, cells)


def peak_table(rows: list[dict[str, Any]]) -> str:
    """Markdown of `peak_residuals`."""
    header = ["precision", "recorded", "jaxsep", "at or below recorded", "distance of log spectra"]
    cells = [
        [
            row["dtype"],
            f"{row['recorded_residual']:.4f}",
            f"{row['residual']:.4f}",
            f"{row['lower_fraction']:.0%}",
            f"{row['log_spectrum_distance']:.4f}",
        ]
        for row in rows
    ]
    return markdown_table(header, cells)

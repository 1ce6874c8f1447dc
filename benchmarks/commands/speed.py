"""CPU seconds per frame on one core, against the SciPy baseline on the same frames, with both losses."""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy import fft

from benchmarks import scipy_baseline as baseline
from benchmarks.commands.fidelity import LINEAR_AXIS, pursue
from benchmarks.common import Report, answer, call_worker, environment, markdown_table, measure, reference
from jaxsep.learning.learner import DictionaryLearner
from jaxsep.pursuit.refinement import LevenbergMarquardt
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.signal.axes import LogAxis
from jaxsep.signal.gaussians import SINUSOID_WIDTH
from jaxsep.signal.log_frequency import log_frequency_spectrogram
from jaxsep.signal.peaks import PeakPursuit
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.rendering import render
from jaxsep.tones.tones import Tones

SINGLE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
#: Recorded figures of the published program, in milliseconds per frame.
PUBLISHED = {
    "log-frequency spectrogram, full": "1200–1400 (680 with -O3 -march=native -ffast-math)",
    "tones, trained_tone1": "31–33",
    "dictionary learning, 4 candidates": "35–37",
}
#: A loss above another by less than this factor counts as equal.
EQUAL = 1.01
#: A deviation that float32 explains.
ROUNDING = 1e-4
DEVIATION = "largest deviation / peak"


class Run(NamedTuple):
    """One way to do a stage's work: a setting, what computes it, and the loss of what it computed."""

    setting: str
    compute: Callable[[], Any]
    loss: Callable[[Any], float]


def main(quick: bool = False) -> None:
    """CPU time per frame of every stage, against SciPy at equal loss, and the published program's."""
    result = call_worker("benchmarks.commands.speed", {"quick": quick}, SINGLE_THREAD)
    about = f"CPU time (process_time) on 1 core, 1 thread: {result['environment']['variables']}"
    report = Report("speed", quick=quick, about=about, worker=True, **result)
    print("ratio: SciPy / jaxsep. Published: recorded figure of the published program, milliseconds.")
    report.end(table(result["stages"]))


def measure_stages(quick: bool) -> dict[str, Any]:
    """All stages, in a process that has one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    step = 16 if quick else 1
    stages = [
        stft_stage(1.0 if quick else 5.0),
        *(rendering_stage(method, step) for method in ("windowed", "dense")),
        *spectrogram_stages(step),
        *(tone_stage(name, step) for name in ("trained_tone1", "trained_tone2")),
        *(tone_stage(name, step) for name in ("random4_tone1", "random4_tone2")),
        learning_stage(64 // step),
    ]
    return {"environment": environment(), "threads": 1, "stages": stages}


# ---- Comparison -------------------------------------------------------------------------------------------


def compare(
    name: str,
    quantity: str,
    shapes: str,
    num_frames: int,
    ours: Run,
    others: list[dict[str, Any]],
    *,
    negligible: float = 0.0,
    published_loss: float | None = None,
) -> dict[str, Any]:
    """Times jaxsep's run after compilation and sets it beside the baseline's runs, timed already.

    Losses up to `negligible` count as equal.
    """
    timing = measure(ours.compute, clock=time.process_time)
    loss = ours.loss(ours.compute())
    chosen = comparable(others, loss)
    return {
        "name": name,
        "quantity": quantity,
        "shapes": shapes,
        "first_call_seconds": timing.first,
        "seconds_per_frame": timing.minimum / num_frames,
        "median_seconds_per_frame": timing.median / num_frames,
        "loss": loss,
        "baseline": others,
        "compared_with": chosen,
        # The baseline runs once: its time is compared with the median.
        "ratio": chosen["seconds_per_frame"] * num_frames / timing.median,
        "at_equal_or_lower_loss": loss <= max(EQUAL * chosen["loss"], negligible),
        "published_loss": published_loss,
    }


def timed(runs: list[Run], num_frames: int) -> list[dict[str, Any]]:
    """CPU seconds per frame and loss of each run of the baseline, run once: nothing is compiled there."""

    def once(run):
        begin = time.process_time()
        result = run.compute()
        seconds = time.process_time() - begin
        return {"setting": run.setting, "seconds_per_frame": seconds / num_frames, "loss": run.loss(result)}

    return [once(run) for run in runs]


def comparable(runs: list[dict[str, Any]], loss: float) -> dict[str, Any]:
    """The fastest run that comes as near to the given loss as any that does not go below it."""
    above = [run["loss"] for run in runs if loss <= EQUAL * run["loss"]]
    reached = EQUAL * min(above, default=np.inf)
    return min((run for run in runs if run["loss"] <= reached), key=lambda run: run["seconds_per_frame"])


def table(stages: list[dict[str, Any]]) -> str:
    """Markdown of the stages; times in milliseconds per frame."""
    header = ["stage (frames)", "ms", "median", "first call s", "SciPy ms", "ratio", "loss", "SciPy loss"]
    header += ["SciPy setting", "loss is", "published ms", "published loss"]

    def row(stage):
        other = stage["compared_with"]
        return [
            f"{stage['name']} ({stage['shapes']})",
            1e3 * stage["seconds_per_frame"],
            1e3 * stage["median_seconds_per_frame"],
            f"{stage['first_call_seconds']:.1f}",
            1e3 * other["seconds_per_frame"],
            f"{stage['ratio']:.1f}×" + ("" if stage["at_equal_or_lower_loss"] else " (at a higher loss)"),
            f"{stage['loss']:.3g}",
            f"{other['loss']:.3g}",
            other["setting"],
            stage["quantity"],
            PUBLISHED.get(stage["name"], ""),
            "" if stage["published_loss"] is None else f"{stage['published_loss']:.3g}",
        ]

    return markdown_table(header, [row(stage) for stage in stages])


# ---- Stages -----------------------------------------------------------------------------------------------


def stft_stage(seconds: float) -> dict[str, Any]:
    """Analysis of noise at hop 512; the loss is the distance from NumPy in float64."""
    stft = GaussianSTFT(hop=512)
    samples = np.random.default_rng(0).standard_normal(round(48_000 * seconds)).astype(np.float32)
    exact = numpy_stft(samples.astype(float), stft.hop)
    deviation = lambda result: float(np.max(np.abs(np.asarray(result) - exact)) / np.max(np.abs(exact)))
    analyse, device = jax.jit(stft.analyse), jnp.asarray(samples)
    ours = Run("", lambda: analyse(device), deviation)
    num_frames, num_bins = exact.shape
    others = timed([Run("float32", lambda: numpy_stft(samples, stft.hop), deviation)], num_frames)
    shapes = f"{num_frames} × {num_bins}"
    return compare("STFT", DEVIATION, shapes, num_frames, ours, others, negligible=ROUNDING)


def numpy_stft(samples: np.ndarray, hop: int, window_std: int = 1024) -> np.ndarray:
    """Frames centred on multiples of the hop under a Gaussian window of sum 1, phase zero at their centre."""
    half = 6 * window_std
    window = np.exp(-0.5 * (np.arange(-half, half) / window_std) ** 2)
    window = (window / window.sum()).astype(samples.dtype)
    num_frames = 1 + -(-(samples.size - 1) // hop)
    padded = np.pad(samples, (half, half + num_frames * hop - samples.size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, 2 * half)[::hop][:num_frames]
    # Half a frame's shift brings the centre to the origin, which is where the phase counts from.
    return fft.rfft(fft.ifftshift(frames * window, axes=1))


def rendering_stage(method: str, step: int) -> dict[str, Any]:
    """Spectra of recorded tones; the loss is the distance from NumPy in float64."""
    recorded = reference("tone_frames.npz")
    slots = recorded["trained_tone2_tones"][::step]
    dictionary = recorded["trained_tone2_dictionary"]
    exact = numpy_rendering(slots, dictionary)
    deviation = lambda result: float(np.max(np.abs(np.asarray(result) - exact)) / np.max(exact))
    tones, rows = recorded_tones(slots), jnp.asarray(dictionary, jnp.float32)
    one = lambda tones: render(tones, rows[tones.instrument], LogAxis(), method=method)
    spectra = jax.jit(jax.vmap(one))
    ours = Run("", lambda: spectra(tones), deviation)
    others = timed([Run("float64", lambda: numpy_rendering(slots, dictionary), deviation)], len(slots))
    shapes = f"{len(slots)} × {slots.shape[1]} tones × {dictionary.shape[1]} harmonics"
    name = f"rendering, {method}"
    return compare(name, DEVIATION, shapes, len(slots), ours, others, negligible=ROUNDING)


def recorded_tones(slots: np.ndarray) -> Tones:
    """Tones recorded as rows (instrument, amplitude, position, width, inharmonicity), NaN where empty."""
    active = ~np.isnan(slots[..., 0])
    blank = np.array([0, 0, 0, SINUSOID_WIDTH, 0])
    instrument, *unknowns = np.moveaxis(np.where(active[..., None], slots, blank), -1, 0)
    unknowns = (jnp.asarray(x, jnp.float32) for x in unknowns)
    return Tones(*unknowns, jnp.asarray(instrument, jnp.int32), jnp.asarray(active))


def numpy_rendering(slots: np.ndarray, dictionary: np.ndarray) -> np.ndarray:
    """Spectra of recorded tones by the baseline."""

    def frame(rows):
        instrument, *unknowns = rows[~np.isnan(rows[:, 0])].T
        return baseline.render(baseline.Tones(*unknowns, instrument.astype(int)), dictionary)

    return np.stack([frame(rows) for rows in slots])


def spectrogram_stages(step: int) -> list[dict[str, Any]]:
    """Log-frequency spectrograms by peak pursuit of recorded linear spectra."""
    recorded = reference("peak_frames.npz")
    magnitudes = recorded["linear_spectra"][::step]
    device, num_frames = jnp.asarray(magnitudes), len(magnitudes)
    others = timed(baseline_spectrograms(magnitudes.astype(float)), num_frames)
    published = float(recorded["relative_residual"][::step].mean())

    def stage(name, pursuit):
        ours = Run(
            "",
            lambda: log_frequency_spectrogram(device, LINEAR_AXIS, LogAxis(), pursuit),
            lambda _: float(jnp.mean(pursuit(device).relative_residual)),
        )
        shapes, name = f"{num_frames} × {device.shape[1]}", f"log-frequency spectrogram, {name}"
        return compare(name, "residual / norm", shapes, num_frames, ours, others, published_loss=published)

    return [stage("default", PeakPursuit()), stage("full", PeakPursuit.full())]


def baseline_spectrograms(magnitudes: np.ndarray) -> list[Run]:
    """The baseline's peak pursuit with several numbers of rounds and tolerances."""
    norms = np.linalg.norm(magnitudes, axis=1)

    def residual(results):
        fits = np.stack([baseline.render_peaks(peaks, magnitudes.shape[1]) for peaks, _ in results])
        return float(np.mean(np.linalg.norm(fits - magnitudes, axis=1) / norms))

    def peaks_and_spectra(rounds, tolerance):
        found = (baseline.peak_pursuit(y, rounds=rounds, tolerance=tolerance) for y in magnitudes)
        return [(peaks, baseline.log_frequency_spectrum(peaks)) for peaks in found]

    settings = (1, 1.0), (1, 0.1), (1, 1e-3), (2, 1e-2), (3, 1e-2), (3, 1e-4), (20, 1e-4), (20, 1e-6)
    return [
        Run(f"{rounds} rounds, ftol {ftol:g}", partial(peaks_and_spectra, rounds, ftol), residual)
        for rounds, ftol in settings
    ]


def tone_stage(setting: str, step: int) -> dict[str, Any]:
    """Greedy pursuit of recorded log-frequency spectra with a recorded dictionary."""
    recorded = reference("tone_frames.npz")
    spectra, dictionary = recorded["log_spectra"][::step], recorded[f"{setting}_dictionary"]
    device, rows = jnp.asarray(spectra, jnp.float32), jnp.asarray(dictionary, jnp.float32)
    pursuit = TonePursuit(tones_per_instrument=int(setting[-1]))
    ours = Run("", lambda: pursue(pursuit, device, rows), lambda result: float(jnp.mean(result.loss)))
    num_frames, num_bins = spectra.shape
    others = timed(baseline_pursuits(spectra, dictionary, pursuit.tones_per_instrument), num_frames)
    published = float(recorded[f"{setting}_loss"][::step].mean())
    name, shapes = f"tones, {setting}", f"{num_frames} × {num_bins}, {len(dictionary)} instruments"
    return compare(name, "mean lifted loss", shapes, num_frames, ours, others, published_loss=published)


def baseline_pursuits(spectra: np.ndarray, dictionary: np.ndarray, tones_per_instrument: int) -> list[Run]:
    """The baseline's pursuit at several tolerances, with the gradient by the dictionary at its tones."""

    def losses(tolerance):
        limits = {"tones_per_instrument": tones_per_instrument, "tolerance": tolerance}
        found = []
        for spectrum in spectra.astype(float):
            tones, _ = baseline.tone_pursuit(spectrum, dictionary, **limits)
            # With jaxsep's δ, 1e-7; that of the pursuit's own loss is relative to the frame's peak.
            found.append(baseline.lifted_loss_and_gradient(tones, dictionary, spectrum)[0])
        return found

    mean = lambda found: float(np.mean(found))
    return [Run(f"ftol {ftol:g}", partial(losses, ftol), mean) for ftol in (1e-2, 1e-3, 1e-5, 1e-7)]


def learning_stage(num_frames: int) -> dict[str, Any]:
    """A step of dictionary learning from four random candidates, per frame of its minibatch."""
    recorded = reference("k487_08_recorder_violin_6.4s.npz")
    spectra = recorded["log_spectra"] / recorded["log_spectra"].max()
    spectra = spectra[np.linspace(0, len(spectra) - 1, num_frames).round().astype(int)]
    initial = recorded["initial_0"]
    # The learner's pursuit need not be exact: separation, too, gives it this tolerance.
    learner = DictionaryLearner(TonePursuit(solver=LevenbergMarquardt(1e-4)), batch=num_frames)
    state = learner.start(key=jax.random.key(0))
    state = eqx.tree_at(lambda s: s.harmonics, state, jnp.asarray(initial, jnp.float32))
    device, rate = jnp.asarray(spectra), jnp.float32(learner.learning_rate)
    ours = Run("", lambda: learner.step(state, device, rate), lambda result: float(result[1]))
    # Pursuit and gradient of each frame with the same dictionary, so that the losses can be compared; the
    # update of 100 numbers that would follow costs nothing beside them.
    others = timed(baseline_pursuits(spectra, initial, 1), num_frames)
    shapes = f"{num_frames} × {spectra.shape[1]}, {learner.descents} descents"
    name = f"dictionary learning, {len(initial)} candidates"
    return compare(name, "mean lifted loss", shapes, num_frames, ours, others)


if __name__ == "__main__":
    answer(measure_stages)

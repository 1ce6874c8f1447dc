"""Separations and evaluations as documents, which are values for JSON."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import jaxsep
from jaxsep.metrics.bss_eval import sdr_sir_sar_filter, sdr_sir_sar_gain
from jaxsep.metrics.si_sdr import si_sdr, si_sdr_improvement
from jaxsep.metrics.snr import frame_snr, snr
from jaxsep.neural.settings import NeuralSettings
from jaxsep.separation.result import Separation
from jaxsep.separation.settings import SeparationSettings

__all__ = ["evaluation_document", "paired_figures", "separation_document", "versions"]

_PACKAGES = ("jax", "jaxlib", "numpy")


def separation_document(
    separation: Separation,
    *,
    settings: SeparationSettings | NeuralSettings | None,
    seed: int | None,
    source: dict[str, Any],
    shape: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """Everything that tells how a separation came about, as values for JSON.

    Arguments:
        separation: what `separate` returned.
        settings: the options it was called with, if they are known.
        seed: of its key, if it is known.
        source: what is known of the recording: its file name, and of a given dictionary.
        shape: of all stems, where those of the separation are a part.

    Returns: the document. `restart_losses` are the mean lifted losses under each learned dictionary relative
    to those without tones, the chosen one first; there are none with a given dictionary. `cost_trace` are the
    mean costs of a frame in the course of the search (`VoiceModel`), for spectra with a peak of 1, and
    `mean_loss` is the mean lifted loss at the end. `sure_frames` is the part of the frames whose confidence
    is at least 1; there is none after greedy search.
    """
    shape = shape or separation.stems.shape
    return {
        "format": "jaxsep separation",
        "version": 1,
        "input": {
            **source,
            "sample_rate": separation.sample_rate,
            "channels": 1 if len(shape) == 2 else shape[1],
            "samples": shape[-1],
            "duration_s": shape[-1] / separation.sample_rate,
        },
        "num_instruments": shape[0],
        "names": list(separation.names),
        "seed": seed,
        "settings": {} if settings is None else dataclasses.asdict(settings),
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "versions": versions(),
        "seconds": {name: round(seconds, 3) for name, seconds in separation.seconds.items()},
        "frame_spacing_s": float(separation.times[1] - separation.times[0]),
        "num_tones": int(np.count_nonzero(separation.tones.active)),
        "restart_losses": [_finite(loss) for loss in separation.restart_losses],
        "cost_trace": [_finite(cost) for cost in separation.cost_trace],
        "mean_loss": _finite(np.mean(separation.loss)),
        "sure_frames": _part_sure(separation.confidence),
    }


def _finite(value):
    """A number, or None for one that JSON has not."""
    return float(value) if np.isfinite(value) else None


def _part_sure(confidence):
    return None if np.all(np.isnan(confidence)) else float(np.mean(confidence >= 1))


def versions() -> dict[str, str]:
    """Versions of jaxsep, Python and the packages that decide a result."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"jaxsep": jaxsep.__version__, "python": platform.python_version(), **packages}


def evaluation_document(
    references: Float[np.ndarray, "instruments samples"],
    estimates: Float[np.ndarray, "instruments samples"],
    reference_names: Sequence[str],
    estimate_names: Sequence[str],
    *,
    sample_rate: int,
    mixture: Float[np.ndarray, " samples"] | None = None,
) -> dict[str, Any]:
    """Every measure of the estimates, in dB and computed in float64, as values for JSON.

    Arguments:
        references: true sources.
        estimates: estimated ones, in any order.
        reference_names, estimate_names: what the document calls them.
        sample_rate: in Hz.
        mixture: what was separated; the sum of the references by default.

    Returns: for `gain`, the measure that forgives a constant gain, and `filter_512`, the one that forgives a
    filter of 512 taps, the `permutation` (the index of the estimate that belongs to each reference) and SDR,
    SIR and SAR in the order of the references. Then, for the pairs of `gain`, `snr`, the SDR that forgives
    nothing; `snr_frames`, its median over frames of one second in which nothing is silent; `si_sdr`; and
    `si_sdr_improvement`, by how much that exceeds the mixture's. Figures of a silent estimate, and those that
    are not finite, are None.
    """
    silent = ~np.any(estimates, axis=1)
    mixture = np.sum(references, axis=0) if mixture is None else mixture
    # Figures of an estimate do not depend on the others: one that has none is like all references alike.
    sounding = np.where(silent[:, None], np.sum(references, axis=0), estimates)
    with jax.enable_x64(True):
        signals = [jnp.asarray(np.asarray(x, np.float64)) for x in (references, sounding)]
        gain = sdr_sir_sar_gain(*signals)
        filtered = sdr_sir_sar_filter(*signals, filter_length=512)
    matched = np.asarray(gain.permutation)
    pairs = paired_figures(references, estimates[matched], mixture, sample_rate)
    return {
        "format": "jaxsep evaluation",
        "version": 1,
        "references": list(reference_names),
        "estimates": list(estimate_names),
        "samples": references.shape[1],
        "gain": _scores(gain, silent),
        "filter_512": _scores(filtered, silent),
        **pairs,
        "versions": versions(),
    }


def paired_figures(
    references: Float[np.ndarray, "instruments samples"],
    estimates: Float[np.ndarray, "instruments samples"],
    mixture: Float[np.ndarray, " samples"],
    sample_rate: int,
) -> dict[str, list[float | None]]:
    """The measures of the literature that are of one stem alone, in dB and computed in float64.

    Arguments:
        references: true sources.
        estimates: the estimate of each.
        mixture: what was separated.
        sample_rate: in Hz.

    Returns: `snr`, `snr_frames`, `si_sdr` and `si_sdr_improvement` as in `evaluation_document`.
    """
    silent = ~np.any(estimates, axis=1)
    with jax.enable_x64(True):
        truth, found, mixed = (
            jnp.asarray(np.asarray(x, np.float64)) for x in (references, estimates, mixture)
        )
        pairs = list(zip(truth, found, strict=True))
        figures = {
            "snr": [snr(*pair) for pair in pairs],
            "snr_frames": jnp.nanmedian(frame_snr(truth, found, frame_length=sample_rate), axis=1),
            "si_sdr": [si_sdr(*pair) for pair in pairs],
            "si_sdr_improvement": [si_sdr_improvement(*pair, mixed) for pair in pairs],
        }
        return {name: _figures(values, range(len(pairs)), silent) for name, values in figures.items()}


def _scores(scores, silent):
    figures = {
        name: _figures(getattr(scores, name), scores.permutation, silent) for name in ("sdr", "sir", "sar")
    }
    return {"permutation": scores.permutation.tolist(), **figures}


def _figures(values, permutation, silent):
    return [None if silent[n] else _finite(x) for x, n in zip(values, np.asarray(permutation), strict=True)]

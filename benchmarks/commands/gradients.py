"""Gradients through the solvers: time and memory of the implicit and of the unrolled adjoint."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from benchmarks.common import MEBIBYTE, Report, markdown_table, measure, temporary
from benchmarks.workloads import parts, random_tones
from jaxsep.blasso.certificate import alpha_max
from jaxsep.blasso.lasso import BeurlingLasso
from jaxsep.blasso.patterns import Patterns
from jaxsep.blasso.projection import Projection
from jaxsep.numerics.adjoint import Adjoint, Implicit, Unrolled
from jaxsep.pursuit.loss import power
from jaxsep.pursuit.refinement import LevenbergMarquardt
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.signal.axes import LogAxis
from jaxsep.tones.dictionary import NUM_HARMONICS


def main(quick: bool = False) -> None:
    """Time and memory of a gradient by spectra and dictionary, implicit against unrolled."""
    frames, counts, repeats = (4, (2,), 1) if quick else (64, (5, 10, 20, 40), 5)
    dictionary = instruments()
    spectra = noisy(parts(random_tones(frames, 2, key=jax.random.key(6)), dictionary).sum(axis=1))
    about = f"{frames} frames × {spectra.shape[1]} bins, 2 instruments, float32"
    report = Report("gradients", quick=quick, about=about, shape=list(spectra.shape))
    for name, method in (("pursuit", pursuit), ("Beurling LASSO", lasso)):
        found = compare(name, method, counts, spectra, dictionary, repeats)
        report.part(name, found, name, table(found))
    report.end()


def instruments() -> Float[Array, "instruments harmonics"]:
    """Two instruments with many harmonics: those of a pure tone leave its inharmonicity undetermined."""
    heights = np.random.default_rng(0).uniform(0.1, 1, (2, NUM_HARMONICS))
    rows = heights / np.arange(1, NUM_HARMONICS + 1)
    return jnp.asarray(rows / rows.max(axis=1, keepdims=True), jnp.float32)


def noisy(spectra: Float[Array, "frames bins"]) -> Float[Array, "frames bins"]:
    """Spectra with a tenth of noise, and a peak of 1."""
    noise = np.random.default_rng(0).standard_normal(spectra.shape)
    spectra = jnp.abs(spectra * (1 + 0.1 * jnp.asarray(noise, spectra.dtype)))
    return spectra / jnp.max(spectra)


# ---- Methods: a number that depends on everything that is found --------------------------------------------


def pursuit(adjoint: Adjoint, spectra: Array, dictionary: Array) -> Float[Array, ""]:
    """Of the tones that the pursuit finds."""
    solver = LevenbergMarquardt(adjoint=adjoint)
    tones = TonePursuit(solver=solver)(spectra, dictionary).tones
    return jnp.mean(tones.amplitude * jnp.sin(tones.fundamental) + tones.width)


def lasso(adjoint: Adjoint, spectra: Array, dictionary: Array) -> Float[Array, ""]:
    """Of the sources and measures that the Beurling LASSO finds, for lifted spectra as in separation."""
    patterns = Patterns.from_dictionary(dictionary, LogAxis(), lift=0.5)
    signals = power(spectra, 0.5)
    alpha = 0.3 * jax.lax.map(lambda b: alpha_max(patterns, b), jax.lax.stop_gradient(signals))
    found = BeurlingLasso(Projection(adjoint=adjoint), proximal_steps=0)(patterns, signals, alpha)
    return jnp.mean(found.sources**2) + jnp.mean(found.spikes.amplitude * jnp.sin(found.spikes.position))


# ---- Comparison -------------------------------------------------------------------------------------------


def compare(
    name: str,
    method: Callable[[Adjoint, Array, Array], Array],
    counts: Sequence[int],
    spectra: Array,
    dictionary: Array,
    repeats: int,
) -> list[dict[str, Any]]:
    """The value alone, its implicit gradient, and the gradient by unrolling each number of steps."""
    value = lambda adjoint: lambda *arguments: method(adjoint, *arguments)
    gradient = lambda adjoint: jax.value_and_grad(value(adjoint), argnums=(0, 1))
    runs = [("value alone", value(Implicit())), ("implicit", gradient(Implicit()))]
    runs += [(f"unrolled, {count} steps", gradient(Unrolled(count))) for count in counts]
    results, exact = [], None
    for setting, function in runs:
        compiled = jax.jit(function).lower(spectra, dictionary).compile()
        timing = measure(lambda compiled=compiled: compiled(spectra, dictionary), repeats=repeats)
        found = compiled(spectra, dictionary)
        slopes = None if setting == "value alone" else found[1]
        exact = slopes if setting == "implicit" else exact
        results.append(
            {
                "method": name,
                "setting": setting,
                "seconds": timing.minimum,
                "median_seconds": timing.median,
                "temporary_bytes": temporary(compiled),
                "deviation": None if slopes is None else deviation(slopes[0], exact[0]),
            }
        )
    return results


def deviation(actual: Float[Array, "frames bins"], expected: Float[Array, "frames bins"]) -> float:
    """Median over the frames of the distance relative to the norm."""
    norm = jnp.linalg.norm(expected, axis=1)
    distance = jnp.linalg.norm(actual - expected, axis=1)
    return float(jnp.median(distance / jnp.where(norm > 0, norm, 1)))


def table(results: list[dict[str, Any]]) -> str:
    """Markdown of one method; the deviation is that of the gradient by the spectra."""
    alone = results[0]["seconds"]

    def row(result):
        size = result["temporary_bytes"]
        return [
            f"{result['method']}, {result['setting']}",
            1e3 * result["seconds"],
            1e3 * result["median_seconds"],
            f"{result['seconds'] / alone:.2f}×",
            "" if size is None else f"{size / MEBIBYTE:.1f}",
            "" if result["deviation"] is None else f"{result['deviation']:.1e}",
        ]

    header = ["what", "ms", "median", "of the value alone", "temporaries MiB", "gradient off by"]
    return markdown_table(header, [row(result) for result in results])

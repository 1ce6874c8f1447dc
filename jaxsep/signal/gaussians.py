"""Gaussians on bins, the shape of every partial and peak: near each one on CPUs, in all bins elsewhere.

Additions that meet in one bin are slow on accelerators, and happen there in any order: no two results would
be equal. On a CPU the bins near a Gaussian are a fraction of the work.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, PyTree

from jaxsep.numerics.dot import dot

__all__ = [
    "SINUSOID_WIDTH",
    "Dense",
    "RenderMethod",
    "Windowed",
    "gaussian",
    "on_bins",
    "sum_gaussians",
    "sum_gaussians_at",
    "width_bounds",
]

#: Standard deviation, in bins, of a stationary sinusoid's spectrum under the Gaussian window cut at ±6ζ.
SINUSOID_WIDTH = 6 / math.pi

RenderMethod = Literal["auto", "windowed", "dense"]


def width_bounds() -> tuple[float, float]:
    """Smallest and largest width of a partial, in bins: 0.8 and 1.5 times a sinusoid's (P1)."""
    return 0.8 * SINUSOID_WIDTH, 1.5 * SINUSOID_WIDTH


#: Half the number of bins in which a Gaussian is evaluated: six standard deviations of the widest one.
_REACH = math.ceil(6 * width_bounds()[1])


def gaussian(distance: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`exp(-d²/2)` of distances in standard deviations."""
    return jnp.exp(-0.5 * distance**2)


class Windowed(eqx.Module):
    """Bins of which each Gaussian sees a window of ±6 of the largest standard deviations around its own."""

    num_bins: int = eqx.field(static=True)

    def offsets(self, dtype) -> Float[Array, " window"]:
        """Distances of the bins of a window from its middle."""
        return jnp.arange(-_REACH, _REACH + 1, dtype=dtype)

    def distances(
        self, position: Float[Array, "*gaussians"]
    ) -> tuple[Float[Array, "*gaussians window"], Int[Array, "*gaussians"]]:
        """Distances of the bins near each position from it, and the nearest bin."""
        nearest = jnp.round(jax.lax.stop_gradient(position)).astype(jnp.int32)
        return (nearest - position)[..., None] + self.offsets(position.dtype), nearest

    def add(
        self, values: Float[Array, "*rows gaussians window"], nearest: Int[Array, "*rows gaussians"]
    ) -> Float[Array, "*rows bins"]:
        """Sum over the last axis but one; what falls outside the bins is dropped."""
        *rows, size, window = values.shape
        # A margin of one window on each side takes up what falls outside, so that no index needs a check.
        start = jnp.clip(nearest + window - window // 2, 0, self.num_bins + window).reshape(-1)
        length, num_rows = self.num_bins + 2 * window, math.prod(rows)
        if num_rows > 1:
            start = start + jnp.repeat(jnp.arange(num_rows) * length, size)
        padded = jax.lax.scatter_add(
            jnp.zeros(num_rows * length, values.dtype),
            start[:, None],
            values.reshape(-1, window),
            jax.lax.ScatterDimensionNumbers(
                update_window_dims=(1,), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
            ),
            mode="promise_in_bounds",
        )
        return padded.reshape(*rows, length)[..., window : window + self.num_bins]

    def near(
        self, values: Num[Array, " bins"], nearest: Int[Array, " gaussians"]
    ) -> Num[Array, "gaussians window"]:
        """The values around each of the given bins, zero outside: the adjoint of `add`."""
        length = 2 * _REACH + 1
        start = jnp.clip(nearest + length - length // 2, 0, self.num_bins + length)
        padded = jnp.pad(values, length)
        return jax.vmap(lambda s: jax.lax.dynamic_slice(padded, (s,), (length,)))(start)


class Dense(eqx.Module):
    """Bins of which each Gaussian sees all; in the place of `Windowed`."""

    num_bins: int = eqx.field(static=True)

    def distances(self, position: Float[Array, "*gaussians"]) -> tuple[Float[Array, "*gaussians bins"], None]:
        """Distances of all bins from each position."""
        return jnp.arange(self.num_bins, dtype=position.dtype) - position[..., None], None

    def add(self, values: Float[Array, "*rows gaussians bins"], nearest: None) -> Float[Array, "*rows bins"]:
        """Sum over the last axis but one."""
        del nearest
        return jnp.sum(values, axis=-2)


def on_bins(
    function: Callable[..., PyTree], num_bins: int, *arguments: PyTree, method: RenderMethod = "auto"
) -> PyTree:
    """`function(bins, *arguments)` with the bins, `Windowed` or `Dense`, that suit the platform.

    Raises: `ValueError` for a method that is none.
    """
    kinds = {"windowed": Windowed(num_bins), "dense": Dense(num_bins)}
    if method in kinds:
        return function(kinds[method], *arguments)
    if method != "auto":
        raise ValueError(f"method: expected 'auto', 'windowed' or 'dense', got {method!r}")
    cpu, default = (partial(function, bins) for bins in kinds.values())
    return jax.lax.platform_dependent(*arguments, cpu=cpu, default=default)


def sum_gaussians(
    height: Float[Array, "*rows gaussians"],
    position: Float[Array, "*rows gaussians"],
    width: Float[Array, "*rows gaussians"],
    num_bins: int,
    *,
    method: RenderMethod = "auto",
) -> Float[Array, "*rows bins"]:
    """`Σ_k height_k exp(-(f - position_k)² / (2 width_k²))` in every bin f.

    Arguments:
        height: of each Gaussian; the last axis is summed over.
        position: in bins.
        width: standard deviations in bins, at most the largest of `width_bounds` where windows are used.
        num_bins: how many.
        method: `"windowed"`, `"dense"`, or `"auto"` for what suits the platform; they agree to 1e-8 of the
            largest height.
    """

    def add(bins, height, position, width):
        distance, nearest = bins.distances(position)
        return bins.add(height[..., None] * gaussian(distance / width[..., None]), nearest)

    return on_bins(add, num_bins, height, position, width, method=method)


def sum_gaussians_at(
    points: Float[Array, " points"],
    height: Float[Array, "*rows gaussians"],
    position: Float[Array, " gaussians"],
    width: Float[Array, " gaussians"],
) -> Float[Array, "*rows points"]:
    """As `sum_gaussians`, at any points instead of bins, of Gaussians that all rows share."""
    shapes = gaussian((points - position[:, None]) / width[:, None])
    return dot(height, shapes)

"""Gaussians on bins, the shape of every partial and peak."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["SINUSOID_WIDTH", "add_windows", "width_bounds", "window_offsets"]

#: Standard deviation, in bins, of a stationary sinusoid's spectrum under the Gaussian window cut at ±6ζ.
SINUSOID_WIDTH = 6 / 3.141592653589793


def width_bounds() -> tuple[float, float]:
    """Smallest and largest width of a partial, in bins: 0.8 and 1.5 times a sinusoid's (P1)."""
    return 0.8 * SINUSOID_WIDTH, 1.5 * SINUSOID_WIDTH


#: Half the number of bins in which a partial is evaluated: six standard deviations of the widest one.
_REACH = math.ceil(6 * width_bounds()[1])


def window_offsets(dtype) -> Float[Array, " window"]:
    """Offsets, in bins, of the window of a partial from its nearest bin."""
    return jnp.arange(-_REACH, _REACH + 1, dtype=dtype)


def add_windows(
    values: Float[Array, "partials window"],
    nearest: Int[Array, " partials"],
    num_bins: int,
    row: Int[Array, " partials"] | None = None,
    num_rows: int = 1,
) -> Float[Array, "rows bins"]:
    """Adds windows around the bins `nearest` of the given rows; what falls outside the bins is dropped."""
    window = values.shape[-1]
    # A margin of one window on each side takes up what falls outside, so that no index needs a check.
    start = jnp.clip(nearest + window - window // 2, 0, num_bins + window)
    length = num_bins + 2 * window
    if row is not None:
        start = start + row * length
    padded = jax.lax.scatter_add(
        jnp.zeros(num_rows * length, values.dtype),
        start[:, None],
        values,
        jax.lax.ScatterDimensionNumbers(
            update_window_dims=(1,), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
        ),
        mode="promise_in_bounds",
    )
    return padded.reshape(num_rows, length)[:, window : window + num_bins]

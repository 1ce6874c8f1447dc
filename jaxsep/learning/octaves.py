"""Instruments that were learned an octave or a twelfth too low."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

__all__ = ["raise_octaves"]

#: Part of an instrument's energy up to which the harmonics between the multiples of one are another's.
_NOTHING = 0.04


@jax.jit
def raise_octaves(
    harmonics: Float[Array, "instruments harmonics"],
    most: float | Float[Array, " instruments"] = math.inf,
) -> tuple[Float[Array, "instruments harmonics"], Int[Array, " instruments"]]:
    """Rows in which no instrument sounds at every second or third harmonic alone, and its new fundamental.

    Such an instrument is one that plays an octave or a twelfth higher, with harmonics to spare for what other
    instruments play: its spectra can be explained even better, at fundamentals that nobody played. P1 leaves
    it there.

    Arguments:
        harmonics: relative amplitudes, at least 0.
        most: the largest factor by which the fundamentals of an instrument may rise.

    Returns: the rows, zero beyond the harmonics that were given, and the factor from the old fundamental to
    the new one: 1, 2, 3, 4, 6 or 12.

    Example:
        >>> rows, factor = raise_octaves(jnp.array([[0.02, 1.0, 0.01, 0.5], [1.0, 0.5, 0.2, 0.1]]))
        >>> print(rows[0].round(2), factor)
        [1.  0.5 0.  0. ] [2 1]
    """
    size = harmonics.shape[1]
    factor = jnp.ones(harmonics.shape[0], jnp.int32)
    for multiple in (2, 2, 3):
        number = np.arange(1, size + 1)
        energy = harmonics**2
        between = jnp.sum(jnp.where(number % multiple != 0, energy, 0), axis=1)
        low = (between < _NOTHING * jnp.sum(energy, axis=1)) & (multiple * factor <= most)
        place = multiple * number - 1
        higher = jnp.where(place < size, harmonics[:, np.minimum(place, size - 1)], 0)
        harmonics = jnp.where(low[:, None], higher, harmonics)
        factor = jnp.where(low, multiple * factor, factor)
    return harmonics, factor

"""Tones: what every inference method finds in a frame."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsep.signal.gaussians import SINUSOID_WIDTH

__all__ = ["MAX_INHARMONICITY", "Tones"]


#: Largest inharmonicity b that the pursuit considers (P1).
MAX_INHARMONICITY = 2e-3


class Tones(eqx.Module):
    """The tones of one frame in a fixed number of slots (leading axes are frames).

    One active slot is the spectrum `amplitude · Σ_h D[instrument, h] · exp(-(f - f_h)² / (2 width²))`
    (P1, tone model). Inactive slots have amplitude 0.

    - `amplitude`: ≥ 0, in the units of the spectrum.
    - `fundamental`: position of the natural fundamental `f_0` on the axis in use, in bins.
    - `width`: standard deviation of each partial, in bins.
    - `inharmonicity`: b ≥ 0 of `f_h = f_0 · h · sqrt(1 + b h²)`.
    - `instrument`: row of the dictionary.
    - `active`: whether the slot holds a tone.

    Example:
        >>> tones = jaxsep.Tones(
        ...     *jnp.array([[1.0, 0.5], [400.0, 460.0], [1.91, 1.91], [0.0, 0.0]]),
        ...     instrument=jnp.array([0, 1]),
        ...     active=jnp.array([True, True]),
        ... )
        >>> tones.capacity, jaxsep.Tones.empty((100, 4)).capacity
        (2, 4)
    """

    amplitude: Float[Array, "*frames tones"]
    fundamental: Float[Array, "*frames tones"]
    width: Float[Array, "*frames tones"]
    inharmonicity: Float[Array, "*frames tones"]
    instrument: Int[Array, "*frames tones"]
    active: Bool[Array, "*frames tones"]

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return self.amplitude.shape[-1]

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype=jnp.float32) -> "Tones":
        """Slots without tones; `shape` ends with the capacity, e.g. `(frames, tones)`."""
        zero = jnp.zeros(shape, dtype)
        return cls(
            amplitude=zero,
            fundamental=zero,
            width=zero + SINUSOID_WIDTH,
            inharmonicity=zero,
            instrument=jnp.zeros(shape, jnp.int32),
            active=jnp.zeros(shape, bool),
        )

"""Tones: what every inference method finds in a frame, and the parameters that a solver may change."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsep.signal.axes import LinearAxis, LogAxis
from jaxsep.signal.gaussians import SINUSOID_WIDTH, width_bounds

__all__ = ["MAX_INHARMONICITY", "Polyphony", "Tones", "parameter_bounds", "parameters_of", "polyphony_of"]

#: Largest inharmonicity b that the pursuit considers (P1).
MAX_INHARMONICITY = 2e-3

#: How many tones an instrument may play at a time: one number for all, or one for each.
Polyphony = int | tuple[int, ...]


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
        >>> tones = jaxsep.Tones.plain(jnp.array([1.0, 0.5]), jnp.array([400.0, 460.0]), jnp.array([0, 1]))
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
    def plain(
        cls,
        amplitude: Float[Array, "*frames tones"],
        fundamental: Float[Array, "*frames tones"],
        instrument: Int[Array, "*frames tones"],
        active: Bool[Array, "*frames tones"] | None = None,
        *,
        width: float | Float[Array, "*frames tones"] = SINUSOID_WIDTH,
        inharmonicity: float | Float[Array, "*frames tones"] = 0.0,
    ) -> "Tones":
        """Tones that are harmonic, of sinusoids and all active, unless something else is said."""
        like = lambda x: jnp.full_like(fundamental, x)
        active = jnp.ones(fundamental.shape, bool) if active is None else active
        return cls(amplitude, fundamental, like(width), like(inharmonicity), instrument, active)

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype=jnp.float32) -> "Tones":
        """Slots without tones; `shape` ends with the capacity, e.g. `(frames, tones)`."""
        zero = jnp.zeros(shape, dtype)
        return cls.plain(zero, zero, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool))

    def in_hz(self, axis: LinearAxis | LogAxis, scale: float | Float[Array, ""] = 1.0) -> "Tones":
        """Fundamentals in Hz instead of bins of an axis, 0 in empty slots, and amplitudes times a scale."""
        return _in_hz(self, axis, jnp.asarray(scale, self.amplitude.dtype))

    def moved(
        self,
        parameters: Float[Array, "*frames tones parameters"],
        active: Bool[Array, "*frames tones"] | None = None,
    ) -> "Tones":
        """The same instruments with other parameters, in the order of `parameters_of`."""
        values = (parameters[..., k] for k in range(parameters.shape[-1]))
        return Tones(*values, self.instrument, self.active if active is None else active)


@eqx.filter_jit
def _in_hz(tones, axis, scale):
    # A tone that drifted far off the axis is silent, but its frequency may not overflow.
    position = jnp.clip(tones.fundamental, -axis.num_bins, 2 * axis.num_bins)
    hertz = jnp.where(tones.active, axis.to_hz(position), 0)
    return eqx.tree_at(lambda t: (t.amplitude, t.fundamental), tones, (scale * tones.amplitude, hertz))


def parameters_of(tones: Tones) -> Float[Array, "*frames tones parameters"]:
    """What a solver may change: amplitude, fundamental, width, inharmonicity."""
    return jnp.stack([tones.amplitude, tones.fundamental, tones.width, tones.inharmonicity], axis=-1)


def parameter_bounds(dtype) -> tuple[Float[Array, " parameters"], Float[Array, " parameters"]]:
    """Smallest and largest values of the parameters (P1)."""
    narrow, wide = width_bounds()
    infinity = float("inf")
    lower, upper = [0, -infinity, narrow, 0], [infinity, infinity, wide, MAX_INHARMONICITY]
    return jnp.array(lower, dtype), jnp.array(upper, dtype)


def polyphony_of(tones_per_instrument: Polyphony, num_instruments: int) -> tuple[int, ...]:
    """How many tones each instrument may play at a time.

    Raises: `ValueError` for another number of instruments.
    """
    if isinstance(tones_per_instrument, int):
        return (tones_per_instrument,) * num_instruments
    if len(tones_per_instrument) != num_instruments:
        raise ValueError(
            f"tones_per_instrument: expected {num_instruments} numbers, one for each instrument, got "
            f"{tones_per_instrument}"
        )
    return tuple(tones_per_instrument)

"""Frequency axes: the map between Hz and bins, and where the partials of a tone fall."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["LinearAxis", "LogAxis"]

#: Frequencies or positions; those on the host are computed there, for which nothing is compiled.
_Numbers = float | Float[np.ndarray | Array, "*shape"]


class LinearAxis(eqx.Module):
    """Equally spaced bins: bin `k` is at `k * resolution` Hz.

    A tone's fundamental is its natural fundamental `f_0` in bins; partial h is at
    `f_0 · h · sqrt(1 + b h²)` (P1, tone model).

    Arguments:
        num_bins: number of bins.
        resolution: their spacing in Hz (`sample_rate / n_fft` for an STFT).

    Example:
        >>> axis = jaxsep.LinearAxis(num_bins=6144, resolution=48_000 / 12_288)
        >>> print(axis.to_bin(jnp.array([440.0, 880.0])).round(2))
        [112.64 225.28]
    """

    num_bins: int = eqx.field(static=True)
    resolution: float = eqx.field(static=True)

    def __check_init__(self):
        if self.num_bins < 1 or not self.resolution > 0:
            raise ValueError(
                "LinearAxis: expected num_bins >= 1 and resolution > 0 Hz, "
                f"got num_bins={self.num_bins}, resolution={self.resolution}"
            )

    def to_bin(self, frequency: _Numbers) -> _Numbers:
        """Position in bins of a frequency in Hz."""
        return frequency / self.resolution

    def to_hz(self, position: _Numbers) -> _Numbers:
        """Frequency in Hz of a position in bins."""
        return position * self.resolution

    def partials(
        self, fundamental: Float[Array, ""], inharmonicity: Float[Array, ""], num_harmonics: int
    ) -> tuple[Float[Array, " harmonics"], Float[Array, " harmonics"], Float[Array, " harmonics"]]:
        """Positions of the partials, and their derivatives by fundamental and by inharmonicity."""
        h = _harmonic_numbers(num_harmonics, fundamental.dtype)
        stretch = jnp.sqrt(1 + inharmonicity * h**2)
        return fundamental * h * stretch, h * stretch, fundamental * h**3 / (2 * stretch)


class LogAxis(eqx.Module):
    """Logarithmically spaced bins: bin `k` is at `f_min · (f_max / f_min)^(k / num_bins)` Hz.

    Changing a tone's pitch shifts its pattern and leaves the shape alone: with
    `c = num_bins / ln(f_max / f_min)`, partial h is at `μ + c·(ln h + ½ ln(1 + b h²))` (P1, tone model).

    Arguments:
        num_bins: number of bins.
        f_min: frequency of bin 0 in Hz.
        f_max: frequency one bin past the last in Hz (ten octaves above by default, as in P1).

    Example:
        >>> axis = jaxsep.LogAxis()
        >>> print(axis.to_bin(jnp.array([20.0, 40.0, 80.0])).round(1))  # octaves
        [  0.  102.4 204.8]
    """

    num_bins: int = eqx.field(static=True, default=1024)
    f_min: float = eqx.field(static=True, default=20.0)
    f_max: float = eqx.field(static=True, default=20480.0)

    def __check_init__(self):
        if self.num_bins < 1 or not 0 < self.f_min < self.f_max:
            raise ValueError(
                "LogAxis: expected num_bins >= 1 and 0 < f_min < f_max, "
                f"got num_bins={self.num_bins}, f_min={self.f_min}, f_max={self.f_max}"
            )

    @property
    def bins_per_neper(self) -> float:
        """`c`: bins per factor e in frequency."""
        return self.num_bins / math.log(self.f_max / self.f_min)

    def to_bin(self, frequency: _Numbers) -> _Numbers:
        """Position in bins of a frequency in Hz (> 0)."""
        return self.bins_per_neper * _numpy_of(frequency).log(frequency / self.f_min)

    def to_hz(self, position: _Numbers) -> _Numbers:
        """Frequency in Hz of a position in bins."""
        return self.f_min * _numpy_of(position).exp(position / self.bins_per_neper)

    def partials(
        self, fundamental: Float[Array, ""], inharmonicity: Float[Array, ""], num_harmonics: int
    ) -> tuple[Float[Array, " harmonics"], Float[Array, " harmonics"], Float[Array, " harmonics"]]:
        """Positions of the partials, and their derivatives by fundamental and by inharmonicity."""
        h = _harmonic_numbers(num_harmonics, fundamental.dtype)
        c = self.bins_per_neper
        position = fundamental + c * (jnp.log(h) + 0.5 * jnp.log1p(inharmonicity * h**2))
        return position, jnp.ones_like(h), 0.5 * c * h**2 / (1 + inharmonicity * h**2)


def _numpy_of(numbers):
    return np if isinstance(numbers, float | np.ndarray) else jnp


def _harmonic_numbers(num_harmonics: int, dtype) -> Float[Array, " harmonics"]:
    return jnp.arange(1, num_harmonics + 1, dtype=dtype)

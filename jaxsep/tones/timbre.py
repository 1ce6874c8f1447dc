"""Harmonics that depend on the pitch."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxsep.tones.axes import LogAxis
from jaxsep.tones.tones import Tones

__all__ = ["Timbre"]

#: Pitches of `Timbre.finely`: over one in a semitone.
_MANY = 161


class Timbre(eqx.Module):
    """The harmonics of each instrument at pitches spread evenly over the axis, linear in between.

    Arguments:
        rows: relative amplitudes of the harmonics at each pitch; with one, the pitch does not matter.
        axis: from whose first to whose last bin the pitches go.

    Example:
        >>> rows = jnp.array([[[1.0, 0.2], [1.0, 0.8]]])  # an instrument that is brighter at higher pitches
        >>> values = (jnp.full(1, x) for x in (1.0, 511.5, 1.91, 0.0))  # a tone in the middle of the axis
        >>> tones = jaxsep.Tones(*values, instrument=jnp.zeros(1, int), active=jnp.ones(1, bool))
        >>> print(jaxsep.Timbre(rows, jaxsep.LogAxis()).of(tones))
        [[1.  0.5]]
    """

    rows: Float[Array, "instruments pitches harmonics"]
    axis: LogAxis

    @classmethod
    def constant(cls, harmonics: Float[Array, "instruments harmonics"], axis: LogAxis) -> "Timbre":
        """That of a dictionary."""
        return cls(jnp.asarray(harmonics)[:, None], axis)

    @eqx.filter_jit
    def weights(self, fundamental: Float[Array, "*tones"]) -> Float[Array, "*tones pitches"]:
        """Shares of the pitches in the harmonics of tones, whose fundamentals are in bins; they sum to 1."""
        last = self.rows.shape[1] - 1
        place = jnp.clip(fundamental / (self.axis.num_bins - 1), 0, 1) * last
        return jnp.maximum(1 - jnp.abs(place[..., None] - jnp.arange(last + 1)), 0)

    @eqx.filter_jit
    def finely(self) -> Float[Array, "instruments many_pitches harmonics"]:
        """Rows at so many pitches that those in between are like the nearest."""
        bins = jnp.linspace(0, self.axis.num_bins - 1, _MANY, dtype=self.rows.dtype)
        return jnp.einsum("mp,iph->imh", self.weights(bins), self.rows, precision="highest")

    @staticmethod
    def nearest(fundamental: Float[Array, "*tones"], axis: LogAxis) -> Int[Array, "*tones"]:
        """Which of the pitches of `finely` is nearest to each fundamental, in bins."""
        return jnp.round(jnp.clip(fundamental / (axis.num_bins - 1), 0, 1) * (_MANY - 1)).astype(jnp.int32)

    @eqx.filter_jit
    def of(self, tones: Tones) -> Float[Array, "*tones harmonics"]:
        """The harmonics of each tone."""
        weights = self.weights(jnp.asarray(tones.fundamental))[..., None]
        return jnp.sum(weights * self.rows[tones.instrument], axis=-2)

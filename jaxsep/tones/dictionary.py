"""Dictionaries: the relative amplitudes of the harmonics of each instrument."""

import json
import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxsep.files import replacing
from jaxsep.signal.axes import LogAxis
from jaxsep.tones.tones import Tones

__all__ = ["NUM_HARMONICS", "Dictionary", "Timbre", "random_instruments"]

#: Harmonics per instrument (P1).
NUM_HARMONICS = 25

_FORMAT = "jaxsep dictionary"
_VERSION = 1


class Dictionary(eqx.Module):
    """What a method knows of the instruments, independent of pitch and loudness (P1, tone model).

    `harmonics[i, h - 1]` is the relative amplitude of harmonic h of instrument i, in [0, 1].

    Example:
        >>> dictionary = jaxsep.Dictionary(jnp.array([[1.0, 0.5, 0.25], [1.0, 0.0, 0.5]]))
        >>> dictionary.save("instruments.npz")
        >>> jaxsep.Dictionary.load("instruments.npz").num_instruments
        2
    """

    harmonics: Float[Array, "instruments harmonics"]

    @property
    def num_instruments(self) -> int:
        """Number of instruments."""
        return self.harmonics.shape[0]

    def save(self, path: str | os.PathLike) -> None:
        """Writes an `.npz` file of a JSON header and the array; the file appears whole or not at all."""
        header = {"format": _FORMAT, "version": _VERSION, "arrays": ["harmonics"]}
        with replacing(path) as draft, draft.open("wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), harmonics=np.asarray(self.harmonics))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Dictionary":
        """Reads what `save` wrote, in float32.

        Raises: `ValueError` with one sentence if the file is missing, not a dictionary, of another
        version or shape, or holds values that are not in [0, 1].
        """
        path = Path(path)
        try:
            # Opened here, since NumPy leaves a file open that turns out to be no archive.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                header = json.loads(str(content["header"]))
                harmonics = content["harmonics"]
        except FileNotFoundError:
            raise ValueError(f"dictionary: there is no file {path}") from None
        except Exception:  # a damaged or hostile archive can raise nearly anything
            raise ValueError(f"dictionary: {path} is not a dictionary written by jaxsep") from None
        if not isinstance(header, dict) or header.get("format") != _FORMAT:
            raise ValueError(f"dictionary: {path} is not a dictionary written by jaxsep")
        if header.get("version") != _VERSION:
            raise ValueError(
                f"dictionary: expected version {_VERSION} in {path}, got {header.get('version')!r}"
            )
        _check(harmonics, path)
        return cls(jnp.asarray(harmonics, jnp.float32))


def _check(harmonics, path):
    if harmonics.ndim != 2 or 0 in harmonics.shape or harmonics.dtype.kind != "f":
        raise ValueError(
            f"dictionary: expected real harmonics [instruments, harmonics] in {path}, "
            f"got {harmonics.dtype} of shape {harmonics.shape}"
        )
    if not np.all((harmonics >= 0) & (harmonics <= 1)) or not np.all(harmonics.max(axis=1) > 0):
        raise ValueError(f"dictionary: expected values in [0, 1], some above 0 in each row, in {path}")


@eqx.filter_jit
def random_instruments(
    num_instruments: int, num_harmonics: int = NUM_HARMONICS, dtype=jnp.float32, *, key: PRNGKeyArray
) -> Float[Array, "instruments harmonics"]:
    """Random dictionary rows `h^-e · u_h`, divided by their largest entry (P1, dictionary learning).

    The decay e is Pareto distributed with shape ½, shifted to begin at 0, and u_h uniform on [0, 1].

    Example:
        >>> harmonics = jaxsep.random_instruments(2, key=jax.random.key(0))
        >>> harmonics.shape, round(float(harmonics.max()), 3)
        ((2, 25), 1.0)
    """
    decay_key, harmonic_key = jax.random.split(key)
    decay = jax.random.pareto(decay_key, 0.5, (num_instruments, 1), dtype) - 1
    number = jnp.arange(1, num_harmonics + 1, dtype=dtype)
    # A very steep decay would underflow; beyond 2^-100 it is a pure tone all the same.
    rows = number ** -jnp.minimum(decay, 100.0) * jax.random.uniform(
        harmonic_key, (num_instruments, num_harmonics), dtype
    )
    return rows / jnp.max(rows, axis=1, keepdims=True)


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

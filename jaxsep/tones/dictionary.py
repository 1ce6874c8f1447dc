"""Dictionaries: what each instrument sounds like, as the relative amplitudes of its harmonics."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxsep.files import replacing
from jaxsep.numerics.dot import dot
from jaxsep.signal.axes import LinearAxis, LogAxis
from jaxsep.tones.tones import Tones

__all__ = ["NUM_HARMONICS", "Dictionary", "harmonics_of", "random_instruments"]

#: Harmonics per instrument (P1).
NUM_HARMONICS = 25

_FORMAT = "jaxsep dictionary"
_VERSION = 2

#: The arrays of a file, and what they have at most along each axis: more is surely a mistake.
_LARGEST = {"harmonics": (1024, 1024), "by_pitch": (1024, 1024, 1024), "pitches": (1024,)}


class Dictionary(eqx.Module):
    """What a method knows of the instruments, independent of loudness and of when they play.

    In P1 harmonic h of instrument i has the relative amplitude `harmonics[i, h - 1]` at every pitch. Beyond
    that an instrument can sound different at different pitches, its *timbre*: then it has harmonics at each
    of several pitches, and those of a tone in between are interpolated linearly over the logarithm of its
    fundamental.

    Arguments:
        harmonics: in [0, 1], whatever the pitch.
        by_pitch: of each instrument at each pitch, at least 0; None where the pitch does not matter.
        pitches: fundamentals in Hz, rising, of at least two pitches; below the first and above the last the
            harmonics stay as they are there.

    Raises: `ValueError` for shapes that do not belong together.

    Example:
        >>> dictionary = jaxsep.Dictionary(jnp.array([[1.0, 0.5, 0.25], [1.0, 0.0, 0.5]]))
        >>> dictionary.save("instruments.npz")
        >>> jaxsep.Dictionary.load("instruments.npz").num_instruments
        2
        >>> brighter = jnp.array([[[1.0, 0.2], [1.0, 0.8]]])  # one instrument at 100 and at 400 Hz
        >>> dictionary = jaxsep.Dictionary(jnp.array([[1.0, 0.5]]), brighter, jnp.array([100.0, 400.0]))
        >>> tone = jaxsep.Tones.plain(jnp.ones(1), jnp.array([200.0]), jnp.array([0]))
        >>> print(dictionary.of(tone).round(2))
        [[1.  0.5]]
    """

    harmonics: Float[Array, "instruments harmonics"]
    by_pitch: Float[Array, "instruments pitches harmonics"] | None = None
    pitches: Float[Array, " pitches"] | None = None

    def __check_init__(self):
        if (self.by_pitch is None) != (self.pitches is None):
            raise ValueError("pitches: expected together with by_pitch, got one of them alone")
        if self.by_pitch is None:
            return
        number, size = self.harmonics.shape
        wanted = number, *self.pitches.shape, size
        if self.by_pitch.shape != wanted or self.pitches.size < 2:
            raise ValueError(
                "by_pitch: expected [instruments, pitches, harmonics] with at least 2 pitches, as the others "
                f"have, got shape {self.by_pitch.shape} with {self.harmonics.shape} and {self.pitches.shape}"
            )

    @classmethod
    def one_sound(cls, num_harmonics: int = NUM_HARMONICS) -> "Dictionary":
        """A single instrument of which nothing is known: harmonic h has the amplitude 1/h.

        Example:
            >>> print(jaxsep.Dictionary.one_sound(2).harmonics)
            [[1.  0.5]]
        """
        return cls(1 / jnp.arange(1, num_harmonics + 1, dtype=jnp.float32)[None])

    @property
    def num_instruments(self) -> int:
        """Number of instruments."""
        return self.harmonics.shape[0]

    @property
    def plain(self) -> "Dictionary":
        """The same instruments without their timbre, as in P1."""
        return Dictionary(self.harmonics)

    @eqx.filter_jit
    def of(self, tones: Tones, axis: LinearAxis | LogAxis | None = None) -> Float[Array, "*tones harmonics"]:
        """The harmonics of each tone.

        Arguments:
            tones: of one frame or many.
            axis: to which the fundamentals refer; by default they are in Hz, as those of a `Separation`.
        """
        if self.by_pitch is None:
            return harmonics_of(tones, self.harmonics)
        shares = self.shares(tones, axis)
        owner = jax.nn.one_hot(tones.instrument, self.num_instruments, dtype=shares.dtype)
        mixing = (owner[..., None] * shares[..., None, :]).reshape(*owner.shape[:-1], -1)
        return dot(mixing, self.by_pitch.reshape(-1, self.by_pitch.shape[2]))

    @eqx.filter_jit
    def shares(
        self, tones: Tones, axis: LinearAxis | LogAxis | None = None
    ) -> Float[Array, "*tones pitches"]:
        """Shares of the pitches in the harmonics of each tone; they sum to 1. Arguments as for `of`."""
        knots = self.pitches
        place = jnp.asarray(tones.fundamental)
        frequency = place if axis is None else axis.to_hz(place)
        place = jnp.log(jnp.clip(frequency, knots[0], knots[-1]))[..., None]
        knots = jnp.log(knots)
        rising = (place - knots[:-1]) / (knots[1:] - knots[:-1])  # from each pitch to the next
        first, last = jnp.ones_like(rising[..., :1]), jnp.ones_like(rising[..., :1])
        up = jnp.concatenate([first, rising], axis=-1)
        down = jnp.concatenate([1 - rising, last], axis=-1)
        return jnp.clip(jnp.minimum(up, down), 0, 1)

    def save(self, path: str | os.PathLike, about: Mapping[str, Any] | None = None) -> None:
        """Writes an `.npz` file of a JSON header and the arrays; the file appears whole or not at all.

        Arguments:
            path: the file.
            about: values for JSON that stand in the header, too; `load` does without them.
        """
        arrays = {name: np.asarray(value) for name, value in vars(self).items() if value is not None}
        header = {**(about or {}), "format": _FORMAT, "version": _VERSION, "arrays": list(arrays)}
        with replacing(path) as draft, draft.open("wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Dictionary":
        """Reads what `save` wrote, in float32; also files of version 1, which have no timbre.

        Raises: `ValueError` with one sentence if the file is missing, not a dictionary, of another
        version or shape, or holds values that are not in [0, 1].
        """
        path = Path(path)
        try:
            # Opened here, since NumPy leaves a file open that turns out to be no archive.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                header = json.loads(str(content["header"]))
                names = [name for name in _LARGEST if name in content]
                shapes = {name: _shape_of(content, name) for name in names}
                large = [name for name in names if any(np.greater(shapes[name], _LARGEST[name]))]
                arrays = {name: content[name] for name in names if not large}
        except FileNotFoundError:
            raise ValueError(f"dictionary: there is no file {path}") from None
        except Exception:  # a damaged or hostile archive can raise nearly anything
            raise ValueError(f"dictionary: {path} is not a dictionary written by jaxsep") from None
        if not isinstance(header, dict) or header.get("format") != _FORMAT or "harmonics" not in names:
            raise ValueError(f"dictionary: {path} is not a dictionary written by jaxsep")
        if header.get("version") not in (1, _VERSION):
            raise ValueError(
                f"dictionary: expected version 1 or {_VERSION} in {path}, got {header.get('version')!r}"
            )
        if large:
            name = large[0]
            raise ValueError(
                f"dictionary: expected {name} of at most {_LARGEST[name]} in {path}, got {shapes[name]}"
            )
        for name, array in arrays.items():
            if array.ndim != len(_LARGEST[name]) or 0 in array.shape or array.dtype.kind != "f":
                raise ValueError(
                    f"dictionary: expected real {name} with {len(_LARGEST[name])} axes in {path}, "
                    f"got {array.dtype} of shape {array.shape}"
                )
        try:
            found = cls(**{name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()})
            found.check()
        except ValueError as error:
            raise ValueError(f"dictionary: {path} cannot be used: {error}") from None
        return found

    def check(self) -> None:
        """Raises `ValueError`, one sentence, for values that no instrument can have."""
        rows = np.asarray(self.harmonics)
        if not np.all((rows >= 0) & (rows <= 1)) or not np.all(np.max(rows, axis=1, initial=0) > 0):
            raise ValueError("harmonics: expected values in [0, 1], some above 0 in each row")
        if self.by_pitch is None:
            return
        rows, pitches = np.asarray(self.by_pitch), np.asarray(self.pitches)
        if not np.all((rows >= 0) & np.isfinite(rows)):
            raise ValueError("by_pitch: expected finite values of at least 0")
        if not np.all(np.isfinite(pitches) & (pitches > 0)) or np.any(np.diff(pitches) <= 0):
            raise ValueError("pitches: expected rising frequencies in Hz")


def _shape_of(content, name):
    """The shape that an array in an archive announces, without unpacking it."""
    with content.zip.open(f"{name}.npy") as file:
        np.lib.format.read_magic(file)
        return np.lib.format.read_array_header_1_0(file)[0]


def harmonics_of(
    tones: Tones, harmonics: Float[Array, "instruments harmonics"]
) -> Float[Array, "*tones harmonics"]:
    """The row of each tone's instrument.

    Not by indexing, whose derivative adds up in any order on accelerators.
    """
    return dot(jax.nn.one_hot(tones.instrument, harmonics.shape[0], dtype=harmonics.dtype), harmonics)


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

"""Instruments that are known by name, to name what was learned, or to begin with."""

import os
from collections.abc import Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Float

from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.library import SHIPPED, About, read_about, unique_names

__all__ = ["Instruments"]


class Instruments(eqx.Module):
    """A dictionary of instruments that have names.

    Arguments:
        dictionary: what each sounds like.
        names: of the instruments.
        ranges: lowest and highest note of each, in semitones as MIDI counts them.
        source: where they come from.
        licence: under which that is.

    Raises: `ValueError` for another number of names or ranges than of instruments, and for ranges that are
    not finite or end before they begin.

    Example:
        >>> strings = jaxsep.Instruments.orchestra().chosen(["violin", "cello"])
        >>> strings.names, strings.dictionary.num_instruments
        (('violin', 'cello'), 2)
    """

    dictionary: Dictionary
    names: tuple[str, ...] = eqx.field(static=True)
    ranges: Float[np.ndarray, "instruments 2"]
    source: str = eqx.field(static=True, default="")
    licence: str = eqx.field(static=True, default="")

    def __check_init__(self):
        number = self.dictionary.num_instruments
        if len(self.names) != number:
            raise ValueError(f"names: expected {number}, one for each instrument, got {len(self.names)}")
        if self.ranges.shape != (number, 2):
            raise ValueError(f"ranges: expected shape {(number, 2)}, got {self.ranges.shape}")
        if not np.all(np.isfinite(self.ranges)) or np.any(self.ranges[:, 0] > self.ranges[:, 1]):
            raise ValueError("ranges: expected finite pitches, the lowest first, got others")

    @classmethod
    def orchestra(cls) -> "Instruments":
        """The library that ships with the package: sixteen orchestral instruments.

        They were learned from single notes of the FluidR3 GM soundfont (MIT licence).
        """
        return cls.load(SHIPPED)

    def chosen(self, names: Sequence[str]) -> "Instruments":
        """Some of the instruments, in the order of their names; the second violin becomes `violin 2`.

        Raises: `ValueError` for a name that is none of theirs.
        """
        for name in names:
            if name not in self.names:
                raise ValueError(f"instruments: expected some of {', '.join(self.names)}, got {name}")
        rows, known = np.array([self.names.index(name) for name in names], int), self.dictionary
        by_pitch = None if known.by_pitch is None else known.by_pitch[rows]
        dictionary = Dictionary(known.harmonics[rows], by_pitch, known.pitches)
        return Instruments(
            dictionary, tuple(unique_names(names)), self.ranges[rows], self.source, self.licence
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes the dictionary as `Dictionary.save` does, with all else in its header."""
        self.dictionary.save(path, About(self.names, self.ranges, self.source, self.licence).header())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Instruments":
        """Reads what `save` wrote. Nothing is unpickled.

        Raises: `ValueError`, one sentence, for what `Dictionary.load` refuses, and for names or ranges that
        are missing or do not belong to the dictionary.
        """
        dictionary = Dictionary.load(path)
        about = read_about(path)
        try:
            return cls(dictionary, *about)
        except ValueError as error:
            raise ValueError(f"instruments: {path} cannot be used: {error}") from None

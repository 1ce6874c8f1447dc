"""What learned instruments are called: those that are known, and sound like them where they play."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from jaxsep.numerics.devices import map_chunks
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.instruments import Instruments
from jaxsep.tones.library import unique_names
from jaxsep.tones.tones import Tones

__all__ = ["assign_names", "name_instruments", "timbre_distances"]

#: Greatest distance in dB of an instrument from what it is called, and how many times as far any other one is
#: at least. Another recording of an instrument is 5 to 10 dB away, as instruments of a family are: none is
#: better than wrong.
_FARTHEST, _NEXT = 5.0, 1.2

#: Partials from here on, in Hz, are mostly noise; those below this part of the loudest, −60 dB, are none.
_HIGHEST, _LEAST = 10_000.0, 1e-3

#: Pitches in an octave at which harmonics are compared, and the lowest and highest of them in Hz.
_PER_OCTAVE, _PITCHES = 4, (20.0, 5120.0)

#: By how much a distance grows if all notes are beyond the range, and semitones that range is exceeded by.
_BEYOND, _TUNING = 5.0, 0.6


def name_instruments(
    dictionary: Dictionary, tones: Tones, instruments: Instruments
) -> tuple[str | None, ...]:
    """The names of instruments that were learned, where it is clear which known ones they sound like.

    Such a one is at most 5 dB away by `timbre_distances`, and any other at least 1.2 times as far.

    Arguments:
        dictionary: that was learned.
        tones: that were found with it, fundamentals in Hz.
        instruments: that are known.

    Returns: for each instrument its name, or None. If two have the same, the second one is `violin 2`.

    Example:
        >>> orchestra = jaxsep.Instruments.orchestra()
        >>> duet = orchestra.chosen(["oboe", "bassoon"]).dictionary
        >>> pitches = jnp.array([[440.0, 110.0], [550.0, 165.0]])
        >>> tones = jaxsep.Tones.plain(jnp.ones((2, 2)), pitches, jnp.array([[0, 1], [0, 1]]))
        >>> jaxsep.name_instruments(duet, tones, orchestra)
        ('oboe', 'bassoon')
    """
    distances = timbre_distances(dictionary, tones, instruments)
    names: list[str | None] = []
    for row in distances:
        nearest, *others = np.sort(row)
        clear = nearest <= _FARTHEST and _NEXT * nearest <= min(others, default=np.inf)
        names.append(instruments.names[int(np.argmin(row))] if clear else None)
    given = iter(unique_names([name for name in names if name is not None]))
    return tuple(None if name is None else next(given) for name in names)


def assign_names(dictionary: Dictionary, tones: Tones, instruments: Instruments) -> tuple[str | None, ...]:
    """The names of instruments that are known to be just these: each has one, so that all are nearest.

    Arguments and result as for `name_instruments`; None where nothing is played.
    """
    distances = timbre_distances(dictionary, tones, instruments)
    silent = np.isinf(distances).all(axis=1)
    # A silent one takes what nobody else wants.
    _, chosen = linear_sum_assignment(np.where(silent[:, None], 0, distances))
    return tuple(None if quiet else instruments.names[k] for quiet, k in zip(silent, chosen, strict=True))


def timbre_distances(
    dictionary: Dictionary, tones: Tones, instruments: Instruments
) -> Float[np.ndarray, "learned known"]:
    """How far learned instruments are from known ones at the pitches that they play, in dB.

    It is the root mean square difference of the levels of the partials below 10 kHz, without their mean,
    over the partials and over the pitches; these count by the root of how loud they are played. Notes beyond
    the range of a known instrument take it up to six times as far.

    Arguments:
        dictionary, tones, instruments: as for `name_instruments`.

    Returns: one row for each learned instrument, infinite if it plays nothing.
    """
    tones = jax.tree.map(np.asarray, tones)
    size = min(dictionary.harmonics.shape[1], instruments.dictionary.harmonics.shape[1])
    pitches = _grid()
    counted = pitches[:, None] * np.arange(1, size + 1) < _HIGHEST
    learned, known = (_levels(each, pitches, counted) for each in (dictionary, instruments.dictionary))
    loudness = np.sqrt(tones.amplitude * np.max(map_chunks(dictionary.of, tones), axis=-1))
    distances = np.full((len(learned), len(known)), np.inf)
    for number, levels in enumerate(learned):
        own = tones.active & (tones.instrument == number)
        if not np.any(loudness[own] > 0):
            continue
        played, weights = tones.fundamental[own], loudness[own] / loudness[own].sum()
        nearest = np.argmin(np.abs(np.log(played[:, None] / pitches)), axis=1)
        shares = np.bincount(nearest, weights, minlength=pitches.size)
        off = np.array([_mean_square(levels - other, counted) for other in known])
        distances[number] = np.sqrt(off @ shares) * (1 + _BEYOND * _beyond(played, weights, instruments))
    return distances


def _grid():
    lowest, highest = np.log2(_PITCHES)
    return 2 ** np.linspace(lowest, highest, 1 + round((highest - lowest) * _PER_OCTAVE))


def _levels(dictionary, pitches, counted) -> Float[np.ndarray, "instruments pitches harmonics"]:
    """Levels of the partials in dB relative to the loudest one that counts."""
    number, shape = dictionary.num_instruments, (dictionary.num_instruments, pitches.size)
    owner = np.broadcast_to(np.arange(number)[:, None], shape)
    places = np.broadcast_to(pitches.astype(np.float32), shape)
    at = Tones.plain(jnp.ones(shape), jnp.asarray(places), jnp.asarray(owner))
    rows = np.asarray(dictionary.of(at), float)[..., : counted.shape[1]] * counted
    loudest = np.max(rows, axis=-1, keepdims=True)
    return 20 * np.log10(np.maximum(rows / np.where(loudest > 0, loudest, 1), _LEAST))


def _mean_square(difference, counted):
    """Mean square over the partials that count, at each pitch, of what is left without the mean."""
    number = np.maximum(counted.sum(axis=1), 1)
    mean = np.sum(difference * counted, axis=1) / number
    return np.sum((difference - mean[:, None]) ** 2 * counted, axis=1) / number


def _beyond(played, weights, instruments) -> Float[np.ndarray, " known"]:
    """The part of the notes that each known instrument cannot play."""
    pitch = 69 + 12 * np.log2(played / 440)
    lowest, highest = instruments.ranges.T[..., None]
    return ((pitch < lowest - _TUNING) | (pitch > highest + _TUNING)) @ weights

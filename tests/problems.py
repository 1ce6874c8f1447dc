"""Synthetic spectra whose tones are known: every method that finds tones runs through this table.

All problems share one axis and one dictionary, so that they can be solved in one batch. The spectra are
rendered here, in NumPy, from the double sum of the tone model (P1).
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsep.blasso.spikes import Spikes
from jaxsep.signal.axes import LogAxis
from jaxsep.signal.gaussians import SINUSOID_WIDTH
from jaxsep.tones.tones import MAX_INHARMONICITY, Tones

#: Half as many bins as usual; neighbours among 8 harmonics are still 10 bins apart.
AXIS = LogAxis(num_bins=512)

OCTAVE = AXIS.num_bins / 10
SEMITONE = OCTAVE / 12

#: A hollow sound with odd harmonics, and a bright one whose second harmonic is the strongest.
DICTIONARY = np.array(
    [
        [1.0, 0.04, 0.6, 0.03, 0.35, 0.02, 0.2, 0.01],
        [0.55, 1.0, 0.8, 0.5, 0.45, 0.3, 0.15, 0.1],
    ]
)


@dataclass(frozen=True)
class Note:
    """One tone; position (of the natural fundamental) and width in bins."""

    instrument: int
    amplitude: float
    position: float
    width: float = SINUSOID_WIDTH
    inharmonicity: float = 0.0


@dataclass(frozen=True)
class Problem:
    """Spectra with the notes they were made of.

    - `name`: what is particular about it.
    - `frames`: the notes of each frame.
    - `tones_per_instrument`: so many of them one instrument plays at most.
    - `noise`: standard deviation of the Gaussian noise that is added, before negative values are cut off.
    - `hidden`: whether the notes share partials to the point that another note correlates better than any
      true one: the truth still has the lowest loss, but a greedy search may miss it.
    - `nominal`: whether all notes are harmonic and as wide as a sinusoid, so that a method with fixed
      patterns can recover them too.
    """

    name: str
    frames: tuple[tuple[Note, ...], ...]
    tones_per_instrument: int = 1
    noise: float = 0.0
    hidden: bool = False
    nominal: bool = True

    axis = AXIS
    dictionary = DICTIONARY

    @property
    def exact(self) -> bool:
        """Whether any method should recover the notes to rounding."""
        return not self.noise and not self.hidden

    @property
    def capacity(self) -> int:
        """Number of slots for tones."""
        return self.tones_per_instrument * len(DICTIONARY)

    @property
    def spectra(self) -> np.ndarray:
        """`[frames, bins]`, float64, nonnegative."""
        clean = np.stack([render_notes(notes) for notes in self.frames])
        noise = np.random.default_rng(0).standard_normal(clean.shape)
        return np.maximum(clean + self.noise * noise, 0)

    def tones(self, dtype=jnp.float32) -> Tones:
        """The true tones `[frames, capacity]`."""
        return pack_notes(self.frames, self.capacity, dtype)


def render_notes(notes, dictionary=DICTIONARY, axis=AXIS) -> np.ndarray:
    """`Σ_k Σ_h a_k D[η_k, h] exp(-(f - μ_{k,h})² / (2σ_k²))` in every bin."""
    bins, h = np.arange(axis.num_bins), np.arange(1, dictionary.shape[1] + 1)[:, None]
    c = axis.num_bins / np.log(axis.f_max / axis.f_min)
    total = np.zeros(axis.num_bins)
    for note in notes:
        centre = note.position + c * np.log(h * np.sqrt(1 + note.inharmonicity * h**2))
        partials = np.exp(-0.5 * ((bins - centre) / note.width) ** 2)
        total += note.amplitude * dictionary[note.instrument] @ partials
    return total


def pack_notes(frames, capacity, dtype=jnp.float32) -> Tones:
    """Notes of each frame as tones, followed by empty slots."""
    slots = [list(notes) + [None] * (capacity - len(notes)) for notes in frames]

    def gather(field, blank, dtype):
        return jnp.array([[getattr(n, field) if n else blank for n in row] for row in slots], dtype)

    return Tones(
        amplitude=gather("amplitude", 0, dtype),
        fundamental=gather("position", 0, dtype),
        width=gather("width", SINUSOID_WIDTH, dtype),
        inharmonicity=gather("inharmonicity", 0, dtype),
        instrument=gather("instrument", 0, jnp.int32),
        active=jnp.array([[n is not None for n in row] for row in slots]),
    )


def duets(num_frames, *, seed, widths=(1.0, 1.0), inharmonicity=0.0):
    """Both instruments at random intervals that are neither unisons nor octaves."""
    rng = np.random.default_rng(seed)

    def note(instrument, position):
        return Note(
            instrument,
            rng.uniform(0.3, 1),
            position,
            SINUSOID_WIDTH * rng.uniform(*widths),
            inharmonicity * rng.uniform(0.5, 1),
        )

    def frame():
        low, first = rng.uniform(130, 230), int(rng.integers(2))
        interval = rng.choice([5.4, 8.5, 15.6, 17.3]) * SEMITONE
        return note(first, low), note(1 - first, low + interval)

    return tuple(frame() for _ in range(num_frames))


def interval(bins):
    """The two instruments at one interval, either of them below, equally loud or not."""
    return tuple(
        (Note(i, 0.9, 181.3), Note(1 - i, upper, 181.3 + bins)) for i in (0, 1) for upper in (0.9, 0.35)
    )


def _chord(position):
    return (
        Note(0, 1.0, position),
        Note(1, 0.8, position + 23.4),
        Note(0, 0.6, position + 66.1),
        Note(1, 0.5, position + 91.7),
    )


PROBLEMS = (
    Problem("solo", ((Note(0, 1.0, 240.0),), (Note(1, 0.02, 200.4),), (Note(1, 0.7, 97.8),))),
    Problem("exact", duets(4, seed=1)),
    Problem("widths", duets(3, seed=2, widths=(0.85, 1.3)), nominal=False),
    Problem("inharmonic", duets(3, seed=3, inharmonicity=0.9 * MAX_INHARMONICITY), nominal=False),
    Problem("noisy", duets(3, seed=4), noise=2e-3),
    Problem("octave", interval(OCTAVE), hidden=True),
    Problem("unison", interval(0.0), hidden=True),
    Problem("third", interval(4 * SEMITONE)),
    Problem("silent", ((), ())),
    Problem("one frame", duets(1, seed=5)),
    Problem("maximum polyphony", (_chord(110.3), _chord(141.9)), tones_per_instrument=2),
)


# ---- Batches ----------------------------------------------------------------------------------------------


def in_one_size(method, patterns, signals, bound, start=None, *, size):
    """What a `Projection` or `BeurlingLasso` finds in a batch that silence fills up to a size.

    Batches of one size, bounds and tolerances that are arrays, and starts that are there, if empty, share a
    program, which takes ten seconds to compile.
    """
    projection = getattr(method, "projection", method)
    accuracy = projection.accuracy(signals.dtype)
    exact = eqx.tree_at(lambda p: p.tolerance, projection, accuracy, is_leaf=lambda x: x is None)
    method = exact if method is projection else eqx.tree_at(lambda m: m.projection, method, exact)
    count = signals.shape[0]
    start = Spikes.empty((count, projection.max_spikes), signals.dtype) if start is None else start
    bound = jnp.broadcast_to(jnp.asarray(bound, signals.dtype), (count,))

    def fill(x):
        rest = jnp.zeros((max(0, size - count), *x.shape[1:]), x.dtype)
        return jnp.concatenate([x, rest])

    bound = jnp.where(jnp.arange(max(size, count)) < count, fill(bound), 1)
    found = method(patterns, fill(signals), bound, jax.tree.map(fill, start))
    return jax.tree.map(lambda x: x[:count], found)

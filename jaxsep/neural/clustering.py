"""A dictionary from tones whose pitch is known and whose instrument is not: their harmonics in clusters."""

import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxsep.neural.prediction import Prediction
from jaxsep.signal.axes import LinearAxis
from jaxsep.signal.gaussians import SINUSOID_WIDTH

__all__ = ["clear_harmonics", "cluster_tones", "dictionary_of"]

#: Starts from tones of random frames, of which the best is taken, and iterations of each.
_STARTS, _ITERATIONS = 24, 20

#: Distance in bins from which partials of two tones have amplitudes of their own.
_APART = 3 * SINUSOID_WIDTH


def dictionary_of(
    found: Prediction, axis: LinearAxis, *, key: PRNGKeyArray
) -> Float[Array, "instruments harmonics"]:
    """Harmonics of the instruments that play the tones of many frames, each at most one tone in a frame.

    As long as all instruments are the same to the network, it gives tones to them at will, and a dictionary
    that follows the gradient learns the mean of all of them. What tells them apart are the harmonics that the
    direct prediction hears in each tone.

    Arguments:
        found: predictions `[frames, …]`.
        axis: of the frames.

    Returns: rows with a largest entry of 1, in the order that most of the tones have already.
    """
    levels = jnp.sqrt(found.levels)  # lifted: quiet harmonics count
    rows, instrument = cluster_tones(levels, clear_harmonics(found, axis), key=key)
    number = levels.shape[1]
    weight = jnp.sum(levels**2, axis=2)
    votes = jnp.stack([jnp.sum(jnp.where(instrument == i, weight, 0), axis=0) for i in range(number)], axis=1)
    orders = _permutations(number)
    order = orders[jnp.argmax(jnp.sum(votes[jnp.arange(number), orders], axis=1))]
    rows = rows[order] ** 2
    return rows / jnp.maximum(jnp.max(rows, axis=1, keepdims=True), jnp.finfo(rows.dtype).tiny)


def clear_harmonics(found: Prediction, axis: LinearAxis) -> Bool[Array, "frames tones harmonics"]:
    """Where a harmonic is inside the axis, and apart from all partials of the other tones of its frame."""
    tones, num_harmonics = found.tones, found.levels.shape[-1]
    places = lambda f, b: axis.partials(f, b, num_harmonics)[0]
    place = jax.vmap(jax.vmap(places))(tones.fundamental, tones.inharmonicity)
    distance = jnp.abs(place[:, :, None, :, None] - place[:, None, :, None, :])
    other = ~jnp.eye(place.shape[1], dtype=bool) & tones.active[:, None, :]
    hidden = jnp.any((distance < _APART) & other[:, :, :, None, None], axis=(2, 4))
    return ~hidden & (place > -0.5) & (place < axis.num_bins - 0.5) & tones.active[..., None]


def cluster_tones(
    levels: Float[Array, "frames tones harmonics"],
    clear: Bool[Array, "frames tones harmonics"],
    *,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "tones harmonics"], Int[Array, "frames tones"]]:
    """Rows `d_i` and an order of them in each frame that maximise the energy explained, `Σ ⟨u, d⟩² / ‖d‖²`.

    Lloyd's iteration, where the tones of a frame have different rows: the best order of the rows in every
    frame, then the best rows. It begins with the tones of a random frame, several times.

    Arguments:
        levels: u, harmonics of each tone.
        clear: which of them count.

    Returns: rows of norm 1, and the row of each tone.
    """
    number, tiny = levels.shape[1], jnp.finfo(levels.dtype).tiny ** 0.5
    orders, shown = _permutations(number), levels * clear
    energy = jnp.sum(shown**2, axis=2)

    def explained(rows):
        match = jnp.einsum("fkh,ih->fki", shown, rows)
        size = jnp.einsum("fkh,ih->fki", clear.astype(rows.dtype), rows**2)
        return match, size, match**2 / jnp.maximum(size, tiny)

    def assigned(rows):
        match, size, value = explained(rows)
        totals = jnp.sum(value[:, jnp.arange(number), orders], axis=2)  # [frames, orders]
        return orders[jnp.argmax(totals, axis=1)], match, size, jnp.sum(jnp.max(totals, axis=1))

    def improved(rows, _):
        instrument, match, size, value = assigned(rows)
        scale = jnp.maximum(match, 0) / jnp.maximum(size, tiny)
        scale = jnp.where(instrument[..., None] == jnp.arange(number), scale, 0)
        above = jnp.einsum("fki,fkh->ih", scale, shown)
        below = jnp.einsum("fki,fkh->ih", scale**2, clear.astype(rows.dtype))
        return _normalised(jnp.where(below > tiny, above / jnp.maximum(below, tiny), rows)), value

    def from_frame(frame):
        rows, _ = jax.lax.scan(improved, _normalised(levels[frame]), None, _ITERATIONS)
        instrument, *_, value = assigned(rows)
        return rows, instrument, value

    # Frames in which all tones are loud begin more often.
    weakest = jnp.min(energy, axis=1)
    starts = jax.random.categorical(key, jnp.log(jnp.maximum(weakest, tiny)), shape=(_STARTS,))
    rows, instrument, value = jax.lax.map(from_frame, starts)
    best = jnp.argmax(value)
    return rows[best], instrument[best]


def _normalised(rows):
    size = jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True))
    return rows / jnp.maximum(size, math.sqrt(jnp.finfo(rows.dtype).tiny))


def _permutations(number):
    return jnp.asarray(list(itertools.permutations(range(number))))

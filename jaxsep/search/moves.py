"""Other explanations of every frame, offered to the search: each is one small change of the current one.

All work on tones `[frames, slots]` in which instrument i owns the slots from `i·R` to `i·R + R − 1`, the
loudest first (`arrange`).
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxsep.pursuit.loss import power
from jaxsep.pursuit.refinement import ToneFit, pack
from jaxsep.pursuit.selection import PatternBank
from jaxsep.tones.tones import Polyphony, Tones, polyphony_of

__all__ = ["arrange", "exchanged", "from_neighbours", "no_tones", "reselected", "ringing", "without"]

#: How many alternatives to a tone are offered.
_ALTERNATIVES = 2

#: Bins around a tone in which no alternative to it lies.
_APART = 5


def arrange(tones: Tones, num_instruments: int, slots: Polyphony) -> Tones:
    """The tones `[frames, any]` in `slots` places per instrument, the loudest first; more are dropped.

    All instruments have places for as many tones as who may play most.
    """
    most = np.array(polyphony_of(slots, num_instruments))
    tones = jax.tree.map(np.asarray, tones)
    loudness = np.where(tones.active, tones.amplitude, -1.0)
    same = (tones.instrument[:, :, None] == tones.instrument[:, None, :]) & tones.active[:, None, :]
    slot = np.arange(tones.capacity)
    louder = (loudness[:, None, :] > loudness[:, :, None]) | (
        (loudness[:, None, :] == loudness[:, :, None]) & (slot < slot[:, None])
    )
    rank = np.sum(same & louder, axis=2)
    frame, source = np.nonzero(tones.active & (rank < most[tones.instrument]))
    places = int(most.max())
    target = tones.instrument[frame, source] * places + rank[frame, source]
    placed = _blank(tones.active.shape[0], num_instruments, places, tones.amplitude.dtype)

    def put(empty, values):
        empty[frame, target] = values[frame, source]
        return empty

    return jax.tree.map(put, placed, tones)


def from_neighbours(tones: Tones, num_instruments: int, spans: Iterable[int]) -> Iterator[Tones]:
    """What the frames so many before and after play, all instruments together and each alone."""
    for span in spans:
        for offset in (span, -span):
            theirs = _shifted(tones, offset)
            yield theirs
            if num_instruments > 1:
                for instrument in range(num_instruments):
                    yield _choose(_owned(tones, num_instruments, instrument), theirs, tones)


def exchanged(tones: Tones, num_instruments: int, pair: tuple[int, int]) -> Tones:
    """The tones of two instruments exchanged."""
    slots = tones.capacity // num_instruments
    order = np.arange(tones.capacity).reshape(num_instruments, slots)
    order[list(pair)] = order[list(pair[::-1])]
    return _with_instruments(jax.tree.map(lambda x: x[:, order.ravel()], tones), slots)


def without(tones: Tones) -> Iterator[Tones]:
    """One tone left out."""
    for slot in range(tones.capacity):
        others = np.arange(tones.capacity) != slot
        yield eqx.tree_at(lambda t: t.active, tones, tones.active & others)


def ringing(tones: Tones, num_instruments: int, spans: Iterable[int]) -> Iterator[Tones]:
    """A neighbour's tone of an instrument beside the current one: a note that ends, or one that begins."""
    slots = tones.capacity // num_instruments
    for instrument in range(num_instruments):
        first, last = instrument * slots, instrument * slots + slots - 1
        for span in spans:
            for offset in (span, -span):
                theirs = _shifted(tones, offset)

                def put(mine, theirs, last=last, first=first):
                    mine = mine.copy()
                    mine[:, last] = theirs[:, first]
                    return mine

                yield jax.tree.map(put, tones, theirs)


def reselected(
    model: ToneFit,
    spectra: Float[Array, "frames bins"],
    harmonics: Float[Array, "instruments harmonics"],
    tones: Tones,
    instrument: Int[Array, ""],
) -> Tones:
    """The tones that correlate best with what all other instruments leave, instead of an instrument's own.

    Traceable. Returns `[frames, alternatives, slots]`, the best first. Alternatives are within the model's
    bounds, and at least 5 bins from the tones they replace and from each other.
    """
    objective, bank = model.objective, PatternBank.build(harmonics, model.objective)
    theta = pack(tones, objective.lift)
    mine = tones.instrument == instrument
    others = jnp.where((tones.active & ~mine)[..., None], theta, theta.at[..., 0].set(0))
    bins = jnp.arange(objective.axis.num_bins)
    outside = ~model.inside(bins)

    def choose(spectrum, others, instruments, taken):
        rest = objective.lifted(spectrum) - objective.lifted(objective.model(others, harmonics[instruments]))
        correlation = bank.correlate(rest)[instrument]
        near = jnp.any(jnp.abs(bins[:, None] - taken) < _APART, axis=1) | outside
        found = []
        for _ in range(_ALTERNATIVES):
            correlation = jnp.where(near, 0, correlation)
            best = jnp.argmax(correlation)
            fit = jnp.maximum(correlation[best] * bank.inverse_norms[instrument], 0)
            found.append((power(fit, 1 / objective.lift), best.astype(spectrum.dtype)))
            near = jnp.abs(bins - best) < _APART
        return jax.tree.map(lambda *x: jnp.stack(x), *found)

    taken = jnp.where(mine & tones.active, tones.fundamental, jnp.inf)
    arguments = spectra, others, tones.instrument, taken
    amplitude, position = jax.lax.map(lambda a: choose(*a), arguments, batch_size=8)
    here = mine & (jnp.cumsum(mine, axis=1) == 1)  # the instrument's first slot

    def alternative(amplitude, position):
        active = jnp.where(mine, here & (amplitude[:, None] > 0), tones.active)
        spread = lambda x: jnp.broadcast_to(x[:, None], mine.shape)
        fresh = Tones.plain(spread(amplitude), spread(position), tones.instrument, active)
        others = eqx.tree_at(lambda t: t.active, tones, active)
        return jax.tree.map(lambda new, old: jnp.where(here, new, old), fresh, others)

    return jax.vmap(alternative, in_axes=1, out_axes=1)(amplitude, position)


def _shifted(tones, offset):
    num_frames = tones.active.shape[0]
    return jax.tree.map(lambda x: x[np.clip(np.arange(num_frames) + offset, 0, num_frames - 1)], tones)


def _owned(tones, num_instruments, instrument):
    slots = tones.capacity // num_instruments
    return np.arange(tones.capacity) // slots == instrument


def _choose(mask, theirs, mine):
    return jax.tree.map(lambda x, y: np.where(mask, x, y), theirs, mine)


def _with_instruments(tones, slots):
    owners = np.broadcast_to(np.arange(tones.capacity) // slots, tones.active.shape)
    return eqx.tree_at(lambda t: t.instrument, tones, owners.astype(np.int32))


def _blank(num_frames, num_instruments, slots, dtype):
    return _with_instruments(no_tones((num_frames, num_instruments * slots), dtype), slots)


def no_tones(shape: tuple[int, ...], dtype: DTypeLike) -> Tones:
    """Slots without tones on the host: on the device each shape would be compiled for."""
    slot = _slot(np.dtype(dtype), jax.config.jax_enable_x64)
    return jax.tree.map(lambda x: np.full(shape, x[0]), slot)


@lru_cache(maxsize=4)
def _slot(dtype, x64):
    del x64  # what becomes of the dtype depends on it
    return jax.tree.map(np.asarray, Tones.empty((1,), dtype))

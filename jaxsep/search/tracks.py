"""Tones of neighbouring frames that continue each other, whoever plays them, and what they sound like."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.signal import find_peaks

from jaxsep.numerics.devices import map_chunks
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.refinement import pack
from jaxsep.signal.axes import LogAxis
from jaxsep.signal.gaussians import sum_gaussians
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.rendering import partials_of
from jaxsep.tones.tones import Tones

__all__ = ["Tracks", "find_tracks", "sounds_of"]

#: Largest distance in semitones between the tones of a track in successive frames, and, in the same unit,
#: what a change of the instrument, and each frame that is missing in between, count.
_STEP, _OTHER, _MISSING = 0.7, 0.18, 0.035

#: Longest pause within a track, and shortest track that is judged, in seconds.
_PAUSE, _SHORTEST = 0.03, 0.04

#: Fall and rise of the level, in dB, that begin another track at the same pitch, and seconds they may take.
_DIP, _DIP_TIME = 4.0, 0.4

#: A track this many dB below the level that the loudest tenth of all tones exceeds is faint.
_FAINT, _LOUDEST = 35.0, 0.1

#: Power of the roots of partials by which sounds are compared.
_COMPRESSION = 0.7


class Tracks(eqx.Module):
    """Tones that continue each other, whichever instrument they were given to, in the order of their begin.

    - `label`: number of the track of each tone, -1 for none, or one that is not judged.
    - `begin`, `end`: in seconds.
    - `pitch`: median, in semitones above the axis's lowest frequency.
    - `owner`: instrument that most of its tones have.
    - `loudness`: sum of the amplitudes of its tones.
    """

    label: Int[np.ndarray, "frames slots"]
    begin: Float[np.ndarray, " tracks"]
    end: Float[np.ndarray, " tracks"]
    pitch: Float[np.ndarray, " tracks"]
    owner: Int[np.ndarray, " tracks"]
    loudness: Float[np.ndarray, " tracks"]


def find_tracks(tones: Tones, axis: LogAxis, spacing: float, faint: bool = True) -> Tracks:
    """Tracks of tones `[frames, slots]` on an axis.

    Neighbouring frames are paired so that the pitches change least. A track ends where nothing follows within
    0.7 semitones and 30 ms, and where its level falls and rises again by 4 dB: there a note is struck again.
    One of less than 40 ms is not judged, nor, unless `faint`, one 35 dB below the loud tones.
    """
    semitone = axis.bins_per_neper * np.log(2) / 12
    used = np.asarray(tones.active) & (np.asarray(tones.amplitude) > 0)
    pitch = np.asarray(tones.fundamental, float) / semitone
    label = _linked(used, pitch, np.asarray(tones.instrument), max(1, round(_PAUSE / spacing)))
    label = _struck(label, np.asarray(tones.amplitude), max(3, round(_DIP_TIME / spacing)))
    rows = []
    for number in range(label.max() + 1):
        frame, slot = np.nonzero(label == number)
        if frame.size * spacing >= _SHORTEST:
            owner = np.bincount(tones.instrument[frame, slot]).argmax()
            loudness = tones.amplitude[frame, slot].sum()
            rows.append(
                (frame[0], frame[-1] + 1, np.median(pitch[frame, slot]), owner, loudness, frame.size, number)
            )
    rows = sorted(rows if faint else _loud(rows), key=lambda row: (row[0], -row[2]))
    renamed = np.full(label.max() + 2, -1)
    renamed[[row[-1] for row in rows]] = np.arange(len(rows))
    begin, end, height, owner, loudness, *_ = np.array(rows, float).reshape(-1, 7).T
    return Tracks(renamed[label], begin * spacing, end * spacing, height, owner.astype(int), loudness)


def _loud(rows):
    """The tracks that are not faint."""
    if not rows:
        return rows
    loudness, size = np.array([row[4:6] for row in rows], float).T
    level = loudness / size
    usual = np.quantile(np.repeat(level, size.astype(int)), 1 - _LOUDEST)
    return [row for row, one in zip(rows, level, strict=True) if one > usual * 10 ** (-_FAINT / 20)]


def _linked(used, pitch, instrument, reach):
    """Number of the track of each tone, before any is struck again."""
    label, count = np.full(used.shape, -1), 0
    live = np.empty((0, 4))  # number, frame, pitch and instrument of the last tone
    for frame in range(used.shape[0]):
        live = live[frame - live[:, 1] <= reach]
        slots = np.flatnonzero(used[frame])
        cost = np.abs(pitch[frame, slots, None] - live[:, 2])
        cost += _OTHER * (instrument[frame, slots, None] != live[:, 3])
        cost += _MISSING * (frame - 1 - live[:, 1])
        row, column = linear_sum_assignment(cost)
        near = cost[row, column] < _STEP
        row, column = row[near], column[near]
        label[frame, slots[row]] = live[column, 0]
        alone = np.ones(slots.size, bool)
        alone[row] = False
        fresh = slots[alone]
        label[frame, fresh] = count + np.arange(fresh.size)
        count += fresh.size
        now = np.concatenate([slots[row], fresh])
        here = [label[frame, now], np.full(now.size, frame), pitch[frame, now], instrument[frame, now]]
        live = np.concatenate([np.delete(live, column, axis=0), np.stack(here, axis=1)])
    return label


def _struck(label, amplitude, window):
    """Tracks that are divided where their level has a dip."""
    count = label.max() + 1
    for number in range(count):
        frame, slot = np.nonzero(label == number)
        level = 20 * np.log10(np.maximum(amplitude[frame, slot], 1e-7))
        for dip in find_peaks(-level, prominence=_DIP, wlen=window)[0]:
            label[frame[dip:], slot[dip:]] = count
            count += 1
    return label


def sounds_of(
    tracks: Tracks,
    objective: LiftedLoss,
    spectra: Float[np.ndarray, "frames bins"],
    tones: Tones,
    dictionary: Dictionary,
) -> tuple[Float[np.ndarray, "tracks harmonics"], Float[np.ndarray, "tracks harmonics"]]:
    """What each track sounds like: roots of its partials, and how much of them is its own.

    Arguments:
        tracks: of the tones.
        objective: the lifted loss and its axis.
        spectra: log-frequency magnitudes, peak about 1.
        tones: `[frames, slots]`.
        dictionary: with which they were refined.
    """
    harmonics = map_chunks(lambda tones: dictionary.of(tones, objective.axis), tones)
    root, share = map_chunks(lambda *chunk: _observed(objective, *chunk), spectra, tones, harmonics)
    weight = share**2
    level = np.linalg.norm(root, axis=-1, keepdims=True)
    judged = tracks.label >= 0
    number = tracks.label[judged]
    count = tracks.begin.size
    add = lambda x: np.stack([np.bincount(number, column, count) for column in x[judged].T], axis=1)
    sound = add(weight * root) / np.maximum(add(weight * level), 1e-9)
    sound = sound**_COMPRESSION
    weight = add(weight) / np.bincount(number, minlength=count)[:, None] + 1e-4
    size = np.sqrt(np.sum(weight * sound**2, axis=1) / np.sum(weight, axis=1))
    return sound / np.maximum(size, 1e-6)[:, None], weight


@eqx.filter_jit
def _observed(objective, spectra, tones, harmonics):
    """Roots of the magnitudes at each partial, and which part of them the tone's own model has there."""
    reach = jnp.maximum(spectra, jnp.maximum(jnp.roll(spectra, 1, axis=1), jnp.roll(spectra, -1, axis=1)))

    def frame(spectrum, tones, harmonics):
        theta = pack(tones, objective.lift)
        height, position, width = partials_of(theta, harmonics, objective.axis)
        amplitude = jnp.where(tones.active, tones.amplitude, 0)
        own = sum_gaussians(amplitude[:, None] * height, position, width, objective.axis.num_bins)
        place = jnp.round(position).astype(jnp.int32)
        inside = (place >= 0) & (place < objective.axis.num_bins) & tones.active[:, None]
        place = jnp.clip(place, 0, objective.axis.num_bins - 1)
        mine, all_ = jnp.take_along_axis(own, place, axis=1), jnp.sum(own, axis=0)[place]
        share = jnp.where(inside, mine / jnp.maximum(all_, jnp.finfo(own.dtype).tiny), 0)
        return jnp.sqrt(spectrum[place] * share), share

    return jax.vmap(frame)(reach, tones, harmonics)

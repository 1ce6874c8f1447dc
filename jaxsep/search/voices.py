"""What the notes of a recording have in common, which the loss of a single frame cannot see.

A tone mostly goes on in the next frame, and an instrument keeps to its register. Where two explanations of a
frame are nearly as good (similar instruments, octaves, unisons), this decides, and it decides for whole
notes: the cheapest path through the hypotheses of all frames is found by dynamic programming.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsep.numerics.devices import chunk_size
from jaxsep.numerics.dot import dot
from jaxsep.signal.axes import LogAxis
from jaxsep.tones.tones import Polyphony, Tones, polyphony_of

__all__ = ["Path", "VoiceModel", "Voices", "best_path"]


class VoiceModel(eqx.Module):
    """Costs of a recording's tones beyond the lifted loss L, in units of the recording's mean loss s.

    Where instruments play chords, s and ν are less, by as much as there are more voices than instruments:
    each of many tones explains a smaller part.

    `C = Σ_frames ( L + νλK ) + s Σ_frames ( λK + λ'K' + γ Σ_k ln(p₀ / p_η(μ_k)) + χX + κ/2·B + ζH )`

    for K tones in a frame, K' of them beyond what their instrument plays at a time, at positions μ_k. The
    register p_i is the density of an instrument's pitches, estimated from its tones over the recording, and
    p₀ that of an even spread over two octaves. X counts the pairs of tones of which the one whose instrument
    plays higher over the recording is the lower one. B counts the tones that begin or end, where their
    instrument has none nearby in pitch in the frame before or after, and H those that end in one instrument
    and go on in another. Noise of loss ν, of which the spectra were freed, may still pass for a tone here and
    there, so that tones cost more where there is noise.

    Where it is to be certain that somebody plays (`Voices.strict`), a tone costs the part ε of what an
    instrument sounds on average, instead of λ(s + ν): what a wrong tone explains, say in a rest, is another's
    overtones and their decay, which grow with the music, and not with the loss. Where little is unexplained
    it costs 3λ(s + ν), if that is less.

    Arguments:
        register: γ ≥ 0.
        crossing: χ ≥ 0.
        change: κ ≥ 0.
        sounding: λ ≥ 0.
        ringing: λ' ≥ 0, of a note that still sounds when its instrument plays the next.
        handing: ζ ≥ 0.
        worth: ε ≥ 0.
        tolerance: how far, in semitones, a tone may move from one frame to the next.
        smoothing: standard deviation, in semitones, of the kernel that estimates the registers.

    Example:
        >>> shape = (20, 1)  # [frames, tones]: an instrument that plays bin 400
        >>> tones = jaxsep.Tones.plain(*(jnp.full(shape, x) for x in (1.0, 400.0, 0)))
        >>> voices = jaxsep.VoiceModel(crossing=0.0).fit(tones, 1, 1, jaxsep.LogAxis(), scale=1.0)
        >>> bool(voices.surprisal[0, 400] < 0 < voices.surprisal[0, 700])
        True
    """

    register: float | Float[Array, ""] = 0.1
    crossing: float | Float[Array, ""] = 0.1
    change: float | Float[Array, ""] = 0.5
    sounding: float | Float[Array, ""] = 0.1
    ringing: float | Float[Array, ""] = 0.1
    handing: float | Float[Array, ""] = 0.0
    worth: float | Float[Array, ""] = 0.066
    tolerance: float | Float[Array, ""] = 0.7
    smoothing: float = eqx.field(static=True, default=2.5)

    @classmethod
    def free(cls) -> "VoiceModel":
        """No costs beyond the loss: every frame for itself."""
        return cls(register=0.0, crossing=0.0, change=0.0, sounding=0.0, ringing=0.0, worth=0.0)

    def fit(
        self,
        tones: Tones,
        num_instruments: int,
        tones_per_instrument: Polyphony,
        axis: LogAxis,
        scale: float,
        noise: float = 0.0,
        energy: float = 0.0,
    ) -> "Voices":
        """The costs where tones `[frames, tones]` are roughly known, with scale s and noise ν.

        `energy` is what a frame sounds on average, the sum of its magnitudes, of which `strict` takes a part.
        """
        part = num_instruments / sum(polyphony_of(tones_per_instrument, num_instruments))
        scale, noise, energy = (part * x for x in (scale, noise, energy))
        surprisal = jnp.asarray(_surprisal(tones, num_instruments, axis, self.smoothing), jnp.float32)
        # Arrays: one compiled program for all costs.
        arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (self, scale, noise, energy))
        model, scale, noise, energy = arrays
        return Voices(model, surprisal, scale, noise, energy, axis, tones_per_instrument)


class Voices(eqx.Module):
    """A `VoiceModel` for one recording: surprisal `ln(p₀ / p_i)` of every bin, scale s, noise ν, and energy.

    The usual height of an instrument is the mean position of its register.
    """

    model: VoiceModel
    surprisal: Float[Array, "instruments bins"]
    scale: Float[Array, ""]
    noise: Float[Array, ""]
    energy: Float[Array, ""]
    axis: LogAxis
    tones_per_instrument: Polyphony = eqx.field(static=True)

    def fit(self, *recording: Any) -> "Voices":
        """Themselves, whatever the recording: in the place of a `VoiceModel`."""
        del recording
        return self

    def strict(self) -> "Voices":
        """Costs by which a tone must be worth a part of what its instrument sounds, or thrice the usual."""
        each = self.energy / self.surprisal.shape[0]
        sounding = self.model.worth * each / (self.scale + self.noise)
        sounding = jnp.minimum(sounding, _STRICT * self.model.sounding)
        return eqx.tree_at(lambda v: v.model.sounding, self, sounding)

    def slots(self, capacity: int) -> tuple[int, ...]:
        """How many tones each instrument may have where all together have so many places.

        They are those that it plays at a time, and as many beyond as there are places for.
        """
        most = polyphony_of(self.tones_per_instrument, self.surprisal.shape[0])
        beyond = capacity // len(most) - max(most)
        return tuple(one + beyond for one in most)

    def sounding(self, tones: Tones) -> Float[Array, ""]:
        """Cost of the tones of one frame, without their loss."""
        place = jnp.clip(jnp.round(tones.fundamental).astype(jnp.int32), 0, self.axis.num_bins - 1)
        register = jnp.where(tones.active, self.surprisal[tones.instrument, place], 0)
        playing = tones.active & (tones.instrument == jnp.arange(self.surprisal.shape[0])[:, None])
        beyond = jnp.maximum(jnp.sum(playing, axis=1) - jnp.asarray(self.tones_per_instrument), 0)
        height = self._heights()[tones.instrument]
        pairs = tones.active[:, None] & tones.active
        higher = height[:, None] > height + self._near()  # instruments of one register cannot cross
        crossed = pairs & higher & (tones.fundamental[:, None] < tones.fundamental - self._near())
        number = jnp.sum(tones.active)
        costs = (
            self.model.sounding * number
            + self.model.crossing * jnp.sum(crossed)
            + self.model.ringing * jnp.sum(beyond)
            + self.model.register * jnp.sum(register)
        )
        return self.scale * costs + self.noise * self.model.sounding * number

    def changing(self, before: Tones, after: Tones) -> Float[Array, ""]:
        """Cost of the step from the tones of one frame to those of the next."""
        near = jnp.abs(before.fundamental[:, None] - after.fundamental) < self._near()
        near = near & before.active[:, None] & after.active
        same = near & (before.instrument[:, None] == after.instrument)
        ends = before.active & ~jnp.any(same, axis=1)
        begins = after.active & ~jnp.any(same, axis=0)
        handed = jnp.sum(near & ends[:, None] & begins)
        changes = 0.5 * self.model.change * (jnp.sum(ends) + jnp.sum(begins))
        return self.scale * (changes + self.model.handing * handed)

    def _near(self):
        return self.model.tolerance * _semitone(self.axis)

    def _heights(self):
        density = jnp.exp(-self.surprisal)
        return dot(density, jnp.arange(self.axis.num_bins, dtype=density.dtype)) / jnp.sum(density, axis=1)


class Path(NamedTuple):
    """The cheapest hypothesis of every frame.

    - `choice`: its number.
    - `cost`: total cost C of the path.
    - `marginal`: the cheapest C of a path through each hypothesis.
    """

    choice: Int[np.ndarray, " frames"]
    cost: float
    marginal: Float[np.ndarray, "frames hypotheses"]


def best_path(voices: Voices, tones: Tones, loss: Float[np.ndarray, "frames hypotheses"]) -> Path:
    """The path of least cost through the hypotheses of all frames, by dynamic programming.

    Arguments:
        voices: the costs.
        tones: `[frames, hypotheses, tones]`.
        loss: lifted loss of each hypothesis; infinite where there is none.
    """
    num_frames = len(loss)
    inside = np.arange(num_frames + -num_frames % chunk_size()) < num_frames
    fill = lambda x: np.pad(x, [(0, inside.size - num_frames)] + [(0, 0)] * (np.ndim(x) - 1), mode="edge")
    # A step costs the same backwards: one scan runs from both ends.
    both = lambda x: np.stack([x, x[::-1]], axis=1)
    ways = jax.tree.map(lambda x: both(fill(np.asarray(x))), (tones, loss)), both(inside)
    so_far, parts = None, []
    for first in range(0, inside.size, chunk_size()):
        (here, cost), there = jax.tree.map(lambda x, first=first: x[first : first + chunk_size()], ways)
        if so_far is None:
            so_far = (
                jax.tree.map(lambda x: x[0], here),
                np.zeros(cost[0].shape, np.float32),
                np.zeros_like(there[0]),
            )
        so_far, part = _advanced(voices, so_far, here, cost, there)
        parts.append(jax.tree.map(np.asarray, part))
    arrived, reached, origin = (np.concatenate(kind) for kind in zip(*parts, strict=True))
    choice = np.empty(inside.size, np.int32)
    choice[-1] = np.argmin(reached[-1])
    for frame in range(inside.size - 1, 0, -1):
        choice[frame - 1] = origin[frame, choice[frame]]
    marginal = reached + arrived[::-1, 1]
    return Path(choice[:num_frames], float(reached[-1, choice[-1]]), marginal[:num_frames])


@eqx.filter_jit
def _advanced(voices, so_far, tones, loss, inside):
    """A chunk of the way, `[frames, 2, …]` from either end; frames that fill it up cost nothing.

    One compiled program serves recordings of all lengths.
    """
    cost = loss.astype(jnp.float32) + jax.vmap(jax.vmap(jax.vmap(voices.sounding)))(tones)
    cost = jnp.where(inside[..., None], cost, 0)
    pairs = jax.vmap(jax.vmap(voices.changing, in_axes=(None, 0)), in_axes=(0, None))

    def step(before, total, was, now, cost, inside):
        steps = total[:, None] + jnp.where(was & inside, pairs(before, now), 0)
        arrived = jnp.min(steps, axis=0)
        return arrived, arrived + cost, jnp.argmin(steps, axis=0).astype(jnp.int32)

    def advance(so_far, here):
        arrived, total, origin = jax.vmap(step)(*so_far, *here)
        return (here[0], total, here[2]), (arrived, total[0], origin[0])

    return jax.lax.scan(advance, so_far, (tones, cost, inside))


def _surprisal(tones, num_instruments, axis, smoothing):
    """`ln(p₀ / p_i)` from the pitches of each instrument, each weighted by the root of its amplitude."""
    width = smoothing * _semitone(axis)
    reach = np.arange(-math.ceil(4 * width), math.ceil(4 * width) + 1)
    kernel = np.exp(-0.5 * (reach / width) ** 2)
    place = np.clip(np.round(tones.fundamental), 0, axis.num_bins - 1).astype(int)
    rows = []
    for number in range(num_instruments):
        mine = tones.active & (tones.instrument == number)
        count = np.bincount(place[mine], np.sqrt(tones.amplitude[mine]), axis.num_bins)
        smooth = np.convolve(count, kernel, "same")
        smooth = smooth / max(smooth.sum(), np.finfo(float).tiny)
        # A little of an even spread, so that no pitch is impossible.
        rows.append((1 - _SPREAD) * smooth + _SPREAD / axis.num_bins)
    return -np.log(np.stack(rows) * 24 * _semitone(axis))


#: How much more than usual a tone costs at most where it is to be certain.
_STRICT = 3.0

#: Part of a register that is spread evenly over the axis.
_SPREAD = 0.02


def _semitone(axis):
    return axis.bins_per_neper * math.log(2) / 12

"""Partials as signals: where those of several instruments collide, their beats tell what a mask cannot."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int

from jaxsep.numerics.turn import turn
from jaxsep.signal.gaussians import gaussian
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.tones import Tones

__all__ = ["coherent_partials", "in_lines"]

#: Standard deviation in seconds of the windows in which a partial has one amplitude, after how many of them
#: these are cut, and how many samples lie between them, about.
_WINDOW, _CUT, _SPACING = 256 / 48000, 4, 256

#: Seconds within which a partial forgets its phase and loudness, relative to what the tones say of it.
_FORGETS = 1.0

#: What is no partial, as a multiple of the spectrum there, of windows `_SPACING` samples apart: the less this
#: is, the more faith is in phases, and the more is lost where an instrument is not as steady as it should.
_NOISE = 3.0

#: Change of a fundamental between two frames, as a ratio, with which a note goes on.
_GOES_ON = 0.04

#: Iterations of the conjugate gradients: the residual is 1 % then.
_ITERATIONS = 12

#: How much rather phases are read off partials that nothing lies close to.
_ALONE = 16

#: Which part of the partials must lie alone, about, so that a phase is put right by them.
_DOUBT = 0.001

#: Standard deviation, in windows, over which corrections of a phase are averaged.
_SMOOTH = 2.0

#: Partials of each tone that count: the others are faint.
_PARTIALS = 20

#: An instrument has as many slots as hold all its tones in this part of the frames in which it sounds.
_MOSTLY = 0.75


def in_lines(
    tones: Tones, num_instruments: int
) -> tuple[Int[np.ndarray, "frames slots"], Int[np.ndarray, " slots"]]:
    """Tones in slots that belong to one instrument each, and keep to a note while it sounds.

    Arguments:
        tones: `[frames, tones]`, with fundamentals in Hz.
        num_instruments: how many.

    Returns: for every slot, the index of the tone of each frame, -1 for none; and the instrument of each
    slot. An instrument has as many as it usually plays at a time, at least one; where it plays more, the
    loudest count.
    """
    amplitude = np.where(tones.active & (tones.fundamental > 0), tones.amplitude, 0)
    pitch = np.log(np.where(amplitude > 0, tones.fundamental, 1.0))
    slots, owners = [], []
    for instrument in range(num_instruments):
        loudness = np.where(np.asarray(tones.instrument) == instrument, amplitude, 0)
        playing = np.sum(loudness > 0, axis=1)
        playing = playing[playing > 0]
        most = int(np.quantile(playing, _MOSTLY, method="higher")) if playing.size else 1
        order = np.argsort(-loudness, axis=1, kind="stable")[:, :most]
        sounding = np.take_along_axis(loudness, order, axis=1) > 0
        slots.append(np.where(sounding, order, -1) if most == 1 else _going_on(order, sounding, pitch))
        owners += [instrument] * most
    return np.concatenate(slots, axis=1), np.array(owners)


def _going_on(order, sounding, pitch):
    """Tones of each frame in slots in which notes go on."""
    chosen = np.full(order.shape, -1)
    last = np.full(order.shape[1], np.inf)
    for frame, found in enumerate(order):
        chosen[frame] = _placed(found[sounding[frame]], pitch[frame], last)
        last = np.where(chosen[frame] >= 0, pitch[frame, chosen[frame]], np.inf)
    return chosen


def _placed(found, pitch, last):
    """Tones in slots: those that go on in their own, the nearest first, then the others."""
    placed = np.full(last.size, -1)
    jump = np.abs(pitch[found][:, None] - last)
    for number, slot in zip(*np.unravel_index(np.argsort(jump, axis=None), jump.shape), strict=True):
        if jump[number, slot] < _GOES_ON and placed[slot] < 0 and found[number] not in placed:
            placed[slot] = found[number]
    left = [tone for tone in found if tone not in placed]
    placed[np.flatnonzero(placed < 0)[: len(left)]] = left
    return placed


def coherent_partials(
    samples: Float[Array, "channels samples"],
    tones: Tones,
    harmonics: Float[Array, "frames tones harmonics"],
    stft: GaussianSTFT,
    sample_rate: int,
) -> Float[Array, "tones channels samples"]:
    """What of a recording the partials of each tone are, as signals: slowly changing sinusoids.

    A partial is `Re(a(t) e^{iθ(t)})`. Its phase θ follows the fundamental, put right by the partials that lie
    alone; its amplitude a is a Gaussian process relative to what the tones say of it, with correlations that
    fade in a second, and anew with each note. The amplitudes of all are their expectations given the
    recording: where partials lie closer than a spectrum resolves, what they add up to in the course of a note
    tells them apart, as far as it does; else they share it in the proportion of the tones.

    Arguments:
        samples: of as many frames as the tones have, from the centre of the first on.
        tones: `[frames, tones]`, slots in which notes go on (`in_lines`), with fundamentals in Hz and
            amplitudes in the units of an STFT of the channels' mean in which a sinusoid has half its
            amplitude.
        harmonics: of each tone.
        stft: the transform to whose frames the tones belong.
        sample_rate: in Hz.

    Memory grows with the square of the number of tones: 0.3 GB for 16 of them in 350 frames.

    Source: an addition to P1; the estimate is that of a Vold-Kalman order tracking filter (H. Vold and
    J. Leuridan, SAE 931288, 1993), with a prior.
    """
    harmonics = harmonics[..., :_PARTIALS]
    num_frames, num_tones, size = harmonics.shape
    hop = stft.hop
    per_frame = _windows_per_frame(hop)
    frames = samples.reshape(-1, num_frames, hop)
    number = jnp.arange(1, size + 1, dtype=samples.dtype)
    stretch = number * jnp.sqrt(1 + tones.inharmonicity[..., None] * number**2)
    frequency = tones.fundamental[..., None] * stretch
    audible = tones.active[..., None] & (frequency < 0.45 * sample_rate)
    expected = jnp.where(audible, 2 * tones.amplitude[..., None] * harmonics, 0)
    frame = _frame_of_window(num_frames, per_frame)
    goes_on = _goes_on(tones)
    same = np.concatenate([[0], frame[1:] != frame[:-1]])[:, None]
    same = jnp.where(same > 0, goes_on[frame], True).at[0].set(False)  # [windows, tones]
    flat = lambda x: x.reshape(x.shape[0], -1)
    resolution = stft.sinusoid_std * sample_rate / stft.n_fft
    distance = flat(frequency)[:, :, None] - flat(frequency)[:, None, :]
    around = lambda width: jnp.einsum("fpq,fq->fp", gaussian(distance / width), flat(expected))
    spread = _root(flat(expected) * around(resolution)).reshape(expected.shape)[frame]
    total = around(1 / (2 * math.pi * _WINDOW))
    alone = flat(expected) / jnp.where(total > 0, total, 1)
    alone = alone.reshape(expected.shape)[frame] ** _ALONE

    straight = jnp.zeros((num_frames * per_frame, num_tones), frequency.dtype)
    track = _Track(frequency, goes_on, straight, hop, sample_rate)
    heard = track.demodulate(frames)
    correction = _correction(jnp.mean(heard, axis=0), jnp.where(spread > 0, alone, 0), same, number)
    track = eqx.tree_at(lambda t: t.correction, track, correction)
    heard = heard * track.corrected()
    solve = partial(_expectation, spread=spread, same=same, track=track, spacing=hop // per_frame)
    level = _levels(samples)[:, None, None, None]
    amplitudes = level * jax.vmap(solve)(heard / jnp.where(level > 0, level, 1))
    return track.modulate(amplitudes)


class _Track(eqx.Module):
    """The phases of partials: those of their frequencies, and corrections of those of the fundamentals."""

    frequency: Float[Array, "frames tones harmonics"]
    goes_on: Bool[Array, "frames tones"]
    correction: Float[Array, "windows tones"]
    hop: int = eqx.field(static=True)
    sample_rate: int = eqx.field(static=True)

    @property
    def spacing(self) -> int:
        """Samples from window to window."""
        return self.hop * self.frequency.shape[0] // self.correction.shape[0]

    def demodulate(
        self, frames: Float[Array, "channels frames hop"]
    ) -> Complex[Array, "channels windows tones harmonics"]:
        """Means of the samples times `2 e^{-iθ}` in all windows."""
        reach = math.ceil(_CUT * _WINDOW * self.sample_rate / self.spacing)
        time = np.arange(-reach * self.spacing, reach * self.spacing) / self.sample_rate
        weights = np.exp(-0.5 * (time / _WINDOW) ** 2)
        weights = jnp.asarray((2 * weights / weights.sum()).reshape(2 * reach, -1), frames.dtype)

        def one(partial):
            cosine, sine = turn(self._cycles(*partial))  # [frames, hop]
            product = jnp.stack([frames * cosine, -frames * sine])
            product = product.reshape(2, len(frames), -1, self.spacing)
            parts = jnp.einsum("kcws,js->kcwj", product, weights, precision="highest")
            padded = jnp.pad(parts, ((0, 0), (0, 0), (reach, reach - 1), (0, 0)))
            size = product.shape[2]
            return jax.lax.complex(*sum(padded[:, :, j : j + size, j] for j in range(2 * reach)))

        heard = jax.lax.map(one, self._partials())
        return jnp.moveaxis(heard, 0, 2).reshape(*heard.shape[1:], *self.frequency.shape[1:])

    def corrected(self) -> Complex[Array, "windows tones harmonics"]:
        """What the results of `demodulate` without corrections are multiplied by for those with them."""
        number = jnp.arange(1, self.frequency.shape[2] + 1)
        angle, turning = self.correction[..., None] * number, self._turning()
        # A window sees less of what turns in it.
        size = 1 / jnp.maximum(gaussian(_WINDOW * turning), 0.5)
        return jax.lax.complex(size * jnp.cos(angle), -size * jnp.sin(angle))

    def modulate(
        self, amplitudes: Complex[Array, "channels windows tones harmonics"]
    ) -> Float[Array, "tones channels samples"]:
        """The signals of amplitudes, which change linearly from window to window."""
        rising = jnp.arange(self.spacing, dtype=self.frequency.dtype) / self.spacing

        def add(total, partial):
            *track, amplitude = partial
            cosine, sine = (x.reshape(-1, self.spacing) for x in turn(self._cycles(*track)))
            after = jnp.concatenate([amplitude[:, 1:], amplitude[:, -1:]], axis=1)
            here = amplitude[..., None] + (after - amplitude)[..., None] * rising
            return total + jnp.real(here) * cosine - jnp.imag(here) * sine, None

        num_channels, num_windows, num_tones, size = amplitudes.shape
        silence = jnp.zeros((num_channels, num_windows, self.spacing), self.frequency.dtype)
        of_tone = lambda partials: jax.lax.scan(add, silence, partials)[0].reshape(num_channels, -1)
        partials = (
            *self._partials(),
            jnp.moveaxis(amplitudes, (2, 3), (0, 1)).reshape(-1, *amplitudes.shape[:2]),
        )
        return jax.lax.map(
            of_tone, jax.tree.map(lambda x: x.reshape(num_tones, size, *x.shape[1:]), partials)
        )

    def cycles(self) -> Float[Array, "windows tones harmonics"]:
        """θ / 2π at the windows, but for whole cycles."""
        at = lambda partial: self._cycles(*partial)[:, :: self.spacing].reshape(-1)
        return jax.lax.map(at, self._partials()).T.reshape(-1, *self.frequency.shape[1:])

    def angular_frequencies(self) -> Float[Array, "windows tones harmonics"]:
        """How θ changes per second at the windows."""
        frame = _frame_of_window(self.frequency.shape[0], self.hop // self.spacing)
        return 2 * jnp.pi * self.frequency[frame] + self._turning()

    def _turning(self):
        """How corrections change per second at the windows."""
        change = self.correction - _shift(self.correction, 1).at[0].set(self.correction[0])
        number = jnp.arange(1, self.frequency.shape[2] + 1)
        return change[..., None] * number * (self.sample_rate / self.spacing)

    def _partials(self):
        """Frequency, cycles at the frames and number of each partial, with what is known of its tone."""
        num_frames, _, size = self.frequency.shape
        whole = self.frequency * self.hop + (_next(self.frequency) - self.frequency) * self.hop / 2
        advance = lambda cycles, step: ((cycles + step / self.sample_rate) % 1, cycles)
        _, begin = jax.lax.scan(advance, jnp.zeros_like(whole[0]), whole)
        number = jnp.broadcast_to(jnp.arange(1, size + 1, dtype=begin.dtype), begin.shape[1:])
        each = lambda x: jnp.repeat(x.T, size, axis=0)
        flat = lambda x: x.reshape(num_frames, -1).T
        return (
            flat(self.frequency),
            flat(begin),
            number.reshape(-1),
            each(self.goes_on),
            each(self.correction),
        )

    def _cycles(self, frequency, begin, number, goes_on, correction):
        """θ / 2π of one partial `[frames, hop]`, but for whole cycles."""
        change = (_next(frequency) - frequency)[:, None]
        joined = jnp.concatenate([goes_on[1:], jnp.ones(1, bool)])[:, None]
        time = jnp.arange(self.hop, dtype=frequency.dtype)
        late = jnp.maximum(time - self.hop / 2, 0)
        # A new note begins in the middle between two frames.
        glide = frequency[:, None] * time + change * jnp.where(joined, time**2 / (2 * self.hop), late)
        rising = jnp.arange(self.spacing, dtype=frequency.dtype) / self.spacing
        bend = correction[:, None] + (_next(correction) - correction)[:, None] * rising
        cycles = begin[:, None] + glide / self.sample_rate
        cycles = cycles + number * bend.reshape(-1, self.hop) / (2 * jnp.pi)
        return cycles - jnp.round(cycles)


def _levels(samples):
    """How loud channels are beside their mean, to which the amplitudes of tones refer."""
    energy = jnp.sum(samples**2, axis=1)
    mean = jnp.sum(jnp.mean(samples, axis=0) ** 2)
    return jnp.where(mean > 0, _root(energy / jnp.where(mean > 0, mean, 1)), 1)


def _expectation(heard, *, spread, same, track, spacing):
    """Expected amplitudes `[windows, tones, harmonics]`, by conjugate gradients."""
    shape, flat = heard.shape, lambda x: x.reshape(x.shape[0], -1)
    size = shape[2]
    power = jnp.real(heard) ** 2 + jnp.imag(heard) ** 2
    noise = _NOISE**2 * _SPACING / spacing * (power + 1e-6 * jnp.max(spread) ** 2)
    noise = jnp.where(noise > 0, noise, 1)
    trust = flat(spread / jnp.sqrt(noise))
    kept = jnp.where(same, math.exp(-spacing / track.sample_rate / _FORGETS), 0).astype(spread.dtype)
    kept = jnp.repeat(kept, size, axis=1)
    sure = 1 / (1 - kept**2)
    before = kept * sure  # how much each window is tied to the one before
    after = jnp.concatenate([before[1:], jnp.zeros_like(before[:1])])
    own = sure + jnp.concatenate([(kept**2 * sure)[1:], jnp.zeros_like(sure[:1])])
    turned = jax.lax.complex(*turn(flat(track.cycles())))
    pulse = _WINDOW * flat(track.angular_frequencies())
    overlap = gaussian(pulse[:, :, None] - pulse[:, None, :])  # of two partials in a window

    def multiply(x):
        # Not as a product of complex numbers, half of which would be zeros.
        moved = trust * turned * x
        moved = jnp.stack([jnp.real(moved), jnp.imag(moved)])
        moved = jax.lax.complex(*jnp.einsum("wpq,kwq->kwp", overlap, moved, precision="highest"))
        seen = trust * jnp.conj(turned) * moved
        return seen + own * x - before * _shift(x, 1) - after * _shift(x, -1)

    precondition = _tridiagonal(trust**2 + own, before, after)
    right = flat(heard * spread / noise)
    x = precondition(right)
    residual = right - multiply(x)
    direction = precondition(residual)
    energy = jnp.real(jnp.vdot(residual, direction))

    def iterate(_, state):
        x, residual, direction, energy = state
        image = multiply(direction)
        curvature = jnp.real(jnp.vdot(direction, image))
        length = jnp.where(curvature > 0, energy / jnp.where(curvature > 0, curvature, 1), 0)
        x, residual = x + length * direction, residual - length * image
        better = precondition(residual)
        new = jnp.real(jnp.vdot(residual, better))
        ratio = jnp.where(energy > 0, new / jnp.where(energy > 0, energy, 1), 0)
        return x, residual, better + ratio * direction, new

    x, *_ = jax.lax.fori_loop(0, _ITERATIONS, iterate, (x, residual, direction, energy))
    return x.reshape(shape) * spread


def _tridiagonal(diagonal, before, after):
    """The inverse of the matrix with this diagonal and `-before` beside it, along the first axis."""

    def factor(pivot, row):
        diagonal, before = row
        pivot = diagonal - before**2 / pivot
        return pivot, pivot

    _, pivots = jax.lax.scan(factor, jnp.ones_like(diagonal[0]), (diagonal, before))
    down = before / jnp.concatenate([jnp.ones_like(pivots[:1]), pivots[:-1]])

    def forward(x, row):
        value, ratio = row
        x = value + ratio * x
        return x, x

    def backward(x, row):
        value, pivot, after = row
        x = (value + after * x) / pivot
        return x, x

    def solve(right):
        zero = jnp.zeros_like(right[0])
        _, half = jax.lax.scan(forward, zero, (right, down))
        _, x = jax.lax.scan(backward, zero, (half, pivots, after), reverse=True)
        return x

    return solve


def _correction(heard, reliable, same, number):
    """What is to be added to the phases of fundamentals `[windows, tones]`, as the partials turn."""
    before = _shift(heard, 1)
    turned = heard * jnp.conj(before)
    power = _root(jnp.real(turned) ** 2 + jnp.imag(turned) ** 2) * same[..., None]
    weight = power * _root(reliable * _shift(reliable, 1))
    angle = jnp.angle(jnp.where(weight > 0, turned, 1))
    reach = round(6 * _SMOOTH)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _SMOOTH) ** 2)
    smooth = jax.vmap(lambda x: jnp.convolve(x, jnp.asarray(kernel, x.dtype), "same"), 1, 1)
    seen = smooth(jnp.sum(weight * number * angle, -1))
    # Where hardly anything lies alone the tones know better.
    all_ = smooth(jnp.sum((weight + _DOUBT * power) * number**2, -1))
    return jnp.cumsum(jnp.where(all_ > 0, seen / jnp.where(all_ > 0, all_, 1), 0), axis=0)


def _goes_on(tones):
    """Where a slot holds the note of the frame before."""
    before = lambda x: jnp.concatenate([x[:1], x[:-1]])
    both = tones.active & before(tones.active) & (tones.fundamental > 0) & (before(tones.fundamental) > 0)
    ratio = jnp.where(both, tones.fundamental, 1) / jnp.where(both, before(tones.fundamental), 1)
    return jnp.where(both, jnp.abs(jnp.log(ratio)) < _GOES_ON, tones.active == before(tones.active))


def _shift(x, by):
    """The rows before (1) or after (-1), zero beyond the ends."""
    zero = jnp.zeros_like(x[:1])
    return jnp.concatenate([zero, x[:-1]] if by == 1 else [x[1:], zero])


def _next(x):
    """The rows after, the last one once more."""
    return jnp.concatenate([x[1:], x[-1:]])


def _root(x):
    """The square root, with the derivative 0 at 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def _frame_of_window(num_frames, per_frame):
    """The nearest frame: windows in the second half of a frame belong to the next."""
    return np.minimum((np.arange(num_frames * per_frame) + per_frame // 2) // per_frame, num_frames - 1)


def _windows_per_frame(hop):
    """As many as lie `_SPACING` apart, about, and divide the hop."""
    return next(number for number in range(max(1, hop // _SPACING), 0, -1) if hop % number == 0)

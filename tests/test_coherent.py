"""Partials as signals: those that collide are told apart by their beats, and nothing is lost or made up."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsep.separation.chunks import ANALYSIS_RATE
from jaxsep.separation.coherent import coherent_partials, in_lines
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.tones import Tones

pytestmark = pytest.mark.compiles

STFT, FRAMES = GaussianSTFT(hop=512), 120
TIME = np.arange(FRAMES * STFT.hop) / ANALYSIS_RATE

#: Frames whose estimates know the recording on either side.
INSIDE = slice(20 * STFT.hop, -20 * STFT.hop)


def made(*fields):
    """Tones of arrays of the host."""
    return Tones.plain(*map(jnp.asarray, fields))


def told(fundamentals, amplitudes=0.5, num_harmonics=1, dtype=np.float32):
    """Tones of constant pitch, one slot each, and harmonics that are all alike."""
    shape = FRAMES, len(fundamentals)
    place = np.broadcast_to(np.asarray(fundamentals, dtype), shape)
    loud = np.broadcast_to(np.asarray(amplitudes, dtype), shape)
    tones = made(loud, place, np.broadcast_to(np.arange(shape[1]), shape))
    return tones, jnp.ones((*shape, num_harmonics), dtype)


def partials(samples, tones, harmonics):
    run = jax.jit(lambda samples: coherent_partials(samples, tones, harmonics, STFT, ANALYSIS_RATE))
    return np.asarray(run(jnp.asarray(samples, jnp.float32)[None]))[:, 0]


def error(found, true):
    """In dB, where the recording is known on either side."""
    found, true = found[..., INSIDE], true[..., INSIDE]
    return 10 * np.log10(np.sum((found - true) ** 2) / np.sum(true**2))


def wave(frequency, phase=0.0):
    return np.cos(2 * np.pi * np.cumsum(np.broadcast_to(frequency, TIME.shape)) / ANALYSIS_RATE + phase)


def test_a_lone_partial_comes_back():
    sound = 0.8 * wave(440.0, 1.0)
    assert error(partials(sound, *told([440.0], 0.4))[0], sound) < -25


@pytest.mark.parametrize("beat", [3.0, 12.0])
def test_partials_that_collide_come_back(beat):
    first, second = wave(600.0, 0.5), wave(600.0 + beat, 2.0)
    found = partials(first + second, *told([600.0, 600.0 + beat], 0.5))
    assert error(found[0], first) < -20
    assert error(found[1], second) < -20


@pytest.mark.parametrize("beat", [3.0, 6.0])
def test_beats_tell_partials_apart_whose_loudness_is_not_known(beat):
    first, second = wave(600.0, 0.5), 0.4 * wave(600.0 + beat, 2.0)
    found = partials(first + second, *told([600.0, 600.0 + beat], [0.5, 0.35]))
    # What is not sure is shared, here evenly.
    stems = found + (first + second - found.sum(axis=0)) / 2
    assert error(stems[0], first) < error((first + second) / 1.4, first) - 3
    assert error(stems[1], second) < error(0.4 * (first + second) / 1.4, second) - 3


def test_a_wrong_pitch_is_put_right():
    sound = sum(wave(440.0 * h, h) for h in (1, 2, 3))
    wrong = partials(sound, *told([438.5], 0.5, 3))[0]
    assert error(wrong, sound) < -10


def test_a_vibrato_is_followed():
    pitch = 440 * 2 ** (0.3 / 12 * np.sin(2 * np.pi * 5 * TIME))
    sound = wave(pitch) + 0.5 * wave(3 * pitch)
    tones, harmonics = told([440.0], 0.5, 3)
    tones = eqx.tree_at(lambda t: t.fundamental, tones, jnp.asarray(pitch[:: STFT.hop, None], jnp.float32))
    assert error(partials(sound, tones, harmonics * jnp.array([1, 0, 0.5]))[0], sound) < -12


def test_what_is_not_told_is_not_found():
    tones, harmonics = told([440.0, 700.0])
    silent = eqx.tree_at(lambda t: t.active, tones, tones.active & (jnp.arange(2) == 0))
    found = partials(wave(440.0) + wave(700.0), silent, harmonics)
    assert np.all(found[1] == 0)
    assert error(found[0], wave(440.0)) < -20
    silence = partials(np.zeros(TIME.size), tones, harmonics)
    assert np.abs(silence).max() < 1e-6
    nothing = eqx.tree_at(
        lambda t: (t.active, t.fundamental), tones, (tones.active & False, 0 * tones.fundamental)
    )
    assert np.all(partials(wave(440.0), nothing, harmonics) == 0)


@pytest.mark.parametrize("level", [1e-6, 1e6])
def test_no_level_is_special(level):
    sound, (tones, harmonics) = wave(600.0) + wave(604.0), told([600.0, 604.0])
    louder = eqx.tree_at(lambda t: t.amplitude, tones, np.float32(level) * tones.amplitude)
    expected = partials(sound, tones, harmonics)
    np.testing.assert_allclose(partials(level * sound, louder, harmonics) / level, expected, atol=2e-3)


def test_no_channel_is_special():
    """A channel is told apart like the mean of all, whatever its level and polarity beside that."""
    sound, told_them = jnp.asarray(wave(600.0) + wave(604.0), jnp.float32), told([600.0, 604.0])
    channels = jnp.stack([2.5 * sound, -0.5 * sound, 0 * sound, 2 * sound])
    run = jax.jit(lambda samples: coherent_partials(samples, *told_them, STFT, ANALYSIS_RATE))
    found, expected = run(channels), partials(sound, *told_them)
    for level, channel in zip((2.5, -0.5, 0.0, 2.0), range(4), strict=True):
        np.testing.assert_allclose(found[:, channel], level * expected, atol=2e-3)


def test_notes_begin_anew():
    sound = np.where(np.arange(TIME.size) < TIME.size // 2, wave(440.0), wave(523.0, 1.0))
    tones, harmonics = told([440.0])
    pitch = np.where(np.arange(FRAMES) < FRAMES // 2, 440.0, 523.0).astype(np.float32)
    tones = eqx.tree_at(lambda t: t.fundamental, tones, jnp.asarray(pitch[:, None]))
    assert error(partials(sound, tones, harmonics)[0], sound) < -12


def test_hops_agree():
    sound = wave(600.0) + wave(605.0, 1.0)
    expected = partials(sound, *told([600.0, 605.0]))
    stft = GaussianSTFT(hop=384)
    frames = TIME.size // 384
    tones = jax.tree.map(lambda x: jnp.repeat(x[:1], frames, axis=0), told([600.0, 605.0])[0])
    harmonics = jnp.ones((frames, 2, 1), jnp.float32)
    other = coherent_partials(jnp.asarray(sound[None], jnp.float32), tones, harmonics, stft, ANALYSIS_RATE)
    assert error(np.asarray(other)[:, 0], expected) < -15


def test_derivatives_are_those_of_finite_differences():
    with jax.enable_x64(True):
        key, frames = jax.random.key(0), 14
        tones = Tones.plain(
            jnp.full((frames, 3), 0.4),
            jnp.tile(jnp.array([600.0, 606.0, 0.0]), (frames, 1)),
            jnp.zeros((frames, 3), int),
        )
        tones = eqx.tree_at(lambda t: t.active, tones, jnp.tile(jnp.array([True, True, False]), (frames, 1)))
        harmonics = jnp.ones((frames, 3, 2)) / 2
        samples = jnp.asarray(wave(600.0)[: frames * 512] + wave(606.0)[: frames * 512])[None]
        weight = jax.random.normal(key, (3, 1, frames * 512))

        def value(samples, amplitude, harmonics):
            there = eqx.tree_at(lambda t: t.amplitude, tones, amplitude)
            return jnp.sum(weight * coherent_partials(samples, there, harmonics, STFT, ANALYSIS_RATE))

        given = samples, tones.amplitude, harmonics
        gradients = jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*given)
        evaluate = jax.jit(value)
        for number, (x, gradient) in enumerate(zip(given, gradients, strict=True)):
            assert np.all(np.isfinite(gradient))
            way = jax.random.normal(jax.random.fold_in(key, number), x.shape) * (x != 0)
            moved = lambda step, n=number, d=way: evaluate(
                *(a + step * d if k == n else a for k, a in enumerate(given))
            )
            slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
            np.testing.assert_allclose(jnp.sum(gradient * way), slope, rtol=1e-3)


class TestLines:
    """Slots in which notes go on."""

    def test_a_note_keeps_its_slot(self):
        pitch = np.array([[440.0, 660.0], [662.0, 441.0], [440.0, 660.0]])
        tones = made(np.array([[0.5, 0.4]] * 3), pitch, np.zeros((3, 2), int))
        slots, owners = in_lines(tones, 1)
        assert list(owners) == [0, 0]
        np.testing.assert_array_equal(np.take_along_axis(pitch, slots, 1)[:, 0], [440, 441, 440])

    def test_slots_belong_to_one_instrument_each(self):
        instrument = np.array([[0, 1], [1, 0], [1, 1]])
        tones = made(np.array([[0.5, 0.4]] * 3), np.array([[440.0, 880.0]] * 3), instrument)
        slots, owners = in_lines(tones, 3)
        for slot, owner in zip(slots.T, owners, strict=True):
            chosen = slot >= 0
            assert np.all(instrument[chosen, slot[chosen]] == owner)
        assert set(owners) == {0, 1, 2}

    def test_what_is_played_rarely_has_no_slot_and_the_loudest_stays(self):
        active = np.zeros((40, 2), bool)
        active[:, 0], active[:3, 1] = True, True
        amplitude = np.where(active, [0.3, 0.6], 0)
        tones = made(amplitude, np.full((40, 2), 440.0), np.zeros((40, 2), int), active)
        slots, owners = in_lines(tones, 1)
        assert list(owners) == [0]
        np.testing.assert_array_equal(slots[:, 0], [1] * 3 + [0] * 37)

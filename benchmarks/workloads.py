"""Synthetic tones, and the stages of a separation as functions of arrays on them, for the suite to time."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxsep.blasso.certificate import alpha_max
from jaxsep.blasso.lasso import BeurlingLasso
from jaxsep.blasso.patterns import Patterns
from jaxsep.learning.learner import DictionaryLearner
from jaxsep.neural.settings import NeuralSettings
from jaxsep.neural.training import Trainer
from jaxsep.pursuit.loss import LiftedLoss, power
from jaxsep.pursuit.refinement import LevenbergMarquardt, refine
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.signal.axes import LinearAxis, LogAxis
from jaxsep.signal.log_frequency import log_frequency_spectrogram
from jaxsep.signal.peaks import PeakPursuit
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.dictionary import NUM_HARMONICS
from jaxsep.tones.rendering import render, render_instruments
from jaxsep.tones.tones import Tones

__all__ = [
    "Stage",
    "all_stages",
    "learned_like",
    "music",
    "parts",
    "polyphonic_pursuit",
    "pursuit_over_bins",
    "random_tones",
    "rendering",
    "stft",
    "tone_pursuit",
    "unet_step",
]

RATE = 48_000
AXIS = LogAxis()

#: Fundamentals lie within so many bins from the first.
_PITCH_RANGE = 500.0


@dataclasses.dataclass(frozen=True)
class Stage:
    """A function of arrays and its arguments; `frames` are what its time is divided by."""

    name: str
    frames: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    @classmethod
    def of(cls, name: str, frames: int, function: Callable[..., Any], *arguments: Any) -> "Stage":
        """Of a function whose arguments may be modules: what is no array is fixed."""
        arrays, fixed = eqx.partition(arguments, eqx.is_array)

        def of_arrays(arrays):
            return eqx.filter(function(*eqx.combine(arrays, fixed)), eqx.is_array)

        return cls(name, frames, of_arrays, (arrays,))


def all_stages(frames: int) -> Iterator[Stage]:
    """Every stage, on so many frames; those of the Beurling LASSO and of the network have fewer."""
    yield stft(frames)
    yield inverse_stft(frames)
    yield rendering(frames, "windowed")
    yield rendering(frames, "dense")
    yield peaks("default", PeakPursuit(), frames)
    yield peaks("full", PeakPursuit.full(), frames // 8)
    yield tone_pursuit(frames)
    yield refinement(frames)
    yield learning(min(frames, 64))
    yield lasso(frames // 8)
    yield unet_step(12)


# ---- Input -------------------------------------------------------------------------------------------------


def noise(frames: int, hop: int = 512) -> Float[Array, " samples"]:
    """Samples of so many frames."""
    return 0.1 * jax.random.normal(jax.random.key(0), (hop * (frames - 1) + 1,))


def random_tones(num_frames: int, num_instruments: int, *, key: PRNGKeyArray) -> Tones:
    """One tone of each instrument in every frame."""
    amplitude_key, pitch_key = jax.random.split(key)
    shape = num_frames, num_instruments
    return Tones.plain(
        amplitude=jax.random.uniform(amplitude_key, shape),
        fundamental=_PITCH_RANGE * jax.random.uniform(pitch_key, shape),
        instrument=jnp.broadcast_to(jnp.arange(num_instruments), shape),
    )


@jax.jit
def parts(
    tones: Tones, dictionary: Float[Array, "instruments harmonics"]
) -> Float[Array, "frames instruments bins"]:
    """Spectra of each instrument."""
    render = lambda frame: render_instruments(frame, dictionary[frame.instrument], AXIS, len(dictionary))
    return jax.vmap(render)(tones)


def learned_like(count: int = 2) -> Float[Array, "instruments harmonics"]:
    """Instruments whose harmonics fall off as those of music do."""
    heights = jax.random.uniform(jax.random.key(3), (count, NUM_HARMONICS), minval=0.1)
    rows = heights / jnp.arange(1, NUM_HARMONICS + 1)
    return rows / jnp.max(rows, axis=1, keepdims=True)


def duets(frames: int, axis: LinearAxis | LogAxis) -> Float[Array, "frames bins"]:
    """Exact spectra of one tone of each of two instruments."""
    tones = random_tones(frames, 2, key=jax.random.key(6))
    hertz = AXIS.to_hz(tones.fundamental)
    tones = eqx.tree_at(lambda t: t.fundamental, tones, axis.to_bin(hertz))
    return jax.vmap(lambda t: render(t, learned_like()[t.instrument], axis))(tones)


def music(frames: int, axis: LogAxis = AXIS) -> Float[Array, "frames bins"]:
    """Spectra of one tone of each of two instruments, with a tenth of noise and a peak of 1."""
    spectra = duets(frames, axis)
    spectra = jnp.abs(spectra * (1 + 0.1 * jax.random.normal(jax.random.key(7), spectra.shape)))
    return spectra / jnp.max(spectra)


# ---- Stages ------------------------------------------------------------------------------------------------


def stft(frames: int) -> Stage:
    """Analysis with P1's window at hop 512."""
    transform = GaussianSTFT(hop=512)
    return Stage.of("STFT", frames, lambda x: transform.analyse(x), noise(frames))


def inverse_stft(frames: int) -> Stage:
    """Overlap and add of as many frames."""
    transform = GaussianSTFT(hop=512)
    spectra = transform.analyse(noise(frames))
    return Stage.of("inverse STFT", frames, transform.overlap_add, spectra)


def rendering(frames: int, method: str = "windowed") -> Stage:
    """Spectra of two tones each."""
    tones = random_tones(frames, 2, key=jax.random.key(6))
    one = lambda rows: lambda tones: render(tones, rows[tones.instrument], AXIS, method=method)
    spectra = lambda tones, rows: jax.vmap(one(rows))(tones)
    return Stage.of(f"rendering, {method}", frames, spectra, tones, learned_like())


def peaks(name: str, pursuit: PeakPursuit, frames: int) -> Stage:
    """Log-frequency spectra of tones and noise."""
    transform = GaussianSTFT(hop=512)
    axis = transform.axis(RATE)
    linear = duets(frames, axis)
    linear = linear + 1e-3 * jax.random.uniform(jax.random.key(8), linear.shape)
    spectrogram = lambda x: log_frequency_spectrogram(x, axis, AXIS, pursuit)
    return Stage.of(f"log-frequency spectrogram, {name}", frames, spectrogram, linear)


def tone_pursuit(frames: int) -> Stage:
    """Greedy pursuit of two instruments, one tone each."""
    return Stage.of("tone pursuit", frames, TonePursuit(), music(frames), learned_like())


def polyphonic_pursuit(frames: int, tones: int) -> Stage:
    """Greedy pursuit of up to so many tones of each of two instruments."""
    pursuit = TonePursuit(tones_per_instrument=tones)
    return Stage.of("tone pursuit", frames, pursuit, music(frames), learned_like())


def pursuit_over_bins(frames: int, bins: int) -> Stage:
    """Greedy pursuit on a finer or coarser axis."""
    axis = LogAxis(bins)
    pursuit = TonePursuit(LiftedLoss(axis))
    return Stage.of("tone pursuit", frames, pursuit, music(frames, axis), learned_like())


def refinement(frames: int) -> Stage:
    """Joint refinement, as the full search does it most, from tones that are a little off."""
    tones = random_tones(frames, 2, key=jax.random.key(6))
    tones = eqx.tree_at(lambda t: t.fundamental, tones, tones.fundamental + 1)
    pursuit = TonePursuit()
    solver = pursuit.solver
    refined = lambda x, t, rows: refine(x, t, rows[t.instrument], pursuit.objective, solver=solver)
    return Stage.of("refinement", frames, refined, music(frames), tones, learned_like())


def learning(frames: int) -> Stage:
    """A step of dictionary learning on a minibatch."""
    learner = DictionaryLearner(TonePursuit(solver=LevenbergMarquardt(1e-4)), batch=frames)
    state, rate = learner.start(key=jax.random.key(0)), jnp.float32(learner.learning_rate)
    return Stage.of("dictionary learning step", frames, learner.step, state, music(frames), rate)


def lasso(frames: int) -> Stage:
    """Beurling LASSO with certificate, at α of three tenths of the largest useful one."""
    signals = power(music(frames), 0.5)
    patterns = Patterns.from_dictionary(learned_like(), AXIS, lift=0.5)
    alpha = 0.3 * jax.lax.map(lambda b: alpha_max(patterns, b), signals)
    return Stage.of("Beurling LASSO", frames, BeurlingLasso(), patterns, signals, alpha)


def unet_step(batch: int, settings: NeuralSettings = NeuralSettings.small()) -> Stage:
    """A step of policy gradient with the network that suits CPUs."""
    trainer = Trainer(dataclasses.replace(settings, batch=batch), num_instruments=2)
    state = trainer.start(learned_like(), key=jax.random.key(1))
    return Stage.of("U-Net step", batch, lambda s, x: trainer.step(s, x), state, noise(128))

"""A task for the network whose answers are known: which of two random instruments plays where."""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int, PRNGKeyArray

from jaxsep.neural.partials import Partials
from jaxsep.neural.prediction import predict
from jaxsep.neural.settings import NeuralSettings
from jaxsep.neural.training import Trainer, TrainingState, first_dictionary
from jaxsep.signal.gaussians import SINUSOID_WIDTH
from jaxsep.tones.dictionary import random_instruments

#: 288 bins, up to 6 kHz.
SETTINGS = NeuralSettings(
    rate=12_000,
    window_std=48,
    hop=48,
    strides=(4, 4, 3, 3, 2),
    widths=(16, 32, 48, 64, 64),
    batch=16,
    accumulate=4,
    steps=600,
    hold=100,
    network_rate=6e-3,
    dictionary_rate=1e-3,
)


class Task(eqx.Module):
    """Frames in which each instrument plays one tone, in bins from `lowest` up to `highest`.

    Example:
        >>> task = Task(Trainer(SETTINGS, 2), random_instruments(2, 8, key=jax.random.key(3)), 8, 32)
    """

    trainer: Trainer
    instruments: Float[Array, "instruments harmonics"]
    lowest: int = eqx.field(static=True)
    highest: int = eqx.field(static=True)

    def draw(self, key: PRNGKeyArray) -> tuple[Complex[Array, " bins"], Int[Array, " instruments"]]:
        """A frame, and the bin of each instrument's fundamental."""
        number, num_harmonics = self.instruments.shape
        place_key, loudness_key, phase_key = jax.random.split(key, 3)
        place = jax.random.randint(place_key, (number,), self.lowest, self.highest)
        loudness = jax.random.uniform(loudness_key, (number,), minval=0.3, maxval=1.0)
        phase = jnp.exp(2j * jnp.pi * jax.random.uniform(phase_key, (number, num_harmonics)))
        width, inharmonicity = jnp.float32(SINUSOID_WIDTH), jnp.float32(0)

        def tone(place, amplitudes):
            fundamental = place.astype(jnp.float32)
            partials = Partials.of(fundamental, width, inharmonicity, num_harmonics, self.trainer.axis)
            return partials.add(amplitudes)

        amplitudes = loudness[:, None] * self.instruments * phase
        return jnp.sum(jax.vmap(tone)(place, amplitudes), axis=0), place

    def draws(
        self, number: int, key: PRNGKeyArray
    ) -> tuple[Complex[Array, "frames bins"], Int[Array, "frames instruments"]]:
        """So many frames."""
        return jax.vmap(self.draw)(jax.random.split(key, number))

    def start(
        self, harmonics: Float[Array, "instruments harmonics"] | None = None, *, key: PRNGKeyArray
    ) -> TrainingState:
        """Random network, with P2's initial dictionary unless one is given."""
        first = first_dictionary(*self.instruments.shape) if harmonics is None else harmonics
        state = self.trainer.start(first, key=key)
        return eqx.tree_at(lambda s: s.blind, state, jnp.asarray(harmonics is None))

    @eqx.filter_jit(donate="all-except-first")
    def learn(self, state: TrainingState) -> TrainingState:
        """A step of policy gradient on frames that were never seen."""
        key, sample_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        frames, _ = self.draws(self.trainer.settings.batch, key)
        return self.trainer.learn(state, frames, key=sample_key)[0]

    @eqx.filter_jit
    def find_dictionary(self, state: TrainingState, key: PRNGKeyArray) -> TrainingState:
        """The state with a dictionary from what it hears in 384 frames."""
        return self.trainer.with_dictionary(state, self.draws(384, key)[0], key=key)

    @eqx.filter_jit
    def _found(self, state, key):
        frames, place = self.draws(256, key)
        find = lambda frame: predict(state.network, state.harmonics, frame, self.trainer.axis).tones
        return jax.lax.map(find, frames, batch_size=32), place

    def right(self, state: TrainingState, key: PRNGKeyArray) -> dict[str, float]:
        """Parts of the tones of unseen frames that are right.

        `right`: instrument and bin, instruments in the better order; `bins`: whatever the instrument.
        """
        tones, place = jax.tree.map(np.asarray, self._found(state, key))
        near = lambda played: tones.active & (np.abs(tones.fundamental - played) < 0.5)
        same, swapped = near(place), near(place[:, ::-1])
        return {"right": max(same.mean(), swapped.mean()), "bins": (same | swapped).mean()}


def reference_task() -> Task:
    """Two random instruments with 8 harmonics, in two octaves.

    Random instruments may be pure tones, whose bin matters little to the loss; these are not.
    """
    instruments = random_instruments(2, 8, key=jax.random.key(3))
    return Task(Trainer(SETTINGS, 2), instruments, 8, 32)


def solve(task: Task, start: TrainingState, num_steps: int, every: int = 125) -> list[dict[str, Any]]:
    """Figures after every so many steps, with the CPU seconds of the steps without compilation."""
    state, curve, spent = start, [], 0.0
    for number in range(1, num_steps + 1):
        begin = time.process_time()
        if bool(state.blind) and task.trainer.finds_dictionary(number - 1):
            state = jax.block_until_ready(task.find_dictionary(state, jax.random.key(5)))
            begin = time.process_time()
        state = jax.block_until_ready(task.learn(state))
        spent += (time.process_time() - begin) if number > 1 else 0.0
        if number % every == 0 or number == num_steps:
            curve.append({"steps": number, "seconds": spent, **task.right(state, jax.random.key(1))})
            print(curve[-1], flush=True)
    return curve

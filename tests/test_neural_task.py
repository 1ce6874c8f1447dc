"""A task whose answers are known: the network learns which instrument plays where, on unseen frames."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsep.neural.partials import Partials
from jaxsep.neural.policy import Choice
from jaxsep.neural.prediction import predict
from jaxsep.neural.settings import NeuralSettings
from jaxsep.neural.training import Trainer
from jaxsep.signal.gaussians import SINUSOID_WIDTH
from jaxsep.tones.dictionary import random_instruments

NUM_HARMONICS, LOWEST, HIGHEST = 8, 8, 32
SETTINGS = NeuralSettings(
    rate=12_000,
    window_std=48,  # 288 bins
    hop=48,
    strides=(4, 4, 3, 3, 2),
    widths=(16, 32, 48, 64, 64),
    batch=16,
    steps=4300,
    imitation=4000,
    imitation_rate=6e-3,
    dictionary_rate=1e-3,
)
TRAINER = Trainer(SETTINGS, num_instruments=2)
INSTRUMENTS = random_instruments(2, NUM_HARMONICS, key=jax.random.key(3))


def draw(key):
    """A frame in which both instruments play a tone, what is to be chosen, and the fundamental of each."""
    place_key, loudness_key, phase_key = jax.random.split(key, 3)
    place = jax.random.randint(place_key, (2,), LOWEST, HIGHEST)
    loudness = jax.random.uniform(loudness_key, (2,), minval=0.3, maxval=1.0)
    phase = jnp.exp(2j * jnp.pi * jax.random.uniform(phase_key, (2, NUM_HARMONICS)))
    width, inharmonicity = jnp.float32(SINUSOID_WIDTH), jnp.float32(0)

    def tone(place, loudness, harmonics, phase):
        fundamental = place.astype(jnp.float32)
        partials = Partials.of(fundamental, width, inharmonicity, NUM_HARMONICS, TRAINER.axis)
        return partials.add(loudness * harmonics * phase)

    frame = jnp.sum(jax.vmap(tone)(place, loudness, INSTRUMENTS, phase), axis=0)
    order = jnp.argsort(-loudness).astype(jnp.int32)
    return frame, Choice(order, place[order], jnp.ones(2, bool), jnp.full(2, 1e-4)), place


# Thousands of steps: here the optimisation that the other tests do without saves time.
@eqx.filter_jit(donate="all-except-first", compiler_options={"xla_backend_optimization_level": 3})
def imitate(trainer, state):
    key = jax.random.fold_in(state.key, state.step)
    frames, choices, _ = jax.vmap(draw)(jax.random.split(key, trainer.settings.batch))
    return trainer.imitate(state, frames, choices)[0]


@eqx.filter_jit(donate="all-except-first")
def learn(trainer, state):
    key, sample_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    frames, _, _ = jax.vmap(draw)(jax.random.split(key, trainer.settings.batch))
    return trainer.learn(state, frames, key=sample_key)[0]


@eqx.filter_jit
def right(state, key):
    """Part of the tones of unseen frames for which instrument and bin are right."""
    frames, _, place = jax.vmap(draw)(jax.random.split(key, 512))
    find = lambda frame: predict(state.network, state.harmonics, frame, TRAINER.axis).tones
    found = jax.lax.map(find, frames, batch_size=32)
    return jnp.mean(found.active & (jnp.abs(found.fundamental - place) < 0.5))


@pytest.mark.slow
def test_two_random_instruments_are_told_apart_on_unseen_frames():
    state = TRAINER.start(jnp.full((2, NUM_HARMONICS), 0.5), key=jax.random.key(0))
    unseen = jax.random.key(1)
    for _ in range(SETTINGS.imitation):
        state = imitate(TRAINER, state)
    imitated = float(right(state, unseen))
    for _ in range(SETTINGS.steps - SETTINGS.imitation):
        state = learn(TRAINER, state)
    learned = float(right(state, unseen))
    assert learned >= 0.9, (imitated, learned)
    # The policy gradient, which is told nothing, does not lose what imitation taught.
    assert learned >= imitated - 0.02, (imitated, learned)
    # The dictionary began flat, 0.45 from that of the instruments.
    rows = np.asarray(state.harmonics / jnp.max(state.harmonics, axis=1, keepdims=True))
    assert np.mean(np.abs(rows - INSTRUMENTS)) < 0.05

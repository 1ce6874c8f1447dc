"""Imitation of given tones: which are taken, what the policy learns from them, and the steps that do it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_neural_training import SAMPLES, TINY, assert_same, start

from jaxsep.neural import loop
from jaxsep.neural.estimator import dictionary_pull
from jaxsep.neural.imitation import Guide, imitation
from jaxsep.neural.loop import train
from jaxsep.neural.losses import PredictionLoss
from jaxsep.neural.policy import FEATURES, Choice, Policy
from jaxsep.neural.prediction import predict
from jaxsep.neural.training import Trainer, train_step
from jaxsep.signal.axes import LinearAxis
from jaxsep.tones.tones import Tones

pytestmark = pytest.mark.compiles

AXIS = LinearAxis(96, 10.0)


def tones(*frames):
    """Of (amplitude, Hz, b, instrument, active) for every tone of every frame."""
    amplitude, fundamental, b, instrument, active = np.moveaxis(np.array(frames, float), 2, 0)
    width = np.ones_like(amplitude)
    return Tones(
        *(jnp.asarray(x, jnp.float32) for x in (amplitude, fundamental, width, b)),
        jnp.asarray(instrument, jnp.int32),
        jnp.asarray(active, bool),
    )


GUIDE = Guide.of(
    tones(
        [(0.2, 104, 1e-4, 0, 1), (0.5, 236, 2e-4, 1, 1), (0.1, 300, 0, 1, 1)],
        [(0.3, 151, 3e-4, 0, 1), (0.9, 400, 0, 1, 0), (0.2, 990, 0, 1, 1)],  # inactive; beyond the axis
    ),
    20.0,
    2,
    AXIS,
)


def test_the_loudest_tone_of_each_instrument_is_taken_loudest_first():
    choices = GUIDE.choices
    np.testing.assert_array_equal(choices.instrument, [[1, 0], [0, 1]])
    np.testing.assert_array_equal(choices.bin, [[24, 10], [15, 0]])
    np.testing.assert_array_equal(choices.present, [[True, True], [True, False]])
    np.testing.assert_allclose(choices.inharmonicity, [[2e-4, 1e-4], [3e-4, 0]])


@pytest.mark.parametrize(("sample", "frame"), [(0, 0), (9, 0), (11, 1), (500, 1)])
def test_the_nearest_frame_guides(sample, frame):
    np.testing.assert_array_equal(GUIDE.at(jnp.int32(sample)).bin, GUIDE.choices.bin[frame])


@pytest.mark.parametrize("present", [True, False])
def test_agreement_is_highest_where_the_choice_is_what_the_policy_would_choose(present):
    wanted = Choice(jnp.int32(1), jnp.int32(5), jnp.asarray(present), jnp.float32(2e-4))
    features = 0.1 * jax.random.normal(jax.random.key(0), (8, 2, FEATURES))
    playing = jnp.zeros(2, bool)
    # The favourite of an absent tone is as it is: bin 5 is made the best.
    features = features.at[5, 1, 0].add(0.0 if present else 9.0)
    ascend = jax.jit(jax.grad(lambda f: Policy(f, playing).agreement(wanted, jnp.float32(1.0))))
    for _ in range(200):
        features = features + ascend(features)
    mode = Policy(features, playing).mode()
    assert (int(mode.instrument), int(mode.bin), bool(mode.present)) == (1, 5, present)
    if present:
        assert float(mode.inharmonicity) == pytest.approx(2e-4, rel=1e-3)


@pytest.mark.slow
def test_absent_tones_are_silent_and_leave_bin_and_inharmonicity_free():
    trainer = Trainer(TINY, 2)
    state = trainer.start(key=jax.random.key(1))
    frame = trainer.frame(SAMPLES, jnp.int32(1000))
    loss = PredictionLoss()

    def value(bin_, b, present):
        choices = Choice(
            jnp.array([0, 1]), jnp.array([7, bin_]), jnp.array([True, present]), jnp.array([1e-4, b])
        )
        return imitation(state.network, state.harmonics, frame, choices, loss, trainer.axis, 0.01)

    first, (terms, entropy) = value(3, 1e-4, False)
    assert value(9, 1e-2, False)[0] == first
    assert value(3, 1e-4, True)[0] != first
    assert np.isfinite(entropy)
    # One tone alone explains the frame.
    alone = float(loss(terms))
    assert alone == pytest.approx(float(10 * terms.sparse + terms.agreement + 10 * terms.direct), rel=1e-5)


@pytest.mark.slow
def test_steps_of_imitation_lead_to_the_choices():
    settings = dataclasses.replace(TINY, batch=8, imitation=300, steps=300)
    trainer = Trainer(settings, 2)
    one = tones([(0.5, 800, 1e-4, 0, 1), (0.2, 300, 1e-4, 1, 1)])
    guide = Guide.of(one, 1e6, 2, trainer.axis)
    state = trainer.start(key=jax.random.key(0))
    losses = []
    for _ in range(250):
        state, report = train_step((trainer, SAMPLES, guide), state)
        losses.append(float(report.loss))
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:20])  # of noise, which tones explain badly
    frames = jnp.stack([trainer.frame(SAMPLES, jnp.int32(n)) for n in (500, 1500, 2500)])
    found = jax.vmap(lambda z: predict(state.network, state.harmonics, z, trainer.axis))(frames)
    expected = np.rint(np.array([800, 300]) / float(trainer.axis.to_hz(jnp.asarray(1.0))))
    assert np.all(np.abs(found.tones.fundamental - expected) <= 5)
    assert np.all(found.tones.active)
    assert float(dictionary_pull(state.harmonics)) < 0.1


@pytest.mark.slow
def test_training_imitates_first_and_resumes_in_between(monkeypatch):
    monkeypatch.setattr(loop, "STEPS_PER_LINE", 1)
    trainer = Trainer(dataclasses.replace(TINY, imitation=2, steps=4, hold=1), 2)
    begin = lambda: trainer.start(key=jax.random.key(0))
    guide = Guide.of(tones([(0.5, 800, 1e-4, 0, 1), (0.2, 300, 1e-4, 1, 1)]), 1e6, 2, trainer.axis)
    with pytest.raises(ValueError, match="guide: expected one for 2 steps of imitation, got none"):
        train(trainer, begin(), SAMPLES)
    whole = train(trainer, begin(), SAMPLES, guide=guide)
    half = begin()
    for _ in range(3):
        half = train(trainer, half, SAMPLES, guide=guide, minutes=1e-9)  # a step
    assert int(half.step) == 3
    assert_same(train(trainer, half, SAMPLES), whole)
    plain = train(Trainer(dataclasses.replace(TINY, steps=4, hold=1), 2), start(), SAMPLES)
    assert np.any(np.asarray(plain.harmonics) != np.asarray(whole.harmonics))

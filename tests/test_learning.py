"""Learning of dictionaries: the modified Adam, renewal, and a recording whose instruments are known."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import AXIS, DICTIONARY, duets, pack_notes, render_notes

from benchmarks import scipy_baseline as baseline
from jaxsep.learning import learner as learning
from jaxsep.learning.adam import instrument_adam, reset_instruments
from jaxsep.learning.learner import DictionaryLearner, LearnerState, mean_loss, similarity
from jaxsep.learning.octaves import raise_octaves
from jaxsep.learning.restarts import learn_dictionaries
from jaxsep.progress import Progress
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.refinement import LevenbergMarquardt
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.tones.dictionary import random_instruments

OBJECTIVE = LiftedLoss(AXIS)
# All tests that pursue tones share this learner, and so its compiled step.
LEARNER = DictionaryLearner(
    TonePursuit(OBJECTIVE, solver=LevenbergMarquardt(1e-4)),
    num_instruments=2,
    num_harmonics=8,
    batch=16,
    calls=36,
    polish=12,
    lifetimes=4,
)
RATE = jnp.float32(LEARNER.learning_rate)


@cache
def recording():
    """300 frames of a duet."""
    return np.stack([render_notes(notes) for notes in duets(300, seed=20)]).astype(np.float32)


# ---- Adam -------------------------------------------------------------------------------------------------


def random_gradients(num_steps, seed=0):
    """Gradients whose size differs between instruments and between harmonics."""
    size = np.outer([1e-3, 1.0, 50.0], [1.0, 0.1, 3.0, 0.5])
    return size * np.random.default_rng(seed).standard_normal((num_steps, 3, 4))


def test_adam_follows_its_formula(x64):
    rows = np.random.default_rng(1).uniform(size=(3, 4))
    optimiser = instrument_adam(0.01)
    actual, state = jnp.asarray(rows), optimiser.init(jnp.asarray(rows))
    mean, power, steps = np.zeros((3, 4)), np.zeros(3), np.zeros(3)
    for number, gradient in enumerate(random_gradients(12)):
        if number == 5:  # the second instrument is drawn anew
            state = reset_instruments(state, jnp.array([False, True, False]))
            mean[1], power[1], steps[1] = 0, 0, 0
        change, state = optimiser.update(jnp.asarray(gradient), state)
        actual = optax.apply_updates(actual, change)
        for i in range(3):
            steps[i] += 1
            mean[i] = 0.9 * mean[i] + 0.1 * gradient[i]
            power[i] = 0.999 * power[i] + 0.001 * np.mean(gradient[i] ** 2)
            spread = np.sqrt(power[i] / (1 - 0.999 ** steps[i]))
            rows[i] -= 0.01 * mean[i] / (1 - 0.9 ** steps[i]) / (spread + 1e-8)
        np.testing.assert_allclose(actual, rows, rtol=1e-12)
    np.testing.assert_array_equal(state.steps, [12, 7, 12])


def test_adam_of_one_harmonic_is_that_of_optax(x64):
    ours, theirs = instrument_adam(0.02), optax.adam(0.02)
    rows = jnp.ones((3, 1))
    state, other = ours.init(rows), theirs.init(rows)
    for gradient in random_gradients(6)[:, :, :1]:
        change, state = ours.update(jnp.asarray(gradient), state)
        expected, other = theirs.update(jnp.asarray(gradient), other)
        np.testing.assert_allclose(change, expected, rtol=1e-10)


def test_adam_keeps_the_relations_between_harmonics(dtype):
    rows = jnp.ones((2, 4), dtype)
    optimiser = instrument_adam(jnp.asarray(0.01, dtype))
    gradient = jnp.asarray([[1, 2, 0, -4], [1e-4, 2e-4, 0, -4e-4]], dtype)
    change, state = jax.jit(optimiser.update)(gradient, optimiser.init(rows))
    assert change.dtype == state.mean.dtype == state.power.dtype == dtype
    np.testing.assert_allclose(change / change[:, :1], gradient / gradient[:, :1], rtol=1e-5)
    np.testing.assert_allclose(change[0], change[1], rtol=1e-3)  # the level of an instrument does not count
    nothing, _ = optimiser.update(jnp.zeros_like(rows), optimiser.init(rows))
    np.testing.assert_array_equal(nothing, 0)


# ---- The objective ----------------------------------------------------------------------------------------


def test_gradient_of_the_mean_loss(x64):
    frames = duets(4, seed=1)
    tones = pack_notes(frames, 3, jnp.float64)  # with an empty slot
    spectra = jnp.asarray(np.random.default_rng(0).uniform(0.05, 1, (4, AXIS.num_bins)))
    rows = np.random.default_rng(1).uniform(0.2, 1, (2, 8))
    loss_of = jax.jit(lambda rows: mean_loss(OBJECTIVE, spectra, tones, rows))
    gradient = jax.jit(jax.grad(loss_of))(rows)

    notes = [
        baseline.Tones(
            *(np.array([getattr(n, name) for n in frame]) for name in ("amplitude", "position", "width")),
            np.zeros(2),
            np.array([n.instrument for n in frame]),
        )
        for frame in frames
    ]
    single = [
        baseline.lifted_loss_and_gradient(n, rows, np.asarray(y)) for n, y in zip(notes, spectra, strict=True)
    ]
    np.testing.assert_allclose(loss_of(rows), np.mean([loss for loss, *_ in single]), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.mean([g for *_, g in single], axis=0), rtol=1e-3)

    change = np.random.default_rng(2).standard_normal(rows.shape)
    difference = (loss_of(rows + 1e-6 * change) - loss_of(rows - 1e-6 * change)) / 2e-6
    np.testing.assert_allclose(np.sum(gradient * change), difference, rtol=1e-6)


def test_gradient_of_the_mean_loss_is_finite_at_silence(dtype):
    silent = pack_notes([()] * 3, 2, dtype)
    playing = pack_notes(duets(3, seed=0), 2, dtype)
    value_and_gradient = jax.jit(
        lambda tones, rows: jax.value_and_grad(
            lambda rows: mean_loss(OBJECTIVE, jnp.zeros((3, AXIS.num_bins), dtype), tones, rows)
        )(rows)
    )
    for tones in (silent, playing):
        for rows in (jnp.zeros((2, 8), dtype), jnp.asarray(DICTIONARY, dtype)):
            loss, gradient = value_and_gradient(tones, rows)
            assert loss.dtype == gradient.dtype == dtype
            assert np.all(np.isfinite(gradient))
            assert (loss > 0) == bool(jnp.any(tones.active) & jnp.any(rows > 0))


def test_similarity_is_the_cosine_of_the_square_roots(dtype):
    rows = np.random.default_rng(0).uniform(size=(4, 8))
    rows[2], rows[3] = 0.3 * rows[0], 0
    lifted = np.sqrt(rows[:3])
    norm = np.linalg.norm(lifted, axis=1)
    actual = similarity(jnp.asarray(rows, dtype))
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual[:3, :3], lifted @ lifted.T / np.outer(norm, norm), rtol=1e-5)
    assert actual[0, 2] == pytest.approx(1)
    np.testing.assert_array_equal(actual[3], 0)


# ---- True fundamentals ------------------------------------------------------------------------------------


def spread(row, multiple):
    """The instrument at a fundamental so many times lower, with next to nothing between its harmonics."""
    low = np.full(multiple * len(row), 0.01)
    low[multiple - 1 :: multiple] = row
    return low[:24]


def test_an_instrument_without_every_second_or_third_harmonic_is_raised(dtype):
    row = np.array([1.0, 0.6, 0.5, 0.4])
    rows = [spread(row, 2), spread(row, 3), spread(row, 4), spread(row, 6)]
    actual, factor = jax.jit(raise_octaves)(jnp.asarray([np.pad(r, (0, 24 - len(r))) for r in rows], dtype))
    np.testing.assert_array_equal(factor, [2, 3, 4, 6])
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, np.tile(np.pad(row, (0, 20)), (4, 1)), rtol=1e-6)


def test_instruments_with_a_fundamental_of_their_own_stay(dtype):
    hollow, weak = [1.0, 0.0, 0.3, 0.0, 0.2, 0.0], [0.2, 1.0, 0.1, 0.5, 0.1, 0.2]
    rows = jnp.asarray([hollow, weak, [0.0] * 6, [1.0] + [0.0] * 5], dtype)
    actual, factor = raise_octaves(rows)
    np.testing.assert_array_equal(actual, rows)
    np.testing.assert_array_equal(factor, 1)
    np.testing.assert_array_equal(raise_octaves(rows[:, :1])[0], rows[:, :1])


def test_a_step_raises_candidates_that_it_left_too_low():
    rows = np.eye(4, 8)
    rows[2] = [0.01, 0.8, 0, 0.4, 0.02, 0.2, 0, 0.1]
    rows[1, 0] = 0.5
    stepped, _ = LEARNER.step(
        state_of(rows, amplitude=[1] * 4, age=[9] * 4), jnp.zeros((16, AXIS.num_bins)), RATE
    )
    expected = rows.copy()
    expected[2] = [0.8, 0.4, 0.2, 0.1, 0, 0, 0, 0]
    # A pure tone at the third and the fourth harmonic is one at the first.
    expected[3] = rows[0]
    # What the moments remember moves rows a little, even in silence.
    np.testing.assert_allclose(stepped.harmonics, expected, atol=0.01)
    # Their moments belong to other harmonics.
    assert np.all(stepped.moments.steps[:2] > 0)
    np.testing.assert_array_equal(stepped.moments.steps[2:], 0)


# ---- Renewal and survivors --------------------------------------------------------------------------------


def state_of(rows, amplitude, age):
    rows = jnp.asarray(rows, jnp.float32)
    state = LEARNER.start(key=jax.random.key(0))
    used = jax.tree.map(lambda x: x + 1, state.moments)
    return LearnerState(rows, used, jnp.asarray(age, jnp.int32), jnp.asarray(amplitude, jnp.float32))


def distinct_rows():
    return np.eye(4, 8) + 0.01


def test_renewal_draws_the_weaker_half_anew():
    # Per call of age, beyond half a lifetime of 9 / 2 calls: 8 / 4.5, 1 / 0.5 -> 1, 9 / 31.5, 40 / 31.5.
    state = state_of(distinct_rows(), amplitude=[8, 1.5, 9, 40], age=[9, 5, 36, 36])
    renewed = LEARNER.renew(state, key=jax.random.key(3))
    np.testing.assert_array_equal(renewed.age, [9, 5, 0, 0])
    np.testing.assert_array_equal(renewed.amplitude, [8, 1.5, 0, 0])
    np.testing.assert_array_equal(renewed.harmonics[:2], state.harmonics[:2])
    fresh = random_instruments(4, 8, key=jax.random.key(3))
    np.testing.assert_allclose(renewed.harmonics[2:], fresh[2:], rtol=1e-5)
    np.testing.assert_array_equal(renewed.moments.steps, [1, 1, 0, 0])
    np.testing.assert_array_equal(renewed.moments.power, [1, 1, 0, 0])
    np.testing.assert_array_equal(renewed.moments.mean, np.repeat([[1], [1], [0], [0]], 8, axis=1))


def test_renewal_draws_duplicates_anew_before_anything_else():
    rows = distinct_rows()
    rows[2] = 0.7 * rows[0]  # the same instrument at another level
    state = state_of(rows, amplitude=[30, 1, 20, 2], age=[9] * 4)
    renewed = LEARNER.renew(state, key=jax.random.key(3))
    np.testing.assert_array_equal(renewed.age, [9, 0, 0, 9])
    twins = state_of(np.ones((4, 8)), amplitude=[5, 5, 5, 5], age=[9] * 4)
    np.testing.assert_array_equal(LEARNER.renew(twins, key=jax.random.key(3)).age, [9, 9, 0, 0])


def test_survivors_are_the_strongest_that_differ():
    rows = 0.5 * distinct_rows()
    rows[2] = rows[0]
    survivors = LEARNER.survivors(state_of(rows, amplitude=[30, 1, 20, 2], age=[9] * 4))
    best = rows[[0, 3]] / np.max(rows[[0, 3]], axis=1)[:, None]
    np.testing.assert_allclose(survivors.harmonics, np.pad(best, [(0, 2), (0, 0)]))
    for part in (survivors.age, survivors.amplitude, *survivors.moments):
        assert not np.any(part)


def test_a_survivor_without_harmonics_stays_finite():
    survivors = LEARNER.survivors(state_of(np.zeros((4, 8)), amplitude=[3, 2, 1, 0], age=[9] * 4))
    np.testing.assert_array_equal(survivors.harmonics, 0)


def test_candidates_and_lifetimes():
    assert (LEARNER.num_candidates, LEARNER.lifetime) == (4, 9)
    start = LEARNER.start(key=jax.random.key(5))
    np.testing.assert_array_equal(start.harmonics, random_instruments(4, 8, key=jax.random.key(5)))
    assert DictionaryLearner(calls=2, lifetimes=6).lifetime == 1


# ---- Steps ------------------------------------------------------------------------------------------------


def test_a_step_descends_at_the_tones_that_the_pursuit_finds():
    # Near the truth the baseline finds the same tones; two candidates are silent.
    rows = np.concatenate([0.9 * DICTIONARY + 0.05, np.zeros((2, 8))])
    state, spectra = LEARNER._fresh(jnp.asarray(rows, jnp.float32)), recording()[:16]
    stepped, loss = LEARNER.step(state, jnp.asarray(spectra), RATE)

    notes, losses = zip(*(baseline.tone_pursuit(y, rows) for y in spectra), strict=True)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-3)
    heard = sum(np.bincount(n.instrument, n.amplitude, 4) for n in notes) * np.max(rows, axis=1)
    np.testing.assert_allclose(stepped.amplitude, heard, rtol=1e-2)
    assert np.sum(heard > 0) >= 2
    mean, power, start = np.zeros((4, 8)), np.zeros(4), rows
    for number in range(1, LEARNER.descents + 1):
        slopes = [
            baseline.lifted_loss_and_gradient(n, rows, y)[2] for n, y in zip(notes, spectra, strict=True)
        ]
        gradient = np.mean(slopes, axis=0)
        mean = 0.9 * mean + 0.1 * gradient
        power = 0.999 * power + 0.001 * np.mean(gradient**2, axis=1)
        spread = np.sqrt(power / (1 - 0.999**number)) + 1e-8
        rows = np.clip(rows - 0.01 * mean / (1 - 0.9**number) / spread[:, None], 0, 1)
    assert np.max(np.abs(rows - start)) > 0.03
    np.testing.assert_allclose(stepped.harmonics, rows, atol=1e-3)
    np.testing.assert_array_equal(stepped.age, 1)
    np.testing.assert_array_equal(stepped.moments.steps, LEARNER.descents)


def test_a_silent_batch_teaches_nothing():
    state = LEARNER.start(key=jax.random.key(1))
    stepped, loss = LEARNER.step(state, jnp.zeros((16, AXIS.num_bins)), RATE)
    assert loss == 0
    np.testing.assert_array_equal(stepped.harmonics, state.harmonics)
    np.testing.assert_array_equal(stepped.amplitude, 0)


class TracedError(Exception):
    """Raised where the step is traced."""


def test_one_program_serves_all_calls(monkeypatch):
    spectra = jnp.asarray(recording())
    state, _ = LEARNER.step(LEARNER.start(key=jax.random.key(2)), spectra[:16], RATE)

    def trap(*_):
        raise TracedError

    monkeypatch.setattr(learning, "mean_loss", trap)
    for call in range(1, 4):
        state, _ = LEARNER.step(state, spectra[16 * call : 16 * call + 16], RATE / call)
        state = LEARNER.renew(state, key=jax.random.key(call))
    with pytest.raises(TracedError):  # another shape is another program
        LEARNER.step(state, spectra[:3], RATE)


# ---- Whole runs -------------------------------------------------------------------------------------------


class Listener(Progress):
    """Remembers what it heard."""

    def __init__(self):
        self.heard = []

    def begin(self, name, total):
        self.heard.append(total)

    def advance(self, name, note=""):
        self.heard.append(note)


@cache
def learned(seed):
    listener = Listener()
    restarts = learn_dictionaries(recording(), LEARNER, 2, progress=listener, key=jax.random.key(seed))
    return restarts, listener.heard


def likeness(harmonics):
    """Cosines between the true instruments and the learned ones, `[true, learned]`."""
    return similarity(jnp.concatenate([jnp.asarray(DICTIONARY, jnp.float32), harmonics]))[:2, 2:]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_the_instruments_of_an_artificial_recording_are_learned(seed):
    (best, other), heard = learned(seed)
    assert best.loss < 0.01
    order = np.argmax(likeness(best.harmonics), axis=1)
    assert sorted(order) == [0, 1]
    np.testing.assert_allclose(best.harmonics[order], DICTIONARY, atol=0.05)
    np.testing.assert_allclose(np.max(best.harmonics, axis=1), 1, rtol=1e-6)
    assert best.loss <= other.loss
    assert heard[0] == 2 * (LEARNER.calls + LEARNER.polish) == len(heard) - 1
    assert all(note.startswith("loss ") for note in heard[1:])


@pytest.mark.slow
def test_restarts_are_ranked_by_their_loss_over_the_recording():
    # One restart of this key misses an instrument, and its loss says so.
    (best, other), _ = learned(3)
    assert best.loss < 0.01 < other.loss < 1
    missed, found = (np.min(np.max(likeness(x.harmonics), axis=1)) for x in (other, best))
    assert missed < 0.95 < found


def test_the_key_decides():
    again, _ = learned.__wrapped__(0)
    for one, two in zip(again, learned(0)[0], strict=True):
        np.testing.assert_array_equal(one.harmonics, two.harmonics)
        assert one.loss == two.loss
    assert np.any(again[0].harmonics != learned(3)[0][0].harmonics)


def test_impossible_arguments():
    with pytest.raises(ValueError, match="num_restarts: expected at least 1, got 0"):
        learn_dictionaries(recording(), LEARNER, 0, key=jax.random.key(0))
    with pytest.raises(ValueError, match="spectra: expected at least one frame that is not silent, got none"):
        learn_dictionaries(np.zeros((5, 512), np.float32), LEARNER, 1, key=jax.random.key(0))

"""The policy of one tone: log-probabilities, samples, modes, and the gradient of the expected loss."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxsep.neural.estimator import Estimator, dictionary_pull
from jaxsep.neural.losses import PredictionLoss
from jaxsep.neural.network import PartialPrediction, PolicyNetwork, render_tone
from jaxsep.neural.policy import Choice, Policy
from jaxsep.signal.axes import LinearAxis

pytestmark = pytest.mark.compiles

BINS, INSTRUMENTS = 6, 2
AXIS = LinearAxis(BINS, 50.0)


def features(seed=0, dtype=np.float64):
    """Moderate features, in which every choice has a fair probability and b is practically 0."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BINS, INSTRUMENTS, 9))
    x[..., 4] = 2 + 0.1 * x[..., 4]
    x[..., 5] = 29  # of the rate: b ~ 1e-15
    x[..., 8] = -5 + x[..., 8]
    return x.astype(dtype)


def policy_of(x, playing=(False, False)):
    return Policy(jnp.asarray(x), jnp.array(playing))


def choice_of(bin_, instrument, present=True, inharmonicity=0.0, dtype=np.float64):
    return Choice(
        jnp.int32(instrument), jnp.int32(bin_), jnp.asarray(present), jnp.asarray(inharmonicity, dtype)
    )


@pytest.mark.parametrize("temper", [1.0, 0.1])
@pytest.mark.parametrize("playing", [(False, False), (True, False)])
def test_log_probabilities_are_those_of_scipy(temper, playing, x64):
    x = features()
    x[..., 5] = np.random.default_rng(1).normal(size=x[..., 5].shape)
    policy = policy_of(x, playing)
    for bin_, present, b in ((0, True, 3e-4), (3, False, 2e-3), (5, True, 1e-6)):
        got = float(policy.log_probability(choice_of(bin_, 1, present, b), jnp.asarray(temper)))
        logits = temper * np.where(playing, -np.inf, x[..., 0])
        where = scipy.special.log_softmax(logits.ravel())[bin_ * INSTRUMENTS + 1]
        own = x[bin_, 1]
        presence = scipy.stats.bernoulli.logpmf(int(present), scipy.special.expit(temper * (own[8] + 5)))
        gamma = scipy.stats.gamma.logpdf(b, np.exp(own[4]), scale=1 / (50_000 * np.exp(own[5])))
        assert got == pytest.approx(where + presence + gamma, rel=1e-9)


def test_samples_follow_the_tempered_distribution(dtype):
    x = features(2, dtype)
    x[..., 5] = 0.3
    policy, temper, count = policy_of(jnp.asarray(x, dtype)), jnp.asarray(0.5, dtype), 40_000
    keys = jax.random.split(jax.random.key(0), count)
    choices, sampled, true = jax.jit(jax.vmap(lambda k: policy.sample(temper, key=k)))(keys)
    assert choices.inharmonicity.dtype == sampled.dtype == dtype
    flat = np.asarray(choices.bin * INSTRUMENTS + choices.instrument)
    expected = scipy.special.softmax(0.5 * x[..., 0].ravel().astype(float))
    share = np.bincount(flat, minlength=expected.size) / count
    np.testing.assert_allclose(share, expected, atol=5 * np.sqrt(0.25 / count))
    own = x.reshape(-1, 9)[flat].astype(float)
    presence = scipy.special.expit(0.5 * (own[:, 8] + 5))
    assert np.mean(choices.present) == pytest.approx(presence.mean(), abs=5 * np.sqrt(0.25 / count))
    mean = np.exp(own[:, 4]) / (50_000 * np.exp(own[:, 5]))
    ratio = np.asarray(choices.inharmonicity) / mean
    assert ratio.mean() == pytest.approx(1, abs=5 * ratio.std() / np.sqrt(count))
    again = jax.jit(jax.vmap(lambda c: policy.log_probability(c, jnp.ones((), dtype))))(choices)
    np.testing.assert_allclose(true, again, rtol=1e-4, atol=1e-5)


def test_an_instrument_plays_one_tone(x64):
    policy = policy_of(features(), (False, True))
    keys = jax.random.split(jax.random.key(0), 500)
    choices, *_ = jax.jit(jax.vmap(lambda k: policy.sample(jnp.asarray(0.01), key=k)))(keys)
    assert np.all(choices.instrument == 0)
    assert policy.mode().instrument == 0
    assert float(policy_of(np.zeros((BINS, 2, 9)), (False, True)).entropy()) == pytest.approx(np.log(BINS))


def test_the_mode_is_the_most_probable_choice(x64):
    x = features(3)
    x[4, 1, 0] = 9
    x[4, 1, 4:6] = np.log(3), 0.5
    x[4, 1, 8] = -5.1
    mode = policy_of(x).mode()
    assert (int(mode.bin), int(mode.instrument), bool(mode.present)) == (4, 1, False)
    assert float(mode.inharmonicity) == pytest.approx(3 / (50_000 * np.exp(0.5)))


def test_extreme_features_stay_finite(dtype):
    for size in (0.0, 1e4, -1e4):
        x = jnp.full((BINS, INSTRUMENTS, 9), size, dtype)

        def total(x):
            choice, sampled, true = policy_of(x).sample(jnp.asarray(0.1, dtype), key=jax.random.key(1))
            return sampled + true + policy_of(x).parameters(choice).width

        value, gradient = jax.jit(jax.value_and_grad(total))(x)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


# ---- The estimator against enumeration ---------------------------------------------------------------------


class Table(PolicyNetwork):
    """In place of the network: features that depend only on which instruments play."""

    first: jax.Array
    second: jax.Array
    num_instruments: int = eqx.field(static=True, default=INSTRUMENTS)

    def __call__(self, frame, predicted):
        started = jnp.any(predicted.playing)
        return Policy(jnp.where(started, self.second, self.first), predicted.playing)


HARMONICS = np.array([[1.0, 0.4], [0.3, 1.0]])
WEIGHT = 1.0


def toy():
    rng = np.random.default_rng(5)
    frame = rng.normal(size=(2, BINS)) * 0.3
    return (
        Table(jnp.asarray(features(6)), jnp.asarray(features(7))),
        jnp.asarray(HARMONICS),
        jnp.asarray(frame[0] + 1j * frame[1]),
    )


def expected_loss(table, harmonics, frame, loss, tempers):
    """Sum over all choices of both tones, drawn from p^τ."""
    nothing = PartialPrediction.nothing(frame, INSTRUMENTS)
    options = list(itertools.product(range(BINS), range(INSTRUMENTS), (False, True)))
    bins, instruments, present = (jnp.asarray(x) for x in zip(*options, strict=True))
    choices = jax.vmap(lambda b, i, p: Choice(i, b, p, jnp.zeros(())))(bins, instruments, present)

    def log_p(policy, choice, temper):
        # Without the density of b, over which the sum is an integral equal to 1.
        logits = policy.logits(temper)
        own = policy.features[choice.bin, choice.instrument]
        logit = temper * (own[8] + 5)
        where = jax.nn.log_softmax(logits)[choice.bin * INSTRUMENTS + choice.instrument]
        return where + jax.nn.log_sigmoid(jnp.where(choice.present, logit, -logit))

    def after(first):
        policy = table(frame, nothing)
        one = render_tone(first, policy.parameters(first), harmonics, AXIS)
        predicted = nothing.add(first, *one)
        second_policy = table(frame, predicted)

        def of_pair(second):
            two = render_tone(second, second_policy.parameters(second), harmonics, AXIS)
            done = predicted.add(second, *two)
            value = loss(loss.terms(frame, done.modelled, done.direct, done.present))
            allowed = second.instrument != first.instrument
            logs = jnp.stack([log_p(policy, first, tempers[0]), log_p(second_policy, second, tempers[1])])
            return jnp.where(allowed, jnp.exp(jnp.sum(jnp.where(allowed, logs, 0))) * value, 0)

        return jnp.sum(jax.vmap(of_pair)(choices))

    return jnp.sum(jax.vmap(after)(choices))


@pytest.mark.parametrize(
    ("branches", "coolest"),
    [
        ((2, 3), 0.3),
        pytest.param((3, 3), 1.0, marks=pytest.mark.slow),
        pytest.param((4, 1), 1.0, marks=pytest.mark.slow),
    ],
)
def test_the_gradient_is_that_of_the_expected_loss(branches, coolest, x64):
    table, harmonics, frame = toy()
    loss = PredictionLoss(magnitude=1.0)
    estimator = Estimator(loss, AXIS, branches, coolest=coolest, score_weight=WEIGHT)
    steps = [[coolest ** (k / max(n - 1, 1)) for k in range(n)] for n in branches]
    inherited, crossed = [(t, t) for t in steps[0]], list(itertools.product(*steps))
    pairs = inherited if branches[1] == 1 else crossed

    @jax.jit
    def exact(table):
        total = lambda t: sum(expected_loss(t, harmonics, frame, loss, pair) for pair in pairs) / len(pairs)
        return eqx.filter_value_and_grad(total)(table)

    @jax.jit
    def estimates(keys):
        run = lambda t, key: estimator(t, harmonics, frame, key=key)
        one = lambda key: eqx.filter_value_and_grad(run, has_aux=True)(table, key)
        (_, rollout), gradient = jax.lax.map(one, keys, batch_size=50)
        return jnp.mean(rollout.loss, axis=1), gradient

    value, wanted = exact(table)
    losses, found = estimates(jax.random.split(jax.random.key(0), 3000))
    assert abs(losses.mean() - value) < 5 * losses.std() / np.sqrt(losses.size)
    for got, want in zip((found.first, found.second), (wanted.first, wanted.second), strict=True):
        error = got.std(axis=0) / np.sqrt(len(got))
        assert np.all(np.abs(got.mean(axis=0) - want) < 5 * error + 1e-12)
        # The estimate is good enough to tell: most coordinates that matter are well above their error.
        assert np.linalg.norm(error) < 0.3 * np.linalg.norm(want)


@pytest.mark.slow
def test_the_dictionary_learns_from_the_untempered_policy(x64):
    """With importance weights, tempered samples give nearly the gradient at τ = 1, and not at their own."""
    table, harmonics, frame = toy()
    loss = PredictionLoss()
    estimator = Estimator(loss, AXIS, (24, 1), coolest=0.5)

    @jax.jit
    def estimates(keys):
        run = lambda d, key: estimator(table, d, frame, key=key)[0]
        return jax.lax.map(lambda key: jax.grad(run)(harmonics, key), keys)

    @jax.jit
    def exact(tempers):
        # The probabilities do not depend on the dictionary: this is the pathwise gradient.
        return jax.grad(lambda d: expected_loss(table, d, frame, loss, tempers))(harmonics)

    got = np.mean(estimates(jax.random.split(jax.random.key(1), 1500)), axis=0)
    wanted = exact((1.0, 1.0))
    tempered = np.mean([exact((t, t)) for t in 0.5 ** (np.arange(24) / 23)], axis=0)
    assert np.linalg.norm(got - wanted) < 0.3 * np.linalg.norm(tempered - wanted)


@pytest.mark.slow
def test_the_score_has_mean_zero(x64):
    table, harmonics, frame = toy()
    estimator = Estimator(PredictionLoss(), AXIS, (3, 3), coolest=0.2)

    @jax.jit
    def scores(keys):
        def total(t, key):
            return sum(jnp.sum(x) for x in estimator.rollout(t, harmonics, frame, key=key).log_sampled)

        return jax.lax.map(lambda key: eqx.filter_grad(total)(table, key), keys)

    found = scores(jax.random.split(jax.random.key(2), 2000))
    for leaf in (found.first, found.second):
        error = leaf.std(axis=0) / np.sqrt(len(leaf))
        assert np.all(np.abs(leaf.mean(axis=0)) < 5 * error + 1e-12)
        assert np.max(error) > 0


@pytest.mark.slow
def test_samples_of_a_frame_and_their_counts(x64):
    table, harmonics, frame = toy()
    estimator = Estimator(PredictionLoss(), AXIS, (3, 2))
    rollout = jax.jit(lambda key: estimator.rollout(table, harmonics, frame, key=key))(jax.random.key(0))
    assert rollout.loss.shape == rollout.log_ratio.shape == (6,)
    assert [x.shape for x in rollout.log_sampled] == [(3,), (6,)]
    again = jax.jit(lambda key: estimator.rollout(table, harmonics, frame, key=key))(jax.random.key(0))
    np.testing.assert_array_equal(rollout.loss, again.loss)


def test_the_pull_is_zero_for_rows_with_a_peak_of_one():
    rows = jnp.array([[0.2, 1.0], [1.0, 0.1]])
    assert float(dictionary_pull(rows)) == 0
    assert float(dictionary_pull(rows * jnp.array([[0.5], [1.0]]))) == pytest.approx(np.log(2) ** 2 / 2)
    assert np.all(np.isfinite(jax.grad(dictionary_pull)(jnp.zeros((2, 2)))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": ()}, "branches: expected at least 1 for every tone"),
        ({"branches": (3, 0)}, "branches: expected at least 1 for every tone"),
        ({"branches": (1, 3)}, "branches: expected 2 or more first with leave-one-out"),
        (
            {"branches": (3, 3), "baseline": "none"},
            "baseline: expected 'mean' or 'leave-one-out', got 'none'",
        ),
    ],
)
def test_impossible_estimators(options, message):
    with pytest.raises(ValueError, match=message):
        Estimator(PredictionLoss(), AXIS, **options)

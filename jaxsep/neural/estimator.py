"""The gradient of the expected loss: pathwise where the loss is smooth, by the score elsewhere (P2)."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from jaxsep.neural.losses import LossTerms, PredictionLoss
from jaxsep.neural.network import PartialPrediction, PolicyNetwork, ToneSpectrum
from jaxsep.signal.axes import LinearAxis

__all__ = ["Estimator", "Rollout", "dictionary_pull"]


class Rollout(eqx.Module):
    """Joint samples of all tones of one frame.

    - `loss`: of each sample.
    - `terms`: its parts.
    - `log_sampled`: for each tone, the log-probability of every node of the tree, as sampled.
    - `log_ratio`: log-probability of each joint sample less that as sampled.
    - `entropy`: mean entropy of (instrument, bin), in nats.
    """

    loss: Float[Array, " samples"]
    terms: LossTerms
    log_sampled: tuple[Float[Array, " _"], ...]
    log_ratio: Float[Array, " samples"]
    entropy: Float[Array, ""]


class Estimator(eqx.Module):
    """A loss whose gradient estimates that of the expected loss over the policy's samples (P2).

    Samples form a tree: each tone branches from the samples of the tone before, which share one evaluation of
    the network. So (9, 1) are nine independent joint samples, as published, at ten evaluations of it; (3, 3)
    are nine that share, at four. P2 explores by tempering: the k-th of several branches is drawn from p^τ_k,
    with τ spaced geometrically from 1 to `coolest`; a single branch inherits the τ of its parent. A policy
    that begins without preferences explores by itself.

    The gradient of the dictionary weighs joint samples by their importance `softmax_g(log p - log p^τ)`.

    Arguments:
        loss: of a prediction.
        axis: of the frames.
        branches: for each tone; their number is that of the instruments.
        coolest: τ of the last branch.
        score_weight: factor of the score part; 1 is the gradient, P2 has 1/10.
        baseline: subtracted from the loss of a sample: `"mean"` of all samples of the frame, as published,
            or `"leave-one-out"`, the mean of the other branches, which leaves the gradient unbiased.

    Example:
        >>> network = jaxsep.ToneNetwork.create(1, strides=(4,), widths=(8,), key=jax.random.key(0))
        >>> estimator = jaxsep.Estimator(jaxsep.PredictionLoss(), jaxsep.LinearAxis(48, 100.0), branches=(3,))
        >>> frame, harmonics = jnp.ones(48, complex), jnp.ones((1, 2))
        >>> surrogate, rollout = jax.jit(estimator)(network, harmonics, frame, key=jax.random.key(1))
        >>> rollout.loss.shape  # of every sample
        (3,)
    """

    loss: PredictionLoss
    axis: LinearAxis
    branches: tuple[int, ...] = eqx.field(static=True)
    coolest: float = eqx.field(static=True, default=1.0)
    score_weight: float = eqx.field(static=True, default=1.0)
    baseline: str = eqx.field(static=True, default="leave-one-out")

    def __check_init__(self):
        if not self.branches or min(self.branches) < 1:
            raise ValueError(f"branches: expected at least 1 for every tone, got {self.branches}")
        if not 0 < self.coolest <= 1:
            raise ValueError(f"coolest: expected a number above 0 and at most 1, got {self.coolest!r}")
        if self.baseline not in ("mean", "leave-one-out"):
            raise ValueError(f"baseline: expected 'mean' or 'leave-one-out', got {self.baseline!r}")
        if self.baseline == "leave-one-out" and self.branches[0] < 2:
            raise ValueError(f"branches: expected 2 or more first with leave-one-out, got {self.branches}")

    def __call__(
        self,
        network: PolicyNetwork,
        harmonics: Float[Array, "instruments harmonics"],
        frame: Complex[Array, " bins"],
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Rollout]:
        """Surrogate of one frame, to be differentiated by network and harmonics, and what was sampled."""
        rollout = self.rollout(network, harmonics, frame, key=key)
        loss = jax.lax.stop_gradient(rollout.loss)
        score, baseline = 0.0, jnp.mean(loss)
        for log_p, count in zip(rollout.log_sampled, self.branches, strict=True):
            mean = jnp.mean(loss.reshape(log_p.shape[0], -1), axis=1)
            if self.baseline == "leave-one-out" and count > 1:  # a single branch has that of its parent
                siblings = mean.reshape(-1, count)
                others = jnp.sum(siblings, axis=1, keepdims=True) - siblings
                baseline = (others / (count - 1)).reshape(-1)
            score = score + jnp.mean(log_p * (mean - baseline))
        return jnp.mean(rollout.loss) + self.score_weight * score, rollout

    def rollout(
        self,
        network: PolicyNetwork,
        harmonics: Float[Array, "instruments harmonics"],
        frame: Complex[Array, " bins"],
        *,
        key: PRNGKeyArray,
    ) -> Rollout:
        """Samples of all tones of a frame, with their losses."""
        tempered = self.coolest < 1
        fixed = jax.lax.stop_gradient(harmonics) if tempered else harmonics
        nothing = PartialPrediction.nothing(frame, network.num_instruments)
        nodes = jax.tree.map(lambda x: x[None], (nothing, nothing.modelled))
        tempers, log_ratio = jnp.ones(1, frame.real.dtype), jnp.zeros(1, frame.real.dtype)
        log_sampled, entropies = [], []

        def branch(policy, predicted, learned, temper, key):
            choice, sampled, true = policy.sample(temper, key=key)
            tone = ToneSpectrum.of(choice, policy.parameters(choice), harmonics.shape[1], self.axis)
            modelled, direct = tone.modelled(fixed), tone.direct()
            if tempered:
                # The same spectrum once more, as a function of the dictionary alone.
                again = jax.lax.stop_gradient(tone).modelled(harmonics)
                mine = (jnp.arange(learned.shape[0]) == choice.instrument)[:, None]
                learned = jnp.where(mine, again, learned)
            return predicted.add(choice, modelled, direct), learned, sampled, true

        for depth, count in enumerate(self.branches):
            predicted, learned = nodes
            policies = jax.vmap(lambda p: network(frame, p))(predicted)
            entropies.append(jnp.mean(jax.vmap(lambda policy: policy.entropy())(policies)))
            number = predicted.playing.shape[0]
            temper = jnp.repeat(tempers, count)
            if count > 1:
                steps = [self.coolest ** (k / (count - 1)) for k in range(count)]
                temper = jnp.tile(jnp.asarray(steps, tempers.dtype), number)
            keys = jax.random.split(jax.random.fold_in(key, depth), (number, count))
            grow = jax.vmap(jax.vmap(branch, in_axes=(None, None, None, 0, 0)))
            grown = grow(policies, predicted, learned, temper.reshape(number, count), keys)
            *nodes, sampled, true = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), grown)
            log_sampled.append(sampled)
            log_ratio = jnp.repeat(log_ratio, count) + jax.lax.stop_gradient(true - sampled)
            tempers = temper

        predicted, learned = nodes
        modelled = predicted.modelled
        if tempered:  # otherwise all weights are 1
            weight = jax.nn.softmax(log_ratio) * log_ratio.shape[0]
            modelled = modelled + _scale_gradient(learned, weight[:, None, None])
        terms = jax.vmap(lambda y, direct, present: self.loss.terms(frame, y, direct, present))(
            modelled, predicted.direct, predicted.present
        )
        loss = jax.vmap(self.loss)(terms)
        return Rollout(loss, terms, tuple(log_sampled), log_ratio, sum(entropies) / len(entropies))


def _scale_gradient(value, weight):
    """0, with the gradient of `weight · value`."""
    return weight * (value - jax.lax.stop_gradient(value))


def dictionary_pull(harmonics: Float[Array, "instruments harmonics"]) -> Float[Array, ""]:
    """`mean_i (ln max_h D[i, h])²`, which keeps each instrument's largest entry at 1 (P2)."""
    tiny = math.sqrt(jnp.finfo(harmonics.dtype).tiny)
    return jnp.mean(jnp.log(jnp.maximum(jnp.max(harmonics, axis=1), tiny)) ** 2)

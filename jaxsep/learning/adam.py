"""Adam and AdaMax that normalise all harmonics of an instrument alike."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

__all__ = ["InstrumentAdamState", "instrument_adam", "instrument_adamax", "reset_instruments"]


class InstrumentAdamState(NamedTuple):
    """Moments of each instrument's gradient, and its number of steps since it was drawn."""

    mean: Float[Array, "instruments harmonics"]
    power: Float[Array, " instruments"]
    steps: Int[Array, " instruments"]


def instrument_adam(
    learning_rate: float | Float[Array, ""],
    decay_mean: float = 0.9,
    decay_power: float = 0.999,
    epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam whose second moment is one number per instrument (P1, dictionary learning).

    `v_i ← β₂ v_i + (1 − β₂) · mean_h g_{ih}²`: the relations between an instrument's harmonics survive the
    normalisation. Bias is corrected with each instrument's own number of steps, so that an instrument
    that was drawn anew (`reset_instruments`) starts afresh.
    """

    def accumulate(power, gradient):
        return decay_power * power + (1 - decay_power) * jnp.mean(gradient**2, axis=1)

    unbiased = lambda power, steps: jnp.sqrt(power / (1 - decay_power**steps))
    return _rule(learning_rate, decay_mean, epsilon, accumulate, unbiased)


def instrument_adamax(
    learning_rate: float | Float[Array, ""],
    decay_mean: float = 0.99,
    decay_power: float = 0.999,
    epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    """AdaMax whose norm is one number per instrument (P2): `u_i ← max(β₂ u_i, max_h |g_{ih}|)`."""

    def accumulate(power, gradient):
        return jnp.maximum(decay_power * power, jnp.max(jnp.abs(gradient), axis=1))

    return _rule(learning_rate, decay_mean, epsilon, accumulate, lambda power, steps: power)


def _rule(learning_rate, decay_mean, epsilon, accumulate, scale):
    def update(gradient, state, harmonics=None):
        del harmonics
        mean = decay_mean * state.mean + (1 - decay_mean) * gradient
        power, steps = accumulate(state.power, gradient), state.steps + 1
        count = steps.astype(mean.dtype)
        mean_hat = mean / (1 - decay_mean**count)[:, None]
        change = -learning_rate * mean_hat / (scale(power, count)[:, None] + epsilon)
        return change, InstrumentAdamState(mean, power, steps)

    return optax.GradientTransformation(_begin, update)


def _begin(harmonics):
    return InstrumentAdamState(
        mean=jnp.zeros_like(harmonics),
        power=jnp.zeros_like(harmonics[:, 0]),
        steps=jnp.zeros(harmonics.shape[0], jnp.int32),
    )


def reset_instruments(
    state: InstrumentAdamState, redrawn: Bool[Array, " instruments"]
) -> InstrumentAdamState:
    """The state in which the redrawn instruments have no history."""
    return InstrumentAdamState(
        mean=jnp.where(redrawn[:, None], 0, state.mean),
        power=jnp.where(redrawn, 0, state.power),
        steps=jnp.where(redrawn, 0, state.steps),
    )

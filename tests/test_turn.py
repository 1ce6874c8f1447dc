"""Cosine and sine within half a turn."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsep.numerics.turn import turn


def test_they_are_exact_up_to_half_a_turn(dtype):
    cycles = np.linspace(-0.5, 0.5, 2001).astype(dtype)
    angle = 2 * np.pi * cycles.astype(np.longdouble)
    for found, exact in zip(turn(jnp.asarray(cycles)), (np.cos(angle), np.sin(angle)), strict=True):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, exact.astype(dtype), rtol=0, atol=6 * np.finfo(dtype).eps)


def test_their_derivatives_are_each_other(x64):
    cycles = jnp.linspace(-0.5, 0.5, 101)
    (cosine, sine), (by_cosine, by_sine) = jax.jvp(turn, (cycles,), (jnp.ones_like(cycles),))
    np.testing.assert_allclose(by_cosine, -2 * np.pi * sine, atol=1e-12)
    np.testing.assert_allclose(by_sine, 2 * np.pi * cosine, atol=1e-12)

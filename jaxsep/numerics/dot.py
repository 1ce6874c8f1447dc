"""The matrix product wherever something is solved for."""

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["dot"]


def dot(a: Float[Array, "*left"], b: Float[Array, "*right"]) -> Float[Array, "*product"]:
    """`a @ b` as exact as its arguments, whose mantissas accelerators shorten to 10 bits by default."""
    return jnp.matmul(a, b, precision="highest")

"""How far from optimal a decomposition can be: primal value, dual value, and the gap between them."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsep.blasso.patterns import Patterns
from jaxsep.numerics.dot import dot

__all__ = ["Certificate", "alpha_max", "certify"]


class Certificate(eqx.Module):
    """Bounds of the optimum of `½‖Σ_i u_i - b‖² + α Σ_i ‖ν_i‖`: it lies between `dual` and `primal`.

    - `primal`: the value of the measures that were found.
    - `gap`: primal - dual, computed without cancellation.
    - `scale`: factor in [0, 1] that takes the residual into the dual set, for *all* real shifts.
    """

    primal: Float[Array, "*frames"]
    gap: Float[Array, "*frames"]
    scale: Float[Array, "*frames"]

    @property
    def dual(self) -> Float[Array, "*frames"]:
        """A lower bound of the optimum."""
        return self.primal - self.gap

    @property
    def relative_gap(self) -> Float[Array, "*frames"]:
        """gap / primal, 0 where the primal value is 0."""
        positive = self.primal > 0
        return jnp.where(positive, self.gap / jnp.where(positive, self.primal, 1), 0)


def certify(
    target: Float[Array, " bins"],
    residual: Float[Array, " bins"],
    bound: Float[Array, ""],
    largest: Float[Array, ""],
    mass: Float[Array, ""],
) -> Certificate:
    """The certificate that the scaled residual gives (P3's dual, `⟨p, b⟩ - ½‖p‖²` for a feasible p).

    With the residual `r = b - u` and `p = θ r`, θ = min(1, α / max correlation of r), the gap is
    `½ (1 - θ)² ‖r‖² + α ‖ν‖ - θ ⟨r, u⟩`, whose last two terms are `Σ_j a_j (α - θ ⟨ψ(· - x_j), r⟩) ≥ 0`.

    Arguments:
        target: b.
        residual: b less the sum of the sources.
        bound: α.
        largest: maximum of the correlation of the residual with all patterns over all shifts.
        mass: `Σ_i ‖ν_i‖` of the measures.
    """
    over = largest > bound
    scale = jnp.where(over, bound / jnp.where(over, largest, 1), 1)
    energy = dot(residual, residual)
    slack = bound * mass - scale * dot(residual, target - residual)
    gap = 0.5 * (1 - scale) ** 2 * energy + jnp.maximum(slack, 0)
    return Certificate(0.5 * energy + bound * mass, gap, scale)


@eqx.filter_jit
def alpha_max(patterns: Patterns, target: Float[Array, " bins"], *, signed: bool = False) -> Float[Array, ""]:
    """The smallest α at which the decomposition of `target` is 0: `max_i sup_x ⟨ψ_i(· - x), b⟩`.

    With `signed` measures it is the largest modulus. 0 if nothing correlates positively.

    Example:
        >>> bump = lambda distance: jnp.exp(-0.5 * (distance / 2) ** 2)
        >>> patterns = jaxsep.Patterns.from_functions([bump], num_bins=40, support=(-12.0, 12.0))
        >>> signal = bump(jnp.arange(40.0) - 20.25)
        >>> print(jaxsep.alpha_max(patterns, signal).round(2))  # the pattern's energy, √π · 2
        3.54
    """
    return jnp.maximum(jnp.max(patterns.maxima(target, signed=signed).value), 0)

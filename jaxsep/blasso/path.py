"""The Beurling LASSO for many α: what appears as it falls, and which one to take."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxsep.blasso.certificate import alpha_max
from jaxsep.blasso.lasso import BeurlingLasso, LassoResult
from jaxsep.blasso.patterns import Patterns
from jaxsep.blasso.spikes import Spikes, synthesise
from jaxsep.blasso.support import debias

__all__ = ["LassoPath", "lasso_path"]


class LassoPath(eqx.Module):
    """Decompositions of the same signals for falling α.

    - `alpha`: α of every value and frame.
    - `found`: what the Beurling LASSO says, `[values, frames, ...]`.
    - `debiased`: its spikes fitted without the penalty, `[values, frames, spikes]`, less those that pay no
      more than noise would.
    - `energy`: `‖b - Σ_i u_i‖²` of the debiased spikes.
    - `criterion`: the Bayesian information criterion of the debiased fit; less is better.

    Example:
        >>> bump = lambda distance: jnp.exp(-0.5 * (distance / 2) ** 2)
        >>> patterns = jaxsep.Patterns.from_functions([bump], num_bins=60, support=(-12.0, 12.0))
        >>> noise = 0.05 * jax.random.normal(jax.random.key(0), (60,))
        >>> signal = bump(jnp.arange(60.0) - 20.25) + 0.5 * bump(jnp.arange(60.0) - 40.75) + noise
        >>> path = jaxsep.lasso_path(patterns, signal[None], jnp.geomspace(1, 0.02, 12))
        >>> chosen = path.at(path.best())
        >>> int(jnp.sum(chosen.debiased.active))
        2
    """

    alpha: Float[Array, "values frames"]
    found: LassoResult
    debiased: Spikes
    energy: Float[Array, "values frames"]
    criterion: Float[Array, "values frames"]

    def best(self) -> Int[Array, " frames"]:
        """The value with the least criterion for every frame; of equal ones the first, the largest α."""
        return jnp.argmin(self.criterion, axis=0)

    def at(self, value: Int[Array, " frames"]) -> "LassoPath":
        """The path with only that value of every frame, so that `values` is 1."""
        frames = jnp.arange(value.shape[0])
        return jax.tree.map(lambda x: x[value, frames][None], self)


@eqx.filter_jit
def lasso_path(
    patterns: Patterns,
    signals: Float[Array, "frames bins"],
    fractions: Float[Array, " values"],
    lasso: BeurlingLasso = BeurlingLasso(proximal_steps=0),
    *,
    noise: float | Float[Array, ""] | None = None,
) -> LassoPath:
    """Decomposes every frame for several α, each from the measures of the one before, and rates them.

    The criterion is `‖r‖²/σ² + K price` with K debiased spikes if the noise σ is known, else
    `m ln(‖r‖²/m) + K price`, of m bins. A spike has an amplitude, and a place among the m bins, all patterns
    and signs: its price is `ln m + 2 ln(m choices)`, so that one that explains noise hardly ever pays. Spikes
    without which the criterion is less, before anything else makes up for them, are left out.

    Arguments:
        patterns: the shapes ψ_i.
        signals: b.
        fractions: parts of each frame's `alpha_max`, in (0, 1], in falling order.
        lasso: the solver. With `signed` in its projection, `alpha_max` is that of signed measures.
        noise: standard deviation σ > 0 of white noise, if it is known.

    Returns: what `LassoPath` says. Where a signal is impossible or silent, the outcome tells, and all is 0.

    Example:
        >>> bump = lambda distance: jnp.exp(-0.5 * (distance / 2) ** 2)
        >>> patterns = jaxsep.Patterns.from_functions([bump], num_bins=40, support=(-12.0, 12.0))
        >>> signal = bump(jnp.arange(40.0) - 20.25)[None]
        >>> path = jaxsep.lasso_path(patterns, signal, jnp.array([1.0, 0.5, 0.1]))
        >>> print(path.found.spikes.mass.sum(axis=2)[:, 0].round(2))
        [0.  0.5 0.9]
    """
    signed, num_bins = lasso.projection.signed, patterns.num_bins
    harmless = jnp.where(jnp.all(jnp.isfinite(signals), axis=1, keepdims=True), signals, 0)
    largest = jax.lax.map(lambda b: alpha_max(patterns, b, signed=signed), harmless)
    alpha = jnp.asarray(fractions, signals.dtype)[:, None] * largest
    empty = Spikes.empty((signals.shape[0], lasso.projection.max_spikes), signals.dtype)
    price = math.log(num_bins) + 2 * math.log(num_bins * patterns.num_patterns * (1 + signed))
    # Of a signal without noise only rounding is left, which tells nothing.
    limits = jnp.finfo(signals.dtype)
    floor = num_bins * limits.tiny + limits.eps * jnp.sum(harmless**2, axis=1)

    def cost(energy, count):
        if noise is not None:
            return energy / noise**2 + price * count
        return num_bins * jnp.log(jnp.maximum(energy, floor) / num_bins) + price * count

    def fit(spikes):
        fitted = debias(patterns, harmless, spikes)
        model = jax.lax.map(lambda spikes: jnp.sum(synthesise(patterns, spikes), axis=0), fitted)
        return fitted, jnp.sum((harmless - model) ** 2, axis=1)

    def solve(start, alpha):
        found = lasso(patterns, signals, alpha, start)
        fitted, energy = fit(found.spikes)
        # The residual is orthogonal to what was fitted: the energy of a spike that is left out joins its own.
        atoms = jax.lax.map(lambda spikes: patterns.atoms(spikes.position, spikes.pattern)[0], fitted)
        without = energy[:, None] + fitted.mass**2 * jnp.sum(atoms**2, axis=2)
        pays = jax.vmap(cost, in_axes=(1, None), out_axes=1)(without, 0.0) - cost(energy, 0)[:, None] > price
        kept = eqx.tree_at(lambda s: s.active, fitted, fitted.active & pays)
        fitted, energy = fit(kept)
        rated = cost(energy, jnp.sum(fitted.active, axis=1))
        return found.spikes, (found, fitted, energy, rated)

    _, (found, fitted, energy, rated) = jax.lax.scan(solve, empty, alpha)
    return LassoPath(alpha, found, fitted, energy, rated)

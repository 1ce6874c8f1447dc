"""The Beurling LASSO for the sources themselves: accelerated proximal gradient with a certificate (P3)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxsep.blasso.certificate import Certificate, certify
from jaxsep.blasso.patterns import Patterns
from jaxsep.blasso.projection import Exchange, Projection, ProjectionOutcome, check_input
from jaxsep.blasso.spikes import Spikes, synthesise
from jaxsep.numerics.adjoint import freeze
from jaxsep.numerics.lanes import default_lanes, queue, run_lanes

__all__ = ["BeurlingLasso", "LassoResult", "ProximalState"]

#: Exchanges in one proximal map at most; warm starts mostly need one.
_MAX_EXCHANGES = 10

#: A proximal map is solved to this part of the gap that is left.
_PRECISION = 0.1


class LassoResult(eqx.Module):
    """What the Beurling LASSO finds in several frames.

    - `sources`: `u_i = ψ_i ∗ ν_i`.
    - `spikes`: the measures ν_i.
    - `point`: the dual certificate p: `⟨ψ_i(· - x), p⟩ ≤ α` for all i and real x, attained at the spikes.
    - `certificate`: primal and dual value, and the gap.
    - `outcome`: a `ProjectionOutcome` for each frame.
    - `proximal_steps`: iterations of the proximal gradient method.
    - `exchanges`: steps of the projection that finishes.
    """

    sources: Float[Array, "frames patterns bins"]
    spikes: Spikes
    point: Float[Array, "frames bins"]
    certificate: Certificate
    outcome: ProjectionOutcome
    proximal_steps: Int[Array, " frames"]
    exchanges: Int[Array, " frames"]


class ProximalState(eqx.Module):
    """State of the proximal gradient method on one frame, whose proximal maps are states of their own."""

    maps: Exchange
    sources: Float[Array, "patterns bins"]
    point: Float[Array, "patterns bins"]  # the extrapolated sources
    momentum: Float[Array, ""]
    gap: Float[Array, ""]
    steps: Int[Array, ""]


class BeurlingLasso(eqx.Module):
    """`min_ν ½‖Σ_i ψ_i ∗ ν_i - b‖² + α Σ_i ‖ν_i‖` over measures, solved for the sources `ψ_i ∗ ν_i` (P3).

    With the atomic norms R_i the problem is `min_u ½‖Σ_i u_i - b‖² + α Σ_i R_i(u_i)`, which
    `u_i ← prox_{τα R_i}(u_i - τ (Σ_j u_j - b))` with `prox_{λ R_i}(w) = w - P_{λK_i}(w)` solves. It
    has Nesterov's momentum, restarted whenever it points uphill. Every projection starts with its last
    multipliers, and is the more precise the smaller the gap is. The iteration ends when the gap is certified.

    At the optimum `b - Σ_i u_i` is the projection of b onto the intersection of all αK_i. What the iteration
    has not certified, that one projection finishes, from the spikes found so far. With `proximal_steps=0` it
    does everything, with the same result many times as fast.

    Whatever found it, the result is differentiated as that projection is.

    Arguments:
        projection: how to project; its tolerance is that of the relative gap.
        proximal_steps: iterations at most.
        step_size: τ, by default 1 / number of patterns, the largest that always converges.

    Example:
        >>> bump = lambda distance: jnp.exp(-0.5 * (distance / 2) ** 2)
        >>> patterns = jaxsep.Patterns.from_functions([bump], num_bins=40, support=(-12.0, 12.0))
        >>> signal = bump(jnp.arange(40.0) - 20.25)
        >>> lasso = jaxsep.BeurlingLasso(jaxsep.Projection(max_spikes=4), proximal_steps=0)
        >>> found = jax.jit(lasso)(patterns, signal[None], 0.1 * jaxsep.alpha_max(patterns, signal))
        >>> print(found.spikes.position[found.spikes.active].round(2))
        [20.25]
    """

    projection: Projection = Projection()
    proximal_steps: int = eqx.field(static=True, default=200)
    step_size: float | Float[Array, ""] | None = None

    def __check_init__(self):
        if self.proximal_steps < 0:
            raise ValueError(f"proximal_steps: expected at least 0, got {self.proximal_steps}")

    def __call__(
        self,
        patterns: Patterns,
        signals: Float[Array, "frames bins"],
        alpha: float | Float[Array, ""] | Float[Array, " frames"],
        start: Spikes | None = None,
    ) -> LassoResult:
        """Decomposes every frame.

        Arguments:
            patterns: the shapes ψ_i.
            signals: b.
            alpha: α > 0, one for all or one for each, such as a fraction of `alpha_max`.
            start: measures of similar frames, `[frames, spikes]`.

        Returns: what `LassoResult` says. Where the input is impossible, the outcome tells, and all is 0.

        Raises: `ValueError` without a frame, or if the number of bins is not the patterns'.
        """
        # As an array: another number needs no other program.
        return self._decompose(patterns, signals, jnp.asarray(alpha, signals.dtype), start)

    @eqx.filter_jit
    def _decompose(self, patterns, signals, alpha, start):
        harmless, bound, verdict = check_input(patterns, signals, alpha)
        num_frames = signals.shape[0]
        used = jnp.zeros(num_frames, jnp.int32)
        if self.proximal_steps:
            solver, *given = freeze((self, patterns, harmless, bound, start))
            start, used = solver._descend(*given, verdict == 0)
        found = self.projection(patterns, signals, alpha, start)
        sources = jax.lax.map(lambda spikes: synthesise(patterns, spikes), found.spikes)
        return LassoResult(
            sources, found.spikes, found.point, found.certificate, found.outcome, used, found.steps
        )

    def _descend(self, patterns, signals, alpha, start, valid):
        """The measures that the proximal gradient method arrives at, and its steps."""
        num_frames, num_patterns = signals.shape[0], patterns.num_patterns
        singles = patterns.single()
        start = Spikes.empty((num_frames, 1), signals.dtype) if start is None else start
        begin = lambda i: self._begin(patterns, signals[i], jax.tree.map(lambda x: x[i], start))
        last = run_lanes(
            begin,
            lambda i, state: self._step(patterns, singles, signals[i], alpha[i], state),
            lambda i, state: self._ended(state),
            lambda state: state,
            *queue(valid),
            jax.vmap(begin)(jnp.arange(num_frames)),
            default_lanes(num_frames, *[2 * self.projection.max_spikes] * num_patterns),
        )
        spikes = last.maps.spikes
        pattern = jnp.broadcast_to(jnp.arange(num_patterns)[:, None], spikes.pattern.shape)
        spikes = eqx.tree_at(lambda s: s.pattern, spikes, pattern.astype(jnp.int32))
        return jax.tree.map(lambda x: x.reshape(num_frames, -1), spikes), last.steps

    def _begin(self, patterns, signal, spikes) -> ProximalState:
        def own(pattern):
            mine = spikes.active & (spikes.pattern == pattern)
            order = jnp.argsort(~mine, stable=True)
            mine = eqx.tree_at(
                lambda s: (s.active, s.pattern), spikes, (mine, jnp.zeros_like(spikes.pattern))
            )
            mine = jax.tree.map(lambda x: x[order], mine)
            slots = Spikes.empty((self.projection.max_spikes,), signal.dtype)
            size = min(mine.active.size, self.projection.max_spikes)
            return jax.tree.map(lambda slot, x: slot.at[:size].set(x[:size]), slots, mine)

        sources = synthesise(patterns, spikes)
        warm = jax.vmap(own)(jnp.arange(patterns.num_patterns))
        return ProximalState(
            maps=jax.vmap(self.projection.begin)(sources, warm),
            sources=sources,
            point=sources,
            momentum=jnp.ones((), signal.dtype),
            gap=jnp.asarray(jnp.inf, signal.dtype),
            steps=jnp.int32(0),
        )

    def _step(self, patterns, singles, signal, alpha, state) -> ProximalState:
        """One exchange in the proximal map of every source; when all are solved, one proximal step."""
        dtype = signal.dtype
        tau = jnp.asarray(1 / patterns.num_patterns if self.step_size is None else self.step_size, dtype)
        goal = state.point - tau * (jnp.sum(state.point, axis=0) - signal)
        exchange = lambda pattern, w, maps: self.projection.step(pattern, w, tau * alpha, maps)
        maps = jax.vmap(exchange)(singles, goal, state.maps)
        sources = goal - maps.residual
        residual = signal - jnp.sum(sources, axis=0)
        largest = jnp.max(patterns.maxima(residual, signed=self.projection.signed).value)
        mass = jnp.sum(maps.spikes.amplitude)
        certificate = certify(signal, residual, alpha, largest, mass)

        left = jnp.clip(state.gap, self.projection.accuracy(dtype), 1) * certificate.primal
        enough = _PRECISION * tau * left / patterns.num_patterns
        rounding = 8 * jnp.finfo(dtype).eps * maps.certificate.primal
        solved = maps.certificate.gap <= jnp.maximum(enough, rounding)
        turn = jnp.all(solved | (maps.steps >= _MAX_EXCHANGES))

        uphill = jnp.sum((state.point - sources) * (sources - state.sources)) > 0
        before = jnp.where(uphill, 1, state.momentum).astype(dtype)
        after = 0.5 * (1 + jnp.sqrt(1 + 4 * before**2))
        moved = ProximalState(
            maps=jax.vmap(self.projection.begin)(goal, maps.spikes),
            sources=sources,
            point=sources + (before - 1) / after * (sources - state.sources),
            momentum=after,
            gap=certificate.relative_gap,
            steps=state.steps + 1,
        )
        waiting = eqx.tree_at(lambda s: s.maps, state, maps)
        return jax.tree.map(lambda new, old: jnp.where(turn, new, old), moved, waiting)

    def _ended(self, state):
        solved = state.gap <= self.projection.accuracy(state.gap.dtype)
        return solved | (state.steps >= self.proximal_steps)

"""Orthogonal projection onto the signals whose correlation with every shifted pattern is bounded."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsep.blasso.certificate import Certificate, certify
from jaxsep.blasso.patterns import Maxima, Patterns
from jaxsep.blasso.spikes import DAMPING, Spikes, differentiable_spikes, slide
from jaxsep.numerics.adjoint import Adjoint, Implicit, freeze, known
from jaxsep.numerics.lanes import default_lanes, queue, run_lanes

__all__ = [
    "Exchange",
    "Projection",
    "ProjectionOutcome",
    "ProjectionResult",
    "check_input",
    "outcome_of_input",
]

#: Slots of the first attempt: enough for most frames, and a step is ten times as fast as with 32.
_FEW = 8

#: A candidate this near to a spike of its pattern, in bins, waits until the spike has settled.
_NEAR = 1.0

#: Relative decrease of the loss in a descent below which spikes have settled.
_SETTLED = 1e-4

#: Candidates that exceed the bound by less than this part of the largest excess are mostly side maxima.
_SIDE = 0.3

#: So many steps without a new spike, or a gap a tenth smaller, and a problem is given up.
_PATIENCE = 8


class ProjectionOutcome(eqx.Enumeration):
    """How a projection ended."""

    solved = "The relative gap is below the tolerance."
    zero = "No correlation exceeds the bound: the projection is the signal itself, and the measures are 0."
    full = "There are not enough slots for the spikes: allow more with max_spikes, or raise the bound."
    stalled = "Rounding keeps the gap above the tolerance: use double precision, or raise the tolerance."
    steps_used = "All steps were used: allow more with max_steps."
    invalid_signal = "The signal holds NaN or infinity: check the samples it was made from."
    invalid_bound = "The bound is not a positive number: take a fraction of alpha_max."
    invalid_pattern = "A pattern is zero or not finite: every instrument needs a harmonic above 0."


class Exchange(eqx.Module):
    """State of the exchange method on one problem: where it is, and what joins in the next step."""

    spikes: Spikes
    candidates: Spikes
    residual: Float[Array, " bins"]
    damping: Float[Array, ""]
    certificate: Certificate
    best: Float[Array, ""]  # the smallest relative gap so far
    idle: Int[Array, ""]  # steps without progress
    full: Bool[Array, ""]  # whether a candidate found no slot
    steps: Int[Array, ""]


class ProjectionResult(eqx.Module):
    """Projections of several signals.

    - `point`: the projection p, within the bound at *all* real shifts.
    - `spikes`: the multipliers, measures ν_i with `w - p = Σ_i ψ_i ∗ ν_i` (up to the certificate's scale).
    - `certificate`: of `min_ν ½‖Σ_i ψ_i ∗ ν_i - w‖² + λ Σ_i ‖ν_i‖`, the dual problem.
    - `outcome`: a `ProjectionOutcome` for each signal.
    - `steps`: exchanges.
    """

    point: Float[Array, "frames bins"]
    spikes: Spikes
    certificate: Certificate
    outcome: ProjectionOutcome
    steps: Int[Array, " frames"]


class Projection(eqx.Module):
    """Projection onto `λK = {p : ⟨ψ_i(· - x), p⟩ ≤ λ for all patterns i and real shifts x}` (P3).

    It is `p = w - Σ_j a_j ψ(· - x_j)` with multipliers a_j ≥ 0 at the shifts where the bound is attained: of
    the continuum of constraints few are active. In each step of this exchange method the shifts where p
    exceeds the bound most join, multipliers *and shifts* descend together, multipliers that became 0 leave,
    and the result is certified.

    By Moreau's decomposition `w - p` is the proximal map of `λ Σ_i R_i`, R_i being the atomic norm of pattern
    i: with one pattern the map that the proximal gradient method needs, with all of them the Beurling LASSO.

    Signals run side by side in lanes that never wait for each other, with few slots first; those that need
    more go on with all.

    Point, spikes and primal value can be differentiated by patterns, signals and bound, with the set of
    spikes held fixed (see `Adjoint`). By the tolerance and the start the derivative is 0. Gap and scale tell
    how exact a result is and have no derivative.

    Arguments:
        signed: bounds the modulus instead, for measures with a sign.
        max_spikes: slots for multipliers.
        tolerance: relative gap at which a projection is solved; by default 1e-4 in single and 1e-9 in double
            precision.
        num_candidates: shifts that may join in one step.
        num_slides: Newton steps in one step.
        max_steps: at most.
        adjoint: how the solution is differentiated, `Implicit()` or `Unrolled()`.

    Example:
        >>> bump = lambda distance: jnp.exp(-0.5 * (distance / 2) ** 2)
        >>> patterns = jaxsep.Patterns.from_functions([bump], num_bins=40, support=(-12.0, 12.0))
        >>> signal, bound = bump(jnp.arange(40.0) - 20.25), 1.0
        >>> projected = jax.jit(jaxsep.Projection(max_spikes=4))(patterns, signal[None], bound)
        >>> print(jnp.max(patterns.maxima(projected.point[0]).value).round(3))
        1.0
    """

    signed: bool = eqx.field(static=True, default=False)
    max_spikes: int = eqx.field(static=True, default=32)
    tolerance: float | Float[Array, ""] | None = None
    num_candidates: int = eqx.field(static=True, default=4)
    num_slides: int = eqx.field(static=True, default=4)
    max_steps: int = eqx.field(static=True, default=100)
    adjoint: Adjoint = Implicit()

    def __check_init__(self):
        for name in ("max_spikes", "num_candidates", "num_slides", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def __call__(
        self,
        patterns: Patterns,
        signals: Float[Array, "frames bins"],
        bound: float | Float[Array, ""] | Float[Array, " frames"],
        start: Spikes | None = None,
    ) -> ProjectionResult:
        """Projects every signal.

        Arguments:
            patterns: the shapes ψ_i.
            signals: w.
            bound: λ > 0, one for all or one for each.
            start: multipliers of a similar problem, `[frames, spikes]`; the smallest beyond `max_spikes` are
                left out.

        Returns: what `ProjectionResult` says. Where the input is impossible, the outcome tells, and the point
        is 0.

        Raises: `ValueError` without a signal, or if the number of bins is not the patterns'.
        """
        # As an array: another number needs no other program.
        return self._project(patterns, signals, jnp.asarray(bound, signals.dtype), start)

    @eqx.filter_jit
    def _project(self, patterns, signals, bound, start):
        signals, bound, verdict = check_input(patterns, signals, bound)
        valid = verdict == _ACCEPTED
        start = Spikes.empty((signals.shape[0], 1), signals.dtype) if start is None else start
        solver, *given = freeze((self, patterns, signals, bound, start))
        state = solver._solve(*given, valid)
        outcome = jax.vmap(lambda s, v: outcome_of_input(v, solver._outcome(s)))(state, verdict)
        spikes, residual = differentiable_spikes(
            state.spikes, state.residual, patterns, signals, bound, self.adjoint
        )
        primal = known(state.certificate.primal, _primal, residual, bound, spikes.amplitude)
        certificate = eqx.tree_at(lambda c: c.primal, freeze(state.certificate), primal)
        point = certificate.scale[:, None] * residual
        return ProjectionResult(point, spikes, certificate, outcome, state.steps)

    def accuracy(self, dtype) -> Float[Array, ""]:
        """The tolerance in use."""
        default = 1e-4 if dtype == jnp.float32 else 1e-9
        return jnp.asarray(default if self.tolerance is None else self.tolerance, dtype)

    def begin(self, signal: Float[Array, " bins"], spikes: Spikes) -> Exchange:
        """The state before the first step."""
        zero = jnp.zeros((), signal.dtype)
        return Exchange(
            spikes=spikes,
            candidates=Spikes.empty((self.num_candidates,), signal.dtype),
            residual=signal,
            damping=zero + DAMPING,
            certificate=Certificate(zero, zero, zero + 1),
            best=zero + jnp.inf,
            idle=jnp.int32(0),
            full=jnp.array(False),
            steps=jnp.int32(0),
        )

    def step(
        self, patterns: Patterns, signal: Float[Array, " bins"], bound: Float[Array, ""], state: Exchange
    ) -> Exchange:
        """Candidates join, all spikes descend, and the largest correlations tell what is still wrong."""
        spikes, full = _insert(state.spikes, state.candidates)
        joined = jnp.any(state.candidates.active)
        found = slide(patterns, signal, bound, spikes, num_steps=self.num_slides, damping=state.damping)
        maxima = patterns.maxima(found.residual, signed=self.signed)
        mass = jnp.sum(found.spikes.amplitude)
        certificate = certify(signal, found.residual, bound, jnp.max(maxima.value), mass)
        spikes = _merge(patterns, found.spikes)
        progress = (joined & ~full) | (certificate.relative_gap < 0.9 * state.best)
        return Exchange(
            spikes=spikes,
            candidates=self._candidates(patterns, maxima, bound, spikes, found.decrease < _SETTLED),
            residual=found.residual,
            damping=found.damping,
            certificate=certificate,
            best=jnp.minimum(state.best, certificate.relative_gap),
            idle=jnp.where(progress, 0, state.idle + 1),
            full=full,
            steps=state.steps + 1,
        )

    def _solve(self, patterns, signals, bound, start, valid) -> Exchange:
        num_frames = signals.shape[0]
        start = _resize(_compact(start), self.max_spikes)
        state = jax.vmap(self.begin)(signals, start)
        waiting = valid
        for size in sorted({min(_FEW, self.max_spikes), self.max_spikes}):
            last = size == self.max_spikes
            ready = waiting if last else waiting & (jnp.sum(start.active, axis=1) <= size)
            current = _shrink(state, size)
            take = lambda i, current=current: jax.tree.map(lambda x: x[i], current)
            current = run_lanes(
                lambda i, take=take: eqx.tree_at(lambda s: s.idle, take(i), jnp.int32(0)),
                lambda i, s: self.step(patterns, signals[i], bound[i], s),
                lambda i, s, last=last: self._ended(s) | (s.full & ~jnp.array(last)),
                lambda s: s,
                *queue(ready),
                current,
                default_lanes(num_frames, 2 * size),
            )
            full = current.full & (current.certificate.relative_gap > self.accuracy(signals.dtype))
            waiting = (waiting & ~ready) | (ready & full)
            wide = eqx.tree_at(lambda s: s.spikes, current, _resize(current.spikes, self.max_spikes))
            state = jax.tree.map(
                lambda new, old, ready=ready: jnp.where(_like(ready, new), new, old), wide, state
            )
        return state

    def _ended(self, state):
        solved = state.certificate.relative_gap <= self.accuracy(state.residual.dtype)
        return solved | (state.idle >= _PATIENCE) | (state.steps >= self.max_steps)

    def _outcome(self, state) -> ProjectionOutcome:
        kinds = ProjectionOutcome
        solved = state.certificate.relative_gap <= self.accuracy(state.residual.dtype)
        outcome = kinds.where(state.steps >= self.max_steps, kinds.steps_used, kinds.stalled)
        outcome = kinds.where(state.full, kinds.full, outcome)
        outcome = kinds.where(solved, kinds.solved, outcome)
        return kinds.where(solved & ~jnp.any(state.spikes.active), kinds.zero, outcome)

    def _candidates(self, patterns, maxima: Maxima, bound, spikes, settled) -> Spikes:
        """The largest local maxima of the correlation above the bound."""
        # What rounding alone lifts above the bound is no candidate: it would come and go for ever.
        excess = maxima.value - bound * (1 + 32 * jnp.finfo(bound.dtype).eps)
        left, right = jnp.roll(excess, 1, axis=1), jnp.roll(excess, -1, axis=1)
        if not patterns.circle:
            left, right = left.at[:, 0].set(-jnp.inf), right.at[:, -1].set(-jnp.inf)
        height = jnp.where((excess > left) & (excess >= right) & (excess > 0), excess, 0).reshape(-1)
        chosen = []
        for _ in range(self.num_candidates):  # sorting all of them would take ten times as long
            chosen.append(jnp.argmax(height))
            height = height.at[chosen[-1]].set(0)
        chosen = jnp.stack(chosen)
        excess, position = excess.reshape(-1)[chosen], maxima.position.reshape(-1)[chosen]
        row = chosen // maxima.value.shape[1]
        pattern = (row % patterns.num_patterns).astype(jnp.int32)
        sign = jnp.where(row < patterns.num_patterns, 1, -1).astype(excess.dtype)
        same = spikes.active & (pattern[:, None] == spikes.pattern) & (sign[:, None] == spikes.sign)
        near = same & (patterns.distance(position[:, None], spikes.position) < _NEAR)
        first = jnp.arange(chosen.size) == jnp.argmax(chosen == chosen[:, None], axis=1)
        # Beside a spike that still moves the bound is exceeded for that reason alone.
        active = first & (excess > 0) & (excess >= _SIDE * excess[0]) & (settled | ~jnp.any(near, axis=1))
        return Spikes(jnp.zeros_like(position), position, pattern, sign, active)


#: Verdicts of `check_input`.
_ACCEPTED, _SIGNAL, _BOUND, _PATTERN = range(4)


def check_input(patterns: Patterns, signals, bound):
    """Signals and bounds with harmless values where they are impossible, and a verdict for each signal."""
    if signals.shape[1] != patterns.num_bins:
        raise ValueError(
            f"signals: expected {patterns.num_bins} bins as the patterns, got {signals.shape[1]}"
        )
    if signals.shape[0] < 1:
        raise ValueError("signals: expected at least 1 frame, got 0")
    bound = jnp.broadcast_to(jnp.asarray(bound, signals.dtype), signals.shape[:1])
    patterns_fine = jnp.all((patterns.scale > 0) & jnp.all(jnp.isfinite(patterns.table), axis=(1, 2)))
    verdict = jnp.where(patterns_fine, _ACCEPTED, _PATTERN)
    verdict = jnp.where((bound > 0) & (bound < jnp.inf), verdict, _BOUND)
    verdict = jnp.where(jnp.all(jnp.isfinite(signals), axis=1), verdict, _SIGNAL)
    valid = verdict == _ACCEPTED
    return jnp.where(valid[:, None], signals, 0), jnp.where(valid, bound, 1), verdict


def outcome_of_input(verdict: Int[Array, ""], outcome: ProjectionOutcome) -> ProjectionOutcome:
    """The outcome of a problem whose input may have been impossible."""
    kinds = ProjectionOutcome
    outcome = kinds.where(verdict == _PATTERN, kinds.invalid_pattern, outcome)
    outcome = kinds.where(verdict == _BOUND, kinds.invalid_bound, outcome)
    return kinds.where(verdict == _SIGNAL, kinds.invalid_signal, outcome)


def _primal(residual, bound, amplitude):
    """Values of the dual problem."""
    return 0.5 * jnp.sum(residual**2, axis=1) + bound * jnp.sum(amplitude, axis=1)


def _insert(spikes: Spikes, candidates: Spikes):
    """Candidates in free slots, the best first, and whether one found none."""
    free = ~spikes.active
    rank, order = jnp.cumsum(free), jnp.cumsum(candidates.active)
    take = free[:, None] & candidates.active & (rank[:, None] == order)
    source = jnp.argmax(take, axis=1)
    taken = jnp.any(take, axis=1)
    joined = jax.tree.map(lambda new, old: jnp.where(taken, new[source], old), candidates, spikes)
    return joined, jnp.sum(candidates.active) > jnp.sum(free)


def _merge(patterns: Patterns, spikes: Spikes) -> Spikes:
    """Spikes that slid to one place as one."""
    # The loss changes by the square of the distance, relative to the width of a pattern.
    reach = jnp.finfo(spikes.amplitude.dtype).eps ** 0.25
    slot = jnp.arange(spikes.active.shape[0])
    same = (spikes.pattern[:, None] == spikes.pattern) & (spikes.sign[:, None] == spikes.sign)
    same &= patterns.distance(spikes.position[:, None], spikes.position) < reach
    first = jnp.argmax(same & spikes.active, axis=1)  # each joins the first one that is near
    stays = spikes.active & (first == slot)
    members = (first[:, None] == slot) & spikes.active[:, None]
    amplitude = jnp.where(stays, jnp.sum(jnp.where(members, spikes.amplitude[:, None], 0), axis=0), 0)
    return eqx.tree_at(lambda s: (s.amplitude, s.active), spikes, (amplitude, stays))


def _compact(spikes: Spikes) -> Spikes:
    """Spikes of each frame, the largest first."""
    order = jnp.argsort(jnp.where(spikes.active, -spikes.amplitude, jnp.inf), axis=1)
    return jax.tree.map(lambda x: jnp.take_along_axis(x, order, axis=1), spikes)


def _resize(spikes: Spikes, size: int) -> Spikes:
    """The first slots, or free ones added."""
    missing = size - spikes.active.shape[1]
    if missing <= 0:
        return jax.tree.map(lambda x: x[:, :size], spikes)
    blank = Spikes.empty((spikes.active.shape[0], missing), spikes.amplitude.dtype)
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), spikes, blank)


def _shrink(state: Exchange, size: int) -> Exchange:
    return eqx.tree_at(lambda s: s.spikes, state, _resize(state.spikes, size))


def _like(mask, array):
    return mask.reshape(mask.shape + (1,) * (array.ndim - 1))

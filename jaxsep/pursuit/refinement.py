"""Bounded minimisation of the lifted loss over the tones of one frame."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsep.tones.axes import LogAxis
from jaxsep.tones.rendering import add_windows, window_offsets
from jaxsep.tones.tones import MAX_INHARMONICITY, width_bounds

_DAMPING_START = 1e-2
_DAMPING_MAX = 1e8
MEM=0
POW=0.1


class LiftedLoss(eqx.Module):
    """`L(θ) = ½ Σ_f ((Y_θ[f] + δ)^q − (y[f] + δ)^q)²` and its Gauss–Newton model (P1, sparse pursuit)."""

    axis: LogAxis
    lift: float = eqx.field(static=True, default=0.5)
    offset: float = eqx.field(static=True, default=1e-7)

    def lifted(self, spectrum):
        return _power(spectrum + self.offset, self.lift)

    def normal_equations(self, theta, harmonics, target):
        """Loss, JᵀJ and Jᵀr at the packed parameters `theta [tones, 4]`."""
        columns = self._columns(theta, harmonics)  # [tones, 4, bins], d Y / d theta, first the tone itself
        amplitude_derivative = _power(theta[:, 0], 1 / self.lift - 1) / self.lift
        amplitude = theta[:, 0] * amplitude_derivative * self.lift
        model = jnp.sum(amplitude[:, None] * columns[:, 0], axis=0)
        lifted = self.lifted(model)
        residual = lifted - target
        slope = self.lift * lifted / (model + self.offset)
        scale = jnp.concatenate([amplitude_derivative[:, None], jnp.repeat(amplitude[:, None], 3, 1)], 1)
        jacobian = (columns * scale[:, :, None] * slope).reshape(-1, target.shape[0])
        augmented = jnp.concatenate([jacobian, residual[None]])
        gram = jnp.einsum("if,jf->ij", jacobian, augmented)
        return 0.5 * jnp.sum(residual**2), gram[:, :-1], gram[:, -1]

    def _columns(self, theta, harmonics):
        num_bins = self.axis.num_bins
        num_harmonics = harmonics.shape[1]
        _, fundamental, width, inharmonicity = theta.T
        position, _, by_inharmonicity = jax.vmap(lambda f, b: self.axis.partials(f, b, num_harmonics))(
            fundamental, inharmonicity
        )
        nearest = jnp.round(position).astype(jnp.int32)
        distance = (nearest - position)[..., None] + window_offsets(theta.dtype)
        inverse = 1 / width[:, None, None]
        scaled = distance * inverse
        value = harmonics[..., None] * jnp.exp(-0.5 * scaled**2)
        slope = value * scaled * inverse
        parts = (value, slope, slope * scaled, slope * by_inharmonicity[..., None])
        add = jax.vmap(lambda v, n: add_windows(v, n, num_bins)[0])
        return jnp.stack([add(part, nearest) for part in parts], axis=1)


class _State(eqx.Module):
    trial: Array  # parameters to evaluate next
    predicted: Array  # decrease that the quadratic model promises for them
    theta: Array
    loss: Array
    hessian: Array
    gradient: Array
    damping: Array
    growth: Array
    steps: Array
    converged: Array
    move: Array
    change: Array


def start(theta):
    size = theta.size
    dt = theta.dtype
    return _State(
        trial=theta, predicted=jnp.array(jnp.inf, dt), theta=theta, loss=jnp.array(jnp.inf, dt), hessian=jnp.zeros((size, size), dt),
        gradient=jnp.zeros(size, dt), damping=jnp.array(_DAMPING_START, dt), growth=jnp.array(2.0, dt), steps=jnp.int32(0),
        converged=jnp.array(False), move=jnp.zeros((MEM,size), dt), change=jnp.zeros((MEM,size), dt),
    )


def step(loss_fn, state, active, harmonics, target, tolerance, bounds):
    loss, hessian, gradient = loss_fn.normal_equations(state.trial, harmonics, target)
    better = loss < state.loss
    first = jnp.isinf(state.predicted)
    decrease = state.loss - loss
    converged = ~first & jnp.where(better, decrease <= tolerance * loss, state.predicted <= tolerance * state.loss)
    pick = lambda n, o: jnp.where(better, n, o)
    fresh = better & ~first
    ns = (state.trial - state.theta).reshape(-1); ny = gradient - state.gradient
    move = jnp.where(fresh, jnp.concatenate([state.move[1:], ns[None]]), state.move)
    change = jnp.where(fresh, jnp.concatenate([state.change[1:], ny[None]]), state.change)
    theta = pick(state.trial, state.theta)
    loss = pick(loss, state.loss)
    hessian = pick(hessian, state.hessian)
    gradient = pick(gradient, state.gradient)
    gain = jnp.where(first, 1.0, decrease / jnp.maximum(state.predicted, jnp.finfo(loss.dtype).tiny))
    damping = jnp.where(
        first, state.damping,
        jnp.where(better, jnp.maximum(state.damping * jnp.maximum(1 / 3, 1 - (2 * gain - 1) ** 3), 4*jnp.finfo(loss.dtype).eps), state.damping * state.growth))
    growth = jnp.where(better, 2.0, state.growth * 2)
    lower, upper = bounds
    flat, lo, hi = theta.reshape(-1), lower.reshape(-1), upper.reshape(-1)
    free = jnp.repeat(active, 4) & ~((flat <= lo) & (gradient > 0)) & ~((flat >= hi) & (gradient < 0))
    model = jnp.where(free[:, None] & free[None], hessian, 0)
    for k in range(MEM):
        s_ = jnp.where(free, move[k], 0); y_ = jnp.where(free, change[k], 0)
        As = model @ s_; sAs = s_ @ As; sy = s_ @ y_
        t = jnp.where(sy >= POW * sAs, 1.0, (1 - POW) * sAs / jnp.where(sAs > sy, sAs - sy, 1))
        y_ = t * y_ + (1 - t) * As; sy = s_ @ y_
        ok = (sAs > 0) & (sy > 0)
        model = model + jnp.where(ok, jnp.outer(y_, y_) / jnp.where(ok, sy, 1) - jnp.outer(As, As) / jnp.where(ok, sAs, 1), 0)
    diag = jnp.diagonal(model)
    floor = jnp.finfo(diag.dtype).tiny
    system = model + jnp.diag(jnp.where(free, jnp.where(diag > 0, damping * diag, 1), 1))
    direction = -jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(system), jnp.where(free, gradient, 0))
    trial = jnp.clip(flat + direction, lo, hi)
    moved = trial - flat
    predicted = -(gradient @ moved + 0.5 * moved @ model @ moved)
    converged = converged | (damping > _DAMPING_MAX) | ~(jnp.any(moved != 0))
    return _State(trial.reshape(theta.shape), predicted, theta, loss, hessian, gradient, damping, growth, state.steps + 1, converged, move, change)


def _power(x, exponent):
    if exponent == 1.0:
        return x
    if exponent == 0.5:
        return jnp.sqrt(x)
    return x**exponent

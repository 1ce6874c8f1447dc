"""The lifted least-squares loss of tones on the logarithmic axis, and its Gauss–Newton model."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsep.signal.axes import LogAxis
from jaxsep.signal.gaussians import add_windows, window_offsets

__all__ = ["LiftedLoss", "power"]


class LiftedLoss(eqx.Module):
    """`L(θ) = ½ Σ_f ((Y_θ[f] + δ)^q − (y[f] + δ)^q)²`  (P1, sparse pursuit).

    The concave lift makes quiet partials count.

    Arguments:
        axis: of the spectra.
        lift: q in (0, 1].
        offset: δ > 0 in the units of the spectra; the default belongs to spectra scaled to a peak of 1.

    Example:
        >>> objective = jaxsep.LiftedLoss(lift=0.5)
        >>> print(objective.lifted(jnp.array([1.0, 0.0625])).round(2))  # 24 dB become 12
        [1.   0.25]
    """

    axis: LogAxis = LogAxis()
    lift: float = eqx.field(static=True, default=0.5)
    offset: float = eqx.field(static=True, default=1e-7)

    def __check_init__(self):
        if not 0 < self.lift <= 1 or not self.offset > 0:
            raise ValueError(
                f"LiftedLoss: expected 0 < lift <= 1 and offset > 0, got {self.lift} and {self.offset}"
            )

    def lifted(self, spectrum: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """`(spectrum + δ)^q`."""
        return power(spectrum + self.offset, self.lift)

    def model(
        self, theta: Float[Array, "tones 4"], harmonics: Float[Array, "tones harmonics"]
    ) -> Float[Array, " bins"]:
        """Spectrum `Y_θ` of packed tones: rows (a^q, fundamental, width, inharmonicity)."""
        return self.spectrum(power(theta[:, 0], 1 / self.lift), theta, harmonics)

    def spectrum(
        self,
        amplitude: Float[Array, " tones"],
        theta: Float[Array, "tones 4"],
        harmonics: Float[Array, "tones harmonics"],
    ) -> Float[Array, " bins"]:
        """As `model`, with the amplitudes a themselves in place of the first column."""
        windowed, dense = partial(_windowed_model, self.axis), partial(_dense_model, self.axis)
        return jax.lax.platform_dependent(amplitude, theta, harmonics, cpu=windowed, default=dense)

    def normal_equations(
        self,
        theta: Float[Array, "tones 4"],
        harmonics: Float[Array, "tones harmonics"],
        target: Float[Array, " bins"],
    ) -> tuple[Float[Array, ""], Float[Array, "parameters parameters"], Float[Array, " parameters"]]:
        """`L`, `JᵀJ` and `Jᵀr` at packed tones, all from one evaluation of the partials.

        The first parameter is a^q rather than a: the lifted spectrum of a single tone is linear in it.

        Arguments:
            theta: rows as in `model`.
            harmonics: each tone's row of the dictionary.
            target: the lifted spectrum to explain.
        """
        windowed, dense = partial(_windowed_columns, self.axis), partial(_dense_columns, self.axis)
        columns = jax.lax.platform_dependent(theta, harmonics, cpu=windowed, default=dense)

        root = power(theta[:, 0], 1 / self.lift - 1)
        amplitude = theta[:, 0] * root
        scale = jnp.stack([root / self.lift, amplitude, amplitude, amplitude], axis=1)
        model = jnp.sum(amplitude[:, None] * columns[:, 0], axis=0)
        lifted = self.lifted(model)
        residual = lifted - target
        slope_of_lift = self.lift * lifted / (model + self.offset)
        jacobian = (columns * scale[:, :, None] * slope_of_lift).reshape(-1, target.shape[0])
        both = jnp.concatenate([jacobian, residual[None]])
        gram = jnp.einsum("if,jf->ij", jacobian, both, precision="highest")
        return 0.5 * jnp.sum(residual**2), gram[:, :-1], gram[:, -1]

    def row_equations(
        self,
        theta: Float[Array, "frames tones 4"],
        mixing: Float[Array, "frames tones rows"],
        rows: Float[Array, "rows harmonics"],
        spectra: Float[Array, "frames bins"],
        weights: Float[Array, " frames"],
    ) -> tuple[
        Float[Array, ""], Float[Array, "rows harmonics rows harmonics"], Float[Array, "rows harmonics"]
    ]:
        """Sums over frames of `L`, `JᵀJ` and `Jᵀr` by rows that the harmonics of the tones are mixed from.

        Arguments:
            theta: tones as in `model`.
            mixing: shares of the rows in the harmonics of each tone; those of a dictionary are 0 and 1.
            rows: of harmonics.
            spectra: to explain.
            weights: of the frames.
        """
        product = partial(jnp.einsum, precision="highest")
        atoms = jax.vmap(lambda theta: self._atoms(theta, rows.shape[1]))(theta)
        model = product("fth,fthb->fb", product("ftr,rh->fth", mixing, rows), atoms)
        lifted, root = self.lifted(model), jnp.sqrt(weights)[:, None]
        residual = root * (lifted - self.lifted(spectra))
        jacobian = atoms * (root * self.lift * lifted / (model + self.offset))[:, None, None]
        by_tones = product("fthb,fsgb->fthsg", jacobian, jacobian)
        hessian = product("frhsg,fsq->rhqg", product("ftr,fthsg->frhsg", mixing, by_tones), mixing)
        gradient = product("ftr,fth->rh", mixing, product("fthb,fb->fth", jacobian, residual))
        return 0.5 * jnp.sum(residual**2), hessian, gradient

    def _atoms(self, theta, num_harmonics):
        """Spectra `[tones, harmonics, bins]` of each harmonic of each tone, as loud as the tone."""
        amplitude = power(theta[:, 0], 1 / self.lift)[:, None]
        heights = jnp.broadcast_to(amplitude, (theta.shape[0], num_harmonics))
        windowed, dense = partial(_windowed_atoms, self.axis), partial(_dense_atoms, self.axis)
        return jax.lax.platform_dependent(theta, heights, cpu=windowed, default=dense)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def power(x: Float[Array, "*shape"], exponent: float) -> Float[Array, "*shape"]:
    """`x^exponent` for x ≥ 0, without the cost of a general power where it is not needed.

    The derivative at 0 is 0 for any exponent but 1: silence has finite gradients.
    """
    if exponent == 1.0:
        return x
    if exponent == 0.5:
        return jnp.sqrt(x)
    if exponent == 2.0:
        return x * x
    return x**exponent


@power.defjvp
def _power_jvp(exponent, primals, tangents):
    (x,), (change,) = primals, tangents
    if exponent == 1.0:
        return x, change
    if exponent == 2.0:
        return x * x, 2 * x * change
    value, positive = power(x, exponent), x > 0
    safe = jnp.where(positive, x, 1)
    root = power(safe, exponent)  # its own derivative has to be safe as well
    return value, jnp.where(positive, exponent * root / safe, 0) * change


# ---- Partials where they are on CPUs, and in all bins on accelerators --------------------------------------
#
# Additions that meet in one bin are slow there, and happen in any order: no two results would be equal.


def _windowed_model(axis, amplitude, theta, harmonics):
    """Spectrum of tones of these amplitudes."""
    unit, nearest, _, _ = _unit_windows(axis, theta, harmonics)
    values = amplitude[:, None, None] * unit
    return add_windows(values.reshape(-1, values.shape[-1]), nearest.reshape(-1), axis.num_bins)[0]


def _dense_model(axis, amplitude, theta, harmonics):
    unit, _, _ = _unit_partials(axis, theta, harmonics)
    return jnp.sum(amplitude[:, None, None] * unit, axis=(0, 1))


def _windowed_columns(axis, theta, harmonics):
    """Spectra `[tones, 4, bins]` of unit tones, and derivatives by fundamental, width, inharmonicity."""
    unit, nearest, scaled, by_inharmonicity = _unit_windows(axis, theta, harmonics)
    # One contiguous addition per derivative: four times as fast as one with all four interleaved.
    add = jax.vmap(lambda values, at: add_windows(values, at, axis.num_bins)[0])
    return jnp.stack([add(part, nearest) for part in _parts(unit, scaled, by_inharmonicity, theta)], axis=1)


def _dense_columns(axis, theta, harmonics):
    unit, scaled, by_inharmonicity = _unit_partials(axis, theta, harmonics)
    parts = _parts(unit, scaled, by_inharmonicity, theta)
    return jnp.stack([jnp.sum(part, axis=1) for part in parts], axis=1)


def _windowed_atoms(axis, theta, heights):
    """Spectra `[tones, harmonics, bins]` of partials of these heights."""
    unit, nearest, _, _ = _unit_windows(axis, theta, heights)
    row = jnp.arange(nearest.size)
    values = unit.reshape(-1, unit.shape[-1])
    return add_windows(values, nearest.reshape(-1), axis.num_bins, row, row.size).reshape(*nearest.shape, -1)


def _dense_atoms(axis, theta, heights):
    return _unit_partials(axis, theta, heights)[0]


def _parts(unit, scaled, by_inharmonicity, theta):
    slope = unit * scaled / theta[:, 2, None, None]
    return unit, slope, slope * scaled, slope * by_inharmonicity[..., None]


def _unit_windows(axis, theta, harmonics):
    """Windows of the partials of unit tones, their bins, distances / width, d position / d inharmonicity."""
    position, by_inharmonicity = _positions(axis, theta, harmonics)
    nearest = jnp.round(position).astype(jnp.int32)
    scaled = ((nearest - position)[..., None] + window_offsets(theta.dtype)) / theta[:, 2, None, None]
    return harmonics[..., None] * jnp.exp(-0.5 * scaled**2), nearest, scaled, by_inharmonicity


def _unit_partials(axis, theta, harmonics):
    """As `_unit_windows`, in all bins."""
    position, by_inharmonicity = _positions(axis, theta, harmonics)
    scaled = (jnp.arange(axis.num_bins, dtype=theta.dtype) - position[..., None]) / theta[:, 2, None, None]
    return harmonics[..., None] * jnp.exp(-0.5 * scaled**2), scaled, by_inharmonicity


def _positions(axis, theta, harmonics):
    partials = jax.vmap(lambda f, b: axis.partials(f, b, harmonics.shape[1]))
    position, _, by_inharmonicity = partials(theta[:, 1], theta[:, 3])
    return position, by_inharmonicity

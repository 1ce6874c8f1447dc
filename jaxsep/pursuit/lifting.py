"""The lifted least-squares loss of tones on the logarithmic axis, and its Gauss–Newton model."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxsep.tones.axes import LogAxis
from jaxsep.tones.rendering import add_windows, window_offsets

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

    def dictionary_equations(
        self,
        theta: Float[Array, "frames tones 4"],
        instrument: Int[Array, "frames tones"],
        harmonics: Float[Array, "instruments harmonics"],
        spectra: Float[Array, "frames bins"],
        weights: Float[Array, " frames"],
    ) -> tuple[Float[Array, ""], Float[Array, "entries entries"], Float[Array, " entries"]]:
        """Sums over frames of `L`, `JᵀJ` and `Jᵀr` by all entries of the dictionary, at given tones.

        Arguments:
            theta: rows as in `model`.
            instrument: of each tone.
            harmonics: the dictionary.
            spectra: to explain.
            weights: of the frames.
        """
        atoms = jax.vmap(lambda theta, instrument: self._atoms(theta, instrument, harmonics.shape))
        basis = atoms(theta, instrument)  # [frames, entries, bins]
        model = jnp.einsum("e,feb->fb", harmonics.reshape(-1), basis, precision="highest")
        lifted = self.lifted(model)
        residual = jnp.sqrt(weights)[:, None] * (lifted - self.lifted(spectra))
        slope = jnp.sqrt(weights)[:, None] * self.lift * lifted / (model + self.offset)
        jacobian = basis * slope[:, None]
        hessian = jnp.einsum("feb,fgb->eg", jacobian, jacobian, precision="highest")
        gradient = jnp.einsum("feb,fb->e", jacobian, residual, precision="highest")
        return 0.5 * jnp.sum(residual**2), hessian, gradient

    def _atoms(self, theta, instrument, shape):
        """What each entry of the dictionary adds to the spectrum of a frame, `[entries, bins]`."""
        amplitude = power(theta[:, 0], 1 / self.lift)
        windowed, dense = partial(_windowed_atoms, self.axis, shape), partial(_dense_atoms, self.axis, shape)
        return jax.lax.platform_dependent(amplitude, theta, instrument, cpu=windowed, default=dense)


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


def _windowed_atoms(axis, shape, amplitude, theta, instrument):
    """Spectra `[entries, bins]` of each harmonic of each instrument."""
    unit, nearest, _, _ = _unit_windows(axis, theta, jnp.ones((theta.shape[0], shape[1]), theta.dtype))
    values = amplitude[:, None, None] * unit
    entry = instrument[:, None] * shape[1] + jnp.arange(shape[1])
    flat = values.reshape(-1, values.shape[-1]), nearest.reshape(-1), axis.num_bins, entry.reshape(-1)
    return add_windows(*flat, shape[0] * shape[1])


def _dense_atoms(axis, shape, amplitude, theta, instrument):
    unit, _, _ = _unit_partials(axis, theta, jnp.ones((theta.shape[0], shape[1]), theta.dtype))
    values = amplitude[:, None, None] * unit
    mine = instrument == jnp.arange(shape[0])[:, None]
    return jnp.sum(jnp.where(mine[..., None, None], values, 0), axis=1).reshape(-1, axis.num_bins)


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

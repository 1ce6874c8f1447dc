"""The lifted least-squares loss of tones on the logarithmic axis, and its Gauss–Newton model."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsep.numerics.dot import dot
from jaxsep.signal.axes import LogAxis
from jaxsep.signal.gaussians import sum_gaussians
from jaxsep.tones.rendering import partials_of, tangents

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
        self, theta: Float[Array, "tones parameters"], harmonics: Float[Array, "tones harmonics"]
    ) -> Float[Array, " bins"]:
        """Spectrum `Y_θ` of packed tones: the parameters of each, with a^q in place of the amplitude."""
        return self.spectrum(power(theta[:, 0], 1 / self.lift), theta, harmonics)

    def spectrum(
        self,
        amplitude: Float[Array, " tones"],
        theta: Float[Array, "tones parameters"],
        harmonics: Float[Array, "tones harmonics"],
    ) -> Float[Array, " bins"]:
        """As `model`, with the amplitudes a themselves in place of the first column."""
        height, position, width = partials_of(theta, harmonics, self.axis)
        flat = [x.reshape(-1) for x in (amplitude[:, None] * height, position, width)]
        return sum_gaussians(*flat, self.axis.num_bins)

    def normal_equations(
        self,
        theta: Float[Array, "tones parameters"],
        harmonics: Float[Array, "tones harmonics"],
        target: Float[Array, " bins"],
    ) -> tuple[Float[Array, ""], Float[Array, "unknowns unknowns"], Float[Array, " unknowns"]]:
        """`L`, `JᵀJ` and `Jᵀr` at packed tones, all from one evaluation of the partials.

        The first parameter is a^q rather than a: the lifted spectrum of a single tone is linear in it.

        Arguments:
            theta: rows as in `model`.
            harmonics: each tone's row of the dictionary.
            target: the lifted spectrum to explain.
        """
        columns = tangents(theta, harmonics, self.axis)
        root = power(theta[:, 0], 1 / self.lift - 1)
        amplitude = theta[:, 0] * root
        others = jnp.repeat(amplitude[:, None], theta.shape[1] - 1, axis=1)
        scale = jnp.concatenate([(root / self.lift)[:, None], others], axis=1)
        model = jnp.sum(amplitude[:, None] * columns[:, 0], axis=0)
        lifted = self.lifted(model)
        residual = lifted - target
        slope_of_lift = self.lift * lifted / (model + self.offset)
        jacobian = (columns * scale[:, :, None] * slope_of_lift).reshape(-1, target.shape[0])
        both = jnp.concatenate([jacobian, residual[None]])
        gram = jnp.einsum("if,jf->ij", jacobian, both, precision="highest")
        return 0.5 * jnp.sum(residual**2), gram[:, :-1], gram[:, -1]

    def harmonic_equations(
        self,
        theta: Float[Array, "tones parameters"],
        harmonics: Float[Array, "tones harmonics"],
        target: Float[Array, " bins"],
    ) -> tuple[
        Float[Array, ""], Float[Array, "tones harmonics tones harmonics"], Float[Array, "tones harmonics"]
    ]:
        """`L`, `JᵀJ` and `Jᵀr` by the harmonics of each tone; arguments as for `normal_equations`."""
        atoms = self._atoms(theta, harmonics.shape[1]).reshape(harmonics.size, -1)
        model = dot(harmonics.reshape(-1), atoms)
        lifted = self.lifted(model)
        residual = lifted - target
        jacobian = atoms * (self.lift * lifted / (model + self.offset))
        gram, gradient = dot(jacobian, jacobian.T), dot(jacobian, residual)
        shape = harmonics.shape
        return 0.5 * jnp.sum(residual**2), gram.reshape(*shape, *shape), gradient.reshape(shape)

    def _atoms(self, theta, num_harmonics):
        """Spectra `[tones, harmonics, bins]` of each harmonic of each tone, as loud as the tone."""
        amplitude = power(theta[:, 0], 1 / self.lift)[:, None]
        heights = jnp.broadcast_to(amplitude, (theta.shape[0], num_harmonics))
        alone = [x[..., None] for x in partials_of(theta, heights, self.axis)]
        return sum_gaussians(*alone, self.axis.num_bins)


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

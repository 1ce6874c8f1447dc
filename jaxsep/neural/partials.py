"""Complex spectra of single tones on the linear axis, and the harmonic amplitudes that fit best."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Int

from jaxsep.numerics.dot import dot
from jaxsep.signal.axes import LinearAxis
from jaxsep.signal.gaussians import Windowed, gaussian

__all__ = ["RIDGE", "Partials", "fit_harmonics", "safe_abs", "safe_phase"]

#: Ridge of the least squares for harmonic amplitudes (P2).
RIDGE = 1e-3


class Partials(eqx.Module):
    """Unit Gaussians at the partials of one tone, each in a window around its nearest bin.

    Partials beyond the last bin are zero.

    - `windows`: `exp(-(f - f_h)² / (2σ²))`.
    - `nearest`: bin in the middle of each window.
    - `position`: f_h in bins.
    - `width`: σ in bins.
    """

    windows: Float[Array, "harmonics window"]
    nearest: Int[Array, " harmonics"]
    position: Float[Array, " harmonics"]
    width: Float[Array, ""]
    bins: Windowed

    @classmethod
    def of(
        cls,
        fundamental: Float[Array, ""],
        width: Float[Array, ""],
        inharmonicity: Float[Array, ""],
        num_harmonics: int,
        axis: LinearAxis,
    ) -> "Partials":
        """The partials of a tone; fundamental and width in bins."""
        position = axis.partials(fundamental, inharmonicity, num_harmonics)[0]
        inside = (position > -0.5) & (position < axis.num_bins - 0.5)
        # Far outside, where f_h may be huge, only zeros are evaluated.
        position = jnp.where(inside, position, 0)
        bins = Windowed(axis.num_bins)
        distance, nearest = bins.distances(position)
        return cls(jnp.where(inside[:, None], gaussian(distance / width), 0), nearest, position, width, bins)

    def add(self, amplitude: Complex[Array, " harmonics"]) -> Complex[Array, " bins"]:
        """`Σ_h amplitude_h g_h`."""
        values = amplitude[:, None] * self.windows
        both = jnp.stack([values.real, values.imag])
        return jax.lax.complex(*self.bins.add(both, jnp.stack([self.nearest] * 2)))

    def correlate(self, spectrum: Complex[Array, " bins"]) -> Complex[Array, " harmonics"]:
        """`⟨g_h, spectrum⟩`."""
        return jnp.sum(self.windows * self.bins.near(spectrum, self.nearest), axis=1)


def fit_harmonics(partials: Partials, spectrum: Complex[Array, " bins"]) -> Complex[Array, " harmonics"]:
    """Complex amplitudes `argmin_c ‖Σ_h c_h g_h - spectrum‖² + ridge ‖c‖²` (P2, direct prediction).

    The Gram matrix of Gaussians of one width has the closed form `√π σ exp(-(f_h - f_k)² / (4σ²))`, to
    1e-10 for widths above 1.5 bins.
    """
    position, width = partials.position, partials.width
    exists = jnp.any(partials.windows > 0, axis=1)
    gram = jnp.sqrt(jnp.pi) * width * jnp.exp(-0.25 * ((position[:, None] - position) / width) ** 2)
    gram = jnp.where(exists[:, None] & exists, gram, 0)
    system = gram + RIDGE * jnp.eye(position.shape[0], dtype=gram.dtype)
    target = partials.correlate(spectrum)
    both = jnp.stack([target.real, target.imag], axis=1)
    inverse = _inverse(jax.lax.stop_gradient(system))
    # Derivatives need another product with the same inverse, instead of those of the elimination.
    solve = lambda _, b: _refined(system, inverse, b)
    real, imag = jax.lax.custom_linear_solve(lambda c: dot(system, c), both, solve, symmetric=True).T
    return jax.lax.complex(real, imag)


def _inverse(system):
    """Of a symmetric matrix whose eigenvalues are at least the ridge, by Gauss–Jordan elimination.

    A loop of elementwise operations, which vmap batches: jaxlib's own factorisations of a batch wait for
    threads that may wait for them, and are slower for so small systems.
    """

    def eliminate(k, rest):
        here = jnp.arange(system.shape[0]) == k
        # Without rounding a pivot is never below the least eigenvalue.
        pivot = jnp.maximum(rest[k, k], RIDGE)
        row, column = rest[k] / pivot, rest[:, k]
        swept = rest - column[:, None] * row
        swept = jnp.where(here, -column[:, None] / pivot, swept)
        return jnp.where(here[:, None], jnp.where(here, 1 / pivot, row), swept)

    return jax.lax.fori_loop(0, system.shape[0], eliminate, system)


def _refined(system, inverse, right):
    """A solution, with one step of iterative refinement."""
    solution = dot(inverse, right)
    return solution + dot(inverse, right - dot(jax.lax.stop_gradient(system), solution))


def safe_abs(z: Complex[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`|z|` with derivative 0 at 0."""
    square = z.real**2 + z.imag**2
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def safe_phase(z: Complex[Array, "*shape"]) -> Complex[Array, "*shape"]:
    """`z / |z|`, 1 with derivative 0 where z is 0."""
    size = safe_abs(z)
    # The derivative contains 1/|z|: below the root of the smallest number it would overflow.
    normal = size > jnp.sqrt(jnp.finfo(size.dtype).tiny)
    return jnp.where(normal, jnp.where(normal, z, 1) / jnp.where(normal, size, 1), 1)

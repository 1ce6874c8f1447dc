"""Patterns at every shift: the shapes ψ_i of the sources, their correlation with a signal, and its maxima."""

import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int
from scipy.fft import next_fast_len

from jaxsep.numerics.dot import dot
from jaxsep.pursuit.loss import power
from jaxsep.signal.axes import LogAxis
from jaxsep.signal.gaussians import SINUSOID_WIDTH, sum_gaussians_at
from jaxsep.tones.rendering import partials_of
from jaxsep.tones.tones import Tones, parameters_of

__all__ = ["Maxima", "Patterns"]

#: Points of each bin, between which the correlation's maximum is then refined.
_SAMPLES = 32

#: Newton steps of that refinement, from at most half a sample away.
_NEWTON_STEPS = 2

#: Tones are tabulated to so many standard deviations from their partials (there a Gaussian is 1e-14).
_REACH = 8


class Maxima(eqx.Module):
    """The largest correlation within each bin of shifts, and the shift where it is.

    Rows are the patterns, followed by the negative ones where the measures have a sign.
    """

    value: Float[Array, "rows cells"]
    position: Float[Array, "rows cells"]


class Patterns(eqx.Module):
    """Shapes `ψ_i(k - x)` on the bins k of a line or a circle, at any real shift x (P3).

    A shift is x = n + f with an integer n and f in [0, 1]. In f the shapes are polynomials of degree ρ, the
    oversampling, through their values at ρ + 1 Chebyshev nodes. Hence so is the correlation
    `x ↦ ⟨ψ_i(· - x), p⟩` between integers: ρ FFTs give it *everywhere*, with its derivatives, and its maximum
    over the continuum takes a few Newton steps. The interpolation converges exponentially in ρ. With ρ = 1
    shifted patterns are interpolated linearly between whole bins, where the maxima then are.

    On a line, shifts are restricted to an interval, and what leaves the bins is cut off.

    Arguments:
        table: `ψ_i(first_offset + j - f_r)` at the nodes f_r.
        transforms: of the table at the nodes below 1, conjugated.
        scale: what the shapes were divided by.
        num_bins: of the signals.
        first_offset: of the table's first entry from the shift, in bins.
        shifts: the smallest and largest shift, whole bins; not used on a circle.
        circle: whether bins and shifts are taken modulo `num_bins`.

    Example:
        >>> bump = lambda distance: jnp.exp(-0.5 * (distance / 2) ** 2)
        >>> patterns = jaxsep.Patterns.from_functions([bump], num_bins=40, support=(-12.0, 12.0))
        >>> shapes, slopes, curvatures = patterns.atoms(jnp.array([20.25]), jnp.array([0]))
        >>> bool(jnp.allclose(shapes[0], bump(jnp.arange(40.0) - 20.25), atol=1e-5))
        True
    """

    table: Float[Array, "patterns nodes span"]
    transforms: Complex[Array, "patterns phases frequencies"]
    scale: Float[Array, " patterns"]
    num_bins: int = eqx.field(static=True)
    first_offset: int = eqx.field(static=True)
    shifts: tuple[int, int] = eqx.field(static=True)
    circle: bool = eqx.field(static=True)

    @classmethod
    def from_functions(
        cls,
        functions: Sequence[Callable[[Float[Array, " points"]], Float[Array, " points"]]],
        num_bins: int,
        support: tuple[float, float],
        *,
        shifts: tuple[int, int] | None = None,
        circle: bool = False,
        oversampling: int = 10,
        dtype=jnp.float32,
    ) -> "Patterns":
        """Patterns given as functions of the distance from their shift, in bins.

        Arguments:
            functions: each maps an array of distances to the values there; no derivatives are needed.
            num_bins: at least 2.
            support: distances between which the functions differ from 0.
            shifts: the interval of shifts on a line, by default from the first bin to the last.
            circle: whether bins and shifts are taken modulo `num_bins`.
            oversampling: ρ ≥ 1.

        Raises: `ValueError` for a function that is zero or not finite on its support, or that changes too
        fast within a bin for the oversampling.
        """
        shape = lambda distance: jnp.stack([f(distance).astype(dtype) for f in functions])
        reach = math.floor(support[0]), math.ceil(support[1])
        patterns = _tabulate(shape, num_bins, reach, shifts, circle, oversampling, dtype)
        _check(shape, reach, oversampling, dtype)
        return patterns

    @classmethod
    def from_fourier(
        cls,
        coefficients: Complex[Array, "patterns frequencies"],
        num_bins: int,
        *,
        oversampling: int = 10,
    ) -> "Patterns":
        """Patterns on a circle given by their Fourier coefficients, for measures known by some of theirs.

        Measurements `y_k = c_k Σ_j m_j exp(-2πi k x_j / num_bins)`, k = 0, 1, …, of a real measure become
        the signal `jnp.fft.irfft(y, num_bins)`, whose patterns these are: c_k = 1 for an ideal low pass.

        Arguments:
            coefficients: c_k of k = 0, 1, …, the highest below num_bins / 2; those of -k are conjugated.
            num_bins: N; the circle has this length, whatever its unit.
            oversampling: ρ ≥ 1.

        Raises: `ValueError` for more coefficients than the bins hold, or too little oversampling for the
        highest.

        Example:
            >>> low_pass = jaxsep.Patterns.from_fourier(jnp.ones((1, 11), complex), num_bins=21)
            >>> measured = jnp.exp(-2j * jnp.pi * jnp.arange(11) * 7.3 / 21)  # one spike at 7.3
            >>> signal = jnp.fft.irfft(measured, 21)
            >>> found = jaxsep.Projection(max_spikes=4)(low_pass, signal[None], 0.1)
            >>> round(float(found.spikes.position[found.spikes.active][0]), 2)
            7.3
        """
        count = coefficients.shape[1]
        if not 1 <= count <= (num_bins + 1) // 2 or num_bins < 2 or oversampling < 1:
            raise ValueError(
                "coefficients: expected 1 to (num_bins + 1) // 2 frequencies, num_bins >= 2 and oversampling"
                f" >= 1, got {count} with num_bins={num_bins} and oversampling={oversampling}"
            )
        dtype = jnp.real(coefficients).dtype
        turns = 2 * np.pi * np.arange(count) / num_bins
        _check_waves(turns[-1], oversampling, dtype)
        shifted = jnp.asarray(np.exp(-1j * _nodes(oversampling)[:, None] * turns), coefficients.dtype)
        table = jnp.fft.irfft(coefficients[:, None] * shifted, num_bins).astype(dtype)
        return _patterns(table, num_bins, 0, (0, num_bins - 1), True)

    @classmethod
    @eqx.filter_jit
    def from_dictionary(
        cls,
        harmonics: Float[Array, "instruments harmonics"],
        axis: LogAxis,
        *,
        lift: float = 1.0,
        shifts: tuple[int, int] | None = None,
        oversampling: int = 8,
    ) -> "Patterns":
        """Spectra of the unit tones of a dictionary to the power `lift`, divided by their norms.

        The shift is the position of the fundamental. A pattern that is zero stays so.

        Arguments:
            harmonics: relative amplitudes, in [0, 1].
            axis: of the spectra.
            lift: q in (0, 1]; ½ makes quiet partials count.
            shifts: the smallest and largest shift, by default anywhere on the axis.
            oversampling: ρ ≥ 1.
        """
        dtype, (number, num_harmonics) = harmonics.dtype, harmonics.shape
        one = Tones.plain(jnp.ones(number, dtype), jnp.zeros(number, dtype), jnp.arange(number))
        partials = partials_of(parameters_of(one), harmonics, axis)
        reach = math.ceil(_REACH * SINUSOID_WIDTH / math.sqrt(lift))
        last = math.ceil(axis.bins_per_neper * math.log(num_harmonics)) + reach

        def shape(distance):
            # At the same places of every instrument.
            return power(sum_gaussians_at(distance, partials.height, *(x[0] for x in partials[1:])), lift)

        patterns = _tabulate(shape, axis.num_bins, (-reach, last), shifts, False, oversampling, dtype)
        norm = power(jnp.sum(patterns.table[:, 0] ** 2, axis=1), 0.5)
        divisor = jnp.where(norm > 0, norm, 1)
        return eqx.tree_at(
            lambda p: (p.table, p.transforms, p.scale),
            patterns,
            (
                patterns.table / divisor[:, None, None],
                patterns.transforms / divisor[:, None, None],
                norm,
            ),
        )

    @property
    def num_patterns(self) -> int:
        """Number of shapes."""
        return self.table.shape[0]

    @property
    def oversampling(self) -> int:
        """ρ: nodes per bin, and the degree of the polynomials between integers."""
        return self.table.shape[1] - 1

    def single(self) -> "Patterns":
        """The same patterns, each as a set of its own along a leading axis, to be mapped over."""
        parts = self.table[:, None], self.transforms[:, None], self.scale[:, None]
        return eqx.tree_at(lambda p: (p.table, p.transforms, p.scale), self, parts)

    @eqx.filter_jit
    def atoms(
        self, position: Float[Array, " spikes"], pattern: Int[Array, " spikes"]
    ) -> Float[Array, "derivatives spikes bins"]:
        """Shifted patterns `ψ(k - x)` and their first and second derivatives by the shift, `[3, ...]`."""
        position = self.within(position)
        cell = jnp.floor(position)
        # The last shift of a line belongs to the cell before it.
        cell = cell if self.circle else jnp.minimum(cell, self.shifts[1] - 1)
        weights = _weights(position - cell, self.oversampling)
        if self.oversampling == 1:  # straight lines have their maxima at whole bins, where spikes then stay
            weights = weights.at[1:].set(0)
        # One product with the tables of all patterns: eight times as fast as gathering those of each spike.
        chosen = jax.nn.one_hot(pattern, self.num_patterns, dtype=weights.dtype)
        weights = (weights[:, :, None] * chosen[:, :, None]).reshape(3 * position.size, -1)
        flat = self.table.reshape(weights.shape[1], -1)
        entries = dot(weights, flat).reshape(3, position.size, -1)
        margin = self.num_bins
        start = -cell.astype(jnp.int32) - self.first_offset
        if self.circle:
            entries, start = jnp.concatenate([entries, entries], axis=2), start % margin
        else:
            entries, start = jnp.pad(entries, ((0, 0), (0, 0), (margin, margin))), start + margin
        place = lambda rows, first: jax.lax.dynamic_slice_in_dim(rows, first, margin, axis=1)
        return jax.vmap(place, in_axes=(1, 0), out_axes=1)(entries, start)

    def within(self, position: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The nearest admissible shift; on a circle the same one, in [0, num_bins)."""
        if self.circle:
            # The remainder of a tiny negative number rounds to num_bins itself.
            wrapped = position % self.num_bins
            return jnp.where(wrapped < self.num_bins, wrapped, 0)
        return jnp.clip(position, *self.shifts)

    def free_to_move(
        self, position: Float[Array, "*shape"], direction: Float[Array, "*shape"]
    ) -> Bool[Array, "*shape"]:
        """Whether a step of that sign stays among the admissible shifts."""
        if self.circle:
            return jnp.ones(position.shape, bool)
        low, high = self.shifts
        return ((position > low) | (direction > 0)) & ((position < high) | (direction < 0))

    def distance(self, first: Float[Array, "..."], second: Float[Array, "..."]) -> Float[Array, "..."]:
        """How far apart shifts are, in bins; the arrays are broadcast."""
        apart = jnp.abs(first - second)
        return jnp.minimum(apart, self.num_bins - apart) if self.circle else apart

    @eqx.filter_jit
    def correlate(self, signal: Float[Array, " bins"]) -> Float[Array, "patterns cells nodes"]:
        """`⟨ψ_i(· - x), p⟩` at the nodes x = n + f_r of every cell n of admissible shifts."""
        size = _transform_size(
            self.num_bins, self.first_offset, self.table.shape[2], self.shifts, self.circle
        )
        low = 0 if self.circle else self.shifts[0]
        # Moved by the first lag, so that lags come out in order from 0 on.
        delay = (low + self.first_offset) % size
        padded = jnp.roll(jnp.pad(signal, (0, size - self.num_bins)), -delay)
        spectrum = jnp.fft.rfft(padded) * self.transforms
        lags = jnp.fft.irfft(spectrum, size).astype(signal.dtype)
        cells = self.num_bins if self.circle else self.shifts[1] - self.shifts[0]
        closing = jnp.roll(lags[:, :1], -1, axis=2)  # the node 1 of a cell is the node 0 of the next
        return jnp.swapaxes(jnp.concatenate([lags, closing], axis=1)[:, :, :cells], 1, 2)

    @eqx.filter_jit
    def maxima(self, signal: Float[Array, " bins"], *, signed: bool = False) -> Maxima:
        """The maximum of the correlation over each cell of shifts, and with `signed` of its negative."""
        values = self.correlate(signal)
        if signed:
            values = jnp.concatenate([values, -values])
        dtype, count = values.dtype, _SAMPLES + 1
        coefficients = dot(values, jnp.asarray(_to_coefficients(self.oversampling).T, dtype))
        # Samples stand before cells: reductions over the middle axis are vectorised, unlike those of argmax.
        between = jnp.asarray(_between(self.oversampling, _SAMPLES), dtype)
        samples = jnp.einsum("kn,icn->ikc", between, values, precision="highest")
        ends = jnp.full((samples.shape[0], 1, samples.shape[2]), -jnp.inf, dtype)
        left = jnp.concatenate([ends, samples[:, :-1]], axis=1)
        right = jnp.concatenate([samples[:, 1:], ends], axis=1)
        maxima = jnp.where((samples > left) & (samples >= right), samples, -jnp.inf)
        number = jnp.arange(count)[:, None]
        where = lambda x: jnp.max(jnp.where(x == jnp.max(x, axis=1, keepdims=True), number, 0), axis=1)
        # Two spikes close together leave a flat top with two maxima in one cell.
        first = where(maxima)
        second = where(jnp.where(number == first[:, None], -jnp.inf, maxima))
        start = jnp.stack([first, second]).astype(dtype) / _SAMPLES
        low, high = jnp.maximum(start - 1 / _SAMPLES, 0), jnp.minimum(start + 1 / _SAMPLES, 1)

        def newton(_, fraction):
            _, slope, curvature = _chebyshev(coefficients, fraction)
            step = jnp.where(curvature < 0, -slope / jnp.where(curvature < 0, curvature, 1), 0)
            return jnp.clip(fraction + step, low, high)

        fraction = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, start)
        reached = _chebyshev(coefficients, fraction)[0]
        other = reached[1] > reached[0]
        fraction, reached = (jnp.where(other, x[1], x[0]) for x in (fraction, reached))
        largest = jnp.max(samples, axis=1)
        better = reached >= largest
        cells = jnp.arange(values.shape[1], dtype=dtype) + (0 if self.circle else self.shifts[0])
        return Maxima(jnp.where(better, reached, largest), cells + jnp.where(better, fraction, start[0]))


def _tabulate(shape, num_bins, reach, shifts, circle, oversampling, dtype):
    """Patterns whose values at a vector of distances are `shape(distances)`, `[patterns, distances]`."""
    shifts = (0, num_bins - 1) if shifts is None else shifts
    span = reach[1] - reach[0] + 2  # a shift by up to a bin stays inside
    if num_bins < 2 or oversampling < 1 or shifts[1] <= shifts[0] or reach[1] <= reach[0]:
        raise ValueError(
            "patterns: expected num_bins >= 2, oversampling >= 1, and increasing support and shifts, got "
            f"num_bins={num_bins}, oversampling={oversampling}, support={reach}, shifts={shifts}"
        )
    nodes = jnp.asarray(_nodes(oversampling), dtype)
    distance = jnp.arange(reach[0], reach[0] + span, dtype=dtype) - nodes[:, None]
    table = jnp.swapaxes(jax.vmap(shape)(distance), 0, 1)
    if circle:  # laid around the circle as often as it reaches
        turns = -(-span // num_bins)
        padded = jnp.pad(table, ((0, 0), (0, 0), (0, turns * num_bins - span)))
        table = jnp.sum(padded.reshape(*table.shape[:2], turns, num_bins), axis=2)
    return _patterns(table, num_bins, reach[0], shifts, circle)


def _patterns(table, num_bins, first_offset, shifts, circle):
    """Patterns of a table, with its transforms."""
    size = _transform_size(num_bins, first_offset, table.shape[2], shifts, circle)
    transforms = jnp.conj(jnp.fft.rfft(table[:, :-1], size))
    return Patterns(
        table=table,
        transforms=transforms.astype(jnp.result_type(table.dtype, jnp.complex64)),
        scale=jnp.ones(table.shape[0], table.dtype),
        num_bins=num_bins,
        first_offset=first_offset,
        shifts=shifts,
        circle=circle,
    )


def _transform_size(num_bins, first_offset, span, shifts, circle):
    """Length of the FFT: the circle itself, or long enough for the correlation not to come around."""
    if circle:
        return num_bins
    lowest = min(0, shifts[0] + first_offset)
    highest = max(num_bins, shifts[1] + 1 + first_offset + span)
    return next_fast_len(highest - lowest, real=True)


def _check(shape, reach, oversampling, dtype):
    """Refuses functions that are zero, not finite, or not followed by the polynomials between the nodes."""
    nodes = _nodes(oversampling)
    bins = np.arange(reach[0], reach[1] + 2)
    sample = lambda fraction: np.asarray(jax.vmap(shape)(jnp.asarray(bins - fraction[:, None], dtype)))
    values, between = sample(nodes), (nodes[1:] + nodes[:-1]) / 2
    weights = np.asarray(_weights(jnp.asarray(between, dtype), oversampling)[0])
    size = np.abs(values).max(axis=(0, 2))
    error = np.abs(np.einsum("mr,rij->mij", weights, values) - sample(between)).max(axis=(0, 2))
    limit = 1e-4 if dtype == jnp.float32 else 1e-7
    for number in range(size.size):
        if not 0 < size[number] < np.inf:
            kind = "only zero" if size[number] == 0 else "infinite or NaN"
            raise ValueError(
                f"functions: expected patterns other than zero, got {kind} values in pattern {number}"
            )
        if error[number] > limit * size[number]:
            raise ValueError(
                f"functions: expected an error below {limit:.0e} with oversampling={oversampling}, got "
                f"{error[number] / size[number]:.1e} in pattern {number}, which changes too fast"
            )


def _check_waves(turn, oversampling, dtype):
    """Refuses a polynomial degree that does not follow waves of so many radians per bin."""
    nodes = _nodes(oversampling)
    between = (nodes[1:] + nodes[:-1]) / 2
    weights = np.asarray(_weights(jnp.asarray(between, dtype), oversampling)[0])
    error = np.abs(weights @ np.exp(1j * turn * nodes) - np.exp(1j * turn * between)).max()
    limit = 1e-4 if dtype == jnp.float32 else 1e-7
    if error > limit:
        raise ValueError(
            f"oversampling: expected an error of the highest frequency below {limit:.0e}, got {error:.1e} "
            f"with oversampling={oversampling}"
        )


def _nodes(degree):
    """Chebyshev nodes of the second kind on [0, 1], from 0 to 1."""
    return np.sin(0.5 * np.pi * np.arange(degree + 1) / degree) ** 2


def _to_coefficients(degree):
    """Matrix from values at the nodes to coefficients of Chebyshev polynomials."""
    return np.linalg.inv(np.polynomial.chebyshev.chebvander(2 * _nodes(degree) - 1, degree))


def _between(degree, count):
    """Matrix from values at the nodes to those at equally spaced points of the bin, both ends included."""
    points = np.linspace(-1, 1, count + 1)
    return np.polynomial.chebyshev.chebvander(points, degree) @ _to_coefficients(degree)


def _polynomials(fraction, degree):
    """Chebyshev polynomials on [0, 1] and two derivatives, `[degree + 1]` triples."""
    s = 2 * fraction - 1
    one, zero = jnp.ones_like(s), jnp.zeros_like(s)
    rows = [(one, zero, zero), (s, one, zero)]
    for _ in range(degree - 1):
        (u, du, ddu), (t, dt, ddt) = rows[-2:]
        rows.append((2 * s * t - u, 2 * (t + s * dt) - du, 2 * (2 * dt + s * ddt) - ddu))
    return [(t, 2 * dt, 4 * ddt) for t, dt, ddt in rows]


def _weights(fraction: Float[Array, " points"], degree: int) -> Float[Array, "derivatives points nodes"]:
    """Weights of the nodes in the interpolated value and its first two derivatives."""
    rows = _polynomials(fraction, degree)
    values = jnp.stack([jnp.stack(kind, axis=-1) for kind in zip(*rows, strict=True)])
    return jnp.einsum(
        "dpk,kr->dpr", values, jnp.asarray(_to_coefficients(degree), fraction.dtype), precision="highest"
    )


def _chebyshev(coefficients, fraction):
    """Value and two derivatives of the polynomials with the given coefficients, each at its own point."""
    rows = _polynomials(fraction, coefficients.shape[-1] - 1)
    return [sum(coefficients[..., k] * row[kind] for k, row in enumerate(rows)) for kind in range(3)]

"""Spectra of tones, evaluated near each partial only (`windowed`) or everywhere (`dense`)."""

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsep.signal.axes import LinearAxis, LogAxis
from jaxsep.signal.gaussians import add_windows, window_offsets
from jaxsep.tones.tones import Tones

__all__ = ["RenderMethod", "render", "render_instruments"]

RenderMethod = Literal["auto", "windowed", "dense"]


def render(
    tones: Tones,
    dictionary: Float[Array, "instruments harmonics"],
    axis: LinearAxis | LogAxis,
    *,
    exponent: float = 1.0,
    method: RenderMethod = "auto",
) -> Float[Array, " bins"]:
    """Magnitude spectrum of one frame's tones.

    `Y[f] = ( Σ_k Σ_h ( a_k D[η_k, h] exp(-(f - f_{k,h})² / (2σ_k²)) )^p )^(1/p)`  (P1, tone model).

    Arguments:
        tones: slots of one frame, `[tones]`.
        dictionary: relative amplitudes of the harmonics, in [0, 1].
        axis: to which `tones.fundamental` refers.
        exponent: p ≥ 1 for the addition of overlapping partials.
        method: `"windowed"` evaluates each partial within six standard deviations and adds it in place, fast
            on CPUs; `"dense"` evaluates every partial in every bin, for accelerators on which contended
            additions are slow; `"auto"` takes what suits the platform. They agree to 1e-8 of the largest
            partial for widths up to 1.5 times a sinusoid's.

    Returns: the spectrum, nonnegative.

    Example:
        >>> tones = jaxsep.Tones(
        ...     *jnp.array([[1.0, 0.5], [400.0, 460.0], [1.91, 1.91], [0.0, 0.0]]),
        ...     instrument=jnp.array([0, 1]),
        ...     active=jnp.array([True, True]),
        ... )
        >>> spectrum = jaxsep.render(tones, jnp.array([[1.0, 0.5], [1.0, 0.2]]), jaxsep.LogAxis())
        >>> print(spectrum[jnp.array([400, 460])].round(2))
        [1.  0.5]
    """
    everything = render_instruments(tones, dictionary, axis, exponent=exponent, method=method, power=True)
    return _root(jnp.sum(everything, axis=0), exponent)


@eqx.filter_jit
def render_instruments(
    tones: Tones,
    dictionary: Float[Array, "instruments harmonics"],
    axis: LinearAxis | LogAxis,
    *,
    exponent: float = 1.0,
    method: RenderMethod = "auto",
    power: bool = False,
) -> Float[Array, "instruments bins"]:
    """Magnitude spectrum of each instrument's tones; arguments as for `render`.

    With `power` the root is left out: `Σ (...)^p`, which adds up over instruments.

    Example:
        >>> tones = jaxsep.Tones(
        ...     *jnp.array([[1.0, 0.5], [400.0, 460.0], [1.91, 1.91], [0.0, 0.0]]),
        ...     instrument=jnp.array([0, 1]),
        ...     active=jnp.array([True, True]),
        ... )
        >>> spectra = jaxsep.render_instruments(tones, jnp.array([[1.0, 0.5], [1.0, 0.2]]), jaxsep.LogAxis())
        >>> print(spectra[:, jnp.array([400, 460])].round(2))
        [[1.  0. ]
         [0.  0.5]]
    """
    num_harmonics = dictionary.shape[1]
    positions = jax.vmap(lambda f, b: axis.partials(f, b, num_harmonics)[0])(
        tones.fundamental, tones.inharmonicity
    )
    amplitude = jnp.where(tones.active, tones.amplitude, 0)
    peaks = (amplitude[:, None] * dictionary[tones.instrument]) ** exponent
    widths = tones.width / math.sqrt(exponent)
    rows = _platform_method(method)(positions, peaks, widths, tones.instrument, dictionary.shape[0], axis)
    return rows if power else _root(rows, exponent)


def _windowed(positions, peaks, widths, instruments, num_instruments, axis):
    nearest = jnp.round(jax.lax.stop_gradient(positions)).astype(jnp.int32)
    distance = (nearest - positions)[..., None] + window_offsets(positions.dtype)
    values = peaks[..., None] * jnp.exp(-0.5 * (distance / widths[:, None, None]) ** 2)
    row = jnp.broadcast_to(instruments[:, None], nearest.shape)
    return add_windows(
        values.reshape(-1, values.shape[-1]),
        nearest.reshape(-1),
        axis.num_bins,
        row.reshape(-1),
        num_instruments,
    )


def _dense(positions, peaks, widths, instruments, num_instruments, axis):
    grid = jnp.arange(axis.num_bins, dtype=positions.dtype)
    distance = (grid - positions[..., None]) / widths[:, None, None]
    tones = jnp.sum(peaks[..., None] * jnp.exp(-0.5 * distance**2), axis=1)
    mine = instruments == jnp.arange(num_instruments)[:, None]
    return jnp.sum(jnp.where(mine[..., None], tones, 0), axis=1)


def _platform_method(method: RenderMethod):
    if method == "windowed":
        return _windowed
    if method == "dense":
        return _dense
    if method != "auto":
        raise ValueError(f"method: expected 'auto', 'windowed' or 'dense', got {method!r}")

    def choose(positions, peaks, widths, instruments, num_instruments, axis):
        arguments = (positions, peaks, widths, instruments)
        return jax.lax.platform_dependent(
            *arguments,
            cpu=lambda *a: _windowed(*a, num_instruments, axis),
            default=lambda *a: _dense(*a, num_instruments, axis),
        )

    return choose


def _root(power, exponent):
    if exponent == 1.0:
        return power
    positive = power > 0
    return jnp.where(positive, jnp.where(positive, power, 1) ** (1 / exponent), 0)

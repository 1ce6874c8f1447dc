"""What the network sees of a frame and of the tones predicted so far."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from jaxsep.neural.losses import lift_factor
from jaxsep.neural.partials import safe_abs

__all__ = ["SUBHARMONICS", "harmonic_stack", "network_inputs", "num_inputs"]

#: Fractions of a bin's frequency that the network sees at it, besides the multiples: from the partials of a
#: tone one octave or a twelfth above its fundamental.
SUBHARMONICS = (3, 2)


def num_inputs(num_instruments: int, stacked: int) -> int:
    """Channels of `network_inputs`."""
    columns = stacked and stacked + len(SUBHARMONICS)
    return 2 * (3 + 2 * num_instruments) + 1 + (2 + num_instruments) * columns


def network_inputs(
    frame: Complex[Array, " bins"],
    modelled: Complex[Array, "instruments bins"],
    direct: Complex[Array, "instruments bins"],
    stacked: int,
) -> Float[Array, "bins inputs"]:
    """Channels of every bin: those of P2, lifted, and a harmonic stack.

    P2's are real and imaginary part and magnitude of what the predictions leave of the frame, real and
    imaginary parts of each instrument's prediction, both with the dictionary and direct, and a ramp. Lifted,
    quiet partials count. On a linear axis that does not tell the pitch: the partials of a fundamental lie too
    far apart for a convolution. So the magnitudes of frame, rest and predictions are there once more at ⅓, ½,
    1, 2 … times the bin's frequency. With 0 of them the inputs are P2's, not lifted.

    Derivatives end here: what has been predicted is a fact for the tones that follow.
    """
    frame, modelled, direct = jax.lax.stop_gradient((frame, modelled, direct))
    lifted = _lifted if stacked else lambda spectra: spectra
    left = [frame - jnp.sum(rows, axis=0) for rows in (modelled, direct)]
    columns = []
    for rest, rows in zip(left, (modelled, direct), strict=True):
        spectra = lifted(jnp.concatenate([rest[None], rows]))
        columns += [spectra.real, spectra.imag, safe_abs(spectra[:1])]
    columns.append(jnp.linspace(0.01, 0, frame.shape[0], dtype=columns[0].dtype)[None])
    if stacked:
        seen = safe_abs(_lifted(jnp.concatenate([frame[None], left[0][None], modelled])))
        columns.append(harmonic_stack(seen, stacked))
    return jnp.concatenate(columns).T


def _lifted(spectra):
    return spectra * lift_factor(safe_abs(spectra))


def harmonic_stack(spectra: Float[Array, "rows bins"], stacked: int) -> Float[Array, "columns bins"]:
    """Values at ⅓, ½, 1, 2 … `stacked` times each bin's frequency; 0 beyond the last bin."""
    num_bins = spectra.shape[1]
    below = [_between(spectra, number)[:, :num_bins] for number in SUBHARMONICS]
    above = [spectra[:, ::number] for number in range(1, stacked + 1)]
    fill = lambda rows: jnp.pad(rows, ((0, 0), (0, num_bins - rows.shape[1])))
    return jnp.concatenate([fill(rows) for rows in below + above])


def _between(spectra, number):
    """Linear interpolation to so many values per bin."""
    after = jnp.pad(spectra[:, 1:], ((0, 0), (0, 1)))
    share = jnp.arange(number, dtype=spectra.dtype) / number
    values = spectra[..., None] * (1 - share) + after[..., None] * share
    return values.reshape(spectra.shape[0], -1)

"""What a trained network finds in the frames of a recording (P2, prediction)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from jaxsep.neural.network import PartialPrediction, PolicyNetwork, ToneSpectrum
from jaxsep.neural.partials import safe_abs
from jaxsep.signal.axes import LinearAxis
from jaxsep.tones.tones import Tones

__all__ = ["Prediction", "predict"]


class Prediction(eqx.Module):
    """Tones and spectra of one frame (or of many, by vmap); slots are instruments.

    - `tones`: fundamentals in bins; absent tones are inactive.
    - `modelled`, `direct`: spectra of each instrument, by the dictionary and by the network itself.
    - `levels`: magnitudes of each tone's harmonics in the direct prediction.
    """

    tones: Tones
    modelled: Complex[Array, "*frames instruments bins"]
    direct: Complex[Array, "*frames instruments bins"]
    levels: Float[Array, "*frames instruments harmonics"]


def predict(
    network: PolicyNetwork,
    harmonics: Float[Array, "instruments harmonics"],
    frame: Complex[Array, " bins"],
    axis: LinearAxis,
) -> Prediction:
    """The most probable tone of each instrument, one after the other."""
    number = network.num_instruments
    found = PartialPrediction.nothing(frame, number)
    slots = Tones.empty((number,), frame.real.dtype)
    levels = jnp.zeros((number, harmonics.shape[1]), frame.real.dtype)
    for _ in range(number):
        policy = network(frame, found)
        choice = policy.mode()
        parameters = policy.parameters(choice)
        spectrum = ToneSpectrum.of(choice, parameters, harmonics.shape[1], axis)
        found = found.add(choice, spectrum.modelled(harmonics), spectrum.direct())
        place = parameters.amplitude, parameters.fundamental, choice.instrument, choice.present
        shape = {"width": parameters.width[None], "inharmonicity": choice.inharmonicity[None]}
        tone = Tones.plain(*(x[None] for x in place), **shape)
        mine = jnp.arange(number) == choice.instrument
        slots = jax.tree.map(lambda old, new, mine=mine: jnp.where(mine, new, old), slots, tone)
        levels = jnp.where(mine[:, None], safe_abs(spectrum.own), levels)
    heard = found.present[:, None]
    silent = eqx.tree_at(lambda t: t.amplitude, slots, jnp.where(slots.active, slots.amplitude, 0))
    return Prediction(silent, heard * found.modelled, heard * found.direct, heard * levels)

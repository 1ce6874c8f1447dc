"""What a trained network finds in the frames of a recording (P2, prediction)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from jaxsep.neural.network import PartialPrediction, PolicyNetwork, render_tone
from jaxsep.signal.axes import LinearAxis
from jaxsep.tones.tones import Tones

__all__ = ["Prediction", "predict"]


class Prediction(eqx.Module):
    """Tones and spectra of one frame; slots are instruments.

    - `tones`: fundamentals in bins; absent tones are inactive.
    - `modelled`, `direct`: spectra of each instrument, by the dictionary and by the network itself.
    """

    tones: Tones
    modelled: Complex[Array, "instruments bins"]
    direct: Complex[Array, "instruments bins"]


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
    for _ in range(number):
        policy = network(frame, found)
        choice = policy.mode()
        parameters = policy.parameters(choice)
        modelled, direct = render_tone(choice, parameters, harmonics, axis)
        found = found.add(choice, modelled, direct)
        place = parameters.amplitude, parameters.fundamental, choice.instrument, choice.present
        shape = {"width": parameters.width[None], "inharmonicity": choice.inharmonicity[None]}
        tone = Tones.plain(*(x[None] for x in place), **shape)
        mine = jnp.arange(number) == choice.instrument
        slots = jax.tree.map(lambda old, new, mine=mine: jnp.where(mine, new, old), slots, tone)
    heard = found.present[:, None]
    silent = eqx.tree_at(lambda t: t.amplitude, slots, jnp.where(slots.active, slots.amplitude, 0))
    return Prediction(silent, heard * found.modelled, heard * found.direct)

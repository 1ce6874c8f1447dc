"""Learning from tones that someone else found, before the policy finds its own: a start for P2's training."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from jaxsep.neural.losses import LossTerms, PredictionLoss
from jaxsep.neural.network import PartialPrediction, PolicyNetwork, ToneSpectrum
from jaxsep.neural.policy import Choice
from jaxsep.signal.axes import LinearAxis
from jaxsep.tones.tones import Tones

__all__ = ["Guide", "imitation"]

#: Weight of the choices' log-probability beside the loss of the prediction.
_WEIGHT = 0.01


class Guide(eqx.Module):
    """Choices for every frame of a recording: one for each instrument, the loudest first.

    - `choices`: `[frames, instruments]`; the bin of an absent tone means nothing.
    - `spacing`: samples between the frames, at the rate of the training.

    Example:
        >>> tones = jaxsep.Tones.empty((3, 2))  # of three frames; amplitudes and pitches in Hz
        >>> axis = jaxsep.LinearAxis(256, resolution=10.0)
        >>> guide = jaxsep.Guide.of(tones, 160.0, num_instruments=2, axis=axis)
        >>> guide.at(jnp.asarray(170)).present
        Array([False, False], dtype=bool)
    """

    choices: Choice
    spacing: Float[Array, ""]

    @classmethod
    def of(
        cls,
        tones: Tones,
        spacing: float,
        num_instruments: int,
        axis: LinearAxis,
        bounds: tuple[float, float] = (1.0, math.inf),
    ) -> "Guide":
        """From the tones `[frames, tones]` of a `Separation`; the loudest of each instrument counts.

        Arguments:
            tones: fundamentals in Hz.
            spacing: samples between their frames, at the rate of the training.
            num_instruments: c.
            axis: of the training's frames.
            bounds: lowest and highest bin; tones beyond them, or the axis, are taken for absent.
        """
        found = jax.tree.map(np.asarray, tones)
        bins = np.rint(found.fundamental / float(axis.to_hz(1.0))).astype(np.int32)
        heard = found.active & (found.amplitude > 0) & (bins >= bounds[0]) & (bins <= bounds[1])
        heard &= (bins >= 0) & (bins < axis.num_bins)
        # [frames, instruments, tones]: how loud each tone is as one of the instrument's.
        number = np.arange(num_instruments)[:, None]
        loudness = np.where(
            heard[:, None] & (found.instrument[:, None] == number), found.amplitude[:, None], 0
        )
        loudest = np.argmax(loudness, axis=2)
        order = np.argsort(-np.max(loudness, axis=2), axis=1, kind="stable")
        slot = np.take_along_axis(loudest, order, axis=1)
        pick = lambda x: np.take_along_axis(x, slot, axis=1)
        present = np.take_along_axis(np.max(loudness, axis=2), order, axis=1) > 0
        choices = Choice(
            instrument=jnp.asarray(order, jnp.int32),
            bin=jnp.asarray(np.where(present, pick(bins), 0)),
            present=jnp.asarray(present),
            inharmonicity=jnp.asarray(np.where(present, pick(found.inharmonicity), 0), jnp.float32),
        )
        return cls(choices, jnp.asarray(spacing, jnp.float32))

    def at(self, sample: Int[Array, ""]) -> Choice:
        """Choices of the frame nearest to a sample, `[instruments]`."""
        frame = jnp.round(sample / self.spacing).astype(jnp.int32)
        last = self.choices.bin.shape[0] - 1
        return jax.tree.map(lambda x: x[jnp.clip(frame, 0, last)], self.choices)


def imitation(
    network: PolicyNetwork,
    harmonics: Float[Array, "instruments harmonics"],
    frame: Complex[Array, " bins"],
    choices: Choice,
    loss: PredictionLoss,
    axis: LinearAxis,
    temper: float,
) -> tuple[Float[Array, ""], tuple[LossTerms, Float[Array, ""]]]:
    """Loss of a frame if the network's choices were the given ones, and how far its policy is from them.

    Pathwise features and dictionary learn from the loss of the prediction; the policy from the
    log-probability of the choices, tempered, since the features' scale makes it steep.

    Arguments:
        network, harmonics: what learns.
        frame: spectrum.
        choices: `[instruments]`, in the order in which the tones are predicted.
        loss: of the prediction.
        axis: of the frame.
        temper: τ of the log-probability.

    Returns: what to minimise; the terms of the loss, and the mean entropy of (instrument, bin).
    """
    predicted = PartialPrediction.nothing(frame, network.num_instruments)
    agreement, entropy = 0.0, 0.0
    for number in range(network.num_instruments):
        policy = network(frame, predicted)
        choice = jax.tree.map(lambda x, number=number: x[number], choices)
        # An absent tone is absent wherever the policy would rather have it.
        favourite = jnp.argmax(policy.features[:, choice.instrument, 0]).astype(jnp.int32)
        place = jnp.where(choice.present, choice.bin, favourite)
        choice = eqx.tree_at(lambda c: c.bin, choice, place)
        tone = ToneSpectrum.of(choice, policy.parameters(choice), harmonics.shape[1], axis)
        heard = lambda spectrum, present=choice.present: jnp.where(present, spectrum, 0)
        predicted = predicted.add(choice, heard(tone.modelled(harmonics)), heard(tone.direct()))
        agreement = agreement + policy.agreement(choice, jnp.asarray(temper, policy.features.dtype))
        entropy = entropy + policy.entropy() / network.num_instruments
    # Absent tones are silent, and cost nothing else.
    terms = loss.terms(frame, predicted.modelled, predicted.direct, jnp.ones_like(predicted.present))
    return loss(terms) - _WEIGHT * agreement, (terms, entropy)

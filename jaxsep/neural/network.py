"""The network applied to a frame with the predictions so far: features out, tones rendered."""

import abc
import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Int, PRNGKeyArray

from jaxsep.neural.inputs import network_inputs, num_inputs
from jaxsep.neural.partials import Partials, fit_harmonics, safe_phase
from jaxsep.neural.policy import FEATURES, Choice, Policy, ToneParameters
from jaxsep.neural.unet import UNet
from jaxsep.signal.axes import LinearAxis

__all__ = ["PartialPrediction", "PolicyNetwork", "ToneNetwork", "ToneSpectrum", "render_tone"]


class PartialPrediction(eqx.Module):
    """Predictions for one frame so far; every instrument has at most one tone.

    - `modelled`: spectrum of each instrument's tone with the dictionary's amplitudes.
    - `direct`: with amplitudes of its own.
    - `playing`: instruments that have a tone.
    - `present`: 1 where the tone enters the sparse prediction.
    """

    modelled: Complex[Array, "instruments bins"]
    direct: Complex[Array, "instruments bins"]
    playing: Bool[Array, " instruments"]
    present: Float[Array, " instruments"]

    @classmethod
    def nothing(cls, frame: Complex[Array, " bins"], num_instruments: int) -> "PartialPrediction":
        """Before the first tone."""
        zero = jnp.zeros((num_instruments, frame.shape[0]), frame.dtype)
        real = jnp.zeros(num_instruments, zero.real.dtype)
        return cls(zero, zero, real > 0, real)

    def add(
        self, choice: Choice, modelled: Complex[Array, " bins"], direct: Complex[Array, " bins"]
    ) -> "PartialPrediction":
        """With one more tone."""
        mine = jnp.arange(self.playing.shape[0]) == choice.instrument
        put = lambda rows, new: jnp.where(mine[:, None], new, rows)
        return PartialPrediction(
            put(self.modelled, modelled),
            put(self.direct, direct),
            self.playing | mine,
            jnp.where(mine, choice.present.astype(self.present.dtype), self.present),
        )


class PolicyNetwork(eqx.Module):
    """From a frame and the tones predicted so far to a `Policy` for the next tone.

    Derive from it to train a network of your own; `num_instruments` is the number of tones of a frame.

    Example:
        >>> import equinox as eqx
        >>> class Undecided(jaxsep.PolicyNetwork):
        ...     num_instruments: int = eqx.field(static=True, default=1)
        ...
        ...     def __call__(self, frame, predicted):
        ...         return jaxsep.Policy(jnp.zeros((frame.size, 1, 9)), predicted.playing)
        >>> estimator = jaxsep.Estimator(jaxsep.PredictionLoss(), jaxsep.LinearAxis(48, 100.0), branches=(3,))
        >>> frame, harmonics = jnp.ones(48, complex), jnp.ones((1, 2))
        >>> surrogate, rollout = jax.jit(estimator)(Undecided(), harmonics, frame, key=jax.random.key(0))
        >>> print(jnp.exp(rollout.entropy).round(2))  # all bins are equally likely
        48.0
    """

    num_instruments: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, frame: Complex[Array, " bins"], predicted: PartialPrediction) -> Policy:
        """Distributions over the next tone of a frame."""


class ToneNetwork(PolicyNetwork):
    """A U-Net that sees the frame, and what the predictions so far leave of it (P2).

    At first every choice is as likely as any other, so that samples differ and there is something to learn
    from; P2 does not say how it begins. The direct prediction is what the tones so far leave of the frame,
    times 1 plus two features as a complex number: how much of it to take is the same whatever its phase.

    Arguments:
        unet: along frequency.
        log_scales: logarithms of the features' scales.
        num_instruments: c.
        stacked: harmonics of each bin that it sees; with 0 the inputs are P2's.
        bounds: lowest and highest bin that it may choose.

    Example:
        >>> from jaxsep.neural.network import PartialPrediction
        >>> network = jaxsep.ToneNetwork.create(2, strides=(4,), widths=(8,), key=jax.random.key(0))
        >>> frame = jnp.ones(48, complex)
        >>> network(frame, PartialPrediction.nothing(frame, 2)).features.shape  # [bins, instruments, 9]
        (48, 2, 9)
    """

    unet: UNet
    log_scales: Float[Array, " features"]
    num_instruments: int = eqx.field(static=True)
    stacked: int = eqx.field(static=True)
    bounds: tuple[float, float] = eqx.field(static=True)

    @classmethod
    def create(
        cls,
        num_instruments: int,
        *,
        strides: Sequence[int],
        widths: Sequence[int],
        kernel: int = 5,
        stacked: int = 12,
        bounds: tuple[float, float] = (0.0, math.inf),
        logit_scale: float = 100.0,
        method: str = "auto",
        key: PRNGKeyArray,
    ) -> "ToneNetwork":
        """Random weights, but for those of the features, which are 0: no choice is preferred.

        The amplitude's alone are not: at 0 its magnitude has no slope.
        """
        unet = UNet.create(
            num_inputs(num_instruments, stacked),
            FEATURES * num_instruments,
            strides=strides,
            widths=widths,
            kernel=kernel,
            method=method,
            key=key,
        )
        last = unet.head[-1].weight
        amplitude = jnp.arange(last.shape[2]) % FEATURES == 1
        unet = eqx.tree_at(lambda u: u.head[-1].weight, unet, jnp.where(amplitude, last, 0))
        return cls(unet, Policy.initial_scales(logit_scale), num_instruments, stacked, bounds)

    def __call__(self, frame: Complex[Array, " bins"], predicted: PartialPrediction) -> Policy:
        """Distributions over the next tone of a frame."""
        seen = network_inputs(frame, predicted.modelled, predicted.direct, self.stacked)
        num_bins = frame.shape[0]
        features = self.unet(seen).reshape(num_bins, self.num_instruments, FEATURES)
        features = features * jnp.exp(self.log_scales)
        left = jax.lax.stop_gradient(frame - jnp.sum(predicted.direct, axis=0))[:, None]
        direct = left * jax.lax.complex(1 + features[..., 6], features[..., 7])
        features = features.at[..., 6].set(direct.real).at[..., 7].set(direct.imag)
        bins = jnp.arange(num_bins)
        outside = ((bins < self.bounds[0]) | (bins > self.bounds[1]))[:, None, None]
        never = jnp.finfo(features.dtype).min / 8  # finite, so that derivatives are
        forbidden = outside & (jnp.arange(FEATURES) == 0)
        return Policy(jnp.where(forbidden, never, features), predicted.playing)


class ToneSpectrum(eqx.Module):
    """What the spectra of a tone are made of (P2).

    - `partials`: the Gaussians g_h.
    - `own`: the complex amplitudes c_h of the harmonics in the direct features.
    - `amplitude`, `instrument`: a and η.
    """

    partials: Partials
    own: Complex[Array, " harmonics"]
    amplitude: Float[Array, ""]
    instrument: Int[Array, ""]

    @classmethod
    def of(
        cls, choice: Choice, parameters: ToneParameters, num_harmonics: int, axis: LinearAxis
    ) -> "ToneSpectrum":
        """Of a choice and its parameters."""
        partials = Partials.of(
            parameters.fundamental, parameters.width, choice.inharmonicity, num_harmonics, axis
        )
        own = fit_harmonics(partials, parameters.direct)
        return cls(partials, own, parameters.amplitude, choice.instrument)

    def modelled(self, harmonics: Float[Array, "instruments harmonics"]) -> Complex[Array, " bins"]:
        """`Σ_h a D[η, h] (c_h / |c_h|) g_h`: with the dictionary's amplitudes and borrowed phases."""
        return self.partials.add(self.amplitude * harmonics[self.instrument] * safe_phase(self.own))

    def direct(self) -> Complex[Array, " bins"]:
        """`Σ_h c_h g_h`: the direct prediction."""
        return self.partials.add(self.own)


def render_tone(
    choice: Choice,
    parameters: ToneParameters,
    harmonics: Float[Array, "instruments harmonics"],
    axis: LinearAxis,
) -> tuple[Complex[Array, " bins"], Complex[Array, " bins"]]:
    """Spectra of a tone: with the dictionary's amplitudes, and the direct prediction (`ToneSpectrum`)."""
    tone = ToneSpectrum.of(choice, parameters, harmonics.shape[1], axis)
    return tone.modelled(harmonics), tone.direct()

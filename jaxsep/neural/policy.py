"""What the features say about one tone: distributions, samples with log-probabilities, modes (P2)."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Int, PRNGKeyArray

from jaxsep.signal.gaussians import SINUSOID_WIDTH

__all__ = ["FEATURES", "Choice", "Policy", "ToneParameters"]

#: Features per instrument and bin.
FEATURES = 9

#: Initial scales of the features but the logit. P2 has 30 for the gamma distribution, 1000 for the presence.
_SCALES = (1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)

#: How far the fundamental may lie from its bin.
_OFFSET = 5.0

#: Rate of the gamma distribution of the inharmonicity at feature 0: with P2's 1000 the 25th harmonic of a
#: first sample is out of tune by a fourth.
_RATE = 50_000.0

#: Added to the presence logit: tones are there until the network knows better. (P2 has 500, whose derivative
#: is 0.)
_PRESENCE = 5.0

_EXPONENT = 30.0

#: Shape of the gamma distribution, and smallest inharmonicity, that a policy is to imitate.
_SHAPE = 4.0
_LEAST_INHARMONICITY = 1e-6


class Choice(eqx.Module):
    """The discrete part and the inharmonicity of a tone (leading axes are frames, or tones).

    - `instrument`, `bin`: which pattern, and the bin at its fundamental.
    - `present`: whether the tone enters the sparse prediction.
    - `inharmonicity`: b.
    """

    instrument: Int[Array, "*choices"]
    bin: Int[Array, "*choices"]
    present: Bool[Array, "*choices"]
    inharmonicity: Float[Array, "*choices"]


class ToneParameters(eqx.Module):
    """The part of one tone that is differentiable by the features.

    - `amplitude`: ≥ 0.
    - `fundamental`, `width`: in bins.
    - `direct`: the direct prediction, the complex spectrum of the chosen instrument.
    """

    amplitude: Float[Array, ""]
    fundamental: Float[Array, ""]
    width: Float[Array, ""]
    direct: Complex[Array, " bins"]


class Policy(eqx.Module):
    """Distributions over the next tone of a frame, from features `[bins, instruments, 9]` (P2).

    Per instrument and bin: logit, amplitude, width, offset, two of the gamma distribution, direct prediction
    (real, imaginary), presence logit.

    - (instrument, bin) ~ softmax over everything, without the instruments that already play;
    - presence ~ Bernoulli(sigmoid(feature + 5));
    - b ~ Gamma(exp(clip), rate 50 000·exp(clip)).

    Arguments:
        features: scaled, as `scale` does.
        playing: instruments that have a tone already.

    Example:
        >>> features = jnp.zeros((16, 2, 9)).at[5, 1, 0].set(3.0)  # instrument 1 in bin 5 is likely
        >>> policy = jaxsep.Policy(features, playing=jnp.array([False, False]))
        >>> choice = policy.mode()
        >>> int(choice.bin), int(choice.instrument), bool(choice.present)
        (5, 1, True)
    """

    features: Float[Array, "bins instruments features"]
    playing: Bool[Array, " instruments"]

    @staticmethod
    def initial_scales(logit: float = 100.0, dtype=jnp.float32) -> Float[Array, " features"]:
        """Logarithms of the features' scales before training."""
        return jnp.log(jnp.asarray((logit, *_SCALES), dtype))

    def logits(self, temper: float | Float[Array, ""] = 1.0) -> Float[Array, " choices"]:
        """Of p^τ over (bin, instrument), flat; where an instrument plays already, the lowest number."""
        # Finite, so that derivatives are.
        lowest = jnp.finfo(self.features.dtype).min / 4
        return jnp.where(self.playing, lowest, temper * self.features[..., 0]).reshape(-1)

    def sample(
        self, temper: Float[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Choice, Float[Array, ""], Float[Array, ""]]:
        """A choice from the distribution p^τ, renormalised, its log-probability there, and that at τ = 1.

        Arguments:
            temper: τ in [0, 1], of (instrument, bin) and of the presence; smaller explores more.
        """
        where_key, presence_key, gamma_key = jax.random.split(key, 3)
        flat = jax.random.categorical(where_key, jax.lax.stop_gradient(self.logits(temper)))
        bin_, instrument = jnp.divmod(flat, self.playing.shape[0])
        own = self.features[bin_, instrument]
        logit = temper * (own[8] + _PRESENCE)
        present = jax.random.uniform(presence_key, (), own.dtype) < jax.nn.sigmoid(logit)
        shape, log_rate = self._gamma(own)
        # The logarithm: for tiny shapes the sample itself underflows.
        log_unit = jax.random.loggamma(gamma_key, jax.lax.stop_gradient(shape), (), own.dtype)
        inharmonicity = jax.lax.stop_gradient(jnp.exp(log_unit - log_rate))
        choice = Choice(instrument.astype(jnp.int32), bin_.astype(jnp.int32), present, inharmonicity)
        sampled = self.log_probability(choice, temper)
        return choice, sampled, self.log_probability(choice, jnp.ones_like(temper))

    def log_probability(self, choice: Choice, temper: Float[Array, ""]) -> Float[Array, ""]:
        """Logarithm of the probability (density) of a choice under p^τ."""
        own = self.features[choice.bin, choice.instrument]
        return sum(self._log_discrete(choice, temper)) + self._log_gamma(own, choice.inharmonicity)

    def agreement(self, choice: Choice, temper: Float[Array, ""]) -> Float[Array, ""]:
        """How well the policy agrees with a choice: its log-probability, but for the inharmonicity.

        The log-density of the gamma distribution has derivatives of any size. In its place is a parabola in
        the two features, whose top is a gamma distribution of shape 4 with its mean at the choice's b. Where
        the tone is absent, neither its bin nor b count.
        """
        own = self.features[choice.bin, choice.instrument]
        b = jnp.maximum(choice.inharmonicity, _LEAST_INHARMONICITY)
        away = (own[4] - math.log(_SHAPE)) ** 2 + (own[5] - jnp.log(_SHAPE / (_RATE * b))) ** 2
        where, presence = self._log_discrete(choice, temper)
        return presence + jnp.where(choice.present, where - 0.1 * away, 0)

    def mode(self) -> Choice:
        """The most probable (instrument, bin), with the mean of b, present if more likely than not.

        (P2 takes the mode of b, which is 0 for the shapes of a network that has just begun: far from the
        samples that the network learns from.)
        """
        flat = jnp.argmax(self.logits())
        bin_, instrument = jnp.divmod(flat, self.playing.shape[0])
        own = self.features[bin_, instrument]
        shape, log_rate = self._gamma(own)
        inharmonicity = shape * jnp.exp(-log_rate)
        present = own[8] + _PRESENCE > 0
        return Choice(instrument.astype(jnp.int32), bin_.astype(jnp.int32), present, inharmonicity)

    def parameters(self, choice: Choice) -> ToneParameters:
        """The differentiable parameters at a choice."""
        own = self.features[choice.bin, choice.instrument]
        direct = self.features[:, choice.instrument, 6:8]
        return ToneParameters(
            amplitude=jnp.abs(own[1]),
            fundamental=choice.bin + _OFFSET * jnp.tanh(own[3]),
            width=jax.nn.softplus(jnp.maximum(own[2], -3)) * (SINUSOID_WIDTH / math.log(2)),
            direct=jax.lax.complex(direct[:, 0], direct[:, 1]),
        )

    def entropy(self) -> Float[Array, ""]:
        """Entropy of (instrument, bin), in nats."""
        log_p = jax.nn.log_softmax(self.logits())
        return -jnp.sum(jnp.exp(log_p) * log_p)

    def _log_discrete(self, choice, temper):
        """Of (instrument, bin), and of the presence."""
        flat = choice.bin * self.playing.shape[0] + choice.instrument
        logits = self.logits(temper)
        logit = temper * (self.features[choice.bin, choice.instrument, 8] + _PRESENCE)
        presence = jax.nn.log_sigmoid(jnp.where(choice.present, logit, -logit))
        return logits[flat] - jax.nn.logsumexp(logits), presence

    def _gamma(self, own):
        clip = lambda x: jnp.clip(x, -_EXPONENT, _EXPONENT)
        return jnp.exp(clip(own[4])), math.log(_RATE) + clip(own[5])

    def _log_gamma(self, own, inharmonicity):
        shape, log_rate = self._gamma(own)
        tiny = jnp.finfo(own.dtype).tiny
        log_b = jnp.log(jnp.maximum(inharmonicity, tiny))
        unit = jnp.exp(jnp.minimum(log_rate + log_b, _EXPONENT))
        return shape * (log_rate + log_b) - log_b - unit - jax.lax.lgamma(shape)

"""Training on the recording itself: the state, one compiled step, and what it reports (P2)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Complex, Float, Int, PRNGKeyArray

from jaxsep.learning.adam import instrument_adamax
from jaxsep.neural.estimator import Estimator, dictionary_pull
from jaxsep.neural.imitation import Guide, imitation
from jaxsep.neural.losses import PredictionLoss
from jaxsep.neural.network import ToneNetwork
from jaxsep.neural.policy import Choice
from jaxsep.neural.settings import NeuralSettings
from jaxsep.signal.axes import LinearAxis
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.dictionary import NUM_HARMONICS

__all__ = ["StepReport", "Trainer", "TrainingState", "train_step"]


class TrainingState(eqx.Module):
    """Everything that training continues from; the key of a step follows from the seed and its number."""

    network: ToneNetwork
    harmonics: Float[Array, "instruments harmonics"]
    network_moments: optax.OptState
    dictionary_moments: optax.OptState
    key: PRNGKeyArray
    step: Int[Array, ""]


class StepReport(eqx.Module):
    """What one step saw, averaged over its frames.

    - `loss`: of the samples, with the terms `magnitude`, `sparse`, `agreement`, `direct`.
    - `entropy`: of (instrument, bin), in nats.
    - `effective_samples`: `1 / Σ_g w_g²` of the importance weights of a frame's samples; 1 in imitation.
    """

    loss: Float[Array, ""]
    magnitude: Float[Array, ""]
    sparse: Float[Array, ""]
    agreement: Float[Array, ""]
    direct: Float[Array, ""]
    entropy: Float[Array, ""]
    effective_samples: Float[Array, ""]


class Trainer(eqx.Module):
    """Trains a `ToneNetwork` and a dictionary on one recording.

    Arguments:
        settings: sizes and rates.
        num_instruments: c.

    Example:
        >>> sizes = {"rate": 6000, "window_std": 8, "hop": 8, "strides": (4,), "widths": (8,)}
        >>> settings = jaxsep.NeuralSettings(**sizes, batch=2, branches=2, steps=2)
        >>> trainer = jaxsep.Trainer(settings, num_instruments=1)
        >>> samples = jnp.sin(0.3 * jnp.arange(2000.0))
        >>> state, report = jax.jit(trainer.step)(trainer.start(key=jax.random.key(0)), samples)
        >>> int(state.step), bool(jnp.isfinite(report.loss))
        (1, True)
    """

    settings: NeuralSettings = eqx.field(static=True)
    num_instruments: int = eqx.field(static=True)

    @property
    def stft(self) -> GaussianSTFT:
        """The transform whose frames are seen."""
        return GaussianSTFT(self.settings.window_std, self.settings.hop)

    @property
    def axis(self) -> LinearAxis:
        """All bins but the Nyquist bin."""
        return self.stft.axis(self.settings.rate)

    @property
    def estimator(self) -> Estimator:
        """Of the gradient."""
        options = self.settings
        return Estimator(
            PredictionLoss(),
            self.axis,
            (options.branches,) * self.num_instruments,
            options.coolest,
            options.score_weight,
            options.baseline,
        )

    @eqx.filter_jit
    def start(
        self, harmonics: Float[Array, "instruments harmonics"] | None = None, *, key: PRNGKeyArray
    ) -> TrainingState:
        """Random network; the dictionary begins as `D[i, h] = max(1e-3, (0.5 / i)^(h-1))` unless given."""
        if harmonics is None:
            number = jnp.arange(1, self.num_instruments + 1)[:, None]
            harmonics = jnp.maximum(1e-3, (0.5 / number) ** jnp.arange(NUM_HARMONICS))
        create_key, key = jax.random.split(key)
        options = self.settings
        network = ToneNetwork.create(
            self.num_instruments,
            strides=options.strides,
            widths=options.widths,
            kernel=options.kernel,
            key=create_key,
        )
        return TrainingState(
            network,
            harmonics,
            self._network_rule.init(eqx.filter(network, eqx.is_array)),
            self._dictionary_rule.init(harmonics),
            key,
            jnp.zeros((), jnp.int32),
        )

    def step(
        self, state: TrainingState, samples: Float[Array, " samples"], guide: Guide | None = None
    ) -> tuple[TrainingState, StepReport]:
        """One step on random frames of a recording, whose spectrogram has a peak of about 1.

        With a guide the network imitates its choices, without one it follows the policy gradient.
        """
        frame_key, key = jax.random.split(jax.random.fold_in(state.key, state.step))
        centre = jax.random.randint(frame_key, (self.settings.batch,), 0, samples.shape[0])
        frames = jax.vmap(lambda c: self.frame(samples, c))(centre)
        if guide is None:
            return self.learn(state, frames, key=key)
        return self.imitate(state, frames, jax.vmap(guide.at)(centre))

    def learn(
        self, state: TrainingState, frames: Complex[Array, "batch bins"], *, key: PRNGKeyArray
    ) -> tuple[TrainingState, StepReport]:
        """One step of policy gradient on given frames."""

        def objective(network, harmonics, frame, key):
            surrogate, rollout = self.estimator(network, harmonics, frame, key=key)
            weight = jax.nn.softmax(rollout.log_ratio)
            report = _report(rollout.loss, rollout.terms, rollout.entropy, 1 / jnp.sum(weight**2))
            return surrogate, report

        return self._descend(state, objective, frames, jax.random.split(key, frames.shape[0]))

    def imitate(
        self, state: TrainingState, frames: Complex[Array, "batch bins"], choices: Choice
    ) -> tuple[TrainingState, StepReport]:
        """One step on given frames, towards choices `[batch, instruments]` (`imitation`)."""
        loss, coolest = PredictionLoss(), self.settings.coolest

        def objective(network, harmonics, frame, choices):
            value, (terms, entropy) = imitation(network, harmonics, frame, choices, loss, self.axis, coolest)
            return value, _report(loss(terms), terms, entropy, jnp.ones_like(value))

        return self._descend(state, objective, frames, choices)

    def frame(self, samples: Float[Array, " samples"], centre: Int[Array, ""]) -> Complex[Array, " bins"]:
        """Spectrum around any sample."""
        every = GaussianSTFT(self.settings.window_std, 1)
        return every.analyse(samples, first_frame=centre, num_frames=1)[0, :-1]

    def _descend(self, state, objective, frames, inputs):
        """One step down the mean of an objective of network, harmonics, frame and input, which reports."""
        arrays, rest = eqx.partition((state.network, state.harmonics), eqx.is_array)

        def mean(arrays, frames, inputs):
            network, harmonics = eqx.combine(arrays, rest)
            value, report = jax.vmap(lambda z, x: objective(network, harmonics, z, x))(frames, inputs)
            return jnp.mean(value) + dictionary_pull(harmonics), jax.tree.map(jnp.mean, report)

        gradient, parts = jax.grad(mean, has_aux=True), self.settings.accumulate
        if parts == 1:
            gradients, report = gradient(arrays, frames, inputs)
        else:
            split = lambda x: x.reshape(parts, -1, *x.shape[1:])
            here = jax.tree.map(split, (frames, inputs))
            _, found = jax.lax.scan(lambda _, part: (None, gradient(arrays, *part)), None, here)
            gradients, report = jax.tree.map(lambda x: jnp.mean(x, axis=0), found)
        return self._updated(state, gradients), report

    def _updated(self, state, gradients):
        by_network, by_harmonics = gradients
        change, network_moments = self._network_rule.update(by_network, state.network_moments)
        network = eqx.apply_updates(state.network, change)
        change, dictionary_moments = self._dictionary_rule.update(by_harmonics, state.dictionary_moments)
        harmonics = jnp.maximum(state.harmonics + change, 0)
        return TrainingState(
            network, harmonics, network_moments, dictionary_moments, state.key, state.step + 1
        )

    @property
    def _network_rule(self):
        rates = self.settings.imitation_rate, self.settings.network_rate
        schedule = lambda count: jnp.where(count < self.settings.imitation, *rates)
        return optax.adamax(schedule, b1=0.99, b2=0.999)

    @property
    def _dictionary_rule(self):
        return instrument_adamax(self.settings.dictionary_rate)


@eqx.filter_jit(donate="all-except-first")
def train_step(
    fixed: tuple[Trainer, Float[Array, " samples"], Guide | None], state: TrainingState
) -> tuple[TrainingState, StepReport]:
    """`Trainer.step`, compiled, of `(trainer, samples, guide)`; the memory of the state is used again."""
    trainer, samples, guide = fixed
    return trainer.step(state, samples, guide)


def _report(loss, terms, entropy, effective_samples):
    mean = lambda x: jax.lax.stop_gradient(jnp.mean(x))
    names = ("magnitude", "sparse", "agreement", "direct")
    return StepReport(
        loss=mean(loss),
        entropy=mean(entropy),
        effective_samples=mean(effective_samples),
        **{name: mean(getattr(terms, name)) for name in names},
    )

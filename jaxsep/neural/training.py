"""Training on the recording itself: the state, one compiled step, and what it reports (P2)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Complex, Float, Int, PRNGKeyArray

from jaxsep.learning.adam import instrument_adamax
from jaxsep.neural.clustering import dictionary_of
from jaxsep.neural.estimator import Estimator, dictionary_pull
from jaxsep.neural.imitation import Guide, imitation
from jaxsep.neural.losses import PredictionLoss
from jaxsep.neural.network import ToneNetwork
from jaxsep.neural.policy import Choice
from jaxsep.neural.prediction import predict
from jaxsep.neural.settings import NeuralSettings
from jaxsep.signal.axes import LinearAxis
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.dictionary import NUM_HARMONICS

__all__ = ["StepReport", "Trainer", "TrainingState", "find_dictionary", "first_dictionary", "train_step"]

#: Frames whose tones a dictionary is found from.
_CLUSTERED = 384


class TrainingState(eqx.Module):
    """Everything that training continues from; the key of a step follows from the seed and its number.

    - `harmonics`: the dictionary, and whether none was given: `blind`.
    """

    network: ToneNetwork
    harmonics: Float[Array, "instruments harmonics"]
    blind: Bool[Array, ""]
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

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest bin of a fundamental."""
        return tuple(hertz / self.axis.resolution for hertz in (self.settings.lowest, self.settings.highest))

    @eqx.filter_jit
    def start(
        self, harmonics: Float[Array, "instruments harmonics"] | None = None, *, key: PRNGKeyArray
    ) -> TrainingState:
        """Random network; unless a dictionary is given, it begins with `first_dictionary`.

        That one is enough to find pitches, and is then replaced (`finds_dictionary`).
        """
        blind = jnp.asarray(harmonics is None)
        if harmonics is None:
            harmonics = first_dictionary(self.num_instruments)
        create_key, key = jax.random.split(key)
        options = self.settings
        network = ToneNetwork.create(
            self.num_instruments,
            strides=options.strides,
            widths=options.widths,
            kernel=options.kernel,
            stacked=options.stacked,
            logit_scale=options.logit_scale,
            bounds=self.bounds,
            key=create_key,
        )
        return TrainingState(
            network,
            harmonics,
            blind,
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
        centre, frames = self._random_frames(samples, self.settings.batch, frame_key)
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

    def with_dictionary(
        self, state: TrainingState, frames: Complex[Array, "frames bins"], *, key: PRNGKeyArray
    ) -> TrainingState:
        """The state with a dictionary that is found from what it hears in given frames (`dictionary_of`)."""
        one = lambda frame: predict(state.network, state.harmonics, frame, self.axis)
        harmonics = dictionary_of(jax.lax.map(one, frames, batch_size=16), self.axis, key=key)
        moments = self._dictionary_rule.init(harmonics)
        fields = lambda s: (s.harmonics, s.dictionary_moments)
        return eqx.tree_at(fields, state, (harmonics, moments))

    def finds_dictionary(self, step: int) -> bool:
        """Whether a blind training finds a dictionary before this step: several times in its first half.

        The first time some pitches are still wrong. Later ones confirm what is right.
        """
        return 0 < step <= self.settings.steps // 2 and step % self.settings.hold == 0

    def _random_frames(self, samples, number, key):
        centre = jax.random.randint(key, (number,), 0, samples.shape[0])
        return centre, jax.vmap(lambda c: self.frame(samples, c))(centre)

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
            share = lambda part: jax.tree.map(lambda x: x / parts, gradient(arrays, *part))
            nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(share, jax.tree.map(lambda x: x[0], here)))
            add = lambda total, part: (jax.tree.map(jnp.add, total, share(part)), None)
            (gradients, report), _ = jax.lax.scan(add, nothing, here)
        return self._updated(state, gradients), report

    def _updated(self, state, gradients):
        by_network, by_harmonics = gradients
        change, network_moments = self._network_rule.update(by_network, state.network_moments)
        network = eqx.apply_updates(state.network, change)
        change, dictionary_moments = self._dictionary_rule.update(by_harmonics, state.dictionary_moments)
        held = state.step < self.settings.hold
        harmonics = jnp.maximum(state.harmonics + jnp.where(held, 0, change), 0)
        return TrainingState(
            network,
            harmonics,
            state.blind,
            network_moments,
            dictionary_moments,
            state.key,
            state.step + 1,
        )

    @property
    def _network_rule(self):
        options = self.settings

        def rate(count):
            # In the second half the steps become shorter, by half a period of a cosine.
            last = jnp.clip(2 * count / options.steps - 1, 0, 1)
            own = options.network_rate * 0.5 * (1 + jnp.cos(jnp.pi * last))
            return jnp.where(count < options.imitation, options.imitation_rate, own)

        return optax.adamax(rate, b1=options.beta1, b2=options.beta2)

    @property
    def _dictionary_rule(self):
        return instrument_adamax(self.settings.dictionary_rate)


def first_dictionary(
    num_instruments: int, num_harmonics: int = NUM_HARMONICS
) -> Float[Array, "instruments harmonics"]:
    """`D[i, h] = max(1e-3, (0.5 / i)^(h-1))` (P2)."""
    number = jnp.arange(1, num_instruments + 1)[:, None]
    return jnp.maximum(1e-3, (0.5 / number) ** jnp.arange(num_harmonics))


@eqx.filter_jit(donate="all-except-first")
def train_step(
    fixed: tuple[Trainer, Float[Array, " samples"], Guide | None], state: TrainingState
) -> tuple[TrainingState, StepReport]:
    """`Trainer.step`, compiled, of `(trainer, samples, guide)`; the memory of the state is used again."""
    trainer, samples, guide = fixed
    return trainer.step(state, samples, guide)


@eqx.filter_jit
def find_dictionary(
    trainer: Trainer, state: TrainingState, samples: Float[Array, " samples"]
) -> TrainingState:
    """`Trainer.with_dictionary`, compiled, of random frames of a recording."""
    frame_key, key = jax.random.split(jax.random.fold_in(state.key, state.step))
    _, frames = trainer._random_frames(samples, _CLUSTERED, frame_key)
    return trainer.with_dictionary(state, frames, key=key)


def _report(loss, terms, entropy, effective_samples):
    mean = lambda x: jax.lax.stop_gradient(jnp.mean(x))
    names = ("magnitude", "sparse", "agreement", "direct")
    return StepReport(
        loss=mean(loss),
        entropy=mean(entropy),
        effective_samples=mean(effective_samples),
        **{name: mean(getattr(terms, name)) for name in names},
    )

"""Learning the instruments of a recording from its own spectra (P1)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxsep.learning.adam import InstrumentAdamState, instrument_adam, reset_instruments
from jaxsep.learning.octaves import raise_octaves
from jaxsep.numerics.dot import dot
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.refinement import pack
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.tones.dictionary import NUM_HARMONICS, harmonics_of, random_instruments
from jaxsep.tones.tones import Tones

__all__ = ["DictionaryLearner", "LearnerState", "mean_loss", "similarity"]


class LearnerState(eqx.Module):
    """A dictionary in the making: rows, moments, and each instrument's age and summed amplitude."""

    harmonics: Float[Array, "instruments harmonics"]
    moments: InstrumentAdamState
    age: Int[Array, " instruments"]
    amplitude: Float[Array, " instruments"]


class DictionaryLearner(eqx.Module):
    """Stochastic dictionary learning with a surplus of candidates (P1, dictionary learning).

    Each call pursues a minibatch of frames with the dictionary as it is and then takes `descents` steps of
    the modified Adam on the mean loss at the tones found. Every `lifetime` calls the half of the
    candidates with the smallest average amplitude is drawn anew; the weaker of two candidates that have
    become the same instrument counts as the smallest. A candidate that sounds at every second or third
    harmonic alone becomes what it is, an instrument an octave or a twelfth higher (`raise_octaves`).

    Arguments:
        pursuit: finds the tones of each minibatch.
        num_instruments: instruments to end with.
        surplus: candidates per instrument.
        num_harmonics: harmonics per instrument.
        batch: frames per call.
        descents: steps of the modified Adam per call.
        calls: calls with all candidates.
        polish: calls with the survivors alone, at a learning rate that falls to `cooling` of what it was.
        lifetimes: number of lifetimes in `calls`.
        learning_rate: of the modified Adam.
        cooling: factor on the learning rate at the last call.
        duplicate: `similarity` above which two candidates count as one.

    Example:
        >>> learner = jaxsep.DictionaryLearner(num_instruments=1, num_harmonics=2, batch=1, calls=4, polish=0)
        >>> state = learner.start(key=jax.random.key(0))
        >>> spectra = jnp.exp(-0.5 * ((jnp.arange(1024.0) - 400) / 1.91) ** 2)[None]
        >>> state, loss = learner.step(state, spectra, jnp.float32(learner.learning_rate))
        >>> state.harmonics.shape  # two candidates for one instrument
        (2, 2)
    """

    pursuit: TonePursuit = TonePursuit()
    num_instruments: int = eqx.field(static=True, default=2)
    surplus: int = eqx.field(static=True, default=2)
    num_harmonics: int = eqx.field(static=True, default=NUM_HARMONICS)
    batch: int = eqx.field(static=True, default=64)
    descents: int = eqx.field(static=True, default=5)
    calls: int = eqx.field(static=True, default=60)
    polish: int = eqx.field(static=True, default=30)
    lifetimes: int = eqx.field(static=True, default=6)
    learning_rate: float = eqx.field(static=True, default=1e-2)
    cooling: float = eqx.field(static=True, default=0.1)
    duplicate: float = eqx.field(static=True, default=0.98)

    @property
    def num_candidates(self) -> int:
        """Instruments that compete while learning."""
        return self.surplus * self.num_instruments

    @property
    def lifetime(self) -> int:
        """Calls between renewals."""
        return max(1, self.calls // self.lifetimes)

    def start(self, dtype=jnp.float32, *, key: PRNGKeyArray) -> LearnerState:
        """Random candidates."""
        rows = random_instruments(self.num_candidates, self.num_harmonics, dtype, key=key)
        return self._fresh(rows)

    def _fresh(self, rows):
        return LearnerState(
            harmonics=rows,
            moments=instrument_adam(self.learning_rate).init(rows),
            age=jnp.zeros(rows.shape[0], jnp.int32),
            amplitude=jnp.zeros_like(rows[:, 0]),
        )

    @eqx.filter_jit
    def step(
        self, state: LearnerState, spectra: Float[Array, "batch bins"], learning_rate: Float[Array, ""]
    ) -> tuple[LearnerState, Float[Array, ""]]:
        """One call: pursuit of a minibatch, then descent on the dictionary; also returns the mean loss."""
        result = self.pursuit(spectra, state.harmonics)
        optimiser = instrument_adam(learning_rate)
        slope = jax.grad(lambda rows: mean_loss(self.pursuit.objective, spectra, result.tones, rows))

        def descend(_, carry):
            rows, moments = carry
            change, moments = optimiser.update(slope(rows), moments)
            return jnp.clip(optax.apply_updates(rows, change), 0, 1), moments

        rows, moments = jax.lax.fori_loop(0, self.descents, descend, (state.harmonics, state.moments))
        rows, factor = raise_octaves(rows)
        moments = reset_instruments(moments, factor > 1)
        played = jax.nn.one_hot(result.tones.instrument, rows.shape[0], dtype=rows.dtype)
        heard = jnp.where(result.tones.active, result.tones.amplitude, 0)
        amplitude = jnp.sum(heard[..., None] * played, axis=(0, 1))
        # Loudness is amplitude times the largest harmonic: the rows need not have a maximum of 1.
        loudness = state.amplitude + amplitude * jnp.max(state.harmonics, axis=1)
        return LearnerState(rows, moments, state.age + 1, loudness), jnp.mean(result.loss)

    @eqx.filter_jit
    def renew(self, state: LearnerState, *, key: PRNGKeyArray) -> LearnerState:
        """Draws the weaker half of the candidates anew, duplicates first."""
        rank = self._rank(state)
        redrawn = rank >= state.age.shape[0] // 2
        rows = random_instruments(*state.harmonics.shape, state.harmonics.dtype, key=key)
        return LearnerState(
            harmonics=jnp.where(redrawn[:, None], rows, state.harmonics),
            moments=reset_instruments(state.moments, redrawn),
            age=jnp.where(redrawn, 0, state.age),
            amplitude=jnp.where(redrawn, 0, state.amplitude),
        )

    @eqx.filter_jit
    def survivors(self, state: LearnerState) -> LearnerState:
        """The instruments that end in the dictionary: the strongest that are not duplicates.

        They come first; the rows after them are zero and stay so, since such an instrument never correlates
        with a spectrum: one compiled `step` serves candidates and survivors.
        """
        rows = state.harmonics[jnp.argsort(self._rank(state))]
        peak = jnp.max(rows, axis=1, keepdims=True)
        chosen = jnp.arange(self.num_candidates)[:, None] < self.num_instruments
        return self._fresh(jnp.where(chosen & (peak > 0), rows / jnp.where(peak > 0, peak, 1), 0))

    def _rank(self, state):
        """Place of each candidate by average amplitude; duplicates of a stronger one come last."""
        # Those not much older than half a lifetime get a head start, as in P1.
        age = jnp.maximum(state.age - self.lifetime / 2, 1)
        average = state.amplitude / age
        stronger = (average[:, None] < average) | (
            (average[:, None] == average) & (jnp.arange(average.size) < jnp.arange(average.size)[:, None])
        )
        copy = jnp.any(stronger & (similarity(state.harmonics) > self.duplicate), axis=1)
        return jnp.argsort(jnp.argsort(jnp.where(copy, -1 - 1 / (1 + average), average), descending=True))


def mean_loss(
    objective: LiftedLoss,
    spectra: Float[Array, "frames bins"],
    tones: Tones,
    harmonics: Float[Array, "instruments harmonics"],
) -> Float[Array, ""]:
    """Mean lifted loss of frames at given tones, as a function of the dictionary."""
    model = jax.vmap(objective.model)(pack(tones, objective.lift), harmonics_of(tones, harmonics))
    residual = objective.lifted(model) - objective.lifted(spectra)
    return 0.5 * jnp.mean(jnp.sum(residual**2, axis=1))


def similarity(harmonics: Float[Array, "instruments harmonics"]) -> Float[Array, "instruments instruments"]:
    """Cosine between the square roots of the rows, as the lifted loss sees them."""
    lifted = jnp.sqrt(harmonics)
    norm = jnp.sqrt(jnp.sum(harmonics, axis=1))
    unit = lifted / jnp.where(norm > 0, norm, 1)[:, None]
    return dot(unit, unit.T)

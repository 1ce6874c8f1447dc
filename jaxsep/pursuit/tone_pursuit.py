"""Sparse pursuit of tones: greedy selection with joint refinement (P1)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsep.numerics.adjoint import freeze
from jaxsep.numerics.lanes import default_lanes, map_lanes, queue
from jaxsep.pursuit.refinement import ToneFit, differentiable, minimise, pack
from jaxsep.pursuit.selection import PatternBank, select
from jaxsep.tones.dictionary import harmonics_of
from jaxsep.tones.tones import Tones

__all__ = ["PursuitOutcome", "PursuitResult", "TonePursuit"]


class PursuitOutcome(eqx.Enumeration):
    """How the pursuit of a frame ended."""

    explained = "No further tone lowers the residual enough."
    rounds_used = "All rounds were used and the last tone still helped: allow more tones per instrument."
    silent = "The spectrum is zero: there is nothing to find."
    invalid = "The spectrum holds NaN, infinity or a negative value: check the samples it was made from."


class PursuitResult(eqx.Module):
    """Tones of every frame, with what happened.

    - `tones`: `[frames, tones]`, as many as all instruments together may play.
    - `loss`: the lifted loss L of each frame at these tones.
    - `initial_loss`: L without any tone.
    - `outcome`: a `PursuitOutcome` for each frame.
    - `steps`: evaluations of the model spent on each frame.
    """

    tones: Tones
    loss: Float[Array, " frames"]
    initial_loss: Float[Array, " frames"]
    outcome: PursuitOutcome
    steps: Int[Array, " frames"]


class TonePursuit(ToneFit):
    """Few tones that explain each spectrum (P1, sparse pursuit).

    In each round the tone that correlates best with the lifted residual joins, all tones are refined, the
    quietest beyond the tones per instrument are dropped and the rest refined again; the round counts when the
    residual's norm falls below `improvement` times what it was, and else the frame is finished.

    Frames run side by side in lanes that never wait for each other. In round k a frame has at most k tones,
    so early rounds evaluate few empty slots.

    The result can be differentiated by spectra and harmonics, with the selected tones held fixed (see
    `Adjoint`): it is a minimum of the loss over their parameters, however it was found. By `improvement` and
    the solver's options the derivative is 0.

    Arguments:
        objective: the lifted loss and its axis.
        tones_per_instrument: tones that each instrument may play at a time, at least 1: one number for all,
            or one for each.
        solver: how the tones are refined.
        lowest, highest: bins between which fundamentals are; a round that moves one out does not count.
        improvement: β of P1, in (0, 1].

    Example:
        >>> partial = lambda place: jnp.exp(-0.5 * ((jnp.arange(1024.0) - place) / 1.91) ** 2)
        >>> spectra = (partial(400.25) + 0.5 * partial(502.65))[None]  # an octave is 102.4 bins
        >>> found = jax.jit(jaxsep.TonePursuit())(spectra, jnp.array([[1.0, 0.5]]))
        >>> print(found.tones.fundamental[0, 0].round(2), found.tones.amplitude[0, 0].round(2))
        400.25 1.0
    """

    improvement: float | Float[Array, ""] = 0.9

    @eqx.filter_jit
    def __call__(
        self, spectra: Float[Array, "frames bins"], harmonics: Float[Array, "instruments harmonics"]
    ) -> PursuitResult:
        """Tones of each frame.

        Arguments:
            spectra: nonnegative log-frequency magnitudes with a peak about 1 over the recording.
            harmonics: relative amplitudes for each instrument, in [0, 1].

        Returns: the tones with the loss of each frame. An invalid frame has no tones and says so in its
        outcome.

        Raises: `ValueError` without a frame, or if the number of bins is not the axis's.
        """
        if spectra.shape[1] != self.objective.axis.num_bins:
            raise ValueError(f"spectra: expected {self.objective.axis.num_bins} bins, got {spectra.shape[1]}")
        if spectra.shape[0] < 1:
            raise ValueError("spectra: expected at least 1 frame, got 0")
        harmonics = harmonics.astype(spectra.dtype)
        valid = jnp.all(jnp.isfinite(spectra) & (spectra >= 0), axis=1)
        spectra = jnp.where(valid[:, None], spectra, 0)
        silent = jnp.max(spectra, axis=1) <= 0
        empty = self.objective.lifted(jnp.zeros((), spectra.dtype))
        initial = 0.5 * jnp.sum((self.objective.lifted(spectra) - empty) ** 2, axis=1)
        pursuit, *known = freeze((self, spectra, harmonics, initial))
        state = pursuit._pursue(*known, silent)
        found, adjoint = state.tones, self.solver.adjoint
        rows = harmonics_of(found, harmonics)
        tones, loss = differentiable(found, state.loss, found.active, spectra, rows, self.objective, adjoint)
        outcome = jax.vmap(_outcome)(valid, silent, state.live)
        return PursuitResult(tones, loss, initial, outcome, state.steps)

    def _pursue(self, spectra, harmonics, loss, silent):
        num_frames = spectra.shape[0]
        state = _Progress(
            tones=Tones.empty((num_frames, sum(self.polyphony(harmonics.shape[0]))), spectra.dtype),
            loss=loss,
            live=~silent,
            steps=jnp.zeros(num_frames, jnp.int32),
        )
        bank = PatternBank.build(harmonics, self.objective)
        for size, rounds in _round_sizes(state.tones.capacity):
            body = lambda _, state, size=size: self._round(state, spectra, harmonics, bank, size)
            state = jax.lax.fori_loop(0, rounds, body, state)
        return state

    def _round(self, state, spectra, harmonics, bank, size):
        capacity = state.tones.capacity
        tones = _resize(state.tones, size)
        amplitude, position, instrument = self._select(state.live, tones, spectra, harmonics, bank)
        live = state.live & (amplitude > 0)
        tones = _join(tones, amplitude, position, instrument)
        goal = self.improvement**2 * state.loss
        refined = minimise(
            spectra,
            tones,
            harmonics[tones.instrument],
            self.objective,
            solver=self.solver,
            tones_per_instrument=self.tones_per_instrument,
            frames=live,
            goal=goal,
        )
        inside = jnp.all(self.inside(refined.tones.fundamental) | ~refined.tones.active, axis=1)
        accepted = live & (refined.loss < goal) & inside
        found = _resize(_compact(refined.tones), capacity)
        return _Progress(
            tones=jax.tree.map(lambda new, old: jnp.where(accepted[:, None], new, old), found, state.tones),
            loss=jnp.where(accepted, refined.loss, state.loss),
            live=accepted,
            steps=state.steps + refined.steps,
        )

    def _select(self, live, tones, spectra, harmonics, bank):
        theta = pack(tones, self.objective.lift)
        num_frames = spectra.shape[0]

        def best(frame):
            model = self.objective.model(theta[frame], harmonics[tones.instrument[frame]])
            residual = self.objective.lifted(spectra[frame]) - self.objective.lifted(model)
            return select(bank, residual, self.objective.lift, self.lowest, self.highest)

        zero = jnp.zeros(num_frames, spectra.dtype)
        blank = zero, zero, jnp.zeros(num_frames, jnp.int32)
        return map_lanes(best, *queue(live), blank, default_lanes(num_frames))


class _Progress(eqx.Module):
    tones: Tones
    loss: Float[Array, " frames"]
    live: Bool[Array, " frames"]
    steps: Int[Array, " frames"]


def _outcome(valid, silent, live):
    outcome = PursuitOutcome.where(live, PursuitOutcome.rounds_used, PursuitOutcome.explained)
    outcome = PursuitOutcome.where(silent, PursuitOutcome.silent, outcome)
    return PursuitOutcome.where(valid, outcome, PursuitOutcome.invalid)


def _round_sizes(capacity: int) -> list[tuple[int, int]]:
    """(slots, rounds), such that round k has at least k slots, and capacity + 1 once all may be taken.

    P1 allows twice as many rounds as tones. Fewer slots make early rounds cheap, but each size costs
    seconds of compilation: sizes double, and the last two are one.
    """
    sizes, done, size = [], 0, 2
    while size < max(capacity, 3):
        sizes.append((size, size - done))
        done, size = size, 2 * size
    rest = 2 * capacity - done
    return [*sizes, (capacity + 1, rest)] if rest else sizes


def _resize(tones: Tones, capacity: int) -> Tones:
    """The first slots, or empty ones added."""
    missing = capacity - tones.capacity
    if missing <= 0:
        return jax.tree.map(lambda x: x[:, :capacity], tones)
    blank = Tones.empty((tones.active.shape[0], missing), tones.amplitude.dtype)
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), tones, blank)


def _compact(tones: Tones) -> Tones:
    """Active slots first, in their order."""
    order = jnp.argsort(~tones.active, axis=1, stable=True)
    return jax.tree.map(lambda x: jnp.take_along_axis(x, order, axis=1), tones)


def _join(tones: Tones, amplitude, position, instrument) -> Tones:
    """A new tone in the first empty slot of each frame."""
    slot = jnp.argmin(tones.active, axis=1)
    here = jax.nn.one_hot(slot, tones.capacity, dtype=bool)
    fresh = Tones.plain(amplitude[:, None], position[:, None], instrument[:, None])
    return jax.tree.map(lambda new, old: jnp.where(here, new, old), fresh, tones)

"""Peak pursuit: a magnitude spectrum as a sum of single Gaussians (P1)."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxsep.pursuit.banded import PeakFit, refine_peaks
from jaxsep.pursuit.lanes import default_lanes
from jaxsep.tones.axes import LinearAxis, LogAxis
from jaxsep.tones.rendering import render
from jaxsep.tones.tones import SINUSOID_WIDTH, Tones, width_bounds

__all__ = ["PeakOutcome", "PeakPursuit", "PeakPursuitResult", "Peaks", "map_frames", "render_peaks"]

#: Bisections of the amplitude below which peaks are left out, which halve its uncertainty in decibels.
_BISECTIONS = 20


class Peaks(eqx.Module):
    """The peaks of a frame in a fixed number of slots (leading axes are frames), in order of position.

    One active slot is the spectrum `amplitude · exp(-(f - position)² / (2 width²))`; position and width are in
    bins. Inactive slots have amplitude 0.
    """

    amplitude: Float[Array, "*frames peaks"]
    position: Float[Array, "*frames peaks"]
    width: Float[Array, "*frames peaks"]
    active: Bool[Array, "*frames peaks"]


def render_peaks(peaks: Peaks, axis: LinearAxis | LogAxis) -> Float[Array, " bins"]:
    """Sum of one frame's Gaussians on an axis, to whose bins the positions refer.

    Arguments: `peaks`, `[peaks]`, with widths within `width_bounds()`; `axis`, of which the number of bins
    matters.
    """
    tones = Tones(
        amplitude=peaks.amplitude,
        fundamental=peaks.position,
        width=peaks.width,
        inharmonicity=jnp.zeros_like(peaks.width),
        instrument=jnp.zeros(peaks.active.shape, jnp.int32),
        active=peaks.active,
    )
    return render(tones, jnp.ones((1, 1), peaks.amplitude.dtype), axis)


class PeakOutcome(eqx.Enumeration):
    """How the peak pursuit of a frame ended."""

    explained = "No local maxima are left above the floor, or another round would not lower the residual."
    rounds_used = "All rounds were used; for a smaller residual allow more rounds, or take PeakPursuit.full()."
    silent = "The spectrum is zero: there is nothing to find."
    invalid = "The spectrum holds NaN, infinity or a negative magnitude: check the samples it was made from."


class PeakPursuitResult(eqx.Module):
    """Peaks of every frame, with what happened.

    - `peaks`: `[frames, max_peaks]`.
    - `relative_residual`: ‖Y - y‖ / ‖y‖; 0 at silence, 1 where the spectrum was invalid.
    - `outcome`: a `PeakOutcome` for each frame.
    - `num_rounds`: rounds that were kept.
    - `num_steps`: steps of the refinement that lowered the loss.
    """

    peaks: Peaks
    relative_residual: Float[Array, " frames"]
    outcome: PeakOutcome
    num_rounds: Int[Array, " frames"]
    num_steps: Int[Array, " frames"]


class PeakPursuit(eqx.Module):
    """A magnitude spectrum as a sum of Gaussians (P1, sparse pursuit with q = 1).

    In each round the local maxima of the residual that dominate the 5 bins around them join the peaks, each
    with the amplitude, position and width of the parabola through its logarithm (exact for an isolated
    Gaussian). The `max_peaks` largest are kept and refined together. The round counts when the residual's
    norm falls below `improvement` times what it was; else the frame is finished.

    The default takes the closed form of one round as it is: under a tenth of a millisecond per frame on a
    CPU, and differentiable. `PeakPursuit.full()` refines, which leaves a fraction of the residual.
    Everything is relative to the frame's largest magnitude, so that the level does not matter.

    Arguments: `floor` ≥ 0, the smallest amplitude of a new peak relative to the largest magnitude of the frame;
    `improvement`, β of P1, in (0, 1]; `max_peaks` ≥ 1, slots per frame; `max_rounds` ≥ 1; `num_steps` ≥ 0,
    steps of the refinement in each round.
    """

    floor: float | Float[Array, ""] = 1e-4
    improvement: float | Float[Array, ""] = 1.0
    max_peaks: int = eqx.field(static=True, default=512)
    max_rounds: int = eqx.field(static=True, default=1)
    num_steps: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        for name, least in (("max_peaks", 1), ("max_rounds", 1), ("num_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")

    @classmethod
    def full(cls, *, max_peaks: int = 1000, max_rounds: int = 3, num_steps: int = 4) -> "PeakPursuit":
        """The pursuit of P1: up to 1000 peaks, refined together in every round."""
        return cls(floor=1e-6, max_peaks=max_peaks, max_rounds=max_rounds, num_steps=num_steps)

    @eqx.filter_jit
    def __call__(self, magnitudes: Float[Array, "frames bins"]) -> PeakPursuitResult:
        """Peaks of each frame.

        Arguments: `magnitudes`, nonnegative, at least 5 bins.

        Returns what `PeakPursuitResult` says. An invalid frame has no peaks and says so in its outcome. With
        `max_rounds = 1` and `num_steps = 0` gradients pass from the peaks to the magnitudes.
        """
        if magnitudes.shape[1] < 5:
            raise ValueError(f"magnitudes: expected at least 5 bins, got {magnitudes.shape[1]}")
        return map_frames(self._pursue, magnitudes)

    def _pursue(self, magnitudes) -> PeakPursuitResult:
        valid = jnp.all(jnp.isfinite(magnitudes) & (magnitudes >= 0))
        magnitudes = jnp.where(valid, magnitudes, 0)
        # Peaks scale with the spectrum, so that a level held constant gives the right gradient.
        level = jax.lax.stop_gradient(jnp.max(magnitudes))
        silent = level <= 0
        spectrum = magnitudes / jnp.where(silent, 1, level)
        progress = _start(spectrum, self.max_peaks)
        if self.max_rounds == 1:
            progress = self._round(progress, spectrum)
        else:
            progress = jax.lax.while_loop(
                lambda p: p.live & (p.num_rounds < self.max_rounds),
                lambda p: self._round(p, spectrum),
                progress,
            )
        outcome = PeakOutcome.where(progress.live, PeakOutcome.rounds_used, PeakOutcome.explained)
        outcome = PeakOutcome.where(silent, PeakOutcome.silent, outcome)
        outcome = PeakOutcome.where(valid, outcome, PeakOutcome.invalid)
        energy = jnp.sum(spectrum**2)
        relative = jnp.sqrt(2 * progress.loss / jnp.where(silent, 1, energy))
        return PeakPursuitResult(
            peaks=_finish(progress, level),
            relative_residual=jnp.where(valid, relative, 1),
            outcome=outcome,
            num_rounds=progress.num_rounds,
            num_steps=progress.num_steps,
        )

"""What a separation is asked to do; needs no JAX."""

import dataclasses
from typing import Any, ClassVar

from jaxsep.checks import check_counts

__all__ = ["PursuitSettings", "SeparationSettings"]


@dataclasses.dataclass(frozen=True)
class SeparationSettings:
    """Options of the separation; every value is a JSON scalar. `SeparationSettings.fast()` is a quick preset.

    Arguments:
        method: what finds the tones of each frame by itself: `"pursuit"` (P1), or `"blasso"`, the Beurling
            LASSO (P3). Either way the first dictionaries are learned by pursuit.
        alpha: penalty of the Beurling LASSO, as a fraction of the smallest at which a frame has no tone.
        hop: samples between frames, at 48 kHz; a divisor of 6144.
        tones_per_instrument: tones that one instrument may play at a time.
        restarts: dictionaries learned from different seeds.
        steps: minibatches that each restart learns from.
        batch: frames per minibatch.
        search: `"greedy"`, P1's selection alone, or `"full"`: the cheapest path through several explanations
            of every frame, in turn with the dictionary.
        rounds: how often, in the full search; a given dictionary stays as it is.
        timbre: whether, at the end of the full search, the harmonics of a learned dictionary may change with
            the pitch; in P1 they do not.
        full_peaks: whether the log-frequency spectrogram refines every peak, as P1 does: nearer to the
            spectrum, 60 times as slow, and no better for the stems.
        masking: stems are the mixture times a mask, and sum to it; otherwise the tones alone are played with
            the mixture's phase.
        share: part of the energy that no tone explains that the masks share among the instruments.
        phase_iterations: Griffin–Lim iterations; 1 takes the mixture's phase.

    Example:
        >>> jaxsep.SeparationSettings.fast().hop
        1024
        >>> jaxsep.SeparationSettings(restarts=0)
        Traceback (most recent call last):
        ValueError: restarts: expected an integer of at least 1, got 0
    """

    #: What the quick preset changes.
    FAST: ClassVar[dict[str, Any]] = {"hop": 1024, "restarts": 2, "steps": 48}

    method: str = "pursuit"
    alpha: float = 0.3
    hop: int = 512
    tones_per_instrument: int = 1
    restarts: int = 4
    steps: int = 96
    search: str = "full"
    rounds: int = 2
    timbre: bool = True
    batch: int = 64
    full_peaks: bool = False
    masking: bool = True
    share: float = 1e-4
    phase_iterations: int = 1

    @classmethod
    def fast(cls) -> "SeparationSettings":
        """Two short restarts, and half the frames: two thirds of the default's time with compilation."""
        return cls(**cls.FAST)

    def __post_init__(self):
        counts = ("hop", "tones_per_instrument", "restarts", "steps", "batch", "phase_iterations")
        check_counts(self, counts)
        check_counts(self, ["rounds"], least=0)
        if self.method not in ("pursuit", "blasso"):
            raise ValueError(f"method: expected 'pursuit' or 'blasso', got {self.method!r}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha: expected a number between 0 and 1, got {self.alpha!r}")
        if self.search not in ("full", "greedy"):
            raise ValueError(f"search: expected 'full' or 'greedy', got {self.search!r}")
        if 6144 % self.hop:
            raise ValueError(f"hop: expected a divisor of 6144, got {self.hop}")
        if not 0 <= self.share < float("inf"):
            raise ValueError(f"share: expected a number >= 0, got {self.share!r}")


#: The name until version 0.1; it goes with the next.
PursuitSettings = SeparationSettings

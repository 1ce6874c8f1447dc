"""What a separation is asked to do, and what it returns."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import numpy as np
from jaxtyping import Float

from jaxsep.audio import check_samples
from jaxsep.checks import check_counts
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

__all__ = ["PursuitSettings", "Separation", "check_request"]

#: Seconds of a window, the shortest recording.
_WINDOW = 0.256

#: More instruments than anyone can tell apart blindly: surely a mistake.
_MAX_INSTRUMENTS = 16


@dataclasses.dataclass(frozen=True)
class PursuitSettings:
    """Options of the separation; every value is a JSON scalar. `PursuitSettings.fast()` is a quick preset.

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
        >>> jaxsep.PursuitSettings.fast().hop
        1024
        >>> jaxsep.PursuitSettings(restarts=0)
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
    def fast(cls) -> "PursuitSettings":
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


class Separation(eqx.Module):
    """Stems of a recording, with what was found on the way.

    - `stems`: `[instruments, samples]`, or `[instruments, channels, samples]` for a recording with channels,
      at its own rate and length.
    - `sample_rate`: in Hz.
    - `tones`: `[frames, tones]`; amplitudes in the recording's units, fundamentals in Hz. After a full search
      an instrument may have one tone more than it plays at a time: a note that rings on, or the next one.
    - `times`: centre of each frame in seconds.
    - `dictionary`: harmonics of each instrument, whatever the pitch.
    - `loss`: lifted loss of each frame, for spectra with a peak of 1; of a network, the lifted distance of
      the frame from its direct predictions.
    - `confidence`: by how much, in units of the mean loss of a frame, the cost of the recording would grow
      with other notes in this frame; infinite where none were considered, NaN without the full search.
    - `cost_trace`: mean cost of a frame after each round of the search, the last that of the result
      (`VoiceModel`); without the full search, the mean loss alone.
    - `restart_losses`: of every learned dictionary, the chosen one first; empty where none was.
    - `seconds`: wall time of every stage.

    Example:
        >>> mixture, stems, rate = jaxsep.demo_recording()
        >>> settings = jaxsep.PursuitSettings(restarts=1, steps=3, search="greedy")
        >>> result = jaxsep.separate(mixture[:rate], rate, 2, settings=settings, key=jax.random.key(0))
        >>> result.tones.fundamental.shape, result.dictionary.harmonics.shape
        ((95, 2), (2, 25))
    """

    stems: Float[np.ndarray, "instruments *channels samples"]
    sample_rate: int = eqx.field(static=True)
    tones: Tones
    times: Float[np.ndarray, " frames"]
    dictionary: Dictionary
    loss: Float[np.ndarray, " frames"]
    confidence: Float[np.ndarray, " frames"]
    cost_trace: tuple[float, ...]
    restart_losses: tuple[float, ...]
    seconds: dict[str, float]


def check_request(
    samples: np.ndarray, sample_rate: int, num_instruments: int, dictionary: Dictionary | None
) -> None:
    """Refuses what cannot be separated, with one sentence.

    Raises: `ValueError` for samples that are not finite, silent or shorter than a window, for a number of
    instruments out of range, and for a dictionary of another number of instruments.
    """
    check_samples(samples, sample_rate)
    if num_instruments < 1:
        raise ValueError(f"num_instruments: expected at least 1, got {num_instruments}")
    if num_instruments > _MAX_INSTRUMENTS:
        raise ValueError(f"num_instruments: expected at most {_MAX_INSTRUMENTS}, got {num_instruments}")
    if samples.shape[-1] < _WINDOW * sample_rate:
        raise ValueError(
            f"samples: expected at least one window of {_WINDOW:.3f} s, "
            f"got {samples.shape[-1] / sample_rate:.3f} s"
        )
    if dictionary is not None and dictionary.num_instruments != num_instruments:
        raise ValueError(
            f"dictionary: expected {num_instruments} instruments, got {dictionary.num_instruments}"
        )

"""What a separation is asked to do; needs no JAX."""

import dataclasses
from typing import Any, ClassVar

from jaxsep.checks import check_settings, described, setting
from jaxsep.notes.note import read_frequency

__all__ = ["METHODS", "NOTES_ARE", "PursuitSettings", "SeparationSettings"]

#: What finds the tones of each frame by itself.
METHODS = ("pursuit", "blasso")

#: How much notes bind that are known: they are all; or they stay, and the rest is searched; or they begin.
NOTES_ARE = ("all", "held", "start")

#: Hz between which fundamentals can be found at all, those of `LogAxis`.
_RANGE = {"least": 20, "below": 20480}

#: Restarts by default where the tones of each frame are found alone.
_RESTARTS = 2


def _numbers(text: str) -> int | tuple[int, ...]:
    """One number, or several with commas between."""
    try:
        numbers = tuple(map(int, text.split(",")))
    except ValueError:
        raise ValueError(
            f"expected a number, or one for each instrument such as 1,6, got {text!r}."
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


@described
@dataclasses.dataclass(frozen=True)
class SeparationSettings:
    """Options of the separation; every value is JSON. `SeparationSettings.fast()` is a quick preset.

    {fields}

    Example:
        >>> jaxsep.SeparationSettings.fast().hop
        1024
        >>> jaxsep.SeparationSettings(restarts=-1)
        Traceback (most recent call last):
        ValueError: restarts: expected an integer of at least 0, got -1
    """

    #: What the quick preset changes.
    FAST: ClassVar[dict[str, Any]] = {"hop": 1024}

    method: str = setting(
        "pursuit",
        "what finds the tones of each frame by itself: pursuit (P1), or blasso, the Beurling LASSO (P3). "
        "Where dictionaries are learned, it is by pursuit.",
        choices=METHODS,
    )
    alpha: float = setting(
        0.3,
        "penalty of the Beurling LASSO, as a fraction of the smallest at which a frame has no tone.",
        above=0,
        below=1,
        option="--alpha A",
        method="blasso",
    )
    hop: int = setting(
        512, "samples between frames, at 48 kHz; a divisor of 6144.", least=1, option="--hop H"
    )
    tones_per_instrument: int | tuple[int, ...] = setting(
        1,
        "tones that an instrument may play at a time: one number for all, or one for each, such as 1,6 for a "
        "melody and a piano, whose stems then are in that order.",
        least=1,
        option="--tones T",
        read=_numbers,
    )
    lowest: float = setting(
        27.5,
        "the lowest note that is looked for, in Hz; what is more than a quarter tone lower is nobody's.",
        **_RANGE,
        option="--lowest F",
        help="The lowest note that is looked for, in Hz or such as A0; what is below is nobody's.",
        read=read_frequency,
    )
    highest: float | None = setting(
        None,
        "the highest note that is looked for, in Hz; a fundamental is at most a quarter tone above it.",
        **_RANGE,
        option="--highest F",
        help="The highest note that is looked for, in Hz or such as C#6.  [default: any]",
        read=read_frequency,
    )
    restarts: int = setting(
        0,
        "dictionaries learned from samples of the recording (P1), the best of which begins a search; with 0 "
        "two for the greedy search, and none for the full one, which also begins without any.",
        least=0,
        option="--restarts R",
    )
    steps: int = setting(96, "minibatches that each dictionary is learned from.", least=1, option="--steps K")
    search: str = setting(
        "full",
        "full: the cheapest path through several explanations of every frame, in turn with the dictionary; "
        "greedy: P1's selection alone.",
        choices=("full", "greedy"),
        option="--search",
    )
    rounds: int = setting(
        2, "turns of the full search; a given dictionary stays as it is.", least=0, option="--rounds N"
    )
    timbre: bool = setting(
        True,
        "whether the harmonics may change with the pitch, in the full search: those of a learned dictionary, "
        "and those of a given one where it has a timbre; in P1 they do not.",
        option="--no-timbre",
        help="the same harmonics at every pitch, as in P1.",
    )
    batch: int = setting(64, "frames per minibatch.", least=1)
    full_peaks: bool = setting(
        False,
        "whether the log-frequency spectrogram refines every peak, as P1 does: nearer to the spectrum, "
        "60 times as slow, and no better for the stems.",
        option="--full-peaks",
        help="refine every spectral peak, as P1 does: 60 times as slow.",
    )
    masking: bool = setting(
        True,
        "whether stems are the mixture times masks, put right where partials of several instruments collide, "
        "and sum to it; otherwise the tones alone are played with the mixture's phase.",
        option="--no-masking",
        help="play the tones alone, instead of masking the mixture.",
    )
    share: float = setting(
        1e-4,
        "part of the energy that no tone explains that the masks share among the instruments.",
        least=0,
        option="--share E",
    )
    noise: str = setting(
        "shared",
        "what is done with noise, and with all else that no tone explains: shared evenly among the stems; or "
        "kept apart, in a track of its own that the stems are without.",
        choices=("shared", "apart"),
        option="--noise",
        help="shared: the stems share what is nobody's; apart: it is a track of its own.",
    )
    phase_iterations: int = setting(
        1, "Griffin-Lim iterations; 1 takes the mixture's phase.", least=1, option="--phase-iterations I"
    )

    @classmethod
    def fast(cls) -> "SeparationSettings":
        """Half the frames."""
        return cls(**cls.FAST)

    @property
    def num_learned(self) -> int:
        """How many dictionaries are learned from samples."""
        return self.restarts or (_RESTARTS if self.search == "greedy" else 0)

    def __post_init__(self):
        if isinstance(self.tones_per_instrument, list):  # in JSON a tuple is a list
            object.__setattr__(self, "tones_per_instrument", tuple(self.tones_per_instrument))
        check_settings(self)
        if 6144 % self.hop:
            raise ValueError(f"hop: expected a divisor of 6144, got {self.hop}")
        if self.highest is not None and self.highest <= self.lowest:
            raise ValueError(f"highest: expected more than lowest={self.lowest:g} Hz, got {self.highest:g}")


#: The name until version 0.1; it goes with the next.
PursuitSettings = SeparationSettings

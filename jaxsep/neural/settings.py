"""Sizes and rates of the network and its training; needs no JAX."""

import dataclasses
import math

from jaxsep.checks import check_settings, described, setting

__all__ = ["PRESETS", "NeuralSettings"]

#: Names of class methods that make settings.
PRESETS = ("small", "guided", "paper", "published")


@described
@dataclasses.dataclass(frozen=True)
class NeuralSettings:
    """Options of the network and its training; every value is a JSON scalar or a list of integers.

    The defaults, `NeuralSettings.paper()`, have P2's sizes, and learn from nothing; `NeuralSettings.small()`
    suits CPUs, and so does `NeuralSettings.guided()`, which begins with a pursuit;
    `NeuralSettings.published()` has P2's inputs, exploration and rates as well.

    {fields}

    Example:
        >>> settings = jaxsep.NeuralSettings.small()
        >>> settings.rate, 6 * settings.window_std  # Hz, bins
        (12000, 1536)
    """

    rate: int = setting(48_000, "in Hz, at which the recording is analysed.", least=1)
    window_std: int = setting(
        1024, "of the Gaussian window, in samples at this rate; there are 6 · window_std bins.", least=1
    )
    hop: int = setting(512, "samples between the frames that are predicted.", least=1)
    strides: tuple[int, ...] = setting(
        (4, 4, 4, 4, 4, 3, 2), "of the U-Net, from the input on; their product divides the bins."
    )
    widths: tuple[int, ...] = setting((80, 160, 240, 320, 400, 480, 560), "of the U-Net: its channels.")
    kernel: int = setting(5, "of the U-Net: bins of its convolutions.", least=1)
    stacked: int = setting(
        12,
        "harmonics of each bin that the network sees there, lifted; with 0 it sees P2's inputs.",
        least=0,
    )
    lowest: float = setting(55.0, "fundamental that the network may choose, in Hz.", above=0)
    highest: float = setting(2100.0, "fundamental that the network may choose, in Hz.", above=0)
    logit_scale: float = setting(100.0, "of (instrument, bin); P2 has 10 000.", above=0)
    branches: int = setting(3, "samples for each tone, given those before.", least=1)
    score_weight: float = setting(1.0, "factor of the score part of the gradient; P2 has 0.1.", above=0)
    coolest: float = setting(1.0, "exponent that tempers the last branch; P2 has 0.01.", above=0)
    baseline: str = setting(
        "leave-one-out", "what the score is relative to.", choices=("leave-one-out", "mean")
    )
    batch: int = setting(12, "frames per step.", least=1)
    accumulate: int = setting(
        1,
        "parts of a batch that are computed one after the other: less memory, and on CPUs less time.",
        least=1,
    )
    steps: int = setting(70_000, "of training, all in all.", least=1)
    imitation: int = setting(
        0, "steps before those by policy gradient, that imitate the tones of a pursuit (`Guide`).", least=0
    )
    hold: int = setting(
        200,
        "steps before the dictionary is learned; one that is not given is found from the tones, again and "
        "again after so many steps up to half of them.",
        least=1,
    )
    imitation_rate: float = setting(3e-3, "of AdaMax, for the network that imitates.", above=0)
    network_rate: float = setting(1e-3, "of AdaMax, for the network.", above=0)
    beta1: float = setting(0.9, "of the network's AdaMax, for the mean; P2 has 0.99.", least=0, below=1)
    beta2: float = setting(0.99, "of the network's AdaMax, for the largest; P2 has 0.999.", above=0, below=1)
    dictionary_rate: float = setting(1e-4, "of AdaMax, for the dictionary.", above=0)

    @classmethod
    def paper(cls) -> "NeuralSettings":
        """The sizes of P2, with rates and exploration by which it learns from nothing."""
        return cls()

    @classmethod
    def published(cls) -> "NeuralSettings":
        """P2's inputs, scale of the logit, exploration and rates.

        The start, in which no choice is preferred, the other features (`Policy`, `ToneNetwork`) and how a
        dictionary is found stay as they are in the other presets.
        """
        return cls(
            stacked=0,
            logit_scale=10_000.0,
            score_weight=0.1,
            coolest=0.01,
            baseline="mean",
            network_rate=1e-3,
            beta1=0.99,
            beta2=0.999,
        )

    @classmethod
    def small(cls) -> "NeuralSettings":
        """Up to 6 kHz, and a narrow network: a quarter of an hour on one CPU core."""
        return cls(
            rate=12_000,
            window_std=256,
            hop=128,
            strides=(4, 4, 4, 4, 3, 2),
            widths=(24, 48, 72, 96, 120, 144),
            accumulate=12,
            steps=1500,
            hold=150,
            network_rate=6e-3,
        )

    @classmethod
    def guided(cls) -> "NeuralSettings":
        """As `small`, but the first steps imitate the tones of `separate`."""
        return dataclasses.replace(cls.small(), imitation=600)

    def __post_init__(self):
        check_settings(self)
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate: expected a divisor of batch={self.batch}, got {self.accumulate}")
        if (6 * self.window_std) % (factor := math.prod(self.strides)):
            raise ValueError(
                f"strides: expected a product that divides {6 * self.window_std} bins, got {factor}"
            )

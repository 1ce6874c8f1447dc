"""Sizes and rates of the network and its training; needs no JAX."""

import dataclasses
import math

from jaxsep.checks import check_settings, described, setting

__all__ = ["PRESETS", "NeuralSettings"]

#: Names of class methods that make settings.
PRESETS = ("small", "paper")


@described
@dataclasses.dataclass(frozen=True)
class NeuralSettings:
    """Options of the network and its training; every value is a JSON scalar or a list of integers.

    The defaults, `NeuralSettings.paper()`, are P2's sizes; `NeuralSettings.small()` suits CPUs.

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
    branches: int = setting(3, "samples for each tone, given those before.", least=1)
    score_weight: float = setting(0.1, "factor of the score part of the gradient.", above=0)
    coolest: float = setting(0.01, "exponent that tempers the last branch.", above=0)
    baseline: str = setting(
        "leave-one-out", "what the score is relative to.", choices=("leave-one-out", "mean")
    )
    batch: int = setting(12, "frames per step.", least=1)
    accumulate: int = setting(
        1, "parts of a batch that are computed one after the other, for less memory.", least=1
    )
    steps: int = setting(70_000, "of training, all in all.", least=1)
    imitation: int = setting(
        0, "steps before those by policy gradient, that imitate the tones of a pursuit (`Guide`).", least=0
    )
    imitation_rate: float = setting(3e-3, "of AdaMax, for the network that imitates.", above=0)
    network_rate: float = setting(1e-3, "of AdaMax, for the network.", above=0)
    dictionary_rate: float = setting(1e-4, "of AdaMax, for the dictionary.", above=0)

    @classmethod
    def paper(cls) -> "NeuralSettings":
        """The sizes of P2."""
        return cls()

    @classmethod
    def small(cls) -> "NeuralSettings":
        """Up to 6 kHz, and a narrow network that first imitates the pursuit: minutes on two CPU cores."""
        return cls(
            rate=12_000,
            window_std=256,
            hop=128,
            strides=(4, 4, 4, 4, 3, 2),
            widths=(24, 48, 72, 96, 120, 144),
            steps=6000,
            imitation=4000,
        )

    def __post_init__(self):
        check_settings(self)
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate: expected a divisor of batch={self.batch}, got {self.accumulate}")
        if (6 * self.window_std) % (factor := math.prod(self.strides)):
            raise ValueError(
                f"strides: expected a product that divides {6 * self.window_std} bins, got {factor}"
            )

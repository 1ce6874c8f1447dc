"""Sizes and rates of the network and its training; needs no JAX."""

import dataclasses

from jaxsep.checks import check_counts

__all__ = ["NeuralSettings"]


@dataclasses.dataclass(frozen=True)
class NeuralSettings:
    """Options of the network and its training; every value is a JSON scalar or a list of integers.

    The defaults, `NeuralSettings.paper()`, are P2's sizes; `NeuralSettings.small()` suits CPUs.

    Arguments:
        rate: in Hz, at which the recording is analysed.
        window_std: of the Gaussian window, in samples at this rate; there are 6 · window_std bins.
        hop: samples between the frames that are predicted.
        strides, widths, kernel: of the U-Net.
        branches: samples for each tone, given those before.
        score_weight: factor of the score part of the gradient.
        coolest: exponent that tempers the last branch.
        baseline: "leave-one-out" or "mean".
        batch: frames per step.
        accumulate: parts of a batch that are computed one after the other, for less memory.
        steps: of training, all in all.
        imitation: steps before those by policy gradient, that imitate the tones of a pursuit (`Guide`).
        imitation_rate, network_rate, dictionary_rate: of AdaMax; the first for the network that imitates.

    Example:
        >>> settings = jaxsep.NeuralSettings.small()
        >>> settings.rate, 6 * settings.window_std  # Hz, bins
        (12000, 1536)
    """

    rate: int = 48_000
    window_std: int = 1024
    hop: int = 512
    strides: tuple[int, ...] = (4, 4, 4, 4, 4, 3, 2)
    widths: tuple[int, ...] = (80, 160, 240, 320, 400, 480, 560)
    kernel: int = 5
    branches: int = 3
    score_weight: float = 0.1
    coolest: float = 0.01
    baseline: str = "leave-one-out"
    batch: int = 12
    accumulate: int = 1
    steps: int = 70_000
    imitation: int = 0
    imitation_rate: float = 3e-3
    network_rate: float = 1e-3
    dictionary_rate: float = 1e-4

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
        counts = ("rate", "window_std", "hop", "kernel", "branches", "batch", "accumulate", "steps")
        check_counts(self, counts)
        check_counts(self, ["imitation"], least=0)
        for name in ("imitation_rate", "network_rate", "dictionary_rate", "score_weight"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)!r}")
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate: expected a divisor of batch={self.batch}, got {self.accumulate}")
        factor = 1
        for stride in self.strides:
            factor *= stride
        if (6 * self.window_std) % factor:
            raise ValueError(
                f"strides: expected a product that divides {6 * self.window_std} bins, got {factor}"
            )

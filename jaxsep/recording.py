"""Recordings of any length, read from their file piece by piece."""

import os
from pathlib import Path
from types import TracebackType

import numpy as np
import soundfile
from jaxtyping import Float, Float32

from jaxsep.audio import AudioError, open_audio

__all__ = ["Recording"]


class Recording:
    """Context manager for an open recording, of which pieces can be read in any order.

    **Arguments**

    - `path`: the file, of a kind that `read_audio` reads.

    **Raises** `AudioError`, one sentence naming the file, if it is missing, empty, truncated or not audio.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file = open_audio(self.path)
        self.sample_rate: int = self._file.samplerate
        self.num_samples: int = self._file.frames
        self.num_channels: int = self._file.channels

    def __enter__(self) -> "Recording":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def duration(self) -> float:
        """In seconds."""
        return self.num_samples / self.sample_rate

    def read(self, start: int, stop: int) -> Float32[np.ndarray, "channels samples"]:
        """The samples from second `start` to second `stop`, with zeros before the begin and after the end."""
        first, last = start * self.sample_rate, stop * self.sample_rate
        out = np.zeros((last - first, self.num_channels), np.float32)
        inside = max(first, 0), min(last, self.num_samples)
        if inside[0] < inside[1]:
            try:
                self._file.seek(inside[0])
                got = self._file.read(inside[1] - inside[0], dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                raise AudioError(
                    f"{self.path} is truncated or damaged: its samples cannot be decoded."
                ) from error
            if len(got) < inside[1] - inside[0]:
                raise AudioError(
                    f"{self.path} is truncated: its header promises {self.num_samples} samples per channel, "
                    f"and only {inside[0] + len(got)} are there."
                )
            out[inside[0] - first : inside[1] - first] = got
        return out.T

    def energies(self) -> Float[np.ndarray, " seconds"]:
        """Energy of every second, the last one perhaps shorter; reads the whole file.

        Raises: `AudioError`, one sentence, for less than 2 samples, NaN or infinite samples, exact silence,
        and a file that ends before it should.
        """
        if self.num_samples < 2:
            raise AudioError(
                f"{self.path} holds {self.num_samples} samples per channel, expected at least 2."
            )
        seconds = range(-(-self.num_samples // self.sample_rate))
        energies = np.array([np.sum(np.square(self.read(n, n + 1), dtype=np.float64)) for n in seconds])
        if not np.all(np.isfinite(energies)):
            first = int(np.argmin(np.isfinite(energies)))
            raise AudioError(
                f"{self.path} holds NaN or infinite values (the first in second {first}), "
                "expected finite numbers."
            )
        if not energies.any():
            raise AudioError(
                f"{self.path} holds silence (every sample is exactly 0), expected a recording with sound."
            )
        return energies

"""Recordings on the host: reading, checking, resampling, writing, and the demo that is shipped."""

import hashlib
import io
import json
import os
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Float32
from numpy.typing import ArrayLike

from jaxsep.decoding import Sound, Spooled, open_sound
from jaxsep.files import AudioError, native, reason, replacing, write_reason

__all__ = [
    "FORMATS",
    "AudioFormat",
    "Recording",
    "check_samples",
    "check_tracks",
    "demo_files",
    "demo_recording",
    "loudest_alone",
    "mono",
    "read_audio",
    "resample",
    "write_audio",
]

_Mono = Float32[np.ndarray, " samples"]
_Rate = int | float | np.integer

_FLOATING_SUBTYPES = ("FLOAT", "DOUBLE")
#: Energy of the average of channels, relative to theirs, below which they are taken to cancel each other.
_CANCELLED = 1e-3
#: More channels than this are samples.
_MAX_CHANNELS = 64


class AudioFormat(NamedTuple):
    """A kind of file that is written: libsndfile's names of it, and of its samples by their bits."""

    kind: str
    subtypes: dict[int, str]

    @property
    def best(self) -> str:
        """The subtype of most bits."""
        return self.subtypes[max(self.subtypes)]


#: What is written, by the suffix of the file. The 32 bits of WAV are floating point, which cannot clip.
FORMATS = {
    ".wav": AudioFormat("WAV", {16: "PCM_16", 24: "PCM_24", 32: "FLOAT"}),
    ".flac": AudioFormat("FLAC", {16: "PCM_16", 24: "PCM_24"}),
}


def read_audio(
    path: str | os.PathLike, *, allow_silence: bool = False
) -> tuple[Float32[np.ndarray, "channels samples"], int]:
    """Read a whole recording (WAV, FLAC, AIFF, Ogg, MP3, M4A, WMA and most else that people have).

    It is read to its end, whatever its header says of its length. Where the file does not tell whether it is
    whole, an `AudioWarning` says how many seconds it has.

    Arguments:
        path: the file, or a pipe.
        allow_silence: whether exact zeros throughout are a recording too, as in a stem without tones.

    Returns: the samples, float32 with full scale 1, and the sample rate in Hz.

    Raises: `AudioError` for one sentence naming the file, if it is missing, a folder, empty, not audio,
    truncated, shorter than 2 samples, silent (exact zeros throughout), or contains NaN or infinite samples.

    Example:
        >>> jaxsep.write_audio("tone.wav", np.sin(0.1 * np.arange(480.0)), 48_000)
        >>> samples, rate = jaxsep.read_audio("tone.wav")
        >>> samples.shape, samples.dtype.name, rate
        ((1, 480), 'float32', 48000)
    """
    with Recording(path) as recording:
        return recording.checked(allow_silence), recording.sample_rate


def check_samples(samples: ArrayLike, sample_rate: _Rate, name: str = "samples") -> None:
    """Check that an array can be processed as a recording.

    Arguments:
        samples: float32 or float64, shape [samples] or [channels, samples].
        sample_rate: whole number of Hz, above 0.
        name: the name of the argument in messages.

    Raises: `ValueError` for another shape or dtype, fewer than 2 samples, NaN or infinite samples, silence
    (exact zeros throughout), and an impossible rate.
    """
    samples = np.asarray(samples)
    _check_array(samples, name)
    _check_rate(sample_rate, "sample_rate")
    if defect := _defect(samples):
        got, expected = defect
        raise ValueError(f"{name}: expected {expected}, got {got}")


def resample(
    samples: Float[np.ndarray, "*channels samples"], rate_in: _Rate, rate_out: _Rate
) -> Float[np.ndarray, "*channels resampled"]:
    """Resample every channel by band-limited interpolation (SoX resampler, quality VHQ).

    Arguments:
        samples: float32 or float64, shape [samples] or [channels, samples].
        rate_in, rate_out: sample rates in Hz, whole numbers above 0.

    Returns: `round(samples · rate_out / rate_in)` samples per channel, dtype kept; the input itself if the
    rates are equal.

    Raises: `ValueError` for another shape or dtype, or an impossible rate.

    Example:
        >>> jaxsep.resample(np.ones((2, 480)), 48_000, 44_100).shape
        (2, 441)
    """
    _check_array(samples, "samples")
    _check_rate(rate_in, "rate_in")
    _check_rate(rate_out, "rate_out")
    if rate_in == rate_out:
        return samples
    length = round(samples.shape[-1] * rate_out / rate_in)
    resampled = soxr.resample(samples.T, rate_in, rate_out, quality="VHQ").T[..., :length]
    missing = length - resampled.shape[-1]
    return np.pad(resampled, [(0, 0)] * (samples.ndim - 1) + [(0, missing)])


def write_audio(
    path: str | os.PathLike, samples: ArrayLike, sample_rate: _Rate, *, subtype: str | None = None
) -> None:
    """Write a WAV or FLAC file, which appears under its name only when it is complete.

    Arguments:
        path: the file; its suffix, `.wav` or `.flac`, decides the format. An existing file is replaced.
        samples: float32 or float64, shape [samples] or [channels, samples], full scale 1, finite.
        sample_rate: whole number of Hz, above 0.
        subtype: libsndfile's name of the sample format; by default `FLOAT` for WAV, which cannot clip, and
            `PCM_24` for FLAC.

    Raises: `AudioError` for one sentence naming the file, for an unknown format, samples that an integer
    format would clip, and a file that cannot be written; an existing file then stays; `ValueError` for
    samples of another shape or dtype, NaN or infinite samples, and an impossible rate.

    Example:
        >>> stereo = np.stack([np.zeros(480), 0.5 * np.sin(0.1 * np.arange(480.0))])
        >>> jaxsep.write_audio("stereo.flac", stereo, 48_000, subtype="PCM_16")
        >>> jaxsep.read_audio("stereo.flac")[0].shape
        (2, 480)
    """
    path, samples = Path(path), np.asarray(samples)
    _check_array(samples, "samples")
    _check_rate(sample_rate, "sample_rate")
    if defect := _non_finite(samples):
        raise ValueError(f"samples: expected finite numbers, got {defect}")
    kind, subtype = _file_format(path, subtype)
    peak = np.max(np.abs(samples), initial=0.0)
    if subtype == "FLOAT" and peak > np.finfo(np.float32).max:
        raise ValueError(f"samples: expected values that float32 can hold, got {peak:.4g}")
    if subtype not in _FLOATING_SUBTYPES and peak > 1:
        raise AudioError(
            f"{path} would be clipped: the peak is {peak:.4g} and {subtype} ends at 1; "
            "lower the level or write WAV with the subtype FLOAT."
        )
    try:
        with replacing(path) as draft:
            soundfile.write(native(draft), samples.T, int(sample_rate), subtype=subtype, format=kind)
    except (OSError, soundfile.SoundFileError) as error:
        raise AudioError(f"{path} cannot be written: {write_reason(error, path.parent)}.") from error


def check_tracks(suffix: str, subtype: str, num_channels: int, sample_rate: int) -> None:
    """Raises `AudioError`, one sentence, where a kind of file cannot hold such channels or such a rate."""
    try:
        soundfile.SoundFile(
            io.BytesIO(), "w", sample_rate, num_channels, subtype, format=FORMATS[suffix].kind
        ).close()
    except soundfile.SoundFileError as error:
        raise AudioError(
            f"{FORMATS[suffix].kind} cannot hold {num_channels} channels at {sample_rate} Hz; choose WAV."
        ) from error


def mono(samples: Float[np.ndarray, "channels samples"]) -> Float[np.ndarray, " samples"]:
    """The average of the channels, or the loudest one where they cancel each other."""
    loudest = loudest_alone(samples)
    return samples.mean(axis=0) if loudest is None else samples[loudest]


def loudest_alone(samples: Float[np.ndarray, "channels samples"]) -> int | None:
    """The loudest channel, if next to nothing is left of all in their average."""
    energies = np.mean(np.square(samples, dtype=float), axis=1)
    left = np.mean(np.square(samples.mean(axis=0), dtype=float))
    return int(energies.argmax()) if left < _CANCELLED * energies.mean() else None


class Recording:
    """Context manager for an open recording, of which pieces can be read in any order.

    Arguments:
        path: the file, of a kind that `read_audio` reads, or a pipe.

    Raises: `AudioError` for one sentence naming the file, if it is missing, empty, truncated or not audio.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._sound: Sound = open_sound(self.path)
        if self._sound.num_samples is None:
            try:
                with closing(self._sound) as sound:
                    self._sound = Spooled(sound)
            except OSError as error:
                raise AudioError(f"{self.path} cannot be read: {reason(error)}.") from error
        self.sample_rate: int = self._sound.sample_rate
        self.num_samples: int = self._sound.num_samples
        self.num_channels: int = self._sound.num_channels

    def __enter__(self) -> "Recording":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sound.close()

    @property
    def duration(self) -> float:
        """In seconds."""
        return self.num_samples / self.sample_rate

    def checked(self, allow_silence: bool = False) -> Float32[np.ndarray, "channels samples"]:
        """All samples, as `read_audio` returns them; raises what it does."""
        blocks = [block.T for block in self._sound.blocks()]
        samples = np.concatenate([np.zeros((self.num_channels, 0), np.float32), *blocks], axis=1)
        if defect := _defect(samples, allow_silence):
            got, expected = defect
            raise AudioError(f"{self.path} holds {got}, expected {expected}.")
        return samples

    def fingerprint(self) -> str:
        """SHA-256 of the file, or of what came out of a pipe."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(self.checked(allow_silence=True).tobytes()).hexdigest()

    def read(self, start: int, stop: int) -> Float32[np.ndarray, "channels samples"]:
        """The samples from second `start` to second `stop`, with zeros before the begin and after the end."""
        first, last = start * self.sample_rate, stop * self.sample_rate
        out = np.zeros((last - first, self.num_channels), np.float32)
        inside = max(first, 0), min(last, self.num_samples)
        if inside[0] < inside[1]:
            out[inside[0] - first : inside[1] - first] = self._sound.read(*inside)
        return out.T

    def energies(self) -> Float[np.ndarray, " seconds"]:
        """Energy of every second, the last one perhaps shorter; reads the whole file.

        Raises: `AudioError` for one sentence, for less than 2 samples, NaN or infinite samples, exact
        silence, and a file that ends before it should.
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


def demo_recording() -> tuple[_Mono, dict[str, _Mono], int]:
    """The duet that ships with the package: ten seconds of a minuet for recorder and clarinet.

    Returns: the mixture, its true stems by instrument (they sum to the mixture exactly), and the sample rate
    in Hz. Origin and licence are in `jaxsep/data/demo/README.md`.

    Example:
        >>> mixture, stems, rate = jaxsep.demo_recording()
        >>> f"{mixture.size / rate:.1f} s at {rate} Hz of {' and '.join(stems)}"
        '9.6 s at 44100 Hz of recorder and clarinet'
    """
    mixture, stems = demo_files()
    samples, sample_rate = read_audio(mixture)
    return samples[0], {path.stem: read_audio(path)[0][0] for path in stems}, sample_rate


def demo_files() -> tuple[Path, list[Path]]:
    """The files of the duet: its mixture and its true stems."""
    folder = Path(__file__).parent / "data" / "demo"
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return folder / "mix.flac", [folder / f"{stem['name']}.flac" for stem in meta["stems"]]


def _defect(samples: np.ndarray, allow_silence: bool = False) -> tuple[str, str] | None:
    """What makes an array unusable as a recording, as (got, expected)."""
    if samples.shape[-1] < 2:
        return f"{samples.shape[-1]} samples per channel", "at least 2"
    if non_finite := _non_finite(samples):
        return non_finite, "finite numbers"
    if not (allow_silence or samples.any()):
        return "silence (every sample is exactly 0)", "a recording with sound"
    return None


def _non_finite(samples: np.ndarray) -> str | None:
    """Number and place of the NaN and infinite samples."""
    bad = ~np.isfinite(samples)
    if not bad.any():
        return None
    first = np.flatnonzero(bad.any(axis=tuple(range(bad.ndim - 1))))[0]
    return f"{np.count_nonzero(bad)} NaN or infinite values (the first at sample {first})"


def _check_array(samples: np.ndarray, name: str) -> None:
    if samples.ndim not in (1, 2):
        raise ValueError(f"{name}: expected shape [samples] or [channels, samples], got {samples.shape}")
    if samples.ndim == 2 and max(samples.shape[1], _MAX_CHANNELS) < samples.shape[0]:
        raise ValueError(
            f"{name}: expected shape [channels, samples], got {samples.shape}, as if it were transposed"
        )
    if samples.dtype not in (np.float32, np.float64):
        raise ValueError(f"{name}: expected float32 or float64 with full scale 1, got {samples.dtype}")


def _check_rate(rate: _Rate, name: str) -> None:
    if not (rate > 0 and rate % 1 == 0):
        raise ValueError(f"{name}: expected a whole number of Hz above 0, got {rate}")
    if rate >= 2**31:
        raise ValueError(f"{name}: expected less than 2**31 Hz, got {rate}")


def _file_format(path: Path, subtype: str | None) -> tuple[str, str]:
    """libsndfile's names of the container and of the sample format."""
    if (known := FORMATS.get(path.suffix.lower())) is None:
        raise AudioError(
            f"{path} has the suffix {path.suffix!r}, expected {' or '.join(map(repr, FORMATS))}."
        )
    subtype = subtype or known.best
    if not soundfile.check_format(known.kind, subtype):
        raise AudioError(f"{path} cannot hold samples of the format {subtype}.")
    return known.kind, subtype

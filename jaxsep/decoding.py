"""Files of sound, opened and read to their end: by libsndfile, or where it stops early by FFmpeg."""

import itertools
import mmap
import os
import re
import shutil
import stat
import struct
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from jaxtyping import Float32

from jaxsep.files import AudioError, AudioWarning, native, reason

__all__ = ["Sound", "Spooled", "open_sound"]

_Block = Float32[np.ndarray, "samples channels"]

#: Samples that are read at a time, and bytes of samples that are kept in memory.
_BLOCK, _IN_MEMORY = 2**16, 2**28

#: Containers whose chunks state their length: byte order of the length, and name of the chunk of samples.
_CHUNKED = {
    **dict.fromkeys([b"RIFF", b"RF64", b"BW64"], ("<I", b"data")),
    b"RIFX": (">I", b"data"),
    b"FORM": (">I", b"SSND"),
}

#: Numbers that programs write to a pipe, where they cannot know the length; some add that of the header.
_UNKNOWN_LENGTHS = (range(0x7FFFF000, 0x80001000), range(0xFFFFF000, 0x100000000))

#: How libsndfile's log tells what a header states and what is there, or that not all is.
_LENGTHS = re.compile(r"^\s*(?:BODY|Data Size|Data length|riff)\W*(\d+) \(?should be (\d+)", re.MULTILINE)
_SHORT = re.compile(r"^(\*\*\* File s|S)eems to be .*truncated", re.MULTILINE)

#: How the log tells the samples of a channel, where libsndfile overlooks that they are not all there.
_STATED = re.compile(r"^\s*(?:Frames\s*|Rows : \d+\s+Cols) : (\d+)$", re.MULTILINE)

#: What libsndfile reads and does not say how long it should be.
_ENDLESS = ("IRCAM", "PAF", "PVF", "SD2", "XI")

#: How files begin that libsndfile reads up to a length of its own estimate: MP3, Ogg.
_ESTIMATED = re.compile(rb"ID3|OggS|\xff[\xe0-\xff]")

#: Eight bytes with which files begin that are alike in all files of a kind, whatever their length.
_ALIKE = re.compile(rb"(fLaC|caff|\.snd|riff|RF64)....|....ftyp", re.DOTALL)

#: How damaged files begin that were of sound once.
_KNOWN = re.compile(rb"ID3|OggS|fLaC|caff|....ftyp|wvpk|TTA1|MAC |\x30\x26\xb2\x75", re.DOTALL)

#: What FFmpeg may open: containers of sound, none that names other files or takes text for pictures.
_CONTAINERS = "mp3,aac,ac3,eac3,ogg,flac,mov,asf,matroska,wav,aiff,nistsphere,wv,tta,ape,amr,mpc,mpc8"

#: Those of which FFmpeg estimates the length, if it is not in the file.
_UNSTATED = ("mp3", "aac", "ac3", "eac3", "ogg", "amr", "wav")


class Sound:
    """An open file of sound.

    - `sample_rate`: in Hz.
    - `num_channels`: how many.
    - `num_samples`: of a channel, where any of them can be read; otherwise None, and only all in order.
    """

    sample_rate: int
    num_channels: int
    num_samples: int | None

    def blocks(self) -> Iterator[_Block]:
        """All samples, once; raises `AudioError` if some are missing, or warns that some may be."""
        raise NotImplementedError

    def read(self, first: int, last: int) -> _Block:
        """The samples from `first` to before `last`."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the file."""
        raise NotImplementedError


def open_sound(path: Path) -> Sound:
    """Opens a file or pipe of sound; raises `AudioError`, one sentence, where there is none."""
    with _opened(path) as file:
        place = path if path.is_file() else Path(f"/dev/fd/{file.fileno()}")
        head = file.read(8)
        if not head:
            raise AudioError(f"{path} is empty (0 bytes).")
        missing = _missing_bytes(file)
        if missing > 0:
            raise AudioError(
                f"{path} is truncated: {missing} bytes of samples that its header promises are missing."
            )
        estimated = _ESTIMATED.match(head) or path.suffix.lower() == ".mp3"
        if not estimated and _is_joined(file, head):
            several = f"{path} holds several recordings one after the other"
            if head.startswith(b"riff"):  # W64, of which libsndfile takes all that follows for samples
                raise AudioError(f"{several}, expected one.")
            _warn(f"{several}, of which only the first is read.")
        sound = None if estimated else _by_libsndfile(path, place)
        if sound is not None and sound.is_sure:
            return sound
        from av.error import FFmpegError  # takes a moment, and few need it

        try:
            return _FFmpeg(path, place)
        except (FFmpegError, ValueError) as error:
            if sound is not None:  # the other decoder knows no better
                return sound
            if _KNOWN.match(head):
                raise AudioError(f"{path} is truncated or damaged: nothing of it can be decoded.") from error
            raise AudioError(
                f"{path} is not audio in a format that can be read (such as WAV or FLAC)."
            ) from error


def _opened(path: Path) -> BinaryIO:
    """An open file of bytes; what a pipe gives is kept in a nameless one."""
    try:
        if path.is_dir():
            raise AudioError(f"{path} is a folder, expected an audio file.")
        file = path.open("rb")
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISREG(mode):
            return file
        with file:
            if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
                raise AudioError(f"{path} is a device, expected an audio file.")
            return _kept(file)
    except FileNotFoundError:
        raise AudioError(f"{path} does not exist.") from None
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {reason(error)}.") from error


def _kept(pipe: BinaryIO) -> BinaryIO:
    """A nameless file of what a pipe gives."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        shutil.copyfileobj(pipe, file)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _missing_bytes(file: BinaryIO) -> int:
    """Bytes of samples that a header promises beyond the file's end, which libsndfile ignores."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    order, samples_chunk = _CHUNKED.get(file.read(4), (None, None))
    if order is None:
        return 0
    file.seek(12)
    large = None  # the length of the samples in files beyond 4 GiB, which have it in a chunk of its own
    while len(header := file.read(8)) == 8:
        (length,) = struct.unpack(order, header[4:])
        begin = file.tell()
        if header[:4] == b"ds64":
            large = int.from_bytes(file.read(16)[8:], "little")
        if header[:4] == samples_chunk:
            if any(length in unknown for unknown in _UNKNOWN_LENGTHS):
                length = large or 0
            return max(begin + length - size, 0)
        file.seek(begin + length + length % 2)  # chunks start at even positions
    return 0


def _is_joined(file: BinaryIO, head: bytes) -> bool:
    """Whether a file is followed by another of its kind, of which no decoder knows."""
    if _ALIKE.match(head):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(head, 8) > 0
    order, _ = _CHUNKED.get(head[:4], (None, None))
    if order is None:
        return False
    (length,) = struct.unpack(order, head[4:].ljust(4, b"\0"))
    file.seek(8 + length + length % 2)
    return file.read(4) == head[:4]


def _by_libsndfile(path, place):
    try:
        return _Libsndfile(path, soundfile.SoundFile(native(place)))
    except (soundfile.SoundFileError, TypeError):  # TypeError: headerless data, told by its suffix
        return None


class _Libsndfile(Sound):
    """Sound that libsndfile decodes.

    `is_sure`: whether it knows where the sound ends.
    """

    def __init__(self, path: Path, file: soundfile.SoundFile):
        self._path, self._file, self._moved = path, file, False
        self.sample_rate, self.num_channels = file.samplerate, file.channels
        self.is_sure = 0 < file.frames < 2**62 and file.format not in ("MP3", "OGG", "NIST")
        self.num_samples = file.frames if file.seekable() else None
        log = file.extra_info
        seconds = f"{file.frames / file.samplerate:.3f} s"
        stated = max(map(int, _STATED.findall(log)), default=0)
        short = any(int(there) < int(said) for said, there in _LENGTHS.findall(log))
        if short or _SHORT.search(log) or stated > file.frames:
            raise AudioError(f"{path} is truncated: its header promises more than the {seconds} in it.")
        if file.format in _ENDLESS:
            _warn(f"{path} does not say how long it should be: {seconds} are there.")

    def blocks(self) -> Iterator[_Block]:
        count = 0
        while len(block := self._decoded(count if self._moved else None, _BLOCK)):
            count += len(block)
            yield block
        if count < self._file.frames:
            raise self._truncated(count)

    def read(self, first: int, last: int) -> _Block:
        self._moved = True
        block = self._decoded(first, last - first)
        if len(block) < last - first:
            raise self._truncated(first + len(block))
        return block

    def close(self) -> None:
        self._file.close()

    def _decoded(self, first: int | None, length: int) -> _Block:
        try:
            if first is not None:
                self._file.seek(min(first, self._file.frames))
            return self._file.read(length, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise AudioError(
                f"{self._path} is truncated or damaged: its header promises "
                f"{self._file.frames / self.sample_rate:.3f} s, which cannot all be decoded."
            ) from error

    def _truncated(self, count: int) -> AudioError:
        return AudioError(
            f"{self._path} is truncated: its header promises {self._file.frames} samples per channel, "
            f"and only {count} are there."
        )


class _FFmpeg(Sound):
    """Sound that FFmpeg decodes; raises `ValueError` or its own errors where there is none."""

    num_samples = None

    def __init__(self, path: Path, place: Path):
        import av

        self._path, self._is_damaged = path, False
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        # Tags in another encoding are no reason to refuse a file; since version 19 PyAV never does.
        tolerant = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
        # By the name of the protocol no part of a name is taken for one.
        self._container = av.open(f"file:{place}", options=options, **tolerant)
        self._kind = self._container.format.name.split(",")[0]
        self._stream = next(iter(self._container.streams.audio), None)
        self._frames = self._decoded()
        self._first = next(self._frames, None)
        if self._first is None:
            raise ValueError(f"{path} holds no sound")
        self.sample_rate, self.num_channels = _kind_of(self._first)
        self._open_end = self._kind == "ogg" and not _has_last_page(place)
        self._promised = self._stated(place)

    def blocks(self) -> Iterator[_Block]:
        from av import AudioResampler

        floating, count = AudioResampler(format="fltp"), 0
        for frame in itertools.chain([self._first], self._frames):
            if _kind_of(frame) != (self.sample_rate, self.num_channels):
                raise AudioError(
                    f"{self._path} changes its rate or channels after {count / self.sample_rate:.3f} s, "
                    "expected one kind of sound."
                )
            for converted in floating.resample(frame):
                count += converted.samples
                yield converted.to_ndarray().T
        seconds = f"{count / self.sample_rate:.3f} s"
        if self._promised - count > max(4096, self.sample_rate / 10):
            promised = f"{self._promised / self.sample_rate:.3f} s"
            raise AudioError(
                f"{self._path} is truncated: its header promises {promised}, and only {seconds} are there."
            )
        if self._is_damaged or self._open_end:
            _warn(f"{self._path} is damaged or cut: {seconds} of sound are there.")

    def close(self) -> None:
        self._container.close()

    def _decoded(self):
        """Frames of the decoder, without what it cannot decode."""
        from av.error import FFmpegError

        packets = iter(() if self._stream is None else self._container.demux(self._stream))
        lost = 0
        while True:
            try:
                if (packet := next(packets, None)) is None:
                    return
                yield from packet.decode()
                lost = 0
            except FFmpegError:
                lost += 1
                # The first frame of an MP3 that was joined to another may want what once preceded it.
                self._is_damaged |= lost > 1 or self._kind != "mp3"

    def _stated(self, place: Path) -> int:
        """How many samples the file says it has; 0 if it does not."""
        if self._kind == "mp3":
            return _xing_frames(place) * (1152 if self.sample_rate >= 32000 else 576)
        if self._kind in _UNSTATED:
            return 0
        own, whole = self._stream.duration, self._container.duration
        seconds = (whole or 0) / 1e6 if own is None else float(own * self._stream.time_base)
        return round(seconds * self.sample_rate)


def _kind_of(frame):
    return frame.sample_rate, frame.layout.nb_channels


def _xing_frames(place):
    """The frames that the first one of an MP3 tells of, behind the tags; 0 if it does not."""
    with place.open("rb") as file:
        head = file.read(10)
        tags = sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        file.seek(10 + tags if head.startswith(b"ID3") else 0)
        found = re.search(rb"(?:Xing|Info)\0\0\0(.)(....)", file.read(4096), re.DOTALL)
    return int.from_bytes(found[2], "big") if found and found[1][0] & 1 else 0


def _has_last_page(place):
    """Whether an Ogg ends where its last page says so."""
    with place.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 2**17))
        page = file.read().rpartition(b"OggS")[2]
    return len(page) > 1 and bool(page[1] & 4)


class Spooled(Sound):
    """All of a sound of which only reading tells the length, decoded into a nameless file.

    Arguments:
        sound: is read to its end.
    """

    def __init__(self, sound: Sound):
        self.sample_rate, self.num_channels = sound.sample_rate, sound.num_channels
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        self._row = 4 * self.num_channels
        try:
            for block in sound.blocks():
                self._file.write(block.tobytes())
        except BaseException:
            self.close()
            raise
        self.num_samples = self._file.tell() // self._row

    def blocks(self) -> Iterator[_Block]:
        for first in range(0, self.num_samples, _BLOCK):
            yield self.read(first, min(first + _BLOCK, self.num_samples))

    def read(self, first: int, last: int) -> _Block:
        self._file.seek(first * self._row)
        content = self._file.read((last - first) * self._row)
        return np.frombuffer(content, np.float32).reshape(-1, self.num_channels)

    def close(self) -> None:
        self._file.close()


def _warn(sentence):
    warnings.warn(sentence, AudioWarning, stacklevel=2)

"""What a separation leaves in its folder."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from jaxsep.audio import FORMATS
from jaxsep.files import AudioError, native, write_reason
from jaxsep.notes.formats import write_note_files
from jaxsep.notes.score import default_name
from jaxsep.results.document import separation_document
from jaxsep.results.frames import write_frames
from jaxsep.results.schema import to_json
from jaxsep.results.tones import write_tones
from jaxsep.separation.found import notes_of
from jaxsep.separation.result import Separation

__all__ = ["Tracks", "stem_name", "write_results"]


def write_results(
    folder: Path,
    pieces: Iterable[tuple[np.ndarray, Separation]],
    audio: tuple[str, str],
    **about: Any,
) -> dict[str, Any]:
    """Writes everything that was found in a recording but the picture, and returns the JSON document.

    Only tones are kept of the pieces, 0.1 MB for each minute.

    Arguments:
        folder: an existing one.
        pieces: of the recording, in order: samples, `[samples]` or `[channels, samples]`, and separation.
        audio: suffix of the tracks, and their sample format.
        about: further arguments of `separation_document`.
    """
    found, length = [], 0
    with Tracks(folder, *audio) as tracks:
        for samples, piece in pieces:
            tracks.append(samples, piece.stems, piece.sample_rate, piece.names, piece.noise)
            *kind, num_samples = piece.stems.shape
            length += num_samples
            # Not a slice, which would keep the stems in memory.
            silent = {"stems": np.zeros((*kind, 0), np.float32), "mixture": None, "noise": None}
            found.append(dataclasses.replace(piece, **silent))
    separation = Separation.joined(found)
    document = separation_document(separation, shape=(*kind, length), **about) | tracks.written
    separation.dictionary.save(folder / "dictionary.npz")
    write_tones(folder / "tones.csv", separation)
    write_frames(folder / "frames.npz", separation)
    write_note_files(folder, notes_of(separation), separation.names)
    (folder / "separation.json").write_text(to_json(document), encoding="utf-8")
    return document


def stem_name(instrument: int, name: str) -> str:
    """Name of a stem's file without its suffix: the number, from 1, and the instrument's name if it has one.

    Example:
        >>> stem_name(0, "instrument 1"), stem_name(1, "Violin I / solo")
        ('stem-1', 'stem-2-Violin-I-solo')
    """
    number = f"stem-{instrument + 1}"
    # Letters and digits of any language; other signs may separate folders, or be none in a name.
    words = "-".join(re.findall(r"[^\W_]+", name))[:_LONGEST_NAME].strip("-")
    return number if name == default_name(instrument) or not words else f"{number}-{words}"


#: Characters of an instrument's name in that of its file.
_LONGEST_NAME = 40


class Tracks:
    """Context manager that writes mixture, stems, and noise that is kept apart, in one piece or in many.

    Integers cannot hold more than full scale, which a stem may exceed where others cancel it: all tracks are
    then lowered alike, when the last piece is known.

    Arguments:
        folder: an existing one, which appears when it is complete.
        suffix, subtype: as for `write_audio`.

    Afterwards `written` is what the document says of them: the names `mixture`, `stems` and, if there is any,
    `noise`, and the `gain` in dB.
    """

    def __init__(self, folder: Path, suffix: str, subtype: str):
        self._folder, self._suffix, self._subtype = folder, suffix, subtype
        self._drafts: dict[Path, soundfile.SoundFile] = {}
        self._peak = 0.0
        self.written: dict[str, Any] = {}

    def __enter__(self) -> "Tracks":
        return self

    def append(
        self,
        mixture: np.ndarray,
        stems: np.ndarray,
        sample_rate: int,
        names: Sequence[str] = (),
        noise: np.ndarray | None = None,
    ) -> None:
        """A piece of the mixture, `[samples]` or `[channels, samples]`, of the stems, and of the noise.

        Arguments:
            mixture, stems, sample_rate: of the piece.
            names: of the instruments.
            noise: in each piece or in none.
        """
        apart = [] if noise is None else [noise]
        tracks = [np.atleast_2d(track) for track in (mixture, *stems, *apart)]
        if not all(np.isfinite(track).all() for track in tracks):
            raise ValueError("the stems are not finite; other settings, or another seed, may help.")
        if not self._drafts:
            names = names or [default_name(number) for number in range(len(stems))]
            names = ["mixture", *(stem_name(number, name) for number, name in enumerate(names))]
            names += [_NOISE] * len(apart)
            options = {"samplerate": sample_rate, "channels": len(tracks[0])}
            for path in (self._folder / f"{name}{self._suffix}" for name in names):
                self._drafts[path] = soundfile.SoundFile(
                    native(_draft(path)), "w", format="RF64", subtype="FLOAT", **options
                )
        for draft, track in zip(self._drafts.values(), tracks, strict=True):
            self._peak = max(self._peak, float(np.abs(track).max()))
            with self._telling():
                draft.write(track.T)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for draft in self._drafts.values():
            draft.close()
        if kind is not None:
            return
        gain = 1.0 if self._subtype == "FLOAT" or self._peak <= 1 else 1 / self._peak
        for path in self._drafts:
            with self._telling():
                self._convert(path, gain)
            _draft(path).unlink()
        mixture, *stems = (path.name for path in self._drafts)
        apart = {"noise": stems.pop()} if Path(stems[-1]).stem == _NOISE else {}
        decibels = round(20 * float(np.log10(gain)), 3)
        self.written = {"mixture": mixture, "stems": stems, **apart, "gain_db": decibels}

    @contextmanager
    def _telling(self):
        """Says why nothing can be written, which libsndfile does not."""
        try:
            yield
        except soundfile.SoundFileError as error:
            raise AudioError(
                f"The results cannot be written: {write_reason(error, self._folder)}."
            ) from error

    def _convert(self, path, gain):
        with soundfile.SoundFile(native(_draft(path))) as draft:
            # What is longer than WAV can say is RF64, which most programs read as well.
            large = path.suffix == ".wav" and draft.frames * draft.channels * 4 > _LARGEST_WAV
            kind = "RF64" if large else FORMATS[path.suffix].kind
            options = {"samplerate": draft.samplerate, "channels": draft.channels, "subtype": self._subtype}
            with soundfile.SoundFile(native(path), "w", format=kind, **options) as target:
                for block in draft.blocks(2**18, dtype="float32"):
                    # Rounding may pass full scale.
                    target.write(np.clip(gain * block, -1, 1) if gain < 1 else block)


#: Name of the file of noise, without its suffix; stems have other names.
_NOISE = "noise"

#: Bytes of samples that the header of a WAV file can tell.
_LARGEST_WAV = 2**32 - 2**16


def _draft(path):
    return path.parent / f".{path.name}.draft"

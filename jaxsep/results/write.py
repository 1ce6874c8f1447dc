"""What a separation leaves in its folder, of recordings in memory and of those that come part by part."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import soundfile

from jaxsep.audio import Recording
from jaxsep.notes.formats import write_note_files
from jaxsep.notes.notes import find_notes
from jaxsep.progress import Progress
from jaxsep.report.plots import overview
from jaxsep.results.document import separation_document, to_json, write_tones
from jaxsep.separation.result import Separation

__all__ = ["Tracks", "write_findings", "write_parts", "write_separation"]


def write_separation(
    folder: Path,
    mixture: np.ndarray,
    separation: Separation,
    audio: tuple[str, str],
    progress: Progress,
    **about: Any,
) -> dict[str, Any]:
    """Writes everything that was found in a recording, and returns the JSON document.

    Arguments:
        folder: an existing one.
        mixture: `[channels, samples]`.
        separation: of it.
        audio: suffix of the tracks, and their sample format.
        progress: who listens.
        about: further arguments of `separation_document`.
    """
    tracks = write_tracks(folder, mixture, separation, *audio)
    with progress.stage("overview", 1):
        overview(separation, mixture, separation.sample_rate, folder / "overview.png")
        progress.advance("overview")
    return write_findings(folder, separation, tracks, **about)


def write_findings(
    folder: Path, separation: Separation, tracks: dict[str, Any], **about: Any
) -> dict[str, Any]:
    """Writes dictionary, tones, notes and the JSON document, and returns it.

    Arguments:
        folder: an existing one.
        separation: of the whole recording.
        tracks: what the document says of the audio files.
        about: further arguments of `separation_document`.
    """
    document = separation_document(separation, **about) | tracks
    separation.dictionary.save(folder / "dictionary.npz")
    write_tones(folder / "tones.csv", separation)
    notes = find_notes(separation.tones, separation.times, separation.dictionary)
    write_note_files(folder, notes, separation.dictionary.num_instruments)
    (folder / "separation.json").write_text(to_json(document), encoding="utf-8")
    return document


def write_parts(
    folder: Path, recording: Path, parts: Iterable[Separation], audio: tuple[str, str], **about: Any
) -> dict[str, Any]:
    """Writes the results of `separate_parts` as they come, and returns the JSON document.

    Only tones are kept of all parts, 0.1 MB for each minute. The picture is that of the first part.

    Arguments:
        folder: an existing one.
        recording: the file that is separated.
        parts: its parts, in order.
        audio: suffix of the tracks, and their sample format.
        about: further arguments of `separation_document`.
    """
    done, first, at = [], None, 0
    with Recording(recording) as source:
        rate = source.sample_rate
        parts = iter(parts)
        first = next(parts)
        shape = (len(first.stems), source.num_channels, source.num_samples)
        with Tracks(folder, shape[0], rate, *audio) as tracks:
            part: Separation | None = first
            while part is not None:
                length = part.stems.shape[-1]
                mixture = source.read(at, at + -(-length // rate))[:, :length]
                tracks.append(mixture, part.stems)
                if at == 0 and mixture.any():
                    overview(first, mixture, rate, folder / "overview.png")
                at += length // rate
                # Not a slice, which would keep the stems in memory.
                empty = np.zeros((*shape[:2], 0), np.float32)
                done.append(eqx.tree_at(lambda p: p.stems, part, empty))
                part = next(parts, None)
    return write_findings(folder, _joined(done), tracks.written, shape=shape, **about)


def _joined(parts):
    """The findings of all parts as those of one; times of their stages are added up."""
    join = lambda *x: np.concatenate(x)
    seconds: dict[str, float] = {}
    for part in parts:
        for name, value in part.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + value
    return Separation(
        stems=parts[0].stems,
        sample_rate=parts[0].sample_rate,
        tones=jax.tree.map(join, *[part.tones for part in parts]),
        times=join(*[part.times for part in parts]),
        dictionary=parts[0].dictionary,
        loss=join(*[part.loss for part in parts]),
        confidence=join(*[part.confidence for part in parts]),
        cost_trace=parts[0].cost_trace,
        restart_losses=parts[0].restart_losses,
        seconds=seconds,
    )


def write_tracks(
    folder: Path, samples: np.ndarray, separation: Separation, suffix: str, subtype: str
) -> dict[str, Any]:
    """Writes the mixture `[samples]` or `[channels, samples]` and the stems; see `Tracks`."""
    with Tracks(folder, len(separation.stems), separation.sample_rate, suffix, subtype) as tracks:
        tracks.append(samples, separation.stems)
    return tracks.written


class Tracks:
    """Context manager that writes mixture and stems, in one piece or in many.

    Integers cannot hold more than full scale, which a stem may exceed where others cancel it: all tracks are
    then lowered alike, when the last piece is known.

    Arguments:
        folder: an existing one.
        num_instruments: how many stems there are.
        sample_rate: in Hz.
        suffix, subtype: as for `write_audio`.

    Afterwards `written` is what the document says of them: the names `mixture` and `stems`, and the `gain` in
    dB.
    """

    def __init__(self, folder: Path, num_instruments: int, sample_rate: int, suffix: str, subtype: str):
        names = ["mixture", *(f"stem-{number}" for number in range(1, num_instruments + 1))]
        self._paths = [folder / f"{name}{suffix}" for name in names]
        self._rate, self._subtype = sample_rate, subtype
        self._drafts: list[soundfile.SoundFile] = []
        self._peak = 0.0
        self.written: dict[str, Any] = {}

    def __enter__(self) -> "Tracks":
        return self

    def append(self, mixture: np.ndarray, stems: np.ndarray) -> None:
        """A piece of the mixture, `[samples]` or `[channels, samples]`, and of the stems."""
        tracks = [np.atleast_2d(track) for track in (mixture, *stems)]
        if not self._drafts:
            options = {"samplerate": self._rate, "channels": len(tracks[0]), "subtype": "FLOAT"}
            self._drafts = [
                soundfile.SoundFile(_draft(path), "w", format="RF64", **options) for path in self._paths
            ]
        for draft, track in zip(self._drafts, tracks, strict=True):
            self._peak = max(self._peak, float(np.abs(track).max()))
            draft.write(track.T)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for draft in self._drafts:
            draft.close()
        gain = 1.0 if self._subtype == "FLOAT" or self._peak <= 1 else 1 / self._peak
        if kind is None:
            for path in self._paths:
                self._convert(path, gain)
        for path in self._paths:
            _draft(path).unlink(missing_ok=True)
        mixture, *stems = (path.name for path in self._paths)
        decibels = round(20 * float(np.log10(gain)), 3)
        self.written = {"mixture": mixture, "stems": stems, "gain_db": decibels}

    def _convert(self, path, gain):
        with soundfile.SoundFile(_draft(path)) as draft:
            # What is longer than WAV can say is RF64, which most programs read as well.
            large = path.suffix == ".wav" and draft.frames * draft.channels * 4 > _LARGEST_WAV
            kind = "RF64" if large else path.suffix[1:].upper()
            options = {"samplerate": self._rate, "channels": draft.channels, "subtype": self._subtype}
            with soundfile.SoundFile(path, "w", format=kind, **options) as target:
                for block in draft.blocks(2**18, dtype="float32"):
                    # Rounding may pass full scale.
                    target.write(np.clip(gain * block, -1, 1) if gain < 1 else block)


#: Bytes of samples that the header of a WAV file can tell.
_LARGEST_WAV = 2**32 - 2**16


def _draft(path):
    return path.parent / f".{path.name}.draft"

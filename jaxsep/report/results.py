"""What a separation leaves in its folder, of recordings in memory and of those that come part by part."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from jaxsep.progress import Progress
from jaxsep.recording import Recording
from jaxsep.report.exports import write_note_files
from jaxsep.report.folder import Tracks, write_tracks
from jaxsep.report.notes import find_notes
from jaxsep.report.plots import overview
from jaxsep.report.tables import separation_document, to_json, write_tones
from jaxsep.separators.separation import Separation

__all__ = ["write_findings", "write_parts", "write_separation"]


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

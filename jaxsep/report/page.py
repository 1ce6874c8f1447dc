"""The listening page: one HTML file that needs nothing else."""

import base64
import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import soundfile
from jaxtyping import Float
from PIL import Image

from jaxsep.audio import loudest_alone, mono, resample
from jaxsep.notes.note import Note
from jaxsep.progress import Progress
from jaxsep.report.spectrograms import RANGE, audible_bins, levels
from jaxsep.results.document import evaluation_document
from jaxsep.results.read import Results, read_results
from jaxsep.signal.axes import LogAxis

__all__ = ["encoded_tracks", "listening_page", "page_template", "write_page"]

#: Bytes of audio up to which it is embedded without loss, in 16 bits.
_LOSSLESS_BYTES = 5_500_000

#: The rates of MP3 in Hz.
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)

#: The largest rate of FLAC in Hz, and the channels that a page plays.
_LARGEST_FLAC_RATE, _MAX_PLAYED = 655_350, 2

#: A residual is silence if it is further below the mixture, in dB.
_SILENCE = -70

#: Semitones shown beyond the lowest and the highest note.
_MARGIN = 3


def write_page(
    folder: Path,
    target: Path,
    truth: np.ndarray | None,
    names: Sequence[str],
    progress: Progress,
) -> dict[str, Any] | None:
    """Writes the listening page of a folder of results, and returns the figures that it shows, if any.

    Arguments:
        folder: as `jaxsep separate` wrote it.
        target: file of the page.
        truth: true stems `[instruments, samples]`, against which the stems are then measured.
        names: of the true stems.
        progress: who listens.
    """
    with progress.stage("report", 1) as advance:
        results, scores = read_results(folder), None
        if truth is not None:
            stems = np.stack([mono(stem) for stem in results.stems])[:, : truth.shape[1]]
            scores = evaluation_document(
                truth,
                stems,
                names,
                results.document["stems"],
                sample_rate=results.sample_rate,
                mixture=mono(results.mixture)[: truth.shape[1]],
            )
        target.write_text(listening_page(results, scores), encoding="utf-8", errors="backslashreplace")
        advance()
    return scores


def listening_page(results: Results, scores: dict[str, Any] | None = None) -> str:
    """The text of an HTML page with players, spectrograms, notes and figures of a separation.

    It holds its audio and pictures, loads nothing and calls nowhere. Up to half a minute of a mono duet, the
    audio is embedded as FLAC, otherwise as MP3, which keeps the players as exactly together.

    Arguments:
        results: as `read_results` returns them.
        scores: document of the evaluation of the stems against true ones, as `evaluation_document` makes it.
    """
    notes = results.notes
    mixture = levels(results.mixture, results.sample_rate, "log")
    bins = _band(results, mixture)
    residual = results.mixture - results.stems.sum(axis=0)
    is_silent = _rms(residual) <= _rms(results.mixture) * 10 ** (_SILENCE / 20)
    tracks = [_track("mixture", "Mixture", "0", mixture)]
    for number, stem in enumerate(results.stems):
        values = levels(stem, results.sample_rate, "log")
        name = results.names[number]
        tracks.append(_track("stem", name[:1].upper() + name[1:], str(number + 1), values, number))
    samples = [results.mixture, *results.stems]
    if not is_silent:
        name = "Residual" if results.noise is None else "Noise"
        tracks.append(_track("residual", name, "R", levels(residual, results.sample_rate, "log")))
        samples.append(residual)
    media, audio = encoded_tracks(samples, results.sample_rate)
    for track, data in zip(tracks, audio, strict=True):
        track["audio"] = data
        track["picture"] = _picture(track.pop("levels"), float(mixture.max()), bins)
    duration = results.mixture.shape[1] / results.sample_rate
    return page_template("page.html").render(
        document=results.document,
        duration=duration,
        tracks=tracks,
        media=media,
        is_silent=is_silent,
        rest="residual" if results.noise is None else "noise",
        harmonics=np.asarray(results.dictionary.harmonics).tolist(),
        names=results.names,
        file=shlex.quote(results.document["input"]["file"]),
        num_notes=len(notes),
        scores=scores,
        figure=lambda value: "—" if value is None else f"{value:.1f}",
        data=_data(results, tracks, notes, duration, bins),
        edge=50 / max(1, len(mixture) - 1),
    )


def _band(results, mixture):
    """First and last bin shown: from below the lowest fundamental to the eighth harmonic of the highest."""
    low, high = audible_bins(mixture)
    active = np.asarray(results.tones.active)
    if not active.any():
        return low, high
    axis = LogAxis()
    octave = axis.bins_per_neper * np.log(2)
    heard = axis.to_bin(np.asarray(results.tones.fundamental)[active])
    # A few stray tones are no reason to show an empty octave.
    lowest, highest = np.percentile(heard, [1, 99])
    return max(low, int(lowest - octave / 2)), min(high, int(highest + 3 * octave))


def _track(kind, name, key, values, instrument=None):
    return {"kind": kind, "name": name, "key": key, "instrument": instrument, "levels": values}


def _rms(samples):
    return float(np.sqrt(np.mean(np.square(samples, dtype=float))))


def page_template(name: str) -> jinja2.Template:
    """A template of this package."""
    loader = jinja2.PackageLoader("jaxsep.report", "template")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def encoded_tracks(
    tracks: Sequence[Float[np.ndarray, "channels samples"]], sample_rate: int
) -> tuple[str, list[str]]:
    """Media type, and each track in base64: without loss where all together are short, else as MP3."""
    if len(tracks[0]) > _MAX_PLAYED:  # channels, of all tracks alike
        loudest = loudest_alone(tracks[0])
        take = slice(None) if loudest is None else [loudest]
        tracks = [samples[take].mean(axis=0, keepdims=True) for samples in tracks]
    # Stems can be louder than the mixture; one factor for all keeps them comparable.
    peak = max(1.0, *(float(np.abs(samples).max()) for samples in tracks))
    tracks = [(samples / peak).astype(np.float32) for samples in tracks]
    lossless = sample_rate <= _LARGEST_FLAC_RATE
    encoded = [_written(samples, sample_rate, "FLAC", "PCM_16") for samples in tracks] if lossless else []
    media = "audio/flac"
    if not lossless or sum(map(len, encoded)) > _LOSSLESS_BYTES:
        rate = sample_rate if sample_rate in _MP3_RATES else 48000
        tracks = [resample(samples, sample_rate, rate) for samples in tracks]
        encoded = [_written(np.clip(samples, -1, 1), rate, "MP3", "MPEG_LAYER_III") for samples in tracks]
        media = "audio/mpeg"
    return media, [base64.b64encode(data).decode("ascii") for data in encoded]


def _written(samples, sample_rate, kind, subtype):
    file = io.BytesIO()
    soundfile.write(file, samples.T, sample_rate, format=kind, subtype=subtype)
    return file.getvalue()


def _picture(values, top, bins):
    """Levels relative to `top` as a picture in base64: loud is black, high is up."""
    shown = np.clip(1 + (values[:, bins[0] : bins[1] + 1] - top) / RANGE, 0, 1)
    file = io.BytesIO()
    Image.fromarray(np.uint8(np.round(255 * (1 - shown.T[::-1])))).save(file, "WEBP", quality=70, method=4)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _data(results: Results, tracks: Sequence[dict], notes: Sequence[Note], duration: float, bins) -> dict:
    """What the script of the page draws and plays, as values for JSON."""
    edges = LogAxis().to_hz(np.array([bins[0] - 0.5, bins[1] + 0.5]))
    pitches = [note.pitch for note in notes] or [60.0]
    return {
        "duration": duration,
        "rate": results.sample_rate,
        "names": results.names,
        "band": [float(edge) for edge in edges],
        "kinds": [track["kind"] for track in tracks],
        "tones": [_fundamentals(results, n) for n in range(results.dictionary.num_instruments)],
        "notes": [_note(note) for note in notes],
        "rests": [],
        "keys": [round(min(pitches)) - _MARGIN, round(max(pitches)) + _MARGIN],
    }


def _fundamentals(results, instrument):
    """Times in seconds and frequencies in Hz of the tones of an instrument."""
    tones = results.tones
    amplitude = np.where(tones.active, tones.amplitude, 0)
    heard = amplitude > 10 ** (-RANGE / 20) * amplitude.max(initial=0)
    frame, slot = np.nonzero(heard & (np.asarray(tones.instrument) == instrument))
    time, frequency = results.times[frame], np.asarray(tones.fundamental)[frame, slot]
    return {"time": [round(float(x), 3) for x in time], "hz": [round(float(x), 1) for x in frequency]}


def _note(note):
    return {
        "instrument": note.instrument,
        "onset": round(note.onset, 4),
        "offset": round(note.offset, 4),
        "pitch": round(note.pitch, 2),
        "level": round(note.level, 1),
        "confidence": note.confidence,
        "held": False,
        "times": [round(float(x), 3) for x in note.times],
        "bend": [round(float(x), 2) for x in note.bend],
    }

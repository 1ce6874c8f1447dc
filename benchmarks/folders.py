"""Folders of recordings with their true stems, recognised by the names of their files."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from benchmarks.common import Piece
from jaxsep.audio import mono, read_audio
from jaxsep.notes.reading import read_notes

#: Suffixes of recordings.
_AUDIO = {".wav", ".flac", ".aif", ".aiff", ".ogg", ".mp3", ".m4a", ".opus"}

#: What a mixture is called, alone or after the name of the piece.
_MIX = re.compile(r"^(?:(?P<piece>.+?)[-_ ]+)?(?:mix|mixture|full[-_ ]?mix)$", re.IGNORECASE)

#: URMP: AuMix_01_Jupiter_vn_vc.wav, AuSep_1_vn_01_Jupiter.wav, Notes_1_vn_01_Jupiter.txt.
_URMP_MIX, _URMP_STEM = re.compile(r"^AuMix_(?P<piece>.+)$"), re.compile(r"^AuSep_(?P<part>\d+_[^_]+)_.+$")

#: Folders of a piece that hold its stems: SynthSOD has one for each microphone, of which it uses the tree.
_STEM_FOLDERS = ("Tree", "stems", "stems_audio")

#: How much longer than another a recording may be.
_TOLERANCE = 0.01


class Found(NamedTuple):
    """A piece of a folder.

    - `name`: unique in the folder.
    - `layout`: what it was recognised as.
    - `mixture`: its file, or None: it is the sum of the stems.
    - `stems`: file of each instrument by its name.
    - `notes`: files of notes by the names of the instruments, or one file of all under "".
    """

    name: str
    layout: str
    mixture: Path | None
    stems: dict[str, Path]
    notes: dict[str, Path]

    def of(self, instruments: Sequence[str]) -> "Found":
        """Some of its instruments, whose sum is the mixture."""
        chosen = {name: self.stems[name] for name in instruments}
        notes = {name: path for name, path in self.notes.items() if name in (*instruments, "")}
        return Found(f"{self.name} ({', '.join(instruments)})", self.layout, None, chosen, notes)


def find_pieces(folder: Path, voices: Sequence[int] = ()) -> list[Found]:
    """The pieces in a folder and the folders in it, by name.

    Recognised are, by the names of their files,

    - URMP: `AuMix_*`, `AuSep_*` and `Notes_*`;
    - Bach10: `01-Name.wav` beside `01-Name-violin.wav` and others, one piece in a folder or many;
    - MUSDB: `mixture` beside `vocals`, `bass`, `drums` and `other`;
    - SynthSOD: a folder `Tree` of stems without a mixture (`stems` is read likewise, with a mixture above);
    - `mix` or `mixture`, alone or after the name of a piece, beside the stems;
    - stems alone: a folder of at least two recordings, whose sum is the mixture.

    Arguments:
        folder: what to look through.
        voices: numbers of instruments; instead of each piece all choices of so many of its stems, such as the
            duets and trios of a quartet.

    Raises: `SystemExit`, one sentence, for something else than a folder, and for one without any piece.
    """
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not a folder; name one of recordings with their true stems.")
    found = sorted(_walk(folder, folder), key=lambda piece: piece.name)
    if voices:
        found = [
            piece if size == len(piece.stems) else piece.of(chosen)
            for piece in found
            for size in voices
            for chosen in itertools.combinations(piece.stems, size)
        ]
    if not found:
        wanted = f"with {' or '.join(map(str, voices))} or more stems" if voices else "with its stems"
        raise SystemExit(
            f"{folder} holds no piece {wanted}: expected mix.wav and a file for each instrument, "
            "as in Bach10, URMP, MUSDB or SynthSOD, or stems alone."
        )
    return found


def load(piece: Found, seconds: float | None = None) -> Piece:
    """The samples of a piece, averaged over channels and cut to one length, or its first `seconds`.

    Stems that are silent there are left out. Without a mixture of its own the piece has the sum of the stems.

    Raises: `ValueError`, one sentence, for files that cannot be read or do not belong together, and for fewer
    than two stems that sound.
    """
    paths = {**piece.stems, **({} if piece.mixture is None else {"": piece.mixture})}
    tracks, rates = {}, {}
    for name, path in paths.items():
        samples, rates[name] = read_audio(path, allow_silence=True)
        end = None if seconds is None else round(seconds * rates[name])
        tracks[name] = mono(samples[:, :end])
    first = next(iter(paths))
    for name, path in paths.items():
        if rates[name] != rates[first]:
            raise ValueError(
                f"{path} has {rates[name]} samples per second, expected {rates[first]} as {paths[first]} has."
            )
        if abs(tracks[name].size - tracks[first].size) > _TOLERANCE * tracks[first].size:
            sizes = f"{tracks[name].size} samples, expected {tracks[first].size}"
            raise ValueError(f"{path} has {sizes} as {paths[first]} has.")
    length = min(track.size for track in tracks.values())
    tracks = {name: track[:length] for name, track in tracks.items()}
    mixture = tracks.pop("", None)
    stems = {name: track for name, track in tracks.items() if np.any(track)}
    if len(stems) < 2:
        raise ValueError(f"{piece.name} has {len(stems)} stems that sound, expected at least 2.")
    every = np.stack(list(stems.values()))
    return Piece(
        piece.name, tuple(stems), every.sum(axis=0) if mixture is None else mixture, every, rates[first]
    )


def played_notes(piece: Found) -> dict[str, Float[np.ndarray, "notes 3"]]:
    """Onset and duration in seconds and MIDI pitch of what each instrument plays; empty without notes.

    Raises: `ValueError`, one sentence, for a file that holds no notes.
    """
    if (path := piece.notes.get("")) is None:
        return {name: _urmp_notes(path) for name, path in piece.notes.items() if name in piece.stems}
    if path.name == "meta.json":
        listed = {stem["name"]: stem.get("notes") for stem in _meta(path)}
        return {name: np.array(listed[name]) for name in piece.stems if listed.get(name)}
    score = read_notes(path)
    names = [name.casefold() for name in score.names]
    numbers = {name: names.index(name.casefold()) for name in piece.stems if name.casefold() in names}
    if not numbers and len(names) == len(piece.stems):
        numbers = dict(zip(piece.stems, range(len(names)), strict=True))  # none is called as its file
    rows = lambda number: [
        (note.onset, note.offset - note.onset, note.pitch)
        for note in score.notes
        if note.instrument == number
    ]
    return {name: np.array(rows(number)).reshape(-1, 3) for name, number in numbers.items()}


def _walk(folder: Path, root: Path) -> Iterator[Found]:
    """Pieces of a folder, or else of those in it; a folder that holds some is not entered."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    audio = {path.stem: path for path in files if path.suffix.lower() in _AUDIO}
    name = folder.resolve().name if folder == root else folder.relative_to(root).as_posix()
    pieces = list(_pieces_of(folder, name, audio, files))
    if pieces:
        inside = "" if folder == root or len(pieces) == 1 else f"{name}/"
        yield from (piece._replace(name=inside + piece.name) for piece in pieces)
        return
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        yield from _walk(path, root)


def _pieces_of(folder, name, audio, files):
    """What the files of one folder are, by the first layout that they fit."""
    for stems in (folder / stems for stems in _STEM_FOLDERS):
        inside = {p.stem: p for p in sorted(stems.glob("*")) if p.suffix.lower() in _AUDIO}
        if len(inside) > 1:
            mixed = [path for stem, path in audio.items() if _MIX.match(stem)]
            layout = "SynthSOD" if stems.name == "Tree" else "a folder of stems"
            return [Found(name, layout, mixed[0] if mixed else None, inside, _notes_in(files))]
    urmp = {match["part"]: audio[s] for s in audio if (match := _URMP_STEM.match(s))}
    if len(urmp) > 1:
        mixed = [audio[stem] for stem in audio if _URMP_MIX.match(stem)]
        texts = {path.stem: path for path in files if path.suffix == ".txt"}
        notes = {
            part: texts[written]
            for part, path in urmp.items()
            if (written := path.stem.replace("AuSep_", "Notes_", 1)) in texts
        }
        return [Found(name, "URMP", mixed[0] if mixed else None, urmp, notes)]
    plain = [stem for stem in audio if (match := _MIX.match(stem)) and not match["piece"]]
    stems = {stem: path for stem, path in audio.items() if stem not in plain}
    if not plain and (named := list(_named_pieces(audio))):
        return [
            Found(name if len(named) == 1 else piece, "Bach10", mixture, stems, _notes_in(files, piece))
            for piece, mixture, stems in named
        ]
    if len(stems) < 2:
        return []
    if not plain:
        return [Found(name, "stems alone", None, stems, _notes_in(files))]
    musdb = plain == ["mixture"] and set(stems) <= {"vocals", "bass", "drums", "other", "accompaniment"}
    stems = {stem: path for stem, path in stems.items() if not (musdb and stem == "accompaniment")}
    return [Found(name, "MUSDB" if musdb else "mix and stems", audio[plain[0]], stems, _notes_in(files))]


def _named_pieces(audio):
    """Pieces whose files begin with their names: `piece` or `piece-mix`, and `piece-instrument`."""
    for stem, path in audio.items():
        match = _MIX.match(stem)
        piece = match["piece"] if match else stem
        if not piece:
            continue
        parts = {s: re.match(rf"^{re.escape(piece)}[-_ ]+(.+)$", s) for s in audio if s != stem}
        stems = {m[1]: audio[s] for s, m in parts.items() if m and not _MIX.match(s)}
        if len(stems) > 1:
            yield piece, path, stems


def _notes_in(files, piece=None):
    """The file of notes of a piece, if there is one that this package reads."""
    wanted = ("meta.json", "notes.csv", "notes.mid", *(f"{piece}{suffix}" for suffix in (".csv",) if piece))
    chosen = [path for path in files if path.name in wanted]
    return {"": chosen[0]} if chosen else {}


def _meta(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))["stems"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not the description of a piece.") from None


def _urmp_notes(path):
    """Rows of onset in seconds, frequency in Hz and duration in seconds."""
    try:
        rows = np.loadtxt(path, ndmin=2)
        onset, hertz, duration = rows.T
    except (OSError, ValueError):
        raise ValueError(f"{path} is not a table of onsets, frequencies and durations.") from None
    return np.stack([onset, duration, 69 + 12 * np.log2(hertz / 440)], axis=1)

"""Render the demo duet that ships with the package.

The score is public domain: bars 1-8 of the Minuet in G major, BWV Anh. 114, from the Notebook for Anna
Magdalena Bach (1725), by Christian Petzold (d. 1733), long attributed to J. S. Bach. Two reductions keep each
voice monophonic: the chord of bar 1 is its lowest note, and the ornaments are left out.

Needs FluidSynth and the FluidR3 GM soundfont (MIT licence), the Debian packages `fluidsynth` and
`fluid-soundfont-gm`. From the repository root:

    python benchmarks/render_demo.py [--out FOLDER] [--soundfont FILE]

The irregularities of timing and loudness are seeded, and each instrument is rendered alone, dry and in
floating point, so one version of FluidSynth gives the same files every time.
"""

import argparse
import json
import random
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 44100
BEAT = 0.39  # seconds, 154 quarter notes per minute
LEAD_IN = 0.1  # seconds before the first beat
TAIL = 0.2  # seconds after the last note, for its release
FADE = 0.05  # seconds at the very end over which a release is faded to nothing
PEAK = 0.85
SEED = 114
SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
DEMO_FOLDER = Path(__file__).resolve().parent.parent / "jaxsep" / "data" / "demo"

# One line is one or two bars; a note is its name and its length in quarters (1 where none is given).
UPPER = """
    D5 G4:½ A4:½ B4:½ C5:½    D5 G4 G4
    E5 C5:½ D5:½ E5:½ F#5:½   G5 G4 G4
    C5 D5:½ C5:½ B4:½ A4:½    B4 C5:½ B4:½ A4:½ G4:½
    F#4 G4:½ A4:½ B4:½ G4:½   A4:3
"""
LOWER = """
    G3:2 A3   B3:3
    C4:3      B3:3
    A3:3      G3:3
    D4 B3 G3  D4 D3:½ C4:½ B3:½ A3:½
"""
LENGTHS = {"½": 0.5, "": 1.0, "2": 2.0, "3": 3.0}
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


@dataclass(frozen=True)
class Part:
    """One voice: the stem's name, its General MIDI program (counted from 0) and its score."""

    name: str
    program: int
    score: str


PARTS = (Part("recorder", 74, UPPER), Part("clarinet", 71, LOWER))


@dataclass(frozen=True)
class Note:
    """One played note, its times in milliseconds, the tick of the MIDI file."""

    onset: int
    duration: int
    pitch: int
    velocity: int


def midi_pitch(name: str) -> int:
    """MIDI number of a note name such as `F#4` (C4 is 60)."""
    return 12 * (int(name[-1]) + 1) + SEMITONES[name[0]] + name.count("#")


def perform(score: str, rng: random.Random) -> list[Note]:
    """The notes as played: up to 10 ms early or late, slightly detached, of slightly varying loudness."""
    notes, beat = [], 0.0
    for token in score.split():
        name, _, length = token.partition(":")
        quarters = LENGTHS[length]
        onset = LEAD_IN + BEAT * beat + rng.uniform(-0.01, 0.01)
        duration = BEAT * quarters - rng.uniform(0.02, 0.035)
        velocity = 92 + rng.randrange(-8, 9)
        notes.append(Note(round(1000 * onset), round(1000 * duration), midi_pitch(name), velocity))
        beat += quarters
    return notes


def variable_length(number: int) -> bytes:
    """A number as Standard MIDI Files write time differences: seven bits per byte, most significant first."""
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(number & 0x7F | 0x80)
    return bytes(reversed(groups))


def midi_file(notes: list[Note], program: int) -> bytes:
    """A Standard MIDI File of format 0 whose tick is one millisecond."""
    events = [(0, bytes([0xFF, 0x51, 3]) + (500_000).to_bytes(3, "big")), (0, bytes([0xC0, program]))]
    for note in notes:
        events.append((note.onset, bytes([0x90, note.pitch, note.velocity])))
        events.append((note.onset + note.duration, bytes([0x80, note.pitch, 0])))
    events.sort(key=lambda event: event[0])
    events.append((events[-1][0] + 1000, bytes([0xFF, 0x2F, 0])))  # late enough to render the release
    track, now = b"", 0
    for time, message in events:
        track += variable_length(time - now) + message
        now = time
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, 500)  # 500 ticks per quarter of 500 ms
    return header + struct.pack(">4sI", b"MTrk", len(track)) + track


def render(notes: list[Note], program: int, soundfont: Path) -> np.ndarray:
    """Mono samples of one part, with neither reverberation nor chorus."""
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder, "part.mid"), Path(folder, "part.wav")
        midi.write_bytes(midi_file(notes, program))
        options = ["-q", "-n", "-i", "-R", "0", "-C", "0", "-g", "0.5", "-r", str(SAMPLE_RATE)]
        output = ["-T", "wav", "-O", "float", "-F", str(wav)]
        subprocess.run(["fluidsynth", *options, *output, str(soundfont), str(midi)], check=True)
        samples, rate = soundfile.read(wav, always_2d=True)
    if rate != SAMPLE_RATE:
        raise RuntimeError(f"FluidSynth rendered at {rate} Hz, expected {SAMPLE_RATE} Hz")
    return samples.mean(axis=1)


def trim(samples: np.ndarray, num_samples: int) -> np.ndarray:
    """The first `num_samples` samples, padded if there are fewer, faded out at the end."""
    trimmed = np.zeros(num_samples)
    trimmed[: len(samples)] = samples[:num_samples]
    fade = round(FADE * SAMPLE_RATE)
    trimmed[-fade:] *= np.cos(np.linspace(0, np.pi / 2, fade)) ** 2
    return trimmed


def balance(stems: list[np.ndarray]) -> list[np.ndarray]:
    """16-bit stems of equal RMS whose sum peaks at `PEAK`."""
    levelled = [stem / np.sqrt(np.mean(stem**2)) for stem in stems]
    gain = PEAK * 2**15 / np.max(np.abs(sum(levelled)))
    return [np.rint(gain * stem).astype(np.int16) for stem in levelled]


def description(performances: list[list[Note]]) -> dict:
    """Origin of the recording and every played note as [onset s, duration s, MIDI pitch]."""
    stems = [
        {
            "name": part.name,
            "source": f"FluidR3 GM, program {part.program} (counted from 0)",
            "notes": [[note.onset / 1000, note.duration / 1000, note.pitch] for note in notes],
        }
        for part, notes in zip(PARTS, performances, strict=True)
    ]
    return {
        "name": "minuet_recorder_clarinet",
        "score": "Christian Petzold (attributed to J. S. Bach), Minuet in G major, BWV Anh. 114, bars 1-8",
        "score_licence": "public domain",
        "soundfont": "FluidR3 GM, copyright Frank Wen (Debian package fluid-soundfont-gm)",
        "soundfont_licence": "MIT",
        "sample_rate": SAMPLE_RATE,
        "stems": stems,
    }


def write_demo(folder: Path, soundfont: Path) -> None:
    """Render all parts and write `mix.flac`, one file per part and `meta.json`."""
    rng = random.Random(SEED)
    performances = [perform(part.score, rng) for part in PARTS]
    end = max(note.onset + note.duration for notes in performances for note in notes) / 1000 + TAIL
    rendered = [
        trim(render(notes, part.program, soundfont), round(end * SAMPLE_RATE))
        for part, notes in zip(PARTS, performances, strict=True)
    ]
    stems = balance(rendered)
    folder.mkdir(parents=True, exist_ok=True)
    for part, stem in zip(PARTS, stems, strict=True):
        soundfile.write(folder / f"{part.name}.flac", stem, SAMPLE_RATE, subtype="PCM_16")
    soundfile.write(folder / "mix.flac", sum(stems), SAMPLE_RATE, subtype="PCM_16")
    text = json.dumps(description(performances))
    (folder / "meta.json").write_text(text + "\n", encoding="utf-8")


def read_arguments(about: str, out: Path, help_: str) -> argparse.Namespace:
    """`out` and `soundfont` of a script that renders; ends the process where anything for it is missing."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--out", type=Path, default=out, help=f"{help_} (%(default)s)")
    parser.add_argument("--soundfont", type=Path, default=SOUNDFONT, help="FluidR3_GM.sf2 (%(default)s)")
    arguments = parser.parse_args()
    if shutil.which("fluidsynth") is None:
        parser.error("fluidsynth is not installed")
    if not arguments.soundfont.is_file():
        parser.error(f"{arguments.soundfont} does not exist; install fluid-soundfont-gm or name the file")
    return arguments


def main() -> None:
    """Command line."""
    arguments = read_arguments(__doc__, DEMO_FOLDER, "folder of the files")
    write_demo(arguments.out, arguments.soundfont)


if __name__ == "__main__":
    main()

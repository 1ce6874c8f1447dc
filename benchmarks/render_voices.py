"""Render other pieces from the voices of the corpus: what was chosen on a few should hold for more.

Needs FluidSynth and the FluidR3 GM soundfont (MIT licence), the Debian packages `fluidsynth` and
`fluid-soundfont-gm`, and the corpus (`JAXSEP_CORPUS`). From the repository root:

    python -m benchmarks.render_voices [--out FOLDER] [--soundfont FILE]
    JAXSEP_CORPUS=FOLDER python -m benchmarks corpus

Each piece has voices of one score, played by other instruments, dry or in a room: with reverberation, a faint
noise, and a long rest of each instrument. Velocities, rooms and noise are seeded.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from scipy.signal import butter, fftconvolve, sosfilt

from benchmarks.common import RESULTS, played_notes
from benchmarks.render_demo import SAMPLE_RATE, Note, balance, read_arguments, render, trim
from benchmarks.render_instruments import KINDS

SECONDS = 24.0

#: Seconds until reverberation has fallen by 60 dB, and its level and that of the noise in dB.
T60, REVERBERATION, NOISE = 0.65, -8.0, -38.0

#: Seconds that each instrument rests in a room, when the first begins, and how much later each of the others.
REST, FIRST, LATER = 6.0, 4.0, 7.0


class Voice(NamedTuple):
    """A voice of a piece of the corpus, by its number, who plays it, and how many semitones higher."""

    piece: str
    number: int
    instrument: str
    higher: int = 0


K80, K155, DUETS = "k80_string_quartet", "k155_wind_quartet", "k487_01_trumpet_cello"
INVENTION, SINFONIA = "bwv784_violin_cello", "bwv794_violin_clarinet_bassoon"

DRY = {
    "flute_horn": (Voice(DUETS, 0, "flute", 5), Voice(DUETS, 1, "horn")),
    "clarinet_cello": (Voice(K80, 0, "clarinet"), Voice(K80, 3, "cello")),
    "violin_trombone": (Voice(K155, 0, "violin"), Voice(K155, 3, "trombone")),
    "trumpet_bassoon": (Voice(INVENTION, 0, "trumpet"), Voice(INVENTION, 1, "bassoon")),
    "violin_oboe": (Voice("corelli_two_violins", 0, "violin"), Voice("corelli_two_violins", 1, "oboe")),
    "flute_violin_cello": tuple(Voice(SINFONIA, n, k) for n, k in enumerate(("flute", "violin", "cello"))),
    "oboe_clarinet_bassoon": tuple(
        Voice(K80, n, k) for n, k in ((0, "oboe"), (1, "clarinet"), (3, "bassoon"))
    ),
    "flute_violin_clarinet_cello": tuple(
        Voice(K80, n, k) for n, k in enumerate(("flute", "violin", "clarinet", "cello"))
    ),
    "violin_oboe_horn_bassoon": tuple(
        Voice(K155, n, k) for n, k in enumerate(("violin", "oboe", "horn", "bassoon"))
    ),
}
ROOMS = {
    "flute_clarinet_room": (Voice(K80, 1, "flute"), Voice(K80, 2, "clarinet")),
    "violin_cello_room": (Voice(K155, 1, "violin"), Voice(K155, 3, "cello")),
    "violin_viola_cello_room": tuple(
        Voice(K155, n, k) for n, k in ((0, "violin"), (2, "viola"), (3, "cello"))
    ),
}


def performed(voice: Voice, rest: float | None, rng: np.random.Generator) -> list[Note]:
    """The notes of a voice, without those that reach into a rest that begins then."""
    notes = []
    for onset, duration, pitch in list(played_notes(voice.piece).values())[voice.number]:
        resting = rest is not None and onset < rest + REST and onset + duration > rest
        if onset + duration < SECONDS - 0.3 and not resting:
            times = round(1000 * onset), round(1000 * duration)
            notes.append(Note(*times, int(pitch) + voice.higher, int(rng.integers(68, 104))))
    return notes


def in_a_room(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A sound with a reverberation of its own, as long as it was."""
    time = np.arange(round(1.2 * T60 * SAMPLE_RATE)) / SAMPLE_RATE
    dull = butter(1, 5000, fs=SAMPLE_RATE, output="sos")
    response = sosfilt(dull, rng.normal(size=time.size) * 10 ** (-3 * time / T60))
    response[time < 0.004] = 0
    response *= np.sqrt(10 ** (REVERBERATION / 10) / np.sum(response**2))
    response[0] = 1
    return fftconvolve(sound, response)[: sound.size]


def pink(size: int, rng: np.random.Generator) -> np.ndarray:
    """Noise with equal power in every octave above 20 Hz, of RMS 1."""
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 20)
    noise = np.fft.irfft(np.fft.rfft(rng.normal(size=size)) / np.sqrt(frequency), size)
    return noise / np.std(noise)


def write_piece(folder: Path, voices: tuple[Voice, ...], room: bool, soundfont: Path) -> None:
    """`mix.flac`, one file per instrument and `meta.json`, as in the corpus."""
    rng = np.random.default_rng(sum(map(ord, folder.name)))
    rests = [FIRST + LATER * number if room else None for number in range(len(voices))]
    notes = [performed(voice, rest, rng) for voice, rest in zip(voices, rests, strict=True)]
    size = round(SECONDS * SAMPLE_RATE)
    sounds = [
        trim(render(each, KINDS[voice.instrument].program, soundfont), size)
        for each, voice in zip(notes, voices, strict=True)
    ]
    stems = balance([in_a_room(sound, rng) for sound in sounds] if room else sounds)
    mixture = sum(stem.astype(float) for stem in stems)
    if room:
        mixture += np.std(mixture) * 10 ** (NOISE / 20) * pink(size, rng)
    folder.mkdir(parents=True, exist_ok=True)
    for voice, stem in zip(voices, stems, strict=True):
        soundfile.write(folder / f"{voice.instrument}.flac", stem, SAMPLE_RATE, subtype="PCM_16")
    whole = np.clip(np.rint(mixture), -(2**15), 2**15 - 1).astype(np.int16)
    soundfile.write(folder / "mix.flac", whole, SAMPLE_RATE, subtype="PCM_16")
    parts = [
        {"name": voice.instrument, "notes": [[n.onset / 1000, n.duration / 1000, n.pitch] for n in each]}
        for voice, each in zip(voices, notes, strict=True)
    ]
    document = {"name": folder.name, "sample_rate": SAMPLE_RATE, "duration_s": SECONDS, "stems": parts}
    (folder / "meta.json").write_text(json.dumps(document) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    arguments = read_arguments(__doc__, RESULTS / "voices", "folder of the pieces")
    for name, voices in {**DRY, **ROOMS}.items():
        write_piece(arguments.out / name, voices, name in ROOMS, arguments.soundfont)
        print(name, flush=True)


if __name__ == "__main__":
    main()

"""Make the library of instruments that ships with the package: what single notes of each sound like.

Needs FluidSynth and the FluidR3 GM soundfont (MIT licence), the Debian packages `fluidsynth` and
`fluid-soundfont-gm`. From the repository root:

    python -m benchmarks.render_instruments [--out FILE] [--soundfont FILE]

Each instrument plays single notes over its usual range, soft and loud, dry and in floating point. They are
analysed at their known pitches, and only the harmonics, which change with the pitch, are kept. Nothing in it
is random.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.render_demo import SAMPLE_RATE, Note, read_arguments, render
from jaxsep.notes.score import Score, plain_note
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.instruments import Instruments
from jaxsep.tones.library import SHIPPED

#: Milliseconds of a note, and from the beginning of one to that of the next.
LENGTH, EVERY = 1500, 2000

#: Semitones from a note to the next, and velocities of each.
STEP, VELOCITIES = 3, (60, 100)

#: Few frames are enough for notes that do not move.
SETTINGS = SeparationSettings(hop=2048)

SOURCE = "FluidR3 GM, copyright 2000-2002, 2008 Frank Wen"
LICENCE = "MIT"


class Kind(NamedTuple):
    """An instrument: its General MIDI program, counted from 0, and its lowest and highest note there."""

    program: int
    lowest: int
    highest: int


#: Usual ranges of players in an orchestra, in semitones as MIDI counts them.
KINDS = {
    "piccolo": Kind(72, 74, 106),
    "flute": Kind(73, 60, 96),
    "recorder": Kind(74, 65, 96),
    "oboe": Kind(68, 58, 91),
    "clarinet": Kind(71, 50, 91),
    "bassoon": Kind(70, 34, 74),
    "saxophone": Kind(65, 49, 81),
    "horn": Kind(60, 34, 77),
    "trumpet": Kind(56, 52, 84),
    "trombone": Kind(57, 40, 72),
    "tuba": Kind(58, 28, 60),
    "violin": Kind(40, 55, 100),
    "viola": Kind(41, 48, 88),
    "cello": Kind(42, 36, 81),
    "double bass": Kind(43, 28, 62),
    "piano": Kind(0, 28, 100),
}


def played(kind: Kind) -> list[Note]:
    """Single notes over the range, one after the other, each soft and loud."""
    pitches = [*range(kind.lowest, kind.highest, STEP), kind.highest]
    each = [(pitch, velocity) for pitch in pitches for velocity in VELOCITIES]
    return [Note(EVERY * n + 100, LENGTH, pitch, velocity) for n, (pitch, velocity) in enumerate(each)]


def harmonics_of(kind: Kind, soundfont: Path) -> Dictionary:
    """The dictionary of an instrument, fitted to its notes."""
    notes = played(kind)
    samples = render(notes, kind.program, soundfont)
    seconds = [(note.onset / 1000, (note.onset + note.duration) / 1000, note.pitch) for note in notes]
    score = Score([plain_note(0, *times_and_pitch) for times_and_pitch in seconds])
    found = separate(samples, SAMPLE_RATE, notes=score, settings=SETTINGS, key=jax.random.key(0))
    return found.dictionary


def library(soundfont: Path) -> Instruments:
    """All instruments."""
    each = []
    for name, kind in KINDS.items():
        each.append(harmonics_of(kind, soundfont))
        print(f"{name}: {np.round(np.asarray(each[-1].harmonics[0, :8]), 2)}", flush=True)
    rows = [jnp.concatenate(rows) for rows in zip(*((d.harmonics, d.by_pitch) for d in each), strict=True)]
    ranges = np.array([[kind.lowest, kind.highest] for kind in KINDS.values()], np.float32)
    return Instruments(Dictionary(*rows, each[0].pitches), tuple(KINDS), ranges, SOURCE, LICENCE)


def main() -> None:
    """Command line."""
    arguments = read_arguments(__doc__, SHIPPED, "file of the library")
    library(arguments.soundfont).save(arguments.out)


if __name__ == "__main__":
    main()

"""What a separation returns, and what cannot be separated.

A result shows, writes and reads itself by rooms further down the stream, which its methods import when they
are asked: finding it needs nothing of them. No other module does that (`tests/test_house.py`).
"""

import dataclasses
import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, Float

from jaxsep.audio import check_samples, loudest_alone
from jaxsep.files import AudioWarning
from jaxsep.learning.names import name_instruments
from jaxsep.neural.settings import NeuralSettings
from jaxsep.notes.note import Note
from jaxsep.notes.score import Score, default_name
from jaxsep.separation.settings import NOTES_ARE, SeparationSettings
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.instruments import Instruments
from jaxsep.tones.tones import Tones

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KnownNotes", "Separation", "check_notes", "check_request", "level_of"]

#: Seconds of a window, the shortest recording.
_WINDOW = 0.256

#: The smallest peak that float32 has room below for, and how many doublings up or down are ordinary.
_FAINTEST, _ORDINARY = 1e-30, 20

#: More instruments than anyone can tell apart blindly: surely a mistake.
_MAX_INSTRUMENTS = 16


class KnownNotes(NamedTuple):
    """Notes of a recording, and how much they bind: `all`, `held` or `start`."""

    score: Score
    notes_are: str


class Separation(eqx.Module):
    """Stems of a recording, with what was found on the way.

    - `stems`: `[instruments, samples]`, or `[instruments, channels, samples]` for a recording with channels,
      at its own rate and length.
    - `sample_rate`: in Hz.
    - `tones`: `[frames, tones]`; amplitudes in the recording's units, fundamentals in Hz. After a full search
      an instrument may have one tone more than it plays at a time: a note that rings on, or the next one.
    - `times`: centre of each frame in seconds.
    - `dictionary`: harmonics of each instrument, and how they change with the pitch if that was learned; of
      each tone they are `dictionary.of(tones)`.
    - `loss`: lifted loss of each frame, for spectra with a peak of 1; of a network, the lifted distance of
      the frame from its direct predictions.
    - `confidence`: by how much, in units of the mean loss of a frame, the cost of the recording would grow
      with other notes in this frame; less where a note there could as well be another instrument's;
      infinite where nothing else was considered, NaN without the full search.
    - `cost_trace`: mean cost of a frame after each round of the search (`VoiceModel`), of which those with
      all frames weigh tones otherwise; without the full search, the mean loss alone.
    - `restart_losses`: of every learned dictionary, the chosen one first; empty where none was.
    - `seconds`: wall time of every stage.
    - `known`: notes that were known before, and how much they bind.
    - `mixture`: what was separated, `[samples]` or `[channels, samples]`; without it, as in parts, the sum of
      stems and noise stands for it.
    - `settings`: with which it was found.
    - `noise`: what the stems are without, as the mixture is, if the settings keep it apart.
    - `labels`: of each instrument what it is called, or None; empty where nothing names them.

    In a notebook it shows itself: players for mixture and stems, the picture of `plot`, and the notes.

    Example:
        >>> mixture, stems, rate = jaxsep.demo_recording()
        >>> settings = jaxsep.SeparationSettings(restarts=1, steps=3, search="greedy")
        >>> result = jaxsep.separate(mixture[:rate], rate, 2, settings=settings, key=jax.random.key(0))
        >>> result.tones.fundamental.shape, result.dictionary.harmonics.shape
        ((95, 2), (2, 25))
    """

    stems: Float[np.ndarray, "instruments *channels samples"]
    sample_rate: int = eqx.field(static=True)
    tones: Tones
    times: Float[np.ndarray, " frames"]
    dictionary: Dictionary
    loss: Float[np.ndarray, " frames"]
    confidence: Float[np.ndarray, " frames"]
    cost_trace: tuple[float, ...]
    restart_losses: tuple[float, ...]
    seconds: dict[str, float]
    known: KnownNotes | None = eqx.field(static=True, default=None)
    mixture: Float[np.ndarray, "*channels samples"] | None = None
    settings: SeparationSettings | NeuralSettings | None = eqx.field(static=True, default=None)
    noise: Float[np.ndarray, "*channels samples"] | None = None
    labels: tuple[str | None, ...] = eqx.field(static=True, default=())

    @property
    def names(self) -> tuple[str, ...]:
        """Of the instruments: those that the notes have, or else their labels, or their numbers."""
        numbers = [default_name(n) for n in range(self.dictionary.num_instruments)]
        listed = () if self.known is None else self.known.score.names
        listed = [*listed, *numbers[len(listed) :]]
        labels = self.labels or numbers
        each = zip(numbers, listed, labels, strict=True)
        return tuple((label or number) if name == number else name for number, name, label in each)

    def named(self, instruments: Instruments) -> "Separation":
        """The same, in which instruments are called as those that they clearly sound like.

        Arguments:
            instruments: that are known, such as `Instruments.orchestra()`; `name_instruments` says when.

        Example:
            >>> mixture, stems, rate = jaxsep.demo_recording()
            >>> settings = jaxsep.SeparationSettings(restarts=1, steps=3, search="greedy")
            >>> result = jaxsep.separate(mixture[:rate], rate, 2, settings=settings, key=jax.random.key(0))
            >>> len(result.named(jaxsep.Instruments.orchestra()).names)
            2
        """
        return dataclasses.replace(self, labels=name_instruments(self.dictionary, self.tones, instruments))

    def notes(self) -> list[Note]:
        """The notes, by onset: those that were all known before, or else those that the tones form.

        Each has the `confidence` of the search.
        """
        from jaxsep.separation.found import notes_of

        return notes_of(self)

    def plot(self) -> "Figure":
        """The picture of `overview`, which a notebook shows; `savefig` writes it to a file."""
        from jaxsep.report.plots import overview_figure

        return overview_figure(self)

    def save(self, folder: str | os.PathLike, *, force: bool = False) -> None:
        """Writes the folder that `jaxsep separate` leaves, from which `load` reads everything back.

        It has the tracks as WAV in floating point, notes, tones, dictionary, picture and settings; the folder
        appears whole or not at all. `jaxsep report` makes a page of it.

        Arguments:
            folder: new or empty.
            force: replace a folder that has content.

        Raises: `AudioError`, one sentence, if nothing can be written there.

        Example:
            >>> mixture, stems, rate = jaxsep.demo_recording()
            >>> settings = jaxsep.SeparationSettings(restarts=1, steps=3, search="greedy")
            >>> result = jaxsep.separate(mixture[:rate], rate, 2, settings=settings, key=jax.random.key(0))
            >>> result.save("duet")
            >>> again = jaxsep.Separation.load("duet")
            >>> np.array_equal(again.stems, result.stems), len(again.notes()) == len(result.notes())
            (True, True)
        """
        from jaxsep.report.saved import save_separation

        save_separation(self, folder, force=force)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Separation":
        """Reads what `save` or `jaxsep separate` left in a folder.

        Stems are as exact as their files. A folder of a version before 0.2 has no losses and confidences:
        these are NaN.

        Raises: `ValueError`, one sentence, for a folder without results, and for a file that is missing,
        damaged, or does not belong to the others. Nothing is ever unpickled.
        """
        from jaxsep.results.saved import load_separation

        return load_separation(folder)

    def _repr_html_(self) -> str:
        from jaxsep.report.display import separation_html

        return separation_html(self)

    def at_frames(self, chosen: Bool[np.ndarray, " frames"]) -> "Separation":
        """What was found in some of the frames; the stems stay as they are."""
        fields = lambda s: (s.tones, s.times, s.loss, s.confidence)
        return eqx.tree_at(fields, self, jax.tree.map(lambda x: np.asarray(x)[chosen], fields(self)))

    def map_sounds(self, change: Callable[..., np.ndarray], *others: "Separation") -> "Separation":
        """The same with other stems, and noise if there is any: what `change` makes of them."""
        sounds = ((each.stems, each.noise) for each in (self, *others))
        stems, noise = jax.tree.map(change, *sounds)
        return dataclasses.replace(self, stems=stems, noise=noise)

    def louder(self, factor: float) -> "Separation":
        """What would have been found in the samples times a factor."""
        if factor == 1:
            return self
        loud = lambda x: x * np.float32(factor)
        return eqx.tree_at(lambda s: s.tones.amplitude, self.map_sounds(loud), replace_fn=loud)

    @classmethod
    def joined(cls, parts: Sequence["Separation"]) -> "Separation":
        """The findings of all parts as those of one; times of their stages are added up.

        Stems, noise, dictionary, costs and losses of the restarts are those of the first part.
        """
        fields = lambda s: (s.tones, s.times, s.loss, s.confidence)
        joined = jax.tree.map(lambda *x: np.concatenate(x), *map(fields, parts))
        seconds: dict[str, float] = {}
        for name, value in itertools.chain.from_iterable(part.seconds.items() for part in parts):
            seconds[name] = seconds.get(name, 0.0) + value
        first = eqx.tree_at(fields, parts[0], joined)
        return dataclasses.replace(first, seconds=seconds)


def level_of(samples: np.ndarray) -> float:
    """What extreme samples are divided by so that float32 has room for their squares: a power of 2."""
    exponent = int(np.frexp(np.abs(samples).max())[1])
    return 1.0 if abs(exponent) <= _ORDINARY else 2.0**exponent


def check_request(
    samples: np.ndarray, sample_rate: Any, num_instruments: Any, dictionary: Dictionary | None
) -> tuple[int, int]:
    """Refuses what cannot be separated, with one sentence; returns rate and number of instruments as `int`.

    Raises: `ValueError` for samples that are not finite, silent or shorter than a window, for a number of
    instruments out of range, and for a dictionary of another number of instruments or impossible values.
    Warns where channels cancel each other.
    """
    check_samples(samples, sample_rate)
    if not isinstance(num_instruments, int | np.integer):
        raise ValueError(f"num_instruments: expected an integer, got {num_instruments!r}")
    if num_instruments < 1:
        raise ValueError(f"num_instruments: expected at least 1, got {num_instruments}")
    if num_instruments > _MAX_INSTRUMENTS:
        raise ValueError(f"num_instruments: expected at most {_MAX_INSTRUMENTS}, got {num_instruments}")
    if samples.shape[-1] < _WINDOW * sample_rate:
        raise ValueError(
            f"samples: expected at least one window of {_WINDOW:.3f} s, "
            f"got {samples.shape[-1] / sample_rate:.3f} s"
        )
    if not _FAINTEST <= (peak := float(np.abs(samples).max())) <= 1 / _FAINTEST:
        raise ValueError(f"samples: expected a peak between 1e-30 and 1e30, got {peak:.3g}")
    if dictionary is not None:
        dictionary.check()
        if dictionary.num_instruments != num_instruments:
            raise ValueError(
                f"dictionary: expected {num_instruments} instruments, got {dictionary.num_instruments}"
            )
    if samples.ndim > 1 and (loudest := loudest_alone(samples)) is not None:
        warnings.warn(
            f"the channels cancel each other; the loudest one, channel {loudest + 1}, is analysed alone.",
            AudioWarning,
            stacklevel=3,
        )
    return int(sample_rate), int(num_instruments)


def check_notes(
    score: Score | None,
    notes_are: str,
    num_instruments: int,
    duration: float,
    settings: SeparationSettings,
) -> KnownNotes | None:
    """Refuses notes that are none of a recording of so many seconds, with one sentence; cuts them at its end.

    Instruments that the notes lack have nothing to play in them.
    """
    if notes_are not in NOTES_ARE:
        raise ValueError(f"notes_are: expected {' or '.join(map(repr, NOTES_ARE))}, got {notes_are!r}")
    if score is None:
        return None
    if num_instruments < score.num_instruments:
        raise ValueError(
            f"notes: expected those of at most {num_instruments} instruments, got {score.num_instruments}"
        )
    heard = score.within(duration)
    if not heard.notes:
        raise ValueError(f"notes: expected some within the {duration:.1f} s of the recording, got none")
    if notes_are != "all" and settings.search == "greedy":
        raise ValueError(
            f"notes_are: expected 'all' with greedy search, which has no start, got {notes_are!r}"
        )
    more = (default_name(number) for number in range(score.num_instruments, num_instruments))
    return KnownNotes(dataclasses.replace(heard, names=(*heard.names, *more)), notes_are)

"""What `jaxsep separate` does with each recording: from the file to the folder of its results.

Mistakes in the files are found before JAX is imported.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jaxsep.audio import Recording, check_tracks
from jaxsep.cli.jobs import Job, finished_document
from jaxsep.cli.options import Notes, library_folder
from jaxsep.cli.process import Backend, sentence, start_jax
from jaxsep.cli.references import read_references
from jaxsep.files import AudioError, OutputFolder
from jaxsep.neural.settings import NeuralSettings
from jaxsep.progress import Progress
from jaxsep.separation.settings import SeparationSettings

__all__ = ["Done", "Work"]


class Done(NamedTuple):
    """What was done with a recording.

    - `document`: that of its results.
    - `new`: whether they are.
    - `scores`: figures of a new page's stems.
    - `missing`: why there is no page, where one was wanted.
    """

    document: dict[str, Any]
    new: bool
    scores: dict[str, Any] | None = None
    missing: str = ""


@dataclass(frozen=True)
class Work:
    """The work on every recording, as the options say.

    - `settings`: those of the method.
    - `training`: arguments of `separate_neural` that are about training.
    - `part`: seconds of a recording beyond which it is separated in parts; `None` for never.
    - `dictionary`: file to use instead of learning.
    - `players`: names of the instruments that play, with which learning begins.
    - `like`: library of these, and of those whose names the instruments may have.
    - `notes`: that are known of the recording.
    - `earlier`: folder of an earlier run, of which the notes are corrections.
    - `audio`: suffix of the tracks, and their sample format.
    - `report`: whether to write a page, with figures if there are `references`.
    - `skip`: whether a folder that has these results already is left as it is.
    - `force`: whether any other folder that exists is replaced.
    """

    settings: SeparationSettings | NeuralSettings
    num_instruments: int
    backend: Backend
    audio: tuple[str, str]
    seed: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    part: float | None = None
    dictionary: Path | None = None
    players: tuple[str, ...] = ()
    like: str | None = None
    notes: Notes | None = None
    earlier: Path | None = None
    report: bool = False
    references: list[Path] = field(default_factory=list)
    skip: bool = False
    force: bool = False

    def __call__(self, job: Job, progress: Progress) -> Done:
        """Separates one recording, unless there are its results."""
        with Recording(job.recording) as recording:
            about = {"settings": self.settings, "seed": self.seed, "source": self._source(recording)}
            if self.skip and not self.force and (known := self._finished(job.folder, about)):
                return Done(known, new=False)
            separate = self._in_parts if self._is_long(recording) else self._at_once
            check_tracks(*self.audio, recording.num_channels, recording.sample_rate)
            output = OutputFolder(job.folder, force=self.force)
            try:
                with output as folder:
                    done = separate(folder, recording, about, progress)
            except AudioError:
                # Another process may have been quicker.
                if self.skip and not self.force and (known := self._finished(job.folder, about)):
                    output.discard()
                    return Done(known, new=False)
                raise
            except ValueError as error:
                if str(error).startswith("samples: "):
                    raise ValueError(f"{recording.path}: {str(error)[9:]}") from error
                raise
        if done.missing:
            raise ValueError(f"{job.folder} has all results but the page: {done.missing}.")
        return done

    def _source(self, recording):
        """What the document says of the input before it is read."""
        name = None if self.dictionary is None else self.dictionary.name
        source: dict[str, Any] = {"file": recording.path.name, "dictionary": name}
        if self.notes is not None:
            source |= {"notes": self.notes.file, "notes_are": self.notes.are, "align": self.notes.align}
        if self.earlier is not None:
            source["from"] = self.earlier.resolve().name
        if self.like is not None or self.players:
            source |= {"players": list(self.players), "like": self.like}
        if self.part is not None:
            source["longest_part_s"] = self.part
        if self.skip:
            source["sha256"] = recording.fingerprint()
        return source

    def _finished(self, folder, about):
        wanted = {"num_instruments": self.num_instruments, "seed": self.seed}
        wanted |= {"settings": asdict(self.settings), "input": about["source"]}
        return finished_document(folder, wanted, self.audio[0], self.report)

    def _is_long(self, recording):
        long = self.part is not None and recording.duration > self.part
        if long and self.report:
            raise ValueError(
                f"--report: expected a recording of at most --part {self.part:g} s, "
                f"got {recording.duration:.0f} s; the page holds all of the sound."
            )
        if long and self.notes is not None:
            raise ValueError(
                f"--notes: expected a recording of at most --part {self.part:g} s, "
                f"got {recording.duration:.0f} s."
            )
        return long

    def _in_parts(self, folder, recording, about, progress):
        compute = start_jax(self.backend)
        request = self._request(progress)
        pieces = compute.separate_in_parts(recording, self.part, self.num_instruments, folder, **request)
        return Done(compute.write_results(folder, pieces, self.audio, **about), new=True)

    def _at_once(self, folder, recording, about, progress):
        samples, rate = recording.checked(), recording.sample_rate
        truth = read_references(self.references, self.num_instruments, samples.shape[1], rate)
        compute = start_jax(self.backend)
        request = self._request(progress) | {"training": self.training}
        pieces = compute.separate_at_once(samples, rate, self.num_instruments, folder, **request)
        document, scores = compute.write_results(folder, pieces, self.audio, **about), None
        missing = ""
        if self.report:
            names, page = [path.stem for path in self.references], folder / "report.html"
            try:
                scores = compute.write_page(folder, page, truth, names, progress)
            except Exception as error:  # the page can be made again, and the results may have taken hours
                page.unlink(missing_ok=True)
                missing = sentence(error)
        return Done(document, new=True, scores=scores, missing=missing)

    def _request(self, progress):
        fields = ("settings", "dictionary", "seed")
        request = {name: getattr(self, name) for name in fields} | {"progress": progress}
        if self.like is not None or self.players:
            request |= {"players": self.players, "like": library_folder(self.like)}
        if self.notes is not None:
            request |= {"notes": self.notes}
        return request if self.earlier is None else request | {"earlier": self.earlier}

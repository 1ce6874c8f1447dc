"""What `jaxsep separate` does with each recording: from the file to the folder of its results.

Mistakes in the files of a single recording are found before JAX is imported; of several, the settings that
their results are compared by need it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxsep.audio import Recording, read_audio
from jaxsep.cli.jobs import Job, fingerprint, finished_document
from jaxsep.cli.references import read_references
from jaxsep.files import OutputFolder
from jaxsep.progress import Progress

__all__ = ["Training", "Work"]


@dataclass(frozen=True)
class Training:
    """How the network of a recording is trained: arguments of `separate_neural`."""

    minutes: float | None
    checkpoint: Path | None
    resume: bool


@dataclass(frozen=True)
class Work:
    """The work on every recording, as the options say.

    - `start_jax`: imports JAX on the wanted device.
    - `settings`: makes the settings of the method, which needs JAX.
    - `training`: for the neural method alone.
    - `part`: seconds of a recording beyond which it is separated in parts; `None` for never.
    - `dictionary`: file to use instead of learning.
    - `audio`: suffix of the tracks, and their sample format.
    - `report`: whether to write a page, with figures if there are `references`.
    - `skip`: whether a folder that has these results already is left as it is.
    - `force`: whether any other folder that exists is replaced.
    """

    start_jax: Callable[[], None]
    settings: Callable[[], Any]
    training: Training | None
    num_instruments: int
    seed: int
    part: float | None
    dictionary: Path | None
    audio: tuple[str, str]
    report: bool
    references: list[Path]
    skip: bool
    force: bool

    def __call__(self, job: Job, progress: Progress) -> tuple[dict[str, Any], bool]:
        """Document of a recording's results, and whether they are new."""
        source = self._source(job.recording)
        known = self._finished(job.folder, source)
        if known and not self.force:
            return known, False
        separate = self._in_parts if self._is_long(job.recording) else self._at_once
        with OutputFolder(job.folder, force=self.force) as folder:
            return separate(folder, job.recording, source, progress), True

    def _source(self, recording):
        """What the document says of the input before it is read."""
        name = None if self.dictionary is None else self.dictionary.name
        source: dict[str, Any] = {"file": recording.name, "dictionary": name}
        if self.part is not None:
            source["longest_part_s"] = self.part
        if self.skip:
            source["sha256"] = fingerprint(recording)
        return source

    def _finished(self, folder, source):
        if not self.skip:
            return None
        settings = asdict(self.settings())
        wanted = {"num_instruments": self.num_instruments, "seed": self.seed, "settings": settings}
        return finished_document(folder, {**wanted, "input": source}, self.audio[0], self.report)

    def _is_long(self, recording):
        with Recording(recording) as opened:
            long = self.part is not None and opened.duration > self.part
            if long and self.report:
                raise ValueError(
                    f"--report: expected a recording of at most --part {self.part:g} s, "
                    f"got {opened.duration:.0f} s; the page holds all of the sound."
                )
        return long

    def _in_parts(self, folder, recording, source, progress):
        self.start_jax()
        from jaxsep.results.write import write_parts
        from jaxsep.separation.parts import separate_parts

        options = self._options(progress)
        parts = separate_parts(recording, self.num_instruments, seconds=self.part, **options)
        about = {"settings": options["settings"], "seed": self.seed, "source": source}
        return write_parts(folder, recording, parts, self.audio, **about)

    def _at_once(self, folder, recording, source, progress):
        samples, sample_rate = read_audio(recording)
        truth = read_references(self.references, self.num_instruments, samples.shape[1], sample_rate)
        self.start_jax()
        from jaxsep.report.page import write_page
        from jaxsep.results.write import write_separation

        options = self._options(progress)
        separation = self._method(folder)(samples, sample_rate, self.num_instruments, **options)
        about = {"settings": options["settings"], "seed": self.seed, "source": source}
        document = write_separation(folder, samples, separation, self.audio, progress, **about)
        if self.report:
            names = [path.stem for path in self.references]
            write_page(folder, folder / "report.html", truth, names, progress)
        return document

    def _method(self, folder):
        from jaxsep.separation import neural
        from jaxsep.separation import separate as pursuit

        if self.training is None:
            return pursuit.separate
        return partial(neural.separate_neural, log=folder / "training.jsonl", **asdict(self.training))

    def _options(self, progress):
        import jax

        from jaxsep.tones.dictionary import Dictionary

        return {
            "settings": self.settings(),
            "dictionary": None if self.dictionary is None else Dictionary.load(self.dictionary),
            "progress": progress,
            "key": jax.random.key(self.seed),
        }

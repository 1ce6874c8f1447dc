"""What the commands share: environment, timing, tables, reports, recordings, worker processes."""

import datetime
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import typer
from jaxtyping import Float

import jaxsep
from jaxsep.audio import read_audio
from jaxsep.files import replacing
from jaxsep.metrics.bss_eval import sdr_sir_sar_gain
from jaxsep.results.document import evaluation_document

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "benchmarks" / "pictures"

MEBIBYTE = 2**20

#: Options of several commands.
Pieces = Annotated[str, typer.Option(help="Names, separated by commas.  [default: all]")]
SomePieces = Annotated[str, typer.Option(help="Names, separated by commas.")]
Seconds = Annotated[float | None, typer.Option(help="Use the start of each piece alone.", min=0.3)]

#: Variables of a worker whose wall time is that of a first run: it takes nothing compiled from earlier ones.
FRESH = {"JAX_ENABLE_COMPILATION_CACHE": "false"}

#: Measures of the literature by their names in a document, each with its title in tables.
MEASURES = {
    "snr": "SNR",
    "snr_frames": "SNR, median of 1 s",
    "si_sdr": "SI-SDR",
    "si_sdr_improvement": "SI-SDR over mixture",
    "filter_512": "512-tap SDR",
}

_PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "equinox")


# ---- Environment ------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Date, device, versions, cores, settings and commit of a measurement, as values for JSON."""
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {"jaxsep": jaxsep.__version__, **{name: version(name) for name in _PACKAGES}},
        "commit": _commit(),
        "variables": {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "OMP_NUM_THREADS")},
    }


def describe(record: Mapping[str, Any]) -> str:
    """The environment in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    date = record.get("date", "without a date")  # as files from before dates were kept
    return (
        f"{date}: {record['device']} ({record['platform']}); {record['processor']}, {record['cores']} cores; "
        f"Python {record['python']}, {versions}; commit {record['commit']}"
    )


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", lines, re.MULTILINE)
    return found[1] if found else platform.machine()


def _commit():
    def git(*arguments):
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _program() -> str:
    """A digest of the text of the package and of its benchmarks."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "jaxsep").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    try:
        # Not `ru_maxrss`: Linux hands a parent's peak down to the processes that it starts.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[1])
    except (OSError, TypeError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def temporary(compiled) -> int | None:
    """Bytes of the temporaries of a compiled program, where the platform tells."""
    analysis = compiled.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


# ---- Timing -----------------------------------------------------------------------------------------------


class Timing(NamedTuple):
    """Seconds of the first call, which compiles, and minimum and median of the calls after it."""

    first: float
    minimum: float
    median: float


def measure(
    function: Callable[[], Any], *, repeats: int = 5, clock: Callable[[], float] = time.perf_counter
) -> Timing:
    """Times a function of no arguments until its result is there; the first call counts apart."""

    def seconds():
        begin = clock()
        jax.block_until_ready(function())
        return clock() - begin

    first = seconds()
    warm = [seconds() for _ in range(repeats)]
    return Timing(first, min(warm), statistics.median(warm))


# ---- Results ----------------------------------------------------------------------------------------------


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown, its columns padded to equal width; floats have four significant digits."""

    def text(cell):
        return (f"{cell:.4g}" if isinstance(cell, float) else str(cell)).replace("|", "\\|")

    cells = [[text(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def decibels(figures: Sequence[float]) -> str:
    """Figures in dB of several instruments, such as `15.9 / 14.3`."""
    return " / ".join(f"{figure:.1f}" for figure in figures)


def write_json(name: str, document: Mapping[str, Any], *, quick: bool = False) -> Path:
    """Writes results to `benchmarks/results`; those of a quick run have a file of their own."""
    RESULTS.mkdir(exist_ok=True)
    path = results_path(name, quick=quick)
    with replacing(path) as draft:  # an interruption leaves what there was
        draft.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def results_path(name: str, *, quick: bool = False) -> Path:
    """Where results are written."""
    return RESULTS / f"{name}{'-quick' if quick else ''}.json"


class Report:
    """Results of a benchmark, printed and written as they come, so that an interruption keeps them.

    Arguments:
        name: of the JSON file.
        quick: whether it is a quick run.
        about: lines to print below the environment.
        worker: whether the results come from worker processes, each with its environment. This process then
            asks for none: a device whose memory it held would have none left for them.
        facts: what stands in the document beside environment and results.
    """

    def __init__(self, name: str, *, quick: bool, about: str = "", worker: bool = False, **facts: Any):
        self._name, self._quick, self._worker, self.document = name, quick, worker, facts
        self._facts = dict(facts)
        if not worker:
            self.document = {"environment": environment()} | facts
            print(describe(self.document["environment"]))
        print(f"{about}\n" if about else "", flush=True)

    def add(self, run: dict[str, Any], line: str) -> None:
        """Keeps one of several runs, and prints a line about it."""
        if "environment" in run:
            self.document["environment"] = run.pop("environment")
        self.document.setdefault("runs", []).append(run)
        print(line, flush=True)
        self._write()

    def part(self, name: str, found: Any, title: str, table: str) -> None:
        """Keeps a part of the results, and prints it with a title."""
        self.document[name] = found
        print(f"{title}\n\n{table}\n", flush=True)
        self._write()

    def end(self, *tables: str) -> None:
        """Prints tables of all results, and where these are."""
        if "finished" in self.document:
            self.document["finished"] = True
        head = [describe(self.document["environment"])] if self._worker else []
        print("\n" + "\n\n".join([*head, *tables, f"Written to {self._write()}"]))

    def unfinished(self) -> list[dict[str, Any]]:
        """Runs of an earlier report that was interrupted, with which this one begins.

        They are those of the same facts and the same program: the text of all its files.
        """
        wanted = json.loads(json.dumps(self._facts | {"program": _program()}))
        self.document |= {"program": _program(), "finished": False}
        try:
            earlier = json.loads(results_path(self._name, quick=self._quick).read_text(encoding="utf-8"))
            same = {name: earlier[name] for name in wanted} == wanted and not earlier["finished"]
            runs = earlier["runs"] if same else []
        except (OSError, KeyError, TypeError, ValueError):
            return []
        if runs:
            self.document |= {"environment": earlier["environment"], "runs": runs}
            print(f"{len(runs)} runs of an interrupted report are kept.", flush=True)
        return list(runs)

    def _write(self) -> Path:
        return write_json(self._name, self.document, quick=self._quick)


# ---- Recordings and recorded results ----------------------------------------------------------------------


class Piece(NamedTuple):
    """A mixture `[samples]` with its true stems `[instruments, samples]`."""

    name: str
    instruments: tuple[str, ...]
    mixture: np.ndarray
    stems: np.ndarray
    sample_rate: int


def shared_folder(kind: str) -> Path:
    """Folder of the `corpus` or the `reference`: `JAXSEP_CORPUS` or `JAXSEP_REFERENCE`, else `../shared`."""
    variable = f"JAXSEP_{kind.upper()}"
    folder = Path(os.environ.get(variable) or ROOT.parent / "shared" / kind)
    if not folder.is_dir():
        raise SystemExit(f"There is no folder {folder}: name the {kind} folder in {variable}.")
    return folder


def reference(name: str) -> dict[str, np.ndarray]:
    """Arrays of a file of recorded results."""
    with np.load(shared_folder("reference") / name) as content:
        return dict(content)


def piece_names() -> list[str]:
    """Names of all pieces of the corpus."""
    return sorted(path.parent.name for path in shared_folder("corpus").glob("*/meta.json"))


def chosen_pieces(listed: str) -> list[str]:
    """Names from a list such as `a,b`, all pieces if it is empty."""
    names, known = split_list(listed), piece_names()
    for name in names:
        if name not in known:
            raise SystemExit(f"There is no piece {name}: the corpus has {', '.join(known)}.")
    return names or known


def split_list(listed: str) -> list[str]:
    """Entries of a list such as `a,b`."""
    return [entry.strip() for entry in listed.split(",") if entry.strip()]


def load_piece(name: str, seconds: float | None = None) -> Piece:
    """A piece of the corpus, or its first `seconds`."""
    folder = shared_folder("corpus") / name
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    instruments = tuple(stem["name"] for stem in meta["stems"])
    tracks = []
    for track in ("mix", *instruments):
        samples, rate = read_audio(folder / f"{track}.flac")
        tracks.append(samples[0, : None if seconds is None else round(seconds * rate)])
    return Piece(name, instruments, tracks[0], np.stack(tracks[1:]), rate)


def played_notes(name: str) -> dict[str, Float[np.ndarray, "notes 3"]]:
    """Onset and duration in seconds and MIDI pitch of what each instrument of a piece plays.

    It is empty for pieces without a score.
    """
    meta = json.loads((shared_folder("corpus") / name / "meta.json").read_text(encoding="utf-8"))
    return {stem["name"]: np.array(stem["notes"]) for stem in meta["stems"] if stem.get("notes")}


def scores(references: np.ndarray, estimates: np.ndarray) -> dict[str, list[float]]:
    """Gain-only SDR, SIR and SAR in dB of each reference, computed in float64."""
    with jax.enable_x64(True):
        figures = sdr_sir_sar_gain(*(jnp.asarray(x, jnp.float64) for x in (references, estimates)))
        return {name: np.asarray(getattr(figures, name)).tolist() for name in ("sdr", "sir", "sar")}


def measures(piece: Piece, estimates: np.ndarray) -> dict[str, list[float | None]]:
    """The measures of the literature in dB of each reference, as `jaxsep evaluate` prints them."""
    names = [str(number) for number in range(len(estimates))]
    known = {"sample_rate": piece.sample_rate, "mixture": piece.mixture}
    document = evaluation_document(piece.stems, estimates, list(piece.instruments), names, **known)
    return {name: document[name] for name in MEASURES if name != "filter_512"} | {
        "filter_512": document["filter_512"]["sdr"]
    }


def mean_of(figures: Sequence[float | None]) -> float:
    """Mean of the figures that there are; NaN where there are none."""
    known = [figure for figure in figures if figure is not None]
    return float(np.mean(known)) if known else float("nan")


# ---- Worker processes -------------------------------------------------------------------------------------


def call_worker(module: str, request: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """What `python -m module` answers to a request in a fresh process; both are JSON."""
    completed = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
        check=False,
    )
    if completed.returncode:
        raise SystemExit(f"The worker {module} ended with code {completed.returncode} on {dict(request)}.")
    return json.loads(completed.stdout.splitlines()[-1])


def answer(function: Callable[..., dict[str, Any]]) -> None:
    """The worker's side of `call_worker`."""
    print(json.dumps(function(**json.load(sys.stdin))))

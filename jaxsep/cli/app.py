"""The command line: `jaxsep separate`, `report`, `evaluate`, `spectrogram`, `dictionaries` and `demo`.

JAX is imported only when there is something to compute, so that help and mistakes are answered at once.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import jaxsep
from jaxsep.audio import FORMATS, demo_files, read_audio
from jaxsep.cli.jobs import Job, plan
from jaxsep.cli.options import (
    AsJson,
    Cache,
    Context,
    Force,
    ManyValues,
    NoCache,
    OnDevice,
    Players,
    Recording,
    Recordings,
    References,
    Seed,
    audio_format,
    given_options,
    library_folder,
    notes_given,
    players_given,
    separation_settings,
    settings_from,
    with_settings,
)
from jaxsep.cli.process import (
    Backend,
    Stopped,
    check_outside,
    end,
    go_on,
    new_file,
    sentence,
    start_jax,
    stoppable,
    voices,
)
from jaxsep.cli.references import read_references, read_stems
from jaxsep.cli.terminal import TerminalProgress, show_evaluation, show_library, show_separation
from jaxsep.cli.work import Work
from jaxsep.neural.settings import PRESETS, NeuralSettings
from jaxsep.report.kinds import KINDS
from jaxsep.results.schema import read_document, to_json
from jaxsep.separation.settings import METHODS, NOTES_ARE, SeparationSettings
from jaxsep.tones.library import SHIPPED, read_about

__all__ = ["app", "main"]

app = typer.Typer(
    help="Blind separation of the instruments in a music recording.",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)

#: An option or argument that typer refuses; only its subclasses have names there.
_UsageError = typer.BadParameter.__base__


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Arguments:
        arguments: by default those of the process.

    Returns: the exit status: 0, or 2 after one line on stderr that says what is wrong with the input. After
    Ctrl-C or SIGTERM the process ends with 130 or 143, and nothing is left behind.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        with voices(_complain), stoppable():
            return typer.main.get_command(app)(arguments, prog_name="jaxsep", standalone_mode=False) or 0
    except _UsageError as error:
        return _complain(error.format_message())
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        return _complain(sentence(error))
    except Stopped as stopped:
        end(stopped.number)


def _complain(message: str) -> int:
    sys.stderr.write(f"jaxsep: {' '.join(message.split())}\n")
    sys.stderr.flush()
    return 2


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"jaxsep {jaxsep.__version__}")
        raise typer.Exit


_FAST = " ".join(f"--{name} {value}" for name, value in SeparationSettings.FAST.items())


@app.command(cls=ManyValues)
@with_settings(after="fast")
def separate(
    context: Context,
    mixtures: Recordings,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="New folder for the results.")
    ],
    instruments: Players = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="LIBRARY",
            help="Call the instruments as those of a library that they clearly sound like: orchestra, which "
            "jaxsep dictionaries lists, or the folder of an earlier run.  [default for names: orchestra]",
        ),
    ] = None,
    notes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Notes that are known: notes.csv of an earlier run, corrected, or a MIDI file with a track "
            "or channel for each instrument.",
        ),
    ] = None,
    notes_are: Annotated[
        Literal[*NOTES_ARE],
        typer.Option("--notes-are", help="all: nothing is searched, but how the notes sound."),
    ] = NOTES_ARE[0],
    earlier: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="EARLIER",
            help="Folder of a run on MIX, whose notes.csv is corrected in --notes: with its settings, only "
            "what the corrections touch is searched again.",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Take the I-th of every N recordings, so that N processes share them; what is finished is "
            "skipped.",
        ),
    ] = None,
    align: Annotated[
        bool, typer.Option("--align", help="The notes are at another tempo; bring them to the recording's.")
    ] = False,
    seed: Seed = 0,
    method: Annotated[
        Literal[*METHODS, "neural"],
        typer.Option(
            help="pursuit: sparse pursuit; blasso: the convex Beurling LASSO; neural: a U-Net trained on MIX."
        ),
    ] = SeparationSettings.method,
    fast: Annotated[bool, typer.Option("--fast", help=f"Two thirds of the time: {_FAST}.")] = False,
    part: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=20,
            help="A longer recording is separated in parts of this length, with one dictionary; the memory "
            "does not grow with it.",
        ),
    ] = 120.0,
    preset: Annotated[
        Literal[PRESETS],
        typer.Option(
            help="Network of neural: small suits CPUs, guided does, too, and imitates the pursuit first; "
            "paper and published need a GPU."
        ),
    ] = "small",
    minutes: Annotated[
        float | None, typer.Option(metavar="M", min=0, help="Budget of the training of neural.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to keep the training of neural, to --resume.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the training kept in --checkpoint.")
    ] = False,
    dictionary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="dictionary.npz of an earlier run, instead of learning; with neural, to begin with.",
        ),
    ] = None,
    file_format: Annotated[
        Literal[*(suffix[1:] for suffix in FORMATS)],
        typer.Option("--format", help="Kind of file for the stems."),
    ] = "wav",
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="B",
            help="Bits of a sample: 16, 24 or, as floating point in WAV, 32.  [default: the most]",
        ),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Write a page to listen to as well.")] = False,
    reference: References = [],  # noqa: B006 (typer copies it)
    device: OnDevice = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Separate a recording into its instruments.

    OUT receives the mixture, a stem for each instrument, the dictionary, the tones (CSV), the notes (CSV,
    MIDI, labels for Audacity, layers for Sonic Visualiser), a picture, and a JSON document of settings and
    figures; with --report a page to listen to. It appears complete or not at all.

    Of several recordings each has such a folder in OUT, named as its file. Those that are there already with
    the same settings are skipped, and a recording that fails does not stop the others.
    """
    given = given_options(context, method)
    if reference and not report:
        raise ValueError("--reference is for the page; add --report, or use jaxsep evaluate.")
    alone = len(mixtures) == 1 and shard is None
    for option, value in (("--reference", reference), ("--checkpoint", checkpoint), ("--notes", notes)):
        if value and not alone:
            raise ValueError(f"{option}: expected with one recording, got {len(mixtures)}.")
    neural = method == "neural"
    num_instruments, players = players_given(instruments, like, method, given)
    known = notes_given(notes, notes_are, align, num_instruments, given)
    if neural:
        settings = getattr(NeuralSettings, preset)()
    elif earlier is not None:
        settings, known = settings_from(earlier, known, options, given), known and known._replace(are="held")
    else:
        settings = separation_settings(method, options, fast, given)
    work = Work(
        settings=settings,
        num_instruments=num_instruments or known.score.num_instruments,
        players=players,
        like=like,
        notes=known,
        earlier=earlier,
        backend=Backend(device, cache, no_cache),
        audio=audio_format(file_format, bits),
        seed=seed,
        training={"minutes": minutes, "checkpoint": checkpoint, "resume": resume} if neural else {},
        part=None if neural else part,
        dictionary=dictionary,
        report=report,
        references=reference,
        skip=not alone,
        force=force,
    )
    jobs = [Job(mixtures[0], output)] if alone else plan(mixtures, output, shard)
    library = library_folder(like)
    for job in jobs:
        check_outside(job.folder, *mixtures, notes, earlier, library, dictionary, checkpoint, *reference)
    if alone:
        _work_on(jobs[0], work, as_json)
    else:
        _work_through(jobs, work, as_json)


def _work_on(job: Job, work: Work, as_json: bool = False) -> None:
    with TerminalProgress() as progress:
        done = work(job, progress)
    if as_json:
        _print_json(done.document)
    else:
        with suppress(OSError):  # nobody listens any more; the results are there
            show_separation(done.document, job.folder)
            if done.scores:
                show_evaluation(done.scores)


def _work_through(jobs: list[Job], work: Work, as_json: bool) -> None:
    """Every job, whatever happens to the others; raises `ValueError` at the end if some failed."""
    documents, failed = [], []
    for number, job in enumerate(jobs, start=1):
        go_on()
        begin = f"{number} of {len(jobs)}, {job.recording}"
        try:
            with TerminalProgress() as progress:
                progress.say(begin)
                done = work(job, progress)
        except Exception as error:  # whatever it is, it is of one recording
            _complain(f"{job.recording}: {sentence(error)}")
            failed.append(str(job.recording))
            continue
        documents.append(done.document)
        with suppress(OSError):
            if done.new and not as_json:
                show_separation(done.document, job.folder)
            elif not as_json:
                print(f"{begin}: finished before, in {job.folder}")
    if as_json:
        _print_json(documents)
    if failed:
        raise ValueError(f"{len(failed)} of {len(jobs)} recordings failed: {', '.join(failed)}.")


def _print_json(document: Any) -> None:
    sys.stdout.write(to_json(document))


@app.command(cls=ManyValues)
def evaluate(
    reference: Annotated[list[Path], typer.Option(metavar="FILE...", help="The true stems.")],
    estimate: Annotated[
        list[Path], typer.Option(metavar="FILE...", help="The separated stems, in any order.")
    ],
    mixture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What was separated, which the improvement is over.  [default: the sum of the true stems]",
        ),
    ] = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    as_json: AsJson = False,
) -> None:
    """Measure separated stems against the true ones.

    The measures of the literature differ in what they forgive, a constant gain, any filter of 512 taps, which
    gives higher figures, or nothing, and must not be compared with each other; below the table stands which
    paper uses which.

    Stems with several channels are averaged. Lengths that differ by less than 1 % are cut to the shortest.
    """
    references, estimates, mixed, rate, note = read_stems(reference, estimate, mixture)
    with TerminalProgress() as progress, progress.stage("measuring", 1) as advance:
        compute = start_jax(Backend("cpu", cache, no_cache))
        names = [str(path) for path in reference], [str(path) for path in estimate]
        known = {"sample_rate": rate, "mixture": mixed}
        document = compute.evaluation_document(references, estimates, *names, **known) | {"note": note}
        advance()
    if as_json:
        _print_json(document)
    else:
        show_evaluation(document, papers=True)
        if note:
            print(note)


@app.command(cls=ManyValues)
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder that jaxsep separate wrote.", show_default=False)
    ],
    reference: References = [],  # noqa: B006 (typer copies it)
    cache: Cache = None,
    no_cache: NoCache = False,
    force: Force = False,
) -> None:
    """Write a page to listen to: OUT/report.html.

    It has players, spectrograms, notes and figures in one file, which needs no network. With --reference it
    also measures the stems against the true ones.
    """
    document = read_document(folder)
    path = folder / "report.html"
    with new_file(path, force, ".html") as draft, TerminalProgress() as progress:
        samples, sample_rate = read_audio(folder / document["mixture"])
        truth = read_references(reference, len(document["stems"]), samples.shape[1], sample_rate)
        compute = start_jax(Backend("cpu", cache, no_cache))
        scores = compute.write_page(folder, draft, truth, [path.stem for path in reference], progress)
    print(f"results: {path}")
    if scores:
        show_evaluation(scores)


@app.command()
def spectrogram(
    mixture: Recording,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PNG", help="New picture.")],
    kind: Annotated[
        Literal[*KINDS],
        typer.Option(help="log: from spectral peaks; mel; cqt: constant-Q; linear: the STFT."),
    ] = "log",
    device: OnDevice = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    force: Force = False,
) -> None:
    """Draw the spectrogram of a recording."""
    if output.exists() and mixture.exists() and output.samefile(mixture):
        raise ValueError(f"{output} is the recording itself; name another file for the picture.")
    with new_file(output, force) as draft, TerminalProgress() as progress:
        samples, sample_rate = read_audio(mixture)
        compute = start_jax(Backend(device, cache, no_cache))
        with progress.stage("spectrogram", 1) as advance:
            compute.spectrogram_figure(samples, sample_rate, draft, kind=kind, title=mixture.name)
            advance()


@app.command()
def dictionaries(as_json: AsJson = False) -> None:
    """List the instruments that jaxsep knows, for --like orchestra and --instruments."""
    about = read_about(SHIPPED)
    if as_json:
        _print_json(about.header())
    else:
        show_library(about)


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="New folder for the results.")
    ] = Path("jaxsep-demo"),
    seed: Seed = 0,
    device: OnDevice = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    force: Force = False,
) -> None:
    """Separate the duet that ships with jaxsep, and measure the result against its true stems."""
    mixture, stems = demo_files()
    work = Work(
        settings=SeparationSettings(),
        num_instruments=len(stems),
        backend=Backend(device, cache, no_cache),
        audio=audio_format("wav", None),
        seed=seed,
        report=True,
        references=stems,
        force=force,
    )
    _work_on(Job(mixture, output), work)

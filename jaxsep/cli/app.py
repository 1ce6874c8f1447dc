"""The command line: `jaxsep separate`, `report`, `evaluate`, `spectrogram` and `demo`.

JAX is imported only when there is something to compute, so that help and mistakes are answered at once.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import jaxsep
from jaxsep.cli.jobs import Job, plan
from jaxsep.cli.options import (
    AsJson,
    Bits,
    Cache,
    Context,
    Device,
    Force,
    Format,
    Kind,
    ManyValues,
    Method,
    NoCache,
    OnDevice,
    Preset,
    Recording,
    Recordings,
    References,
    Search,
    Seed,
    given_options,
    neural_settings,
    pursuit_settings,
)
from jaxsep.cli.process import Stopped, check_outside, new_file, start_jax, stoppable
from jaxsep.cli.terminal import TerminalProgress, show_evaluation, show_separation

__all__ = ["app", "main"]

app = typer.Typer(
    help="Blind separation of the instruments in a music recording.",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)

#: An option or argument that typer refuses.
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
        with stoppable():
            return typer.main.get_command(app)(arguments, prog_name="jaxsep", standalone_mode=False) or 0
    except _UsageError as error:
        return _complain(error.format_message())
    except OSError as error:
        return _complain(": ".join(str(x) for x in (error.filename, error.strerror or error) if x))
    except (ValueError, FloatingPointError, MemoryError) as error:
        return _complain(str(error) or "not enough memory")
    except Stopped as stopped:
        _complain("interrupted" if stopped.number == signal.SIGINT else "terminated")
        sys.stdout.flush()
        os._exit(128 + stopped.number)  # threads that still compile would hold the process for half a minute


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


@app.command(cls=ManyValues)
def separate(
    context: Context,
    mixtures: Recordings,
    num_instruments: Annotated[
        int,
        typer.Option("--instruments", "-n", metavar="N", min=1, max=16, help="How many instruments play."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="New folder for the results.")
    ],
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Take the I-th of every N recordings, so that N processes share them; what is finished is "
            "skipped.",
        ),
    ] = None,
    seed: Seed = 0,
    fast: Annotated[
        bool, typer.Option("--fast", help="Two thirds of the time: --restarts 2 --steps 48 --hop 1024.")
    ] = False,
    restarts: Annotated[
        int, typer.Option(metavar="R", min=1, help="Dictionaries to learn, the best of which is used.")
    ] = 4,
    steps: Annotated[
        int, typer.Option(metavar="K", min=1, help="Minibatches to learn each dictionary from.")
    ] = 96,
    tones_per_instrument: Annotated[
        int, typer.Option("--tones", metavar="T", min=1, help="Tones that an instrument plays at a time.")
    ] = 1,
    method: Annotated[
        Method,
        typer.Option(
            help="pursuit: sparse pursuit; blasso: the convex Beurling LASSO; neural: a U-Net trained on MIX."
        ),
    ] = Method.pursuit,
    preset: Annotated[
        Preset, typer.Option(help="Sizes of the network of neural: small suits CPUs, paper needs a GPU.")
    ] = Preset.small,
    minutes: Annotated[
        float | None, typer.Option(metavar="M", min=0, help="Budget of the training of neural.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to keep the training of neural, to --resume.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the training kept in --checkpoint.")
    ] = False,
    alpha: Annotated[
        float, typer.Option(metavar="A", help="Penalty of blasso, between 0 and 1: more gives fewer tones.")
    ] = 0.3,
    search: Annotated[
        Search, typer.Option(help="full: tones of all frames and the dictionary in turn; greedy: P1 alone.")
    ] = Search.full,
    rounds: Annotated[int, typer.Option(metavar="N", min=0, help="Turns of the full search.")] = 2,
    no_timbre: Annotated[
        bool, typer.Option("--no-timbre", help="The same harmonics at every pitch, as in P1.")
    ] = False,
    dictionary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="dictionary.npz of an earlier run, instead of learning; with neural, to begin with.",
        ),
    ] = None,
    device: OnDevice = None,
    hop: Annotated[
        int, typer.Option(metavar="H", help="Samples between frames, at 48 kHz; a divisor of 6144.")
    ] = 512,
    full_peaks: Annotated[
        bool, typer.Option("--full-peaks", help="Refine every spectral peak, as P1 does: 60 times as slow.")
    ] = False,
    no_masking: Annotated[
        bool, typer.Option("--no-masking", help="Play the tones alone, instead of masking the mixture.")
    ] = False,
    phase_iterations: Annotated[int, typer.Option(metavar="I", min=1, help="Griffin-Lim iterations.")] = 1,
    share: Annotated[
        float,
        typer.Option(metavar="E", min=0, help="Part of the unexplained energy that the instruments share."),
    ] = 1e-4,
    part: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=20,
            help="A longer recording is separated in parts of this length, with one dictionary; the memory "
            "does not grow with it.",
        ),
    ] = 120.0,
    audio_format: Annotated[
        Format, typer.Option("--format", help="Kind of file for the stems.")
    ] = Format.wav,
    bits: Annotated[
        Bits | None,
        typer.Option(help="Bits of a sample: 16, 24 or, as floating point in WAV, 32.  [default: the most]"),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Write a page to listen to as well.")] = False,
    reference: References = [],  # noqa: B006 (typer copies it)
    cache: Cache = None,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Separate a recording into its instruments.

    OUT receives the mixture, a stem for each instrument, the dictionary, the tones (CSV), the notes (CSV,
    MIDI, labels for Audacity, layers for Sonic Visualiser), a picture, and a JSON document of settings and
    figures; with --report a page to listen to. It appears complete or not at all.

    Of several recordings each has such a folder in OUT, named as its file. Those that are there already with
    the same settings are skipped, and a recording that fails does not stop the others.
    """
    given = given_options(context, method)
    audio = _audio_format(audio_format, bits)
    if reference and not report:
        raise ValueError("--reference is for the page; add --report, or use jaxsep evaluate.")
    alone = len(mixtures) == 1 and shard is None
    for option, value in (("--reference", reference), ("--checkpoint", checkpoint)):
        if value and not alone:
            raise ValueError(f"{option}: expected with one recording, got {len(mixtures)}.")
    jobs = [Job(mixtures[0], output)] if alone else plan(mixtures, output, shard)
    for job in jobs:
        check_outside(job.folder, *mixtures, dictionary, checkpoint, *reference)

    from jaxsep.cli.work import Training, Work

    neural = method is Method.neural
    work = Work(
        start_jax=partial(start_jax, device, cache, no_cache),
        settings=partial(neural_settings, preset) if neural else partial(pursuit_settings, context, given),
        training=Training(minutes, checkpoint, resume) if neural else None,
        num_instruments=num_instruments,
        seed=seed,
        part=None if neural else part,
        dictionary=dictionary,
        audio=audio,
        report=report,
        references=reference,
        skip=not alone,
        force=force,
    )
    if alone:
        with TerminalProgress() as progress:
            document, _ = work(jobs[0], progress)
        if as_json:
            _print_json(document)
        else:
            show_separation(document, output)
        return
    _work_through(jobs, work, as_json)


def _work_through(jobs: list[Job], work: Callable[..., tuple[dict[str, Any], bool]], as_json: bool) -> None:
    """Every job, whatever happens to the others; raises `ValueError` at the end if some failed."""
    documents, failed = [], []
    for number, job in enumerate(jobs, start=1):
        begin = f"{number} of {len(jobs)}, {job.recording}"
        try:
            with TerminalProgress() as progress:
                progress.say(begin)
                document, new = work(job, progress)
        except (ValueError, OSError, FloatingPointError, MemoryError) as error:
            _complain(f"{job.recording}: {error}")
            failed.append(str(job.recording))
            continue
        documents.append(document)
        if new and not as_json:
            show_separation(document, job.folder)
        elif not as_json:
            print(f"{begin}: finished before, in {job.folder}")
    if as_json:
        _print_json(documents)
    if failed:
        raise ValueError(f"{len(failed)} of {len(jobs)} recordings failed: {', '.join(failed)}.")


def _print_json(document: Any) -> None:
    from jaxsep.results.document import to_json

    sys.stdout.write(to_json(document))


@app.command(cls=ManyValues)
def evaluate(
    reference: Annotated[list[Path], typer.Option(metavar="FILE...", help="The true stems.")],
    estimate: Annotated[
        list[Path], typer.Option(metavar="FILE...", help="The separated stems, in any order.")
    ],
    cache: Cache = None,
    no_cache: NoCache = False,
    as_json: AsJson = False,
) -> None:
    """Measure separated stems against the true ones.

    SDR, SIR and SAR come in two kinds that must not be compared with each other: one forgives a constant
    gain, the other any filter of 512 taps, which gives higher figures.

    Stems with several channels are averaged. Lengths that differ by less than 1 % are cut to the shortest.
    """
    from jaxsep.cli.references import read_stems

    references, estimates, note = read_stems(reference, estimate)
    with TerminalProgress() as progress, progress.stage("measuring", 1):
        start_jax(Device.cpu, cache, no_cache)
        from jaxsep.results.document import evaluation_document, to_json

        names = [str(path) for path in reference], [str(path) for path in estimate]
        document = evaluation_document(references, estimates, *names) | {"note": note}
        progress.advance("measuring")
    if as_json:
        sys.stdout.write(to_json(document))
    else:
        show_evaluation(document)
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
    from jaxsep.audio import read_audio
    from jaxsep.cli.references import read_references
    from jaxsep.results.read import read_document

    document = read_document(folder)
    path = folder / "report.html"
    with new_file(path, force, ".html") as draft, TerminalProgress() as progress:
        samples, sample_rate = read_audio(folder / document["mixture"])
        truth = read_references(reference, len(document["stems"]), samples.shape[1], sample_rate)
        start_jax(Device.cpu, cache, no_cache)
        from jaxsep.report.page import write_page

        write_page(folder, draft, truth, [path.stem for path in reference], progress)
    print(f"results: {path}")


@app.command()
def spectrogram(
    mixture: Recording,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PNG", help="New picture.")],
    kind: Annotated[
        Kind, typer.Option(help="log: from spectral peaks; mel; cqt: constant-Q; linear: the STFT.")
    ] = Kind.log,
    device: OnDevice = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    force: Force = False,
) -> None:
    """Draw the spectrogram of a recording."""
    from jaxsep.audio import read_audio

    if output.exists() and mixture.exists() and output.samefile(mixture):
        raise ValueError(f"{output} is the recording itself; name another file for the picture.")
    with new_file(output, force) as draft, TerminalProgress() as progress:
        samples, sample_rate = read_audio(mixture)
        start_jax(device, cache, no_cache)
        from jaxsep.report.spectrograms import spectrogram_figure

        with progress.stage("spectrogram", 1):
            spectrogram_figure(samples, sample_rate, draft, kind=kind.value, title=mixture.name)
            progress.advance("spectrogram")


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
    from jaxsep.audio import demo_recording
    from jaxsep.files import OutputFolder

    with OutputFolder(output, force=force) as folder, TerminalProgress() as progress:
        mixture, stems, sample_rate = demo_recording()
        start_jax(device, cache, no_cache)
        import jax
        import numpy as np

        from jaxsep.report.page import write_page
        from jaxsep.results.document import evaluation_document
        from jaxsep.results.write import write_separation
        from jaxsep.separation import separate as pursuit
        from jaxsep.separation.settings import SeparationSettings

        settings, key = SeparationSettings(), jax.random.key(seed)
        separation = pursuit.separate(
            mixture, sample_rate, len(stems), settings=settings, progress=progress, key=key
        )
        about = {"settings": settings, "seed": seed, "source": {"file": "mixture.wav", "dictionary": None}}
        document = write_separation(folder, mixture, separation, _audio_format(), progress, **about)
        truth = np.stack(list(stems.values()))
        scores = evaluation_document(truth, separation.stems, list(stems), document["stems"])
        write_page(folder, folder / "report.html", truth, list(stems), progress)
    show_separation(document, output)
    show_evaluation(scores)


def _audio_format(audio_format: Format = Format.wav, bits: Bits | None = None) -> tuple[str, str]:
    """Suffix of audio files, and libsndfile's name of the sample format."""
    if audio_format == Format.flac:
        if bits == Bits.b32:
            raise ValueError("--bits: FLAC has 16 or 24, got 32; use --format wav for more.")
        return ".flac", f"PCM_{(bits or Bits.b24).value}"
    return ".wav", "FLOAT" if bits in (None, Bits.b32) else f"PCM_{bits.value}"

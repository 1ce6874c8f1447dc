"""The command line: `jaxsep separate`, `report`, `evaluate`, `spectrogram` and `demo`.

JAX is imported only when there is something to compute, so that help and mistakes are answered at once.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import jaxsep
from jaxsep.batch import Job, fingerprint, finished_document, plan
from jaxsep.options import (
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
    pursuit_settings,
)
from jaxsep.runtime import Stopped, check_outside, new_file, start_jax, stoppable
from jaxsep.terminal import TerminalProgress, show_evaluation, show_separation

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

    def chosen_settings() -> Any:
        if method is not Method.neural:
            return pursuit_settings(context, given)
        from jaxsep.neural.training import NeuralSettings

        return getattr(NeuralSettings, preset.value)()

    def work(job: Job, progress: TerminalProgress) -> tuple[dict[str, Any], bool]:
        """Document of a recording's results, and whether they are new."""
        from jaxsep.audio import OutputFolder, read_audio
        from jaxsep.recording import Recording

        source = {"file": job.recording.name, "dictionary": None if dictionary is None else dictionary.name}
        if method is not Method.neural:
            source["longest_part_s"] = part
        if not alone:
            source["sha256"] = fingerprint(job.recording)
            settings = asdict(chosen_settings())
            about = {"num_instruments": num_instruments, "seed": seed, "settings": settings}
            known = finished_document(job.folder, {**about, "input": source}, audio[0], report)
            if known and not force:
                return known, False
        with Recording(job.recording) as recording:
            long = method is not Method.neural and recording.duration > part
            if long and report:
                raise ValueError(
                    f"--report: expected a recording of at most --part {part:g} s, "
                    f"got {recording.duration:.0f} s; the page holds all of the sound."
                )
        with OutputFolder(job.folder, force=force) as folder:
            if long:
                start_jax(device, cache, no_cache)
                import jax

                from jaxsep.report.results import write_parts
                from jaxsep.separators.parts import separate_parts
                from jaxsep.tones.dictionary import Dictionary

                settings = chosen_settings()
                parts = separate_parts(
                    job.recording,
                    num_instruments,
                    seconds=part,
                    settings=settings,
                    dictionary=None if dictionary is None else Dictionary.load(dictionary),
                    progress=progress,
                    key=jax.random.key(seed),
                )
                about = {"settings": settings, "seed": seed, "source": source}
                return write_parts(folder, job.recording, parts, audio, **about), True
            samples, sample_rate = read_audio(job.recording)
            truth = _read_references(reference, num_instruments, samples.shape[1], sample_rate)
            start_jax(device, cache, no_cache)
            import jax

            from jaxsep.separators import neural, pursuit
            from jaxsep.tones.dictionary import Dictionary

            settings = chosen_settings()
            run: Any = pursuit.separate
            if method is Method.neural:
                options = {"minutes": minutes, "checkpoint": checkpoint, "resume": resume}
                run = partial(neural.separate_neural, log=folder / "training.jsonl", **options)
            separation = run(
                samples,
                sample_rate,
                num_instruments,
                settings=settings,
                dictionary=None if dictionary is None else Dictionary.load(dictionary),
                progress=progress,
                key=jax.random.key(seed),
            )
            document = _write_results(
                folder, samples, separation, progress, audio, settings=settings, seed=seed, source=source
            )
            if report:
                _write_page(folder, folder / "report.html", reference, truth, progress)
        return document, True

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
    from jaxsep.report.tables import to_json

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
    references, estimates, note = _read_stems(reference, estimate)
    with TerminalProgress() as progress, progress.stage("measuring", 1):
        start_jax(Device.cpu, cache, no_cache)
        from jaxsep.report.tables import evaluation_document, to_json

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
    from jaxsep.report.folder import read_document

    document = read_document(folder)
    path = folder / "report.html"
    with new_file(path, force, ".html") as draft, TerminalProgress() as progress:
        samples, sample_rate = read_audio(folder / document["mixture"])
        truth = _read_references(reference, len(document["stems"]), samples.shape[1], sample_rate)
        start_jax(Device.cpu, cache, no_cache)
        _write_page(folder, draft, reference, truth, progress)
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
    from jaxsep.audio import OutputFolder, demo_recording

    with OutputFolder(output, force=force) as folder, TerminalProgress() as progress:
        mixture, stems, sample_rate = demo_recording()
        start_jax(device, cache, no_cache)
        import jax
        import numpy as np

        from jaxsep.report.tables import evaluation_document
        from jaxsep.separators import pursuit
        from jaxsep.separators.separation import PursuitSettings

        settings, key = PursuitSettings(), jax.random.key(seed)
        separation = pursuit.separate(
            mixture, sample_rate, len(stems), settings=settings, progress=progress, key=key
        )
        source = {"file": "mixture.wav", "dictionary": None}
        document = _write_results(
            folder,
            mixture,
            separation,
            progress,
            _audio_format(),
            settings=settings,
            seed=seed,
            source=source,
        )
        truth = np.stack(list(stems.values()))
        scores = evaluation_document(truth, separation.stems, list(stems), document["stems"])
        _write_page(folder, folder / "report.html", list(stems), truth, progress)
    show_separation(document, output)
    show_evaluation(scores)


def _audio_format(audio_format: Format = Format.wav, bits: Bits | None = None) -> tuple[str, str]:
    """Suffix of audio files, and libsndfile's name of the sample format."""
    if audio_format == Format.flac:
        if bits == Bits.b32:
            raise ValueError("--bits: FLAC has 16 or 24, got 32; use --format wav for more.")
        return ".flac", f"PCM_{(bits or Bits.b24).value}"
    return ".wav", "FLOAT" if bits in (None, Bits.b32) else f"PCM_{bits.value}"


def _write_results(
    folder: Path, samples, separation, progress: TerminalProgress, audio: tuple[str, str], **about: Any
) -> dict[str, Any]:
    """Writes everything that a separation found into a folder, and returns its JSON document."""
    from jaxsep.report.folder import write_tracks
    from jaxsep.report.plots import overview
    from jaxsep.report.results import write_findings

    tracks = write_tracks(folder, samples, separation, *audio)
    with progress.stage("overview", 1):
        overview(separation, samples, separation.sample_rate, folder / "overview.png")
        progress.advance("overview")
    return write_findings(folder, separation, tracks, **about)


def _write_page(folder: Path, target: Path, references, truth, progress: TerminalProgress) -> None:
    """Writes the listening page of a folder of results, with figures if there are true stems."""
    from jaxsep.report.folder import read_results
    from jaxsep.report.page import listening_page
    from jaxsep.report.tables import evaluation_document

    with progress.stage("report", 1):
        results, scores = read_results(folder), None
        # Silence cannot be measured.
        if truth is not None and results.stems.any(axis=(1, 2)).all():
            names = [Path(path).stem for path in references]
            scores = evaluation_document(
                truth, results.stems.mean(axis=1)[:, : truth.shape[1]], names, results.document["stems"]
            )
        target.write_text(listening_page(results, scores), encoding="utf-8")
        progress.advance("report")


def _read_references(paths: list[Path], num_instruments: int, num_samples: int, sample_rate: int):
    """Samples `[files, samples]` of true stems that belong to a mixture, or None without any."""
    import numpy as np

    from jaxsep.audio import read_audio

    if not paths:
        return None
    if len(paths) != num_instruments:
        raise ValueError(
            f"--reference: expected {num_instruments} files, one for each stem, got {len(paths)}."
        )
    tracks = []
    for path in paths:
        samples, rate = read_audio(path)
        _check_alike(path, samples.shape[1], rate, "the mixture", num_samples, sample_rate)
        tracks.append(samples.mean(axis=0)[:num_samples])
    return np.stack([track[: min(map(len, tracks))] for track in tracks])


def _check_alike(path, num_samples, rate, other, wanted_samples, wanted_rate):
    if rate != wanted_rate:
        raise ValueError(f"{path} has {rate} samples per second, expected {wanted_rate} as {other} has.")
    if abs(num_samples - wanted_samples) > 0.01 * wanted_samples:
        raise ValueError(f"{path} has {num_samples} samples, expected {wanted_samples} as {other} has.")


def _read_stems(references: list[Path], estimates: list[Path]):
    """Samples `[files, samples]` of both lists, averaged over channels and cut to one length, and a note."""
    import numpy as np

    from jaxsep.audio import read_audio

    if len(references) != len(estimates):
        raise ValueError(
            f"--estimate: expected {len(references)} files as for --reference, got {len(estimates)}."
        )
    paths = references + estimates
    recordings = [read_audio(path) for path in paths]
    rates = [rate for _, rate in recordings]
    lengths = [samples.shape[1] for samples, _ in recordings]
    for path, rate, length in zip(paths, rates, lengths, strict=True):
        _check_alike(path, length, rate, paths[0], lengths[0], rates[0])
    note = f"cut to the shortest, {min(lengths)} samples" if len(set(lengths)) > 1 else ""
    mono = np.stack([samples[:, : min(lengths)].mean(axis=0) for samples, _ in recordings])
    return mono[: len(references)], mono[len(references) :], note

"""Options of the command line: those that commands share, and those that the settings name."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer
from typer.core import TyperCommand

from jaxsep.audio import FORMATS
from jaxsep.notes.reading import read_notes
from jaxsep.notes.score import Score
from jaxsep.results.schema import read_document
from jaxsep.separation.settings import METHODS, SeparationSettings
from jaxsep.tones.library import SHIPPED, read_about

__all__ = [
    "AsJson",
    "Cache",
    "Context",
    "Force",
    "ManyValues",
    "NoCache",
    "Notes",
    "OnDevice",
    "Players",
    "Recording",
    "Recordings",
    "References",
    "Seed",
    "audio_format",
    "given_options",
    "library_folder",
    "notes_given",
    "players_given",
    "separation_settings",
    "settings_from",
    "with_settings",
]

#: What a command is told about its options; typer passes an object of the base class.
Context = typer.Context.__base__

_READABLE = "(WAV, FLAC, AIFF, Ogg, MP3, M4A, WMA)"

Recordings = Annotated[
    list[Path],
    typer.Argument(
        metavar="MIX...",
        readable=False,  # which is said of each recording, and keeps none of the others back
        help=f"The recording {_READABLE}; with several, OUT has a folder for each.",
        show_default=False,
    ),
]
Recording = Annotated[
    Path, typer.Argument(metavar="MIX", help=f"The recording {_READABLE}.", show_default=False)
]

#: More than anyone can tell apart blindly.
_MOST_PLAYERS = 16

Players = Annotated[
    str | None,
    typer.Option(
        "--instruments",
        "-n",
        metavar="N",
        help="How many instruments play, or which, such as violin,cello: learning begins with what they "
        "sound like.  [default: as many as --notes has]",
    ),
]
Seed = Annotated[
    int, typer.Option(metavar="S", min=0, max=2**32 - 1, help="The same seed gives the same result.")
]
OnDevice = Annotated[
    Literal["cpu", "gpu"] | None,
    typer.Option("--device", help="Where to compute.  [default: the fastest there is]"),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        envvar="JAXSEP_CACHE",
        help="Folder for compiled programs, which spares the next run the compilation.  "
        "[default: jaxsep in the user's cache folder]",
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no compiled programs.")]
References = Annotated[
    list[Path],
    typer.Option(
        "--reference",
        metavar="FILE...",
        help="True stems, one for each instrument in any order, to measure the result against.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if there is one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the JSON document and nothing else.")]


#: Methods to which an option belongs that is none of the settings; the others belong to all.
_METHODS = {
    **dict.fromkeys(["fast", "part", "like"], METHODS),
    **dict.fromkeys(["notes", "notes_are", "align", "earlier"], ("pursuit",)),
    **dict.fromkeys(["preset", "minutes", "checkpoint", "resume"], ("neural",)),
}


def with_settings(after: str) -> Callable[[Callable], Callable]:
    """Gives a command the options that the fields of `SeparationSettings` name, behind its parameter `after`.

    Their values reach the command by the names of the fields; `separation_settings` takes them.
    """

    def decorate(command):
        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        position = 1 + [p.name for p in own].index(after)
        parameters = [*own[:position], *map(_parameter, _fields().values()), *own[position:]]
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters]
        # Typer reads both.
        command.__signature__ = signature.replace(parameters=parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _fields():
    """The fields that are options, by name."""
    fields = dataclasses.fields(SeparationSettings)
    return {field.name: field for field in fields if field.metadata["option"]}


def _parameter(field):
    about = field.metadata
    name, _, metavar = about["option"].partition(" ")
    text = about["help"] or about["about"]
    text = text if about["choices"] else text[:1].upper() + text[1:]  # a choice keeps its name
    plain = {"min": about["least"]} if about["read"] is None else {"parser": _reader(about["read"])}
    option = typer.Option(name, metavar=metavar or None, help=text, **plain)
    kind = Literal[about["choices"]] if about["choices"] else field.type
    kind = kind if about["read"] is None else str | None  # what is read, typer need not understand
    default = field.default if kind is not bool else False  # a flag changes the default
    annotation = Annotated[kind, option]
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _reader(read):
    """As `read`, with errors that typer repeats."""

    def parse(value):
        try:
            return read(str(value))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parse


def given_options(context: Context, method: str) -> set[str]:
    """Names of the options that were not left at their defaults; refuses those without effect on a method."""
    own = {name: field.metadata["method"] for name, field in _fields().items()}
    fits = {**_METHODS, **{name: (only,) if only else METHODS for name, only in own.items()}}
    given = set()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        if source is None or source.name == "DEFAULT":
            continue
        given.add(parameter.name)
        methods = fits.get(parameter.name, (method,))
        if method not in methods:
            raise ValueError(
                f"{parameter.opts[0]}: expected with --method {' or '.join(methods)}, got --method {method}."
            )
    return given


def separation_settings(
    method: str, options: dict[str, Any], fast: bool, given: set[str]
) -> SeparationSettings:
    """The settings of a command.

    Arguments:
        method: one of theirs.
        options: values by the names of the fields; of flags, whether they were given.
        fast: whether to take what the quick preset changes, but for the `given` options.
        given: names of the options that are not defaults.
    """
    flags = {name: field.default for name, field in _fields().items() if field.type is bool}
    values = options | {name: options[name] ^ default for name, default in flags.items()}
    if fast:
        values |= {name: value for name, value in SeparationSettings.FAST.items() if name not in given}
    settings = SeparationSettings(method=method, **values)
    if "steps" in given and not settings.num_learned:
        raise ValueError("--steps: expected with --restarts or --search greedy, else nothing is learned.")
    return settings


class Notes(NamedTuple):
    """Known notes: the name of their file, the notes, how much they bind, and whether to align them."""

    file: str
    score: Score
    are: str
    align: bool


#: The library that ships with the package, as an option calls it.
_ORCHESTRA = "orchestra"


def library_folder(like: str | None) -> Path | None:
    """The folder of an earlier run, if it is the library of an option."""
    return None if like in (None, _ORCHESTRA) else Path(like)


def players_given(
    text: str | None, like: str | None, method: str, given: set[str]
) -> tuple[int | None, tuple[str, ...]]:
    """How many instruments play, and their names, if they are told; refuses those that nobody knows.

    Arguments:
        text, like, method: values of the options.
        given: names of the options that are not defaults.
    """
    folder = library_folder(like)
    known = read_about(SHIPPED).names if folder is None else read_document(folder).get("names", [])
    instruments = None if text is None else _players(text)
    if not isinstance(instruments, tuple):
        return instruments, ()
    for name in instruments:
        if name not in known:
            raise ValueError(f"--instruments: expected a number, or some of {', '.join(known)}, got {name}.")
    if method not in METHODS:
        raise ValueError(f"--instruments: expected a number with --method {method}, got names.")
    for name in ("notes", "dictionary", "restarts"):
        if name in given:
            raise ValueError(
                f"--{name}: expected without names in --instruments, with which learning begins."
            )
    return len(instruments), instruments


def _players(text: str) -> int | tuple[str, ...]:
    """How many instruments play, or which."""
    names = tuple(" ".join(name.split()) for name in text.split(","))
    numeric = re.fullmatch(r"[+-]?\d+", names[0]) and len(names) == 1
    number = int(names[0]) if numeric else len(names)
    if not 1 <= number <= _MOST_PLAYERS:
        raise ValueError(f"--instruments: expected 1 to {_MOST_PLAYERS}, got {number}.")
    if not all(names):
        raise ValueError(f"--instruments: expected a number, or names such as violin,cello, got {text!r}.")
    return number if numeric else names


#: What is learned where no notes are known, and searched where not all are.
_LEARNING, _SEARCHING = ("restarts", "steps"), ("search", "rounds")


def notes_given(
    path: Path | None, notes_are: str, align: bool, num_instruments: int | None, given: set[str]
) -> Notes | None:
    """The notes of a file, if there is one; refuses options that have no effect with it, or without.

    Arguments:
        path, notes_are, align, num_instruments: values of the options.
        given: names of the options that are not defaults.
    """
    if path is None:
        if num_instruments is None:
            raise ValueError("--instruments: expected their number, or --notes, got neither.")
        for name in ("notes_are", "align"):
            if name in given:
                raise ValueError(f"--{name.replace('_', '-')}: expected with --notes.")
        return None
    for name in _LEARNING:
        if name in given:
            raise ValueError(f"--{name}: expected without --notes, which teach the instruments.")
    if notes_are == "all":
        for name in _SEARCHING:
            if name in given:
                raise ValueError(f"--{name}: expected with notes to search, got --notes-are all.")
    score = read_notes(path)
    if score.num_instruments > (num_instruments or score.num_instruments):
        raise ValueError(
            f"--instruments: expected at least the {score.num_instruments} of {path}, got {num_instruments}."
        )
    return Notes(path.name, score, notes_are, align)


#: What an earlier run has decided, or makes needless.
_DECIDED = (
    "hop",
    "tones_per_instrument",
    "lowest",
    "highest",
    "search",
    "fast",
    "align",
    "dictionary",
)


def settings_from(
    earlier: Path, notes: Notes | None, options: dict[str, Any], given: set[str]
) -> SeparationSettings:
    """The settings of an earlier run, but for the given options; refuses those that it leaves no choice.

    Arguments:
        earlier: its folder.
        notes: that are known, which there must be.
        options: values by the names of the fields.
        given: names of the options that are not defaults.
    """
    if notes is None:
        raise ValueError("--from: expected with --notes, its notes.csv as they were corrected.")
    if "notes_are" in given and notes.are != "held":
        raise ValueError(f"--from: expected notes that are held, got --notes-are {notes.are}.")
    for name in _DECIDED:
        if name in given:
            option = name if name not in _fields() else _fields()[name].metadata["option"].split()[0][2:]
            raise ValueError(f"--{option}: expected without --from, whose run has decided it.")
    document = read_document(earlier)
    try:
        settings = SeparationSettings(**document["settings"])
        sound = document["input"]["samples"] / document["input"]["sample_rate"] > 0
    except (KeyError, TypeError, ValueError, ArithmeticError):
        settings, sound = None, False
    if not sound or settings.method != "pursuit" or settings.search != "full":
        raise ValueError(f"--from: expected the folder of a full search by this version, got {earlier}.")
    flags = {name for name, field in _fields().items() if field.type is bool}
    changed = {name: not value if name in flags else value for name, value in options.items()}
    return dataclasses.replace(settings, **{name: changed[name] for name in changed if name in given})


def audio_format(name: str, bits: int | None) -> tuple[str, str]:
    """Suffix of audio files, and libsndfile's name of the sample format; by default that of most bits."""
    suffix = f".{name}"
    known = FORMATS[suffix]
    if bits is not None and bits not in known.subtypes:
        choices = " or ".join(map(str, known.subtypes))
        raise ValueError(f"--bits: expected {choices} with --format {name}, got {bits}.")
    return suffix, known.best if bits is None else known.subtypes[bits]


class ManyValues(TyperCommand):
    """A command of which `--option A B` means `--option A --option B` for options that can be repeated."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        repeatable = {name for p in self.params if getattr(p, "multiple", False) for name in p.opts}
        expanded: list[str] = []
        option = None
        for argument in args:
            if argument.startswith("-"):
                option = argument.partition("=")[0]
            elif option in repeatable and expanded[-1] != option:
                expanded.append(option)
            expanded.append(argument)
        return super().parse_args(ctx, expanded)

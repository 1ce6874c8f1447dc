"""Options of the command line: their values, those that commands share, and the settings they make."""

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

__all__ = [
    "AsJson",
    "Bits",
    "Cache",
    "Context",
    "Device",
    "Force",
    "Format",
    "Kind",
    "ManyValues",
    "Method",
    "NoCache",
    "OnDevice",
    "Preset",
    "Recording",
    "Recordings",
    "References",
    "Search",
    "Seed",
    "given_options",
    "neural_settings",
    "pursuit_settings",
]

#: What a command is told about its options.
Context = typer.Context.__base__


class Device(StrEnum):
    """Where to compute."""

    cpu = "cpu"
    gpu = "gpu"


class Method(StrEnum):
    """How to decompose the spectra."""

    pursuit = "pursuit"
    blasso = "blasso"
    neural = "neural"


class Preset(StrEnum):
    """Sizes of the network, as `NeuralSettings` names them."""

    paper = "paper"
    small = "small"


class Search(StrEnum):
    """How to look for tones, as `SeparationSettings` names it."""

    full = "full"
    greedy = "greedy"


class Format(StrEnum):
    """Kinds of audio files that stems are written as."""

    wav = "wav"
    flac = "flac"


class Bits(StrEnum):
    """Bits of a sample; the 32 of WAV are a floating-point number, which cannot clip."""

    b16 = "16"
    b24 = "24"
    b32 = "32"


class Kind(StrEnum):
    """Kinds of spectrogram, as `spectrogram_figure` names them."""

    log = "log"
    mel = "mel"
    cqt = "cqt"
    linear = "linear"


_READABLE = "(WAV, FLAC, AIFF, Ogg, MP3)"

Recordings = Annotated[
    list[Path],
    typer.Argument(
        metavar="MIX...",
        help=f"The recording {_READABLE}; with several, OUT has a folder for each.",
        show_default=False,
    ),
]
Recording = Annotated[
    Path, typer.Argument(metavar="MIX", help=f"The recording {_READABLE}.", show_default=False)
]
Seed = Annotated[
    int, typer.Option(metavar="S", min=0, max=2**32 - 1, help="The same seed gives the same result.")
]
OnDevice = Annotated[
    Device | None, typer.Option("--device", help="Where to compute.  [default: the fastest there is]")
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
        help="True stems, one for each instrument in any order, to measure the result against on the page.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if there is one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the JSON document and nothing else.")]


#: Methods to which an option belongs; the others belong to all.
_SELECTION = ["fast", "restarts", "steps", "tones_per_instrument", "search", "rounds", "no_timbre"]
_SELECTION += ["hop", "full_peaks"]
_RESYNTHESIS = ["no_masking", "phase_iterations", "share", "part"]
_TRAINING = ["preset", "minutes", "checkpoint", "resume"]
_METHODS = {
    **dict.fromkeys(_SELECTION + _RESYNTHESIS, ("pursuit", "blasso")),
    "alpha": ("blasso",),
    **dict.fromkeys(_TRAINING, ("neural",)),
}


def given_options(context: Context, method: Method) -> set[str]:
    """Names of the options that were not left at their defaults; refuses those without effect on a method."""
    given = set()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        if source is None or source.name == "DEFAULT":
            continue
        given.add(parameter.name)
        methods = _METHODS.get(parameter.name, (method.value,))
        if method.value not in methods:
            raise ValueError(
                f"{parameter.opts[0]}: expected with --method {' or '.join(methods)}, "
                f"got --method {method.value}."
            )
    return given


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


def pursuit_settings(context: Context, given: set[str]) -> Any:
    """The `SeparationSettings` of the options that carry the names of its fields.

    Arguments:
        context: of the command.
        given: names of the options that are not defaults; `--fast` leaves these as they are.
    """
    from jaxsep.separation.settings import SeparationSettings

    negated = {name: not context.params[f"no_{name}"] for name in ("masking", "timbre")}
    options = {**context.params, **negated}
    fields = {field.name for field in dataclasses.fields(SeparationSettings)}
    plain = lambda value: value.value if isinstance(value, StrEnum) else value
    chosen = {name: plain(value) for name, value in options.items() if name in fields}
    if options["fast"]:
        chosen |= {name: value for name, value in SeparationSettings.FAST.items() if name not in given}
    return SeparationSettings(**chosen)


def neural_settings(preset: Preset) -> Any:
    """The `NeuralSettings` of a preset."""
    from jaxsep.neural.settings import NeuralSettings

    return getattr(NeuralSettings, preset.value)()

"""Settings whose fields say what they are and which values they may have; needs no JAX."""

import dataclasses
import math
import textwrap
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args

__all__ = ["check_settings", "described", "setting"]

_Class = TypeVar("_Class", bound=type)


def setting(
    default: Any,
    about: str,
    *,
    least: int | float | None = None,
    above: int | float = -math.inf,
    below: int | float = math.inf,
    choices: tuple[str, ...] = (),
    option: str | None = None,
    help: str | None = None,
    method: str | None = None,
    read: Callable[[str], Any] | None = None,
) -> Any:
    """A field of a dataclass of settings.

    Arguments:
        default: its value.
        about: what it is: for the docstring and the command line.
        least: the smallest value of a number.
        above, below: what a number must be between, instead.
        choices: the values of a name.
        option: its name on the command line and that of its value, such as `"--steps K"`; without one it is
            for the library alone. An option `--no-…` makes it false.
        help: what the option does, where `about` does not say it well.
        method: the only one that the option belongs to.
        read: takes the value from the text of the option, where that is not plain.
    """
    return dataclasses.field(default=default, metadata={**locals()})


def described(settings: _Class) -> _Class:
    """A dataclass of settings with its fields in the docstring, in the place of `{fields}`."""
    wrap = textwrap.TextWrapper(110, initial_indent=" " * 8, subsequent_indent=" " * 12)
    fields = (wrap.fill(f"{field.name}: {field.metadata['about']}") for field in dataclasses.fields(settings))
    settings.__doc__ = (settings.__doc__ or "").replace("{fields}", "\n".join(["Arguments:", *fields]))
    return settings


def check_settings(settings: Any) -> None:
    """Raises `ValueError` (name: expected, got) unless every field has one of its possible values."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if wanted := _wanted(value, field.type, **field.metadata):
            raise ValueError(f"{field.name}: expected {wanted}, got {value!r}")


def _wanted(value, kind, *, choices, least, above, below, **_):
    """What a value should be if it is not."""
    if kind == int | tuple[int, ...]:
        each = value if isinstance(value, tuple) and value else (value,)
        if all(_wanted(one, int, choices=(), least=least, above=above, below=below) is None for one in each):
            return None
        return f"an integer of at least {least}, or one for each instrument"
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value is None and NoneType in kinds:
        return None
    kind = kinds[0]
    if choices:
        return None if value in choices else " or ".join(map(repr, choices))
    if kind is bool:
        return None if isinstance(value, bool) else "True or False"
    if kind not in (int, float):
        return None
    number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if number and (value > above if least is None else value >= least) and value < below:
        return None
    words = "an integer" if kind is int else "a number"
    if below < math.inf:
        return f"{words} between {above if least is None else least} and {below}"
    return f"{words} above {above}" if least is None else f"{words} of at least {least}"

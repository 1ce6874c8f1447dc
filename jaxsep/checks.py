"""Checks that several kinds of settings share."""

from collections.abc import Iterable
from typing import Any

__all__ = ["check_counts"]


def check_counts(settings: Any, names: Iterable[str], least: int = 1) -> None:
    """Raises `ValueError` unless the named fields are integers of at least `least`."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")

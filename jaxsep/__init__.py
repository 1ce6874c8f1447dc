"""Blind separation of the instruments in a music recording, as differentiable JAX modules.

Public names stand in `__init__.pyi`, in the order of the data, and are imported when they are first used:
`import jaxsep` alone starts nothing.

The examples of the reference take for granted

    import jax
    import jax.numpy as jnp
    import jaxsep
    import numpy as np
"""

import ast
import importlib
import os


def _homes():
    """The module of each public name, from the stub beside this file."""
    with open(os.path.join(os.path.dirname(__file__), "__init__.pyi"), encoding="utf-8") as stub:
        imports = [node for node in ast.parse(stub.read()).body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in imports for alias in node.names}


_HOME = _homes()

__all__ = [*_HOME, "__version__"]


def __getattr__(name):
    if name == "__version__":
        value = _version()
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


def _version():
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:
        return "unknown"  # a checkout that is not installed

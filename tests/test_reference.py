"""The reference: every public name has an example in its docstring, and the examples run."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsep

#: What the examples take for granted, as the docstring of the package says.
IMPORTS = {"jax": jax, "jnp": jnp, "np": np, "jaxsep": jaxsep}

NAMES = sorted({*jaxsep.__all__} - {"__version__"})


@pytest.mark.parametrize("name", NAMES)
def test_has_an_example(name):
    assert ">>> " in (getattr(jaxsep, name).__doc__ or ""), f"{name} has no example"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = getattr(jaxsep, name).__doc__ or ""
    example = doctest.DocTestParser().get_doctest(text, dict(IMPORTS), name, None, None)
    messages = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=messages.append)
    assert result.failed == 0, "".join(messages)


def inner_examples():
    """Examples of what is not public: the name of each, and where it stands."""
    for found in pkgutil.walk_packages(jaxsep.__path__, "jaxsep."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for example in doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=IMPORTS):
            if example.examples and example.name.rpartition(".")[2] not in NAMES:
                yield pytest.param(example, id=example.name)


@pytest.mark.slow
@pytest.mark.parametrize("example", list(inner_examples()))
def test_inner_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    messages = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=messages.append)
    assert result.failed == 0, "".join(messages)

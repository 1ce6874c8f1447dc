"""The reference: every public name has an example in its docstring, and the examples run."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsep

#: What the examples take for granted, as the docstring of the package says.
IMPORTS = {"jax": jax, "jnp": jnp, "np": np, "jaxsep": jaxsep}

NAMES = sorted({*jaxsep.__all__} - {"__version__"})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = getattr(jaxsep, name).__doc__ or ""
    example = doctest.DocTestParser().get_doctest(text, dict(IMPORTS), name, None, None)
    messages = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=messages.append)
    assert result.attempted > 0, f"{name} has no example"
    assert result.failed == 0, "".join(messages)

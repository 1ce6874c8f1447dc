"""The page about composing: its lines run in plain JAX, Flax and PyTorch, and gradients arrive."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsep

PAGE = Path(jaxsep.__file__).parent / "report" / "pages" / "composing.md"


def run(*headings):
    """The names that the blocks of these headings leave, run one after the other."""
    names = {}
    for heading in headings:
        section = re.search(
            rf"^## {heading}$(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
        (block,) = re.findall(r"^```python\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
        exec(compile(block, f"{PAGE.name}: {heading}", "exec"), names)
    return names


def gradient(names, log_harmonics, spectra):
    """Of the misfit by logarithmic harmonics and by what is described, from JAX alone."""
    loss = lambda h, s: jnp.mean((names["describe"](jnp.exp(h), s) - names["spectra"]) ** 2)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(log_harmonics, spectra)


@pytest.mark.slow
def test_plain_jax_learns_the_harmonics():
    names = run("The layer", "Plain JAX and optax")
    assert names["losses"][-1] < 0.05 * names["losses"][0]
    np.testing.assert_allclose(names["learned"], names["true"], atol=0.05)


@pytest.mark.slow
def test_gradients_arrive_in_flax():
    pytest.importorskip("flax")
    names = run("The layer", "Flax")
    value, (slope, _) = gradient(names, jnp.log(names["begin"]), names["spectra"])
    assert float(names["flax_value"]) == pytest.approx(float(value), rel=1e-5)
    np.testing.assert_allclose(names["flax_slope"]["log_harmonics"][...], slope, rtol=1e-3, atol=1e-7)
    assert np.abs(slope).max() > 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of imports within torch
def test_gradients_arrive_in_torch():
    pytest.importorskip("torch")
    names = run("The layer", "PyTorch")
    assert names["torch_losses"][-1] < 0.05 * names["torch_losses"][0]
    # The last backward pass, at the weights before the last step, is not kept: once more.
    names["torch_spectra"].grad = names["log_harmonics"].grad = None
    described = names["DescribeInTorch"].apply(names["log_harmonics"].exp(), names["torch_spectra"])
    ((described - names["torch_spectra"].detach()) ** 2).mean().backward()
    _, slopes = gradient(names, jnp.asarray(names["log_harmonics"].detach().numpy()), names["spectra"])
    for found, wanted in zip((names["log_harmonics"], names["torch_spectra"]), slopes, strict=True):
        np.testing.assert_allclose(found.grad.numpy(), wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())
        assert np.abs(wanted).max() > 0

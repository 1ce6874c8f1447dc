"""The benchmark suite counts what programs do, tells what bounds them, and compares and draws its results."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import workloads
from benchmarks.__main__ import app
from benchmarks.commands import plots, suite
from benchmarks.counting import Work, count
from benchmarks.machine import Limits, bound
from jaxsep.pursuit.tone_pursuit import TonePursuit


class TestCount:
    def test_a_product_and_its_exponential(self):
        found = count(lambda a, b: jnp.exp(a @ b) + 1, jnp.ones((10, 20)), jnp.ones((20, 30)))
        assert found == Work(300, 2 * 20 * 300, 300, 4 * (200 + 600 + 300))

    def test_a_loop_makes_the_trips_that_its_data_ask_for(self):
        halvings = lambda x: jax.lax.while_loop(lambda c: c > 1, lambda c: c / 2, x)
        # Each trip halves and each look compares, once more than there are trips.
        assert count(halvings, jnp.float32(32)).elementwise == 5 + 6
        assert count(halvings, jnp.float32(0.5)).elementwise == 1

    def test_lanes_of_a_batched_loop_wait_for_the_last(self):
        sines = lambda n: jax.lax.while_loop(
            lambda c: c[0] > 0, lambda c: (c[0] - 1, jnp.sin(c[1])), (n, 1.0)
        )
        assert count(jax.vmap(sines), jnp.array([1, 7, 2])).transcendental == 3 * 7

    @pytest.mark.parametrize("reverse", [False, True])
    def test_loops_within_loops(self, reverse):
        def total(numbers):
            def add(carry, n):
                end = jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, jnp.cos(c[1])), (0, carry))
                return end[1], end[1]

            return jax.lax.scan(add, 1.0, numbers, reverse=reverse)

        assert count(total, jnp.array([2, 0, 4])).transcendental == 6

    def test_only_the_branch_that_is_taken_counts(self):
        either = lambda x: jax.lax.cond(x > 0, lambda x: jnp.sin(jnp.cos(x)), jnp.exp, x)
        assert count(either, jnp.float32(1)).transcendental == 2
        assert count(either, jnp.float32(-1)).transcendental == 1

    def test_fixed_loops_calls_and_derivatives(self):
        repeated = lambda x: jax.lax.fori_loop(0, 5, lambda _, x: jax.jit(jnp.sin)(x), x)
        assert count(repeated, jnp.ones(3)).transcendental == 15
        # relu has a derivative of its own, which is no part of it.
        assert count(lambda x: jnp.exp(jax.nn.relu(x)), jnp.ones(3)).transcendental == 3

    def test_transforms(self):
        frames = jnp.ones((4, 256))
        assert count(jnp.fft.rfft, frames).elementwise == 2.5 * 4 * 256 * 8
        assert count(jnp.fft.fft, frames.astype(jnp.complex64)).elementwise == 5 * 4 * 256 * 8

    @pytest.mark.slow
    def test_a_pursuit_of_more_frames_does_more(self):
        spectra, rows = workloads.music(4), workloads.learned_like()
        few, many = (count(TonePursuit(), s, rows) for s in (spectra[:1], spectra))
        assert 0 < few.elementwise < many.elementwise
        result = jax.eval_shape(TonePursuit(), spectra, rows)
        results = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(result))
        assert many.moved == spectra.nbytes + rows.nbytes + results


def test_what_bounds_a_program():
    limits = Limits(elementwise=100, products=1000, transcendental=10, moved=50)
    shares = limits.shares(Work(elementwise=50, products=100, transcendental=9, moved=10), seconds=1.0)
    assert shares == pytest.approx({"elementwise": 0.5, "products": 0.1, "transcendental": 0.9, "moved": 0.2})
    assert bound(shares) == "exponentials"
    assert bound({name: 0.01 * share for name, share in shares.items()}) == "overhead (then exponentials)"


def test_a_stage_is_measured_with_its_compilation_apart():
    row = suite.measure_stage(workloads.rendering(8, "windowed"), Limits(1e9, 1e9, 1e9, 1e9), quick=True)
    assert row["frames"] == 8
    assert 0 < row["seconds"] <= row["median_seconds"]
    assert row["compile_seconds"] > 0
    assert row["work"]["moved"] > 8 * 1024 * 4
    assert json.loads(json.dumps(row)) == row


def document(slower=1.0):
    """What a run writes."""

    def row(name, frames=64, seconds=1e-3, **more):
        return {"name": name, "frames": frames, "seconds": seconds, "temporary_bytes": 2**20, **more}

    shares = {"elementwise": 0.1, "products": 0.3, "transcendental": 0.0, "moved": 0.2}
    return {
        "environment": {
            "device": "cpu",
            "platform": "cpu",
            "processor": "p",
            "cores": 2,
            "python": "3",
            "versions": {"jax": "1"},
            "commit": "c",
        },
        "stages": [row("STFT", shares=shares), row("U-Net step", seconds=slower * 1e-2, shares=shares)],
        "scaling": [row("STFT", n, axis="frames", value=n) for n in (32, 64)]
        + [row("tone pursuit", axis="bins", value=n) for n in (512, 1024)],
        "devices": [{"number": n, "frames": 64, "seconds": 1e-3 / n} for n in (1, 2)],
        "whole": {"settings": "fast", "seconds": 1.0, "first_seconds": 2.0, "peak_bytes": 2**30},
    }


def test_comparison_marks_what_became_worse(tmp_path):
    for name, content in (("old", document()), ("new", document(slower=1.5))):
        (tmp_path / name).write_text(json.dumps(content))
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "old"), str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    marked = [line for line in result.output.splitlines() if "| worse" in line]
    assert len(marked) == 1
    assert "U-Net step, 64 frames" in marked[0]
    assert "1.50×" in marked[0]
    assert "1 of " in result.output.splitlines()[-1]


def test_figures_of_other_sizes_are_not_compared():
    new = document()
    for row in new["stages"]:
        row["frames"] = 128
    names = {row["name"] for row in suite.ratios(document(), new)}
    assert "U-Net step, 64 frames" not in names
    assert "tone pursuit, 512 bins of 64" in names


def test_pictures_are_drawn_from_results(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "RESULTS", tmp_path)
    monkeypatch.setattr(plots, "PICTURES", tmp_path / "pictures")
    nothing = CliRunner().invoke(app, ["plot"])
    assert nothing.exit_code == 1
    assert "expected results to draw, got none" in nothing.output
    (tmp_path / "suite-cpu.json").write_text(json.dumps(document()))
    (tmp_path / "suite-cpu-quick.json").write_text("not to be read")
    result = CliRunner().invoke(app, ["plot"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "pictures" / "suite-cpu.png").stat().st_size > 10_000


@pytest.mark.parametrize(("cores", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4])])
def test_numbers_of_devices(cores, expected):
    assert suite.device_counts({"platform": "cpu", "cores": cores, "devices": 1}) == expected
    assert suite.device_counts({"platform": "gpu", "cores": 64, "devices": cores}) == expected


@pytest.mark.slow
def test_more_devices_find_as_good_tones():
    found = suite.measure_devices(quick=True, frames=8, number=1)
    spectra = workloads.music(8)
    expected = np.mean(jax.jit(TonePursuit())(spectra, workloads.learned_like()).loss)
    assert found["loss"] == pytest.approx(float(expected), rel=1e-4)

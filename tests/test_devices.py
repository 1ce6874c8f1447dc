"""Frames spread over devices and processes give what one device gives; few programs serve many calls."""

import os
import re
import socket
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import AXIS, DICTIONARY, duets, render_notes

from jaxsep.learning.learner import DictionaryLearner
from jaxsep.numerics import devices
from jaxsep.numerics.devices import map_chunks, num_chunks, over_chunks, over_frames, parallel_map
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.tone_pursuit import TonePursuit

pytestmark = pytest.mark.compiles

PURSUIT = TonePursuit(LiftedLoss(AXIS))

#: Tones of 21 frames by `TonePursuit`, on all devices of all processes, written as an array.
PROGRAM = """
import os, sys
import jax
jax.config.update("jax_num_cpu_devices", int(os.environ["DEVICES"]))
if "PROCESSES" in os.environ:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    number = lambda name: int(os.environ[name])
    jax.distributed.initialize(os.environ["COORDINATOR"], number("PROCESSES"), number("PROCESS"))
import numpy as np
sys.path[:0] = os.environ["PLACES"].split(os.pathsep)
import jaxsep
from test_devices import PURSUIT
from jax.experimental.multihost_utils import process_allgather
with np.load(sys.argv[1]) as content:
    spectra, harmonics = content["spectra"], content["harmonics"]
assert len(jax.devices()) == int(os.environ["DEVICES"]) * int(os.environ.get("PROCESSES", 1))
run = jax.jit(jaxsep.over_frames(PURSUIT))
found = run(spectra, harmonics)
tones = process_allgather(found.tones, tiled=True)
fields = ("amplitude", "fundamental", "width", "inharmonicity", "instrument", "active")
slope = jax.jit(jax.grad(lambda h: jax.numpy.sum(run(spectra, h).tones.amplitude)))(harmonics)
np.savez(sys.argv[2], slope=slope, **{name: getattr(tones, name) for name in fields})
"""


def problem():
    """Spectra of 21 frames and their dictionary."""
    spectra = np.stack([render_notes(notes) for notes in duets(21, seed=4)])
    return np.asarray(spectra, np.float32), np.asarray(DICTIONARY, np.float32)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A file of the problem, the tones that one device finds, and the derivative of their amplitudes."""
    path = tmp_path_factory.mktemp("devices") / "given.npz"
    spectra, harmonics = problem()
    np.savez(path, spectra=spectra, harmonics=harmonics)
    total = lambda h: (jnp.sum((found := PURSUIT(jnp.asarray(spectra), h).tones).amplitude), found)
    slope, tones = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(harmonics))
    assert np.all(np.sum(tones.active, axis=1) == 2)
    return path, tones, slope


def start(path, output, **variables):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PLACES": os.pathsep.join(sys.path)}
    environment |= {name.upper(): str(value) for name, value in variables.items()}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, path, output], env=environment, stderr=subprocess.PIPE, text=True
    )


def check(path, tones, slope):
    with np.load(path) as found:
        np.testing.assert_allclose(found["slope"], slope, rtol=1e-2, atol=1e-2 * np.abs(slope).max())
        np.testing.assert_array_equal(found["active"], tones.active)
        np.testing.assert_array_equal(found["instrument"], tones.instrument)
        for name in ("amplitude", "fundamental", "width", "inharmonicity"):
            scale = {"amplitude": 1, "fundamental": 1, "width": 1, "inharmonicity": 1e-3}[name]
            np.testing.assert_allclose(found[name], getattr(tones, name), rtol=1e-4, atol=1e-4 * scale)


def finish(*processes):
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err


@pytest.mark.slow
def test_two_devices_find_the_tones_of_one(given, tmp_path):
    path, *expected = given
    finish(start(path, tmp_path / "two.npz", devices=2))
    check(tmp_path / "two.npz", *expected)


@pytest.mark.slow
def test_two_processes_find_the_tones_of_one(given, tmp_path):
    path, *expected = given
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    options = {"devices": 1, "processes": 2, "coordinator": coordinator}
    outputs = [tmp_path / f"process{n}.npz" for n in range(2)]
    finish(*(start(path, output, process=n, **options) for n, output in enumerate(outputs)))
    for output in outputs:
        check(output, *expected)


def test_one_device_and_frames_with_several_arrays():
    doubled = over_frames(
        lambda frames, factor: {"sum": frames["a"] * factor + frames["b"]}, jax.devices()[:1]
    )
    frames = {"a": jnp.arange(5.0), "b": jnp.ones(5)}
    np.testing.assert_array_equal(doubled(frames, 2.0)["sum"], 2 * np.arange(5) + 1)


def test_parallel_map_keeps_order_precision_and_device(x64):
    def work(number):
        return number, jnp.zeros(1).dtype, jax.config.jax_default_device

    found = list(parallel_map(work, range(20)))
    assert [number for number, _, _ in found] == list(range(20))
    assert {(str(dtype), device) for _, dtype, device in found} == {("float64", jax.devices()[0])}
    with pytest.raises(ZeroDivisionError):
        list(parallel_map(lambda number: 1 / number, [1, 0]))


def learning_step(spectra, harmonics):
    learner = DictionaryLearner(PURSUIT, num_harmonics=harmonics.shape[1], batch=spectra.shape[0])
    state = eqx.tree_at(lambda s: s.harmonics, learner.start(key=jax.random.key(0)), harmonics)
    return learner.step(state, spectra, jnp.float32(0.1))


@pytest.mark.parametrize("function", [PURSUIT, learning_step], ids=["pursuit", "learning"])
def test_accelerators_add_in_a_defined_order(function):
    """A scattered addition adds in any order there, so that the same key would not give the same result."""
    harmonics = jnp.ones((4, 8)) if function is learning_step else jnp.asarray(DICTIONARY)
    spectra = jnp.ones((3, AXIS.num_bins))
    traced = jax.jit(lambda *arrays: jax.tree.leaves(function(*arrays))).trace(spectra, harmonics)

    def additions(platform):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        scattered = re.findall(r'"stablehlo.scatter".*?stablehlo.return', program, re.DOTALL)
        return sum("stablehlo.add" in body for body in scattered)

    assert additions("cpu") > 0  # where it is the fastest, and in order
    assert additions("cuda") == additions("tpu") == 0


# ---- Chunks of frames -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [1, 4, 8, 11])
def test_chunks_of_one_shape_cover_every_frame_once(num_frames, monkeypatch):
    monkeypatch.setattr(devices, "chunk_size", lambda: 4)
    heard, seen = [], []

    def look(frames, exist):
        assert frames.shape == exist.shape == (4,)
        assert frames.max() < num_frames
        return frames, exist

    for frames, exist in over_chunks(look, num_frames, lambda: heard.append(1)):
        seen += frames[exist].tolist()
    assert seen == list(range(num_frames))
    assert len(heard) == num_chunks(num_frames)


@pytest.mark.parametrize("num_frames", [3, 4, 11])
def test_a_function_mapped_over_chunks_is_the_function(num_frames, monkeypatch):
    monkeypatch.setattr(devices, "chunk_size", lambda: 4)
    first, second = np.arange(num_frames, dtype=np.float32), np.ones((num_frames, 2), np.float32)
    found = map_chunks(lambda a, b: {"sum": a[:, None] + b, "square": a**2}, first, second)
    np.testing.assert_array_equal(found["sum"], first[:, None] + second)
    np.testing.assert_array_equal(found["square"], first**2)


def test_an_error_in_a_chunk_ends_the_map(monkeypatch):
    monkeypatch.setattr(devices, "chunk_size", lambda: 1)
    calls = []

    def fail(chunk):
        calls.append(1)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        map_chunks(fail, np.zeros(1000))
    assert len(calls) < 1000

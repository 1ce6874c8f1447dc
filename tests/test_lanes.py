"""Queues of iterative problems: every result as from a plain loop, and no lane idle."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsep.numerics.lanes import default_lanes, map_lanes, queue, run_lanes

#: How many steps each problem takes.
LENGTHS = np.array([3, 1, 20, 1, 7, 2, 1, 5, 4, 1])


def solve(order, count, num_lanes, *, lengths=LENGTHS, counter=None):
    """Each problem i adds i + 1 to its state, as often as its length; results come with the steps taken."""
    lengths = jnp.asarray(lengths)

    def step(i, state):
        if counter is not None:
            counter.append(1)
        total, steps = state
        return total + i + 1, steps + 1

    return run_lanes(
        start=lambda i: (jnp.float32(100) * i, jnp.int32(0)),
        step=step,
        done=lambda i, state: state[1] >= lengths[i],
        finish=lambda state: {"total": state[0], "steps": state[1]},
        order=jnp.asarray(order),
        count=count,
        results={"total": jnp.full(lengths.size, -1.0), "steps": jnp.full(lengths.size, -1)},
        num_lanes=num_lanes,
    )


compiled = jax.jit(solve, static_argnames="num_lanes")


def plain_loop(order, count):
    total, steps = np.full(LENGTHS.size, -1.0), np.full(LENGTHS.size, -1)
    for i in order[:count]:
        total[i], steps[i] = 100 * i + LENGTHS[i] * (i + 1), LENGTHS[i]
    return {"total": total, "steps": steps}


def makespan(order, count, num_lanes):
    """Iterations until the queue is empty, when a lane that is free takes the next problem."""
    busy = [0] * num_lanes
    for i in order[:count]:
        lane = busy.index(min(busy))
        busy[lane] += LENGTHS[i]
    return max(busy)


@pytest.mark.parametrize("num_lanes", [1, 3, 10, 16])
@pytest.mark.parametrize("count", [0, 1, 4, 10])
def test_results_are_those_of_a_plain_loop(num_lanes, count):
    order = np.random.default_rng(0).permutation(LENGTHS.size)
    actual, expected = compiled(order, count, num_lanes), plain_loop(order, count)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name])


def test_no_lane_is_idle_while_problems_wait():
    iterations, num_lanes = [], 3
    with jax.disable_jit():  # a step is then called once per iteration
        actual = solve(np.arange(LENGTHS.size), LENGTHS.size, num_lanes, counter=iterations)
    np.testing.assert_array_equal(actual["steps"], LENGTHS)
    assert len(iterations) == makespan(range(LENGTHS.size), LENGTHS.size, num_lanes)


def test_jit_is_eager():
    order = np.arange(LENGTHS.size)[::-1].copy()
    eager, jitted = solve(order, 7, 3), compiled(order, 7, 3)
    jax.tree.map(np.testing.assert_array_equal, eager, jitted)


def test_vmap_is_a_loop():
    lengths = np.stack([LENGTHS, LENGTHS[::-1], np.roll(LENGTHS, 3)])
    one = lambda lengths: solve(np.arange(LENGTHS.size), LENGTHS.size, 3, lengths=lengths)
    mapped = jax.jit(jax.vmap(one))(lengths)
    np.testing.assert_array_equal(mapped["steps"], lengths)
    np.testing.assert_array_equal(
        mapped["total"], (100 * np.arange(10) + lengths * np.arange(1, 11)).astype(np.float32)
    )


@pytest.mark.parametrize("num_lanes", [1, 3, 4, 10])
@pytest.mark.parametrize("count", [0, 1, 4, 10])
def test_mapped_results_are_those_of_a_plain_loop(num_lanes, count):
    order = np.random.default_rng(1).permutation(10)

    @jax.jit
    def square(order, count):
        results = jnp.full(10, -1), jnp.ones(10)
        return map_lanes(lambda i: (i * i, 0.5 * i), order, count, results, num_lanes)

    expected = np.full(10, -1), np.ones(10)
    for i in order[:count]:
        expected[0][i], expected[1][i] = i * i, 0.5 * i
    for actual, wanted in zip(square(order, count), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("mask", [[], [1], [0, 0, 0], [0, 1, 1, 0, 1], [1, 1, 1]])
def test_queue_holds_the_masked_problems_in_their_order(mask):
    order, count = queue(jnp.array(mask, bool))
    chosen = np.flatnonzero(mask)
    assert count == chosen.size
    np.testing.assert_array_equal(order[: chosen.size], chosen)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(mask)))


def test_lanes_suit_the_platform():
    many = 8 if jax.default_backend() == "cpu" else 4096
    assert [default_lanes(n) for n in (1, 3, 100_000)] == [1, 3, many]


#: Two programs at a time, each with more unknowns than jaxlib factorises in one thread in eight lanes.
TOGETHER = """
import os, threading
import jax.numpy as jnp, numpy as np
import jaxsep
from jaxsep.pursuit.recording import _refine

numbers, frames, slots = np.random.default_rng(0), 64, 12
draw = lambda low, high: jnp.asarray(numbers.uniform(low, high, (frames, slots)), jnp.float32)
tones = jaxsep.Tones.plain(draw(0.1, 1), draw(150, 600), jnp.zeros((frames, slots), jnp.int32))
spectra = numbers.random((frames, 1024), np.float32)
harmonics = numbers.random((frames, slots, 25), np.float32)
goal = np.full(frames, np.inf, np.float32)
model = jaxsep.TonePursuit(solver=jaxsep.LevenbergMarquardt(max_steps=20))
run = lambda: [_refine(model, spectra, tones, harmonics, goal)[1].block_until_ready() for _ in range(2)]
threads = [threading.Thread(target=run, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(60)
print("ended" if not any(thread.is_alive() for thread in threads) else "waiting", flush=True)
os._exit(0)
"""


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it is jaxlib's threads of a CPU that may wait")
def test_programs_with_large_systems_do_not_wait_for_each_other():
    # Not with the flags of these tests, which keep to one thread.
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER], capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": ""}
    )
    assert done.stdout == "ended\n", done.stderr


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere as many as there are")
def test_lanes_are_fewer_for_large_systems():
    assert default_lanes(100, 40) == default_lanes(100) == 8
    assert default_lanes(100, 48) == 4
    assert default_lanes(100, 48, 48) == 2
    assert default_lanes(100, 300) == 1

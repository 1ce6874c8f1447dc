"""Queues of iterative problems: every result as from a plain loop, and no lane idle."""

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

"""Iterative solvers over many problems, with every lane of the hardware kept busy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

__all__ = ["default_lanes", "map_frames", "map_lanes", "queue", "run_lanes"]


#: Operations of a batch of factorisations up to which jaxlib does them in the thread that asks. Of more, some
#: go to other threads of the pool that runs the programs: those of two programs wait for each other for ever.
_ALONE = 180_000


def default_lanes(num_problems: int, *systems: int) -> int:
    """How many problems to iterate at once: few on a CPU, whose caches hold few; all on an accelerator.

    Arguments:
        num_problems: how many there are.
        systems: sizes of the systems of equations that a step of one problem solves by LAPACK together.
    """
    if jax.default_backend() != "cpu":
        return min(num_problems, 4096)
    operations = sum(size**3 for size in systems) // 3
    return min(num_problems, 8, max(1, _ALONE // max(1, operations)))


def run_lanes(
    start: Callable[[Int[Array, ""]], PyTree],
    step: Callable[[Int[Array, ""], PyTree], PyTree],
    done: Callable[[Int[Array, ""], PyTree], Bool[Array, ""]],
    finish: Callable[[PyTree], PyTree],
    order: Int[Array, " problems"],
    count: Int[Array, ""] | int,
    results: PyTree,
    num_lanes: int,
) -> PyTree:
    """Iterates `step` on the problems `order[:count]` until each is `done`, and stores what `finish` gives.

    A `vmap` of while-loops runs every lane until the slowest has ended. Here a lane that ends its problem
    stores the result and takes the next problem in the same iteration, so that all lanes stay busy until
    the queue is empty.

    Arguments:
        start: `start(i)` is the first state of problem i.
        step: `step(i, state)` is one iteration.
        done: `done(i, state)` tells whether problem i has ended.
        finish: `finish(state)` is its result.
        order: problems in the order of the queue.
        count: how many of them to solve.
        results: arrays `[problems, ...]` that take up the results; problems outside the queue keep theirs.
        num_lanes: problems iterated at once.
    """
    num_problems = order.shape[0]
    count = jnp.asarray(count, jnp.int32)
    order = order.astype(jnp.int32)

    def fetch(ticket):
        return order[jnp.minimum(ticket, num_problems - 1)]

    def iterate(carry):
        tickets, following, states, results = carry
        problems = fetch(tickets)
        states = jax.vmap(step)(problems, states)
        ended = jax.vmap(done)(problems, states) & (tickets < count)
        # Lanes that have not ended write out of range, which drops the write.
        target = jnp.where(ended, problems, num_problems)
        results = jax.tree.map(
            lambda all_, one: all_.at[target].set(one, mode="drop"), results, jax.vmap(finish)(states)
        )
        tickets = jnp.where(ended, following + jnp.cumsum(ended, dtype=jnp.int32) - 1, tickets)
        following = following + jnp.sum(ended, dtype=jnp.int32)
        fresh = jax.vmap(start)(fetch(tickets))
        states = jax.tree.map(lambda new, old: _where(ended, new, old), fresh, states)
        return tickets, following, states, results

    tickets = jnp.arange(num_lanes, dtype=jnp.int32)
    states = jax.vmap(start)(fetch(tickets))
    carry = (tickets, jnp.int32(num_lanes), states, results)
    return jax.lax.while_loop(lambda c: jnp.any(c[0] < count), iterate, carry)[-1]


def map_lanes(
    function: Callable[[Int[Array, ""]], PyTree],
    order: Int[Array, " problems"],
    count: Int[Array, ""] | int,
    results: PyTree,
    num_lanes: int,
) -> PyTree:
    """Stores `function(i)` for the problems `order[:count]`, `num_lanes` at a time; arguments as above."""
    num_problems = order.shape[0]

    def block(index, results):
        tickets = index * num_lanes + jnp.arange(num_lanes)
        problems = order[jnp.minimum(tickets, num_problems - 1)]
        values = jax.vmap(function)(problems)
        target = jnp.where(tickets < count, problems, num_problems)
        return jax.tree.map(lambda all_, one: all_.at[target].set(one, mode="drop"), results, values)

    return jax.lax.fori_loop(0, -(-count // num_lanes), block, results)


def map_frames(
    function: Callable[[PyTree], PyTree], frames: PyTree, most: tuple[int, int] | None = None
) -> PyTree:
    """`vmap` of a function over the first axis of its argument, in blocks that suit the platform.

    Temporaries are those of one block, whatever the number of frames.

    Arguments:
        function: of one frame.
        frames: arrays whose first axis counts frames.
        most: frames of a block at most, on a CPU and on an accelerator.
    """
    num_frames = jax.tree.leaves(frames)[0].shape[0]
    size = default_lanes(num_frames)
    if most is not None:
        size = min(size, most[jax.default_backend() != "cpu"])
    if size in (0, num_frames):
        return jax.vmap(function)(frames)
    blocks = -(-num_frames // size)

    def split(x):
        # With the last frame: zeros may be no frame at all, and their derivatives would be NaN.
        padded = jnp.pad(x, [(0, blocks * size - num_frames)] + [(0, 0)] * (x.ndim - 1), mode="edge")
        return padded.reshape(blocks, size, *x.shape[1:])

    join = lambda x: x.reshape(blocks * size, *x.shape[2:])[:num_frames]
    return jax.tree.map(join, jax.lax.map(jax.vmap(function), jax.tree.map(split, frames)))


def queue(mask: Bool[Array, " problems"]) -> tuple[Int[Array, " problems"], Int[Array, ""]]:
    """The problems of a mask first, in their order, and how many they are."""
    return jnp.argsort(~mask, stable=True), jnp.sum(mask, dtype=jnp.int32)


def _where(mask, new, old):
    return jnp.where(mask.reshape(mask.shape + (1,) * (new.ndim - 1)), new, old)

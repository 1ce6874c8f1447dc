"""Work spread over the devices of a machine, and of several machines."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

__all__ = ["chunk_size", "map_chunks", "num_chunks", "over_chunks", "over_frames", "parallel_map"]


def chunk_size() -> int:
    """Frames per compiled call: one shape for every recording, and bounded memory.

    A CPU gains nothing beyond a few hundred; an accelerator is not filled by so few.
    """
    return 256 if jax.default_backend() == "cpu" else 2048


def over_frames(
    function: Callable[..., PyTree], devices: Sequence[jax.Device] | None = None
) -> Callable[..., PyTree]:
    """A function of frames that computes each part of them on a device of its own.

    `function(frames, *shared)` takes arrays whose first axis counts frames, and arguments that all frames
    share, such as a dictionary, and returns arrays whose first axis counts frames: `TonePursuit` is one. The
    result takes and gives the same. It runs inside `jit`, and can be differentiated if the function can.

    Where several processes work together (`jax.distributed`), all of them call it with the same arguments,
    inside `jit`, and each has its part of the result; `process_allgather` of
    `jax.experimental.multihost_utils` gives everyone the whole.

    Arguments:
        function: of frames, each of which is computed independently of the others.
        devices: default: all that there are, of all processes.

    Example:
        >>> pursuit = jax.jit(jaxsep.over_frames(jaxsep.TonePursuit()))
        >>> harmonics = 0.5 ** jnp.arange(25.0)[None]
        >>> found = pursuit(jnp.zeros((3, 1024)), harmonics)  # [frames, bins]
        >>> found.loss.shape
        (3,)
    """
    devices = jax.devices() if devices is None else devices
    mesh = Mesh(np.array(devices), ("frames",))

    def mapped(frames, *shared):
        num_frames = jax.tree.leaves(frames)[0].shape[0]
        extra = -num_frames % len(devices)
        # With the last frame: zeros may be no frame at all.
        pad = lambda x: jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1), mode="edge") if extra else x
        parts, whole = PartitionSpec("frames"), PartitionSpec()
        spread = jax.shard_map(
            function, mesh=mesh, in_specs=(parts, *[whole] * len(shared)), out_specs=parts, check_vma=False
        )
        found = spread(jax.tree.map(pad, frames), *shared)
        return jax.tree.map(lambda x: x[:num_frames], found) if extra else found

    return mapped


def num_chunks(num_frames: int) -> int:
    """How many chunks `over_chunks` makes of so many frames."""
    return -(-num_frames // chunk_size())


def over_chunks(
    function: Callable[[np.ndarray, np.ndarray], PyTree],
    num_frames: int,
    advance: Callable[[], None] = lambda: None,
    *,
    one_at_a_time: bool = False,
) -> Iterator[PyTree]:
    """Results of a function of each chunk of frames, on the host and in order; chunks run side by side.

    Arguments:
        function: of the indices of `chunk_size` frames, of which the last is repeated to fill up the last
            chunk, so that one compiled program serves all; and of which of them exist.
        num_frames: at least 1.
        advance: is called after each chunk, from any thread.
        one_at_a_time: for programs that could wait for each other (see the README's "Developing").
    """

    def run(first):
        frames = np.arange(first, first + chunk_size())
        found = function(np.minimum(frames, num_frames - 1), frames < num_frames)
        found = jax.tree.map(np.asarray, found)  # waits for it
        advance()
        return found

    return (map if one_at_a_time else parallel_map)(run, range(0, num_frames, chunk_size()))


def map_chunks(
    function: Callable[..., PyTree], *arrays: PyTree, advance: Callable[[], None] = lambda: None
) -> PyTree:
    """`function(*arrays)` by chunks of frames, which the first axis counts, of arrays on the host."""
    num_frames = jax.tree.leaves(arrays)[0].shape[0]
    here = lambda frames, _: function(*jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[frames]), arrays))
    parts = over_chunks(here, num_frames, advance)
    return jax.tree.map(lambda *x: np.concatenate(x)[:num_frames], *parts)


def parallel_map(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`map` in order, with a thread for every device of this process, or for every core of a lone CPU.

    Compiled programs of one CPU device run side by side, so that more devices than one gain nothing there.
    """
    chosen = jax.config.jax_default_device
    devices = jax.local_devices() if chosen is None else [chosen]
    if len(devices) == 1 and jax.default_backend() == "cpu":
        devices = devices * (os.cpu_count() or 1)
    free: SimpleQueue = SimpleQueue()
    for device in devices:
        free.put(device)
    pool = ThreadPoolExecutor(len(devices))
    double = jax.config.jax_enable_x64  # which `jax.enable_x64` switches for the calling thread alone

    def run(item):
        device = free.get()
        try:
            with jax.enable_x64(double), jax.default_device(device):
                return function(item)
        finally:
            free.put(device)

    try:
        yield from pool.map(run, items)
    finally:
        # After an error or an interruption nobody waits for what still runs.
        pool.shutdown(wait=False, cancel_futures=True)

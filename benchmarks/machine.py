"""What a machine can do at best, measured on the spot, and the share of it that a program reaches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.common import measure
from benchmarks.counting import Work

__all__ = ["NAMES", "Limits", "bound", "measure_limits"]

#: A program whose largest share is below this is bounded by the overhead of many small operations.
_LOW = 0.1
#: What `Work` counts, in words.
NAMES = {
    "elementwise": "arithmetic",
    "products": "matrix products",
    "transcendental": "exponentials",
    "moved": "memory",
}
#: Operations on every element in the measurements of arithmetic.
_LENGTH = 32


class Limits(NamedTuple):
    """Highest rates in float32 of what `Work` counts, per second."""

    elementwise: float
    products: float
    transcendental: float
    moved: float

    def shares(self, work: Work, seconds: float) -> dict[str, float]:
        """The part of the time that each kind of work would take at its highest rate."""
        amounts = zip(Work._fields, work, self, strict=True)
        return {name: amount / rate / seconds for name, amount, rate in amounts}


def bound(shares: dict[str, float]) -> str:
    """What keeps a program from being faster, in words."""
    name = max(shares, key=shares.__getitem__)
    return NAMES[name] if shares[name] >= _LOW else f"overhead (then {NAMES[name]})"


def measure_limits(quick: bool = False) -> Limits:
    """The rates of the default device with all its cores, each the best of several runs."""
    large, repeats = (2**24, 3) if quick else (2**26, 10)
    array = jnp.linspace(0.1, 0.9, large, dtype=jnp.float32)
    small, square = array[: 2**20], array[: 2**22].reshape(2048, 2048)

    def rate(function, amount, argument):
        compiled = jax.jit(function)
        return amount / measure(lambda: compiled(argument), repeats=repeats).minimum

    def multiply_and_add(x):
        # Four chains side by side, so that the units need not wait for their own results.
        chains = [x, x + 0.1, x + 0.2, x + 0.3]
        for _ in range(_LENGTH):
            chains = [chain * 0.99 + 0.01 for chain in chains]
        return sum(chains)

    def exponentials(x):
        return sum(jnp.exp(x * (0.1 * k)) for k in range(_LENGTH))

    def pass_over(x):
        # In a loop, whose arrays are there already: a fresh one costs page faults.
        return jax.lax.fori_loop(0, 8, lambda _, y: y + 1, x)

    return Limits(
        elementwise=rate(multiply_and_add, small.size * 4 * 2 * _LENGTH, small),
        products=rate(lambda a: a @ a, 2 * 2048**3, square),
        transcendental=rate(exponentials, small.size * _LENGTH, small),
        moved=rate(pass_over, 8 * 2 * array.nbytes, array),
    )

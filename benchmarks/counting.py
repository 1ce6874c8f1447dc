"""Arithmetic that a program carries out, counted on its jaxpr with the trips that its loops really make."""

import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

__all__ = ["Work", "count"]


class Work(NamedTuple):
    """What one call takes.

    - `elementwise`: additions, multiplications, comparisons and the like, also of Fourier transforms.
    - `products`: operations of matrix products and convolutions.
    - `transcendental`: exponentials, logarithms, powers, trigonometric functions.
    - `moved`: bytes of the arguments and results, each moved once: the least there can be.
    """

    elementwise: int
    products: int
    transcendental: int
    moved: int


#: Primitives by what they cost; those that are named nowhere cost an operation for each of their results.
_TRANSCENDENTAL = frozenset(
    """acos acosh asin asinh atan atan2 atanh cbrt cos cosh digamma erf erf_inv erfc exp exp2 expm1 lgamma log
    log1p logistic pow sin sinh tan tanh""".split()  # noqa: SIM905
)
_FREE = frozenset(
    """bitcast_convert_type broadcast_in_dim concatenate convert_element_type copy dynamic_slice
    dynamic_update_slice expand_dims gather iota pad random_bits random_unwrap random_wrap reshape rev slice
    split squeeze stop_gradient transpose""".split()  # noqa: SIM905
)
#: How these combine two elements is written as a program; they are no calls of it.
_COMBINE = ("reduce", "scatter")
#: A loop until something holds, and a branch.
_DYNAMIC = ("while", "cond")


def count(function: Callable[..., Any], *arguments: Any) -> Work:
    """Runs a function of arrays and counts its work, that of idle lanes of batched loops included.

    Loops whose trips depend on data run from Python: it takes longer than the function.
    """
    program, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
    given = jax.tree.leaves(arguments)
    total: Counter[str] = Counter()
    _run(program, given, total)
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in given + jax.tree.leaves(result))
    return Work(total["elementwise"], total["products"], total["transcendental"], moved)


# ---- Programs whose work depends on data -------------------------------------------------------------------


def _run(program, arguments, total):
    """Results of a closed jaxpr; its work is added to the total."""
    jaxpr = program.jaxpr
    if not _is_dynamic(jaxpr):
        _add(total, jaxpr)
        return _compiled(program)(*arguments)
    values = dict(zip(jaxpr.constvars, program.consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]
    for equation in jaxpr.eqns:
        found = _evaluate(equation, [read(atom) for atom in equation.invars], total)
        values |= dict(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _evaluate(equation, inputs, total):
    name, inner = equation.primitive.name, _inner(equation)
    if name == "while":
        return _while(equation.params, inputs, total)
    if name == "cond":
        return _run(inner[int(np.clip(inputs[0], 0, len(inner) - 1))], inputs[1:], total)
    if name == "scan" and _is_dynamic(inner[0].jaxpr):
        return _scan(equation.params, inputs, total)
    if inner and name not in ("scan", "custom_linear_solve"):
        return _run(inner[0], inputs, total)  # a call; what follows is the derivative of what has its own
    _add_equation(total, equation)
    found = equation.primitive.bind(*inputs, **equation.params)
    return found if equation.primitive.multiple_results else [found]


def _while(parameters, inputs, total):
    goes_on, body = parameters["cond_jaxpr"], parameters["body_jaxpr"]
    first, last = parameters["cond_nconsts"], parameters["cond_nconsts"] + parameters["body_nconsts"]
    carry = inputs[last:]
    while True:
        (lanes,) = _run(goes_on, [*inputs[:first], *carry], total)
        if not jnp.any(lanes):
            return carry
        following = _run(body, [*inputs[first:last], *carry], total)
        # Of a batched loop, lanes that have ended keep what they have while others go on.
        carry = [_select(lanes, new, old) for new, old in zip(following, carry, strict=True)]


def _select(lanes, new, old):
    lanes = jnp.asarray(lanes)
    return jnp.where(jnp.expand_dims(lanes, tuple(range(lanes.ndim, jnp.ndim(new)))), new, old)


def _scan(parameters, inputs, total):
    fixed, carry, moving = _scan_groups(parameters, inputs)
    count, rows = len(carry), range(parameters["length"])
    columns = []
    for row in reversed(rows) if parameters["reverse"] else rows:
        found = _run(parameters["jaxpr"], [*fixed, *carry, *(x[row] for x in moving)], total)
        carry = found[:count]
        columns.append(found[count:])
    if parameters["reverse"]:
        columns.reverse()
    return [*carry, *(jnp.stack(column) for column in zip(*columns, strict=True))]


def _scan_groups(parameters, inputs):
    """What stays, what is carried, and what moves along."""
    if "ft_in" in parameters:  # since JAX 0.11
        return map(list, parameters["ft_in"].update(inputs).unpack())
    first, last = parameters["num_consts"], parameters["num_consts"] + parameters["num_carry"]
    return inputs[:first], inputs[first:last], inputs[last:]


@functools.cache
def _compiled(program):
    return jax.jit(core.jaxpr_as_fun(program))


def _inner(equation):
    """The programs inside a loop, a branch or a call."""
    if equation.primitive.name.startswith(_COMBINE):
        return []
    found = []
    for value in equation.params.values():
        for entry in value if isinstance(value, tuple) else (value,):
            if isinstance(entry, core.ClosedJaxpr):
                found.append(entry)
            elif isinstance(entry, core.Jaxpr):
                found.append(core.ClosedJaxpr(entry, ()))
    return found


def _is_dynamic(jaxpr):
    return any(
        equation.primitive.name in _DYNAMIC or any(_is_dynamic(program.jaxpr) for program in _inner(equation))
        for equation in jaxpr.eqns
    )


# ---- Programs whose work does not --------------------------------------------------------------------------


def _add(total, jaxpr, times=1):
    for equation in jaxpr.eqns:
        _add_equation(total, equation, times)


def _add_equation(total, equation, times=1):
    name, inner = equation.primitive.name, _inner(equation)
    if name == "custom_linear_solve":
        inner = [equation.params["jaxprs"].solve]
    if inner:
        _add(total, inner[0].jaxpr, times * (equation.params["length"] if name == "scan" else 1))
    else:
        kind, amount = _cost(equation)
        total[kind] += times * amount


def _cost(equation):
    """Kind and amount of the work of a primitive."""
    name, parameters = equation.primitive.name, equation.params
    inputs, outputs = ([atom.aval for atom in side] for side in (equation.invars, equation.outvars))
    size = sum(math.prod(x.shape) for x in outputs)
    if name in _FREE:
        return "elementwise", 0
    if name in _TRANSCENDENTAL:
        return "transcendental", size
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        length = math.prod(inputs[0].shape[axis] for axis in contracted)
        return "products", 2 * size * length * (
            4 if jnp.issubdtype(inputs[0].dtype, jnp.complexfloating) else 1
        )
    if name == "conv_general_dilated":
        kernel, features = inputs[1].shape, parameters["dimension_numbers"].rhs_spec[0]
        return "products", 2 * size * math.prod(kernel) // kernel[features]
    if name == "fft":
        # Of a complex transform of n points, 5 n log2 n; half of it where one side is real.
        points = max(math.prod(x.shape) for x in inputs + outputs)
        is_complex = all(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in inputs + outputs)
        depth = math.log2(math.prod(parameters["fft_lengths"]))
        return "elementwise", round((5 if is_complex else 2.5) * points * depth)
    if name in ("cholesky", "lu", "triangular_solve"):
        return "products", max(math.prod(x.shape) for x in inputs) * inputs[0].shape[-1]
    if name == "sort":
        return "elementwise", round(size * math.log2(max(2, inputs[0].shape[parameters["dimension"]])))
    if name.startswith(("reduce", "arg", "scatter", "cum")):
        return "elementwise", max(math.prod(x.shape) for x in inputs)
    return "elementwise", size

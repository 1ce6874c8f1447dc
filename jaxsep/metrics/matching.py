"""Which estimate belongs to which true source."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.optimize import linear_sum_assignment

__all__ = ["best_permutation"]

#: Up to six sources (6! = 720) it is cheapest to try every permutation inside the compiled program.
_MAX_PERMUTATIONS = 720


@jax.jit
def best_permutation(scores: Float[Array, "references estimates"]) -> Int[Array, "references"]:
    """Assignment of a different estimate to each reference that maximises the sum of the scores.

        argmax_π Σ_i scores[i, π(i)]

    Up to 720 assignments (six of six) are compared inside the compiled program; of equal sums the first in
    lexicographic order wins. For more, SciPy's `linear_sum_assignment` runs on the host through a callback.

    Arguments:
        scores: figure of estimate k for reference i, `(references, estimates)`, at least as many estimates as
            references, finite, larger is better. No gradient flows through the choice.

    Returns: for each reference the index of its estimate. A score that is NaN counts as the worst one.

    Raises: `ValueError` if there are fewer estimates than references.

    Example:
        >>> print(jaxsep.best_permutation(jnp.array([[3.0, 9.0], [1.0, 2.0]])))  # 9 + 1 > 3 + 2
        [1 0]
    """
    num_references, num_estimates = scores.shape
    if num_estimates < num_references:
        raise ValueError(
            f"scores: expected at least {num_references} estimates (references), got {num_estimates}"
        )
    limits = jnp.finfo(scores.dtype)
    # Far inside the range of the type, so that a sum over the references cannot overflow.
    bound = float(limits.max) / (4 * max(num_references, 1))
    finite = jnp.clip(jnp.nan_to_num(jax.lax.stop_gradient(scores), nan=-bound), -bound, bound)
    if math.perm(num_estimates, num_references) > _MAX_PERMUTATIONS:
        shape = jax.ShapeDtypeStruct((num_references,), jnp.int32)
        return jax.pure_callback(_assign_on_host, shape, finite, vmap_method="sequential")
    choices = np.array(list(itertools.permutations(range(num_estimates), num_references)), dtype=np.int32)
    sums = jnp.sum(finite[np.arange(num_references), choices], axis=1)
    return jnp.asarray(choices)[jnp.argmax(sums)]


def _assign_on_host(scores) -> np.ndarray:
    return linear_sum_assignment(np.asarray(scores), maximize=True)[1].astype(np.int32)

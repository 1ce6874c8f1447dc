"""Distances between complex spectra that make quiet partials count (P2)."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from jaxsep.neural.partials import safe_abs

__all__ = ["LossTerms", "PredictionLoss", "lift_factor", "magnitude_distance", "radial_distance"]

#: δ of the lift, for spectra with a peak of about 1 (P2).
OFFSET = 1e-7


def lift_factor(magnitude: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`|x|_½ / |x|` with `|x|_½ = (|x| + δ)^½ - δ^½`, without cancellation or a division by 0."""
    return 1 / (jnp.sqrt(magnitude + OFFSET) + OFFSET**0.5)


def magnitude_distance(a: Complex[Array, " bins"], b: Complex[Array, " bins"]) -> Float[Array, ""]:
    """`d_abs`: mean over the bins of `(|a|_½ - |b|_½)²`."""
    a, b = safe_abs(a), safe_abs(b)
    return jnp.mean((a * lift_factor(a) - b * lift_factor(b)) ** 2)


def radial_distance(a: Complex[Array, " bins"], b: Complex[Array, " bins"]) -> Float[Array, ""]:
    """`d_rad`: mean over the bins of the squared distance of a and b, magnitudes lifted and phases kept."""
    difference = a * lift_factor(safe_abs(a)) - b * lift_factor(safe_abs(b))
    return jnp.mean(difference.real**2 + difference.imag**2)


class LossTerms(eqx.Module):
    """The terms of the loss of one prediction, not weighted."""

    magnitude: Float[Array, ""]
    sparse: Float[Array, ""]
    agreement: Float[Array, ""]
    direct: Float[Array, ""]


class PredictionLoss(eqx.Module):
    """Loss of a frame's dictionary and direct predictions, against the mixture and each other (P2).

    `λ₁ d_abs(Z, y) + λ₂ 0.9^absent d_abs(Z, y_spl) + λ₃ Σ_i d_rad(y_i, y_dir,i) + λ₄ d_rad(Z, y_dir)`

    Arguments:
        magnitude, sparse, agreement, direct: λ₁ to λ₄.
        discount: factor for every absent tone.

    Example:
        >>> loss, frame = jaxsep.PredictionLoss(), jnp.array([1.0 + 0.0j, 0.5j])
        >>> perfect = loss.terms(frame, frame[None], frame[None], present=jnp.ones(1))
        >>> silent = loss.terms(frame, 0 * frame[None], 0 * frame[None], present=jnp.ones(1))
        >>> print(loss(perfect).round(2), loss(silent).round(2))  # (λ₂ + λ₄) times the mean of 1 and ½
        0.0 14.99
    """

    magnitude: float | Float[Array, ""] = 0.0
    sparse: float | Float[Array, ""] = 10.0
    agreement: float | Float[Array, ""] = 1.0
    direct: float | Float[Array, ""] = 10.0
    discount: float | Float[Array, ""] = 0.9

    def terms(
        self,
        frame: Complex[Array, " bins"],
        tones: Complex[Array, "tones bins"],
        direct: Complex[Array, "tones bins"],
        present: Float[Array, " tones"],
    ) -> LossTerms:
        """Terms for a frame Z, with the dictionary and direct prediction of each tone."""
        absent = jnp.sum(1 - present)
        sparse = magnitude_distance(frame, jnp.sum(present[:, None] * tones, axis=0))
        pairs = sum(radial_distance(a, b) for a, b in zip(tones, direct, strict=True))
        return LossTerms(
            magnitude=magnitude_distance(frame, jnp.sum(tones, axis=0)),
            sparse=self.discount**absent * sparse,
            agreement=pairs,
            direct=radial_distance(frame, jnp.sum(direct, axis=0)),
        )

    def __call__(self, terms: LossTerms) -> Float[Array, ""]:
        """Weighted sum of the terms."""
        return (
            self.magnitude * terms.magnitude
            + self.sparse * terms.sparse
            + self.agreement * terms.agreement
            + self.direct * terms.direct
        )

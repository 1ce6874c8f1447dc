"""Signals that the allowed distortions, a gain or a short filter, can make of some sources."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxsep.metrics.ratios import inner

__all__ = ["Span", "filter_span", "gain_span"]

#: A projection is repeated on its own residual: the second pass removes the rounding error of the first, and
# most of what the loading of an ill-conditioned Gram matrix (delayed signals) left over.
_PASSES = 2


class Span(eqx.Module):
    """Signals that the allowed distortions can make of some sources."""

    @abc.abstractmethod
    def _project_once(self, signal: Float[Array, "samples"]) -> Float[Array, "samples"]: ...

    def project(self, signal: Float[Array, "samples"]) -> Float[Array, "samples"]:
        """Nearest signal of the span."""
        projection = jnp.zeros_like(signal)
        for _ in range(_PASSES):
            projection += self._project_once(signal - projection)
        return projection


class _GainSpan(Span):
    """Linear combinations of the sources."""

    sources: Float[Array, "instruments samples"]
    cholesky: Float[Array, "instruments instruments"]

    def _project_once(self, signal: Float[Array, "samples"]) -> Float[Array, "samples"]:
        gains = _solve(self.cholesky, inner(self.sources, signal))
        return jnp.sum(gains[:, None] * self.sources, axis=0)


class _FilterSpan(Span):
    """Sums of the sources, each filtered by `filter_length` taps; the signals end in enough zeros."""

    transforms: Complex[Array, "instruments frequencies"]
    cholesky: Float[Array, "delays delays"]
    filter_length: int = eqx.field(static=True)

    def _project_once(self, signal: Float[Array, "samples"]) -> Float[Array, "samples"]:
        samples = signal.shape[0]
        spectra = jnp.conj(self.transforms) * jnp.fft.rfft(signal)
        correlations = jnp.fft.irfft(spectra, samples)[:, : self.filter_length]
        taps = _solve(self.cholesky, correlations.ravel()).reshape(correlations.shape)
        return jnp.fft.irfft(jnp.sum(self.transforms * jnp.fft.rfft(taps, samples), axis=0), samples)


def gain_span(sources: Float[Array, "instruments samples"]) -> _GainSpan:
    return _GainSpan(sources, _loaded_cholesky(inner(sources[:, None], sources[None])))


def filter_span(sources: Float[Array, "instruments samples"], filter_length: int) -> _FilterSpan:
    """Gram matrix of the delayed sources: block Toeplitz, ⟨s_i(·−a), s_j(·−b)⟩ = r_ij(a − b)."""
    transforms = jnp.fft.rfft(sources)
    spectra = jnp.conj(transforms[:, None]) * transforms[None]
    correlations = jnp.fft.irfft(spectra, sources.shape[-1])
    delays = np.arange(filter_length)
    # A negative lag counts from the end, which is where the circular correlation has it.
    blocks = correlations[:, :, delays[:, None] - delays[None, :]]
    gram = blocks.transpose(0, 2, 1, 3).reshape(len(sources) * filter_length, -1)
    return _FilterSpan(transforms, _loaded_cholesky(gram), filter_length)


def _loaded_cholesky(gram: Float[Array, "rows rows"]) -> Float[Array, "rows rows"]:
    """Cholesky factor of a Gram matrix of unit vectors, loaded by its rounding error so that it exists."""
    size = gram.shape[0]
    loading = size * jnp.finfo(gram.dtype).eps
    return jnp.linalg.cholesky(gram + loading * jnp.eye(size, dtype=gram.dtype))


def _solve(cholesky: Float[Array, "rows rows"], vector: Float[Array, "rows"]) -> Float[Array, "rows"]:
    return jax.scipy.linalg.cho_solve((cholesky, True), vector)

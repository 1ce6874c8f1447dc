"""The methods inside other people's programs: transformed, exported, and compiled once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from problems import AXIS, DICTIONARY, duets, render_notes

from jaxsep.blasso.lasso import BeurlingLasso
from jaxsep.blasso.patterns import Patterns
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.separation.chain import PursuitSeparator
from jaxsep.signal.stft import GaussianSTFT

pytestmark = pytest.mark.compiles

PURSUIT = TonePursuit(LiftedLoss(AXIS))


def spectra_of(dtype=np.float32, count=6):
    return jnp.asarray(np.stack([render_notes(notes) for notes in duets(count, seed=7)]), dtype)


def separator(dtype=np.float32):
    """For 12 kHz, so that it is quick."""
    return PursuitSeparator(
        jnp.asarray(DICTIONARY, dtype), stft=GaussianSTFT(window_std=256, hop=256), sample_rate=12_000
    )


def recordings(dtype=np.float32, count=2):
    time = np.arange(4096) / 12_000
    tone = lambda f: sum(np.sin(2 * np.pi * f * h * time) / h for h in range(1, 6))
    mixtures = [tone(220.0 + 30 * n) + 0.5 * tone(330.0 + 20 * n) for n in range(count)]
    return jnp.asarray(np.stack(mixtures) / 4, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("transformed", ["vmap", "map", "checkpoint", "scan"])
def test_a_separator_inside_transformations(transformed, dtype):
    run, batch = separator(dtype), recordings(dtype)
    expected = jnp.stack([eqx.filter_jit(run)(samples) for samples in batch])
    assert expected.dtype == dtype
    np.testing.assert_allclose(expected.sum(axis=1), batch, atol=1e-5)
    programs = {
        "vmap": jax.vmap(run),
        "map": lambda x: jax.lax.map(run, x),
        "checkpoint": jax.vmap(jax.checkpoint(lambda samples: run(samples))),
        "scan": lambda x: jax.lax.scan(lambda carry, samples: (carry, run(samples)), 0, x)[1],
    }
    found = jax.jit(programs[transformed])(batch)
    np.testing.assert_allclose(found, expected, atol=1e-5 if dtype == np.float32 else 1e-9)


@pytest.mark.slow
def test_a_pursuit_as_an_artefact_and_back():
    harmonics = jnp.asarray(DICTIONARY, jnp.float32)

    def decompose(spectra):
        tones = PURSUIT(spectra, harmonics).tones
        return tones.amplitude, tones.fundamental, tones.instrument, tones.active

    spectra = spectra_of()
    made = export.export(jax.jit(decompose))(jax.ShapeDtypeStruct(spectra.shape, spectra.dtype))
    back = export.deserialize(made.serialize())
    for found, expected in zip(back.call(spectra), decompose(spectra), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_beurling_lasso_as_an_artefact_and_back():
    patterns = Patterns.from_dictionary(jnp.asarray(DICTIONARY, jnp.float32), AXIS)
    lasso = BeurlingLasso(proximal_steps=3)

    def decompose(spectra, alpha):
        found = lasso(patterns, spectra, alpha)
        return found.sources, found.spikes.position, found.spikes.amplitude

    spectra = spectra_of(count=2)
    shapes = jax.ShapeDtypeStruct(spectra.shape, spectra.dtype), jax.ShapeDtypeStruct((), jnp.float32)
    back = export.deserialize(export.export(jax.jit(decompose))(*shapes).serialize())
    for found, expected in zip(
        back.call(spectra, jnp.float32(0.5)), decompose(spectra, jnp.float32(0.5)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class TestTraces:
    """The same shapes never compile twice, whatever the values of array options."""

    def count(self, program, *calls):
        traces = []

        @eqx.filter_jit
        def counted(*arguments):
            traces.append(1)
            return program(*arguments)

        outputs = [jax.tree.leaves(eqx.filter(counted(*call), eqx.is_array)) for call in calls]
        assert any(np.any(a != b) for a, b in zip(outputs[0], outputs[-1], strict=True))
        assert len(traces) == 1

    def test_tone_pursuit(self):
        harmonics = jnp.asarray(DICTIONARY, jnp.float32)

        def call(improvement, tolerance, damping, factor):
            pursuit = eqx.tree_at(
                lambda p: (p.improvement, p.solver.tolerance, p.solver.damping),
                PURSUIT,
                tuple(jnp.float32(x) for x in (improvement, tolerance, damping)),
            )
            return pursuit, spectra_of() * factor, harmonics * factor

        run = lambda pursuit, spectra, harmonics: pursuit(spectra, harmonics)
        self.count(run, call(0.9, 1e-5, 1.0, 1.0), call(0.5, 1e-3, 0.1, 0.9), call(0.01, 1e-3, 10.0, 0.8))

    def test_separator(self):
        def call(share, factor):
            return eqx.tree_at(lambda s: s.share, separator(), jnp.float32(share)), recordings()[0] * factor

        self.count(lambda run, samples: run(samples), call(1e-4, 1.0), call(1e-2, 1.0), call(0.0, 3.0))

    @pytest.mark.slow
    def test_beurling_lasso(self):
        patterns = Patterns.from_dictionary(jnp.asarray(DICTIONARY, jnp.float32), AXIS)
        lasso = BeurlingLasso(proximal_steps=3)
        run = lambda spectra, alpha: lasso(patterns, spectra, alpha).sources
        self.count(run, *((spectra_of(count=2), jnp.float32(alpha)) for alpha in (0.3, 0.6, 2.0)))

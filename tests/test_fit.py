"""The dictionary fitted to a recording at given tones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import AXIS, DICTIONARY, Note, duets, pack_notes, render_notes

from jaxsep.dictionary import fit
from jaxsep.dictionary.fit import fit_dictionary
from jaxsep.dictionary.learning import mean_loss
from jaxsep.pursuit import lifting
from jaxsep.pursuit.lifting import LiftedLoss
from jaxsep.pursuit.refinement import pack

OBJECTIVE = LiftedLoss(AXIS)
FRAMES = duets(21, seed=5)
START = np.full(DICTIONARY.shape, 0.3)


def recording(dtype, frames=FRAMES, dictionary=DICTIONARY):
    """Spectra of the notes, the notes as tones, and a dictionary to begin with."""
    spectra = np.stack([render_notes(notes, dictionary) for notes in frames]).astype(dtype)
    return spectra, pack_notes(frames, 3, dtype), jnp.asarray(START, dtype)


@pytest.mark.parametrize("size", [8, 256])
def test_the_dictionary_of_exact_tones_is_found(size, x64, monkeypatch):
    monkeypatch.setattr(fit, "chunk_size", lambda: size)
    spectra, tones, start = recording(np.float64)
    found = fit_dictionary(OBJECTIVE, spectra, tones, start)
    np.testing.assert_allclose(found, DICTIONARY, atol=1e-5)


def test_the_dictionary_of_exact_tones_is_found_in_single_precision():
    spectra, tones, start = recording(np.float32)
    found = fit_dictionary(OBJECTIVE, spectra, tones, start)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, DICTIONARY, atol=1e-3)


def test_missing_harmonics_vanish_and_return():
    hollow = DICTIONARY.copy()
    hollow[0, 1::2] = 0
    spectra, tones, start = recording(np.float32, dictionary=hollow)
    found = fit_dictionary(OBJECTIVE, spectra, tones, start)
    np.testing.assert_allclose(found, hollow, atol=1e-3)
    assert np.all(found[0, 1::2] < 1e-5)
    spectra, tones, _ = recording(np.float32)
    np.testing.assert_allclose(fit_dictionary(OBJECTIVE, spectra, tones, found), DICTIONARY, atol=1e-3)


def test_an_instrument_that_does_not_play_stays():
    spectra, tones, start = recording(np.float32, frames=((Note(1, 0.5, 140.0),), (Note(1, 0.7, 163.2),)))
    found = fit_dictionary(OBJECTIVE, spectra, tones, start)
    np.testing.assert_array_equal(found[0], START[0].astype(np.float32))
    np.testing.assert_allclose(found[1], DICTIONARY[1], atol=1e-3)


def test_the_loss_never_rises_however_wrong_the_tones():
    spectra, tones, start = recording(np.float32)
    spectra = spectra[::-1].copy()
    loss = lambda rows: float(mean_loss(OBJECTIVE, jnp.asarray(spectra), tones, rows))
    losses = [loss(fit_dictionary(OBJECTIVE, spectra, tones, start, max_steps=n)) for n in range(6)]
    assert losses[0] == pytest.approx(loss(start))
    assert np.all(np.diff(losses) <= 1e-6 * losses[0])
    assert losses[-1] < 0.9 * losses[0]


def test_silence_teaches_nothing():
    spectra, tones, start = recording(np.float32, frames=((), ()))
    np.testing.assert_array_equal(fit_dictionary(OBJECTIVE, spectra, tones, start), start)


def test_equations_are_those_of_the_dense_jacobian(x64):
    spectra, tones, start = recording(np.float64, frames=FRAMES[:5])
    spectra, weights = jnp.asarray(spectra) + 0.05, jnp.array([1.0, 0.0, 2.0, 1.0, 1.0])
    theta = pack(tones, OBJECTIVE.lift)

    def residual(entries):
        rows = entries.reshape(start.shape)[tones.instrument]
        model = jax.vmap(OBJECTIVE.model)(theta, rows)
        return (jnp.sqrt(weights)[:, None] * (OBJECTIVE.lifted(model) - OBJECTIVE.lifted(spectra))).reshape(
            -1
        )

    entries = start.reshape(-1)
    r, J = np.asarray(residual(entries)), np.asarray(jax.jacfwd(residual)(entries))
    found = jax.jit(OBJECTIVE.dictionary_equations)(theta, tones.instrument, start, spectra, weights)
    expected = 0.5 * r @ r, J.T @ J, J.T @ r
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * np.max(np.abs(other)))


def test_accelerators_compute_the_same_in_all_bins(x64):
    _, tones, start = recording(np.float64)
    tones = jax.tree.map(lambda x: x[0], tones)
    theta = pack(tones, OBJECTIVE.lift)
    windowed, dense = (
        jax.jit(partial(f, AXIS, start.shape))(tones.amplitude, theta, tones.instrument)
        for f in (lifting._windowed_atoms, lifting._dense_atoms)
    )
    assert windowed.shape == (start.size, AXIS.num_bins)
    np.testing.assert_allclose(dense, windowed, atol=1e-10)

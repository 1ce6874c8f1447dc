"""The dictionary fitted to a recording at given tones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import AXIS, DICTIONARY, Note, duets, pack_notes, render_notes

from jaxsep.learning import fit
from jaxsep.learning.fit import fit_dictionary, fit_timbre
from jaxsep.learning.learner import mean_loss
from jaxsep.pursuit import loss as lifting
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.refinement import pack
from jaxsep.tones.dictionary import Timbre

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
    spectra, tones, _ = recording(np.float64, frames=FRAMES[:5])
    spectra, weights = jnp.asarray(spectra) + 0.05, jnp.array([1.0, 0.0, 2.0, 1.0, 1.0])
    random = np.random.default_rng(0)
    rows, mixing = (jnp.asarray(random.uniform(0.1, 1, shape)) for shape in ((4, 8), (5, 3, 4)))
    theta = pack(tones, OBJECTIVE.lift)

    def residual(rows):
        model = jax.vmap(OBJECTIVE.model)(theta, mixing @ rows)
        difference = OBJECTIVE.lifted(model) - OBJECTIVE.lifted(spectra)
        return (jnp.sqrt(weights)[:, None] * difference).reshape(-1)

    r, J = np.asarray(residual(rows)), np.asarray(jax.jacfwd(residual)(rows))
    found = jax.jit(OBJECTIVE.row_equations)(theta, mixing, rows, spectra, weights)
    expected = 0.5 * r @ r, np.einsum("nrh,nqg->rhqg", J, J), np.einsum("nrh,n->rh", J, r)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * np.max(np.abs(other)))


def test_accelerators_compute_the_same_in_all_bins(x64):
    _, tones, start = recording(np.float64)
    theta = pack(jax.tree.map(lambda x: x[0], tones), OBJECTIVE.lift)
    heights = jnp.asarray(START[:1]) * jnp.ones((3, 1))
    windowed, dense = (
        jax.jit(partial(f, AXIS))(theta, heights) for f in (lifting._windowed_atoms, lifting._dense_atoms)
    )
    assert windowed.shape == (3, start.shape[1], AXIS.num_bins)
    np.testing.assert_allclose(dense, windowed, atol=1e-10)


# ---- Timbre ------------------------------------------------------------------------------------------------


def bright_above(position):
    """The first instrument changes from dark to bright with the pitch."""
    share = np.clip((position - 130) / 100, 0, 1)
    rows = DICTIONARY.copy()
    rows[0] = (1 - share) * DICTIONARY[0] + share * DICTIONARY[0][::-1]
    return rows


def changing_recording(number=60):
    frames = duets(number, seed=6)
    spectra = [sum(render_notes([n], bright_above(n.position)) for n in notes) for notes in frames]
    return np.stack(spectra).astype(np.float32), pack_notes(frames, 2), frames


def test_harmonics_that_change_with_the_pitch_are_found():
    spectra, tones, frames = changing_recording()
    plain = fit_dictionary(OBJECTIVE, spectra, tones, jnp.asarray(START, jnp.float32))
    timbre = fit_timbre(OBJECTIVE, spectra, tones, plain, stiffness=1e-3)
    found = np.asarray(timbre.of(tones))
    expected = np.array([[bright_above(n.position)[n.instrument] for n in notes] for notes in frames])
    error = lambda rows: np.sqrt(np.mean((rows - expected) ** 2))
    assert error(found) < 0.02
    assert error(found) < 0.2 * error(np.asarray(plain)[tones.instrument])


def test_a_stiff_timbre_is_the_dictionary():
    spectra, tones, _ = changing_recording()
    plain = fit_dictionary(OBJECTIVE, spectra, tones, jnp.asarray(START, jnp.float32))
    timbre = fit_timbre(OBJECTIVE, spectra, tones, plain, stiffness=1e6)
    expected = np.repeat(np.asarray(plain)[:, None], timbre.rows.shape[1], axis=1)
    np.testing.assert_allclose(timbre.rows, expected, atol=0.02)


def test_instruments_that_do_not_play_keep_their_timbre():
    spectra, tones, start = recording(np.float32, frames=((Note(1, 0.5, 140.0),), (Note(1, 0.7, 163.2),)))
    timbre = fit_timbre(OBJECTIVE, spectra, tones, start)
    np.testing.assert_array_equal(timbre.rows[0], np.broadcast_to(np.asarray(start)[0], timbre.rows[0].shape))
    # Pitches that are not played take after the nearest one that is.
    np.testing.assert_array_equal(timbre.rows[1, 0], timbre.rows[1, 5])
    np.testing.assert_allclose(timbre.of(tones)[:, 0], np.broadcast_to(DICTIONARY[1], (2, 8)), atol=1e-3)


def test_the_timbre_of_a_dictionary_is_constant():
    tones = pack_notes(FRAMES, 2)
    timbre = Timbre.constant(jnp.asarray(DICTIONARY, jnp.float32), AXIS)
    np.testing.assert_allclose(timbre.of(tones), DICTIONARY[tones.instrument], rtol=1e-6)


def test_pitches_off_the_axis_take_after_its_ends():
    timbre = Timbre(jnp.asarray(np.random.default_rng(0).uniform(size=(1, 5, 3)), jnp.float32), AXIS)
    weights = timbre.weights(jnp.array([-40.0, 0.0, 600.0, 0.25 * 511 + 10]))
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(weights[:3, [0, -1]], [[1, 0], [1, 0], [0, 1]])

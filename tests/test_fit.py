"""The dictionary fitted to a recording at given tones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import AXIS, DICTIONARY, OCTAVE, Note, duets, pack_notes, render_notes

from jaxsep.learning.fit import _sum_over_frames, fit_dictionary, fit_timbre
from jaxsep.learning.learner import mean_loss
from jaxsep.numerics import devices
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.refinement import pack
from jaxsep.signal.gaussians import SINUSOID_WIDTH, sum_gaussians
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.rendering import partials_of

OBJECTIVE = LiftedLoss(AXIS)
FRAMES = duets(21, seed=5)
START = np.full(DICTIONARY.shape, 0.3)


def recording(dtype, frames=FRAMES, dictionary=DICTIONARY):
    """Spectra of the notes, the notes as tones, and a dictionary to begin with."""
    spectra = np.stack([render_notes(notes, dictionary) for notes in frames]).astype(dtype)
    return spectra, pack_notes(frames, 3, dtype), Dictionary(jnp.asarray(START, dtype))


@pytest.mark.parametrize("size", [8, 256])
def test_the_dictionary_of_exact_tones_is_found(size, x64, monkeypatch):
    monkeypatch.setattr(devices, "chunk_size", lambda: size)
    spectra, tones, start = recording(np.float64)
    found = fit_dictionary(OBJECTIVE, spectra, tones, start).harmonics
    np.testing.assert_allclose(found, DICTIONARY, atol=1e-5)


def test_the_dictionary_of_exact_tones_is_found_in_single_precision():
    spectra, tones, start = recording(np.float32)
    found = fit_dictionary(OBJECTIVE, spectra, tones, start).harmonics
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, DICTIONARY, atol=1e-3)


def test_missing_harmonics_vanish_and_return():
    hollow = DICTIONARY.copy()
    hollow[0, 1::2] = 0
    spectra, tones, start = recording(np.float32, dictionary=hollow)
    found = fit_dictionary(OBJECTIVE, spectra, tones, start).harmonics
    np.testing.assert_allclose(found, hollow, atol=1e-3)
    assert np.all(found[0, 1::2] < 1e-5)
    spectra, tones, _ = recording(np.float32)
    again = fit_dictionary(OBJECTIVE, spectra, tones, Dictionary(found)).harmonics
    np.testing.assert_allclose(again, DICTIONARY, atol=1e-3)


def test_of_many_frames_evenly_spaced_ones_teach():
    # Every third of more than 1024, here; what lies between is wrong and goes unheard.
    spectra, tones, start = recording(np.float32)
    frame = np.arange(1026)
    spectra, tones = jax.tree.map(lambda x: np.asarray(x)[frame // 3 % len(spectra)], (spectra, tones))
    spectra[frame % 3 > 0] = spectra[frame % 3 > 0, ::-1]
    found = fit_dictionary(OBJECTIVE, spectra, tones, start).harmonics
    np.testing.assert_allclose(found, DICTIONARY, atol=1e-3)


def test_an_instrument_that_does_not_play_stays():
    spectra, tones, start = recording(np.float32, frames=((Note(1, 0.5, 140.0),), (Note(1, 0.7, 163.2),)))
    found = fit_dictionary(OBJECTIVE, spectra, tones, start).harmonics
    np.testing.assert_array_equal(found[0], START[0].astype(np.float32))
    np.testing.assert_allclose(found[1], DICTIONARY[1], atol=1e-3)


def test_the_loss_never_rises_however_wrong_the_tones():
    spectra, tones, start = recording(np.float32)
    spectra = spectra[::-1].copy()
    loss = lambda found: float(mean_loss(OBJECTIVE, jnp.asarray(spectra), tones, found.harmonics))
    losses = [loss(fit_dictionary(OBJECTIVE, spectra, tones, start, max_steps=n)) for n in range(6)]
    assert losses[0] == pytest.approx(loss(start))
    assert np.all(np.diff(losses) <= 1e-6 * losses[0])
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("beyond", [3.5, 5.0, 6.5])
def test_what_lies_beside_the_axis_does_not_grow(beyond):
    """The last partial of every tone is beyond the last bin but for its tail; something else sounds there."""
    place = AXIS.num_bins - 1 + beyond * SINUSOID_WIDTH - 3 * OCTAVE
    spectra, tones, start = recording(
        np.float32, frames=((Note(1, 0.5, place),), (Note(1, 0.7, place + 0.1),))
    )
    spectra[:, -1] += 0.05
    for fitted in (fit_dictionary, fit_timbre):
        found = fitted(OBJECTIVE, spectra, tones, start).of(tones, AXIS)[:, 0]
        np.testing.assert_allclose(found[:, :6], np.broadcast_to(DICTIONARY[1, :6], (2, 6)), atol=0.02)
        assert np.all(found[:, 7] < 1)


def test_silence_teaches_nothing():
    spectra, tones, start = recording(np.float32, frames=((), ()))
    found = fit_dictionary(OBJECTIVE, spectra, tones, start)
    np.testing.assert_array_equal(found.harmonics, start.harmonics)


def test_equations_are_those_of_the_dense_jacobian(x64):
    spectra, tones, _ = recording(np.float64, frames=FRAMES[:5])
    spectra, random = spectra + 0.05, np.random.default_rng(0)
    rows, mixing = random.uniform(0.1, 1, (4, 8)), random.uniform(0.1, 1, (5, 3, 4))
    mixing[0, 1, 2] = mixing[1, :, 0] = 0  # of some rows only
    theta, lift = pack(tones, OBJECTIVE.lift), OBJECTIVE.lift

    def residual(roots):
        model = jax.vmap(OBJECTIVE.model)(theta, mixing @ roots ** (1 / lift))
        return (OBJECTIVE.lifted(model) - OBJECTIVE.lifted(jnp.asarray(spectra))).reshape(-1)

    r, J = np.asarray(residual(rows**lift)), np.asarray(jax.jacfwd(residual)(rows**lift))
    J = J.reshape(r.size, -1)
    found = _sum_over_frames(OBJECTIVE, spectra, tones, mixing)(rows**lift)
    for one, other in zip(found, (0.5 * r @ r, J.T @ J, J.T @ r), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * np.max(np.abs(other)))


def test_accelerators_compute_the_same_in_all_bins(x64):
    theta = pack(jax.tree.map(lambda x: x[0], recording(np.float64)[1]), OBJECTIVE.lift)
    partials = [x[..., None] for x in partials_of(theta, jnp.asarray(START[:1]) * jnp.ones((3, 1)), AXIS)]
    windowed, dense = (
        sum_gaussians(*partials, AXIS.num_bins, method=method) for method in ("windowed", "dense")
    )
    assert windowed.shape == (3, START.shape[1], AXIS.num_bins)
    np.testing.assert_allclose(dense, windowed, atol=1e-8)


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
    plain = fit_dictionary(OBJECTIVE, spectra, tones, Dictionary(jnp.asarray(START, jnp.float32)))
    timbre = fit_timbre(OBJECTIVE, spectra, tones, plain, stiffness=1e-3)
    found = np.asarray(timbre.of(tones, AXIS))
    expected = np.array([[bright_above(n.position)[n.instrument] for n in notes] for notes in frames])
    error = lambda rows: np.sqrt(np.mean((rows - expected) ** 2))
    assert error(found) < 0.02
    assert error(found) < 0.2 * error(np.asarray(plain.of(tones, AXIS)))


def test_a_stiff_timbre_is_the_dictionary():
    spectra, tones, _ = changing_recording()
    plain = fit_dictionary(OBJECTIVE, spectra, tones, Dictionary(jnp.asarray(START, jnp.float32)))
    timbre = fit_timbre(OBJECTIVE, spectra, tones, plain, stiffness=1e6)
    expected = np.repeat(np.asarray(plain.harmonics)[:, None], timbre.pitches.size, axis=1)
    np.testing.assert_allclose(timbre.by_pitch, expected, atol=0.02)
    np.testing.assert_array_equal(timbre.harmonics, plain.harmonics)


def test_instruments_that_do_not_play_keep_their_timbre():
    spectra, tones, start = recording(np.float32, frames=((Note(1, 0.5, 140.0),), (Note(1, 0.7, 163.2),)))
    timbre = fit_timbre(OBJECTIVE, spectra, tones, start)
    rows = np.asarray(timbre.by_pitch)
    np.testing.assert_array_equal(rows[0], np.broadcast_to(start.harmonics[0], rows[0].shape))
    # Pitches that are not played take after the nearest one that is.
    np.testing.assert_array_equal(rows[1, 0], rows[1, 5])
    np.testing.assert_allclose(
        timbre.of(tones, AXIS)[:, 0], np.broadcast_to(DICTIONARY[1], (2, 8)), atol=1e-3
    )

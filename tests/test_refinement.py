"""Refinement of tones: the loss and its normal equations, and the bounded minimisation."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import AXIS, DICTIONARY, Note, duets, pack_notes, render_notes

from benchmarks import scipy_baseline as baseline
from jaxsep.pursuit.loss import LiftedLoss, power
from jaxsep.pursuit.refinement import LevenbergMarquardt, pack, prune, refine, unpack
from jaxsep.signal.gaussians import SINUSOID_WIDTH, width_bounds
from jaxsep.tones.rendering import render, tangents
from jaxsep.tones.tones import MAX_INHARMONICITY, Tones

pytestmark = pytest.mark.compiles

OBJECTIVE = LiftedLoss(AXIS)
NUM_FRAMES = 24
FAR = float("inf")


@eqx.filter_jit
def compiled_refine(spectra, tones, solver, limit, frames, goal):
    """`refine` with everything given, so that most tests share one program for each precision."""
    rows = jnp.asarray(DICTIONARY, spectra.dtype)
    options = {"solver": solver, "tones_per_instrument": limit, "frames": frames, "goal": goal}
    return refine(spectra, tones, rows[tones.instrument], OBJECTIVE, **options)


def run(spectra, tones, *, frames=None, goal=None, tolerance=1e-5, limit=None):
    """The shared program, without a mask or a goal by default."""
    count, dtype = spectra.shape[0], spectra.dtype
    frames = jnp.ones(count, bool) if frames is None else jnp.asarray(frames)
    goal = jnp.full(count, FAR, dtype) if goal is None else jnp.asarray(goal, dtype)
    solver = LevenbergMarquardt(jnp.asarray(tolerance, dtype), jnp.asarray(1.0, dtype))
    return compiled_refine(spectra, tones, solver, limit, frames, goal)


@eqx.filter_jit
def losses(spectra, tones):
    """The lifted loss at tones, by another renderer than the solver's."""
    rows = jnp.asarray(DICTIONARY, spectra.dtype)
    model = jax.vmap(lambda tone: render(tone, rows[tone.instrument], AXIS, method="dense"))(tones)
    return 0.5 * jnp.sum((OBJECTIVE.lifted(model) - OBJECTIVE.lifted(spectra)) ** 2, axis=1)


def starts(frames, dtype, *, seed=0, spread=1.0):
    """Tones near the true ones: off by up to `spread` bins and half the amplitude, of nominal shape."""
    rng = np.random.default_rng(seed)
    return pack_notes(
        [
            [
                Note(
                    n.instrument,
                    n.amplitude * rng.uniform(0.5, 1.5),
                    n.position + rng.uniform(-1, 1) * spread,
                )
                for n in notes
            ]
            for notes in frames
        ],
        2,
        dtype,
    )


def spectra_of(frames, dtype):
    return jnp.asarray(np.stack([render_notes(notes) for notes in frames]), dtype)


def to_baseline(tones, frame):
    """One frame's active tones, for the baseline."""
    keep = np.asarray(tones.active[frame])
    fields = (tones.amplitude, tones.fundamental, tones.width, tones.inharmonicity, tones.instrument)
    return baseline.Tones(
        *(np.asarray(field[frame], float)[keep] for field in fields[:4]), np.asarray(fields[4][frame])[keep]
    )


# ---- Loss and normal equations ----------------------------------------------------------------------------


def some_theta(lift):
    """Three packed tones, narrow enough for the cut of the windows not to show, one partly off the axis."""
    amplitude = np.array([0.7, 0.05, 1.3])
    columns = amplitude**lift, [180.3, 203.7, 420.2], [1.7, SINUSOID_WIDTH, 1.9], [2e-4, 0, 1.5e-3]
    return jnp.asarray(np.stack(columns, axis=1))


INSTRUMENTS = np.array([0, 1, 1])


def some_target(objective):
    return objective.lifted(jnp.asarray(np.random.default_rng(0).uniform(0, 0.5, AXIS.num_bins)))


def dense_residual(theta, target, objective):
    tones = Tones(
        power(theta[:, 0], 1 / objective.lift),
        theta[:, 1],
        theta[:, 2],
        theta[:, 3],
        jnp.asarray(INSTRUMENTS),
        jnp.ones(3, bool),
    )
    rows = jnp.asarray(DICTIONARY)[tones.instrument]
    return objective.lifted(render(tones, rows, AXIS, method="dense")) - target


@pytest.mark.parametrize("lift", [0.5, 0.7])
def test_normal_equations_are_those_of_the_dense_jacobian(lift, x64):
    objective = LiftedLoss(AXIS, lift=lift)
    theta, harmonics = some_theta(lift), jnp.asarray(DICTIONARY[INSTRUMENTS])
    target = some_target(objective)
    residual = partial(dense_residual, target=target, objective=objective)

    r, jacobian = jax.jit(lambda theta: (residual(theta), jax.jacfwd(residual)(theta)))(theta)
    loss, hessian, gradient = jax.jit(objective.normal_equations)(theta, harmonics, target)
    J = np.asarray(jacobian).reshape(AXIS.num_bins, -1)
    scale = np.sqrt(np.diagonal(J.T @ J))
    np.testing.assert_allclose(loss, 0.5 * np.sum(r**2), rtol=1e-10)
    np.testing.assert_allclose(hessian / np.outer(scale, scale), J.T @ J / np.outer(scale, scale), atol=1e-10)
    np.testing.assert_allclose(gradient / scale, J.T @ r / scale, atol=1e-8 * np.linalg.norm(r))


def test_accelerators_compute_the_same_in_all_bins(x64):
    arguments = some_theta(0.5), jnp.asarray(DICTIONARY[INSTRUMENTS])
    windowed, dense = (
        jax.jit(partial(tangents, axis=AXIS, method=method))(*arguments) for method in ("windowed", "dense")
    )
    scale = jnp.max(jnp.abs(windowed), axis=(0, 2), keepdims=True)
    np.testing.assert_allclose(dense / scale, windowed / scale, atol=1e-10)


@pytest.mark.parametrize("lift", [0.5, 1.0])
def test_gradient_is_the_finite_difference(lift, x64):
    objective = LiftedLoss(AXIS, lift=lift, offset=1e-5)
    theta, harmonics = some_theta(lift), jnp.asarray(DICTIONARY[INSTRUMENTS])
    target = some_target(objective)
    evaluate = jax.jit(lambda theta: objective.normal_equations(theta, harmonics, target))
    gradient = evaluate(theta)[2]
    step = np.array([1e-5, 1e-5, 1e-5, 1e-8])
    for index in np.ndindex(3, 4):
        change = np.zeros((3, 4))
        change[index] = step[index[1]]
        difference = (evaluate(theta + change)[0] - evaluate(theta - change)[0]) / (2 * step[index[1]])
        np.testing.assert_allclose(gradient[4 * index[0] + index[1]], difference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lift", [0.5, 1.0])
def test_loss_is_the_baseline_s(lift, x64):
    objective = LiftedLoss(AXIS, lift=lift)
    theta, harmonics = some_theta(lift), jnp.asarray(DICTIONARY[INSTRUMENTS])
    loss, _, gradient = jax.jit(objective.normal_equations)(theta, harmonics, some_target(objective))
    theta, spectrum = np.asarray(theta), np.random.default_rng(0).uniform(0, 0.5, AXIS.num_bins)
    tones = baseline.Tones(theta[:, 0] ** (1 / lift), *theta[:, 1:].T, INSTRUMENTS)
    expected, slopes, _ = baseline.lifted_loss_and_gradient(tones, DICTIONARY, spectrum, q=lift)
    slopes[0] *= theta[:, 0] ** (1 / lift - 1) / lift  # by a^q instead of a
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(gradient).reshape(3, 4), slopes.T, rtol=1e-3, atol=1e-3)


def test_normal_equations_are_finite_at_silence(dtype):
    theta = jnp.asarray(some_theta(0.5), dtype).at[:, 0].set(0)
    target = OBJECTIVE.lifted(jnp.zeros(AXIS.num_bins, dtype))
    result = jax.jit(OBJECTIVE.normal_equations)(theta, jnp.asarray(DICTIONARY[INSTRUMENTS], dtype), target)
    assert result[0] == 0
    assert all(part.dtype == dtype and np.all(np.isfinite(part)) for part in result)


def test_normal_equations_vmap_is_a_loop(x64):
    theta = jnp.stack([some_theta(0.5), some_theta(0.5)[::-1]])
    target = jnp.asarray(np.random.default_rng(2).uniform(0, 1, (2, AXIS.num_bins)))
    harmonics = jnp.asarray(DICTIONARY[INSTRUMENTS])
    one = jax.jit(lambda theta, target: OBJECTIVE.normal_equations(theta, harmonics, target))
    loop = zip(*(one(*arguments) for arguments in zip(theta, target, strict=True)), strict=True)
    for actual, expected in zip(jax.jit(jax.vmap(one))(theta, target), loop, strict=True):
        np.testing.assert_allclose(actual, jnp.stack(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("lift", "offset"), [(0.0, 1e-7), (1.1, 1e-7), (0.5, 0.0), (0.5, float("nan"))])
def test_impossible_losses(lift, offset):
    message = f"LiftedLoss: expected 0 < lift <= 1 and offset > 0, got {lift} and {offset}"
    with pytest.raises(ValueError, match=message):
        LiftedLoss(AXIS, lift=lift, offset=offset)


# ---- Parameters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lift", [0.5, 1.0, 0.7])
def test_unpacked_is_what_was_packed(lift, dtype):
    tones = pack_notes(duets(3, seed=0, widths=(0.85, 1.4), inharmonicity=1e-3), 4, dtype)
    back = unpack(pack(tones, lift), tones, lift, tones.active)
    for actual, expected in zip(jax.tree.leaves(back), jax.tree.leaves(tones), strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=10 * jnp.finfo(dtype).eps)


def test_packed_parameters_are_within_their_bounds():
    wild = Tones(
        jnp.array([1.0, -1.0]),
        jnp.array([-1e3, 1e4]),
        jnp.array([0.1, 9.0]),
        jnp.array([-1e-3, 1.0]),
        jnp.array([0, 1]),
        jnp.array([True, True]),
    )
    narrow, wide = width_bounds()
    expected = [[1, -1e3, narrow, 0], [0, 1e4, wide, MAX_INHARMONICITY]]
    np.testing.assert_allclose(pack(wild, 1.0), expected, rtol=1e-6)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_pruning_keeps_the_largest_of_each_instrument(limit):
    rng = np.random.default_rng(0)
    compiled = jax.jit(prune, static_argnums=3)
    for _ in range(50):
        amplitude = rng.integers(0, 5, 7).astype(np.float32)  # with ties, of which the first wins
        instrument, active = rng.integers(0, 3, 7), rng.uniform(size=7) < 0.8
        kept = np.zeros(7, bool)
        for i in range(3):
            mine = [k for k in np.argsort(-amplitude, kind="stable") if active[k] and instrument[k] == i]
            kept[mine[:limit]] = True
        np.testing.assert_array_equal(compiled(amplitude, instrument, active, limit), kept)


# ---- Minimisation -----------------------------------------------------------------------------------------


def test_true_tones_are_recovered_from_nearby(dtype):
    frames = duets(NUM_FRAMES, seed=10, widths=(0.85, 1.4), inharmonicity=1.5e-3)
    truth, spectra = pack_notes(frames, 2, dtype), spectra_of(frames, dtype)
    result = run(spectra, starts(frames, dtype))
    assert result.loss.dtype == result.tones.amplitude.dtype == dtype
    nothing = 0.5 * np.sum(np.asarray(spectra), axis=1)
    assert np.all(result.loss < 1e-6 * nothing)
    np.testing.assert_allclose(result.tones.amplitude, truth.amplitude, rtol=1e-3)
    np.testing.assert_allclose(result.tones.fundamental, truth.fundamental, atol=1e-2)
    np.testing.assert_allclose(result.tones.width, truth.width, rtol=2e-3)
    np.testing.assert_allclose(result.tones.inharmonicity, truth.inharmonicity, atol=1e-5)
    np.testing.assert_array_equal(result.tones.instrument, truth.instrument)
    np.testing.assert_array_equal(result.tones.active, True)


def hard_frames(dtype):
    """Spectra of other tones than the model can have, with noise, and tones that start anywhere."""
    rng = np.random.default_rng(3)
    frames = duets(NUM_FRAMES, seed=11, widths=(0.5, 2.0), inharmonicity=4e-3)
    noise = np.abs(0.02 * rng.standard_normal((NUM_FRAMES, AXIS.num_bins)))
    anywhere = starts(duets(NUM_FRAMES, seed=12), dtype, spread=30)
    return spectra_of(frames, dtype) + jnp.asarray(noise, dtype), anywhere


def test_loss_is_never_above_the_start_and_bounds_hold(dtype):
    spectra, tones = hard_frames(dtype)
    result = run(spectra, tones)
    before, after = losses(spectra, tones), losses(spectra, result.tones)
    np.testing.assert_allclose(result.loss, after, rtol=1e-4)
    assert np.all(result.loss <= before)
    assert np.mean(result.loss < 0.9 * before) > 0.9
    narrow, wide = (np.asarray(bound, dtype) for bound in width_bounds())
    found = result.tones
    assert np.all(found.amplitude >= 0)
    assert np.all((found.width >= narrow) & (found.width <= wide))
    assert np.all((found.inharmonicity >= 0) & (found.inharmonicity <= np.asarray(MAX_INHARMONICITY, dtype)))
    assert np.any(found.width == narrow)
    assert np.any(found.width == wide)
    assert np.all((result.steps > 1) & (result.steps <= LevenbergMarquardt().max_steps))


def test_a_start_outside_the_bounds_is_brought_inside():
    frames = duets(NUM_FRAMES, seed=13)
    tones = starts(frames, jnp.float32)
    outside = eqx.tree_at(lambda t: (t.width, t.inharmonicity), tones, (9 * tones.width, tones.width))
    result = run(spectra_of(frames, jnp.float32), outside)
    assert np.all(result.tones.width <= width_bounds()[1] * (1 + 1e-6))
    assert np.all(result.tones.inharmonicity <= MAX_INHARMONICITY * (1 + 1e-6))
    assert np.all(np.isfinite(result.loss))


def test_minima_are_as_low_as_the_baseline_s(x64):
    spectra, _ = hard_frames(jnp.float64)
    tones = starts(duets(NUM_FRAMES, seed=11), jnp.float64)  # near the true tones
    result = run(spectra, tones, tolerance=1e-7)
    scipy_loss = np.empty(NUM_FRAMES)
    for frame, spectrum in enumerate(np.asarray(spectra)):
        found, _ = baseline.refine(to_baseline(tones, frame), DICTIONARY, spectrum, tolerance=1e-9)
        scipy_loss[frame] = baseline.lifted_loss_and_gradient(found, DICTIONARY, spectrum)[0]
    assert np.mean(result.loss <= 1.001 * scipy_loss) >= 0.95
    assert np.mean(result.loss) <= 1.001 * np.mean(scipy_loss)


def test_a_sharper_tolerance_takes_more_steps_and_lowers_the_loss():
    spectra, tones = hard_frames(jnp.float32)
    rough, fine = (run(spectra, tones, tolerance=tolerance) for tolerance in (1e-1, 1e-5))
    assert np.sum(rough.steps) < np.sum(fine.steps)
    assert np.sum(rough.loss) > np.sum(fine.loss)


def test_frames_outside_the_mask_keep_their_tones():
    spectra, tones = hard_frames(jnp.float32)
    mask = np.arange(NUM_FRAMES) % 3 == 1
    everything, result = run(spectra, tones), run(spectra, tones, frames=mask)
    for name in ("amplitude", "fundamental", "width", "inharmonicity"):
        here = getattr(result.tones, name)
        np.testing.assert_allclose(here[~mask], getattr(tones, name)[~mask], rtol=1e-6)
        np.testing.assert_array_equal(here[mask], getattr(everything.tones, name)[mask])
    assert np.all(np.isinf(result.loss[~mask]))
    np.testing.assert_array_equal(result.loss[mask], everything.loss[mask])
    np.testing.assert_array_equal(result.steps, np.where(mask, everything.steps, 0))


def test_a_goal_ends_hopeless_descents_and_leaves_the_others():
    spectra, tones = hard_frames(jnp.float32)
    free = run(spectra, tones)
    hopeless = np.arange(NUM_FRAMES) % 2 == 0
    goal = np.where(hopeless, 0.1, 1.5) * np.asarray(free.loss)
    result = run(spectra, tones, goal=goal)
    assert np.all(result.steps <= free.steps)
    assert np.sum(result.steps[hopeless]) < 0.8 * np.sum(free.steps[hopeless])
    assert np.all(result.loss[hopeless] > goal[hopeless])
    # A descent that would have reached its goal is only given up if it crept on the way.
    reached = ~hopeless & np.asarray(result.loss == free.loss)
    assert np.mean(reached[~hopeless]) > 0.8
    assert np.all(result.loss <= losses(spectra, tones))


def test_surplus_tones_are_dropped_and_the_rest_refined_again():
    frames = duets(NUM_FRAMES, seed=14)
    spectra = spectra_of(frames, jnp.float32)
    near = starts(frames, jnp.float32)
    # A third tone, quieter than the one of its instrument.
    ghost = pack_notes([[Note(1, 0.05, 300.0)]] * NUM_FRAMES, 1)
    crowded = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), near, ghost)
    result = run(spectra, crowded, limit=1)
    active = np.asarray(result.tones.active)
    count = [np.sum(active & (np.asarray(result.tones.instrument) == i), axis=1) for i in (0, 1)]
    np.testing.assert_array_equal(count, 1)
    assert np.all(result.tones.amplitude[~active] == 0)
    # What is left is a minimum of its own.
    again = run(spectra, result.tones, limit=1)
    np.testing.assert_allclose(again.loss, result.loss, atol=1e-4)
    np.testing.assert_allclose(result.loss, losses(spectra, result.tones), rtol=1e-2, atol=1e-6)
    assert np.mean(result.loss < 1e-4) > 0.9


def test_nothing_to_refine():
    silence = jnp.zeros((NUM_FRAMES, AXIS.num_bins))
    result = run(silence, Tones.empty((NUM_FRAMES, 2)))
    assert np.all(result.loss == 0)
    assert not np.any(result.tones.active)
    faded = run(silence, starts(duets(NUM_FRAMES, seed=0), jnp.float32))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(faded.tones))
    assert np.all(faded.loss < 1e-3)


def test_jit_is_eager():
    frames = duets(NUM_FRAMES, seed=15)
    spectra, tones = spectra_of(frames, jnp.float32), starts(frames, jnp.float32)
    rows = jnp.asarray(DICTIONARY, jnp.float32)
    eager = refine(spectra, tones, rows[tones.instrument], OBJECTIVE)
    compiled = run(spectra, tones)
    np.testing.assert_allclose(eager.loss, compiled.loss, atol=1e-6)
    np.testing.assert_allclose(eager.tones.fundamental, compiled.tones.fundamental, atol=1e-3)


def test_frames_do_not_depend_on_their_company():
    spectra, tones = hard_frames(jnp.float32)
    together = run(spectra, tones)
    backwards = run(spectra[::-1], jax.tree.map(lambda x: x[::-1], tones))
    np.testing.assert_array_equal(backwards.loss[::-1], together.loss)
    np.testing.assert_array_equal(backwards.steps[::-1], together.steps)

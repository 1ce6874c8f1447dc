"""Tone pursuit: known tones, the SciPy baseline, recorded results, and what must not change the outcome."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import AXIS, DICTIONARY, PROBLEMS

from benchmarks import scipy_baseline as baseline
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.refinement import LevenbergMarquardt
from jaxsep.pursuit.tone_pursuit import PursuitOutcome, TonePursuit, _round_sizes
from jaxsep.signal.gaussians import SINUSOID_WIDTH

pytestmark = pytest.mark.compiles

OBJECTIVE = LiftedLoss(AXIS)
MONOPHONIC = [problem for problem in PROBLEMS if problem.tones_per_instrument == 1]
BATCH = np.concatenate([problem.spectra for problem in MONOPHONIC])
TRACES = []


@eqx.filter_jit
def pursue(pursuit, spectra, dictionary):
    TRACES.append(spectra.shape)
    return pursuit(spectra, dictionary)


def pursuit_of(dtype=jnp.float32, *, improvement=0.9, tolerance=1e-5, objective=OBJECTIVE, limit=1):
    """Everything that is swept is an array, so that it is traced."""
    number = lambda x: jnp.asarray(x, dtype)
    return TonePursuit(
        objective, limit, LevenbergMarquardt(number(tolerance), number(1.0)), number(improvement)
    )


def run(spectra, dtype=jnp.float32, **options):
    result = pursue(pursuit_of(dtype, **options), jnp.asarray(spectra, dtype), jnp.asarray(DICTIONARY, dtype))
    return jax.tree.map(np.asarray, result)


@cache
def solve(dtype):
    """The result for the whole batch, solved once for each precision."""
    return run(BATCH, dtype)


def rows(result, problem):
    """The part of the batch's result that belongs to a problem."""
    first = sum(len(other.frames) for other in MONOPHONIC[: MONOPHONIC.index(problem)])
    return jax.tree.map(lambda x: x[first : first + len(problem.frames)], result)


def notes_of(tones, frame):
    """Parameters of a frame's tones, the lowest instrument and pitch first: `[tones, 5]`."""
    columns = tones.instrument, tones.fundamental, tones.amplitude, tones.width, tones.inharmonicity
    found = np.stack([column[frame] for column in columns], axis=1)[tones.active[frame]]
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def baseline_loss(tones, frame, spectrum, dictionary=DICTIONARY):
    instrument, position, *others = notes_of(tones, frame).T.astype(float)
    amplitude, width, inharmonicity = others
    notes = baseline.Tones(amplitude, position, width, inharmonicity, instrument.astype(int))
    return baseline.lifted_loss_and_gradient(notes, dictionary, np.asarray(spectrum, float))[0]


def assert_found(result, problem, *, relative, bins, inharmonicity):
    truth = problem.tones()
    for frame in range(len(problem.frames)):
        found, wanted = notes_of(result.tones, frame), notes_of(jax.tree.map(np.asarray, truth), frame)
        assert found.shape == wanted.shape, frame
        np.testing.assert_array_equal(found[:, 0], wanted[:, 0])
        np.testing.assert_allclose(found[:, 1], wanted[:, 1], atol=bins)
        np.testing.assert_allclose(found[:, 2:4], wanted[:, 2:4], rtol=relative)
        np.testing.assert_allclose(found[:, 4], wanted[:, 4], atol=inharmonicity)


# ---- Known tones ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [p for p in MONOPHONIC if p.exact], ids=lambda problem: problem.name)
def test_exact_problems_are_solved(problem, dtype):
    result = rows(solve(dtype), problem)
    assert result.loss.dtype == result.tones.amplitude.dtype == result.tones.width.dtype == dtype
    assert_found(result, problem, relative=2e-3, bins=5e-3, inharmonicity=1e-5)
    assert np.all(result.loss <= 1e-5 * result.initial_loss)
    silent = np.array([not notes for notes in problem.frames])
    assert np.all((result.outcome == PursuitOutcome.silent) == silent)
    assert np.all((result.outcome == PursuitOutcome.explained) == ~silent)
    assert np.all((result.steps > 0) == ~silent)


def test_noise_moves_the_tones_little(dtype):
    (problem,) = (p for p in PROBLEMS if p.name == "noisy")
    result = rows(solve(dtype), problem)
    assert_found(result, problem, relative=3e-2, bins=5e-2, inharmonicity=1e-4)
    assert np.all(result.loss < 0.05 * result.initial_loss)


def test_maximum_polyphony():
    (problem,) = (p for p in PROBLEMS if p.tones_per_instrument == 2)
    result = run(problem.spectra, limit=2)
    assert result.tones.capacity == problem.capacity == 4
    assert np.all(result.tones.active)
    assert_found(result, problem, relative=2e-3, bins=5e-3, inharmonicity=1e-5)


def test_each_instrument_has_its_own_polyphony():
    (problem,) = (p for p in PROBLEMS if p.tones_per_instrument == 2)
    result = run(problem.spectra, limit=(1, 2))
    assert result.tones.capacity == 3
    counts = [np.sum(result.tones.active & (result.tones.instrument == number), axis=1) for number in (0, 1)]
    assert np.all(counts[0] == 1)
    assert np.all(counts[1] == 2)
    with pytest.raises(ValueError, match="tones_per_instrument: expected 2 numbers, one for each"):
        run(problem.spectra, limit=(1, 2, 2))


@pytest.mark.parametrize("problem", MONOPHONIC, ids=lambda problem: problem.name)
def test_losses_are_as_low_as_the_baseline_s(problem, x64):
    result = rows(solve(np.dtype("float64")), problem)
    for frame, spectrum in enumerate(problem.spectra):
        found, _ = baseline.tone_pursuit(spectrum, DICTIONARY, delta=1e-7 / max(spectrum.max(), 1e-9))
        expected = baseline.lifted_loss_and_gradient(found, DICTIONARY, spectrum)[0]
        own = baseline_loss(result.tones, frame, spectrum)
        assert own <= 1.01 * expected + 1e-6 * result.initial_loss[frame]
        if not problem.hidden:
            assert sorted(found.instrument) == sorted(
                result.tones.instrument[frame][result.tones.active[frame]]
            )


@pytest.mark.parametrize("problem", [p for p in MONOPHONIC if p.hidden], ids=lambda problem: problem.name)
def test_hidden_tones_are_found_or_missed_with_a_higher_loss(problem):
    result = rows(solve(np.dtype("float32")), problem)
    for frame in range(len(problem.frames)):
        truth = notes_of(jax.tree.map(np.asarray, problem.tones()), frame)
        found = notes_of(result.tones, frame)
        right = found.shape == truth.shape and np.allclose(found[:, :3], truth[:, :3], rtol=1e-3)
        assert right == (result.loss[frame] < 1e-5 * result.initial_loss[frame])


# ---- The result -------------------------------------------------------------------------------------------


def test_losses_are_those_of_the_tones(dtype):
    result = solve(dtype)
    for frame in range(0, len(BATCH), 3):
        expected = baseline_loss(result.tones, frame, BATCH[frame])
        np.testing.assert_allclose(result.loss[frame], expected, rtol=1e-3, atol=2e-5 * BATCH[frame].sum())
    lifted = np.sqrt(BATCH + 1e-7) - np.sqrt(1e-7)
    np.testing.assert_allclose(result.initial_loss, 0.5 * np.sum(lifted**2, axis=1), rtol=1e-4, atol=1e-9)
    assert np.all(result.loss <= result.initial_loss)


def test_empty_slots_come_last_and_are_silent():
    tones = solve(np.dtype("float32")).tones
    assert tones.amplitude.shape == (len(BATCH), 2)
    assert np.all(tones.active == (np.cumsum(~tones.active, axis=1) == 0))
    assert np.all((tones.amplitude > 0) == tones.active)
    counts = [np.sum(tones.active & (tones.instrument == i), axis=1) for i in (0, 1)]
    assert np.all(np.array(counts) <= 1)
    np.testing.assert_allclose(tones.width[~tones.active], SINUSOID_WIDTH, rtol=1e-6)


def test_a_tone_joins_if_the_norm_of_the_residual_falls_enough():
    result = solve(np.dtype("float32"))
    one = np.sum(result.tones.active, axis=1) == 1
    ratio = np.sqrt(result.loss / np.where(one, result.initial_loss, 1))
    frame = np.argmax(np.where(one, ratio, 0))  # one that a single tone explains poorly
    assert 0.3 < ratio[frame] < 0.8
    for factor, num_tones in ((0.95, 0), (1.05, 1)):
        tones = run(BATCH, improvement=factor * ratio[frame]).tones
        assert np.sum(tones.active[frame]) == num_tones


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1])
def test_impossible_frames_say_so_and_leave_the_others(bad):
    spectra, good = BATCH.copy(), np.ones(len(BATCH), bool)
    spectra[[2, 9], [100, 0]] = bad
    good[[2, 9]] = False
    result, expected = run(spectra), solve(np.dtype("float32"))
    assert np.all((result.outcome == PursuitOutcome.invalid) == ~good)
    assert not np.any(result.tones.active[~good])
    assert np.all(result.loss[~good] == 0)
    assert np.all(result.steps[~good] == 0)
    for actual, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        assert np.all(np.isfinite(actual))
        np.testing.assert_array_equal(actual[good], wanted[good])


def test_frames_do_not_depend_on_their_company():
    expected = solve(np.dtype("float32"))
    for frame in (1, 8, 17):
        alone = np.zeros_like(BATCH)
        alone[frame] = BATCH[frame]
        result = run(alone)
        for actual, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(actual[frame], wanted[frame])
        assert np.sum(result.outcome == PursuitOutcome.silent) == len(BATCH) - 1


def assert_scaled(result, expected, level):
    """One frame's result is that of the same frame at level 1. A power of 4, whose root is exact, changes
    nothing but the exponents of all numbers."""
    result = jax.tree.map(np.asarray, result)
    scaled_back = eqx.tree_at(lambda t: t.amplitude, result.tones, replace_fn=lambda a: a / np.float32(level))
    found, wanted = notes_of(scaled_back, 0), notes_of(expected.tones, 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert abs(result.loss[0] / level - expected.loss[0]) < 1e-6 * expected.initial_loss[0]


def test_one_frame_at_another_level():
    (problem,) = (p for p in MONOPHONIC if p.name == "one frame")
    expected, level = rows(solve(np.dtype("float32")), problem), 4.0**7
    result = run(level * problem.spectra, objective=LiftedLoss(AXIS, offset=1e-7 * level))
    assert_scaled(result, expected, level)
    assert abs(result.steps[0] - expected.steps[0]) <= 8  # where nothing is left but rounding


def test_jit_is_eager_and_an_instrument_that_does_not_play_changes_nothing():
    (problem,) = (p for p in MONOPHONIC if p.name == "solo")
    expected, level = rows(solve(np.dtype("float32")), problem), 4.0**-7
    pursuit = pursuit_of(objective=LiftedLoss(AXIS, offset=1e-7 * level))
    spectra = jnp.asarray(level * problem.spectra[:1], jnp.float32)
    result = pursuit(spectra, jnp.asarray(DICTIONARY[:1], jnp.float32))
    assert_scaled(result, expected, level)


def test_sweeping_numbers_does_not_trace_again():
    expected = solve(np.dtype("float32"))
    traces = len(TRACES)
    demanding, rough = run(BATCH, improvement=0.2), run(BATCH, tolerance=0.3)
    lenient = run(BATCH, improvement=1.0)
    other = pursue(pursuit_of(), jnp.asarray(BATCH, jnp.float32), jnp.asarray(DICTIONARY[::-1], jnp.float32))
    assert len(TRACES) == traces
    # The numbers nevertheless count.
    assert np.sum(demanding.tones.active) < np.sum(expected.tones.active)
    assert np.sum(rough.steps) < np.sum(expected.steps)
    assert np.sum(lenient.loss) < np.sum(expected.loss)
    noise = np.random.default_rng(0).uniform(0, 1, BATCH.shape).astype(BATCH.dtype)
    assert np.any(run(noise, improvement=1.0).outcome == PursuitOutcome.rounds_used)
    np.testing.assert_allclose(other.loss, expected.loss, atol=1e-4)


@pytest.mark.parametrize("capacity", range(1, 20))
def test_every_round_has_a_slot_for_its_tone(capacity):
    slots = [size for size, rounds in _round_sizes(capacity) for _ in range(rounds)]
    assert len(slots) == 2 * capacity
    for before, size in enumerate(slots):  # so many tones there may be already
        assert size > min(before, capacity)
    assert slots == sorted(slots)


def test_impossible_arguments():
    with pytest.raises(ValueError, match="spectra: expected 512 bins, got 511"):
        TonePursuit(OBJECTIVE)(jnp.ones((2, 511)), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="spectra: expected at least 1 frame, got 0"):
        TonePursuit(OBJECTIVE)(jnp.ones((0, 512)), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="tones_per_instrument: expected at least 1, got 0"):
        TonePursuit(OBJECTIVE, 0)


# ---- Recorded results -------------------------------------------------------------------------------------

SETTINGS = ["trained_tone1", "trained_tone2", "random4_tone1", "random4_tone2"]


def check_fidelity(recorded, setting, dtype):
    """Every frame as good as the published method, and the mean better.

    The spectra are taken as they were stored, with δ = 1e-7 absolute, and the loss is the baseline's.
    """
    dictionary, spectra = recorded[f"{setting}_dictionary"], recorded["log_spectra"]
    pursuit = TonePursuit(LiftedLoss(offset=1e-7), int(setting[-1]))
    result = pursue(pursuit, jnp.asarray(spectra, dtype), jnp.asarray(dictionary, dtype))
    result = jax.tree.map(np.asarray, result)
    loss = np.array([baseline_loss(result.tones, n, y, dictionary) for n, y in enumerate(spectra)])
    np.testing.assert_allclose(result.loss, loss, rtol=2e-3, atol=1e-6)
    assert loss.mean() < recorded[f"{setting}_loss"].mean()
    assert np.mean(loss <= 1.02 * recorded[f"{setting}_loss"]) >= 0.95


@pytest.mark.parametrize(
    "setting", [*SETTINGS[:2], *(pytest.param(s, marks=pytest.mark.slow) for s in SETTINGS[2:])]
)
def test_recorded_losses_are_reached(setting, reference):
    check_fidelity(reference("tone_frames.npz"), setting, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_recorded_losses_are_reached_in_double_precision(setting, reference, x64):
    check_fidelity(reference("tone_frames.npz"), setting, np.float64)

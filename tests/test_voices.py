"""Costs of notes over a recording, and the cheapest path through hypotheses."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import AXIS, SEMITONE

from jaxsep.search import voices as voices_module
from jaxsep.search.voices import VoiceModel, Voices, best_path
from jaxsep.tones.tones import Tones

MODEL = VoiceModel(register=0.2, crossing=0.0, change=0.6, sounding=0.1, ringing=0.3)


def tones_of(frames, slots=2):
    """Tones `[frames, slots]` from lists of (instrument, position)."""
    blank = jax.tree.map(np.array, Tones.empty((len(frames), slots)))
    for frame, notes in enumerate(frames):
        for slot, (instrument, position) in enumerate(notes):
            blank.instrument[frame, slot] = instrument
            blank.fundamental[frame, slot] = position
            blank.amplitude[frame, slot] = 1
            blank.active[frame, slot] = True
    return blank


def voices(surprisal=None, scale=1.0, model=MODEL, limit=1, noise=0.0, energy=0.0):
    surprisal = jnp.zeros((2, AXIS.num_bins)) if surprisal is None else surprisal
    return Voices(model, surprisal, *map(jnp.float32, (scale, noise, energy)), AXIS, limit)


def one(tones):
    return jax.tree.map(lambda x: x[0], tones)


def test_costs_of_the_tones_of_a_frame():
    surprisal = jnp.asarray(np.random.default_rng(0).normal(size=(2, AXIS.num_bins)), jnp.float32)
    prior = voices(surprisal, scale=2.0)
    frame = one(tones_of([[(0, 100.2), (0, 140.0), (1, 200.6)]], slots=4))
    register = surprisal[0, 100] + surprisal[0, 140] + surprisal[1, 201]
    # Three tones, one of them beyond the one that an instrument plays at a time.
    assert prior.sounding(frame) == pytest.approx(2 * (0.3 + 0.3 + 0.2 * float(register)), rel=1e-5)
    assert voices(surprisal, limit=2).sounding(frame) == pytest.approx(0.3 + 0.2 * float(register), rel=1e-5)
    assert prior.sounding(one(tones_of([[]]))) == 0
    # Where there is noise, a tone costs more, and nothing else does.
    noisy = voices(surprisal, scale=2.0, noise=0.5)
    assert noisy.sounding(frame) - prior.sounding(frame) == pytest.approx(0.5 * 0.3, rel=1e-4)
    step = one(tones_of([[]])), frame
    assert noisy.changing(*step) == prior.changing(*step)


def test_where_it_is_to_be_certain_a_tone_costs_a_part_of_what_an_instrument_sounds():
    nothing, frame = one(tones_of([[]])), one(tones_of([[(0, 100), (1, 200)]]))
    # In units of the spectra, whatever the loss and the noise.
    for scale, noise in [(2.0, 0.0), (0.5, 3.0)]:
        prior = voices(scale=scale, noise=noise, energy=7.0)
        assert prior.strict().sounding(frame) == pytest.approx(2 * MODEL.worth * 7 / 2, rel=1e-5)
        assert prior.strict().changing(nothing, frame) == prior.changing(nothing, frame)
    # Of a clean recording it costs three times as much as usual.
    clean = voices(scale=0.01, energy=7.0)
    assert clean.strict().sounding(frame) == pytest.approx(3 * float(clean.sounding(frame)), rel=1e-5)
    free = voices(model=VoiceModel.free(), energy=7.0)
    assert free.strict().sounding(frame) == 0


def test_a_tone_of_a_chord_costs_a_part():
    tones = tones_of([[(0, 100), (1, 200)], [(0, 100)]])
    costs = lambda most: MODEL.fit(tones, 2, most, AXIS, scale=2.0, noise=0.5, energy=7.0)
    lines, chords = costs(1), costs((1, 4))
    for prior, part in [(lines, 1.0), (chords, 2 / 5)]:  # two instruments, five voices
        np.testing.assert_allclose([prior.scale, prior.noise, prior.energy], part * np.array([2.0, 0.5, 7.0]))
    for cost in (Voices.sounding, lambda prior, frame: prior.strict().sounding(frame)):
        assert cost(chords, one(tones)) == pytest.approx(2 / 5 * float(cost(lines, one(tones))), rel=1e-5)


@pytest.mark.parametrize(
    ("before", "after", "handed"),
    [
        ([(0, 100)], [(1, 100 + 0.6 * SEMITONE)], 1),
        ([(0, 100), (1, 150)], [(0, 150), (1, 100)], 2),
        ([(0, 100)], [(1, 100 + 0.8 * SEMITONE)], 0),  # another note
        ([(0, 100)], [(0, 100), (1, 100)], 0),  # a unison begins
        ([(0, 100), (1, 100)], [(1, 100)], 0),
    ],
)
def test_notes_that_change_hands(before, after, handed):
    """They cost the more, beside an end and a beginning."""
    model = eqx.tree_at(lambda m: m.handing, MODEL, 1.5)
    step = one(tones_of([before])), one(tones_of([after]))
    more = voices(scale=2.0, model=model).changing(*step) - voices(scale=2.0).changing(*step)
    assert more == pytest.approx(2 * 1.5 * handed)


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ([(0, 100)], [(0, 100 + 0.6 * SEMITONE)], 0),
        ([(0, 100)], [(0, 100 + 0.8 * SEMITONE)], 2),
        ([(0, 100)], [(1, 100)], 2),
        ([(0, 100), (1, 150)], [(1, 150), (0, 101)], 0),
        ([(0, 100)], [(0, 100), (1, 50)], 1),
        ([(0, 100)], [], 1),
        ([], [], 0),
    ],
)
def test_costs_of_a_step(before, after, changes):
    step = voices(scale=2.0).changing(one(tones_of([before])), one(tones_of([after])))
    assert step == pytest.approx(2 * 0.5 * 0.6 * changes)


def test_registers_are_where_an_instrument_plays():
    rng = np.random.default_rng(1)
    low, high = 150 + 6 * rng.standard_normal(400), 300 + 6 * rng.standard_normal(400)
    fitted = MODEL.fit(tones_of([[(0, a), (1, b)] for a, b in zip(low, high, strict=True)]), 2, 1, AXIS, 1.0)
    surprisal = np.asarray(fitted.surprisal)
    assert surprisal.shape == (2, AXIS.num_bins)
    assert abs(np.argmin(surprisal[0]) - 150) < SEMITONE
    assert abs(np.argmin(surprisal[1]) - 300) < SEMITONE
    assert surprisal[0, 300] - surprisal[1, 300] > 2
    # Probabilities per bin, against one of two octaves.
    np.testing.assert_allclose(np.sum(np.exp(-surprisal), axis=1), 24 * SEMITONE, rtol=1e-3)


def test_registers_without_tones_are_even():
    surprisal = np.asarray(MODEL.fit(tones_of([[], []]), 2, 1, AXIS, 1.0).surprisal)
    assert np.all(np.isfinite(surprisal))
    np.testing.assert_allclose(surprisal, surprisal[0, 0])


def random_hypotheses(seed, num_frames=4, num_hypotheses=3):
    rng = np.random.default_rng(seed)
    frames = [
        [(int(rng.integers(2)), rng.choice([100.0, 102.0, 150.0])) for _ in range(rng.integers(3))]
        for _ in range(num_frames * num_hypotheses)
    ]
    tones = jax.tree.map(lambda x: x.reshape(num_frames, num_hypotheses, *x.shape[1:]), tones_of(frames))
    return tones, rng.uniform(0, 1, (num_frames, num_hypotheses)).astype(np.float32)


def brute_force(prior, tones, loss):
    """Cost of every path."""
    pick = lambda f, h: jax.tree.map(lambda x: x[f, h], tones)
    frames, hypotheses = loss.shape
    costs = {}
    alone = np.array([[float(prior.sounding(pick(f, h))) for h in range(hypotheses)] for f in range(frames)])
    for path in itertools.product(range(hypotheses), repeat=frames):
        cost = sum(float(loss[f, h]) + alone[f, h] for f, h in enumerate(path))
        cost += sum(
            float(prior.changing(pick(f, path[f]), pick(f + 1, path[f + 1]))) for f in range(frames - 1)
        )
        costs[path] = cost
    return costs


@pytest.mark.parametrize("seed", range(4))
def test_the_path_is_the_cheapest(seed):
    tones, loss = random_hypotheses(seed)
    prior = voices()
    costs = brute_force(prior, tones, loss)
    path = best_path(prior, tones, loss)
    best = min(costs, key=costs.get)
    assert path.cost == pytest.approx(costs[best], rel=1e-5)
    assert costs[tuple(map(int, path.choice))] == pytest.approx(costs[best], rel=1e-5)
    for frame, hypothesis in np.ndindex(loss.shape):
        through = min(cost for taken, cost in costs.items() if taken[frame] == hypothesis)
        assert path.marginal[frame, hypothesis] == pytest.approx(through, rel=1e-5)


def test_a_single_frame_and_a_single_hypothesis():
    tones, loss = random_hypotheses(5, num_frames=1)
    assert best_path(voices(), tones, loss).choice.shape == (1,)
    tones, loss = random_hypotheses(6, num_hypotheses=1)
    np.testing.assert_array_equal(best_path(voices(), tones, loss).choice, 0)


def test_hypotheses_that_are_not_there_are_not_taken():
    tones, loss = random_hypotheses(7)
    loss[:, 2] = np.inf
    path = best_path(voices(), tones, loss)
    assert np.all(path.choice < 2)
    assert np.all(np.isinf(path.marginal[:, 2]))


@pytest.mark.parametrize("num_frames", [5, 6, 7])
def test_chunks_change_nothing(num_frames, monkeypatch):
    tones, loss = random_hypotheses(9, num_frames=num_frames)
    whole = best_path(voices(), tones, loss)
    monkeypatch.setattr(voices_module, "chunk_size", lambda: 3)
    parts = best_path(voices(), tones, loss)
    np.testing.assert_array_equal(parts.choice, whole.choice)
    np.testing.assert_allclose(parts.cost, whole.cost, rtol=1e-6)
    np.testing.assert_allclose(parts.marginal, whole.marginal, rtol=1e-6)


def test_a_flicker_is_smoothed_and_a_note_is_not():
    """A wrong hypothesis that is a little better for two frames loses; one that is better for long wins."""

    def choice(frames):
        pair = [[(0, 100)], [(0, 150)]]
        tones = jax.tree.map(lambda x: np.repeat(x[None], 20, axis=0), tones_of(pair))
        loss = np.tile(np.array([0.5, 0.8], np.float32), (20, 1))
        loss[5 : 5 + frames] = [0.5, 0.2]
        return np.asarray(best_path(voices(), tones, loss).choice)

    np.testing.assert_array_equal(choice(2), 0)
    np.testing.assert_array_equal(np.flatnonzero(choice(10)), np.arange(5, 15))


def test_one_program_serves_all_weights_and_lengths(monkeypatch):
    traces, changing = [], Voices.changing
    monkeypatch.setattr(Voices, "changing", lambda *notes: traces.append(1) or changing(*notes))
    model = lambda weight: VoiceModel(change=jnp.float32(weight), smoothing=2.6)  # which no other test has
    run = lambda weight, frames: best_path(voices(model=model(weight)), *random_hypotheses(8, frames)).cost
    costs = [run(weight, 4) for weight in (0.0, 0.5, 5.0)]
    assert costs == sorted(costs)
    assert costs[0] < costs[2]
    assert run(0.5, 9) > costs[1]
    assert len(traces) == 1


def test_voices_that_cross():
    """Only tones in the opposite order of their instruments' usual pitches count, and only if apart."""
    bins = jnp.arange(AXIS.num_bins)
    place = jnp.array([[150.0], [300.0]])
    surprisal = 0.5 * ((bins - place) / 20) ** 2
    prior = voices(surprisal, model=VoiceModel(register=0.0, sounding=0.0, crossing=0.4))
    cost = lambda *notes: float(prior.sounding(one(tones_of([list(notes)]))))
    assert cost((0, 200), (1, 250)) == 0
    assert cost((0, 250), (1, 250 - 0.5 * SEMITONE)) == 0
    assert cost((0, 250), (1, 200)) == pytest.approx(0.4)
    alike = voices(jnp.stack([surprisal[0]] * 2), model=VoiceModel(register=0.0, sounding=0.0, crossing=0.4))
    assert alike.sounding(one(tones_of([[(0, 250), (1, 200)]]))) == 0

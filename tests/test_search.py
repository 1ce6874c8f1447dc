"""Moves and the search over a recording, on spectra whose tones are known."""

import dataclasses
import itertools
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import AXIS, DICTIONARY, OCTAVE, SEMITONE, Note, pack_notes, render_notes

from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.pursuit.recording import Hypotheses, pursue, refit
from jaxsep.pursuit.refinement import LevenbergMarquardt
from jaxsep.pursuit.tone_pursuit import TonePursuit
from jaxsep.search import frames as search_frames
from jaxsep.search.alternation import OWNED, Alternation
from jaxsep.search.frames import Frames, State, mean_energy
from jaxsep.search.hypotheses import deepen, double_moves, explore, propagate, reselect
from jaxsep.search.moves import arrange, exchanged, from_neighbours, ringing, without
from jaxsep.search.streams import Streams
from jaxsep.search.voices import VoiceModel
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

PURSUIT = TonePursuit(LiftedLoss(AXIS), solver=LevenbergMarquardt(1e-4))
HARMONICS = jnp.asarray(DICTIONARY, jnp.float32)
INSTRUMENTS = Dictionary(HARMONICS)
LENGTH = 12
SPACING = 0.02  # seconds


@cache
def melody():
    """Notes of a duet, `LENGTH` frames each, in which octaves and unisons hide one of the tones."""
    low = [150.0, 150 + 2 * SEMITONE, 150.0, 150 + 5 * SEMITONE]
    high = [150 + OCTAVE, 150 + 9 * SEMITONE, 150 + 7 * SEMITONE, 150 + 5 * SEMITONE + OCTAVE]
    return tuple(
        (Note(0, 0.9, a + 0.3), Note(1, 0.9, b + 0.1))
        for a, b in zip(low, high, strict=True)
        for _ in range(LENGTH)
    )


@cache
def recording():
    """Spectra of the duet with a little noise, peak about 1."""
    clean = np.stack([render_notes(notes) for notes in melody()])
    noise = np.random.default_rng(0).standard_normal(clean.shape)
    return np.maximum(clean + 2e-3 * noise, 0).astype(np.float32)


@cache
def greedy():
    found = pursue(PURSUIT, recording(), HARMONICS)
    return Hypotheses(arrange(found.tones, 2, 1), found.loss)


@cache
def song():
    """A longer duet, in which the lines meet and part; its notes, and spectra with a little noise."""
    low, high = [0, 2, 4, 5, 7, 5, 4, 2], [15, 14, 12, 9, 11, 14, 16, 17]
    notes = tuple(
        (Note(0, 0.9, 150.3 + a * SEMITONE), Note(1, 0.9, 150.1 + b * SEMITONE))
        for a, b in zip(low, high, strict=True)
        for _ in range(8)
    )
    clean = np.stack([render_notes(now) for now in notes])
    noise = np.random.default_rng(0).standard_normal(clean.shape)
    return notes, np.maximum(clean + 2e-3 * noise, 0).astype(np.float32)


def truth(slots=1, notes=None):
    return arrange(pack_notes(notes or melody(), 2), 2, slots)


def right(tones, order=(0, 1), notes=None):
    """Whether each frame's instruments, so numbered, play the true pitches."""
    mine, true = jax.tree.map(lambda x: x[:, list(order)], arrange(tones, 2, 1)), truth(notes=notes)
    return np.all(mine.active & (np.abs(mine.fundamental - true.fundamental) < 0.5 * SEMITONE), axis=1)


def sketch(*slots):
    """One frame of tones from (instrument, position, amplitude) or None."""
    filled = [slot or (0, 0.0, 0.0) for slot in slots]
    instrument, position, amplitude = (np.array([x])[:, :] for x in zip(*filled, strict=True))
    blank = Tones.empty((1, len(slots)))
    return eqx.tree_at(
        lambda t: (t.instrument, t.fundamental, t.amplitude, t.active),
        jax.tree.map(np.asarray, blank),
        (
            instrument.astype(np.int32),
            position.astype(np.float32),
            amplitude.astype(np.float32),
            np.array([[slot is not None for slot in slots]]),
        ),
    )


def notes_of(tones, frame=0):
    """Sorted (instrument, position) of the tones that sound in a frame."""
    sounding = np.asarray(tones.active)[frame]
    pairs = zip(tones.instrument[frame][sounding], tones.fundamental[frame][sounding], strict=True)
    return sorted((int(i), round(float(f), 3)) for i, f in pairs)


# ---- Moves ------------------------------------------------------------------------------------------------


def test_arrange_gives_each_instrument_its_slots_the_loudest_first():
    tones = arrange(sketch((1, 50, 0.2), (0, 70, 0.1), (1, 90, 0.5), None, (1, 20, 0.3)), 2, 2)
    np.testing.assert_array_equal(tones.instrument[0], [0, 0, 1, 1])
    np.testing.assert_array_equal(tones.active[0], [True, False, True, True])
    np.testing.assert_array_equal(tones.fundamental[0], [70, 0, 90, 20])
    np.testing.assert_array_equal(tones.amplitude[0][~tones.active[0]], 0)


def test_arrange_gives_each_instrument_as_many_tones_as_it_may_play():
    tones = arrange(sketch((1, 50, 0.2), (0, 70, 0.1), (1, 90, 0.5), (0, 80, 0.3), (1, 20, 0.3)), 2, (1, 3))
    assert notes_of(tones) == [(0, 80), (1, 20), (1, 50), (1, 90)]


def test_an_exchange_leaves_nobody_more_than_he_may_play():
    # Exchanged, the three tones would be right; but the first instrument may play one alone.
    right = (Note(0, 0.9, 150), Note(0, 0.8, 150 + 5 * SEMITONE), Note(1, 0.7, 150 + 9 * SEMITONE))
    tones = pack_notes([right], 3)
    wrong = eqx.tree_at(lambda t: t.instrument, tones, 1 - tones.instrument)
    found = Hypotheses(arrange(wrong, 2, (1, 2)), np.full(1, 1e3, np.float32))
    voices = VoiceModel.free().fit(found.tones, 2, (1, 2), AXIS, 1e4)
    assert (voices.slots(4), voices.slots(6)) == ((1, 2), (2, 3))
    parts = render_notes(right)[None].astype(np.float32), Dictionary(jnp.asarray(DICTIONARY, jnp.float32))
    after = explore(PURSUIT, *parts, found, voices, [exchanged(found.tones, 2, (0, 1))]).found
    assert after.loss[0] < 1e3
    assert np.sum(after.tones.active[0] & (after.tones.instrument[0] == 0)) == 1


def test_arrange_keeps_tones_of_equal_loudness():
    assert notes_of(arrange(sketch((1, 50, 0.2), (1, 60, 0.2)), 2, 2)) == [(1, 50), (1, 60)]


def test_neighbours_offer_all_instruments_together_and_each_alone():
    offers = list(from_neighbours(truth(), 2, (1,)))
    assert len(offers) == 6
    frame = LENGTH - 1  # the next one has other notes
    now, after = (notes_of(truth(), frame + n) for n in (0, 1))
    assert [notes_of(offer, frame) for offer in offers[:3]] == [after, [after[0], now[1]], [now[0], after[1]]]
    assert notes_of(offers[0], 4 * LENGTH - 1) == notes_of(truth(), 4 * LENGTH - 1)  # nothing comes after


def test_exchanged_instruments():
    tones = arrange(sketch((0, 70, 0.5), (1, 90, 0.2)), 2, 1)
    assert notes_of(exchanged(tones, 2, (0, 1))) == [(0, 90), (1, 70)]
    tones = arrange(sketch((0, 70, 0.5), (2, 90, 0.2)), 3, 2)
    offers = [exchanged(tones, 3, pair) for pair in ((0, 1), (0, 2), (1, 2))]
    assert [notes_of(offer) for offer in offers] == [
        [(1, 70), (2, 90)],
        [(0, 90), (2, 70)],
        [(0, 70), (1, 90)],
    ]


def test_without_one_tone():
    offers = list(without(arrange(sketch((0, 70, 0.5), (1, 90, 0.2)), 2, 1)))
    assert [notes_of(offer) for offer in offers] == [[(1, 90)], [(0, 70)]]


def test_a_note_that_rings_on():
    frame = LENGTH
    before, now = notes_of(truth(), frame - 1), notes_of(truth(), frame)
    offers = [notes_of(offer, frame) for offer in ringing(truth(slots=2), 2, (1,))]
    assert sorted([before[0], *now]) in offers
    assert sorted([before[1], *now]) in offers


def test_reselection_finds_the_tone_that_is_missing():
    tones = truth()
    moved = tones.fundamental + np.array([20, 0], np.float32)
    wrong = eqx.tree_at(lambda t: t.fundamental, tones, moved)
    first = next(iter(reselect(PURSUIT, recording(), HARMONICS, wrong)))
    assert np.mean(np.abs(first.fundamental[:, 0] - truth().fundamental[:, 0]) < 1) > 0.9
    np.testing.assert_array_equal(first.fundamental[:, 1], tones.fundamental[:, 1])


# ---- The search -------------------------------------------------------------------------------------------


def test_refit_in_few_slots_is_that_in_all():
    narrow, wide = (refit(PURSUIT, recording(), INSTRUMENTS, truth(slots)) for slots in (1, 2))
    np.testing.assert_allclose(narrow.loss, wide.loss, rtol=1e-4)
    assert wide.tones.capacity == 4
    assert np.all(right(wide.tones))


def test_propagation_never_raises_the_loss():
    better = propagate(PURSUIT, recording(), INSTRUMENTS, greedy(), (1, 4))
    assert np.all(better.loss <= greedy().loss)


@cache
def astray():
    """The true tones, but for a wrong pitch of the first instrument in every third frame."""
    moved = truth().fundamental.copy()
    moved[::3, 0] += 20
    start = eqx.tree_at(lambda t: t.fundamental, truth(), moved)
    found = refit(PURSUIT, recording(), INSTRUMENTS, start)
    return Hypotheses(arrange(found.tones, 2, 1), found.loss)


def explored(model=None):
    found = astray()
    scale = float(found.loss.mean())
    prior = (model or VoiceModel()).fit(found.tones, 2, 1, AXIS, scale)
    offers = [*reselect(PURSUIT, recording(), HARMONICS, found.tones), exchanged(found.tones, 2, (0, 1))]
    return explore(PURSUIT, recording(), INSTRUMENTS, found, prior, offers)


def test_exploration_finds_the_truth_where_it_is_one_move_away():
    result = explored()
    assert np.mean(right(astray().tones)) < 0.8
    assert np.all(right(result.found.tones))
    assert result.found.loss.mean() < 0.5 * astray().loss.mean()


def test_an_octave_that_one_instrument_explains_alone_is_found_to_be_two_tones():
    octave = slice(0, LENGTH)  # of the first notes, all frames alike: no neighbour knows better
    low = truth().fundamental[octave, :1]
    sole = Tones.plain(*map(jnp.asarray, (np.full_like(low, 0.9), low, np.ones(low.shape, np.int32))))
    found = refit(PURSUIT, recording()[octave], INSTRUMENTS, arrange(sole, 2, 1))
    found = Hypotheses(arrange(found.tones, 2, 1), found.loss)
    free = VoiceModel.free().fit(found.tones, 2, 1, AXIS, float(found.loss.mean()))
    offers = double_moves(PURSUIT, recording()[octave], HARMONICS, found.tones)
    result = explore(PURSUIT, recording()[octave], INSTRUMENTS, found, free, offers)
    assert np.all(right(result.found.tones, notes=melody()[octave]))


def test_without_costs_the_search_takes_the_lowest_loss_of_every_frame():
    result = explored(VoiceModel.free())
    assert np.all(result.found.loss <= astray().loss)
    assert result.cost == pytest.approx(result.found.loss.mean(), rel=1e-5)


def test_frames_for_themselves():
    found = deepen(PURSUIT, recording()[:: LENGTH // 2], HARMONICS)
    assert found.tones.capacity == 2
    assert np.all(found.loss <= 1.001 * greedy().loss[:: LENGTH // 2])


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["random4_tone1", "random4_tone2", "trained_tone1", "trained_tone2"])
def test_recorded_frames_have_a_lower_loss_than_the_greedy_one(reference, setting):
    recorded = reference("tone_frames.npz")
    spectra = recorded["log_spectra"][::3].astype(np.float32)  # the benchmark of fidelity takes all
    harmonics = jnp.asarray(recorded[f"{setting}_dictionary"], jnp.float32)
    pursuit = TonePursuit(tones_per_instrument=int(setting[-1]))
    start = pursue(pursuit, spectra, harmonics).loss
    found = deepen(pursuit, spectra, harmonics)
    assert np.all(found.loss <= start * (1 + 1e-5))
    assert found.loss.mean() < 0.97 * start.mean()


def test_confidence_is_the_gap_to_other_notes():
    result = explored()
    assert result.confidence.shape == (4 * LENGTH,)
    assert np.all(result.confidence >= 0)
    assert np.all(result.confidence[np.isfinite(result.confidence)] < 1e6)
    assert np.median(result.confidence) > 1


def likeliest(tones):
    """The numbers by which the instruments of the song are found."""
    return max(((0, 1), (1, 0)), key=lambda order: np.mean(right(tones, order, song()[0])))


@cache
def alternated(learn=True, scale=1.0, rounds=1):
    alternation = Alternation(rounds=rounds, spans=(1, 4), learn=learn)
    # Instruments that are not quite right.
    start = Dictionary(jnp.asarray(DICTIONARY ** np.array([[0.8], [1.3]]), jnp.float32))
    steps = []
    result = alternation(PURSUIT, scale * song()[1], [start], SPACING, steps.append)
    return result, len(steps), alternation.num_steps(1, 2), start


def test_alternation_finds_the_notes_and_improves_the_dictionary():
    result, steps, most, start = alternated()
    alone = arrange(pursue(PURSUIT, song()[1], start.harmonics).tones, 2, 1)
    assert np.mean(right(alone, notes=song()[0])) < 0.8
    order = likeliest(result.tones)
    assert np.mean(right(result.tones, order, song()[0])) > 0.95
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.asarray(result.dictionary.harmonics)[list(order)]
    assert np.all(np.sum(unit(rows) * unit(DICTIONARY), axis=1) > 0.97)
    assert result.cost_trace[-1] < result.cost_trace[0]
    assert 0 < steps <= most


def test_no_frame_is_surer_than_who_plays_in_it():
    result = alternated()[0]
    streams = Streams(PURSUIT.objective, song()[1], PURSUIT.polyphony(2), SPACING)
    most = OWNED * streams.margins(result.tones, result.dictionary)
    assert np.all(result.confidence <= most + 1e-4)
    assert np.any(np.isfinite(most) & (result.confidence > most - 1e-4))


@pytest.mark.slow
def test_the_worse_half_of_the_starts_is_dropped_after_each_round(monkeypatch):
    rounds = []

    def watched(model, spectra, *rest):
        rounds.append(len(spectra))
        return explore(model, spectra, *rest)

    monkeypatch.setattr(search_frames, "explore", watched)
    frames = recording()[::2]
    starts = [INSTRUMENTS, Dictionary(HARMONICS**1.2)]
    Alternation(rounds=2, spans=(1, 4))(PURSUIT, frames, starts, 2 * SPACING)
    few, every = len(frames) // 2, len(frames)
    # Two dictionaries and the one sound for all; a round and the last one with all frames.
    assert rounds == [few] * 3 + [few] * 2 + [every] * 2


def test_nothing_need_be_known_of_the_instruments():
    alternation, steps = Alternation(rounds=2, spans=(1, 4)), []
    result = alternation(PURSUIT, song()[1], 2, SPACING, steps.append)
    assert np.mean(right(result.tones, likeliest(result.tones), song()[0])) > 0.95
    assert 0 < len(steps) <= alternation.num_steps(0, 2)


@cache
def trio(length=4):
    """Notes of a bass, a bright and a pure sound, whose octave the last often doubles; and their spectra."""
    rows = np.concatenate([DICTIONARY, [[1.0, 0.25, 0.08, 0.05, 0.02, 0.01, 0.01, 0.01]]])
    low, middle = [0, 5, 7, 3, 2, 0, 7, 5], [19, 21, 22, 17, 16, 19, 21, 24]
    high = [31, 33, 30, 29, 28, 22, 33, 27]
    lines = [(0, 150.3, low), (1, 150.1, middle), (2, 150.2, high)]
    notes = [
        tuple(Note(who, 0.9, place + line[now] * SEMITONE) for who, place, line in lines)
        for now in range(len(low))
        for _ in range(length)
    ]
    clean = np.stack([render_notes(now, rows) for now in notes])
    noise = np.random.default_rng(0).standard_normal(clean.shape)
    spectra = np.maximum(clean + 2e-3 * noise, 0)
    return notes, (spectra / spectra.max()).astype(np.float32)


@pytest.mark.slow
def test_who_doubles_anothers_octave_is_told_from_his_harmonics():
    steps, search = [], Alternation(rounds=2, spans=(1, 4))
    result = search(PURSUIT, trio()[1], 3, SPACING, steps.append)
    assert 0 < len(steps) <= search.num_steps(0, 3)
    mine, true = arrange(result.tones, 3, 1), arrange(pack_notes(trio()[0], 3), 3, 1).fundamental
    near = lambda order: np.abs(mine.fundamental - true[:, order]) < 0.5 * SEMITONE
    right = [np.mean(near(order) & mine.active) for order in itertools.permutations(range(3))]
    assert max(right) > 0.8
    assert len(result.cost_trace) > 4  # two rounds, one more after the split, and those of a search


def test_what_stays_must_be_given():
    with pytest.raises(ValueError, match=r"dictionaries: expected some where they stay .*, got 2"):
        Alternation(learn=False)(PURSUIT, song()[1], 2, SPACING)


def test_states_are_compared_by_their_loss_and_their_lines():
    frames = Frames(PURSUIT, recording(), (1,), SPACING, VoiceModel(), 0.3, lambda: None)
    state = State(greedy(), INSTRUMENTS, cost=1.0, lines=2.0)
    dearer = dataclasses.replace(state, cost=1.02, lines=1.0)
    assert frames.total(dearer) < frames.total(state)  # its lines make up for the loss
    assert frames.total(dataclasses.replace(dearer, cost=1.2)) > frames.total(state)


def test_noise_counts_as_loss_and_makes_tones_dearer():
    alternation = Alternation(rounds=0, spans=(1,), learn=False)
    run = lambda noise: alternation(PURSUIT, recording(), [INSTRUMENTS], SPACING, noise=noise).voices
    noisy, quiet = run(0.2), run(0.0)
    assert (noisy.noise, quiet.noise) == (pytest.approx(0.2), 0)
    assert noisy.scale - quiet.scale == pytest.approx(0.2, abs=1e-3)


def test_the_costs_of_a_recording_are_not_those_of_its_strict_round():
    costs, usual = alternated()[0].voices, VoiceModel()
    assert costs.model.sounding == pytest.approx(usual.sounding)
    assert costs.energy == pytest.approx(mean_energy(song()[1]), rel=1e-5)
    # Beside so much noise no tone would be worth its cost, but it is worth a part of what sounds.
    alternation = Alternation(VoiceModel(register=0.0), rounds=1, spans=(1, 4), learn=False)
    found = alternation(PURSUIT, recording(), [INSTRUMENTS], SPACING, noise=10.0)
    assert np.mean(right(found.tones)) > 0.9


def test_silence_does_not_count_in_what_a_frame_sounds():
    energy = mean_energy(recording())
    assert energy == pytest.approx(np.mean(np.sum(recording(), axis=1)), rel=0.2)
    padded = np.concatenate([recording(), np.zeros_like(recording())])
    assert mean_energy(padded) == pytest.approx(energy)
    assert mean_energy(0.1 * recording()) == pytest.approx(0.1 * energy)
    assert mean_energy(np.zeros_like(recording())) == 0


def test_tails_are_not_searched_for_notes(monkeypatch):
    monkeypatch.setattr(search_frames, "RINGING", ())  # what may ring on in the last round
    # The first instrument rests in the second half, but for what rings on there.
    notes = [pair if frame < 2 * LENGTH else pair[1:] for frame, pair in enumerate(melody())]
    clean = np.stack([render_notes(n) for n in notes])
    # Without noise nothing would be too faint to be worth a tone.
    noise = 2e-3 * np.random.default_rng(0).standard_normal(clean.shape)
    dry = np.maximum(clean + noise, 0).astype(np.float32)
    wet = dry.copy()
    for frame in range(2 * LENGTH, len(wet)):
        fade = 0.6 * 0.98 ** (frame - 2 * LENGTH)
        wet[frame] += fade * render_notes([melody()[2 * LENGTH - 1][0]]).astype(np.float32)
    alternation = Alternation(rounds=1, spans=(1, 4), learn=False)
    resting = slice(2 * LENGTH + 6, None)

    def sounds(**options):
        tones = alternation(PURSUIT, wet, [INSTRUMENTS], SPACING, **options).tones
        assert np.mean(right(tones)[: 2 * LENGTH]) > 0.9
        return np.mean((tones.active & (tones.instrument == 0))[resting].any(axis=1))

    assert sounds(dry=dry) < 0.2
    assert sounds() > 0.8


def test_a_tone_that_explains_next_to_nothing_goes_in_the_last_round(monkeypatch):
    # A whisper of the second instrument, which is worth less than a tone costs there, and a loud first one.
    notes = [(Note(0, 0.9, 150.3), Note(1, 1e-4, 150.1 + 9 * SEMITONE)) for _ in range(LENGTH)]
    spectra = np.stack([render_notes(now) for now in notes]).astype(np.float32)
    tones = arrange(pack_notes(notes, 2), 2, 1)
    frames = Frames(PURSUIT, spectra, (1,), SPACING, VoiceModel(), 1.0, lambda: None)
    state = frames.refitted(tones, INSTRUMENTS)
    assert state.tones.active.all()

    def playing():
        tones = frames.ring(state)[0].found.tones
        return [np.mean(np.any(tones.active & (tones.instrument == number), axis=1)) for number in (0, 1)]

    assert playing() == [1, 0]
    monkeypatch.setattr(search_frames, "EDGES", dataclasses.replace(search_frames.EDGES, sounding=0.0))
    assert playing() == [1, 1]


def test_an_instrument_learned_an_octave_too_low_is_raised():
    low = np.zeros(DICTIONARY.shape)
    low[:, 1::2] = DICTIONARY[:, :4]
    rows = Dictionary(jnp.asarray([DICTIONARY[0], low[1]], jnp.float32))
    lowered = truth().fundamental - np.array([0, OCTAVE], np.float32)
    tones = eqx.tree_at(lambda t: t.fundamental, truth(), lowered)
    tick = lambda: None
    frames = Frames(PURSUIT, recording(), (1,), SPACING, VoiceModel(), 1.0, tick)
    learned = frames.learned(tones, rows)
    assert np.mean(right(learned.tones)) > 0.9
    again = frames.learned(learned.tones, learned.dictionary)  # with the harmonics that it had no row for
    np.testing.assert_allclose(again.dictionary.harmonics, DICTIONARY, atol=0.1)


def test_a_given_dictionary_stays():
    result, steps, most, start = alternated(learn=False)
    np.testing.assert_array_equal(result.dictionary.harmonics, start.harmonics)
    assert np.mean(right(result.tones, notes=song()[0])) > 0.95
    assert len(result.cost_trace) == 3
    assert 0 < steps <= most


def test_silence_has_no_tones():
    silence = np.zeros((6, AXIS.num_bins), np.float32)
    result = Alternation(rounds=1, spans=(1,))(PURSUIT, silence, [INSTRUMENTS], SPACING)
    assert not result.tones.active.any()
    np.testing.assert_array_equal(result.loss, 0)
    assert np.all(np.isfinite(result.cost_trace))


@pytest.mark.slow
def test_more_instruments_than_tones():
    few = recording()[:3]
    rows = Dictionary(jnp.concatenate([HARMONICS, HARMONICS[:1] ** 2]))
    result = Alternation(rounds=1, spans=(1,))(PURSUIT, few, [rows, rows], SPACING)
    assert result.tones.capacity == 6
    assert np.all(np.isfinite(result.loss))

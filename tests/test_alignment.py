"""Scores brought to the times of recordings."""

import dataclasses

import numpy as np
import pytest

from jaxsep.notes.alignment import align_notes, cheapest_alignment
from jaxsep.notes.score import Rest, Score, plain_note
from jaxsep.signal.axes import LogAxis

AXIS = LogAxis()
SPACING = 512 / 48000


def score(seed=0, count=60):
    """Two voices of notes with random pitches and lengths."""
    random, notes = np.random.default_rng(seed), []
    for instrument, low in ((0, 67), (1, 48)):
        onset = 0.0
        for _ in range(count):
            length = float(random.choice([0.2, 0.4, 0.6]))
            notes.append(plain_note(instrument, onset, onset + 0.9 * length, low + int(random.integers(12))))
            onset += length
    return Score(notes)


def played(notes, seconds):
    """Spectra of notes with other harmonics than the alignment expects, and a little noise."""
    times = np.arange(round(seconds / SPACING)) * SPACING
    spectra = np.zeros((times.size, AXIS.num_bins), np.float32)
    for note in notes:
        here = (times >= note.onset) & (times < note.offset)
        envelope = np.exp(-(times[here] - note.onset) / 0.5)
        for h in range(1, 12):
            place = AXIS.bins_per_neper * np.log(h * 440 / AXIS.f_min * 2 ** ((note.pitch + 0.2 - 69) / 12))
            shape = np.exp(-0.5 * ((np.arange(AXIS.num_bins) - place) / 1.91) ** 2)
            spectra[here] += (envelope[:, None] * shape / h).astype(np.float32)
    noise = np.abs(np.random.default_rng(1).standard_normal(spectra.shape)).astype(np.float32)
    return spectra + 0.003 * noise, times


def warped(notes, warp):
    return [dataclasses.replace(n, onset=float(warp(n.onset)), offset=float(warp(n.offset))) for n in notes]


def errors(truth, moved):
    return np.array([a.onset - b.onset for a, b in zip(truth, moved.notes, strict=True)])


@pytest.mark.parametrize(
    "warp",
    [
        lambda t: t,
        lambda t: 1.5 * t,
        lambda t: 0.6 * t + 1.3,
        lambda t: t + 0.4 * np.sin(0.6 * t) + 0.5,
    ],
    ids=["as written", "slower", "faster, later", "rubato"],
)
def test_onsets_are_found(warp):
    notes = score()
    truth = warped(notes.notes, warp)
    spectra, times = played(truth, max(n.offset for n in truth) + 1)
    off = errors(truth, align_notes(notes, spectra, times, AXIS))
    assert np.median(np.abs(off)) < 0.04
    assert np.mean(np.abs(off) < 0.1) > 0.95


def test_a_recording_that_ends_before_its_score():
    notes = score()
    spectra, times = played(notes.notes, 8.0)
    moved = align_notes(notes, spectra, times, AXIS)
    off = errors(notes.notes, moved)[[note.offset < 7 for note in notes.notes]]
    assert np.mean(np.abs(off) < 0.1) > 0.9
    assert all(note.onset > 7 for note, old in zip(moved.notes, notes.notes, strict=True) if old.onset > 8.2)


def test_rests_move_too():
    notes = dataclasses.replace(score(), rests=[Rest(0, 4.0, 5.0)])
    truth = warped(notes.notes, lambda t: 1.5 * t)
    (rest,) = align_notes(notes, *played(truth, 30), AXIS).rests
    assert (rest.onset, rest.offset) == pytest.approx((6.0, 7.5), abs=0.1)


def test_other_music_gets_a_sentence():
    notes = score()
    spectra, times = played(score(seed=5).notes, 20)
    with pytest.raises(
        ValueError, match=r"^notes: expected the music of the recording, got other notes from"
    ) as caught:
        align_notes(notes, spectra, times, AXIS)
    assert "\n" not in str(caught.value)


def test_a_section_that_is_left_out_gets_a_sentence():
    """The recording leaves out six seconds in the middle."""
    notes = score()
    kept = [n for n in notes.notes if not 6 <= n.onset < 14]
    played_ = [
        dataclasses.replace(n, onset=n.onset - 8, offset=n.offset - 8) if n.onset >= 14 else n for n in kept
    ]
    with pytest.raises(ValueError, match="a section is repeated, or left out"):
        align_notes(notes, *played(played_, 14), AXIS)


def test_the_path_is_the_cheapest():
    """Against all monotone paths with the same steps through a small table."""
    random = np.random.default_rng(0)
    cost, skipping = random.random((5, 6)), random.random(6)
    steps = ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1))

    def complete(row, column):
        ends = []
        if row == 4:
            ends.append((skipping[column + 1 :].sum(), [(row, column)]))
        if column == 5:
            ends.append((0.0, [(row, column)]))
        for down, right in steps:
            if row + down < 5 and column + right < 6:
                rest, path = complete(row + down, column + right)
                ends.append((rest + right * cost[row + down, column + right], [(row, column), *path]))
        return min(ends, default=(np.inf, []))

    starts = [(skipping[:c].sum() + cost[0, c], 0, c) for c in range(6)]
    starts += [(r + cost[r, 0], r, 0) for r in range(1, 5)]
    best = min((begin + complete(r, c)[0], complete(r, c)[1]) for begin, r, c in starts)
    rows, columns = cheapest_alignment(cost, skipping)
    assert list(zip(rows, columns, strict=True)) == best[1]

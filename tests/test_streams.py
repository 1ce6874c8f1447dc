"""Tracks of tones, and the instruments that they go to."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import AXIS, DICTIONARY, SEMITONE, Note, pack_notes, render_notes

from jaxsep.notes.score import Score, plain_note
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.search.known import known_tones
from jaxsep.search.lines import Lines, Streaming
from jaxsep.search.streams import Streams
from jaxsep.search.tracks import find_tracks, sounds_of
from jaxsep.tones.dictionary import Dictionary

OBJECTIVE, SPACING, LENGTH = LiftedLoss(AXIS), 0.02, 10
INSTRUMENTS = Dictionary(jnp.asarray(DICTIONARY, jnp.float32))


def lines(*voices):
    """Tones and spectra of voices, each a list of pitches in semitones (None: a rest) and its instrument."""
    frames = []
    for place in range(len(voices[0][0])):
        now = [
            Note(sound, 0.9, 150 + pitches[place] * SEMITONE)
            for pitches, sound in voices
            if pitches[place] is not None
        ]
        frames += [tuple(now)] * (LENGTH - 1) + [()]  # a breath after each note
    tones = pack_notes(frames, len(voices))
    spectra = np.stack([render_notes(notes) if notes else np.zeros(AXIS.num_bins) for notes in frames])
    return tones, spectra.astype(np.float32)


def streamed(tones, spectra, polyphony=(1, 1), dictionary=INSTRUMENTS, **costs):
    streams = Streams(OBJECTIVE, spectra, polyphony, SPACING, Streaming(**costs))
    return streams.stream(tones, dictionary).tones


def together(tones, found):
    """Whether the true instruments, and those found, are the same but for their numbers."""
    used = np.asarray(tones.active)
    pairs = set(zip(np.asarray(tones.instrument)[used], np.asarray(found.instrument)[used], strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def shuffled(tones):
    """Every second note of each line given to the other instrument."""
    frame = np.arange(tones.active.shape[0])[:, None]
    wrong = np.where((frame // LENGTH) % 2 == 1, 1 - tones.instrument, tones.instrument)
    return eqx.tree_at(lambda t: t.instrument, tones, wrong.astype(np.int32))


def test_a_track_is_a_note():
    tones, _ = lines(([0, 2, 4], 0), ([12, 11, None], 1))
    tracks = find_tracks(tones, AXIS, SPACING)
    assert tracks.begin.size == 5
    np.testing.assert_allclose(tracks.end - tracks.begin, (LENGTH - 1) * SPACING)
    assert np.all(np.diff(tracks.begin) >= 0)
    semitone = np.sort(tracks.pitch) - tracks.pitch.min()
    np.testing.assert_allclose(semitone, [0, 2, 4, 11, 12], atol=0.1)
    assert np.all((tracks.label >= 0) == tones.active)


def test_a_track_ends_where_a_note_is_struck_again():
    tones, _ = lines(([0], 0))
    steady = jax.tree.map(lambda x: np.repeat(x[:1], 40, axis=0), tones)
    level = 10 ** (-np.minimum(np.arange(40) % 20, 12) / 20)
    struck = eqx.tree_at(
        lambda t: t.amplitude, steady, (level[:, None] * steady.amplitude).astype(np.float32)
    )
    assert find_tracks(steady, AXIS, SPACING).begin.size == 1
    assert find_tracks(struck, AXIS, SPACING).begin.size == 2


def fainter(tones, instrument, decibels):
    """The tones of an instrument so much quieter."""
    level = np.where(np.asarray(tones.instrument) == instrument, 10 ** (-decibels / 20), 1)
    return eqx.tree_at(lambda t: t.amplitude, tones, (level * tones.amplitude).astype(np.float32))


@pytest.mark.parametrize(("decibels", "judged"), [(30, 4), (40, 2)])
def test_faint_tracks_are_told(decibels, judged):
    tones, _ = lines(([0, 2], 0), ([12, 11], 1))
    tones = fainter(tones, 1, decibels)
    assert find_tracks(tones, AXIS, SPACING).begin.size == 4
    tracks = find_tracks(tones, AXIS, SPACING, faint=False)
    assert tracks.begin.size == judged
    faint = tones.active & (tones.instrument == 1)
    assert np.all((tracks.label >= 0) == (tones.active & (~faint if judged == 2 else True)))


def test_lines_that_were_torn_are_mended():
    tones, spectra = lines(([0, 2, 4, 5, 4, 2, 0, 2], 0), ([12, 11, 9, 12, 14, 16, 14, 12], 1))
    wrong = shuffled(tones)
    assert not together(tones, wrong)
    assert together(tones, streamed(wrong, spectra))


@pytest.mark.parametrize(("trash", "sounding"), [(0.002, 2), (0.0, 1)])
def test_what_is_faint_in_a_rest_is_no_instrument_in_another_beginning(trash, sounding):
    random = np.random.default_rng(0)
    note = lambda sound, pitch, level=0.9: Note(sound, level, 150 + pitch * SEMITONE)
    held = lambda notes, length=LENGTH: [notes] * (length - 1) + [()]
    rest = lambda: [held((note(1, random.uniform(-14, 40), trash),), 4) for _ in range(14)]
    low, high = [0, 4, 7, 11, 12, 7, 4, 2, 0, 2, 4], [12, 14, 16, 14, 12, 11, 9, 11, 12, 14, 12]
    notes = [held((note(0, pitch),)) for pitch in low[:4]] + rest()
    notes += [held((note(1, pitch),)) for pitch in high[:6]] + rest()
    notes += [held((note(0, a), note(1, b))) for a, b in zip(low[4:], high[4:], strict=True)]
    frames = [frame for each in notes for frame in each]
    tones = pack_notes(frames, 2)
    spectra = np.stack([render_notes(now) if now else np.zeros(AXIS.num_bins) for now in frames])
    streams = Streams(OBJECTIVE, spectra.astype(np.float32), (1, 1), SPACING)
    alike = eqx.tree_at(lambda t: t.instrument, tones, np.zeros_like(tones.instrument))
    loud = eqx.tree_at(lambda t: t.active, tones, tones.active & (tones.amplitude > 0.1))
    found = streams.beginnings(alike, Dictionary(jnp.ones((1, 2))))
    assert [together(loud, each.tones) for each in found] == [False, True][-sounding:]


def test_who_plays_alone_keeps_the_whole_line():
    # While the second rests, the first goes through the second's register.
    low = [0, 4, 7, 11, 14, 12, 7, 4, 0, 4, 0, 2]
    high = [12, 14, 12] + [None] * 6 + [12, 14, 16]
    tones, spectra = lines((low, 0), (high, 1))
    alone = slice(3 * LENGTH, 9 * LENGTH)
    torn = np.array(tones.instrument)
    torn[alone] = np.where(tones.fundamental[alone] > 150 + 6 * SEMITONE, 1, 0)
    torn = eqx.tree_at(lambda t: t.instrument, tones, torn.astype(np.int32))
    assert not together(tones, torn)
    assert together(tones, streamed(torn, spectra))


def test_who_rests_does_not_come_in_for_single_notes():
    # Both sound alike, and leaps alone would have the second play the upper notes of the first one's line.
    low = [2, 0] + [0, 10] * 3 + [0] + [2, 0]
    high = [14, 12] + [None] * 7 + [12, 14]
    tones, spectra = lines((low, 0), (high, 0))
    second = np.arange(2) == 1
    tones = eqx.tree_at(lambda t: t.instrument, tones, np.where(second, 1, 0) + 0 * tones.instrument)
    upper = np.zeros(tones.active.shape, bool)
    upper[2 * LENGTH : 9 * LENGTH, 0] = (np.arange(7 * LENGTH) // LENGTH) % 2 == 1
    torn = eqx.tree_at(lambda t: t.instrument, tones, np.where(upper, 1, tones.instrument).astype(np.int32))
    assert not together(tones, torn)
    assert together(tones, streamed(torn, spectra))
    assert not together(tones, streamed(torn, spectra, entry=0.0))


def test_one_sound_serves_to_begin_with():
    tones, spectra = lines(([0, 2, 4, 5, 4, 2], 0), ([12, 11, 9, 12, 14, 16], 1))
    alike = eqx.tree_at(lambda t: t.instrument, tones, np.zeros_like(tones.instrument))
    one = Dictionary(jnp.asarray(DICTIONARY[:1], jnp.float32))
    assert together(tones, streamed(alike, spectra, dictionary=one))


def test_sounds_decide_where_lines_cross():
    tones, spectra = lines(([0, 2, 4, 7, 9, 11, 12], 0), ([12, 11, 9, 5, 4, 2, 0], 1))
    assert together(tones, streamed(tones, spectra))


def test_lines_of_one_sound_do_not_cross():
    # Who plays higher comes down while the other rests; by steps alone they would change places there.
    tones, spectra = lines(([-2, -2, None, None, 3, 1, 3, 6, 3], 0), ([7, 4, 2, 1, 4, 2, 4, 7, 4], 0))
    second = np.arange(2) == 1
    tones = eqx.tree_at(lambda t: t.instrument, tones, np.where(second, 1, 0) + 0 * tones.instrument)
    torn = shuffled(tones)
    assert together(tones, streamed(torn, spectra))
    assert not together(tones, streamed(torn, spectra, crossing=0.0))


def test_who_plays_a_line_does_not_play_the_chords():
    melody, chords = [6, 8, 6, 5, 6, 8, 10, 8], [None, -3, -3, None, -2, -2, None, -3]
    above = lambda step: [None if note is None else note + step for note in chords]
    tones, spectra = lines((melody, 0), (chords, 1), (above(4), 1), (above(17.5), 1))
    alike = eqx.tree_at(lambda t: t.instrument, tones, np.zeros_like(tones.instrument))
    one, used = Dictionary(jnp.asarray(DICTIONARY[:1], jnp.float32)), np.asarray(tones.active)
    found = streamed(alike, spectra, (1, 3), one)
    np.testing.assert_array_equal(found.instrument[used], np.asarray(tones.instrument)[used])
    found = streamed(alike, spectra, (3, 1), one)
    np.testing.assert_array_equal(found.instrument[used], 1 - np.asarray(tones.instrument)[used])


@pytest.mark.parametrize("seed", range(4))
def test_a_line_amid_chords_is_known_by_its_sound(seed):
    random = np.random.default_rng(seed)
    melody = [*random.permutation([2, 4, 5, 7, 9, 4, 5, 7, 2, 9])]
    melody[3] = melody[7] = None
    low, high = (list(random.integers(-2, 3, 10) + height) for height in (-10, 16))
    low[2] = high[5] = high[0] = None
    middle = [3 if note is None else note - 5 for note in melody]
    tones, spectra = lines((melody, 0), (low, 1), (high, 1), (middle, 1))
    alike = eqx.tree_at(lambda t: t.instrument, tones, np.zeros_like(tones.instrument))
    one, used = Dictionary(jnp.asarray(DICTIONARY[:1], jnp.float32)), np.asarray(tones.active)
    right = lambda found: np.mean(found.instrument[used] == np.asarray(tones.instrument)[used])
    assert right(streamed(alike, spectra, (1, 3), one)) > 0.9
    if seed == 1:  # here steps alone prefer the lowest notes
        assert right(streamed(alike, spectra, (1, 3), one, contrast=0.0)) < 0.6


def test_kinds_of_sounds_wherever_they_play():
    tones, spectra = lines(([0, 2, 4, 7, 9, 11, 12], 0), ([12, 11, 9, 5, 4, 2, 0], 1))
    tracks = find_tracks(tones, AXIS, SPACING)
    sounds = sounds_of(tracks, OBJECTIVE, spectra, tones, INSTRUMENTS)
    first = np.asarray(tracks.owner == tracks.owner[0])
    found = Lines(tracks, *sounds, (1, 3)).by_sound()  # who has the line is tried either way
    assert [list(owner) for owner in found] == [list(np.where(first, turn, 1 - turn)) for turn in (0, 1)]
    assert Lines(tracks, *sounds, (1, 1)).by_sound() == []  # lines tell enough


def test_sounds_that_differ_are_worth_more_where_both_are_heard():
    tones, spectra = lines(([0, 2, 4, 5, 4, 2, 0, 2], 0), ([12, 11, 9, 12, 14, 16, 14, 12], 1))
    tracks = find_tracks(tones, AXIS, SPACING)
    sounds = sounds_of(tracks, OBJECTIVE, spectra, tones, INSTRUMENTS)

    def worth(quiet, owner=tracks.owner):
        """What sounds that differ take from the cost if one instrument is so much softer."""
        soft = eqx.tree_at(lambda t: t.loudness, tracks, np.where(tracks.owner == 0, 1.0, quiet))
        cost = lambda contrast: Lines(soft, *sounds, (1, 3), Streaming(contrast=contrast)).judge(owner)[0]
        return cost(0.0) - cost(1.0)

    assert worth(1.0) > 2 * worth(0.1) > 2 * worth(0.01) > 0
    mixed = np.arange(tracks.owner.size) % 4 // 2
    assert worth(1.0) > 3 * abs(worth(1.0, mixed))


def test_the_result_does_not_depend_on_the_level():
    tones, spectra = lines(([0, 2, 4, 5], 0), ([12, 11, 9, 12], 1))
    quiet = eqx.tree_at(lambda t: t.amplitude, tones, 0.1 * tones.amplitude)
    np.testing.assert_array_equal(
        streamed(shuffled(quiet), 0.1 * spectra).instrument, streamed(shuffled(tones), spectra).instrument
    )


class TestFollow:
    """Two of one sound exchange their registers while both rest; what was found has not noticed it."""

    REST, HALF = 6, 4

    def played(self):
        above, below = [12, 14, 12, 11], [0, 2, 0, -1]
        voices = [above + [None] * self.REST + below[::-1], below + [None] * self.REST + above[::-1]]
        tones, spectra = lines(*((voice, 0) for voice in voices))
        # No two notes sound quite the same.
        colour = np.random.default_rng(0).uniform(0.6, 1, (len(spectra) // LENGTH, AXIS.num_bins))
        spectra *= np.repeat(colour, LENGTH, axis=0).astype(np.float32)
        owner = np.broadcast_to(np.arange(2, dtype=np.int32), tones.active.shape)
        return eqx.tree_at(lambda t: t.instrument, tones, owner), spectra

    def found(self, tones):
        later = np.arange(len(tones.active)) >= (self.HALF + self.REST) * LENGTH
        wrong = np.where(later[:, None], 1 - tones.instrument, tones.instrument).astype(np.int32)
        return eqx.tree_at(lambda t: t.instrument, tones, wrong)

    def known(self, spectra, *numbers):
        """Notes of the second half that the first instrument is known to play, by their place in its line."""
        lowest = 69 + 12 * np.log2(AXIS.f_min * np.exp(150 / AXIS.bins_per_neper) / 440)
        onsets = [(self.HALF + self.REST + number) * LENGTH * SPACING for number in numbers]
        pitches = [lowest + [-1, 0, 2, 0][number] for number in numbers]
        notes = [
            plain_note(0, onset, onset + (LENGTH - 1) * SPACING, pitch)
            for onset, pitch in zip(onsets, pitches, strict=True)
        ]
        times = SPACING * np.arange(len(spectra))
        return known_tones(Score(notes, ("a", "b")), times, spectra, AXIS, everywhere=False, edge=0.03)

    def followed(self, *numbers):
        """Whether what follows from so many known notes is what is played."""
        tones, spectra = self.played()
        found, known = self.found(tones), self.known(spectra, *numbers)
        sure = known.sure(eqx.tree_at(lambda t: t.instrument, tones, 0 * tones.instrument))
        corrected = eqx.tree_at(lambda t: t.instrument, found, np.where(sure, 0, found.instrument))
        alike = Dictionary(INSTRUMENTS.harmonics[jnp.zeros(2, int)])
        streams = Streams(OBJECTIVE, spectra, (1, 1), SPACING)
        return tones, found, streams.follow(corrected, found, alike, known)

    @pytest.mark.parametrize("numbers", [(0,), (1,), (0, 3)])
    def test_a_line_follows_some_of_its_notes(self, numbers):
        tones, found, corrected = self.followed(*numbers)
        used = np.asarray(tones.active)
        assert np.any((found.instrument != tones.instrument)[used])
        np.testing.assert_array_equal(corrected.instrument[used], tones.instrument[used])

    def test_nothing_follows_from_nothing(self):
        _, found, corrected = self.followed()
        np.testing.assert_array_equal(corrected.instrument, found.instrument)


class TestMargins:
    """How sure it is who plays what."""

    def test_gaps_are_those_of_all_assignments(self):
        tones, spectra = lines(([0, 2, 5, 4], 0), ([12, 9, 7, 9], 1))
        tracks = find_tracks(tones, AXIS, SPACING)
        of_lines = Lines(tracks, *sounds_of(tracks, OBJECTIVE, spectra, tones, INSTRUMENTS), (1, 1))
        for owner in (tracks.owner, np.array([0, 1, 0, 1, 1, 0, 0, 1])):
            timbre, rank = of_lines.judge(owner)[1], of_lines._ranks(owner)

            def cost(other, timbre=timbre, rank=rank):
                last, total = np.full(2, other.size), 0.0
                for track, instrument in enumerate(other):
                    total += timbre[track, instrument]
                    total += of_lines.follows[instrument, last[instrument], track]
                    total += of_lines._crossed(last, track, rank)[instrument]
                    last[instrument] = track
                return total

            every = np.array(list(itertools.product(range(2), repeat=owner.size)))
            costs = np.array([cost(other) for other in every])
            same = every == owner
            least = lambda which, costs=costs: np.where(which, costs[:, None], np.inf).min(axis=0)
            np.testing.assert_allclose(of_lines.gaps(owner), np.maximum(least(~same) - least(same), 0))

    def test_what_sounds_like_itself_is_surer(self):
        voices = [0, 2, 4, 5, 4, 2], [7, 9, 7, 5.5, 7, 9]
        sure = []
        for second in (0, 1):
            tones, spectra = lines((voices[0], 0), (voices[1], second))
            owner = np.broadcast_to(np.arange(2, dtype=np.int32), tones.active.shape)
            tones = eqx.tree_at(lambda t: t.instrument, tones, owner)
            alike = Dictionary(INSTRUMENTS.harmonics[jnp.array([0, second])])
            sure.append(Streams(OBJECTIVE, spectra, (1, 1), SPACING).margins(tones, alike))
        used = np.any(tones.active, axis=1)
        assert np.all(sure[1][used] > sure[0][used])
        assert np.all(np.isinf(sure[0][~used]))
        assert np.all(sure[0] >= 0)

    def test_what_is_known_is_sure(self):
        follow = TestFollow()
        tones, spectra = follow.played()
        streams, known = Streams(OBJECTIVE, spectra, (1, 1), SPACING), follow.known(spectra, 0, 1, 2, 3)
        open_, told = (streams.margins(tones, INSTRUMENTS, notes) for notes in (None, known))
        later = (np.arange(len(spectra)) >= (follow.HALF + follow.REST) * LENGTH) & np.any(
            tones.active, axis=1
        )
        assert np.all(told[later] > open_[later])

    def test_one_instrument_has_all(self):
        tones, spectra = lines(([0, 2], 0))
        streams = Streams(OBJECTIVE, spectra, (1,), SPACING)
        assert np.all(np.isinf(streams.margins(tones, INSTRUMENTS)))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_nothing_to_assign(number):
    tones, spectra = lines(([None, None], 0), ([None, None], 1))
    found = streamed(tones, spectra, (1,) * number)
    assert not found.active.any()

"""The part of the frames in which the fundamentals are those of the score, counted by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.commands.corpus import spread
from benchmarks.pitches import part_right
from jaxsep.tones.tones import Tones

TIMES = np.arange(100) * 0.01


def tones(*slots):
    """Slots of (instrument, amplitude, Hz) that sound in every frame; amplitude 0 is no tone."""
    instrument, amplitude, hertz = (np.tile(column, (TIMES.size, 1)) for column in np.array(slots, float).T)
    return Tones(
        jnp.asarray(amplitude),
        jnp.asarray(hertz),
        jnp.ones_like(amplitude),
        jnp.zeros_like(amplitude),
        jnp.asarray(instrument, jnp.int32),
        jnp.asarray(amplitude > 0),
    )


def test_frames_near_an_edge_are_not_judged_and_the_rest_are():
    # One instrument plays A4 to 0.505 s, then the C above; the other rests, but its tone rings on.
    played = [np.array([[0.003, 0.502, 69], [0.505, 0.492, 72]]), np.zeros((0, 3))]
    found = tones((0, 1.0, 450.0), (1, 0.5, 300.0), (0, 0.1, 523.0))
    # Steady and right: 0.07 to 0.44 s, 38 frames; steady and wrong: 0.57 to 0.93 s, 37 frames.
    assert part_right(found, TIMES, played, [0, 1]) == pytest.approx(38 / 75)
    assert part_right(found, TIMES, played, [1, 0]) == 0


def test_every_instrument_has_to_be_right():
    both = [np.array([[0.0, 1.0, 69]]), np.array([[0.0, 1.0, 57]])]
    assert part_right(tones((0, 1, 440), (1, 1, 220)), TIMES, both, [0, 1]) == 1
    assert part_right(tones((0, 1, 440), (1, 1, 440)), TIMES, both, [0, 1]) == 0
    assert part_right(tones((0, 1, 440), (1, 0, 220)), TIMES, both, [0, 1]) == 0
    assert np.isnan(part_right(tones((0, 1, 440)), TIMES, [np.zeros((0, 3))], [0]))


def test_spread_over_seeds():
    runs = [
        {"piece": "a", "sdr": [1.0, 3.0]},
        {"piece": "a", "sdr": [4.0, 4.0]},
        {"piece": "b", "sdr": [5.0]},
    ]
    assert "3.00 ± 1.00" in spread(runs)
    assert "5.00 ± 0.00" in spread(runs)

"""Instruments from the harmonics of tones whose instrument is not known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsep.neural.clustering import clear_harmonics, cluster_tones, dictionary_of
from jaxsep.neural.prediction import Prediction
from jaxsep.signal.axes import LinearAxis
from jaxsep.tones.tones import Tones

AXIS = LinearAxis(200, 10.0)
ROWS = np.array([[1.0, 0.2, 0.7, 0.1], [0.4, 1.0, 0.3, 0.5], [0.9, 0.8, 0.1, 0.05]])


def frames(number, count, seed=0, noise=0.02):
    """Levels of tones of `number` instruments in random order, and which instrument each is."""
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(number) for _ in range(count)])
    loud = rng.uniform(0.05, 1, (count, number, 1))
    return loud * ROWS[order] * np.exp(noise * rng.normal(size=(count, number, 4))), order


def prediction(levels, seed=0, active=True):
    count, number, _ = levels.shape
    place = np.random.default_rng(seed).uniform(8, 60, (count, number))
    fields = [np.ones((count, number)), place, np.full((count, number), 1.9), np.zeros((count, number))]
    tones = Tones(
        *(jnp.asarray(x, jnp.float32) for x in fields),
        jnp.tile(jnp.arange(number, dtype=jnp.int32), (count, 1)),
        jnp.full((count, number), active),
    )
    nothing = jnp.zeros((count, number, 200), jnp.complex64)
    return Prediction(tones, nothing, nothing, jnp.asarray(levels, jnp.float32))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_tones_in_any_order_give_the_rows_of_their_instruments(number):
    levels, order = frames(number, 60)
    clear = np.random.default_rng(1).random(levels.shape) > 0.1
    spoiled = np.where(clear, levels, 3.0)  # what is not clear must not count
    run = jax.jit(lambda u, m: cluster_tones(u, m, key=jax.random.key(0)))
    rows, instrument = run(jnp.asarray(spoiled, jnp.float32), jnp.asarray(clear))
    # Up to the names of the instruments.
    names = np.array([np.bincount(order[instrument == i], minlength=number).argmax() for i in range(number)])
    assert sorted(names) == list(range(number))
    np.testing.assert_array_equal(names[instrument], order)
    expected = ROWS[names] / np.linalg.norm(ROWS[names], axis=1, keepdims=True)
    np.testing.assert_allclose(rows, expected, atol=0.02)


def test_the_dictionary_keeps_the_order_that_most_tones_have():
    levels, order = frames(2, 60, seed=2)
    mostly = np.where(
        np.arange(60)[:, None, None] % 3 > 0,
        np.take_along_axis(levels, np.argsort(order)[..., None], axis=1),
        levels,
    )
    for names in ([0, 1], [1, 0]):
        found = dictionary_of(prediction(mostly[:, names]), AXIS, key=jax.random.key(3))
        assert float(jnp.max(found)) == pytest.approx(1)
        np.testing.assert_allclose(found, ROWS[names], atol=0.06)


def test_shared_and_unheard_harmonics_are_not_clear():
    found = prediction(np.ones((1, 2, 4)))
    place = lambda *x: jnp.asarray([x], jnp.float32)
    tones = found.tones.__class__(
        found.tones.amplitude,
        place(20, 60),
        found.tones.width,
        place(0, 0),
        found.tones.instrument,
        found.tones.active,
    )
    found = Prediction(tones, found.modelled, found.direct, found.levels)
    np.testing.assert_array_equal(
        clear_harmonics(found, AXIS)[0], [[True, True, False, True], [False, True, True, False]]
    )
    # Nothing that sounds: any dictionary will do, but a finite one.
    silent = prediction(np.zeros((3, 2, 4)), active=False)
    assert np.all(np.isfinite(dictionary_of(silent, AXIS, key=jax.random.key(0))))

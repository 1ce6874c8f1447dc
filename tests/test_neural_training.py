"""Training: one compiled step, checkpoints, resuming bit for bit, and a task that is learned."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsep.learning.adam import instrument_adamax
from jaxsep.neural import checkpoint, loop
from jaxsep.neural.checkpoint import load_checkpoint, save_checkpoint
from jaxsep.neural.loop import train
from jaxsep.neural.settings import NeuralSettings
from jaxsep.neural.training import StepReport, Trainer, train_step

pytestmark = pytest.mark.compiles

TINY = NeuralSettings(
    rate=4000, window_std=16, hop=32, strides=(4, 4, 3), widths=(6, 8, 8), batch=4, branches=2, steps=6
)
SAMPLES = jnp.asarray(np.random.default_rng(0).normal(size=3000) * 0.1, jnp.float32)


def trainer(**changes):
    return Trainer(dataclasses.replace(TINY, **changes), 2)


def start(seed=0, **changes):
    return trainer(**changes).start(key=jax.random.key(seed))


def leaves(state):
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return [np.array(plain(x)) for x in jax.tree.leaves(eqx.filter(state, eqx.is_array))]


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_dictionary_begins_as_published():
    rows = np.asarray(start().harmonics)
    assert rows.shape == (2, 25)
    np.testing.assert_allclose(rows[:, :3], [[1, 0.5, 0.25], [1, 0.25, 0.0625]])
    assert rows.min() == pytest.approx(1e-3)
    given = jnp.ones((2, 25)) * 0.5
    np.testing.assert_array_equal(trainer().start(given, key=jax.random.key(0)).harmonics, given)


def test_a_step_changes_everything_and_compiles_once():
    made, before = trainer(), leaves(start())
    traces = []

    class Counted(Trainer):
        def step(self, state, samples, guide=None):
            traces.append(1)
            return super().step(state, samples, guide)

    counted = Counted(made.settings, 2)
    state, report = train_step((counted, SAMPLES, None), start())
    after = leaves(state)
    changed = [not np.array_equal(x, y) for x, y in zip(before, after, strict=True)]
    assert np.mean(changed) > 0.9
    assert int(state.step) == 1
    for value in jax.tree.leaves(report):
        assert np.isfinite(value)
    assert 1 <= float(report.effective_samples) <= 4
    train_step((counted, SAMPLES, None), state)
    assert len(traces) == 1


@pytest.mark.slow
def test_accumulated_parts_are_the_whole_batch():
    frames = jax.vmap(lambda c: trainer().frame(SAMPLES, c))(jnp.arange(4) * 500)
    whole, _ = eqx.filter_jit(trainer().learn)(start(), frames, key=jax.random.key(1))
    parts, _ = eqx.filter_jit(trainer(accumulate=2).learn)(start(), frames, key=jax.random.key(1))
    for x, y in zip(leaves(whole.network_moments), leaves(parts.network_moments), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6)


def test_frames_are_those_of_the_transform():
    made = trainer()
    expected = made.stft.analyse(SAMPLES)[5, :-1]
    np.testing.assert_allclose(made.frame(SAMPLES, jnp.int32(5 * 32)), expected, atol=1e-7)


def test_adamax_takes_the_largest_harmonic_of_each_instrument(x64):
    rule = instrument_adamax(0.1, 0.9, 0.99)
    rows = jnp.zeros((2, 3))
    first, second = (
        jnp.array([[1.0, -4.0, 0.0], [0.0, 0.0, 2.0]]),
        jnp.array([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0]]),
    )
    change, state = rule.update(first, rule.init(rows))
    np.testing.assert_allclose(change, -0.1 * first / jnp.array([[4.0], [2.0]]), atol=1e-8)
    change, _ = rule.update(second, state)
    mean = (0.9 * 0.1 * first + 0.1 * second) / (1 - 0.9**2)
    np.testing.assert_allclose(change, -0.1 * mean / jnp.array([[0.99 * 4], [3.0]]), atol=1e-8)
    np.testing.assert_array_equal(rule.update(0 * first, rule.init(rows))[0], 0)


# ---- The loop and its checkpoints --------------------------------------------------------------------------


@pytest.mark.slow
def test_resuming_continues_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "STEPS_PER_LINE", 3)
    whole = train(trainer(hold=3), start(), SAMPLES)
    train(trainer(hold=3), start(), SAMPLES, checkpoint=tmp_path / "kept.npz", source="a", minutes=1e-9)
    state = load_checkpoint(tmp_path / "kept.npz", trainer(hold=3), "a")
    assert int(state.step) == 3
    # Until here the dictionary was held; now it is found.
    np.testing.assert_array_equal(state.harmonics, start().harmonics)
    assert_same(train(trainer(hold=3), state, SAMPLES), whole)
    assert np.max(np.abs(whole.harmonics - start().harmonics)) > 0.01


def test_an_interruption_keeps_what_was_learned(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "STEPS_PER_LINE", 2)
    path, heard = tmp_path / "kept.npz", []

    def advance(note):
        heard.append(note)
        if len(heard) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trainer(), start(), SAMPLES, checkpoint=path, source="a", advance=advance)
    assert int(load_checkpoint(path, trainer(), "a").step) == 4
    assert heard[0].startswith("loss ")
    assert [p.name for p in tmp_path.iterdir()] == ["kept.npz"]


def test_the_log_has_a_line_for_every_so_many_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "STEPS_PER_LINE", 2)
    seen = []
    train(
        trainer(steps=5),
        start(),
        SAMPLES,
        log=tmp_path / "log.jsonl",
        watch=lambda s, t: seen.append(int(s.step)),
    )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == seen == [2, 4, 5]
    assert set(lines[0]) == {"step", "seconds", *StepReport.__dataclass_fields__}


def test_the_budget_ends_the_training(monkeypatch):
    monkeypatch.setattr(loop, "STEPS_PER_LINE", 1)
    state = train(trainer(steps=10_000), start(), SAMPLES, minutes=1e-9)
    assert int(state.step) == 1


def test_a_loss_that_is_not_finite_ends_the_training_and_spoils_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "STEPS_PER_LINE", 1)
    path = tmp_path / "kept.npz"
    with pytest.raises(FloatingPointError, match="the loss is nan after 1 steps"):
        train(trainer(), start(), SAMPLES * jnp.nan, checkpoint=path)
    assert_same(load_checkpoint(path, trainer(), ""), start())


def test_checkpoints_are_checked_before_they_are_trusted(tmp_path, monkeypatch):
    path, state = tmp_path / "kept.npz", start()
    save_checkpoint(path, trainer(), state, "a")
    assert_same(load_checkpoint(path, trainer(), "a"), state)
    assert_same(load_checkpoint(path, trainer(steps=99, hop=16), "a"), state)

    def refused(message, path=path, made=None, source="a"):
        with pytest.raises(ValueError, match=message):
            load_checkpoint(path, made or trainer(), source)

    refused("there is no file", tmp_path / "none.npz")
    refused("belongs to another recording", source="b")
    monkeypatch.setattr(checkpoint, "_VERSION", 1)
    save_checkpoint(tmp_path / "older.npz", trainer(), state, "a")
    monkeypatch.undo()
    refused("is of a version of jaxsep whose network sees other inputs", tmp_path / "older.npz")
    refused("expected widths", made=trainer(widths=(6, 8, 9)))
    refused("expected num_instruments 3", made=Trainer(TINY, 3))
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 40):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        refused("is truncated, or no checkpoint", tmp_path / "cut.npz")
    np.savez(tmp_path / "foreign.npz", header=np.array(json.dumps({"format": "other"})))
    refused("truncated, or no checkpoint", tmp_path / "foreign.npz")
    np.savez(tmp_path / "pickled.npz", header=np.array({"format": "jaxsep training"}, object))
    refused("truncated, or no checkpoint", tmp_path / "pickled.npz")
    with np.load(path) as content:
        arrays = dict(content)
    arrays["array0"] = arrays["array0"] * np.nan
    np.savez(tmp_path / "nan.npz", **arrays)
    refused("not finite", tmp_path / "nan.npz")
    arrays["array0"] = arrays["array0"][..., :-1]
    np.savez(tmp_path / "shape.npz", **arrays)
    refused("the arrays in .* are not those of its settings", tmp_path / "shape.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch: expected an integer of at least 1, got 0"),
        ({"steps": True}, "steps: expected an integer of at least 1, got True"),
        ({"network_rate": 0.0}, "network_rate: expected a number above 0, got 0.0"),
        ({"accumulate": 3}, "accumulate: expected a divisor of batch=4, got 3"),
        ({"strides": (4, 5)}, "strides: expected a product that divides 96 bins, got 20"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(**changes)


def test_presets():
    assert NeuralSettings.paper().window_std * 6 == 6144
    small = NeuralSettings.small()
    assert small.imitation == 0
    guided = NeuralSettings.guided()
    assert guided.imitation > 0
    assert dataclasses.replace(guided, imitation=0) == small
    assert small.window_std / small.rate == NeuralSettings.paper().window_std / NeuralSettings.paper().rate


@pytest.mark.slow
def test_the_published_preset_takes_steps():
    sizes = {
        name: getattr(TINY, name) for name in ("rate", "window_std", "hop", "strides", "widths", "batch")
    }
    made = Trainer(dataclasses.replace(NeuralSettings.published(), **sizes, branches=2), 2)
    state = made.start(key=jax.random.key(0))
    assert float(jnp.exp(state.network.log_scales[0])) == pytest.approx(10_000, rel=1e-5)
    for _ in range(3):
        state, report = train_step((made, SAMPLES, None), state)
        assert np.isfinite(report.loss)
    # Tempered samples are weighed; at first all choices are as likely.
    assert 1 < float(report.effective_samples) < 4

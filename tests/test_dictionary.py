"""Dictionaries: random instruments, and files that are checked before they are believed."""

import io
import json
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsep.signal.axes import LinearAxis, LogAxis
from jaxsep.tones.dictionary import NUM_HARMONICS, Dictionary, random_instruments
from jaxsep.tones.tones import Tones

HEADER = {"format": "jaxsep dictionary", "version": 2, "arrays": ["harmonics"]}


def some_dictionary(dtype=jnp.float32):
    return Dictionary(jnp.array([[1.0, 0.25, 0.0], [0.125, 0.7, 1.0]], dtype))


def write(path, header=HEADER, **arrays):
    """An `.npz` file, made without `Dictionary`."""
    arrays = arrays or {"harmonics": np.array([[1.0, 0.5]])}
    np.savez(path, header=np.array(json.dumps(header) if isinstance(header, dict) else header), **arrays)


def array_bytes(array, **options):
    content = io.BytesIO()
    np.lib.format.write_array(content, array, **options)
    return content.getvalue()


def zip_members(path, harmonics):
    """An archive whose header is right, and whose member `harmonics.npy` has the given bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.npy", array_bytes(np.array(json.dumps(HEADER))))
        archive.writestr("harmonics.npy", harmonics)


def test_loaded_is_what_was_saved(tmp_path):
    path = tmp_path / "duet.npz"
    some_dictionary().save(path)
    loaded = Dictionary.load(path)
    assert loaded.num_instruments == 2
    assert loaded.harmonics.dtype == jnp.float32
    np.testing.assert_array_equal(loaded.harmonics, some_dictionary().harmonics)
    assert [entry.name for entry in tmp_path.iterdir()] == ["duet.npz"]


def test_double_precision_is_loaded_as_single(tmp_path, x64):
    some_dictionary(jnp.float64).save(tmp_path / "duet.npz")
    loaded = Dictionary.load(str(tmp_path / "duet.npz"))
    assert loaded.harmonics.dtype == jnp.float32
    np.testing.assert_allclose(loaded.harmonics, some_dictionary(jnp.float64).harmonics, rtol=1e-7)


def test_file_holds_a_header_and_one_array(tmp_path):
    some_dictionary().save(tmp_path / "duet.npz")
    with np.load(tmp_path / "duet.npz", allow_pickle=False) as content:
        assert sorted(content.files) == ["harmonics", "header"]
        assert json.loads(str(content["header"])) == HEADER


def test_saving_replaces_a_file_whole_or_leaves_it(tmp_path, monkeypatch):
    path = tmp_path / "duet.npz"
    write(path)
    some_dictionary().save(path)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("jaxsep.tones.dictionary.os.replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        Dictionary(jnp.ones((3, 4))).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["duet.npz"]


SPRUNG = []


class Trap:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self):
        return _spring, ()


def _spring():
    SPRUNG.append(True)


@pytest.mark.parametrize("member", ["header", "harmonics"])
def test_nothing_is_unpickled(tmp_path, member):
    path = tmp_path / "trap.npz"
    arrays = {"header": np.array(json.dumps(HEADER)), "harmonics": np.ones((2, 3))}
    arrays[member] = np.array([Trap()], dtype=object)
    np.savez(path, **arrays)
    with np.load(path, allow_pickle=True) as content:
        content[member]
    assert SPRUNG.pop(), "the trap works"
    with pytest.raises(ValueError, match=r"trap\.npz is not a dictionary written by jaxsep$"):
        Dictionary.load(path)
    assert not SPRUNG


def test_a_plain_pickle_is_not_opened(tmp_path):
    (tmp_path / "trap.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"trap\.npz is not a dictionary written by jaxsep$"):
        Dictionary.load(tmp_path / "trap.npz")
    assert not SPRUNG


def _folder(path):
    path.mkdir()


def _truncated(path):
    some_dictionary().save(path)
    path.write_bytes(path.read_bytes()[:-40])


def _damaged(path):
    content = bytearray(array_bytes(np.ones((2, 3))))
    zip_members(path, bytes(content))
    raw = bytearray(path.read_bytes())
    place = raw.index(bytes(content[-8:]))
    raw[place] ^= 0xFF  # the checksum tells
    path.write_bytes(raw)


def _damaged_compression(path):
    np.savez_compressed(path, header=np.array(json.dumps(HEADER)), harmonics=np.random.rand(20, 20))
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("harmonics.npy").header_offset + 60
    raw[start : start + 200] = b"\xff" * 200
    path.write_bytes(raw)


def _encrypted(path):
    some_dictionary().save(path)
    raw = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = -1
        while (place := raw.find(signature, place + 1)) >= 0:
            raw[place + flags] |= 1
    path.write_bytes(raw)


def _promises_too_much(path):
    honest = array_bytes(np.ones((2, 3)))
    zip_members(path, honest.replace(b"(2, 3), }" + b" " * 12, b"(9999999999, 99999), }"[:21]))


def _nested_header(path):
    write(path, header="[" * 100_000)


UNREADABLE = {
    "folder": _folder,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("harmonics: 1, 0.5"),
    "one array": lambda path: path.write_bytes(array_bytes(np.ones((2, 3)))),
    "truncated": _truncated,
    "damaged": _damaged,
    "damaged compression": _damaged_compression,
    "encrypted": _encrypted,
    "promises too much": _promises_too_much,
    "no arrays": lambda path: np.savez(path, header=np.array(json.dumps(HEADER))),
    "no header": lambda path: np.savez(path, harmonics=np.ones((2, 3))),
    "not JSON": lambda path: write(path, header="{format"),
    "nested header": _nested_header,
    "a list for a header": lambda path: write(path, header="[1]"),
    "another program's": lambda path: write(path, header={"format": "drum kit", "version": 1}),
}


@pytest.mark.parametrize("make", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_other_files_are_refused_in_one_sentence(tmp_path, make):
    path = tmp_path / "duet.npz"
    make(path)
    with pytest.raises(ValueError, match=r"^dictionary: \S+duet\.npz is not a dictionary written by jaxsep$"):
        Dictionary.load(path)


@pytest.mark.parametrize(
    ("harmonics", "message"),
    [
        (np.ones(3), r"expected real harmonics with 2 axes in .* of shape \(3,\)"),
        (np.ones((0, 3)), r"got float64 of shape \(0, 3\)"),
        (np.ones((2, 0)), r"got float64 of shape \(2, 0\)"),
        (np.ones((2, 3), int), r"got int64 of shape \(2, 3\)"),
        (np.ones((2, 3), complex), r"got complex128 of shape \(2, 3\)"),
        (np.array([[1.0, -0.1]]), r"expected values in \[0, 1\]"),
        (np.array([[1.0, 1.1]]), r"expected values in \[0, 1\]"),
        (np.array([[1.0, np.nan]]), r"expected values in \[0, 1\]"),
        (np.array([[1.0, 0.3], [0.0, 0.0]]), r"some above 0 in each row"),
    ],
)
def test_impossible_values_are_refused(tmp_path, harmonics, message):
    write(tmp_path / "duet.npz", harmonics=harmonics)
    with pytest.raises(ValueError, match=message):
        Dictionary.load(tmp_path / "duet.npz")


def test_missing_file_and_another_version(tmp_path):
    with pytest.raises(ValueError, match=r"^dictionary: there is no file \S+nowhere\.npz$"):
        Dictionary.load(tmp_path / "nowhere.npz")
    write(tmp_path / "later.npz", header={**HEADER, "version": 3})
    with pytest.raises(ValueError, match=r"^dictionary: expected version 1 or 2 in \S+later\.npz, got 3$"):
        Dictionary.load(tmp_path / "later.npz")


def test_a_file_of_version_1_is_read(tmp_path):
    write(tmp_path / "old.npz", header={**HEADER, "version": 1})
    loaded = Dictionary.load(tmp_path / "old.npz")
    np.testing.assert_array_equal(loaded.harmonics, [[1.0, 0.5]])
    assert loaded.by_pitch is None


# ---- Timbre -----------------------------------------------------------------------------------------------

PITCHES = np.array([100.0, 200.0, 800.0], np.float32)


def some_timbre():
    rows = np.random.default_rng(0).uniform(size=(2, 3, 4)).astype(np.float32)
    return Dictionary(jnp.asarray(rows.max(axis=1)), jnp.asarray(rows), jnp.asarray(PITCHES))


def test_a_timbre_is_saved_with_the_dictionary(tmp_path):
    some_timbre().save(tmp_path / "duet.npz")
    loaded = Dictionary.load(tmp_path / "duet.npz")
    for name in ("harmonics", "by_pitch", "pitches"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(some_timbre(), name))
    assert loaded.plain.by_pitch is None


@pytest.mark.parametrize("axis", [None, LogAxis(), LinearAxis(4096, 1.7)], ids=["hertz", "log", "linear"])
def test_harmonics_between_pitches_are_interpolated_over_the_logarithm(axis):
    hertz = np.array([[50.0, 100.0, 130.0], [200.0, 790.0, 3000.0]], np.float32)
    instrument = np.array([[0, 1, 1], [0, 1, 0]])
    place = jnp.asarray(hertz) if axis is None else axis.to_bin(jnp.asarray(hertz))
    tones = Tones.plain(jnp.ones((2, 3)), place, jnp.asarray(instrument))
    found, rows = some_timbre().of(tones, axis), np.asarray(some_timbre().by_pitch)
    for index in np.ndindex(2, 3):
        expected = [
            np.interp(np.log(hertz[index]), np.log(PITCHES), rows[instrument[index], :, h]) for h in range(4)
        ]
        np.testing.assert_allclose(found[index], expected, atol=1e-5)


def test_without_a_timbre_the_pitch_does_not_matter():
    tones = Tones.plain(jnp.ones(3), jnp.array([0.0, 440.0, 1e9]), jnp.array([1, 0, 1]))
    rows = some_dictionary().harmonics
    np.testing.assert_array_equal(some_dictionary().of(tones), rows[tones.instrument])


def test_the_timbre_is_differentiable_where_nothing_sounds():
    tones = Tones.empty((2,))
    slopes = jax.grad(lambda d: jnp.sum(d.of(tones) ** 2))(some_timbre())
    assert all(np.all(np.isfinite(slope)) for slope in jax.tree.leaves(slopes))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"by_pitch": np.ones((1, 2, 2))}, "pitches: expected together with by_pitch"),
        ({"by_pitch": np.ones((1, 1, 2)), "pitches": PITCHES[:1]}, "at least 2 pitches"),
        ({"by_pitch": -np.ones((1, 2, 2)), "pitches": PITCHES[:2]}, "by_pitch: expected finite"),
        ({"by_pitch": np.ones((1, 2, 2)), "pitches": PITCHES[1::-1]}, "pitches: expected rising"),
        ({"by_pitch": np.ones((1, 2, 2)), "pitches": np.array([0.0, 1.0])}, "pitches: expected rising"),
    ],
)
def test_timbres_that_do_not_fit_are_refused(tmp_path, arrays, message):
    write(tmp_path / "duet.npz", harmonics=np.array([[1.0, 0.5]]), **arrays)
    with pytest.raises(ValueError, match=message):
        Dictionary.load(tmp_path / "duet.npz")


def test_too_many_harmonics_are_refused_before_they_are_unpacked(tmp_path):
    write(tmp_path / "duet.npz", harmonics=np.ones((2, 2000)))
    with pytest.raises(ValueError, match=r"harmonics of at most \(1024, 1024\) in .*, got \(2, 2000\)"):
        Dictionary.load(tmp_path / "duet.npz")


def test_random_instruments_follow_their_law(dtype):
    draw = jax.jit(lambda key: random_instruments(20_000, 8, dtype, key=key))
    rows = draw(jax.random.key(1))
    assert rows.shape == (20_000, 8)
    assert rows.dtype == dtype
    assert np.all((rows >= 0) & (rows <= 1))
    np.testing.assert_allclose(np.max(rows, axis=1), 1, rtol=2 * jnp.finfo(dtype).eps)
    # The ratio of two harmonics is 2^-e u / u', with P(e > x) = (1 + x)^-1/2 and u, u' uniform; e and u are
    # drawn here by other means.
    rng = np.random.default_rng(0)
    decay = (1 - rng.uniform(size=200_000)) ** -2 - 1
    ratio = rng.uniform(size=decay.size) / rng.uniform(size=decay.size) * 2.0 ** -np.minimum(decay, 100)
    first, second = np.asarray(rows[:, :2], float).T
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        below = np.mean(second < np.quantile(ratio, quantile) * first)
        assert below == pytest.approx(quantile, abs=0.02)  # five standard deviations


def test_the_key_decides_and_jit_and_vmap_change_nothing():
    draw = lambda key: random_instruments(2, key=key)
    keys = jax.random.split(jax.random.key(0), 3)
    eager = np.stack([draw(key) for key in keys])
    assert eager.shape == (3, 2, NUM_HARMONICS)
    np.testing.assert_array_equal(draw(keys[1]), eager[1])
    assert np.all(np.any(eager[0] != eager[1:], axis=-1))
    np.testing.assert_allclose(jax.jit(jax.vmap(draw))(keys), eager, rtol=1e-5)

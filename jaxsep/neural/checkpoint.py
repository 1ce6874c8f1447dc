"""Training states as files that appear whole and are checked before they are trusted."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsep.files import replacing
from jaxsep.neural.settings import NeuralSettings
from jaxsep.neural.training import Trainer, TrainingState

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "jaxsep training"
_VERSION = 2


def save_checkpoint(path: str | os.PathLike, trainer: Trainer, state: TrainingState, source: str) -> None:
    """Writes an `.npz` file of a JSON header and the arrays of a state.

    Arguments:
        path: replaced in one step, so that there is always a whole file.
        trainer: its settings and number of instruments are kept.
        state: what training continues from.
        source: what tells the recording from others, such as a hash.
    """
    arrays = {f"array{number}": leaf for number, leaf in enumerate(_arrays(state))}
    header = _header(trainer, source) | {"num_arrays": len(arrays)}
    with replacing(path, durable=True) as draft, draft.open("wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)


def load_checkpoint(path: str | os.PathLike, trainer: Trainer, source: str) -> TrainingState:
    """Reads what `save_checkpoint` wrote.

    Raises: `ValueError` with one sentence if the file is missing, truncated, not a checkpoint, or of other
    settings, another number of instruments or another recording.
    """
    path = Path(path)
    template = jax.eval_shape(lambda: trainer.start(key=jax.random.key(0)))
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            header = json.loads(str(content["header"]))
            count = header["num_arrays"] if isinstance(header, dict) else 0
            arrays = [content[f"array{number}"] for number in range(count)]
    except FileNotFoundError:
        raise ValueError(f"checkpoint: there is no file {path}") from None
    except Exception:  # a damaged or hostile archive can raise nearly anything
        raise ValueError(f"checkpoint: {path} is truncated, or no checkpoint written by jaxsep") from None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(f"checkpoint: {path} is no checkpoint written by jaxsep")
    for name, wanted in _header(trainer, source).items():
        if header.get(name) != wanted:
            raise ValueError(_mismatch(path, name, wanted, header.get(name)))
    leaves, tree = jax.tree.flatten(eqx.filter(template, _is_array))
    shapes = [_plain_shape(leaf) for leaf in leaves]
    if shapes != [(array.shape, array.dtype) for array in arrays]:
        raise ValueError(f"checkpoint: the arrays in {path} are not those of its settings")
    if not all(np.all(np.isfinite(array)) for array in arrays if array.dtype.kind == "f"):
        raise ValueError(f"checkpoint: {path} holds values that are not finite")
    restored = [_restored(array, leaf) for array, leaf in zip(arrays, leaves, strict=True)]
    return eqx.combine(jax.tree.unflatten(tree, restored), eqx.filter(template, _is_array, inverse=True))


def _header(trainer, source) -> dict[str, Any]:
    # Through JSON, so that what was read compares equal.
    settings = json.loads(json.dumps(_training_settings(trainer.settings)))
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "recording": source,
        "num_instruments": trainer.num_instruments,
        "settings": settings,
    }


def _training_settings(settings: NeuralSettings):
    """Settings that a state depends on: it may be trained for longer, and predict at another hop."""
    return {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("steps", "hop")}


def _mismatch(path, name, wanted, got):
    if name == "settings" and isinstance(got, dict):
        name, wanted, got = next((k, v, got.get(k)) for k, v in wanted.items() if got.get(k) != v)
    if name == "version":
        return f"checkpoint: {path} is of a version of jaxsep whose network sees other inputs: train anew"
    if name == "recording":
        return f"checkpoint: {path} belongs to another recording"
    return f"checkpoint: expected {name} {wanted} in {path}, got {got}"


def _is_array(leaf):
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _arrays(state):
    for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_array)):
        yield np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain_shape(leaf):
    if _is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return data.shape, data.dtype
    return leaf.shape, leaf.dtype


def _restored(array, leaf):
    return jax.random.wrap_key_data(jnp.asarray(array)) if _is_key(leaf) else jnp.asarray(array)

"""The host's loop around the compiled training step: progress, log, checkpoints, budget."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxsep.neural.checkpoint import save_checkpoint
from jaxsep.neural.imitation import Guide
from jaxsep.neural.training import StepReport, Trainer, TrainingState, find_dictionary, train_step

__all__ = ["STEPS_PER_LINE", "train"]

#: Steps whose reports are averaged for a line of the log.
STEPS_PER_LINE = 50

#: Seconds between checkpoints.
_CHECKPOINT_EVERY = 120.0


def train(
    trainer: Trainer,
    state: TrainingState,
    samples: Float[Array, " samples"],
    *,
    guide: Guide | None = None,
    minutes: float | None = None,
    checkpoint: str | os.PathLike | None = None,
    source: str = "",
    log: str | os.PathLike | None = None,
    advance: Callable[[str], None] = lambda note: None,
    watch: Callable[[TrainingState, float], None] | None = None,
) -> TrainingState:
    """Trains up to the number of steps in the settings, or for so many minutes.

    A dictionary that was not given is found on the way, as pitches are (`Trainer.with_dictionary`).

    Arguments:
        trainer: what a step does.
        state: to begin with; its memory is used again, so that it cannot be used afterwards.
        samples: the recording at the settings' rate, its spectrogram's peak about 1.
        guide: what the first steps imitate, as many as the settings say.
        minutes: > 0, budget of this call, without the compilation.
        checkpoint: file for the state, at once, every two minutes, at the end, and when an exception or
            Ctrl-C ends the training.
        source: name of the recording in the checkpoint.
        log: file to which a JSON object is appended every 50 steps: step, seconds of this call, and the
            `StepReport`.
        advance: hears of every 50 steps.
        watch: is called with the state and the seconds so far, after every 50 steps.

    Raises: `FloatingPointError` if the loss is no longer finite; the last checkpoint stays; `ValueError` if
    the settings want a guide and there is none.
    """
    total, reports = trainer.settings.steps, []
    first = step = int(state.step)
    blind = bool(state.blind)
    if step < min(total, trainer.settings.imitation) and guide is None:
        raise ValueError(f"guide: expected one for {trainer.settings.imitation} steps of imitation, got none")
    begin = saved = time.monotonic()
    spent = 0.0  # on compilation

    def save():
        if checkpoint is not None:
            save_checkpoint(checkpoint, trainer, state, source)

    save()  # so that a file that cannot be written is known before anything is lost
    try:
        while step < total:
            found = blind and trainer.finds_dictionary(step)
            compiling = found or step in (first, trainer.settings.imitation)
            before = time.monotonic()
            if found:
                state = find_dictionary(trainer, state, samples)
            here = guide if step < trainer.settings.imitation else None
            state, report = train_step((trainer, samples, here), state)
            step += 1
            reports.append(report)
            if compiling:
                jax.block_until_ready(report.loss)
                spent += time.monotonic() - before
            if step % STEPS_PER_LINE and step < total:
                continue
            line = _mean(reports)
            reports, elapsed = [], time.monotonic() - begin - spent
            if not np.isfinite(line["loss"]):
                raise FloatingPointError(f"the loss is {line['loss']} after {step} steps")
            if log is not None:
                entry = {"step": step, "seconds": round(elapsed, 2), **line}
                with Path(log).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
            advance(f"loss {line['loss']:.3f}")
            if watch is not None:
                watch(state, elapsed)
            if minutes is not None and elapsed >= 60 * minutes:
                break
            if time.monotonic() - saved > _CHECKPOINT_EVERY:
                save()
                saved = time.monotonic()
    except BaseException as error:
        # In the middle of a step the old state is gone and the new one not there yet. A loss that is not
        # finite must not replace a good state.
        alive = not any(x.is_deleted() for x in jax.tree.leaves(state) if isinstance(x, jax.Array))
        if alive and step > first and not isinstance(error, FloatingPointError):
            save()
        raise
    save()
    return state


def _mean(reports: list[StepReport]) -> dict[str, float]:
    stacked = jax.tree.map(lambda *x: float(np.mean(x)), *reports)
    return {name: getattr(stacked, name) for name in StepReport.__dataclass_fields__}

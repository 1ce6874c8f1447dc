"""The U-Net and its training (P2): blocks, variance of the gradient, steps beside PyTorch, what it learns."""

import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import typer
from matplotlib.figure import Figure

from benchmarks.common import (
    PICTURES,
    RESULTS,
    Report,
    SomePieces,
    answer,
    call_worker,
    decibels,
    load_piece,
    markdown_table,
    measure,
    peak_memory,
    scores,
    split_list,
)
from benchmarks.neural_task import reference_task, solve
from jaxsep.audio import resample
from jaxsep.neural.checkpoint import load_checkpoint
from jaxsep.neural.imitation import Guide
from jaxsep.neural.inputs import num_inputs
from jaxsep.neural.loop import train
from jaxsep.neural.losses import PredictionLoss
from jaxsep.neural.network import PartialPrediction, ToneNetwork
from jaxsep.neural.settings import NeuralSettings
from jaxsep.neural.training import Trainer, train_step
from jaxsep.separation.neural import predict_stems, spectral_peak
from jaxsep.separation.separate import separate

#: Evaluations of the network at a time: those of the second tone of a frame, with three samples of the first.
_AT_ONCE = 3

PIECES = "k487_08_recorder_violin,k487_11_flute_clarinet"
PICTURE = PICTURES / "neural_learning.png"
PARTS = ("blocks", "variance", "torch", "paper", "task", "pieces")

#: How a training begins: with nothing, or with steps that imitate a pursuit.
STARTS = {"blind": NeuralSettings.small(), "imitation": NeuralSettings.guided()}


def main(
    quick: bool = False,
    parts: Annotated[
        str, typer.Option(help="Of blocks, variance, torch, paper, task, pieces; paper-run needs a GPU.")
    ] = "",
    pieces: SomePieces = PIECES,
    starts: Annotated[str, typer.Option(help="Of the pieces: blind, imitation.")] = ",".join(STARTS),
    seeds: Annotated[str, typer.Option(help="Numbers, separated by commas.")] = "0,1,2",
    minutes: Annotated[float, typer.Option(help="Training of each run.", min=0.01)] = 40.0,
    seconds: Annotated[float, typer.Option(help="Use the start of each piece alone.", min=0.3)] = 20.0,
) -> None:
    """Speed, memory and variance of the training, and what it separates."""
    chosen = split_list(parts) or list(PARTS)
    seeds = [int(seed) for seed in split_list(seeds)][: 1 if quick else None]
    names = split_list(pieces)[: 1 if quick else None]
    report = Report("neural", quick=quick)
    if "blocks" in chosen:
        found = blocks(3 if quick else 48)
        report.part("blocks", found, "One evaluation, and with its derivative", blocks_table(found))
    if "variance" in chosen:
        found = variance(4 if quick else 200)
        report.part("variance", found, "Variance of the gradient by the features", variance_table(found))
    if "torch" in chosen:
        found = beside_torch(3 if quick else 48)
        report.part("torch", found, "Forward and backward of the network", torch_table(found))
    if "paper" in chosen:
        found = call_worker("benchmarks.commands.neural", {"batch": 1 if quick else 12}, {})
        report.part("paper", found, "One step with P2's sizes", str(found))
    if "task" in chosen:
        found = [run for seed in seeds for run in tasks(seed, 3 if quick else None)]
        report.part("task", found, "Instruments and bins of unseen frames", tasks_table(found))
    if "pieces" in chosen:
        for name, start, seed in itertools.product(names, split_list(starts), seeds):
            run = learn_piece(name, 3.0 if quick else seconds, 0.1 if quick else minutes, seed, start)
            report.add(run, json.dumps(run["final"]))
        if not quick:
            draw(report.document["runs"])
        print(f"\nFirst {seconds:g} s, gain-only dB\n\n{pieces_table(report.document['runs'])}")
    if "paper-run" in chosen:
        for name, seed in itertools.product(names, seeds):
            kept = RESULTS / f"paper_run_{name}_{seed}.npz"
            run = learn_piece(name, seconds, minutes, seed, "blind", NeuralSettings.paper(), kept)
            report.add(run, json.dumps(run["final"]))
    report.end()


# ---- Blocks ------------------------------------------------------------------------------------------------


def small_network(method: str = "auto") -> ToneNetwork:
    """The network of `NeuralSettings.small()` for two instruments."""
    options = NeuralSettings.small()
    return ToneNetwork.create(
        2, strides=options.strides, widths=options.widths, method=method, key=jax.random.key(0)
    )


def random_frames(count: int, num_bins: int) -> jax.Array:
    """Complex noise, `[count, bins]`."""
    parts = 0.01 * jax.random.normal(jax.random.key(1), (2, count, num_bins))
    return jax.lax.complex(parts[0], parts[1])


@eqx.filter_jit
def evaluate(network, frames):
    """The features of all frames."""
    return jax.vmap(lambda z: network(z, PartialPrediction.nothing(z, 2)).features)(frames)


@eqx.filter_jit
def differentiate(network, frames):
    """The derivative of their mean square, of so many frames at a time as in training."""

    def add(total, part):
        square = lambda n: jnp.sum(jax.vmap(lambda z: n.unet(_inputs(z)))(part) ** 2)
        return jax.tree.map(jnp.add, total, eqx.filter_grad(square)(network)), None

    nothing = jax.tree.map(jnp.zeros_like, eqx.filter(network, eqx.is_array))
    return jax.lax.scan(add, nothing, frames.reshape(-1, _AT_ONCE, frames.shape[1]))[0]


def _inputs(frame):
    """As many channels as the network of two instruments takes."""
    channels = num_inputs(2, NeuralSettings.small().stacked)
    columns = jnp.stack([frame.real, frame.imag, jnp.abs(frame)], axis=1)
    return jnp.tile(columns, (1, channels // 3 + 1))[:, :channels]


def blocks(count: int) -> list[dict[str, Any]]:
    """Seconds of both kinds of convolution."""
    frames, rows = random_frames(count, 1536), []
    for method in ("matmul", "conv"):
        network = small_network(method)
        forward = measure(lambda n=network: evaluate(n, frames)).minimum
        both = measure(lambda n=network: differentiate(n, frames)).minimum
        rows.append({"method": method, "forward": forward / count, "both": both / count})
    return rows


def blocks_table(rows) -> str:
    """Markdown of `blocks`."""
    cells = [[r["method"], f"{1e3 * r['forward']:.2f}", f"{1e3 * r['both']:.2f}"] for r in rows]
    return markdown_table(["convolutions", "forward, ms per frame", "with derivative"], cells)


# ---- Variance ----------------------------------------------------------------------------------------------


def variance(repeats: int) -> list[dict[str, Any]]:
    """Total variance of the gradient of one frame by all weights, over keys."""
    from jaxsep.neural.estimator import Estimator

    trainer = Trainer(NeuralSettings.small(), 2)
    piece = load_piece("k487_08_recorder_violin", 5.0)
    samples = resample(piece.mixture[None].astype(np.float32), piece.sample_rate, trainer.settings.rate)[0]
    samples = jnp.asarray(samples / spectral_peak(samples, trainer))
    state = trainer.start(key=jax.random.key(0))
    # A network that has begun to learn, so that its policy is not that of the random start.
    for _ in range(5 if repeats < 10 else 500):
        state, _ = train_step((trainer, samples, None), state)
    rows = []
    for name, branches, baseline, evaluations in (
        ("published: 9 joint samples, mean", (9, 1), "mean", 10),
        ("9 joint samples, leave-one-out", (9, 1), "leave-one-out", 10),
        ("tree of 3 × 3, mean", (3, 3), "mean", 4),
        ("tree of 3 × 3, leave-one-out", (3, 3), "leave-one-out", 4),
        ("tree of 9 × 3, leave-one-out", (9, 3), "leave-one-out", 10),
    ):
        estimator = Estimator(PredictionLoss(), trainer.axis, branches, baseline=baseline)

        @eqx.filter_jit
        def gradient(state, frame, key, estimator=estimator):
            run = lambda n: estimator(n, state.harmonics, frame, key=key)[0]
            return jnp.concatenate([x.ravel() for x in jax.tree.leaves(eqx.filter_grad(run)(state.network))])

        total = 0.0
        for number in range(8):
            frame = trainer.frame(samples, jnp.int32((number + 1) * samples.size // 10))
            mean = power = 0.0
            for key in jax.random.split(jax.random.key(number), repeats):
                g = np.asarray(gradient(state, frame, key), np.float64)
                mean, power = mean + g / repeats, power + g @ g / repeats
            total += (power - mean @ mean) / 8
        rows.append({"name": name, "variance": total, "evaluations": evaluations})
    return rows


def variance_table(rows) -> str:
    """Markdown of `variance`, relative to the first row."""
    base = rows[0]["variance"] * rows[0]["evaluations"]
    cells = [
        [
            r["name"],
            f"{r['variance'] / rows[0]['variance']:.2f}",
            str(r["evaluations"]),
            f"{r['variance'] * r['evaluations'] / base:.2f}",
        ]
        for r in rows
    ]
    header = ["estimator", "variance", "evaluations of the network", "variance at equal cost"]
    return markdown_table(header, cells)


# ---- PyTorch -----------------------------------------------------------------------------------------------


def beside_torch(count: int) -> dict[str, float]:
    """Seconds of forward and backward through the same network here and in PyTorch, on CPU."""
    import torch

    options = NeuralSettings.small()
    frames = random_frames(count, 1536)
    network = small_network()
    here = measure(lambda: differentiate(network, frames)).minimum

    class Net(torch.nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            before = [inputs, *options.widths[:-1]]
            self.pads, encoder = [], []
            for a, b, s in zip(before, options.widths, options.strides, strict=True):
                left = (options.kernel - s + 1) // 2
                self.pads.append((left, options.kernel - s - left))
                encoder.append(torch.nn.Conv1d(a, b, options.kernel, s))
            self.encoder = torch.nn.ModuleList(encoder)
            decoder, channels = [], options.widths[-1]
            for level in reversed(range(len(options.strides))):
                width = options.widths[max(level - 1, 0)]
                decoder.append(
                    torch.nn.ConvTranspose1d(channels, width, options.kernel, options.strides[level])
                )
                channels = width + before[level]
            self.decoder = torch.nn.ModuleList(decoder)
            width = options.widths[0]
            self.head = torch.nn.Sequential(
                torch.nn.Conv1d(channels, width, 3, padding=1),
                torch.nn.ReLU(),
                torch.nn.Conv1d(width, width, 1),
                torch.nn.ReLU(),
                torch.nn.Conv1d(width, outputs, 1, bias=False),
            )

        def forward(self, x):
            skips = []
            for layer, pad in zip(self.encoder, self.pads, strict=True):
                skips.append(x)
                x = torch.relu(layer(torch.nn.functional.pad(x, pad)))
            for layer, pad in zip(self.decoder, reversed(self.pads), strict=True):
                skip = skips.pop()
                x = torch.relu(layer(x)[:, :, pad[0] : pad[0] + skip.shape[2]])
                x = torch.cat([x, skip], dim=1)
            return self.head(x)

    model = Net(num_inputs(2, options.stacked), 18)
    counts = sum(p.numel() for p in model.parameters()), _size(network.unet)
    if counts[0] != counts[1]:
        raise AssertionError(f"the networks have {counts} parameters")
    x = torch.from_numpy(np.array(jax.vmap(_inputs)(frames)).swapaxes(1, 2).copy())

    def run(at_once):
        model.zero_grad()
        for part in x.split(at_once):
            (model(part) ** 2).sum().backward()
        return 0

    # Whatever suits PyTorch better.
    there = min(measure(lambda n=n: run(n)).minimum for n in (_AT_ONCE, count))
    return {"jaxsep": here, "torch": there, "batch": count, "torch version": torch.__version__}


def _size(network):
    return sum(x.size for x in jax.tree.leaves(eqx.filter(network, eqx.is_array)))


def torch_table(row) -> str:
    """Markdown of `beside_torch`."""
    cells = [[name, f"{1e3 * row[name] / row['batch']:.2f}"] for name in ("jaxsep", "torch")]
    return f"{markdown_table(['', 'ms per frame'], cells)}\n\nratio {row['torch'] / row['jaxsep']:.2f}"


# ---- P2's sizes --------------------------------------------------------------------------------------------


def paper_step(batch: int) -> dict[str, float]:
    """Seconds and memory of steps with P2's sizes, in a process that does nothing else."""
    trainer = Trainer(dataclasses.replace(NeuralSettings.paper(), batch=batch), 2)
    samples = 0.01 * jax.random.normal(jax.random.key(0), (96_000,))
    state = trainer.start(key=jax.random.key(1))
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        state, report = train_step((trainer, samples, None), state)
        loss = float(report.loss)
        seconds.append(time.perf_counter() - begin)
    return {
        "batch": batch,
        "first_seconds": seconds[0],
        "seconds": min(seconds[1:]),
        "peak_gib": peak_memory() / 2**30,
        "loss": loss,
        "parameters": _size(state.network),
    }


# ---- A task whose answers are known ------------------------------------------------------------------------


def tasks(seed: int, num_steps: int | None) -> list[dict[str, Any]]:
    """A random network, with the true dictionary and with none."""
    runs = []
    task = reference_task()
    for name, start in (("true", task.instruments), ("none", None)):
        state = task.start(start, key=jax.random.key(seed))
        steps = num_steps or {"true": 300, "none": 600}[name]
        runs.append({"dictionary": name, "seed": seed, "curve": solve(task, state, steps)})
    return runs


def tasks_table(runs) -> str:
    """Markdown of `tasks`: when 95 (90) % are right, and at the end."""
    rows = []
    for run in runs:
        wanted, last = 0.95 if run["dictionary"] == "true" else 0.9, run["curve"][-1]
        reached = next((point for point in run["curve"] if point["right"] >= wanted), None)
        when = f"{reached['seconds']:.0f} s, {reached['steps']} steps" if reached else "never"
        cells = [run["dictionary"], str(run["seed"]), f"{100 * wanted:.0f} %: {when}"]
        rows.append(
            cells
            + [f"{last[k]:.3f}" for k in ("right", "bins")]
            + [f"{last['seconds']:.0f} s, {last['steps']}"]
        )
    header = ["dictionary", "seed", "reached after", "instrument and bin", "bin", "at the end of"]
    return markdown_table(header, rows)


# ---- Pieces ------------------------------------------------------------------------------------------------


def learn_piece(
    name: str,
    seconds: float,
    minutes: float,
    seed: int,
    start: str,
    settings: NeuralSettings | None = None,
    checkpoint: Path | None = None,
) -> dict[str, Any]:
    """A training run: SDR in its course and at its end, beside that of a pursuit to imitate."""
    piece = load_piece(name, seconds)
    if settings is None:
        settings = STARTS[start]
    trainer = Trainer(settings, len(piece.instruments))
    rate, key = settings.rate, jax.random.key(seed)
    pursued = guide = None
    if settings.imitation:
        pursued = separate(piece.mixture, piece.sample_rate, len(piece.instruments), key=key)
        spacing = float(pursued.times[1]) * rate
        guide = Guide.of(pursued.tones, spacing, trainer.num_instruments, trainer.axis, trainer.bounds)
    samples = resample(piece.mixture[None].astype(np.float32), piece.sample_rate, rate)
    samples = samples / spectral_peak(samples[0], trainer)
    curve, every = [], min(240.0, 20 * minutes)

    def figures(state):
        stems = predict_stems(trainer, state, samples)
        figures = {}
        for kind in ("direct", "modelled"):
            back = resample(getattr(stems, kind)[:, 0], rate, piece.sample_rate)[:, : piece.mixture.size]
            back = np.pad(back, [(0, 0), (0, piece.mixture.size - back.shape[1])])
            figures[kind] = scores(piece.stems, back)
        return figures | {"loss": float(stems.loss.mean())}

    def watch(state, elapsed):
        if elapsed >= every * (len(curve) + 1):
            found = figures(state)
            means = {k: round(float(np.mean(found["direct"][k])), 2) for k in ("sdr", "sir", "sar")}
            spent = {"step": int(state.step), "cpu_seconds": round(time.process_time() - begin)}
            curve.append({"minutes": elapsed / 60, **spent, **means, "loss": found["loss"]})
            print(curve[-1], flush=True)

    state = trainer.start(pursued and pursued.dictionary.harmonics, key=key)
    if checkpoint is not None and checkpoint.exists():
        state = load_checkpoint(checkpoint, trainer, name)
    options = {"guide": guide, "minutes": minutes, "checkpoint": checkpoint, "source": name}
    begin = time.process_time()
    state = train(trainer, state, jnp.asarray(samples[0]), watch=watch, **options)
    final = {"piece": name, "start": start, "seed": seed, "steps": int(state.step), **figures(state)}
    final["cpu_seconds"] = time.process_time() - begin
    if pursued is not None:
        final["pursuit"] = scores(piece.stems, pursued.stems)
    return {"final": final, "curve": curve}


def pieces_table(runs) -> str:
    """Markdown: each run, and mean and spread over the seeds of each piece."""
    header = ["piece", "start", "seed", "steps", "direct SDR", "SIR", "SAR", "dictionary SDR", "SIR"]
    header += ["pursuit SDR", "SIR"]
    columns = [("direct", "sdr"), ("direct", "sir"), ("direct", "sar")]
    columns += [(kind, figure) for kind in ("modelled", "pursuit") for figure in ("sdr", "sir")]
    rows = []
    for run in runs:
        final = run["final"]
        cells = [str(final[k]) for k in ("piece", "start", "seed", "steps")]
        rows.append(cells + [decibels(final[a][b]) if a in final else "" for a, b in columns])
    for kind in dict.fromkeys((run["final"]["piece"], run["final"]["start"]) for run in runs):
        mine = [run["final"] for run in runs if (run["final"]["piece"], run["final"]["start"]) == kind]
        cells = [f"**{kind[0]}**", kind[1], "", ""]
        for a, b in columns:
            means = np.array([np.mean(final[a][b]) for final in mine if a in final])
            cells.append(f"{means.mean():.2f} ± {means.std():.2f}" if means.size else "")
        rows.append(cells)
    return markdown_table(header, rows)


def draw(runs) -> None:
    """Learning curves: SDR and loss over minutes."""
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2)
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
    names = list(dict.fromkeys(run["final"]["piece"] for run in runs))
    for run in runs:
        name, seed = run["final"]["piece"], run["final"]["seed"]
        time_ = [point["minutes"] for point in run["curve"]]
        start = run["final"]["start"]
        label = name.split("_", 2)[-1].replace("_", ", ") + f" ({start})"
        label = label if seed == runs[0]["final"]["seed"] else None
        for axis, key in zip(axes, ("sdr", "loss"), strict=True):
            values = [point[key] for point in run["curve"]]
            line = ".-" if start == "blind" else ".--"
            axis.plot(time_, values, line, color=colours[names.index(name) % 4], label=label, alpha=0.8)
    for axis, label in zip(
        axes, ("mean SDR of the direct prediction in dB", "mean loss of a frame"), strict=True
    ):
        axis.set_xlabel("minutes of training")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    axes[1].set_yscale("log")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE)


if __name__ == "__main__":
    answer(paper_step)

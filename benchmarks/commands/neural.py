"""The U-Net and its training (P2): blocks, variance of the gradient, steps beside PyTorch, memory, pieces."""

import dataclasses
import json
import time
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import typer
from matplotlib.figure import Figure

from benchmarks.common import (
    PICTURES,
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
from jaxsep.audio import resample
from jaxsep.neural.imitation import Guide
from jaxsep.neural.loop import train
from jaxsep.neural.losses import PredictionLoss
from jaxsep.neural.network import PartialPrediction, ToneNetwork
from jaxsep.neural.settings import NeuralSettings
from jaxsep.neural.training import Trainer, train_step
from jaxsep.separation.neural import predict_stems, spectral_peak
from jaxsep.separation.separate import separate

PIECES = "k487_08_recorder_violin,k487_11_flute_clarinet"
PICTURE = PICTURES / "neural_learning.png"
PARTS = ("blocks", "variance", "torch", "paper", "pieces")


def main(
    quick: bool = False,
    parts: Annotated[str, typer.Option(help="Of blocks, variance, torch, paper, pieces.")] = "",
    pieces: SomePieces = PIECES,
    seeds: Annotated[str, typer.Option(help="Numbers, separated by commas.")] = "0,1,2",
    minutes: Annotated[float, typer.Option(help="Training of each run.", min=0.01)] = 40.0,
    seconds: Annotated[float, typer.Option(help="Use the start of each piece alone.", min=0.3)] = 20.0,
) -> None:
    """Speed, memory and variance of the training, and what it separates."""
    chosen = split_list(parts) or list(PARTS)
    report = Report("neural", quick=quick)
    if "blocks" in chosen:
        found = blocks(4 if quick else 48)
        report.part("blocks", found, "One evaluation, and with its derivative", blocks_table(found))
    if "variance" in chosen:
        found = variance(4 if quick else 200)
        report.part("variance", found, "Variance of the gradient by the features", variance_table(found))
    if "torch" in chosen:
        found = beside_torch(4 if quick else 48)
        report.part("torch", found, "Forward and backward of the network", torch_table(found))
    if "paper" in chosen:
        found = call_worker("benchmarks.commands.neural", {"batch": 1 if quick else 12}, {})
        report.part("paper", found, "One step with P2's sizes", str(found))
    if "pieces" in chosen:
        for name in split_list(pieces)[: 1 if quick else None]:
            for seed in [int(s) for s in split_list(seeds)][: 1 if quick else None]:
                run = learn_piece(name, 3.0 if quick else seconds, 0.1 if quick else minutes, seed)
                report.add(run, json.dumps(run["final"]))
        if not quick:
            draw(report.document["runs"])
        print(f"\nFirst {seconds:g} s, gain-only dB\n\n{pieces_table(report.document['runs'])}")
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
    """The derivative of their mean square."""
    square = lambda n: jnp.mean(jax.vmap(lambda z: n.unet(_inputs(z)))(frames) ** 2)
    return eqx.filter_grad(square)(network)


def _inputs(frame):
    """As many channels as the network of two instruments takes."""
    return jnp.tile(jnp.stack([frame.real, frame.imag, jnp.abs(frame)], axis=1), (1, 5))


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

    model = Net(15, 18)
    counts = sum(p.numel() for p in model.parameters()), _size(network.unet)
    if counts[0] != counts[1]:
        raise AssertionError(f"the networks have {counts} parameters")
    x = torch.from_numpy(np.array(jax.vmap(_inputs)(frames)).swapaxes(1, 2).copy())

    def run():
        model.zero_grad()
        (model(x) ** 2).mean().backward()
        return 0

    there = measure(run).minimum
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


# ---- Pieces ------------------------------------------------------------------------------------------------


def learn_piece(name: str, seconds: float, minutes: float, seed: int) -> dict[str, Any]:
    """A training run: SDR in its course, and at its end beside the pursuit's."""
    piece = load_piece(name, seconds)
    trainer = Trainer(NeuralSettings.small(), len(piece.instruments))
    rate = trainer.settings.rate
    pursued = separate(piece.mixture, piece.sample_rate, len(piece.instruments), key=jax.random.key(seed))
    spacing = float(pursued.times[1]) * rate
    guide = Guide.of(pursued.tones, spacing, trainer.num_instruments, trainer.axis)
    samples = resample(piece.mixture[None].astype(np.float32), piece.sample_rate, rate)
    samples = samples / spectral_peak(samples[0], trainer)
    curve, every = [], min(30.0, 20 * minutes)

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
            mean = float(np.mean(found["direct"]["sdr"]))
            curve.append(
                {"minutes": elapsed / 60, "step": int(state.step), "sdr": mean, "loss": found["loss"]}
            )

    state = trainer.start(pursued.dictionary.harmonics, key=jax.random.key(seed))
    state = train(trainer, state, jnp.asarray(samples[0]), guide=guide, minutes=minutes, watch=watch)
    final = {"piece": name, "seed": seed, "steps": int(state.step), **figures(state)}
    final["pursuit"] = scores(piece.stems, pursued.stems)
    return {"final": final, "curve": curve}


def pieces_table(runs) -> str:
    """Markdown: each run, and mean and spread over the seeds of each piece."""
    header = [
        "piece",
        "seed",
        "steps",
        "direct SDR",
        "SIR",
        "SAR",
        "dictionary SDR",
        "SIR",
        "pursuit SDR",
        "SIR",
    ]
    rows = []
    for run in runs:
        final = run["final"]
        cells = [final["piece"], str(final["seed"]), str(final["steps"])]
        cells += [decibels(final["direct"][k]) for k in ("sdr", "sir", "sar")]
        cells += [decibels(final[kind][k]) for kind in ("modelled", "pursuit") for k in ("sdr", "sir")]
        rows.append(cells)
    for name in dict.fromkeys(run["final"]["piece"] for run in runs):
        mine = [run["final"] for run in runs if run["final"]["piece"] == name]
        spread = lambda kind, k, mine=mine: np.array([np.mean(final[kind][k]) for final in mine])
        cell = lambda x: f"{x.mean():.2f} ± {x.std():.2f}"
        cells = [f"**{name}**", "", ""] + [cell(spread("direct", k)) for k in ("sdr", "sir", "sar")]
        cells += [cell(spread(kind, k)) for kind in ("modelled", "pursuit") for k in ("sdr", "sir")]
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
        label = name.split("_", 2)[-1].replace("_", ", ") if seed == runs[0]["final"]["seed"] else None
        for axis, key in zip(axes, ("sdr", "loss"), strict=True):
            values = [point[key] for point in run["curve"]]
            axis.plot(time_, values, ".-", color=colours[names.index(name) % 4], label=label, alpha=0.8)
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

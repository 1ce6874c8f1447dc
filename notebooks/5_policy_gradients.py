# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How does a network learn to choose, when choices have no derivative?
#
# A network that separates has to decide in which bin the next tone is, and of which instrument. It draws a
# sample, sees the loss, and makes what went better than usual more probable: a policy gradient. First on a
# problem so small that all choices can be tried; then a network that knows nothing and learns to separate.

# %%
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.animation import FuncAnimation
from matplotlib.colors import to_rgb

import jaxsep
from jaxsep.neural.network import PartialPrediction, render_tone
from jaxsep.separation.neural import predict_stems

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})


def title(axes, text):
    axes.set_title(text, loc="left", fontsize=10, fontweight="bold")


# %% [markdown]
# ## The estimator, against exact enumeration
#
# A tone lies in bin 9 of 24. The policy is a table: one logit for each bin. So the expected loss is
# `Σ_k softmax(logits)_k · loss_k`, and its gradient is known.

# %%
BINS = 24
bins = jnp.arange(BINS)
gaussian = lambda centre: jnp.exp(-0.5 * ((bins - centre) / 1.91) ** 2)
frame = (gaussian(9) + 0.5 * gaussian(18)).astype(jnp.complex64)
harmonics = jnp.array([[1.0, 0.5]])


class Table(jaxsep.PolicyNetwork):
    """The same distribution whatever the frame; a present tone of amplitude 1, the frame as direct part."""

    logits: jax.Array
    num_instruments: int = eqx.field(static=True, default=1)

    def __call__(self, frame, predicted):
        features = jnp.zeros((BINS, 1, 9)).at[:, 0, 0].set(self.logits).at[:, 0, 6].set(frame.real)
        features = features.at[:, 0, 1].set(1.0).at[:, 0, 5].set(30.0).at[:, 0, 8].set(100.0)
        return jaxsep.Policy(features, predicted.playing)


def estimator(baseline):
    options = {"branches": (3,), "coolest": 1.0, "score_weight": 1.0, "baseline": baseline}
    return jaxsep.Estimator(jaxsep.PredictionLoss(), jaxsep.LinearAxis(BINS, 100.0), **options)


@jax.jit
@jax.vmap
def loss_of(choice):
    certain = Table(1e3 * jax.nn.one_hot(choice, BINS))
    rollout = estimator("mean").rollout(certain, harmonics, frame, key=jax.random.key(0))
    return rollout.loss[0]


losses = loss_of(bins)
logits = jax.random.normal(jax.random.key(2), (BINS,))
exact = jax.grad(lambda logits: jax.nn.softmax(logits) @ losses)(logits)

# %% [markdown]
# 8000 estimates, each from three samples. A sample is judged by how its loss compares with a baseline.
# The mean of *all three*, as published, has the sample itself in it, and shrinks the gradient by a third.
# The mean of the *other two* does not.

# %%
keys = jax.random.split(jax.random.key(3), 8000)
estimates = {}
for baseline in ("leave-one-out", "mean"):
    surrogate = estimator(baseline)
    slope = jax.grad(lambda table, key, f=surrogate: f(table, harmonics, frame, key=key)[0])
    slopes = jax.jit(jax.vmap(slope, in_axes=(None, 0)))(Table(logits), keys)
    estimates[baseline] = np.asarray(slopes.logits)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained", width_ratios=(1.6, 1))
left.bar(bins, exact, color="0.8", width=0.9, label="exact")
size = {}
for shift, (name, colour) in zip([-0.2, 0.2], zip(estimates, [BLUE, ORANGE], strict=True), strict=True):
    mean, deviation = estimates[name].mean(axis=0), estimates[name].std(axis=0) / np.sqrt(keys.size)
    left.errorbar(bins + shift, mean, 2 * deviation, fmt=".", color=colour, markersize=5, label=name)
    size[name] = mean @ exact / (exact @ exact)
    counts = 2 ** np.arange(1, 13)
    # Several means of each length, as many as there are estimates.
    parts = [estimates[name][: keys.size // n * n].reshape(-1, n, BINS).mean(axis=1) for n in counts]
    error = [np.sqrt(np.mean(np.sum((part - np.asarray(exact)) ** 2, axis=1))) for part in parts]
    right.loglog(
        counts, np.array(error) / np.linalg.norm(exact), "o-", color=colour, markersize=3, label=name
    )
right.loglog(counts, error[0] / np.linalg.norm(exact) * np.sqrt(counts[0] / counts), ":", color="0.4")
left.axhline(0, color="0.7", linewidth=0.8)
left.set(xlabel="bin", ylabel="gradient by the logit")
left.legend(fontsize=8)
right.set(xlabel="number of estimates", ylabel="relative error of their mean")
right.legend(fontsize=8)
title(left, "mean of 8000 estimates, ± 2 standard errors")
plt.show()
print({name: f"{float(x):.2f} of the exact gradient" for name, x in size.items()})
assert abs(size["leave-one-out"] - 1) < 0.05
assert abs(size["mean"] - 2 / 3) < 0.05

# %% [markdown]
# ## From nothing
#
# Two synthetic instruments play for eight seconds. The network hears nothing but the mixture. A small U-Net
# is enough for 384 bins. At first all its choices are equally likely; the harmonics are given for now.

# %%
RATE = 6000
number = np.arange(1, 11)
rows = np.stack([0.6 ** (number - 1), np.where(number % 2, 1.0, 0.1) * 0.8 ** (number - 1)])
random = np.random.default_rng(0)


def play(row, pitches, length=RATE // 2, num_notes=16):
    seconds = np.arange(length) / RATE
    fade = np.minimum(1, np.minimum(seconds, seconds[::-1]) / 0.01)
    notes, chosen = [], random.choice(pitches, num_notes)
    for hertz in chosen:
        phases = random.uniform(0, 2 * np.pi, row.size)
        parts = zip(number, row, phases, strict=True)
        notes.append(fade * sum(a * np.cos(2 * np.pi * h * hertz * seconds + p) for h, a, p in parts))
    return np.concatenate(notes), chosen


low, low_notes = play(rows[0], [220, 247, 262, 294, 330, 392])
high, high_notes = play(rows[1] * (number < 6), [294, 330, 392, 440, 494, 523])
score = np.stack([low_notes, high_notes], axis=1)
truth = np.stack([low, 0.7 * high]).astype(np.float32)
settings = jaxsep.NeuralSettings(
    rate=RATE,
    window_std=64,
    hop=32,
    strides=(4, 4, 4, 3),
    widths=(16, 24, 32, 40),
    batch=8,
    accumulate=2,
    steps=600,
    hold=150,
    network_rate=6e-3,
)
trainer = jaxsep.Trainer(settings, num_instruments=2)
stft = trainer.stft
peak = float(jnp.max(jnp.abs(stft.analyse(jnp.asarray(truth.sum(axis=0))))))
truth, samples = truth / peak, jnp.asarray(truth.sum(axis=0) / peak)

# %%
hertz_of = np.arange(384) * trainer.axis.resolution
middle = jax.vmap(lambda note: trainer.frame(samples, (2 * note + 1) * RATE // 4))(jnp.arange(16))


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, None, 0))
def chances(network, harmonics, frame):
    """Probability of bins and instruments in two tones of a frame, the second after the likeliest first."""
    predicted, total = PartialPrediction.nothing(frame, 2), 0
    for _ in range(2):
        policy = network(frame, predicted)
        total = total + jax.nn.softmax(policy.logits()).reshape(-1, 2)
        choice = policy.mode()
        tone = render_tone(choice, policy.parameters(choice), harmonics, trainer.axis)
        predicted = predicted.add(choice, *tone)
    return total


step = jax.jit(trainer.step, donate_argnums=0)


def train(state, num_steps, looks=()):
    """The state after some steps, the loss of each, and the policy at some of them."""
    losses, seen, first = [], {}, int(state.step)
    for count in range(first, first + num_steps + 1):
        if count in looks:
            seen[count] = np.asarray(chances(state.network, state.harmonics, middle))
        if count < first + num_steps:
            state, report = step(state, samples, None)
            losses.append(report.loss)
    return state, np.array(losses), seen


def picture(axes, probability, title_):
    """Bins over notes: blue or orange where the first or second instrument is likely; the score as lines."""
    shown = hertz_of < 620
    strength = np.minimum(1, probability[:, shown].swapaxes(0, 1)) ** 0.5  # [bins, notes, instruments]
    ink = 1 - np.array([to_rgb(BLUE), to_rgb(ORANGE)])
    image = np.clip(1 - strength @ ink, 0, 1)
    place = hertz_of[shown]
    axes.imshow(
        image, origin="lower", aspect="auto", extent=(0, 16, place[0], place[-1]), interpolation="none"
    )
    for notes, colour in ((low_notes, BLUE), (high_notes, ORANGE)):
        axes.hlines(notes - 22, np.arange(16) + 0.1, np.arange(16) + 0.9, color=colour, linewidth=1)
    axes.set_title(title_, fontsize=9, loc="left")


def strip(seen, counts):
    _, plots = plt.subplots(1, len(counts), figsize=(12, 2.9), sharey=True, layout="constrained")
    for axes, count in zip(plots, counts, strict=True):
        picture(axes, seen[count], f"{count} steps")
        axes.set_xlabel("note")
    plots[0].set_ylabel("fundamental (Hz)")
    plt.show()


COUNTS = (0, 50, 100, 200, 300, 600)
LOOKS = sorted({*range(0, 100, 10), *range(100, 601, 25)})
begin = trainer.start(jnp.asarray(rows, jnp.float32), key=jax.random.key(0))
state, losses, seen = train(begin, 600, LOOKS)
strip(seen, COUNTS)

# %% [markdown]
# Each picture is the policy in the middle of the sixteen notes, after so many steps: white where nothing is
# likely, blue and orange where the network expects a tone of the first or the second instrument; thin lines,
# a little below, are what is played. A network without preferences tries everything. What goes well becomes
# likely, first for the bins, then for who plays in them. The same as a film:

# %%
figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")


def draw(count):
    axes.clear()
    picture(axes, seen[count], f"{count} steps")
    axes.set(xlabel="note", ylabel="fundamental (Hz)")


film = FuncAnimation(figure, draw, LOOKS, interval=250).to_jshtml()
plt.close(figure)
HTML(film)


# %%
def judged(state):
    """Stems, fundamentals, and the parts of all tones whose pitch, and whose instrument too, are right.

    Three of the sixteen notes are unisons, which are one tone: nobody is asked who plays it.
    """
    found = predict_stems(trainer, state, np.asarray(samples)[None])
    hertz = np.where(found.tones.active, found.tones.fundamental, np.nan) * trainer.axis.resolution
    played = score[np.minimum(np.arange(len(hertz)) * settings.hop * 2 // RATE, 15)]
    near = lambda a, b: np.abs(a / b - 1) < 0.03
    pitch = np.mean(near(hertz[:, :, None], played[:, None]).any(axis=1))
    apart = played[:, 0] != played[:, 1]
    right = max(np.mean(near(hertz, order)[apart]) for order in (played, played[:, ::-1]))
    return found, hertz, {"pitch": round(float(pitch), 2), "pitch and instrument": round(float(right), 2)}


found, hertz, told = judged(state)
print(told)
assert told["pitch and instrument"] > 0.9

# %% [markdown]
# Two things make this possible, and neither does alone. The policy must begin *without preferences*: random
# weights at the published scale of the logits give one choice all the probability before the first step, and
# what is never tried is never learned. And each bin must *see its harmonics*: the network's inputs contain
# the spectrum at ⅓, ½, 1, 2, 3 … times the bin's frequency. On a linear axis the partials of a pitch lie too
# far apart for a convolution.
#
# ## And without the harmonics
#
# Now the dictionary is unknown, too: it begins as `0.5^(h-1)` and `0.25^(h-1)`, which is neither instrument.
# To find pitches that is enough. Who plays is told only by which of two wrong rows fits better.

# %%
frames = jax.vmap(lambda n: trainer.frame(samples, n))(jnp.arange(0, samples.size, samples.size // 300))
state, seen = trainer.start(key=jax.random.key(1)), {}
for _ in range(2):
    state, _, before = train(state, settings.hold, (0, 75, 150, 300))
    told_before = judged(state)[2]
    seen |= before
    state = jax.jit(trainer.with_dictionary)(state, frames, key=jax.random.key(2))
rows_found = np.asarray(state.harmonics)[:, :10]
state, _, after = train(state, settings.steps - 300, (375, 450, 600))
told_after = judged(state)[2]
strip(seen | after, (0, 75, 150, 300, 450, 600))
print("before", told_before, "after", told_after)

# %% [markdown]
# After 75 steps the tones are there, some in the colours of both. Their *harmonics* are heard in the direct
# prediction, whoever is thought to play. In each frame both instruments play one tone: to sort them into two
# clusters, so that those of a cluster are alike, is a small problem, and its centres are the dictionary. From
# there on the policy has right rows to tell the instruments by. After 300 steps it is done once more, with
# pitches that are nearly all right.

# %%
swapped = np.abs(rows_found[::-1] - rows).sum() < np.abs(rows_found - rows).sum()
figure, plots = plt.subplots(1, 2, figsize=(9, 2.4), sharey=True, layout="constrained")
for row, (axes, colour) in enumerate(zip(plots, (BLUE, ORANGE), strict=True)):
    mine = rows_found[1 - row if swapped else row]
    audible = number < 6 if row else number < 11
    axes.bar(number, rows[row] / rows[row].max() * audible, color="0.8", width=0.9, label="true")
    axes.plot(number, mine, "o", color=colour, markersize=4, label="found")
    axes.set(xlabel="harmonic")
    axes.legend(fontsize=8)
plt.show()
assert told_after["pitch and instrument"] > 0.9

# %% [markdown]
# ## Own phase or the mixture's
#
# A mask leaves every partial the phase of the mixture. Where partials of two instruments coincide, that is
# the phase of neither. The network predicts complex spectra, with phases of their own. Stems of both kinds
# from the same network, and the bound for a mask:

# %%
mixture = stft.analyse(samples)


def masked(magnitudes):
    masks = jaxsep.ratio_masks(magnitudes, jnp.abs(mixture))
    return jax.vmap(lambda mask: stft.synthesise(mask * mixture, samples.size))(masks)


spectra = jax.vmap(lambda x: jnp.abs(stft.analyse(x)))
stems = {
    "network, own phase": found.direct[:, 0],
    "network, mixture's phase": masked(spectra(jnp.asarray(found.direct[:, 0]))),
    "true magnitudes, mixture's phase": masked(spectra(jnp.asarray(truth))),
}
scores = {name: jaxsep.sdr_sir_sar_gain(jnp.asarray(truth), jnp.asarray(x)) for name, x in stems.items()}
for name, score in scores.items():
    parts = ((part.upper(), float(np.mean(getattr(score, part)))) for part in ("sdr", "sir", "sar"))
    figures = "   ".join(f"{part} {value:5.1f}" for part, value in parts)
    print(f"{name:33s} {figures} dB")

# %% [markdown]
# **Answer.** By trying: the score of what was sampled, weighted by how much better it was than the other
# samples, is an unbiased gradient. It is noisy; but from a policy that prefers nothing, with inputs that show
# the harmonics, it finds pitches within hundreds of steps, and instruments as soon as a dictionary tells them
# apart. The network's own phases let less of the other instrument through (SIR), while a mask keeps more of
# the recording (SAR).

# %%
print({name: round(float(np.mean(score.sir)), 1) for name, score in scores.items()})
assert np.mean(scores["network, own phase"].sdr) > 5

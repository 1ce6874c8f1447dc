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
# problem so small that all choices can be tried, then in a small training, and then what it is good for.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxsep
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
    """The same distribution whatever the frame; amplitude 1, no inharmonicity, the frame as direct part."""

    logits: jax.Array
    num_instruments: int = eqx.field(static=True, default=1)

    def __call__(self, frame, predicted):
        features = jnp.zeros((BINS, 1, 9)).at[:, 0, 0].set(self.logits).at[:, 0, 6].set(frame.real)
        features = features.at[:, 0, 1].set(1.0).at[:, 0, 5].set(30.0)
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
# ## A small training
#
# Two synthetic instruments play for eight seconds. The network sees nothing but the mixture; the harmonics
# are given, so that little has to be learned. A small U-Net is enough for 384 bins. It begins at random and
# follows the policy gradient for 1200 steps.

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


low, low_notes = play(rows[0], [220, 247, 262, 294])
high, high_notes = play(rows[1] * (number < 6), [440, 494, 523, 588])
truth = np.stack([low, 0.7 * high]).astype(np.float32)
settings = jaxsep.NeuralSettings(
    rate=RATE,
    window_std=64,
    hop=32,
    strides=(4, 4, 4, 3),
    widths=(16, 24, 32, 40),
    branches=2,
    batch=8,
    steps=1200,
)
trainer = jaxsep.Trainer(settings, num_instruments=2)
stft = trainer.stft
peak = float(jnp.max(jnp.abs(stft.analyse(jnp.asarray(truth.sum(axis=0))))))
truth, samples = truth / peak, jnp.asarray(truth.sum(axis=0) / peak)

# %%
step = jax.jit(trainer.step, donate_argnums=0)


def train(state, num_steps, guide=None):
    """The state after some steps, and the loss of each."""
    losses = []
    for _ in range(num_steps):
        state, report = step(state, samples, guide)
        losses.append(report.loss)
    return state, np.array(losses)


def pitches(state):
    """Stems, and the fundamental of each instrument in every frame, NaN where it is silent."""
    found = predict_stems(trainer, state, np.asarray(samples)[None])
    hertz = np.where(found.tones.active, found.tones.fundamental, np.nan) * trainer.axis.resolution
    return found, hertz


begin = lambda: trainer.start(jnp.asarray(rows, jnp.float32), key=jax.random.key(0))
state, alone = train(begin(), settings.steps)
found, hertz = pitches(state)
times = np.arange(len(hertz)) * settings.hop / RATE
score = np.stack([low_notes, high_notes], axis=1)[np.minimum(times * 2, 15).astype(int)]
near = lambda a, b: np.abs(a / b - 1) < 0.03
pitch = np.mean(near(hertz[:, :, None], score[:, None]).any(axis=1))
print(f"notes that someone plays in their frames: {100 * pitch:.0f} %")
print(f"that the right instrument plays: {100 * np.mean(near(hertz, score)):.0f} %")
assert pitch > 0.5

# %% [markdown]
# Pitches come first; who plays them takes far longer (P2 trains for 70 000 steps). On a CPU it is better to
# begin with what a pursuit found: the network *imitates* its choices for some hundred steps, and then goes
# on by itself. Here the score stands for the pursuit.

# %%
ones = np.ones_like(score, np.float32)
fields = jnp.asarray(ones * [1.0, 0.7], jnp.float32), jnp.asarray(score, jnp.float32)
played = jaxsep.Tones.plain(*fields, jnp.asarray(ones * [0, 1], jnp.int32))
guide = jaxsep.Guide.of(played, settings.hop, num_instruments=2, axis=trainer.axis)
state, imitating = train(begin(), 900, guide)
state, exploring = train(state, 300)
found, guided = pitches(state)
right = np.mean(near(guided, score))

figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained", width_ratios=(1, 1.3, 1.3))
smooth = lambda x: x.reshape(-1, 20).mean(axis=1)
axes[0].plot(10 + 20 * np.arange(60), smooth(alone), color=GREEN, label="policy gradient")
axes[0].plot(10 + 20 * np.arange(45), smooth(imitating), color=PINK, label="imitation")
axes[0].plot(910 + 20 * np.arange(15), smooth(exploring), color=PINK, linestyle=":", label="and beyond")
axes[0].set(xlabel="step", ylabel="loss", ylim=(0, None))
axes[0].legend(fontsize=8)
for plot, what, name in ((axes[1], hertz, "policy gradient alone"), (axes[2], guided, "after imitation")):
    for row, (notes, colour) in enumerate(zip([low_notes, high_notes], [BLUE, ORANGE], strict=True)):
        plot.step(np.arange(17) / 2, [*notes, notes[-1]], where="post", color="0.8", linewidth=5)
        plot.plot(times, what[:, row], ".", color=colour, markersize=2)
    plot.set(xlabel="time (s)", ylim=(150, 700))
    title(plot, name)
axes[1].set_ylabel("fundamental (Hz)")
plt.show()
print(f"notes that the right instrument plays: {100 * right:.0f} %")
assert right > 0.8

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
# samples, is an unbiased gradient. It is noisy, and finds pitches long before instruments; a network that
# begins by imitating finds both in the same time. Its own phases let less of the other instrument through
# (SIR), while a mask keeps more of the recording (SAR): after so short a training the mask has the higher
# SDR.

# %%
print({name: round(float(np.mean(score.sir)), 1) for name, score in scores.items()})
assert np.mean(scores["network, own phase"].sdr) > 5

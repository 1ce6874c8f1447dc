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
# # What does a tone look like, and why on a logarithmic axis?
#
# A tone is described by four numbers and one row of harmonics. This is all that the package knows of music.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxsep

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})


def title(axes, text):
    axes.set_title(text, loc="left", fontsize=10, fontweight="bold")


# %% [markdown]
# ## A partial is a Gaussian
#
# The window of the transform is a Gaussian, and so is what it makes of a sinusoid: 6/π bins wide at *every*
# frequency. Two sinusoids of amplitude 1, three octaves apart:

# %%
RATE = 48_000
stft = jaxsep.GaussianSTFT()
linear = jaxsep.LinearAxis(stft.n_fft // 2, RATE / stft.n_fft)
seconds = jnp.arange(RATE) / RATE


def spectrum(samples):
    """Magnitudes of the frame in the middle."""
    middle = stft.num_frames(samples.size) // 2
    return jnp.abs(stft.analyse(samples, first_frame=middle, num_frames=1))[0, :-1]


figure, axes = plt.subplots(1, 2, figsize=(9, 2.4), sharey=True, layout="constrained")
offset = np.linspace(-8, 8, 200)
for panel, hertz in zip(axes, [330.0, 3000.0], strict=True):
    magnitude, centre = np.asarray(spectrum(jnp.cos(2 * np.pi * hertz * seconds))), hertz / linear.resolution
    near = np.arange(round(centre) - 8, round(centre) + 9)
    gaussian = lambda distance: 0.5 * np.exp(-0.5 * (distance / stft.sinusoid_std) ** 2)
    panel.plot(offset, gaussian(offset), color=BLUE, label=f"Gaussian, σ = {stft.sinusoid_std:.3f} bins")
    panel.plot(near - centre, magnitude[near], "o", color=ORANGE, markersize=4, label="transform")
    panel.set_xlabel(f"bins from {hertz:.0f} Hz")
    assert np.abs(magnitude[near] - gaussian(near - centre)).max() < 1e-4
axes[0].set_ylabel("magnitude")
axes[0].set_ylim(-0.02, 0.7)
axes[1].legend(loc="upper right", fontsize=8)
plt.show()

# %% [markdown]
# ## Another pitch is a shift
#
# One instrument plays two pitches. On the linear axis the distance between partials changes, on the
# logarithmic one nothing but the position does. So one pattern per instrument is enough, and *correlation*
# finds it at any pitch.

# %%
harmonics = jnp.asarray([[1, 0.3, 0.7, 0.15, 0.5, 0.1, 0.3, 0.06, 0.2, 0.05]], jnp.float32)
logarithmic = jaxsep.LogAxis()
low, high = 400.0, 460.0  # in bins of the logarithmic axis, 8.5 of which are a semitone


def tone(position, amplitude=1.0, inharmonicity=0.0):
    """A single tone as a row of slots."""
    amplitude, position, inharmonicity = jnp.asarray([[amplitude], [position], [inharmonicity]], jnp.float32)
    return jaxsep.Tones.plain(amplitude, position, jnp.array([0]), inharmonicity=inharmonicity)


def on(axis, position, **more):
    position = position if axis is logarithmic else axis.to_bin(logarithmic.to_hz(position))
    return np.asarray(jaxsep.render(tone(position, **more), harmonics, axis))


def best_cosine(a, b):
    """Largest cosine over all shifts."""
    correlation = np.fft.irfft(np.fft.rfft(a, 2 * a.size).conj() * np.fft.rfft(b, 2 * b.size))
    return correlation.max() / (np.linalg.norm(a) * np.linalg.norm(b))


figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True, layout="constrained")
likeness = {}
for panel, axis, name in zip(axes, [linear, logarithmic], ["linear", "logarithmic"], strict=True):
    first, second = on(axis, low), on(axis, high)
    panel.plot(first, color=BLUE, linewidth=1.2, label=f"{logarithmic.to_hz(low):.0f} Hz")
    panel.plot(-second, color=ORANGE, linewidth=1.2, label=f"{logarithmic.to_hz(high):.0f} Hz (downwards)")
    likeness[name] = best_cosine(first, second)
    panel.axhline(0, color="0.7", linewidth=0.8)
    title(panel, f"{name}: at the best shift, cosine {likeness[name]:.3f}")
    panel.set_xlabel("bin")
axes[0].set_xlim(0, 1250)
axes[1].set_xlim(350, 850)
axes[0].legend(loc="lower right", fontsize=8)
plt.show()
assert likeness["logarithmic"] > 0.9999
assert likeness["linear"] < 0.8

# %% [markdown]
# ## Stiff strings: inharmonicity
#
# Partial h of a string with stiffness lies at `f_h = f_0 · h · √(1 + b h²)`. On the logarithmic axis the
# stretch is the same at every pitch, too. Below, a synthetic string; the pursuit measures its b.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained", width_ratios=(1, 1.5))
number = np.arange(1, 26)
for b, colour in zip([1e-4, 4e-4, 2e-3], [BLUE, ORANGE, GREEN], strict=True):
    cents = 600 * np.log2(1 + b * number**2)
    axes[0].plot(number, cents, "o-", color=colour, markersize=3, linewidth=1)
    axes[0].text(25.6, cents[-1], f"b = {b:g}", color=colour, fontsize=8, va="center")
axes[0].set_xlim(0, 33)
axes[0].set_xticks([1, 5, 10, 15, 20, 25])
axes[0].set_xlabel("partial")
axes[0].set_ylabel("cents")
title(axes[0], "stretch")

STIFFNESS, NATURAL = 4e-4, 220.0
partial = np.arange(1, harmonics.shape[1] + 1)
frequencies = NATURAL * partial * np.sqrt(1 + STIFFNESS * partial**2)
phases = np.random.default_rng(0).uniform(0, 2 * np.pi, partial.size)
string = sum(
    float(a) * jnp.cos(2 * np.pi * f * seconds + phase)
    for a, f, phase in zip(harmonics[0], frequencies, phases, strict=True)
)
spectra = jaxsep.log_frequency_spectrogram(spectrum(string)[None], linear, logarithmic)
spectra = spectra / jnp.max(spectra)
found = jax.jit(jaxsep.TonePursuit())(spectra, harmonics).tones
measured = float(found.inharmonicity[0, 0])
frame = jax.tree.map(lambda x: x[0], found)
model = jaxsep.render(frame, harmonics[frame.instrument], logarithmic)
axes[1].plot(spectra[0], color="0.6", linewidth=3, label="the string")
axes[1].plot(model, color=ORANGE, linewidth=1, label=f"found: b = {measured:.2e}")
axes[1].plot(
    on(logarithmic, float(found.fundamental[0, 0])), color=BLUE, linewidth=1, linestyle=":", label="b = 0"
)
axes[1].set_xlim(600, 720)
axes[1].set_ylim(0, 0.45)
axes[1].set_xlabel("bin of the logarithmic axis (partials 6 to 10)")
axes[1].legend(loc="upper right", fontsize=8)
title(axes[1], f"measured {measured:.2e}, true {STIFFNESS:.2e}")
plt.show()
assert abs(measured / STIFFNESS - 1) < 0.05

# %% [markdown]
# ## p: how partials add
#
# Where two partials meet, the sum depends on their phases, which a magnitude spectrum does not know. Grey:
# the true sums of two equal partials for 40 phases. The model adds `(Σ y^p)^(1/p)`: with p = 1, the default,
# it is the largest possible sum, with p = 2 the mean power.

# %%
apart = 1.5
bins = np.linspace(-8, 10, 400)
one, two = (np.exp(-0.5 * ((bins - x) / stft.sinusoid_std) ** 2) for x in (0, apart))
figure, axes = plt.subplots(figsize=(9, 2.6), layout="constrained")
phases = np.linspace(0, np.pi, 40)
for phase in phases:
    axes.plot(bins, np.abs(one + np.exp(1j * phase) * two), color="0.8", linewidth=0.8)
axes.plot(bins, one + two, color=BLUE, label="p = 1")
axes.plot(bins, np.hypot(one, two), color=ORANGE, label="p = 2")
axes.set_xlabel("bins")
axes.legend(loc="upper right")
title(axes, f"two partials {apart} bins apart")
plt.show()
pair = jaxsep.Tones(*(jnp.concatenate([x, x]) for x in jax.tree.leaves(tone(300.0))))
mean_power = lambda tones: jaxsep.render(tones, harmonics[tones.instrument], logarithmic, exponent=2.0)
assert np.allclose(mean_power(pair), np.sqrt(2) * mean_power(tone(300.0)), atol=1e-5)

# %% [markdown]
# ## q: how much a quiet partial counts
#
# The loss compares spectra to the power q. Bars: the part of the loss that each partial would cause if the
# model did not have it. With q = 1 three partials decide; with q = ½ the quiet ones have a say, and it takes
# them to tell instruments apart.

# %%
figure, axes = plt.subplots(figsize=(9, 2.6), layout="constrained")
complete = jaxsep.render(tone(low), harmonics, logarithmic)
effective = {}
for q, colour, shift in [(1.0, BLUE, -0.2), (0.5, ORANGE, 0.2)]:
    objective = jaxsep.LiftedLoss(lift=q)

    def missing(n, objective=objective):
        without = jaxsep.render(tone(low), harmonics.at[0, n].set(0), logarithmic)
        return jnp.sum((objective.lifted(complete) - objective.lifted(without)) ** 2)

    part = np.asarray(jax.vmap(missing)(jnp.arange(harmonics.shape[1])))
    part = part / part.sum()
    effective[q] = 1 / np.sum(part**2)
    label = f"q = {q:g}: as much as {effective[q]:.1f} equal partials"
    axes.bar(partial + shift, part, width=0.38, color=colour, label=label)
axes.set_xticks(partial)
axes.set_xlabel("partial")
axes.set_ylabel("part of the loss")
axes.legend(loc="upper right")
plt.show()
assert effective[0.5] > 1.5 * effective[1.0]

# %% [markdown]
# **Answer.** A tone is a comb of Gaussians of one width. On the logarithmic axis its shape does not depend on
# the pitch: cosine 1 at the best shift, where the linear axis has less than 0.8.

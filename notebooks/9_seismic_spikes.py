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
# # When did the echoes arrive, of which kind, and how many are there?
#
# The Beurling LASSO away from music. A seismic trace is a sum of echoes: each a known wavelet, at a time that
# falls between the samples, with a sign (a layer is harder or softer than the one above). Here are two
# wavelets, the wave that was sent and one of lower frequency that was converted on the way; which echo is
# which is not known either, nor how many there are.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxsep

BLUE, ORANGE = COLOURS = "#0072B2", "#D55E00"
NAMES = "25 Hz", "12 Hz"
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
RATE, SAMPLES, NOISE = 250, 300, 0.05  # samples per second and of a trace, and the noise's standard deviation


def title(axes, text):
    axes.set_title(text, loc="left", fontsize=10, fontweight="bold")


def ricker(frequency):
    """Ricker wavelet of that peak frequency, as a function of the distance in samples."""
    turns = np.pi * frequency / RATE
    return lambda t: (1 - 2 * (turns * t) ** 2) * jnp.exp(-((turns * t) ** 2))


wavelets = [ricker(25), ricker(12)]
patterns = jaxsep.Patterns.from_functions(wavelets, SAMPLES, support=(-45.0, 45.0))

# %% [markdown]
# One trace of seven echoes. Some overlap.

# %%
truth = [  # milliseconds, reflection coefficient, wavelet
    (183.1, 1.0, 0),
    (297.4, -0.6, 0),
    (330.9, 0.7, 1),
    (494.2, 0.5, 0),
    (702.7, -0.8, 1),
    (731.3, 0.6, 0),
    (985.8, -0.5, 0),
]
sample = np.arange(SAMPLES)


def trace_of(echoes, seed):
    clean = sum(mass * np.asarray(wavelets[row](sample - 1e-3 * RATE * time)) for time, mass, row in echoes)
    return clean + NOISE * np.random.default_rng(seed).standard_normal(SAMPLES)


trace = jnp.asarray(trace_of(truth, 0), jnp.float32)

# %% [markdown]
# ## The path over α, to choose it
#
# α is the price of a spike's mass. `lasso_path` solves the problem for many, from the largest sensible one
# down, each starting where the last ended. At each it also fits the spikes that were found *without* the
# price (which makes all masses too small), leaves out those that pay no more than noise would, and rates the
# fit by the Bayesian information criterion. Nothing needs to be known about the noise.

# %%
fractions = jnp.geomspace(1, 0.02, 30)
signed = jaxsep.BeurlingLasso(jaxsep.Projection(signed=True), proximal_steps=0)
path = jaxsep.lasso_path(patterns, trace[None], fractions, signed)
best = int(path.best()[0])
figure, axes = plt.subplots(2, 1, figsize=(9, 5), sharex=True, layout="constrained")
for row, colour in enumerate(COLOURS):
    for spikes, style in [(path.found.spikes, "."), (path.debiased, "x")]:
        value, slot = np.nonzero(np.asarray(spikes.active[:, 0] & (spikes.pattern[:, 0] == row)))
        mass = np.asarray(spikes.mass[:, 0])[value, slot]
        axes[0].plot(np.asarray(fractions)[value], mass, style, color=colour, markersize=4)
    for _, mass, kind in truth:
        if kind == row:
            axes[0].plot(0.0185, mass, "o", color=colour, markerfacecolor="none", clip_on=False)
axes[0].axhline(0, color="0.7", linewidth=0.8)
title(axes[0], "masses (dots: with the price, crosses: fitted without it, circles: the truth)")
axes[1].semilogx(fractions, path.criterion[:, 0], "o-", color="0.3", markersize=3)
axes[1].set_xlabel("α / largest sensible α")
title(axes[1], "Bayesian information criterion: the least is taken")
for panel in axes:
    panel.axvline(fractions[best], color="0.3", linestyle="--", linewidth=1)
plt.show()

# %% [markdown]
# ## What was found
#
# The times are right to a fraction of the sampling interval of 4 ms.

# %%
chosen = path.at(path.best())
fitted = jax.tree.map(lambda x: np.asarray(x[0, 0]), chosen.debiased)
slots = sorted(np.flatnonzero(fitted.active), key=lambda slot: fitted.position[slot])
found = [
    (float(fitted.position[slot]) * 1e3 / RATE, float(fitted.mass[slot]), int(fitted.pattern[slot]))
    for slot in slots
]
for (time, mass, row), (true_time, true_mass, true_row) in zip(found, truth, strict=True):
    print(
        f"{NAMES[row]} wavelet at {time:6.1f} ms (true {true_time:6.1f}): {mass:+.2f} (true {true_mass:+.2f})"
    )
    assert row == true_row
    assert abs(time - true_time) < 2
    assert abs(mass - true_mass) < 0.15

# %% [markdown]
# ## The certificate
#
# Why should there be no other explanation with less mass? Because of one signal, the dual certificate: its
# correlation with both wavelets stays within ±α at *every* time, between the samples as well, and touches it
# at the spikes. (The optimum, before the price is taken off; small spikes beside the true ones are part of
# it.)

# %%
shifts = np.linspace(0, SAMPLES - 1, 4001)
alpha, optimum = float(path.alpha[best, 0]), jax.tree.map(lambda x: x[0, 0], chosen.found.spikes)
point = np.asarray(chosen.found.point[0, 0])
figure, axes = plt.subplots(3, 1, figsize=(9, 6.5), sharex=True, layout="constrained")
axes[0].plot(sample * 1e3 / RATE, trace, color="0.4", linewidth=1)
for row, colour in enumerate(COLOURS):
    for time, mass, kind in truth:
        if kind == row:
            axes[1].plot(time, mass, "o", color=colour, markerfacecolor="none", markersize=9)
    mine = [(time, mass) for time, mass, kind in found if kind == row]
    axes[1].vlines(*zip(*[(t, 0, m) for t, m in mine], strict=True), color=colour, label=NAMES[row])
    atoms = patterns.atoms(jnp.asarray(shifts, jnp.float32), jnp.full(shifts.size, row, jnp.int32))[0]
    axes[2].plot(shifts * 1e3 / RATE, np.asarray(atoms) @ point / alpha, color=colour)
    here = np.asarray(optimum.active & (optimum.pattern == row))
    axes[2].plot(
        np.asarray(optimum.position)[here] * 1e3 / RATE, np.asarray(optimum.sign)[here], "o", color=colour
    )
axes[1].axhline(0, color="0.7", linewidth=0.8)
axes[1].legend(loc="lower left")
for edge in (-1, 1):
    axes[2].axhline(edge, color="0.3", linestyle="--", linewidth=1)
title(axes[0], "the trace")
title(axes[1], "the echoes that were found (circles: the truth)")
title(axes[2], "correlation of the certificate with the wavelets at every time, relative to α")
axes[2].set_xlabel("milliseconds")
plt.show()
print(f"relative duality gap: {float(chosen.found.certificate.relative_gap[0, 0]):.1e}")
assert float(chosen.found.certificate.relative_gap[0, 0]) <= 1e-4

# %% [markdown]
# ## A section
#
# Twenty-four receivers at once, farther and farther away: the echoes come later along hyperbolas. Each trace
# is solved by itself, all in one call; that the spikes line up is nobody's doing but the data's.

# %%
offsets = np.linspace(0, 1.2, 24)  # km
layers = [(0.25, 1.8, 1.0, 0), (0.45, 2.0, -0.6, 0), (0.55, 1.6, 0.7, 1), (0.80, 2.4, 0.6, 0)]
arrivals = np.stack([1e3 * np.hypot(start, offsets / speed) for start, speed, _, _ in layers], axis=1)
traces = np.stack(
    [
        trace_of([(t, *layer[2:]) for t, layer in zip(times, layers, strict=True)], seed)
        for seed, times in enumerate(arrivals)
    ]
)
section = jaxsep.lasso_path(patterns, jnp.asarray(traces, jnp.float32), fractions, signed)
fitted = jax.tree.map(lambda x: np.asarray(x[0]), section.at(section.best()).debiased)
milliseconds = fitted.position * 1e3 / RATE
figure, axes = plt.subplots(1, 2, figsize=(9, 4.5), sharey=True, layout="constrained")
limit = np.abs(traces).max()
axes[0].imshow(
    traces.T,
    aspect="auto",
    cmap="RdGy",
    vmin=-limit,
    vmax=limit,
    extent=(0, offsets[-1], SAMPLES * 1e3 / RATE, 0),
)
for times in arrivals.T:
    axes[1].plot(offsets, times, color="0.8", linewidth=5)
for row, colour in enumerate(COLOURS):
    for sign, marker in [(1, "^"), (-1, "v")]:
        frame, slot = np.nonzero(fitted.active & (fitted.pattern == row) & (fitted.sign == sign))
        name = f"{NAMES[row]}, {'positive' if sign > 0 else 'negative'}"
        axes[1].plot(
            offsets[frame], milliseconds[frame, slot], marker, color=colour, markersize=5, label=name
        )
axes[0].set_ylabel("milliseconds")
for panel, text in zip(axes, ["the traces", "echoes that were found (grey: the truth)"], strict=True):
    panel.set_xlabel("distance of the receiver (km)")
    title(panel, text)
axes[1].legend(fontsize=8, loc="lower left")
plt.show()

# %% [markdown]
# **Answer.** Nearly every echo is found, of the right kind and sign, to a millisecond or so, where echoes do
# not cross; and nothing had to be set.

# %%
kinds = np.array([layer[3] for layer in layers])
near = np.abs(milliseconds[:, None] - arrivals[..., None]) < 6
right = near & fitted.active[:, None] & (fitted.pattern[:, None] == kinds[:, None])
error = np.abs(milliseconds[:, None] - arrivals[..., None])[right]
print(f"{right.any(axis=2).mean():.0%} of the echoes found, median error {np.median(error):.1f} ms")
print(f"false echoes for each trace: {(fitted.active & ~right.any(axis=1)).sum(axis=1).mean():.1f}")
assert right.any(axis=2).mean() > 0.85
assert np.median(error) < 2

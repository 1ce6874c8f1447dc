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
# # How can a separation prove that it is optimal?
#
# Two patterns that overlap wherever they lie, at unknown positions *between* the bins, in noise. The Beurling
# LASSO looks for measures ν with the smallest `½‖Σ ψ ∗ ν - b‖² + α ‖ν‖`, over all real positions.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxsep

BINS = 120


def bump(distance, width):
    return jnp.exp(-0.5 * (distance / width) ** 2)


chord = lambda t: bump(t, 2.0) + 0.6 * bump(t - 12, 2.0) + 0.4 * bump(t - 19, 2.0)
wide = lambda t: bump(t, 3.2) + 0.8 * bump(t - 17, 3.2)
patterns = jaxsep.Patterns.from_functions([chord, wide], BINS, support=(-26.0, 44.0))

# %% [markdown]
# Two spikes of each pattern, one of them negative.

# %%
truth = [[(21.37, 1.0), (62.81, -0.7)], [(30.62, 0.9), (78.25, 0.6)]]
bins = np.arange(BINS)
clean = np.stack(
    [
        sum(mass * shape(bins - position) for position, mass in spikes)
        for shape, spikes in zip([chord, wide], truth, strict=True)
    ]
)
noise = 0.02 * np.random.default_rng(0).standard_normal(BINS)
signal = jnp.asarray(clean.sum(axis=0) + noise, jnp.float32)

# %% [markdown]
# α is given as a fraction of the smallest one whose solution is zero. The solver iterates on the *sources*;
# the measures are read off at the end.

# %%
alpha = 0.05 * jaxsep.alpha_max(patterns, signal, signed=True)
lasso = jaxsep.BeurlingLasso(jaxsep.Projection(signed=True))
found = jax.jit(lasso)(patterns, signal[None], alpha)
spikes = jax.tree.map(lambda x: np.asarray(x[0]), found.spikes)
for n in np.flatnonzero(spikes.active):
    print(
        f"pattern {spikes.pattern[n] + 1} at {spikes.position[n]:6.2f}: "
        f"{spikes.sign[n] * spikes.amplitude[n]:+.3f}"
    )
print(f"proximal steps: {found.proximal_steps[0]}")
print(f"optimum between {found.certificate.dual[0]:.6f} and {found.certificate.primal[0]:.6f}")

# %% [markdown]
# The proof is one signal p, the dual certificate. Its correlation with every shift of every pattern stays
# within ±α, on the whole line and not only on some grid, and it touches ±α exactly where the spikes are.

# %%
shifts = np.linspace(0, BINS - 1, 4001)
figure, axes = plt.subplots(3, 1, figsize=(9, 8), sharex=True, layout="constrained")
axes[0].plot(bins, signal, color="0.4", label="signal")
for row, colour in enumerate(["#0072B2", "#D55E00"]):
    axes[0].plot(bins, found.sources[0, row], color=colour, label=f"source {row + 1}")
    for position, mass in truth[row]:
        axes[1].plot(position, mass, "o", color=colour, markerfacecolor="none", markersize=9)
    mine = spikes.active & (spikes.pattern == row)
    axes[1].vlines(
        spikes.position[mine], 0, (spikes.sign * spikes.amplitude)[mine], color=colour, linewidth=2
    )
    atoms = patterns.atoms(jnp.asarray(shifts, jnp.float32), jnp.full(shifts.size, row, jnp.int32))[0]
    axes[2].plot(shifts, atoms @ found.point[0] / alpha, color=colour)
    axes[2].plot(spikes.position[mine], spikes.sign[mine], "o", color=colour)
axes[1].axhline(0, color="0.7", linewidth=0.8)
axes[2].axhline(1, color="0.3", linestyle="--", linewidth=1)
axes[2].axhline(-1, color="0.3", linestyle="--", linewidth=1)
axes[0].legend(loc="upper right", frameon=False)
axes[0].set_title("the signal and its two sources", loc="left", fontweight="bold")
axes[1].set_title("the measures (circles: the truth)", loc="left", fontweight="bold")
axes[2].set_title(
    "correlation of the certificate with every shift, relative to α", loc="left", fontweight="bold"
)
axes[2].set_xlabel("shift in bins")
plt.show()

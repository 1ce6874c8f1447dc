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
# # Can the pursuit be a layer of a model of mine?
#
# It is a pure function of arrays, so it can stand inside `jit`, `vmap` and `grad`. Here are its derivatives,
# and then a model around it that finds out through which microphone an instrument was recorded.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxsep

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

axis = jaxsep.LogAxis()
harmonics = jnp.asarray([0.8 ** np.arange(12)], jnp.float32)
random = np.random.default_rng(0)


def note(position):
    """Spectrum of a tone of the instrument."""
    return jaxsep.render(jaxsep.Tones.plain(jnp.ones(1), position[None], jnp.array([0])), harmonics, axis)


# %% [markdown]
# ## The derivative of what was found
#
# How does the loudness of the tone that is found change with each harmonic of the dictionary? By the implicit
# function theorem at the solution (one linear system, whatever the number of iterations), and by finite
# differences, for which the pursuit runs twice for every harmonic.

# %%
spectrum = (note(jnp.asarray(400.3)) + 0.3 * note(jnp.asarray(431.7)))[None]  # not quite the model
precise = jaxsep.TonePursuit(solver=jaxsep.LevenbergMarquardt(tolerance=1e-7))


@jax.jit
def loudness(rows):
    return precise(spectrum, rows).tones.amplitude[0, 0]


by_theorem = jax.jit(jax.grad(loudness))(harmonics)[0]
steps = 0.02 * jnp.eye(harmonics.shape[1])[:, None]
by_difference = jnp.stack([(loudness(harmonics + s) - loudness(harmonics - s)) / 0.04 for s in steps])
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
number = np.arange(1, harmonics.shape[1] + 1)
axes.bar(number, by_theorem, color=BLUE, width=0.7, label="implicit function theorem")
axes.plot(number, by_difference, "o", color=ORANGE, markersize=4, label="finite differences")
axes.axhline(0, color="0.7", linewidth=0.8)
axes.set(xlabel="harmonic", ylabel="derivative of the loudness", xticks=number, ylim=(-0.26, 0.06))
axes.legend(fontsize=8, ncols=2, loc="upper right")
plt.show()
np.testing.assert_allclose(by_theorem, by_difference, atol=0.02)

# %% [markdown]
# ## A model around it
#
# The instrument is known. It was recorded through a microphone that is not: every spectrum is multiplied by a
# response R over frequency. The model has R as thirteen numbers, and
#
# - its **encoder** divides the spectrum by R and hands it to the pursuit,
# - its **decoder** is the tone model, times R.
#
# It is trained to reproduce the spectra. Nobody tells it a pitch or the response.

# %%
knots = jnp.linspace(300, 940, 13)
bins = jnp.arange(axis.num_bins)


class Microphone(eqx.Module):
    """Log-response at the knots, in nepers, mean 0 since the level is the tones' affair."""

    values: jax.Array
    pursuit: jaxsep.TonePursuit = jaxsep.TonePursuit()

    def response(self):
        return jnp.exp(jnp.interp(bins, knots, self.values - jnp.mean(self.values)))

    def __call__(self, spectra):
        tones = self.pursuit(spectra / self.response(), harmonics).tones
        render = lambda frame: jaxsep.render(frame, harmonics[frame.instrument], axis)
        return self.response() * jax.vmap(render)(tones)


def decibels(response):
    return 20 * np.log10(np.asarray(response))


# The truth: little bass, and a hole at 1.5 kHz. 48 notes with a little noise.
place = (np.asarray(bins) - 620) / 320
true_response = 10 ** ((5 * np.sin(2.5 * place) - 6 * np.exp(-18 * (place - 0.1) ** 2)) / 20)
notes = jax.vmap(note)(jnp.asarray(random.uniform(330, 560, 48), jnp.float32))
spectra = jnp.abs(notes * true_response + 1e-4 * random.standard_normal(notes.shape)).astype(jnp.float32)

# %% [markdown]
# Training is what it always is: a loss, its gradient, optax.

# %%
objective = jaxsep.LiftedLoss(axis)
optimiser = optax.adam(0.05)


@eqx.filter_jit
def step(model, state):
    @eqx.filter_value_and_grad
    def loss(values):
        described = eqx.tree_at(lambda m: m.values, model, values)(spectra)
        return jnp.mean(jnp.sum((objective.lifted(described) - objective.lifted(spectra)) ** 2, axis=1))

    value, slope = loss(model.values)
    change, state = optimiser.update(slope, state)
    return eqx.tree_at(lambda m: m.values, model, model.values + change), state, value


model = Microphone(jnp.zeros(knots.size))
state, losses, shown = optimiser.init(model.values), [], [model.response()]
for _ in range(80):
    model, state, value = step(model, state)
    losses.append(float(value))
    shown.append(model.response())

# %% [markdown]
# The response that came out, and how the loss fell.

# %%
heard = slice(330, 900)
level = lambda response: decibels(response)[heard] - decibels(response)[heard].mean()
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", width_ratios=(2, 1))
hertz = np.asarray(axis.to_hz(bins.astype(jnp.float32)))[heard]
left.semilogx(hertz, level(true_response), color="0.6", linewidth=4, label="the microphone")
for step_number, shade in [(0, ":"), (10, "--"), (80, "-")]:
    left.semilogx(
        hertz,
        level(shown[step_number]),
        shade,
        color=ORANGE,
        linewidth=1.4,
        label=f"after {step_number} steps",
    )
left.set(xlabel="frequency (Hz)", ylabel="response (dB)")
left.set_xticks([200, 500, 1000, 2000, 5000], ["200", "500", "1000", "2000", "5000"])
left.minorticks_off()
left.legend(fontsize=8)
right.semilogy(losses, color=BLUE)
right.set(xlabel="step", ylabel="loss")
right.set_yticks([0.1, 0.2, 0.5], ["0.1", "0.2", "0.5"])
right.minorticks_off()
plt.show()

# %% [markdown]
# **Answer.** Yes: the response is found to about a decibel, by gradients that passed through the pursuit.

# %%
error = np.sqrt(np.mean((level(model.response()) - level(true_response)) ** 2))
before = np.sqrt(np.mean(level(true_response) ** 2))
print(f"error of the response: {error:.2f} dB, before training {before:.2f} dB")
assert error < 1

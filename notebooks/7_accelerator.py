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
# # How fast is it, and where is an accelerator worth it?
#
# This notebook runs on whatever JAX finds. On a CPU nothing has to be installed. For others:
#
# | device | install beside jaxsep |
# | --- | --- |
# | NVIDIA GPU | `pip install "jax[cuda13]"` |
# | TPU | `pip install "jax[tpu]"` |
#
# `jaxsep separate duet.wav -n 2 --device gpu` refuses to run without one; `--device cpu` ignores it. In
# Python `jax.config.update("jax_platforms", "cpu")` does, before the first array.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxsep

BLUE, ORANGE = "#0072B2", "#D55E00"
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
device = jax.devices()[0]
print(f"JAX {jax.__version__} on {len(jax.devices())} × {device.device_kind} ({device.platform})")

# %% [markdown]
# ## Three rules of timing
#
# 1. The first call compiles. It is measured on its own.
# 2. A call returns before the result is there. `block_until_ready` waits for it.
# 3. Other programs disturb. Several calls, and their minimum and median, say how much.

# %%
CALLS = 5


def timed(function, *arguments):
    """The result, the seconds of the first call, and those of the next ones."""
    seconds = []
    for _ in range(1 + CALLS):
        begin = time.perf_counter()
        result = jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - begin)
    return result, seconds[0], np.array(seconds[1:])


mixture, _, rate = jaxsep.demo_recording()
samples = jnp.asarray(jaxsep.resample(mixture, rate, 48_000))
stft, axis = jaxsep.GaussianSTFT(hop=512), jaxsep.LogAxis()
linear = jaxsep.LinearAxis(stft.n_fft // 2, 48_000 / stft.n_fft)
harmonics = jnp.asarray(
    [0.4 ** np.arange(25), np.where(np.arange(25) % 2, 0.1, 1) * 0.8 ** np.arange(25)], jnp.float32
)
analyse = jax.jit(lambda samples: jnp.abs(stft.analyse(samples))[:, :-1])
pursue = jax.jit(jaxsep.TonePursuit())


@jax.jit
def spectrogram(magnitudes):
    spectra = jaxsep.log_frequency_spectrogram(magnitudes, linear, axis)
    return spectra / jnp.max(spectra)


fastest = []


def report(name, first, later, num_frames):
    fastest.append(later.min())
    print(
        f"{name:26s} first call {first:5.2f} s, later {later.min():.3f} s (median {np.median(later):.3f}): "
        f"{1e3 * later.min() / num_frames:.3f} ms per frame"
    )


magnitudes, *seconds = timed(analyse, samples)
report("transform", *seconds, len(magnitudes))
spectra, *seconds = timed(spectrogram, magnitudes)
report("log-frequency spectrogram", *seconds, len(magnitudes))
_, *seconds = timed(pursue, spectra, harmonics)
report("tone pursuit", *seconds, len(magnitudes))

# %% [markdown]
# ## Reading a benchmark
#
# `python -m benchmarks speed` compares with the same method in NumPy and SciPy. What to look for there: the
# **ratio** within one run, on one machine, never times of two; whether both reached the **same result**,
# since a solver that stops early is fast; **compile time** apart; minimum *and* median. For example, a
# partial is nonzero in three dozen bins. CPUs add such windows in place; accelerators, on which contended
# additions are slow, evaluate every bin instead, and `method="auto"` takes what suits the platform:

# %%
shape = (256, 4)
random = np.random.default_rng(0)
pitches = jnp.asarray(random.uniform(300, 700, shape), jnp.float32)
tones = jaxsep.Tones.plain(jnp.ones(shape), pitches, jnp.asarray(random.integers(0, 2, shape), jnp.int32))
rendered, milliseconds = {}, {}
for method in ("windowed", "dense"):

    @jax.jit
    def render(tones, method=method):
        one = lambda frame: jaxsep.render(frame, harmonics[frame.instrument], axis, method=method)
        return jax.vmap(one)(tones)

    rendered[method], _, later = timed(render, tones)
    milliseconds[method] = 1e3 * later.min()
difference = float(jnp.max(jnp.abs(rendered["windowed"] - rendered["dense"])))
print(f"{shape[0]} frames: " + ", ".join(f"{name} {x:.2f} ms" for name, x in milliseconds.items()))
print(f"ratio {milliseconds['dense'] / milliseconds['windowed']:.1f}, largest difference {difference:.0e}")
assert difference < 1e-4

# %% [markdown]
# ## How many at a time
#
# Frames are independent, and what a device does with many at once decides whether it is worth it. A CPU is
# busy with a few frames: the time per frame hardly falls from there on. A GPU wants hundreds and more. So
# give it long recordings, or several as one batch; in training raise `NeuralSettings.batch`, and
# `accumulate` if the memory does not suffice.

# %%
loud = np.flatnonzero(np.asarray(jnp.max(spectra, axis=1)) > 0.1)
sizes, first_calls, later_calls = [1, 8, 64, 512], [], []
for size in sizes:
    here = spectra[random.choice(loud, size)]
    _, first, later = timed(pursue, here, harmonics)
    first_calls.append(first)
    later_calls.append(later.min())
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), sharex=True, layout="constrained")
left.semilogx(sizes, 1e3 * np.array(later_calls) / sizes, "o-", color=BLUE)
left.set(xlabel="frames at a time", ylabel="ms per frame")
left.set_ylim(0, 1.1e3 * max(np.array(later_calls) / sizes))
left.set_title("tone pursuit", loc="left", fontsize=10, fontweight="bold")
right.loglog(sizes, first_calls, "o-", color=ORANGE, label="first call: compiles")
right.loglog(sizes, later_calls, "o-", color=BLUE, label="later calls")
right.set(xlabel="frames at a time", ylabel="seconds per call")
right.legend(fontsize=8)
right.set_xticks(sizes, [str(size) for size in sizes])
right.minorticks_off()
plt.show()

# %% [markdown]
# Every *shape* compiles again: that is the orange line. The package therefore works in chunks of one shape,
# and the command line keeps its programs in a cache on disk. In Python:
# `jax.config.update("jax_compilation_cache_dir", "…")`.

# %% [markdown]
# ## The whole
#
# `separate` reports its stages while it works, and its result says what each of them took, compilation
# included. Here a greedy search of the first seconds:

# %%
settings = jaxsep.SeparationSettings(search="greedy", restarts=1, steps=24)
result = jaxsep.separate(mixture[: 5 * rate], rate, 2, settings=settings, key=jax.random.key(0))
print("seconds:", {stage: round(value, 1) for stage, value in result.seconds.items()})
result

# %% [markdown]
# **Answer**, for this device:

# %%
length = mixture.size / rate
print(f"{device.platform}: spectrogram and pursuit of {length:.1f} s of music in {sum(fastest):.2f} s,")
print(f"{length / sum(fastest):.0f} times as fast as it sounds")
assert sum(fastest) < length

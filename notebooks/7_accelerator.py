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

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxsep

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
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
    """Seconds of the first call, and of each of the next."""
    seconds = []
    for _ in range(1 + CALLS):
        begin = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - begin)
    return seconds[0], np.array(seconds[1:])


mixture, _, rate = jaxsep.demo_recording()
samples = jnp.asarray(jaxsep.resample(mixture, rate, 48_000))
stft, axis = jaxsep.GaussianSTFT(hop=512), jaxsep.LogAxis()
linear = jaxsep.LinearAxis(stft.n_fft // 2, 48_000 / stft.n_fft)
harmonics = jnp.asarray(
    [0.4 ** np.arange(25), np.where(np.arange(25) % 2, 0.1, 1) * 0.8 ** np.arange(25)], jnp.float32
)


@jax.jit
def analyse(samples):
    return jnp.abs(stft.analyse(samples))[:, :-1]


magnitudes = analyse(samples)
spectra = jaxsep.log_frequency_spectrogram(magnitudes, linear, axis)
spectra = spectra / jnp.max(spectra)
pursue = jax.jit(jaxsep.TonePursuit())
stages = {
    "transform": (analyse, samples),
    "log-frequency spectrogram": (lambda x: jaxsep.log_frequency_spectrogram(x, linear, axis), magnitudes),
    "tone pursuit": (pursue, spectra, harmonics),
}
results = {}
for name, call in stages.items():
    results[name] = first, later = timed(*call)
    per_frame = 1e3 * later / spectra.shape[0]
    print(
        f"{name:26s} first call {first:5.2f} s, later {later.min():.3f} s (median {np.median(later):.3f}), "
        f"{per_frame.min():.3f} ms per frame"
    )

# %% [markdown]
# ## Dense or windowed
#
# A partial is nonzero in 36 bins. CPUs add such windows in place; accelerators, on which contended additions
# are slow, evaluate every bin instead. `method="auto"` takes what suits the platform. Both give the same.

# %%
shape = (256, 4)
random = np.random.default_rng(0)
tones = jaxsep.Tones(
    amplitude=jnp.ones(shape),
    fundamental=jnp.asarray(random.uniform(300, 700, shape), jnp.float32),
    width=jaxsep.Tones.empty(shape).width,
    inharmonicity=jnp.zeros(shape),
    instrument=jnp.asarray(random.integers(0, 2, shape), jnp.int32),
    active=jnp.ones(shape, bool),
)
spectrum, milliseconds = {}, {}
for method in ("windowed", "dense"):

    @jax.jit
    def render(tones, method=method):
        return jax.vmap(lambda frame: jaxsep.render(frame, harmonics, axis, method=method))(tones)

    spectrum[method] = render(tones)
    milliseconds[method] = 1e3 * timed(render, tones)[1].min()
    print(f"{method:9s} {milliseconds[method]:7.2f} ms for {shape[0]} frames")
np.testing.assert_allclose(spectrum["windowed"], spectrum["dense"], atol=1e-5)

# %% [markdown]
# ## How many at a time
#
# Frames are independent, and what a device does with many at once decides whether it is worth it. A CPU is
# busy with eight frames: the time per frame is flat from there on. A GPU is not, and gains up to thousands.
# So give it long recordings, or several as one batch; in training raise `NeuralSettings.batch`, and
# `accumulate` if the memory does not suffice.

# %%
sizes, first_seconds, per_frame = [1, 8, 64, 512], [], []
for size in sizes:
    here = jnp.tile(spectra, (-(-size // spectra.shape[0]), 1))[:size]
    first, later = timed(pursue, here, harmonics)
    first_seconds.append(first)
    per_frame.append(1e3 * later.min() / size)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), sharex=True, layout="constrained")
left.loglog(sizes, per_frame, "o-", color=BLUE)
left.set(xlabel="frames at a time", ylabel="ms per frame")
left.set_title("tone pursuit", loc="left", fontsize=10, fontweight="bold")
later = np.array(per_frame) * sizes / 1e3
right.loglog(sizes, first_seconds, "o-", color=ORANGE, label="first call: compiles")
right.loglog(sizes, later, "o-", color=BLUE, label="later calls")
right.set(xlabel="frames at a time", ylabel="seconds per call")
right.legend(fontsize=8)
right.set_xticks(sizes, [str(size) for size in sizes])
right.minorticks_off()
plt.show()

# %% [markdown]
# Every *shape* compiles again: that is the orange line. The package therefore works in chunks of one shape,
# and the command line keeps its programs in a cache on disk. In Python:
# `jax.config.update("jax_compilation_cache_dir", "…")`.
#
# ## Reading a benchmark
#
# `python -m benchmarks speed` compares with the same method in NumPy and SciPy. What to look for: the
# **ratio** in one run, on one machine, never times of two; whether both reached the **same loss**, since a
# solver that stops early is fast; **compile time** apart; minimum *and* median. Here is that for one
# question, whether the implicit derivative of the pursuit is worth it: that of unrolled steps is the same,
# and how long does it take?

# %%
few = spectra[100:132]


def slope(adjoint):
    pursuit = jaxsep.TonePursuit(solver=jaxsep.LevenbergMarquardt(adjoint=adjoint))
    loudness = lambda rows: jnp.sum(pursuit(few, rows).tones.amplitude)
    return eqx.filter_jit(jax.grad(loudness))


lines = {"implicit": jaxsep.Implicit(), "unrolled, 20 steps": jaxsep.Unrolled(20)}
gradients, best = {}, {}
for name, adjoint in lines.items():
    function = slope(adjoint)
    first, later = timed(function, harmonics)
    gradients[name], best[name] = function(harmonics), later.min()
    print(f"{name:20s} first call {first:5.1f} s, later {1e3 * later.min():6.1f} ms")
one, other = gradients.values()
difference = float(jnp.linalg.norm(one - other) / jnp.linalg.norm(one))
ratio = best["unrolled, 20 steps"] / best["implicit"]
print(f"relative difference {difference:.1e}, ratio {ratio:.1f}")

# %% [markdown]
# **Answer**, for this device:

# %%
seconds = sum(later.min() for _, later in results.values())
length = mixture.size / rate
print(f"{device.platform}: spectrogram and pursuit of {length:.1f} s of music in {seconds:.2f} s, ")
print(f"{length / seconds:.0f} times as fast as it sounds")
assert seconds < length

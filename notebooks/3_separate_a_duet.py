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
# # Can a recording be taken apart without knowing its instruments?
#
# The duet that ships with the package: recorder and clarinet, mixed to mono. Nothing but the number of
# instruments goes in.

# %%
import io

import jax
import numpy as np
from IPython.display import Image

import jaxsep

mixture, truth, rate = jaxsep.demo_recording()
print(f"{mixture.size / rate:.1f} s at {rate} Hz, instruments: {', '.join(truth)}")

# %% [markdown]
# One call learns the instruments, finds the tones and makes the stems. Few restarts and steps are enough
# for a first look.

# %%
settings = jaxsep.PursuitSettings(restarts=2, steps=60)
result = jaxsep.separate(mixture, rate, num_instruments=2, settings=settings, key=jax.random.key(0))
print("seconds:", {stage: round(value, 1) for stage, value in result.seconds.items()})
print("cost after each round:", np.round(result.cost_trace, 3))

# %% [markdown]
# The learned harmonics: a recorder is nearly a pure tone, a clarinet has strong odd harmonics.

# %%
for number, row in enumerate(np.asarray(result.dictionary.harmonics), start=1):
    print(f"instrument {number}:", np.round(row[:9], 2))

# %% [markdown]
# The stems against the true ones, as SDR, SIR and SAR with a constant gain forgiven.

# %%
scores = jaxsep.sdr_sir_sar_gain(np.stack(list(truth.values())), result.stems)
for name, sdr, sir, sar in zip(truth, scores.sdr, scores.sir, scores.sar, strict=True):
    print(f"{name:10s} SDR {sdr:5.1f} dB   SIR {sir:5.1f} dB   SAR {sar:5.1f} dB")
print("the stems sum to the mixture:", np.allclose(result.stems.sum(axis=0), mixture, atol=1e-5))

# %% [markdown]
# And the picture: the fundamentals that were found, over the mixture and the stems.

# %%
picture = io.BytesIO()
jaxsep.overview(result, mixture, rate, picture)
Image(picture.getvalue())

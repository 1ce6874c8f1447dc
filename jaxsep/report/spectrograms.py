"""Spectrograms as pictures."""

import math
import os
from functools import partial
from io import BufferedIOBase

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from jaxsep.audio import check_samples, mono, resample
from jaxsep.numerics.devices import chunk_size, over_chunks
from jaxsep.report.kinds import KINDS
from jaxsep.separation.chunks import ANALYSIS_RATE, analyse_chunk, excerpt_of
from jaxsep.signal.axes import LinearAxis, LogAxis
from jaxsep.signal.filterbanks import constant_q_spectrogram, mel_spectrogram
from jaxsep.signal.log_frequency import log_frequency_spectrogram
from jaxsep.signal.peaks import PeakPursuit
from jaxsep.signal.stft import GaussianSTFT

__all__ = [
    "DPI",
    "MAX_COLUMNS",
    "RANGE",
    "WIDTH",
    "audible_bins",
    "draw_levels",
    "levels",
    "spectrogram_figure",
]

#: Pixels per inch, and inches across: 1600 pixels.
DPI, WIDTH = 160, 10

#: Levels further below the loudest, in dB, are not shown.
RANGE = 60

#: More columns than this cannot be told apart in a picture.
MAX_COLUMNS = 1600

#: Samples between frames.
_HOPS = 512, 1024, 2048

#: From white to a grey that coloured marks stand out from.
_GREYS = LinearSegmentedColormap.from_list("greys", ["#ffffff", "#d8d8d8", "#8c8c8c", "#303030"])


def spectrogram_figure(
    samples: Float[np.ndarray | Array, "*channels samples"],
    sample_rate: int,
    target: str | os.PathLike | BufferedIOBase,
    *,
    kind: str = "log",
    title: str = "",
) -> None:
    """Draws the spectrogram of a recording, down to 60 dB below its loudest.

    Arguments:
        samples: `[samples]` or `[channels, samples]`; channels are averaged.
        sample_rate: in Hz.
        target: name of an image file, or an open binary file that becomes a PNG; 1600 pixels wide.
        kind: `"log"`, rendered from the peaks of the linear one; `"mel"`; `"cqt"`, constant-Q; `"linear"`.
        title: stands above the picture, before the kind.

    Raises: `ValueError` for samples that cannot be a recording, and for another kind.

    Example:
        >>> samples = np.sin(0.1 * np.arange(24_000))
        >>> jaxsep.spectrogram_figure(samples, 48_000, "tone.png", kind="mel", title="a tone")
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    check_samples(samples, sample_rate)
    values = levels(samples, sample_rate, kind)
    axis = GaussianSTFT().axis(ANALYSIS_RATE) if kind == "linear" else LogAxis()
    figure = Figure(figsize=(WIDTH, 5), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    seconds = np.shape(samples)[-1] / sample_rate
    picture = draw_levels(axes, values, axis, seconds, float(values.max()), audible_bins(values))
    # Names may be bytes that are no text.
    heading = "   ".join(filter(None, (title, KINDS[kind]))).encode("utf-8", "backslashreplace").decode()
    axes.set_title(heading, loc="left", fontsize=10, parse_math=False)
    bar = figure.colorbar(picture, ax=axes, pad=0.01, aspect=40)
    bar.set_label("dB relative to the loudest", fontsize=9)
    bar.ax.tick_params(labelsize=8, length=3)
    bar.outline.set_visible(False)
    figure.savefig(target)


def levels(
    samples: Float[np.ndarray | Array, "*channels samples"], sample_rate: int, kind: str
) -> Float[np.ndarray, "columns bins"]:
    """Spectrogram in dB (a sinusoid of amplitude 1 has -6), with no more columns than a picture has.

    Recordings of more than a minute have several frames in one column, which shows the loudest.
    """
    one = mono(np.atleast_2d(np.asarray(samples, np.float32)))
    one = np.ascontiguousarray(resample(one, sample_rate, ANALYSIS_RATE))
    # Few compiled programs serve recordings of all lengths.
    stft = GaussianSTFT(hop=next((hop for hop in _HOPS if hop * MAX_COLUMNS >= one.size), _HOPS[-1]))
    num_frames = stft.num_frames(one.size)
    pooled = min(2 ** math.ceil(math.log2(max(1, num_frames / MAX_COLUMNS))), chunk_size())
    if kind == "cqt":
        frames = constant_q_spectrogram(jnp.asarray(one), sample_rate=float(ANALYSIS_RATE), hop=stft.hop)
        columns = _pool(jnp.pad(frames, ((0, -num_frames % pooled), (0, 0))), pooled)
    else:
        run = lambda frames, _: _columns(excerpt_of(one, stft, int(frames[0])), stft, kind, pooled)
        columns = np.concatenate([*over_chunks(run, num_frames)])[: -(-num_frames // pooled)]
    return 20 * np.log10(np.maximum(np.asarray(columns), np.finfo(np.float32).tiny))


@partial(jax.jit, static_argnums=(1, 2, 3))
def _columns(excerpt, stft, kind, pooled):
    magnitudes = jnp.abs(analyse_chunk(excerpt, stft))
    if kind == "mel":
        magnitudes = mel_spectrogram(magnitudes, sample_rate=float(ANALYSIS_RATE))
    elif kind == "log":
        axis = stft.axis(ANALYSIS_RATE)
        magnitudes = log_frequency_spectrogram(magnitudes[:, :-1], axis, LogAxis(), PeakPursuit())
    return _pool(magnitudes, pooled)


def _pool(frames, pooled):
    return jnp.max(frames.reshape(-1, pooled, frames.shape[1]), axis=1)


def audible_bins(values: Float[np.ndarray, "columns bins"]) -> tuple[int, int]:
    """First and last bin worth showing."""
    loudest = values.max(axis=0) - values.max()
    # What lies far below the lowest fundamental is the broadband click of an onset.
    first = np.flatnonzero(loudest > -0.6 * RANGE)[0]
    last = np.flatnonzero(loudest > -RANGE)[-1]
    margin = values.shape[1] // 40
    return max(0, int(first) - margin), min(values.shape[1] - 1, int(last) + margin)


def draw_levels(
    axes: Axes,
    values: Float[np.ndarray, "columns bins"],
    axis: LinearAxis | LogAxis,
    seconds: float,
    top: float,
    bins: tuple[int, int],
) -> AxesImage:
    """Draws levels relative to `top` over time and frequency; the vertical coordinate is the bin."""
    num_columns, num_bins = values.shape
    half = 0.5 * seconds / max(1, num_columns - 1)  # columns are drawn around the centres of their frames
    picture = axes.imshow(
        values.T - top,
        origin="lower",
        aspect="auto",
        extent=(-half, seconds + half, -0.5, num_bins - 0.5),
        cmap=_GREYS,
        vmin=-RANGE,
        vmax=0,
    )
    axes.set_xlim(0, seconds)
    axes.set_ylim(bins)
    _label(axes, axis, bins)
    return picture


def _label(axes, axis, bins):
    """Ticks at the notes A on a logarithmic axis, at whole kHz on a linear one."""
    low, high = (float(axis.to_hz(float(x))) for x in bins)
    if isinstance(axis, LogAxis):
        frequencies = [27.5 * 2**octave for octave in range(10)]
        names = [f"{frequency:g}" for frequency in frequencies]
    else:
        step = 1000 * max(1, round((high - low) / 10000))
        frequencies = list(np.arange(0, high + 1, step, dtype=float))
        names = [f"{frequency:g}" for frequency in frequencies]
    shown = [n for n, frequency in enumerate(frequencies) if low <= frequency <= high]
    axes.set_yticks([float(axis.to_bin(frequencies[n])) for n in shown], [names[n] for n in shown])
    axes.set_ylabel("frequency (Hz)", fontsize=9)
    axes.set_xlabel("time (s)", fontsize=9)
    axes.tick_params(labelsize=8, length=3)
    axes.spines[["top", "right"]].set_visible(False)

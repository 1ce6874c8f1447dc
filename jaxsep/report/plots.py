"""The picture of a separation."""

import os
from io import BufferedIOBase, BytesIO

import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxsep.audio import check_samples
from jaxsep.report.spectrograms import DPI, MAX_COLUMNS, RANGE, WIDTH, audible_bins, draw_levels, levels
from jaxsep.separation.result import Separation
from jaxsep.signal.axes import LogAxis

__all__ = ["mixture_of", "overview", "overview_figure"]

#: Colours that everyone can tell apart (M. Okabe, K. Ito, "Color Universal Design", 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

#: Confidence above which a frame counts as sure, in units of the mean loss of a frame.
_SURE = 2

#: More do not fit beside the mixture; the titles of the panels have the colours too.
_MAX_KEYS = 5


def overview(
    separation: Separation,
    samples: Float[np.ndarray | Array, "*channels samples"],
    sample_rate: int,
    target: str | os.PathLike | BufferedIOBase,
) -> None:
    """Draws the spectrograms of mixture and stems with the fundamentals that were found, and the harmonics.

    All panels share one scale of levels, down to 60 dB below the loudest of the mixture. An instrument's
    fundamentals and the bars of its harmonics have one colour. Below, after a full search, is how sure it was
    of the notes of each frame, and how the cost fell.

    Arguments:
        separation: what `separate` returned.
        samples: the mixture, `[samples]` or `[channels, samples]`; channels are averaged.
        sample_rate: in Hz.
        target: name of an image file, or an open binary file that becomes a PNG; 1600 pixels wide.

    Raises: `ValueError` for samples that cannot be a recording.

    Example:
        >>> mixture, stems, rate = jaxsep.demo_recording()
        >>> settings = jaxsep.SeparationSettings(restarts=1, steps=3, search="greedy")
        >>> result = jaxsep.separate(mixture[:rate], rate, 2, settings=settings, key=jax.random.key(0))
        >>> jaxsep.overview(result, mixture[:rate], rate, "overview.png")
    """
    _draw(separation, samples, sample_rate).savefig(target)


def overview_figure(separation: Separation) -> Figure:
    """The picture of `overview` with the separation's own mixture; a notebook shows it."""
    return _draw(separation, mixture_of(separation), separation.sample_rate)


def mixture_of(separation: Separation) -> Float[np.ndarray, "*channels samples"]:
    """What was separated, or the sum of stems and noise where that is not known."""
    if separation.mixture is not None:
        return separation.mixture
    stems = separation.stems.sum(axis=0)
    return stems if separation.noise is None else stems + separation.noise


class _Shown(Figure):
    """A figure that notebooks show, whether or not they have been told how to show figures."""

    def _repr_png_(self):
        file = BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def _draw(separation, samples, sample_rate):
    check_samples(samples, sample_rate)
    mixture = levels(samples, sample_rate, "mel")
    scale = np.shape(samples)[-1] / sample_rate, float(mixture.max()), audible_bins(mixture)
    num_instruments = separation.dictionary.num_instruments
    rows = num_instruments + 1
    searched = not np.isnan(separation.confidence).all()
    heights = [1.75] * rows + [0.9] * searched
    figure = _Shown(figsize=(WIDTH, 0.6 + sum(heights)), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(len(heights), 2, width_ratios=(4.2, 1), height_ratios=heights)
    shared = None
    for row in range(rows):
        axes = shared = figure.add_subplot(grid[row, 0], sharex=shared)
        stem = mixture if row == 0 else _stem_levels(separation, row - 1)
        picture = draw_levels(axes, stem, LogAxis(), *scale)
        for instrument in range(num_instruments) if row == 0 else [row - 1]:
            _draw_fundamentals(axes, separation, instrument)
        _title(
            axes,
            "mixture" if row == 0 else separation.names[row - 1],
            "black" if row == 0 else _colour(row - 1),
        )
        if row < len(heights) - 1:
            axes.set_xlabel("")
            axes.tick_params(labelbottom=False)
    for instrument in range(num_instruments):
        _draw_harmonics(figure.add_subplot(grid[instrument + 1, 1]), separation, instrument)
    _draw_key(figure, figure.add_subplot(grid[0, 1]), picture, separation.names)
    if searched:
        _draw_confidence(figure.add_subplot(grid[rows, 0], sharex=shared), separation)
        _draw_costs(figure.add_subplot(grid[rows, 1]), separation.cost_trace)
    return figure


def _stem_levels(separation, instrument):
    stem = separation.stems[instrument]
    return levels(stem, separation.sample_rate, "mel")


def _draw_fundamentals(axes, separation, instrument):
    tones = separation.tones
    amplitude = np.where(tones.active, tones.amplitude, 0)
    heard = amplitude > 10 ** (-RANGE / 20) * amplitude.max(initial=0)
    heard &= np.asarray(tones.instrument) == instrument
    heard[np.arange(len(heard)) % max(1, len(heard) // MAX_COLUMNS) != 0] = False
    frame, slot = np.nonzero(heard)
    fundamental = np.asarray(tones.fundamental)[frame, slot]
    axes.plot(
        separation.times[frame],
        LogAxis().to_bin(fundamental),
        linestyle="",
        marker="o",
        markersize=1.6,
        markeredgewidth=0,
        color=_colour(instrument),
    )


def _draw_harmonics(axes, separation, instrument):
    harmonics = np.asarray(separation.dictionary.harmonics)[instrument]
    axes.bar(np.arange(1, harmonics.size + 1), harmonics, width=0.7, color=_colour(instrument))
    axes.set_xlim(0.3, harmonics.size + 0.7)
    axes.set_ylim(0, 1.02 * max(harmonics.max(), 1e-6))
    axes.set_xticks([n for n in (1, 5, 10, 15, 20, 25) if n <= harmonics.size])
    axes.set_yticks([])
    axes.tick_params(labelsize=8, length=2)
    axes.spines[["top", "right", "left"]].set_visible(False)
    last = instrument == separation.dictionary.num_instruments - 1
    axes.set_xlabel("harmonic" if last else "", fontsize=9)
    _title(axes, "harmonics")


def _draw_confidence(axes, separation):
    """Large where every other explanation of a frame would cost much more."""
    shown = np.minimum(separation.confidence, _SURE)
    step = max(1, len(shown) // MAX_COLUMNS)
    axes.fill_between(separation.times[::step], shown[::step], color="0.6", linewidth=0, step="mid")
    axes.set_ylim(0, _SURE)
    axes.set_yticks([0, _SURE], ["0", f"≥ {_SURE}"])
    axes.tick_params(labelsize=8, length=2)
    axes.set_xlabel("time (s)", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    _title(axes, "confidence in the notes")


def _draw_costs(axes, costs):
    axes.plot(np.arange(1, len(costs) + 1), costs, color="0.3", marker="o", markersize=3, linewidth=1)
    axes.set_xticks(np.arange(1, len(costs) + 1))
    axes.tick_params(labelsize=8, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("round", fontsize=9)
    _title(axes, "cost")


def _draw_key(figure, axes, picture, names):
    axes.set_axis_off()
    marks = [
        Line2D([], [], linestyle="", marker="o", markersize=5, color=_colour(n), label=name)
        for n, name in enumerate(names)
    ]
    _title(axes, "fundamentals")
    axes.legend(handles=marks[:_MAX_KEYS], loc="upper left", frameon=False, fontsize=8)
    bar = figure.colorbar(picture, cax=axes.inset_axes((0.06, 0.14, 0.88, 0.06)), orientation="horizontal")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.set_label("dB relative to the loudest", fontsize=8)


def _title(axes, text, colour="black"):
    axes.set_title(text, loc="left", fontsize=9, pad=4, color=colour, fontweight="bold")


def _colour(instrument):
    return _COLOURS[instrument % len(_COLOURS)]

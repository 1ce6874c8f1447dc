"""The Beurling LASSO: grids that approach it, false spikes in noise, speed beside others, separation."""

import time
import warnings
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import typer
from matplotlib.figure import Figure

from benchmarks.common import PICTURES, Piece, Report, Seconds, load_piece, markdown_table, scores, split_list
from jaxsep.audio import resample
from jaxsep.blasso.certificate import alpha_max
from jaxsep.blasso.decompose import largest_spikes
from jaxsep.blasso.lasso import BeurlingLasso
from jaxsep.blasso.patterns import Patterns
from jaxsep.blasso.projection import Projection
from jaxsep.blasso.spikes import Spikes, synthesise
from jaxsep.pursuit.loss import LiftedLoss
from jaxsep.separation.chunks import ANALYSIS_RATE, log_spectra, resynthesise
from jaxsep.separation.separate import separate
from jaxsep.separation.settings import SeparationSettings
from jaxsep.signal.axes import LogAxis
from jaxsep.signal.peaks import PeakPursuit
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.dictionary import NUM_HARMONICS, Dictionary

PIECE = "k487_08_recorder_violin"
PICTURE = PICTURES / "blasso_grid.png"
SPACINGS = (1, 1 / 2, 1 / 4, 1 / 8)
#: Part of `alpha_max` in all synthetic problems.
FRACTION = 0.1


def main(
    quick: bool = False,
    parts: Annotated[str, typer.Option(help="Of grid, noise, speed, piece, separated by commas.")] = "",
    seconds: Seconds = None,
) -> None:
    """Grid refinement, false spikes, speed, and a separation with the Beurling LASSO."""
    chosen = split_list(parts) or ["grid", "noise", "speed", "piece"]
    report = Report("blasso", quick=quick)
    if "grid" in chosen:
        with jax.enable_x64(True):
            found = grid_refinement(1 if quick else 4)
        if not quick:
            draw(found)
        title = "Optimal value on a grid, relative to that of the continuum"
        report.part("grid", found, title, grid_table(found))
    if "noise" in chosen:
        found = false_spikes(2 if quick else 40)
        report.part("noise", found, "Spikes found, 3 true ones of each pattern", noise_table(found))
    if "speed" in chosen:
        found = speed(2 if quick else 8, 1 if quick else 2)
        report.part("speed", found, "Seconds per frame, 2 instruments, 1024 bins", speed_table(found))
    if "piece" in chosen:
        found = piece(3.0 if quick and seconds is None else seconds, quick)
        report.part("piece", found, f"{PIECE}: mean SDR in dB, mean lifted loss, seconds", piece_table(found))
    report.end()


def instruments() -> np.ndarray:
    """A hollow and a bright instrument, `[2, harmonics]`."""
    h = np.arange(1, NUM_HARMONICS + 1)
    bright = np.minimum(h / 3, 1) * np.exp(-h / 6)
    return np.stack([(h % 2 + 0.02) / h**1.3 / 1.02, bright / bright.max()])


def problems(count: int, notes: int, noise: float, dtype, *, seed: int = 0):
    """Patterns, and signals `[count, bins]` of so many notes of each instrument in noise."""
    patterns = Patterns.from_dictionary(jnp.asarray(instruments(), dtype), LogAxis())
    rng = np.random.default_rng(seed)
    shape = count, 2 * notes
    spikes = Spikes(
        jnp.asarray(rng.uniform(0.3, 1, shape), dtype),
        jnp.asarray(rng.uniform(150, 500, shape), dtype),
        jnp.asarray(np.tile(np.repeat([0, 1], notes), (count, 1)), jnp.int32),
        jnp.ones(shape, dtype),
        jnp.ones(shape, bool),
    )
    clean = jax.vmap(lambda s: synthesise(patterns, s).sum(axis=0))(spikes)
    level = noise * jnp.max(clean, axis=1, keepdims=True)
    return patterns, clean + level * jnp.asarray(rng.standard_normal(clean.shape), dtype), spikes


@eqx.filter_jit
def bounds(patterns, signals):
    """α of every frame."""
    return FRACTION * jax.vmap(lambda b: alpha_max(patterns, b))(signals)


@eqx.filter_jit
def solve(lasso, patterns, signals, alpha):
    """All frames, compiled once for each shape."""
    return lasso(patterns, signals, alpha)


# ---- Grid refinement --------------------------------------------------------------------------------------


def grid_atoms(patterns, spacing):
    """Patterns at all shifts of a grid, `[shifts of both patterns, bins]`."""
    shifts = jnp.arange(0, patterns.num_bins - 1 + 1e-9, spacing, dtype=patterns.table.dtype)
    atoms = jax.jit(lambda row: patterns.atoms(shifts, row)[0])
    return np.concatenate([atoms(jnp.full(shifts.size, row, jnp.int32)) for row in (0, 1)])


def coordinate_descent(atoms, tolerance):
    """`run(signal, alpha)` solves the nonnegative LASSO with scikit-learn and returns its value."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso

    columns = np.asfortranarray(atoms.T)

    def run(signal, alpha):
        solver = Lasso(
            alpha=float(alpha) / signal.size,
            positive=True,
            fit_intercept=False,
            max_iter=20_000,
            tol=tolerance,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            coefficients = solver.fit(columns, signal).coef_
        residual = signal - columns @ coefficients
        return 0.5 * float(residual @ residual) + float(alpha) * float(coefficients.sum())

    return run


def grid_refinement(count: int) -> list[dict[str, float]]:
    """Mean of (grid optimum / continuous optimum - 1) for every spacing."""
    patterns, signals, _ = problems(count, 2, 0.0, jnp.float64)
    alpha = bounds(patterns, signals)
    found = solve(BeurlingLasso(proximal_steps=0), patterns, signals, alpha)
    rows = []
    for spacing in SPACINGS:
        run = coordinate_descent(grid_atoms(patterns, spacing), 1e-7)
        values = np.array([run(np.asarray(b), a) for b, a in zip(signals, alpha, strict=True)])
        excess = float(np.mean(values / np.asarray(found.certificate.dual) - 1))
        rows.append({"spacing": float(spacing), "excess": excess})
        print(rows[-1], flush=True)
    rows[0]["gap"] = float(found.certificate.relative_gap.max())
    return rows


def rate(rows: list[dict[str, float]]) -> float:
    """Slope of the excess over the spacing, both logarithmic."""
    return float(np.polyfit(*np.log([[r["spacing"] for r in rows], [r["excess"] for r in rows]]), 1)[0])


def grid_table(rows) -> str:
    """Markdown of `grid_refinement`."""
    cells = [[f"{r['spacing']:g}", f"{r['excess']:.2e}"] for r in rows]
    table = markdown_table(["spacing (bins)", "excess"], cells)
    return f"{table}\n\nrate {rate(rows):.2f}; relative gap of the continuum {rows[0]['gap']:.1e}"


def draw(rows: list[dict[str, float]]) -> None:
    """Excess over the spacing, both logarithmic."""
    spacing, excess = (np.array([r[name] for r in rows]) for name in ("spacing", "excess"))
    figure = Figure(figsize=(5.5, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.loglog(spacing, excess, "o-", color="#0072B2", label=f"measured: rate {rate(rows):.2f}")
    axes.loglog(
        spacing, excess[0] * (spacing / spacing[0]) ** 2, "--", color="0.5", label="square of the spacing"
    )
    axes.set_xticks(spacing, [f"1/{round(1 / s)}" if s < 1 else "1" for s in spacing], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("spacing of the grid in bins")
    axes.set_ylabel("grid optimum / optimum - 1")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE)


# ---- False spikes -----------------------------------------------------------------------------------------


def false_spikes(count: int) -> list[dict[str, float]]:
    """Mean number of spikes farther than a bin from all true ones, and of true ones that were found."""
    rows = []
    for noise in (0.0, 0.003, 0.01, 0.03, 0.1):
        patterns, signals, truth = problems(count, 3, noise, jnp.float32)
        found = solve(BeurlingLasso(proximal_steps=0), patterns, signals, bounds(patterns, signals))
        mine, true = found.spikes, truth
        near = np.abs(np.asarray(mine.position)[:, :, None] - np.asarray(true.position)[:, None]) < 1
        near &= np.asarray(mine.pattern)[:, :, None] == np.asarray(true.pattern)[:, None]
        near &= np.asarray(mine.active)[:, :, None]
        mass = np.asarray(mine.amplitude) * ~near.any(axis=2)
        rows.append(
            {
                "noise": noise,
                "found": float(near.any(axis=1).sum(axis=1).mean()),
                "false": float((np.asarray(mine.active) & ~near.any(axis=2)).sum(axis=1).mean()),
                "false mass": float(np.mean(mass.sum(axis=1) / np.asarray(mine.amplitude).sum(axis=1))),
            }
        )
    return rows


def noise_table(rows) -> str:
    """Markdown of `false_spikes`."""
    header = ["noise / peak", "true spikes found (of 6)", "false spikes", "part of the mass"]
    cells = [
        [f"{r['noise']:g}", f"{r['found']:.1f}", f"{r['false']:.1f}", f"{r['false mass']:.1%}"] for r in rows
    ]
    return markdown_table(header, cells)


# ---- Speed ------------------------------------------------------------------------------------------------


def convolutional_bpdn(patterns):
    """`run(signals, alpha)` solves nonnegative convolutional BPDN on whole bins with sporco."""
    from sporco.admm import cbpdn

    filters = np.asarray(patterns.table[:, 0], np.float64).T
    options = cbpdn.ConvBPDN.Options(
        {
            "Verbose": False,
            "NonNegCoef": True,
            "MaxMainIter": 200,
            "RelStopTol": 1e-3,
            "AutoRho": {"Enabled": True},
        }
    )

    def run(signals, alpha):
        # What is cut off at the ends of the line falls into the padding.
        padded = np.pad(np.asarray(signals, np.float64), ((0, 0), (0, filters.shape[0]))).T
        values = []
        for column, a in zip(padded.T, alpha, strict=True):
            solver = cbpdn.ConvBPDN(filters, column, float(a), options, dimK=0, dimN=1)
            solver.solve()
            residual = column - solver.reconstruct().squeeze()
            values.append(0.5 * float(residual @ residual) + float(a) * float(np.abs(solver.getcoef()).sum()))
        return values

    return run


def speed(count: int, repeats: int) -> list[dict[str, Any]]:
    """Seconds per frame and mean value of every solver, in turns in one process."""
    patterns, signals, _ = problems(count, 2, 0.01, jnp.float32)
    alpha = np.asarray(bounds(patterns, signals))
    ours = lambda lasso: (
        lambda: np.asarray(solve(lasso, patterns, signals, jnp.asarray(alpha)).certificate.primal)
    )
    frames = np.asarray(signals)
    contenders = {
        "one projection (float32)": ours(BeurlingLasso(proximal_steps=0)),
        "proximal gradient (float32)": ours(BeurlingLasso(Projection(max_spikes=16))),
    }
    for spacing in (1, 1 / 4):
        run = coordinate_descent(grid_atoms(patterns, spacing), 1e-4)
        contenders[f"coordinate descent, scikit-learn, spacing {spacing:g}"] = lambda run=run: [
            run(b, a) for b, a in zip(frames, alpha, strict=True)
        ]
    try:
        import sporco  # noqa: F401
    except ImportError:
        print("sporco is not installed: pip install sporco")
    else:
        bpdn = convolutional_bpdn(patterns)
        contenders["convolutional BPDN, sporco, spacing 1"] = lambda: bpdn(frames, alpha)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    values = {}
    for _ in range(1 + repeats):  # the first turn compiles
        for name, run in contenders.items():
            begin = time.perf_counter()
            values[name] = float(np.mean(run()))
            seconds[name].append(time.perf_counter() - begin)
    return [
        {"solver": name, "seconds": min(seconds[name][1:]) / count, "value": values[name]}
        for name in contenders
    ]


def speed_table(rows) -> str:
    """Markdown of `speed`."""
    best = rows[0]
    cells = [
        [
            r["solver"],
            f"{1e3 * r['seconds']:.1f}",
            f"{r['seconds'] / best['seconds']:.1f}",
            f"{r['value'] / best['value'] - 1:+.1e}",
        ]
        for r in rows
    ]
    return markdown_table(["solver", "ms per frame", "ratio", "value relative to the first"], cells)


# ---- A recording ------------------------------------------------------------------------------------------


def piece(seconds: float | None, quick: bool) -> dict[str, float]:
    """Mean gain-only SDR of the pursuit and, with its dictionary, of the Beurling LASSO, part by part."""
    music = load_piece(PIECE, seconds)
    request = music.mixture, music.sample_rate, len(music.instruments)
    key = jax.random.key(0)
    fast = {"restarts": 1, "steps": 6} if quick else {}
    pursued = separate(*request, settings=SeparationSettings(**fast), key=key)
    mean = lambda stems: float(np.mean(scores(music.stems, stems)["sdr"]))
    figures = {"pursuit, blind": mean(pursued.stems)}
    for lift in (0.5, 1.0):
        for alpha in (0.3,) if quick else (0.15, 0.3, 0.5):
            stems = stems_of_spikes(music, pursued.dictionary, lift, alpha)
            figures[f"spikes alone, lift {lift}, alpha {alpha}"] = mean(stems)
    for search in ("greedy", "full"):
        for method in ("pursuit", "blasso"):
            settings = SeparationSettings(method=method, search=search, **fast)
            found = separate(*request, settings=settings, dictionary=pursued.dictionary, key=key)
            figures[f"{method}, search {search}"] = mean(found.stems)
            figures[f"{method}, search {search}: loss"] = float(found.loss.mean())
            figures[f"{method}, search {search}: seconds"] = found.seconds["pursuit"]
    return figures


def stems_of_spikes(music: Piece, dictionary: Dictionary, lift: float, alpha: float) -> np.ndarray:
    """Stems that the largest spikes of every frame give, with nothing refined."""
    settings, axis = SeparationSettings(), LogAxis()
    stft = GaussianSTFT(hop=settings.hop)
    samples = resample(music.mixture[None].astype(np.float32), music.sample_rate, ANALYSIS_RATE)
    peaks, nobody = PeakPursuit(), lambda: None
    spectra = log_spectra(samples[0], stft, axis, peaks, nobody, settings.lowest).pitched
    peak = spectra.max()
    tones = largest_spikes(LiftedLoss(axis, lift), spectra / peak, dictionary.harmonics, alpha, 1)
    tones = jax.tree.map(np.asarray, tones.in_hz(axis, float(peak)))
    harmonics = np.asarray(dictionary.of(tones))
    number = dictionary.num_instruments
    stems = resynthesise(samples, tones, harmonics, number, stft, settings, lambda: None)
    stems = resample(stems[:, 0], ANALYSIS_RATE, music.sample_rate)[:, : music.mixture.size]
    return np.pad(stems, [(0, 0), (0, music.mixture.size - stems.shape[1])])


def piece_table(figures) -> str:
    """Markdown of `piece`."""
    return markdown_table(["method", "figure"], [[name, f"{x:.2f}"] for name, x in figures.items()])

"""The Beurling LASSO beside other solvers, away from music: signed spikes, blurred or low-passed."""

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.common import Report, markdown_table
from benchmarks.spike_solvers import Measure, SpikeProblem, polyatomic_frank_wolfe, sliding_frank_wolfe
from jaxsep.blasso.certificate import alpha_max, certify
from jaxsep.blasso.lasso import BeurlingLasso
from jaxsep.blasso.patterns import Patterns
from jaxsep.blasso.projection import Projection
from jaxsep.blasso.spikes import Spikes

#: Relative gap at which every solver ends, in double precision.
TOLERANCE = 1e-6
#: Part of `alpha_max`.
FRACTION = 0.05
#: Spacing of the grids, in bins.
SPACING = 1 / 8
#: Standard deviation of the noise, relative to the largest sample.
NOISE = 0.01
#: What takes more seconds than this for its problems, compiled, has no further turn.
PATIENCE = 10.0
#: pyxu ends at this relative change of the masses, or after so many steps of a millisecond or two, and has so
#: many of the problems.
CHANGE, STEPS, FEW = 1e-4, 4000, 2


class Kind(NamedTuple):
    """Problems of one kind: patterns for jaxsep, and the same for the others."""

    patterns: Patterns
    problems: list[SpikeProblem]


class Contender(NamedTuple):
    """A solver of the first so many problems of a kind; a first turn that compiles does not count."""

    run: Callable[[], list[Measure]]
    count: int
    compiles: bool = False

    def counted(self, seconds: list[float]) -> list[float]:
        """Of the seconds of all turns those that count."""
        return seconds[int(self.compiles) :]


def main(quick: bool = False) -> None:
    """Seconds, spikes and certified gap of Beurling LASSO solvers: deconvolution, two waveforms, Fourier."""
    report = Report("spikes", quick=quick, about=absent())
    with jax.enable_x64(True):
        for name, build in KINDS.items():
            kind = build(2 if quick else 8)
            found = compare(kind, 1 if quick else 2)
            problem = kind.problems[0]
            title = f"{name}: {problem.signal.size} bins, {len(problem.shapes)} waveforms, 10 signed spikes"
            report.part(name, found, title, table(found))
    report.end()


def absent() -> str:
    """What pyxu is here, in one line."""
    try:
        name = f"pyxu {version('pyxu')}"
    except ImportError:
        return "pyxu is not installed (pip install 'pyxu>=2', Python below 3.13): its row is left out"
    return (
        f"{name}: no release up to 2.0.3 has a Frank–Wolfe method (pyfw-lasso, of that method's authors, is "
        "not released); the accelerated proximal gradient on a grid stands in"
    )


# ---- Problems ---------------------------------------------------------------------------------------------


def gaussian(width: float) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A bump of that standard deviation in bins, and its derivative."""

    def shape(t):
        value = np.exp(-0.5 * (t / width) ** 2)
        return value, -t / width**2 * value

    return shape


def ricker(width: float) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The negative second derivative of a Gaussian, and its derivative."""

    def shape(t):
        value, square = np.exp(-0.5 * (t / width) ** 2), (t / width) ** 2
        return (1 - square) * value, (square - 3) * t / width**2 * value

    return shape


def low_pass(highest: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The Dirichlet kernel of the frequencies up to the highest, and its derivative."""
    number = 2 * highest + 1

    def shape(t):
        middle = np.abs(t) < 1e-5
        t = np.where(middle, 1e-5, t)
        sine, cosine = np.sin(np.pi * t / number), np.cos(np.pi * t / number)
        value = np.sin(np.pi * t) / (number * sine)
        slope = np.pi * (np.cos(np.pi * t) / sine - np.sin(np.pi * t) * cosine / (number * sine**2)) / number
        return np.where(middle, 1, value), np.where(middle, 0, slope)

    return shape


def on_a_line(shapes, functions, reach: float, count: int) -> Kind:
    """Problems on 256 bins of a line."""
    patterns = Patterns.from_functions(functions, 256, (-reach, reach), dtype=jnp.float64)
    return Kind(patterns, problems_of(patterns, shapes, (20.0, 235.0), (0.0, 255.0), False, count))


def deconvolution(count: int) -> Kind:
    """A Gaussian of three bins."""
    return on_a_line([gaussian(3.0)], [lambda t: jnp.exp(-0.5 * (t / 3) ** 2)], 27.0, count)


def two_waveforms(count: int) -> Kind:
    """Ricker wavelets of three and six bins that overlap."""
    wavelet = lambda width: lambda t: (1 - (t / width) ** 2) * jnp.exp(-0.5 * (t / width) ** 2)
    return on_a_line([ricker(3.0), ricker(6.0)], [wavelet(3.0), wavelet(6.0)], 56.0, count)


def fourier(count: int) -> Kind:
    """The Fourier coefficients up to the fiftieth of a measure on the circle."""
    patterns = Patterns.from_fourier(jnp.ones((1, 51), jnp.complex128), 101)
    return Kind(patterns, problems_of(patterns, [low_pass(50)], (0.0, 101.0), (0.0, 101.0), True, count))


def problems_of(patterns, shapes, inside, shifts, circle, count) -> list[SpikeProblem]:
    """Signals of 10 spikes with masses of ±0.3 to ±1, those of one waveform at least four bins apart."""
    problems = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        apart = (inside[1] - inside[0]) / 10
        position = inside[0] + apart * np.arange(10) + rng.uniform(0, apart - 4, 10)
        pattern = rng.permutation(np.arange(10) % len(shapes))
        mass = rng.uniform(0.3, 1, 10) * rng.choice([-1, 1], 10)
        empty = SpikeProblem(tuple(shapes), np.zeros(patterns.num_bins), 0.0, shifts, circle)
        signal = mass @ empty.atoms(position, pattern)[0]
        signal += NOISE * np.abs(signal).max() * rng.standard_normal(signal.size)
        alpha = FRACTION * float(alpha_max(patterns, jnp.asarray(signal), signed=True))
        problems.append(empty._replace(signal=signal, alpha=alpha))
    return problems


KINDS = {"deconvolution": deconvolution, "two waveforms": two_waveforms, "Fourier": fourier}


# ---- Solvers ----------------------------------------------------------------------------------------------


@eqx.filter_jit
def _solve(lasso, patterns, signals, alpha):
    return lasso(patterns, signals, alpha).spikes


def jaxsep_solver(kind: Kind, proximal_steps: int, together: bool) -> Callable[[], list[Measure]]:
    """Ours, one problem after the other, or all in one call."""
    lasso = BeurlingLasso(Projection(signed=True, tolerance=TOLERANCE), proximal_steps)
    signals = jnp.asarray(np.stack([p.signal for p in kind.problems]))
    alpha = jnp.asarray([p.alpha for p in kind.problems])
    size = len(kind.problems) if together else 1

    def run():
        parts = [
            jax.block_until_ready(_solve(lasso, kind.patterns, signals[i : i + size], alpha[i : i + size]))
            for i in range(0, len(kind.problems), size)
        ]
        return [measure(part, i) for part in parts for i in range(size)]

    return run


def measure(spikes: Spikes, frame: int) -> Measure:
    """The active spikes of a frame."""
    mine = jax.tree.map(lambda x: np.asarray(x[frame]), spikes)
    active = mine.active
    return Measure((mine.sign * mine.amplitude)[active], mine.position[active], mine.pattern[active])


def pyxu_proximal_gradient(problem: SpikeProblem, grid: tuple) -> Measure:
    """Accelerated proximal gradient of pyxu on the grid, until the masses change by less than `CHANGE`."""
    import pyxu.abc as pxa
    import pyxu.operator as pxo
    import pyxu.opt.solver as pxs
    import pyxu.opt.stop as stops

    position, pattern, atoms = grid
    columns = np.ascontiguousarray(atoms.T)
    synthesis = pxa.LinOp.from_array(columns)
    synthesis.lipschitz = float(np.linalg.norm(columns, 2))
    square = pxo.SquaredL2Norm(dim_shape=problem.signal.size).argshift(-problem.signal)
    solver = pxs.PGD(
        0.5 * square * synthesis, problem.alpha * pxo.L1Norm(dim_shape=position.size), show_progress=False
    )
    stop = stops.RelError(eps=CHANGE) | stops.MaxIter(STEPS)
    solver.fit(x0=np.zeros(position.size), stop_crit=stop)
    mass = solver.solution()
    kept = mass != 0
    return Measure(mass[kept], position[kept], pattern[kept])


def contenders(kind: Kind) -> dict[str, Contender]:
    """Every solver."""
    count, grid = len(kind.problems), kind.problems[0].grid(SPACING)
    ours = lambda steps, together: Contender(jaxsep_solver(kind, steps, together), count, compiles=True)
    each = lambda solver: Contender(lambda: [solver(p, grid, TOLERANCE) for p in kind.problems], count)
    found = {
        "jaxsep, one projection": ours(0, False),
        f"jaxsep, one projection, {count} together": ours(0, True),
        "jaxsep, proximal gradient (P3)": ours(400, False),
        "sliding Frank–Wolfe (own reference)": each(sliding_frank_wolfe),
        "polyatomic Frank–Wolfe on a grid (own reference)": each(polyatomic_frank_wolfe),
    }
    try:
        import pyxu.opt.solver  # noqa: F401
    except ImportError:
        return found
    few = kind.problems[:FEW]
    theirs = Contender(lambda: [pyxu_proximal_gradient(p, grid) for p in few], len(few))
    return found | {"proximal gradient on a grid, pyxu": theirs}


# ---- Figures ----------------------------------------------------------------------------------------------


def certified_gap(kind: Kind, problem: SpikeProblem, found: Measure) -> float:
    """Relative gap over all real shifts, whatever the solver knows about them."""
    residual = problem.signal - found.mass @ problem.atoms(found.position, found.pattern)[0]
    signal, residual = jnp.asarray(problem.signal), jnp.asarray(residual)
    largest = jnp.max(kind.patterns.maxima(residual, signed=True).value)
    mass = jnp.asarray(np.abs(found.mass).sum())
    return float(certify(signal, residual, jnp.asarray(problem.alpha), largest, mass).relative_gap)


def compare(kind: Kind, repeats: int) -> list[dict[str, Any]]:
    """Best seconds per problem of each solver, in turns, with spikes and gaps."""
    solvers = contenders(kind)
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    found = {}
    for _ in range(1 + repeats):
        for name, solver in solvers.items():
            if min(solver.counted(seconds[name]), default=0) > PATIENCE:
                continue
            # Of systems this small the threads of BLAS make NumPy and SciPy ten times slower.
            with threadpool_limits(1, user_api="blas"):
                begin = time.perf_counter()
                found[name] = solver.run()
                seconds[name].append(time.perf_counter() - begin)
            print(f"{name}: {seconds[name][-1]:.2f} s for {solver.count}", flush=True)
    rows = []
    for name, measures in found.items():
        pairs = zip(kind.problems, measures, strict=False)  # some have the first few alone
        gaps = [certified_gap(kind, problem, each) for problem, each in pairs]
        rows.append(
            {
                "solver": name,
                "first": seconds[name][0],
                "seconds": min(solvers[name].counted(seconds[name])) / len(measures),
                "spikes": float(np.mean([each.mass.size for each in measures])),
                "gap": float(np.median(gaps)),
                "largest gap": float(np.max(gaps)),
                "solved": sum(gap <= TOLERANCE for gap in gaps),
                "problems": len(gaps),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of `compare`."""
    cells = [
        [
            row["solver"],
            f"{1e3 * row['seconds']:.1f}",
            f"{row['seconds'] / rows[0]['seconds']:.2g}",
            f"{row['spikes']:.1f}",
            f"{row['gap']:.1e}",
            f"{row['largest gap']:.1e}",
            f"{row['solved']} of {row['problems']}",
        ]
        for row in rows
    ]
    header = ["solver", "ms per problem", "ratio", "spikes", "median gap", "largest gap", f"≤ {TOLERANCE:g}"]
    return markdown_table(header, cells)

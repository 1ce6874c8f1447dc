"""Sparse pursuit and dictionary learning (P1) in NumPy and SciPy: an oracle for tests, a baseline for timing.

One frame at a time, in float64. Each Gaussian is evaluated within ±6σ, gradients are analytic, and the
bounded refinement is SciPy's L-BFGS-B. Its stopping test is absolute when the loss is below 1, so every
pursuit and refinement first divides the spectrum by its peak: the work does not depend on the input's level,
and δ is relative to the peak. The unknowns are scaled by their curvature, since L-BFGS-B is not invariant to
their units. Amplitudes and losses are returned at the level of the input.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import fft
from scipy.ndimage import maximum_filter1d
from scipy.optimize import Bounds, minimize

F_MIN, F_MAX = 20.0, 20_480.0  # Hz: the logarithmic axis
BIN_WIDTH = 48_000 / 12_288  # Hz: the linear axis
SIGMA_0 = 6 / np.pi  # bins: width of a stationary sinusoid under a Gaussian window cut at ±6ζ
MIN_WIDTH, MAX_WIDTH = 0.8 * SIGMA_0, 1.5 * SIGMA_0
MAX_INHARMONICITY = 2e-3
CUTOFF = 6.0  # a Gaussian is negligible beyond this many σ


class Peaks(NamedTuple):
    """Gaussians on a frequency axis; position and width in bins."""

    amplitude: Float[np.ndarray, "peaks"]
    position: Float[np.ndarray, "peaks"]
    width: Float[np.ndarray, "peaks"]


class Tones(NamedTuple):
    """Tones on the logarithmic axis; position (of the natural fundamental) and width in bins."""

    amplitude: Float[np.ndarray, "tones"]
    position: Float[np.ndarray, "tones"]
    width: Float[np.ndarray, "tones"]
    inharmonicity: Float[np.ndarray, "tones"]
    instrument: Int[np.ndarray, "tones"]


class AdamState(NamedTuple):
    """Moments of the modified Adam, and each instrument's age in steps and summed amplitude."""

    first_moment: Float[np.ndarray, "instruments harmonics"]
    second_moment: Float[np.ndarray, "instruments"]
    age: Float[np.ndarray, "instruments"]
    amplitude: Float[np.ndarray, "instruments"]


# ---- Tone model -------------------------------------------------------------------------------------------


def _superpose(height, centre, width, num_bins, p=1.0):
    """Return (Σ_j (h_j·exp(−(f − c_j)²/(2σ_j²)))^p)^(1/p) and the pullback of ∂L/∂spectrum to (h, c, σ)."""
    half = int(np.ceil(CUTOFF * width.max(initial=0.0)))
    margin = 2 * half + 1  # room for windows that lie partly or wholly outside the axis
    offset = np.arange(-half, half + 1.0)
    nearest = np.clip(np.rint(centre), -half - 1, num_bins + half)
    shift = nearest - centre
    bins = (nearest.astype(np.intp) + margin)[:, None] + np.arange(-half, half + 1)
    shape = np.exp(-0.5 * ((offset + shift[:, None]) / width[:, None]) ** 2)
    power = shape * height[:, None] if p == 1 else (shape * height[:, None]) ** p
    inside = slice(margin, margin + num_bins)
    total = np.bincount(bins.ravel(), power.ravel(), minlength=num_bins + 2 * margin)[inside]
    spectrum = total if p == 1 else total ** (1 / p)
    moments = np.stack([np.ones_like(offset), offset, offset**2], axis=1)

    def pullback(weight):
        if p != 1:  # ∂Y/∂v = (v/Y)^(p−1), which is 0 where nothing sounds
            weight = weight * np.where(total > 0, total, np.inf) ** (1 / p - 1)
        padded = np.zeros(num_bins + 2 * margin)
        padded[inside] = weight
        slope = padded[bins] * shape
        if p != 1:
            slope *= (shape * height[:, None]) ** (p - 1)
        # Σ w·g·d^k, k = 0, 1, 2, with d = offset + shift, from the moments about the nearest bin
        m0, m1, m2 = (slope @ moments).T
        d1 = m1 + shift * m0
        d2 = m2 + shift * (2 * m1 + shift * m0)
        return m0, height * d1 / width**2, height * d2 / width**3

    return spectrum, pullback


def _bins_per_e_fold(num_bins):
    return num_bins / np.log(F_MAX / F_MIN)


def _partials(tones, dictionary, num_bins):
    """Return height, centre and width of every partial [tones, harmonics], and ∂centre/∂b."""
    h = np.arange(1, dictionary.shape[1] + 1)
    c = _bins_per_e_fold(num_bins)
    stretch = 1 + tones.inharmonicity[:, None] * h**2
    height = tones.amplitude[:, None] * dictionary[tones.instrument]
    centre = tones.position[:, None] + c * (np.log(h) + 0.5 * np.log(stretch))
    width = np.repeat(tones.width[:, None], len(h), axis=1)
    return height, centre, width, 0.5 * c * h**2 / stretch


def render(
    tones: Tones, dictionary: Float[np.ndarray, "instruments harmonics"], num_bins: int = 1024, p: float = 1.0
) -> Float[np.ndarray, "{num_bins}"]:
    """Spectrum of the tones on the logarithmic axis (P1).

    Y[f] = (Σ_k Σ_h (a_k·D[η_k,h]·exp(−(f − μ_{k,h})²/(2σ_k²)))^p)^(1/p) with
    μ_{k,h} = μ_k + c·(ln h + ½ ln(1 + b_k h²)), c = num_bins/ln(F_MAX/F_MIN), from 20 Hz to 20 480 Hz.
    """
    height, centre, width, _ = _partials(tones, dictionary, num_bins)
    return _superpose(height.ravel(), centre.ravel(), width.ravel(), num_bins, p)[0]


def _lifted_loss(spectrum, target, q, delta):
    """Return ½ Σ ((Y+δ)^q − (y+δ)^q)² and its gradient in Y."""
    lifted = (spectrum + delta) ** q
    difference = lifted - (target + delta) ** q
    return 0.5 * difference @ difference, q * difference * lifted / (spectrum + delta)


def _tone_loss(unknowns, instrument, dictionary, spectrum, q, delta, p):
    """Return the loss of tones (a, μ, σ, b), its gradient in these, and ∂L/∂height of each partial."""
    height, centre, width, bend = _partials(Tones(*unknowns, instrument), dictionary, len(spectrum))
    rendered, pullback = _superpose(height.ravel(), centre.ravel(), width.ravel(), len(spectrum), p)
    loss, weight = _lifted_loss(rendered, spectrum, q, delta)
    d_height, d_centre, d_width = (g.reshape(height.shape) for g in pullback(weight))
    by_partial = (d_height * dictionary[instrument], d_centre, d_width, d_centre * bend)
    return loss, np.stack([g.sum(1) for g in by_partial]), d_height


def lifted_loss_and_gradient(
    tones: Tones,
    dictionary: Float[np.ndarray, "instruments harmonics"],
    spectrum: Float[np.ndarray, "bins"],
    *,
    q: float = 0.5,
    delta: float = 1e-7,
    p: float = 1.0,
) -> tuple[float, Float[np.ndarray, "4 tones"], Float[np.ndarray, "instruments harmonics"]]:
    """Loss ½ Σ ((Y+δ)^q − (y+δ)^q)², its gradient in (a, μ, σ, b) and its gradient in the dictionary (P1).

    The spectrum is taken as it is, so δ is absolute here.
    """
    *unknowns, instrument = tones
    loss, gradient, d_height = _tone_loss(unknowns, instrument, dictionary, spectrum, q, delta, p)
    played = np.arange(len(dictionary))[:, None] == instrument
    return loss, gradient, played @ (d_height * tones.amplitude[:, None])


# ---- Refinement -------------------------------------------------------------------------------------------


def _normalise(spectrum):
    """Return the spectrum divided by its peak (by 1 at silence) and the divisor."""
    spectrum = np.asarray(spectrum, dtype=float)
    if not (np.isfinite(spectrum).all() and (spectrum >= 0).all()):
        raise ValueError("spectrum: expected finite nonnegative values, got a negative, infinite or NaN one")
    level = spectrum.max() or 1.0
    return spectrum / level, level


def _minimise(loss_and_gradient, start, bounds, scale, tolerance):
    """L-BFGS-B over an array of unknowns [kinds, patterns], each divided by its entry of `scale`."""

    def objective(x):
        loss, gradient = loss_and_gradient(x.reshape(start.shape) * scale)
        return loss, (gradient * scale).ravel()

    lower, upper = (np.array(bound)[:, None] + np.zeros(start.shape) for bound in zip(*bounds, strict=True))
    found = minimize(
        objective,
        (start / scale).ravel(),
        jac=True,
        method="L-BFGS-B",
        bounds=Bounds((lower / scale).ravel(), (upper / scale).ravel()),
        options={"ftol": tolerance, "maxcor": 20 if start.shape[1] < 100 else 10},
    )
    return np.clip(found.x.reshape(start.shape) * scale, lower, upper), found.fun


def _refine_tones(tones, dictionary, spectrum, q, delta, p, tolerance):
    """Refine tones of a spectrum whose peak is 1."""
    *unknowns, instrument = tones
    start = np.stack(unknowns)
    # With q = ½ the curvature is about 1/a in the amplitude and a in position and width (in units of σ_0);
    # 1e-3 of inharmonicity moves the partials that matter by about as much.
    root = np.sqrt(np.maximum(start[0], 1e-2))
    scale = np.stack([root, SIGMA_0 / root, SIGMA_0 / root, 1e-3 / root])
    bounds = (0.0, np.inf), (-np.inf, np.inf), (MIN_WIDTH, MAX_WIDTH), (0.0, MAX_INHARMONICITY)
    data = instrument, dictionary, spectrum, q, delta, p
    found, loss = _minimise(lambda x: _tone_loss(x, *data)[:2], start, bounds, scale, tolerance)
    return Tones(*found, instrument), loss


def refine(
    tones: Tones,
    dictionary: Float[np.ndarray, "instruments harmonics"],
    spectrum: Float[np.ndarray, "bins"],
    *,
    q: float = 0.5,
    delta: float = 1e-7,
    p: float = 1.0,
    tolerance: float = 1e-7,
) -> tuple[Tones, float]:
    """Minimise the lifted loss over (a, μ, σ, b) of all tones, a ≥ 0, σ ∈ [0.8, 1.5]·σ_0, b ∈ [0, 2e-3] (P1).

    δ is relative to the peak; `tolerance` is SciPy's ftol for the spectrum of peak 1.
    """
    spectrum, level = _normalise(spectrum)
    tones = tones._replace(amplitude=tones.amplitude / level)
    tones, loss = _refine_tones(tones, dictionary, spectrum, q, delta, p, tolerance)
    return tones._replace(amplitude=tones.amplitude * level), loss * level ** (2 * q)


def _refine_peaks(peaks, spectrum, tolerance):
    """Refine peaks of a spectrum whose peak is 1, under plain least squares."""

    def loss_and_gradient(unknowns):
        rendered, pullback = _superpose(*unknowns, len(spectrum))
        difference = rendered - spectrum
        return 0.5 * difference @ difference, np.stack(pullback(difference))

    start = np.stack(peaks)
    # The curvature is about 1 in the amplitude and a² in position and width, but units of 1/a would let faint
    # peaks jump away; 1/√a is the better compromise.
    root = np.sqrt(np.maximum(start[0], 1e-3))
    scale = np.stack([np.full_like(root, 0.3), SIGMA_0 / root, SIGMA_0 / root])
    bounds = (0.0, np.inf), (-np.inf, np.inf), (MIN_WIDTH, MAX_WIDTH)
    return Peaks(*_minimise(loss_and_gradient, start, bounds, scale, tolerance)[0])


# ---- Pursuit ----------------------------------------------------------------------------------------------


def _take(patterns, index):
    return type(patterns)(*(field[index] for field in patterns))


def _pursue(spectrum, found, *, select, refine, prune, render, q, beta, rounds):
    """Add, refine, prune and refine while ‖Y^q − y^q‖ falls below β times its last value."""
    target = residual = spectrum**q
    for _ in range(rounds):
        candidates = select(residual)
        if len(candidates.amplitude) == 0:
            break
        joined = refine(type(found)(*map(np.concatenate, zip(found, candidates, strict=True))))
        trial = prune(joined)
        if len(trial.amplitude) < len(joined.amplitude):  # otherwise it is refined already
            trial = refine(trial)
        remainder = target - render(trial) ** q
        if np.linalg.norm(remainder) >= beta * np.linalg.norm(residual):
            break
        found, residual = trial, remainder
    return found


def _tone_selector(dictionary, num_bins, q, p):
    """Return the search for the one tone whose lifted pattern correlates best with a residual."""
    one, left = np.ones(1), int(np.ceil(CUTOFF * SIGMA_0))
    span = num_bins + 2 * left
    size = fft.next_fast_len(num_bins + span, real=True)

    def unit_tone(amplitude, position, instrument):
        return Tones(amplitude * one, position * one, SIGMA_0 * one, 0 * one, np.array([instrument]))

    partials = [_partials(unit_tone(1.0, left, i), dictionary, num_bins)[:3] for i in range(len(dictionary))]
    patterns = np.stack([_superpose(*(x.ravel() for x in three), span, p)[0] ** q for three in partials])
    norm = np.linalg.norm(patterns, axis=1, keepdims=True)
    norm[norm == 0] = np.inf  # an instrument without harmonics is never selected
    transform = np.conj(fft.rfft(patterns / norm, size))

    def select(residual):
        correlation = np.roll(fft.irfft(fft.rfft(residual, size) * transform, size), left, axis=1)[
            :, :num_bins
        ]
        instrument, position = np.unravel_index(correlation.argmax(), correlation.shape)
        amplitude = max(correlation[instrument, position] / norm[instrument, 0], 0.0) ** (1 / q)
        return _take(unit_tone(amplitude, position, instrument), slice(0, int(amplitude > 0)))

    return select


def _prune_tones(tones, per_instrument):
    """Keep each instrument's largest amplitudes."""
    loudest_first = np.argsort(-tones.amplitude, kind="stable")
    instrument = tones.instrument[loudest_first]
    rank = np.array([np.sum(instrument[:k] == i) for k, i in enumerate(instrument)])
    return _take(tones, np.sort(loudest_first[rank < per_instrument]))


def tone_pursuit(
    spectrum: Float[np.ndarray, "bins"],
    dictionary: Float[np.ndarray, "instruments harmonics"],
    *,
    tones_per_instrument: int = 1,
    q: float = 0.5,
    delta: float = 1e-7,
    beta: float = 0.9,
    p: float = 1.0,
    tolerance: float = 1e-7,
) -> tuple[Tones, float]:
    """Find few tones that explain a log-frequency spectrum, and their lifted loss (P1).

    δ is relative to the peak; silence gives no tones.
    """
    target, level = _normalise(spectrum)
    nothing = np.zeros(0)
    tones = _pursue(
        target,
        Tones(nothing, nothing, nothing, nothing, nothing.astype(int)),
        select=_tone_selector(dictionary, len(target), q, p),
        refine=lambda tones: _refine_tones(tones, dictionary, target, q, delta, p, tolerance)[0],
        prune=lambda tones: _prune_tones(tones, tones_per_instrument),
        render=lambda tones: render(tones, dictionary, len(target), p),
        q=q,
        beta=beta,
        rounds=2 * tones_per_instrument * len(dictionary),
    )
    loss, _ = _lifted_loss(render(tones, dictionary, len(target), p), target, q, delta)
    return tones._replace(amplitude=tones.amplitude * level), loss * level ** (2 * q)


def _local_maxima(residual, max_peaks):
    """Largest positive values that dominate the 5 bins around them, as Gaussians of the sinusoid's width."""
    position = np.flatnonzero((residual > 0) & (residual == maximum_filter1d(residual, 5)))
    position = position[np.argsort(-residual[position], kind="stable")[:max_peaks]]
    return Peaks(residual[position], position.astype(float), np.full(len(position), SIGMA_0))


def peak_pursuit(
    magnitudes: Float[np.ndarray, "bins"], *, max_peaks: int = 1000, rounds: int = 20, tolerance: float = 1e-6
) -> Peaks:
    """Sum of single Gaussians that explains a linear-frequency magnitude spectrum: q = 1, β = 1 (P1)."""
    target, level = _normalise(magnitudes)
    peaks = _pursue(
        target,
        Peaks(np.zeros(0), np.zeros(0), np.zeros(0)),
        select=lambda residual: _local_maxima(residual, max_peaks),
        refine=lambda peaks: _refine_peaks(peaks, target, tolerance),
        prune=lambda peaks: _take(peaks, np.argsort(-peaks.amplitude, kind="stable")[:max_peaks]),
        render=lambda peaks: render_peaks(peaks, len(target)),
        q=1,
        beta=1,
        rounds=rounds,
    )
    return peaks._replace(amplitude=peaks.amplitude * level)


def render_peaks(peaks: Peaks, num_bins: int) -> Float[np.ndarray, "{num_bins}"]:
    """Sum of the peaks' Gaussians on the axis of their positions."""
    return _superpose(*peaks, num_bins)[0]


def log_frequency_spectrum(
    peaks: Peaks, *, num_bins: int = 1024, bin_width: float = BIN_WIDTH
) -> Float[np.ndarray, "{num_bins}"]:
    """Move peaks from linear bins of `bin_width` Hz to the logarithmic axis, amplitude and σ kept (P1)."""
    peaks = _take(peaks, peaks.position > 0)
    position = _bins_per_e_fold(num_bins) * np.log(peaks.position * bin_width / F_MIN)
    return render_peaks(peaks._replace(position=position), num_bins)


# ---- Dictionary learning ----------------------------------------------------------------------------------


def adam_state(dictionary: Float[np.ndarray, "instruments harmonics"]) -> AdamState:
    """State of the modified Adam before its first step."""
    per_instrument = np.zeros(len(dictionary))
    return AdamState(np.zeros(dictionary.shape), per_instrument, per_instrument, per_instrument)


def dictionary_step(
    spectrum: Float[np.ndarray, "bins"],
    dictionary: Float[np.ndarray, "instruments harmonics"],
    state: AdamState,
    *,
    tones_per_instrument: int = 1,
    q: float = 0.5,
    delta: float = 1e-7,
    beta: float = 0.9,
    step_size: float = 1e-3,
) -> tuple[Float[np.ndarray, "instruments harmonics"], AdamState, float]:
    """Pursuit in one frame, then a step of Adam with one second moment per instrument, kept in [0, 1] (P1).

    Returns the new dictionary, the new state and the loss before the step.
    """
    limits = {"tones_per_instrument": tones_per_instrument, "beta": beta}
    tones, loss = tone_pursuit(spectrum, dictionary, q=q, delta=delta, **limits)
    target, level = _normalise(spectrum)
    # At the level of the input, so that loud frames count for more.
    gradient = lifted_loss_and_gradient(tones, dictionary, target * level, q=q, delta=delta * level)[2]
    b1, b2, eps = 0.9, 0.999, 1e-8
    age = state.age + 1
    first = b1 * state.first_moment + (1 - b1) * gradient
    second = b2 * state.second_moment + (1 - b2) * np.mean(gradient**2, axis=1)
    rate = step_size / ((1 - b1**age) * (np.sqrt(second / (1 - b2**age)) + eps))
    heard = state.amplitude + np.bincount(tones.instrument, tones.amplitude, len(dictionary))
    return np.clip(dictionary - rate[:, None] * first, 0, 1), AdamState(first, second, age, heard), loss

"""The NumPy and SciPy baseline against closed forms, finite differences, known truth and recorded results."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import scipy_baseline as baseline
from benchmarks.scipy_baseline import SIGMA_0, Peaks, Tones

REFERENCE = Path(__file__).resolve().parents[1] / ".." / "shared" / "reference"
BINS_PER_E_FOLD = 1024 / np.log(1024)


def reference(name):
    path = REFERENCE / name
    if not path.exists():
        pytest.skip(f"recorded results not found: {path}")
    return np.load(path)


def some_dictionary(num_harmonics=25):
    h = np.arange(1, num_harmonics + 1)
    return np.stack([h**-1.5, (h % 2 + 0.05) / h, np.exp(-(((h - 4) / 3) ** 2))])


def some_tones():
    return Tones(
        np.array([0.7, 1.3, 0.4]),
        np.array([310.3, 371.8, 900.6]),  # the last one's upper partials lie beyond the axis
        np.array([1.7, 2.1, 2.6]),
        np.array([2e-4, 0.0, 1.5e-3]),
        np.array([0, 2, 0]),
    )


def dense_render(tones, dictionary, num_bins, p):
    """The tone model's double sum, evaluated at every bin."""
    f = np.arange(num_bins)
    total = np.zeros(num_bins)
    for a, position, width, b, instrument in zip(*tones, strict=True):
        for h, d in enumerate(dictionary[instrument], start=1):
            centre = position + num_bins / np.log(1024) * np.log(h * np.sqrt(1 + b * h * h))
            total += (a * d * np.exp(-((f - centre) ** 2) / (2 * width**2))) ** p
    return total ** (1 / p)


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("num_bins", [256, 1024])
def test_render_is_the_dense_sum(p, num_bins):
    tones, dictionary = some_tones(), some_dictionary()
    tones = tones._replace(position=tones.position * num_bins / 1024)
    dense = dense_render(tones, dictionary, num_bins, p)
    assert dense.max() > 0.1
    np.testing.assert_allclose(
        baseline.render(tones, dictionary, num_bins, p), dense, atol=2e-8 * dense.max(), rtol=0
    )


@pytest.mark.parametrize(("q", "p"), [(0.5, 1.0), (0.5, 2.0), (1.0, 1.0), (1.0, 1.5)])
def test_gradient_is_the_finite_difference(q, p):
    rng = np.random.default_rng(0)
    tones, dictionary, spectrum = some_tones(), rng.uniform(0.2, 1, (3, 25)), rng.uniform(0.1, 1, 1024)

    def loss(array, field):
        # δ well above the cut-off of the Gaussians, so that the cut does not show in a difference
        changed = tones if field == "dictionary" else tones._replace(**{field: array})
        columns = array if field == "dictionary" else dictionary
        return baseline.lifted_loss_and_gradient(changed, columns, spectrum, q=q, delta=1e-2, p=p)[0]

    _, gradient, in_dictionary = baseline.lifted_loss_and_gradient(
        tones, dictionary, spectrum, q=q, delta=1e-2, p=p
    )
    analytic = {**dict(zip(Tones._fields, gradient, strict=False)), "dictionary": in_dictionary}
    assert not in_dictionary[1].any()  # it plays nothing
    for field, values in analytic.items():
        start = dictionary if field == "dictionary" else getattr(tones, field)
        step = 1e-8 if field == "inharmonicity" else 1e-5
        for index in np.ndindex(*start.shape):
            if field == "dictionary" and index[1] % 6:
                continue
            up, down = start.copy(), start.copy()
            up[index] += step
            down[index] -= step
            difference = (loss(up, field) - loss(down, field)) / (2 * step)
            assert values[index] == pytest.approx(difference, rel=2e-4, abs=2e-4), (field, index)


def test_gradient_is_finite_at_silence():
    tones = some_tones()._replace(amplitude=np.zeros(3))
    for p in (1.0, 2.0):
        result = baseline.lifted_loss_and_gradient(tones, some_dictionary(), np.zeros(1024), p=p)
        assert result[0] == 0
        assert all(np.isfinite(part).all() for part in result)


@pytest.mark.parametrize("level", [1e-3, 1.0, 50.0])
def test_two_tones_are_recovered_at_every_level(level):
    truth = Tones(
        level * np.array([1.0, 0.5]),
        np.array([320.4, 447.7]),
        np.array([1.8, 2.3]),
        np.array([1e-4, 4e-4]),
        np.array([0, 1]),
    )
    dictionary = some_dictionary()[:2]
    spectrum = baseline.render(truth, dictionary)
    found, loss = baseline.tone_pursuit(spectrum, dictionary)
    order = np.argsort(found.instrument)
    np.testing.assert_array_equal(found.instrument[order], truth.instrument)
    np.testing.assert_allclose(found.amplitude[order], truth.amplitude, rtol=1e-2)
    np.testing.assert_allclose(found.position[order], truth.position, atol=2e-2)
    np.testing.assert_allclose(found.width[order], truth.width, rtol=1e-2)
    np.testing.assert_allclose(found.inharmonicity[order], truth.inharmonicity, atol=5e-6)
    assert loss < 1e-4 * spectrum.sum() / 2  # of the loss of no tones


def test_refinement_stays_within_its_bounds():
    start = some_tones()
    too_wide = start._replace(width=np.full(3, 4.0), inharmonicity=np.full(3, 4e-3))
    spectrum = baseline.render(too_wide, some_dictionary())
    before = baseline.lifted_loss_and_gradient(start, some_dictionary(), spectrum)[0]
    found, loss = baseline.refine(start, some_dictionary(), spectrum)
    assert loss < 0.5 * before
    assert (found.amplitude >= 0).all()
    assert (found.width >= 0.8 * SIGMA_0).all()
    assert found.width.max() == pytest.approx(1.5 * SIGMA_0)
    assert (found.inharmonicity >= 0).all()
    assert found.inharmonicity.max() == pytest.approx(2e-3)


def test_no_instrument_plays_more_than_its_tones():
    spectrum = baseline.render(some_tones(), some_dictionary())
    for limit in (1, 2):
        found, _ = baseline.tone_pursuit(spectrum, some_dictionary(), tones_per_instrument=limit)
        assert 0 < np.bincount(found.instrument).max() <= limit


@pytest.mark.parametrize("q", [0.5, 1.0])
def test_selection_finds_a_tone_of_the_nominal_shape(q):
    truth = Tones(*np.array([[0.3], [403.0], [SIGMA_0], [0.0]]), np.array([1]))
    select = baseline._tone_selector(some_dictionary(), 1024, q, 1.0)
    found = select(baseline.render(truth, some_dictionary()) ** q)
    for field in Tones._fields:
        np.testing.assert_allclose(getattr(found, field), getattr(truth, field), rtol=1e-6)
    assert len(select(np.zeros(1024)).amplitude) == 0


def test_reported_losses_are_at_the_level_of_the_input():
    dictionary = some_dictionary()
    spectrum = 20 * baseline.render(some_tones(), dictionary) + 0.1
    found, loss = baseline.tone_pursuit(spectrum, dictionary)
    refined, refined_loss = baseline.refine(found, dictionary, spectrum)
    for tones, reported in ((found, loss), (refined, refined_loss)):
        delta = 1e-7 * spectrum.max()
        expected = baseline.lifted_loss_and_gradient(tones, dictionary, spectrum, delta=delta)[0]
        assert reported == pytest.approx(expected, rel=1e-6)
    assert refined_loss <= loss * (1 + 1e-9)


def test_silence_has_no_tones_and_no_peaks():
    tones, loss = baseline.tone_pursuit(np.zeros(1024), some_dictionary())
    assert len(tones.amplitude) == 0
    assert loss == 0
    assert len(baseline.peak_pursuit(np.zeros(512)).amplitude) == 0


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_a_spectrum_must_be_finite_and_nonnegative(bad):
    spectrum = np.ones(64)
    spectrum[3] = bad
    with pytest.raises(ValueError, match="spectrum: expected finite nonnegative values"):
        baseline.peak_pursuit(spectrum)


def test_separated_peaks_are_recovered():
    rng = np.random.default_rng(1)
    position = np.arange(25, 975, 25) + rng.uniform(-4, 4, 38)
    truth = Peaks(rng.uniform(0.05, 1, 38), position, SIGMA_0 * rng.uniform(0.85, 1.4, 38))
    magnitudes = baseline.render_peaks(truth, 1000)
    found = baseline.peak_pursuit(magnitudes, max_peaks=38, tolerance=1e-12)
    order = np.argsort(found.position)
    for field in Peaks._fields:
        np.testing.assert_allclose(getattr(found, field)[order], getattr(truth, field), rtol=2e-3)


def test_peaks_keep_amplitude_and_width_on_the_logarithmic_axis():
    bin_width = 48_000 / 12_288
    hertz = np.array([440.0, 1760.0, -5.0])  # the last one does not exist there
    peaks = Peaks(np.array([0.3, 0.2, 1.0]), hertz / bin_width, np.array([2.0, 2.5, 2.0]))
    f = np.arange(1024)
    expected = sum(
        a * np.exp(-0.5 * ((f - BINS_PER_E_FOLD * np.log(hz / 20)) / width) ** 2)
        for a, hz, width in zip(peaks.amplitude[:2], hertz[:2], peaks.width[:2], strict=True)
    )
    np.testing.assert_allclose(baseline.log_frequency_spectrum(peaks), expected, atol=1e-7)


def test_dictionary_steps_follow_adam_with_one_second_moment_per_instrument():
    dictionary = some_dictionary()
    state = baseline.adam_state(dictionary)
    first, second = np.zeros((3, 25)), np.zeros(3)
    heard = np.zeros(3)
    for step in (1, 2, 3):
        tones = some_tones()._replace(position=some_tones().position + 7.3 * step)
        spectrum = baseline.render(tones, some_dictionary()[::-1])
        found, loss = baseline.tone_pursuit(spectrum, dictionary)
        delta = 1e-7 * spectrum.max()
        gradient = baseline.lifted_loss_and_gradient(found, dictionary, spectrum, delta=delta)[2]
        expected = dictionary.copy()
        for i in range(3):
            first[i] = 0.9 * first[i] + 0.1 * gradient[i]
            second[i] = 0.999 * second[i] + 0.001 * np.mean(gradient[i] ** 2)
            denominator = np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8
            expected[i] -= 1e-2 * first[i] / (1 - 0.9**step) / denominator
            heard[i] += found.amplitude[found.instrument == i].sum()
        dictionary, state, reported = baseline.dictionary_step(spectrum, dictionary, state, step_size=1e-2)
        np.testing.assert_allclose(dictionary, np.clip(expected, 0, 1), rtol=1e-6, atol=1e-9)
        assert reported == pytest.approx(loss)
    np.testing.assert_allclose(state.amplitude, heard)
    np.testing.assert_array_equal(state.age, 3)


@pytest.mark.parametrize("setting", ["trained_tone1", "random4_tone2"])
def test_tones_reach_the_recorded_loss(setting):
    recorded = reference("tone_frames.npz")
    frames = np.arange(0, 100, 10)
    dictionary = recorded[f"{setting}_dictionary"]
    losses = []
    for frame in frames:
        spectrum = recorded["log_spectra"][frame].astype(float)
        found, _ = baseline.tone_pursuit(spectrum, dictionary, tones_per_instrument=int(setting[-1]))
        losses.append(baseline.lifted_loss_and_gradient(found, dictionary, spectrum)[0])
    assert np.mean(losses) < 1.01 * recorded[f"{setting}_loss"][frames].mean()


def test_loss_of_the_recorded_tones():
    recorded = reference("tone_frames.npz")
    for frame in range(0, 100, 20):
        slots = recorded["random4_tone2_tones"][frame]
        instrument, *unknowns = slots[~np.isnan(slots[:, 0])].T
        tones = Tones(*unknowns, instrument.astype(int))
        spectrum = recorded["log_spectra"][frame].astype(float)
        loss, *_ = baseline.lifted_loss_and_gradient(tones, recorded["random4_tone2_dictionary"], spectrum)
        assert loss == pytest.approx(recorded["random4_tone2_loss"][frame], rel=1e-4)


def test_peaks_reach_the_recorded_residual():
    recorded = reference("peak_frames.npz")
    frame = 10
    magnitudes = recorded["linear_spectra"][frame].astype(float)
    peaks = baseline.peak_pursuit(magnitudes)
    remainder = baseline.render_peaks(peaks, len(magnitudes)) - magnitudes
    assert np.linalg.norm(remainder) < recorded["relative_residual"][frame] * np.linalg.norm(magnitudes)
    assert len(peaks.amplitude) <= 1000
    log_spectrum = recorded["log_spectra"][frame]
    error = np.linalg.norm(baseline.log_frequency_spectrum(peaks) - log_spectrum)
    assert error < 0.03 * np.linalg.norm(log_spectrum)

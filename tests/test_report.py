"""Pictures, the table of tones, and the documents of separations and evaluations."""

import csv
import io
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxsep.metrics.bss_eval import sdr_sir_sar_filter, sdr_sir_sar_gain
from jaxsep.metrics.si_sdr import si_sdr
from jaxsep.report import plots, spectrograms
from jaxsep.results.document import evaluation_document, separation_document
from jaxsep.results.schema import to_json
from jaxsep.results.tones import TONE_COLUMNS, write_tones
from jaxsep.separation.chunks import ANALYSIS_RATE
from jaxsep.separation.result import Separation
from jaxsep.separation.settings import SeparationSettings
from jaxsep.signal.axes import LogAxis
from jaxsep.signal.stft import GaussianSTFT
from jaxsep.tones.dictionary import Dictionary
from jaxsep.tones.tones import Tones

RATE = 16000
PITCHES = (440.0, 660.0)


def sinusoid(frequency, seconds=1.0, sample_rate=RATE, amplitude=0.4):
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return (amplitude * np.cos(2 * np.pi * frequency * time)).astype(np.float32)


def synthetic_separation(num_frames=90):
    """What a separation of one second of two pure tones might be; the second instrument pauses at first."""
    active = np.ones((num_frames, 2), bool)
    active[: num_frames // 2, 1] = False
    amplitude = np.where(active, [0.2, 0.1], 0).astype(np.float32)
    fundamental = np.where(active, PITCHES, 0).astype(np.float32)
    tones = Tones(
        amplitude=jnp.asarray(amplitude),
        fundamental=jnp.asarray(fundamental),
        width=jnp.full(active.shape, 1.9),
        inharmonicity=jnp.asarray(np.where(active, 1e-4, 0).astype(np.float32)),
        instrument=jnp.tile(jnp.arange(2, dtype=jnp.int32), (num_frames, 1)),
        active=jnp.asarray(active),
    )
    return Separation(
        stems=np.stack([sinusoid(pitch) for pitch in PITCHES]),
        sample_rate=RATE,
        tones=tones,
        times=np.arange(num_frames) / 90,
        dictionary=Dictionary(jnp.asarray([[1.0, 0.5, 0.25], [0.75, 1.0, 0.0]])),
        loss=np.linspace(0, 0.2, num_frames, dtype=np.float32),
        confidence=np.linspace(0, 3, num_frames, dtype=np.float32),
        cost_trace=(0.2, 0.1),
        restart_losses=(0.25, 0.5),
        seconds={"spectrogram": 1.5, "pursuit": 2.25},
    )


def pixels(png):
    return matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]


def marks(image, colour):
    """Places [n, 2] of the pixels of one colour."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.argwhere(np.max(np.abs(image - rgb), axis=-1) < 0.5 / 255)


class TestTones:
    def rows(self, tmp_path, separation):
        write_tones(tmp_path / "tones.csv", separation)
        with (tmp_path / "tones.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert tuple(header) == TONE_COLUMNS
        return np.array(rows, float)

    def test_active_tones_with_instruments_from_one(self, tmp_path):
        separation = synthetic_separation()
        rows = self.rows(tmp_path, separation)
        time, instrument, fundamental, amplitude, inharmonicity = rows.T
        assert len(rows) == 90 + 45
        np.testing.assert_allclose(time[instrument == 1], separation.times, atol=1e-5)
        np.testing.assert_allclose(time[instrument == 2], separation.times[45:], atol=1e-5)
        assert np.all(fundamental[instrument == 2] == 660)
        np.testing.assert_allclose(amplitude[instrument == 1], 0.2, rtol=1e-5)
        np.testing.assert_allclose(inharmonicity, 1e-4, rtol=1e-3)

    def test_order(self, tmp_path):
        separation = synthetic_separation()
        # The slots of a frame have no order: the louder instrument may come last.
        swapped = jax.tree.map(lambda x: x[:, ::-1], separation.tones)
        mixed = Separation(**{**vars(separation), "tones": swapped})
        rows = self.rows(tmp_path, mixed)
        assert np.array_equal(rows, self.rows(tmp_path, separation))
        assert np.array_equal(rows, rows[np.lexsort(rows.T[[2, 1, 0]])])

    def test_no_tones(self, tmp_path):
        separation = synthetic_separation()
        silent = Separation(**{**vars(separation), "tones": Tones.empty((90, 2))})
        assert self.rows(tmp_path, silent).size == 0


class TestDocuments:
    def test_separation(self):
        document = separation_document(
            synthetic_separation(), settings=SeparationSettings(hop=768), seed=7, source={"file": "a.wav"}
        )
        assert json.loads(to_json(document)) == document
        assert document["input"] == {
            "file": "a.wav",
            "sample_rate": RATE,
            "channels": 1,
            "samples": RATE,
            "duration_s": 1.0,
        }
        assert document["settings"]["hop"] == 768
        assert document["seed"] == 7
        assert document["num_tones"] == 135
        assert document["restart_losses"] == [0.25, 0.5]
        assert document["mean_loss"] == pytest.approx(0.1)
        assert document["seconds"] == {"spectrogram": 1.5, "pursuit": 2.25}
        assert document["platform"] == jax.default_backend()
        assert document["versions"]["jax"] == jax.__version__
        assert document["versions"]["numpy"] == np.__version__

    def test_channels(self):
        separation = synthetic_separation()
        stereo = Separation(**{**vars(separation), "stems": np.stack([separation.stems] * 3, axis=1)})
        document = separation_document(stereo, settings=SeparationSettings(), seed=0, source={})
        assert (document["input"]["channels"], document["num_instruments"]) == (3, 2)

    def test_no_invalid_json(self):
        with pytest.raises(ValueError, match="JSON"):
            to_json({"loss": float("nan")})

    def test_evaluation_is_that_of_the_metrics_in_float64(self):
        references = np.random.default_rng(0).standard_normal((2, 4000))
        estimates = references[::-1] + 0.1 * np.random.default_rng(1).standard_normal((2, 4000))
        document = evaluation_document(references, estimates, ["a", "b"], ["x", "y"], sample_rate=RATE)
        assert json.loads(to_json(document)) == document
        assert (document["references"], document["estimates"]) == (["a", "b"], ["x", "y"])
        with jax.enable_x64(True):
            references, estimates = jnp.asarray(references), jnp.asarray(estimates)
            wanted = {
                "gain": sdr_sir_sar_gain(references, estimates),
                "filter_512": sdr_sir_sar_filter(references, estimates),
            }
            invariant = [float(si_sdr(references[n], estimates[1 - n])) for n in range(2)]
        for measure, scores in wanted.items():
            assert document[measure]["permutation"] == [1, 0]
            for name in ("sdr", "sir", "sar"):
                np.testing.assert_allclose(document[measure][name], getattr(scores, name), rtol=1e-9)
        np.testing.assert_allclose(document["si_sdr"], invariant, rtol=1e-9)
        assert not jax.config.jax_enable_x64


class TestLevels:
    @pytest.mark.parametrize("kind", ["log", "mel", "cqt", "linear"])
    def test_sinusoid(self, kind):
        """Height, frequency and time of a tone in the second half of a recording."""
        samples = np.concatenate([np.zeros(RATE, np.float32), sinusoid(1000.0, amplitude=1.0)])
        values = spectrograms.levels(samples, RATE, kind)
        axis = GaussianSTFT().axis(ANALYSIS_RATE) if kind == "linear" else LogAxis()
        steady = values[round(0.75 * len(values))]
        assert np.argmax(steady) == pytest.approx(float(axis.to_bin(jnp.float32(1000))), abs=1)
        assert steady.max() == pytest.approx(20 * np.log10(0.5), abs=0.2)
        assert values[round(0.25 * len(values))].max() < -80

    def test_channels_are_averaged(self):
        low, high = sinusoid(300.0), sinusoid(900.0)
        both = spectrograms.levels(np.stack([low, high]), RATE, "linear")
        mean = spectrograms.levels((low + high) / 2, RATE, "linear")
        assert np.array_equal(both, mean)

    @pytest.mark.parametrize("kind", ["mel", "cqt"])
    def test_long_recordings_keep_their_peaks_and_times(self, kind, monkeypatch):
        monkeypatch.setattr(spectrograms, "MAX_COLUMNS", 20)
        samples = np.zeros(5 * RATE, np.float32)
        samples[3 * RATE : 4 * RATE] = sinusoid(1000.0, amplitude=1.0)
        values = spectrograms.levels(samples, RATE, kind)
        assert len(values) <= 20
        loud = np.flatnonzero(values.max(axis=1) > -10) / len(values) * 5
        assert 2.5 < loud.min() <= 3.5 <= loud.max() < 4.2


class TestSpectrogramFigure:
    @pytest.mark.parametrize("kind", ["mel", "linear"])
    def test_picture(self, tmp_path, kind):
        spectrograms.spectrogram_figure(
            sinusoid(440.0), RATE, tmp_path / "a.png", kind=kind, title="a $b [c].wav"
        )
        image = pixels((tmp_path / "a.png").read_bytes())
        assert image.shape[:2] == (800, 1600)
        dark = np.mean(image[100:-100, 200:-300].max(axis=-1) < 0.5, axis=1)
        assert np.any(dark > 0.9)  # the line of the tone crosses the picture
        assert np.mean(dark > 0.5) < 0.2

    def test_frequencies_on_the_axis(self):
        axes = Figure().add_subplot()
        values = spectrograms.levels(sinusoid(440.0), RATE, "mel")
        spectrograms.draw_levels(axes, values, LogAxis(), 1.0, float(values.max()), (0, 1023))
        ticks = {
            label.get_text(): y for y, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        }
        assert ticks["440"] == pytest.approx(np.argmax(values.max(axis=0)), abs=1)
        assert ticks["880"] - ticks["440"] == pytest.approx(102.4, abs=1e-3)

    def test_refuses_what_is_no_recording(self):
        with pytest.raises(ValueError, match="NaN"):
            spectrograms.spectrogram_figure(np.full(RATE, np.nan, np.float32), RATE, io.BytesIO())

    def test_unknown_kind(self):
        with pytest.raises(ValueError, match="kind: expected one of log, mel, cqt, linear, got 'bark'"):
            spectrograms.spectrogram_figure(sinusoid(440.0), RATE, io.BytesIO(), kind="bark")


@pytest.fixture(scope="module")
def image():
    separation, file = synthetic_separation(), io.BytesIO()
    plots.overview(separation, separation.stems.sum(axis=0), RATE, file)
    return pixels(file.getvalue())


class TestOverview:
    def test_width(self, image):
        assert image.shape[1] == 1600

    def test_each_fundamental_where_it_sounds(self, image):
        """Dots of the first instrument cross the mixture's panel; those of the second begin midway."""
        first, second = (marks(image, colour) for colour in plots._COLOURS[:2])
        left = first[first[:, 1] < 1200], second[second[:, 1] < 1200]
        panels = [x[x[:, 0] < image.shape[0] / 3] for x in left]  # the mixture
        assert all(len(panel) > 100 for panel in panels)
        start, middle = panels[0][:, 1].min(), panels[1][:, 1].min()
        width = panels[0][:, 1].max() - start
        assert middle - start == pytest.approx(width / 2, abs=0.05 * width)
        assert panels[1][:, 0].mean() < panels[0][:, 0].mean()  # a fifth above

    def test_harmonics(self):
        axes = Figure().add_subplot()
        plots._draw_harmonics(axes, synthetic_separation(), 1)
        assert [bar.get_height() for bar in axes.patches] == [0.75, 1.0, 0.0]

    def test_positions_of_the_marks(self):
        separation = synthetic_separation()
        axes = Figure().add_subplot()
        plots._draw_fundamentals(axes, separation, 1)
        x, y = axes.lines[0].get_data()
        np.testing.assert_array_equal(x, separation.times[45:])
        np.testing.assert_allclose(y, LogAxis().to_bin(jnp.float32(660)), rtol=1e-6)

    def test_quiet_tones_are_left_out(self):
        separation = synthetic_separation()
        amplitude = separation.tones.amplitude.at[3, 0].set(1e-5)
        tones = Tones(**{**vars(separation.tones), "amplitude": amplitude})
        axes = Figure().add_subplot()
        plots._draw_fundamentals(axes, Separation(**{**vars(separation), "tones": tones}), 0)
        assert separation.times[3] not in axes.lines[0].get_xdata()
        assert len(axes.lines[0].get_xdata()) == 89

    @pytest.mark.parametrize("channels", [1, 2])
    def test_channels_and_silent_stems(self, channels):
        separation = synthetic_separation()
        stems = np.repeat(separation.stems[:, None], channels, axis=1)
        stems[1] = 0
        file = io.BytesIO()
        plots.overview(Separation(**{**vars(separation), "stems": stems}), stems.sum(axis=0), RATE, file)
        assert pixels(file.getvalue()).shape[1] == 1600

    def test_refuses_what_is_no_recording(self):
        with pytest.raises(ValueError, match="silence"):
            plots.overview(synthetic_separation(), np.zeros(RATE, np.float32), RATE, io.BytesIO())


def test_no_global_state_of_matplotlib():
    code = "import sys, jaxsep.report.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

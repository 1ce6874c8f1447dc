"""The folder of results read back, and the listening page, also in a browser."""

import base64
import io
import json
import re

import numpy as np
import pytest
import soundfile
from PIL import Image
from test_report import RATE, sinusoid, synthetic_separation

from jaxsep.report import page
from jaxsep.results.document import evaluation_document
from jaxsep.results.read import read_results
from jaxsep.results.write import Tracks, write_results
from jaxsep.separation.result import Separation
from jaxsep.separation.settings import SeparationSettings

#: Longer than any test plays, even on a slow machine.
SECONDS = 12
HOP = SeparationSettings().hop / 48000


def changed(separation, **fields):
    return Separation(**{**vars(separation), **fields})


def write_folder(folder, separation, samples, name="duet.wav"):
    """What `jaxsep separate` leaves."""
    about = {"settings": SeparationSettings(), "seed": 3, "source": {"file": name, "dictionary": None}}
    return write_results(folder, [(samples, separation)], (".wav", "FLOAT"), **about)


def noise_separation(seconds=SECONDS):
    """Stems of noise, so that any stretch of them tells its time; times fit the hop."""
    stems = 0.1 * np.random.default_rng(0).standard_normal((2, seconds * RATE))
    separation = synthetic_separation()
    return changed(separation, stems=stems.astype(np.float32), times=np.arange(90) * HOP)


@pytest.fixture
def folder(tmp_path):
    separation = changed(synthetic_separation(), times=np.arange(90) * HOP)
    write_folder(tmp_path, separation, separation.stems.sum(axis=0))
    return tmp_path


class TestFolder:
    def test_everything_comes_back(self, folder):
        results, truth = read_results(folder), synthetic_separation()
        np.testing.assert_array_equal(results.stems[:, 0], truth.stems)
        np.testing.assert_array_equal(results.mixture[0], truth.stems.sum(axis=0))
        assert results.sample_rate == RATE
        np.testing.assert_array_equal(results.dictionary.harmonics, truth.dictionary.harmonics)
        for name in ("active", "instrument", "fundamental", "amplitude", "inharmonicity"):
            values = np.asarray(getattr(results.tones, name))
            wanted = np.where(truth.tones.active, getattr(truth.tones, name), 0)
            np.testing.assert_allclose(values[:90], wanted, rtol=1e-3)
            assert not values[90:].any()
        assert len(results.times) == len(results.tones.active)

    def test_stems_without_tones(self, tmp_path):
        separation = synthetic_separation()
        stems = separation.stems.copy()
        stems[1] = 0
        silent = changed(separation, stems=stems, tones=type(separation.tones).empty((90, 2)))
        write_folder(tmp_path, silent, stems.sum(axis=0))
        results = read_results(tmp_path)
        assert not results.stems[1].any()
        assert not np.any(results.tones.active)

    def test_integers_do_not_clip(self, tmp_path):
        stems = 1.5 * np.stack([sinusoid(440.0, amplitude=1.0), -0.5 * sinusoid(440.0, amplitude=1.0)])
        with Tracks(tmp_path, ".flac", "PCM_16") as tracks:
            tracks.append(stems.sum(axis=0), stems, RATE)
        written = tracks.written
        assert written["stems"] == ["stem-1.flac", "stem-2.flac"]
        assert written["gain_db"] == pytest.approx(20 * np.log10(1 / 1.5), abs=1e-3)
        for name, truth in zip(written["stems"], stems, strict=True):
            np.testing.assert_allclose(soundfile.read(tmp_path / name)[0], truth / 1.5, atol=1e-4)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("separation.json", None, "does not exist"),
            ("separation.json", "{", "not the document"),
            ("separation.json", "[]", "not the document"),
            ("separation.json", "{}", "'mixture' is missing"),
            ("tones.csv", None, "does not exist"),
            ("tones.csv", "a,b\n1,2\n", "not a table of tones"),
            ("tones.csv", "", "not a table of tones"),
            ("dictionary.npz", "no", "not a dictionary"),
            ("stem-1.wav", None, "does not exist"),
            ("mixture.wav", "no", "not audio"),
        ],
    )
    def test_damage(self, folder, name, content, message):
        (folder / name).unlink() if content is None else (folder / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            read_results(folder)

    @pytest.mark.parametrize("name", ["../outside.wav", "/etc/passwd", ""])
    def test_names_stay_in_the_folder(self, folder, name):
        document = json.loads((folder / "separation.json").read_text())
        document["stems"][0] = name
        (folder / "separation.json").write_text(json.dumps(document))
        with pytest.raises(ValueError, match="not the document"):
            read_results(folder)

    def test_files_of_other_recordings(self, folder):
        soundfile.write(folder / "stem-2.wav", sinusoid(440.0, seconds=0.9), RATE)
        with pytest.raises(ValueError, match="another rate, length"):
            read_results(folder)

    def test_tones_of_other_recordings(self, folder):
        with (folder / "tones.csv").open("a") as file:
            file.write("99.0,1,440,0.1,0\n")
        with pytest.raises(ValueError, match="of this recording"):
            read_results(folder)


def audio(html):
    """Samples and rate of every embedded recording."""
    texts = re.findall(r'<script type="text/plain" class="audio"[^>]*>([^<]*)</script>', html)
    return [soundfile.read(io.BytesIO(base64.b64decode(text)), dtype="float32") for text in texts]


class TestPage:
    def test_content(self, folder):
        results = read_results(folder)
        truth = results.stems[:, 0]
        scores = evaluation_document(
            truth, truth + 1e-3, ["recorder", "violin"], ["a", "b"], sample_rate=RATE
        )
        html = page.listening_page(results, scores)
        for text in ("duet.wav", "Mixture", "Instrument 1", "Instrument 2", "recorder", "violin", "SDR"):
            assert text in html
        for text in ("Harmonics of instrument 2", "Restarts", "0.2500", "Settings", "hop", "jaxlib", "Notes"):
            assert text in html
        # Stems that sum to the mixture leave no residual.
        assert ">Residual<" not in html
        for (samples, rate), wanted in zip(audio(html), [truth.sum(axis=0), *truth], strict=True):
            assert rate == RATE
            np.testing.assert_allclose(samples, wanted, atol=1e-4)

    def test_nothing_comes_from_elsewhere(self, folder):
        html = page.listening_page(read_results(folder))
        assert "://" not in html
        assert all(link.startswith("data:") for link in re.findall(r'(?:src|href)="([^"]*)"', html))
        assert "@import" not in html
        assert "default-src 'none'" in html

    def test_names_are_text(self, tmp_path):
        separation = synthetic_separation()
        name = '</script><b onload=x>&".wav'
        write_folder(tmp_path, separation, separation.stems.sum(axis=0), name)
        html = page.listening_page(read_results(tmp_path))
        assert "<b onload" not in html
        assert "&lt;/script&gt;&lt;b onload=x&gt;&amp;" in html

    def test_data(self, folder):
        html = page.listening_page(read_results(folder))
        data = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])
        assert data["duration"] == 1
        assert data["kinds"] == ["mixture", "stem", "stem"]
        assert [set(tones["hz"]) for tones in data["tones"]] == [{440.0}, {660.0}]
        assert len(data["tones"][1]["time"]) == 45
        assert [(note["instrument"], note["pitch"]) for note in data["notes"]] == [(0, 69), (1, 76.02)]
        assert data["band"][0] < 440 < 660 < data["band"][1]

    def test_pictures(self, folder):
        """The loudest row of a stem's spectrogram is its frequency."""
        html = page.listening_page(read_results(folder))
        low, high = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])["band"]
        for text, pitch in zip(re.findall(r"image/webp;base64,([^\"]*)", html)[1:], (440, 660), strict=True):
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("L"), float)
            row = np.argmin(pixels.mean(axis=1))
            frequency = low * (high / low) ** (1 - (row + 0.5) / pixels.shape[0])
            assert frequency == pytest.approx(pitch, rel=0.02)

    def test_residual(self, tmp_path):
        separation = synthetic_separation()
        write_folder(tmp_path, separation, separation.stems.sum(axis=0) + sinusoid(1000.0, amplitude=0.1))
        html = page.listening_page(read_results(tmp_path))
        assert ">Residual<" in html
        np.testing.assert_allclose(audio(html)[-1][0], sinusoid(1000.0, amplitude=0.1), atol=1e-4)

    def test_large_recordings_are_compressed(self, folder, monkeypatch):
        monkeypatch.setattr(page, "_LOSSLESS_BYTES", 1000)
        html = page.listening_page(read_results(folder))
        assert 'data-media="audio/mpeg"' in html
        assert len(audio(html)) == 3

    @pytest.mark.parametrize("channels", [1, 2])
    def test_loud_stems_keep_their_proportions(self, tmp_path, channels):
        separation = synthetic_separation()
        stems = np.repeat(4 * separation.stems[:, None], channels, axis=1)
        write_folder(tmp_path, changed(separation, stems=stems), stems.sum(axis=0))
        tracks = [samples for samples, _ in audio(page.listening_page(read_results(tmp_path)))]
        assert max(np.abs(samples).max() for samples in tracks) <= 1
        np.testing.assert_allclose(tracks[0], tracks[1] + tracks[2], atol=1e-3)

    def test_no_tones_and_no_restarts(self, tmp_path):
        separation = synthetic_separation()
        bare = changed(
            separation,
            tones=type(separation.tones).empty((90, 2)),
            restart_losses=(),
            cost_trace=(0.2,),
            confidence=np.full(90, np.nan, np.float32),
        )
        write_folder(tmp_path, bare, bare.stems.sum(axis=0))
        html = page.listening_page(read_results(tmp_path))
        assert "No dictionary was learned" in html
        assert "0 notes" in html

    @pytest.mark.slow
    def test_half_a_minute_is_below_8_megabytes(self, tmp_path):
        rate, seconds = 44100, 30
        noise = np.random.default_rng(0).standard_normal((2, rate * seconds)).astype(np.float32)
        separation = changed(synthetic_separation(), stems=0.05 * noise, sample_rate=rate)
        write_folder(tmp_path, separation, separation.stems.sum(axis=0))
        assert len(page.listening_page(read_results(tmp_path))) < 8e6


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The page of a separation with a residual in a browser, and its samples."""
    browser = pytest.importorskip("browser", reason="websockets is not installed")
    if browser.chromium() is None:
        pytest.skip("chromium is not installed")
    place = tmp_path_factory.mktemp("page")
    separation = noise_separation()
    residual = 0.1 * np.random.default_rng(1).standard_normal(separation.stems.shape[1]).astype(np.float32)
    write_folder(place, separation, separation.stems.sum(axis=0) + residual)
    results = read_results(place)
    (place / "report.html").write_text(page.listening_page(results), encoding="utf-8")
    samples = [results.mixture[0], *results.stems[:, 0], residual]
    with browser.browser(tmp_path_factory.mktemp("browser")) as view:
        view.resize(1280, 900)
        view.open(place / "report.html")
        yield view, samples
    # Whatever was done in any of the tests.
    assert view.complaints == []
    assert {url.partition(":")[0] for url in view.requests} <= {"file", "data"}
    assert {url for url in view.requests if url.startswith("file")} == {(place / "report.html").as_uri()}


@pytest.fixture
def view(opened):
    """The page as it is when it has been loaded."""
    view, _ = opened
    view.call("Page.reload")
    view.wait(
        "window.player && document.readyState === 'complete' && !document.getElementById('play').disabled"
    )
    return view


#: The last samples that each track has sent to the loudspeakers.
TAP = """(() => {
  window.taps ??= player.tracks.map((track) => {
    const tap = player.context.createAnalyser();
    tap.fftSize = 4096;
    track.gain.connect(tap);
    return tap;
  });
  const heard = window.taps.map((tap) => {
    const samples = new Float32Array(tap.fftSize);
    tap.getFloatTimeDomainData(samples);
    return [...samples];
  });
  return [player.now(), heard];
})()"""


def listen(view, seconds=0.5):
    """Position of the cursor, and samples of each track, after a while of playing."""
    view.value(TAP)
    view.value(f"new Promise((done) => setTimeout(done, {round(1000 * seconds)}))")
    now, heard = view.value(TAP)
    return now, np.array(heard)


def loud(view):
    return [bool(np.abs(samples).max() > 0.01) for samples in listen(view)[1]]


def pressed(view, kind):
    return view.value(f"[...document.querySelectorAll('.{kind}')].map((x) => x.ariaPressed === 'true')")


def end_times(heard, samples):
    """When in its track each stretch that was heard ends, in seconds."""
    ends = []
    for stretch, track in zip(heard, samples, strict=True):
        size = 2 ** int(np.ceil(np.log2(track.size + stretch.size)))
        match = np.fft.irfft(np.fft.rfft(track, size) * np.conj(np.fft.rfft(stretch, size)))
        start = np.argmax(match[: track.size])
        near = np.corrcoef(track[start : start + stretch.size], stretch[: track.size - start])[0, 1]
        assert near > 0.99
        ends.append((start + stretch.size) / RATE)
    return np.array(ends)


class TestBrowser:
    def test_players_keep_in_step(self, view, opened):
        view.value("document.querySelectorAll('.solo').forEach((button) => button.click())")
        view.value("player.move(0.5)")
        view.press(" ", "Space")
        view.wait("document.body.classList.contains('playing')")
        now, heard = listen(view, 1.0)
        ends = end_times(heard, opened[1])
        assert np.ptp(ends) < 0.05
        # The cursor is where the sound is, but for the delay of the device.
        assert ends.mean() == pytest.approx(now, abs=0.1)
        view.press(" ", "Space")
        assert not view.value("document.body.classList.contains('playing')")

    def test_solo_and_mute_by_keys(self, view):
        view.value("player.start()")
        # The stems and the residual are the mixture.
        assert loud(view) == [False, True, True, True]
        view.press("2", "Digit2")
        assert pressed(view, "solo") == [False, False, True, False]
        assert loud(view) == [False, False, True, False]
        view.press("0", "Digit0")
        assert loud(view) == [True, False, False, False]
        view.press("0", "Digit0")
        view.press("!", "Digit1", shift=True)
        assert pressed(view, "mute") == [True, True, False, False]
        assert loud(view) == [False, False, True, True]
        view.press("r", "KeyR")
        assert loud(view) == [False, False, False, True]
        view.value("player.stop()")

    def test_buttons(self, view):
        view.value("document.querySelectorAll('.solo')[1].click()")
        view.value("document.querySelectorAll('.solo')[2].click()")
        assert pressed(view, "solo") == [False, True, True, False]
        view.value("document.querySelectorAll('.mute')[0].click()")
        assert pressed(view, "mute") == [False] * 4
        # A button in focus is pressed by space, and nothing plays.
        view.value("document.querySelectorAll('.mute')[3].focus()")
        view.press(" ", "Space")
        assert not view.value("document.body.classList.contains('playing')")

    def test_seeking(self, view):
        box = view.value("document.querySelector('.lane').getBoundingClientRect().toJSON()")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            view.pointer(kind, box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
        assert view.value("player.now()") == pytest.approx(SECONDS / 4, abs=0.02)
        clock = view.value("document.getElementById('clock').textContent")
        assert clock in ("0:02.9 / 0:12.0", "0:03.0 / 0:12.0")
        view.press("ArrowRight", "ArrowRight")
        assert view.value("player.now()") == pytest.approx(SECONDS / 4 + 2, abs=0.02)
        view.press("Home", "Home")
        assert view.value("player.now()") == 0
        view.value("(seek.value = 2.5, seek.dispatchEvent(new Event('input')))")
        assert view.value("player.now()") == pytest.approx(2.5, abs=0.01)

    def test_the_end(self, view):
        view.value("player.move(11.7), player.start()")
        view.wait("document.body.classList.contains('playing')")
        view.wait("!document.body.classList.contains('playing')")
        assert view.value("player.now()") == 0

    def test_values_under_the_pointer(self, view):
        data = json.loads(view.value("document.getElementById('data').textContent"))
        box = view.value("document.querySelector('.lane').getBoundingClientRect().toJSON()")
        low, high = data["band"]
        height = np.log(440 / low) / np.log(high / low)
        view.pointer("mouseMoved", box["x"] + box["width"] / 2, box["y"] + box["height"] * (1 - height))
        time, frequency, note = view.value("document.getElementById('tip').textContent").split(" · ")
        assert float(time.split()[0]) == pytest.approx(SECONDS / 2, abs=0.02)
        assert float(frequency.split()[0]) == pytest.approx(440, rel=0.02)
        assert note.startswith("A4")

    @pytest.mark.parametrize("dark", [False, True])
    @pytest.mark.parametrize("width", [390, 1280])
    def test_fits_every_screen(self, view, width, dark):
        view.resize(width, 800, dark=dark)
        view.wait(f"document.querySelector('.lane canvas').width <= {width}")
        assert view.value("document.documentElement.scrollWidth") <= width
        ink, paper = view.value(
            "['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])"
        )
        light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
        assert (light[0] > light[1]) == dark
        # Every part of a lane that is coloured has been drawn.
        drawn = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((x) => x > 0)"
        assert view.value(f"[...document.querySelectorAll('.lane canvas')].map((c) => {drawn})") == [
            True,
            True,
            True,
            False,  # the residual has no tones
            True,
        ]
        view.resize(1280, 900)

    def test_zoom(self, view):
        wide = "document.querySelector('.lane').offsetWidth"
        before = view.value(wide)
        view.press("+", "Equal")
        assert view.value(wide) == pytest.approx(2 * before, rel=0.01)
        assert view.value("document.documentElement.scrollWidth") <= 1280
        view.press("-", "Minus")
        assert view.value(wide) == before

    def test_everything_has_a_name(self, view):
        nameless = "[...document.querySelectorAll('button, input')].filter((x) => !x.ariaLabel).length"
        assert view.value(nameless) == 0
        assert view.value("[...document.images].every((x) => x.alt && x.complete && x.naturalWidth > 0)")

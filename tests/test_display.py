"""A separation in a notebook: how it shows itself, is saved, read back and plotted, and the bars before."""

import base64
import dataclasses
import html
import io
import json
import re
import shutil
import sys
import threading
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from browser import browser, chromium
from PIL import Image
from test_page import write_folder
from test_report import RATE, sinusoid, synthetic_separation

from jaxsep.files import AudioError
from jaxsep.notes.score import Score, plain_note
from jaxsep.progress import NotebookProgress, Progress, listener
from jaxsep.report import display
from jaxsep.report.page import write_page
from jaxsep.separation.result import KnownNotes, Separation
from jaxsep.separation.settings import SeparationSettings

HOP = SeparationSettings().hop / 48_000


def changed(separation, **fields):
    return dataclasses.replace(separation, **fields)


@pytest.fixture(scope="module")
def separation():
    found = synthetic_separation()
    mixture = found.stems.sum(axis=0) + 0.001 * sinusoid(1234.0)
    settings = SeparationSettings(hop=768)
    return changed(found, mixture=mixture, settings=settings, times=np.arange(90) * HOP)


@pytest.fixture(scope="module")
def written(separation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "duet"
    separation.save(folder)
    return folder


@pytest.fixture
def saved(written, tmp_path):
    """A folder to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "duet"))


def same(first, second):
    """Every field of two separations."""
    assert type(first) is type(second)
    for field in dataclasses.fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        assert jax.tree.structure(one) == jax.tree.structure(other), field.name
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=field.name)


# Saved and read back


class TestSaved:
    def test_everything_comes_back(self, separation, written):
        same(Separation.load(written), changed(separation))
        assert (written / "overview.png").exists()

    def test_channels_come_back(self, separation, tmp_path):
        stems = np.stack([separation.stems, 0.5 * separation.stems], axis=1)
        stereo = changed(separation, stems=stems, mixture=stems.sum(axis=0))
        stereo.save(tmp_path / "duet")
        same(Separation.load(tmp_path / "duet"), stereo)

    def test_an_axis_of_one_channel_comes_back(self, separation, tmp_path):
        one = changed(separation, stems=separation.stems[:, None], mixture=separation.mixture[None])
        one.save(tmp_path / "duet")
        same(Separation.load(tmp_path / "duet"), one)

    def test_the_sum_of_the_stems_stands_for_the_mixture(self, separation, tmp_path):
        changed(separation, mixture=None).save(tmp_path / "duet")
        np.testing.assert_array_equal(
            Separation.load(tmp_path / "duet").mixture, separation.stems.sum(axis=0)
        )

    def test_known_notes_come_back(self, separation, tmp_path):
        given = [plain_note(1, 0.5, 0.9, 76.0), plain_note(0, 0.0, 0.9, 69.0)]
        named = changed(separation, known=KnownNotes(Score(given, ["recorder", "violin"]), "all"))
        named.save(tmp_path / "duet")
        back = Separation.load(tmp_path / "duet")
        assert back.names == ("recorder", "violin")
        assert [(n.instrument, n.onset, n.offset) for n in back.notes()] == [
            (n.instrument, n.onset, n.offset) for n in named.notes()
        ]
        held = changed(named, known=named.known._replace(notes_are="held"))
        held.save(tmp_path / "held")
        assert Separation.load(tmp_path / "held").names == ("recorder", "violin")
        assert len(Separation.load(tmp_path / "held").notes()) == len(held.notes())

    def test_what_the_command_line_wrote_is_read(self, separation, tmp_path):
        samples = separation.stems.sum(axis=0)
        write_folder(tmp_path, separation, samples)
        back = Separation.load(str(tmp_path))
        np.testing.assert_array_equal(back.stems, separation.stems)
        np.testing.assert_array_equal(back.loss, separation.loss)
        assert back.seconds == separation.seconds
        assert back.settings == SeparationSettings()

    def test_a_folder_without_frames_is_read(self, separation, tmp_path):
        """As versions before 0.2 have left them."""
        write_folder(tmp_path, separation, separation.mixture)
        (tmp_path / "frames.npz").unlink()
        back = Separation.load(tmp_path)
        assert np.isnan(back.loss).all()
        assert back.stems.shape == (2, 1, RATE)
        active = np.asarray(separation.tones.active)
        pitches = np.asarray(back.tones.fundamental)[:90]
        np.testing.assert_allclose(
            pitches[active], np.asarray(separation.tones.fundamental)[active], rtol=1e-4
        )

    def test_the_page_is_made_of_it(self, written, tmp_path):
        write_page(written, tmp_path / "page.html", None, [], Progress())
        text = (tmp_path / "page.html").read_text()
        assert "Instrument 2" in text
        assert "<dt>seed</dt>" not in text

    def test_a_folder_with_content_stays(self, separation, tmp_path):
        (tmp_path / "thesis.txt").write_text("all of it")
        with pytest.raises(AudioError, match="is not empty; name another or force"):
            separation.save(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
        separation.save(tmp_path / "duet")
        changed(separation, loss=separation.loss + 1).save(tmp_path / "duet", force=True)
        np.testing.assert_array_equal(Separation.load(tmp_path / "duet").loss, separation.loss + 1)

    def test_it_appears_whole_or_not_at_all(self, separation, tmp_path):
        broken = changed(separation, stems=np.full((2, RATE), np.inf, np.float32))
        with pytest.raises(ValueError, match="finite"):
            broken.save(tmp_path / "duet")
        assert not any(tmp_path.iterdir())

    def test_a_file_of_objects_is_refused(self, saved, tmp_path):
        """Reading objects would run what they say."""
        path, trap = saved / "frames.npz", tmp_path / "trapped"
        with np.load(path) as content:
            arrays = dict(content)

        class Trap:
            def __reduce__(self):
                return (open, (str(trap), "w"))

        np.savez(path, **arrays | {"loss": np.array([Trap()], dtype=object)}, allow_pickle=True)
        with pytest.raises(ValueError, match=r"frames.npz is not a file of frames written by jaxsep\.$"):
            Separation.load(saved)
        assert not trap.exists()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("loss", np.zeros(89, np.float32)),
            ("loss", np.zeros(90, int)),
            ("instrument", np.full((90, 2), 2, np.int32)),
            ("active", np.ones((90, 2), int)),
            ("amplitude", np.full((90, 2), np.nan, np.float32)),
            ("width", np.ones((90, 3), np.float32)),
            ("times", np.zeros(90)),
        ],
    )
    def test_frames_that_do_not_belong_are_refused(self, saved, name, value):
        path = saved / "frames.npz"
        with np.load(path) as content:
            arrays = dict(content)
        np.savez(path, **arrays | {name: value})
        with pytest.raises(ValueError, match=r"frames.npz holds no frames of this recording\.$"):
            Separation.load(saved)

    @pytest.mark.parametrize("name", ["frames.npz", "dictionary.npz", "separation.json", "mixture.wav"])
    def test_damage_has_one_sentence(self, saved, name):
        path = saved / name
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(ValueError, match=re.escape(name)) as caught:
            Separation.load(saved)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("fields", [{"cost_trace": ["a"]}, {"seconds": [1]}, {"restart_losses": 3}])
    def test_a_document_with_something_else_is_refused(self, saved, fields):
        path = saved / "separation.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        with pytest.raises(ValueError, match=f"separation.json: expected numbers as {next(iter(fields))}"):
            Separation.load(saved)

    def test_settings_of_another_version_are_unknown(self, saved):
        path = saved / "separation.json"
        document = json.loads(path.read_text())
        for settings in ({"hops": 3}, document["settings"] | {"hop": 7}, None):
            path.write_text(json.dumps(document | {"settings": settings}))
            assert Separation.load(saved).settings is None


# Shown


@pytest.fixture(scope="module")
def shown(separation):
    return separation._repr_html_()


def players(text):
    found = re.findall(r'<audio [^>]*aria-label="([^"]*)"[^>]*src="data:([^;]*);base64,([^"]*)"', text)
    return {name: (media, soundfile.read(io.BytesIO(base64.b64decode(data)))) for name, media, data in found}


class TestShown:
    def test_players_picture_and_notes(self, separation, shown):
        text = shown
        found = players(text)
        assert list(found) == ["mixture", "instrument 1", "instrument 2"]
        for wanted, (media, (samples, rate)) in zip(
            [separation.mixture, *separation.stems], found.values(), strict=True
        ):
            assert (media, rate) == ("audio/flac", RATE)
            np.testing.assert_allclose(samples, wanted, atol=1e-4)
        picture = re.search(r'src="data:image/webp;base64,([^"]*)"', text)[1]
        assert Image.open(io.BytesIO(base64.b64decode(picture))).width == 1000
        cells = re.findall(r"<td>([^<]*)</td>", text)
        notes = separation.notes()
        assert len(notes) == 2
        assert cells[::7] == ["instrument 1", "instrument 2"]
        assert cells[3::7] == ["A4", "E5"]
        assert [float(x) for x in cells[1::7]] == [round(note.onset, 2) for note in notes]

    def test_nothing_comes_from_elsewhere(self, shown):
        text = shown
        assert "://" not in text
        assert "<script" not in text
        assert all(link.startswith("data:") for link in re.findall(r'(?:src|href)="([^"]*)"', text))

    def test_names_are_no_markup(self, separation):
        known = KnownNotes(Score([], ["<b>oboe</b>", '"&']), "held")
        text = changed(separation, known=known)._repr_html_()
        assert "<b>oboe" not in text
        assert html.escape("<b>oboe</b>") in text

    def test_a_long_result_is_folded(self, separation, shown):
        assert shown.count("<details open>") == 2
        seconds = 61
        noise = 0.1 * np.random.default_rng(0).standard_normal((2, seconds * RATE)).astype(np.float32)
        long = changed(separation, stems=noise, mixture=None)._repr_html_()
        assert "<details open>" not in long
        assert long.count("<details>") == 2
        assert "the first 60 s" in long
        for _, (samples, rate) in players(long).values():
            assert len(samples) / rate == pytest.approx(60, abs=0.1)

    def test_many_notes_are_folded(self, separation, monkeypatch):
        monkeypatch.setattr(display, "_FEW_NOTES", 1)
        monkeypatch.setattr(display, "_MOST_NOTES", 1)
        text = separation._repr_html_()
        assert text.count("<details open>") == 1
        assert "2 notes, the first 1" in text
        assert len(re.findall(r"<td>([^<]*)</td>", text)) == 7

    def test_half_a_minute_takes_less_than_10_megabytes(self, separation):
        """Of a duet in noise, which nothing compresses, in the file that a notebook is."""
        rate = 44_100
        noise = np.random.default_rng(0).uniform(-0.4, 0.4, (2, 30 * rate)).astype(np.float32)
        found = changed(separation, stems=noise, mixture=None, sample_rate=rate)
        output = {
            "output_type": "execute_result",
            "execution_count": 1,
            "metadata": {},
            "data": {"text/html": found._repr_html_(), "text/plain": repr(found)},
        }
        cell = {"cell_type": "code", "source": "result", "metadata": {}, "outputs": [output]}
        assert len(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]})) < 10e6

    def test_silent_stems(self, separation):
        """Nothing was found, and nothing is to be seen."""
        nothing = type(separation.tones).empty((90, 2))
        silent = changed(separation, stems=np.zeros_like(separation.stems), mixture=None, tones=nothing)
        text = silent._repr_html_()
        assert len(players(text)) == 3
        assert "image/webp" not in text
        assert "0 notes" in text

    def test_plot_is_the_overview(self, separation, tmp_path):
        from jaxsep.report.plots import overview

        figure = separation.plot()
        overview(separation, separation.mixture, RATE, tmp_path / "a.png")
        shown, written = (Image.open(x) for x in (io.BytesIO(figure._repr_png_()), tmp_path / "a.png"))
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(written))
        figure.savefig(tmp_path / "b.pdf")
        assert (tmp_path / "b.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="needs chromium")
def test_it_plays_in_a_browser(separation, tmp_path):
    """Every player, without a request and without a complaint."""
    noise = 0.1 * np.random.default_rng(0).standard_normal((2, 30 * RATE)).astype(np.float32)
    text = changed(separation, stems=noise, mixture=None)._repr_html_()
    page = tmp_path / "shown.html"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><title>cell</title><link rel="icon" href="data:,">{text}'
    )
    with browser(tmp_path / "profile") as view:
        view.resize(1100, 900)
        view.call("Page.navigate", url=page.as_uri())
        view.wait("document.readyState === 'complete'")
        assert view.value("document.querySelectorAll('audio').length") == 3
        view.wait("[...document.querySelectorAll('audio')].every(x => x.readyState > 0)")
        for number in range(3):
            player = f"document.querySelectorAll('audio')[{number}]"
            assert view.value(f"{player}.duration") == pytest.approx(30, abs=0.1)
            view.value(f"{player}.play()")
            view.wait(f"{player}.currentTime > 0.2")
            view.value(f"{player}.pause()")
        assert view.value("document.querySelector('img').naturalWidth") == 1000
        assert view.value("document.querySelectorAll('tbody tr').length") >= 2
        assert view.value("document.documentElement.scrollWidth <= innerWidth")
        (tmp_path / "shown.png").write_bytes(
            base64.b64decode(view.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        )
        assert [url for url in view.requests if not url.startswith(("data:", "file:"))] == []
        assert [url for url in view.requests if url.startswith("file:")] == [page.as_uri()]
        assert view.complaints == []


# Bars


class Shell(types.ModuleType):
    """An IPython whose display keeps what it shows."""

    def __init__(self, kernel):
        super().__init__("IPython")
        self.shown, self.kernel = [], kernel
        self.display = types.ModuleType("IPython.display")
        self.display.HTML = lambda text: text
        self.display.display = self._display

    def get_ipython(self):
        return types.SimpleNamespace(kernel=self.kernel)

    def _display(self, text, display_id):
        assert display_id
        assert not self.shown
        self.shown.append(text)
        return types.SimpleNamespace(update=self.shown.append)


@pytest.fixture
def shell(monkeypatch):
    shell = Shell(object())
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", shell.display)
    return shell


class TestBars:
    def test_who_listens(self, shell, monkeypatch):
        own = Progress()
        assert listener(own) is own
        assert type(listener(None)) is NotebookProgress
        shell.kernel = None  # IPython in a terminal
        assert type(listener(None)) is Progress
        monkeypatch.delitem(sys.modules, "IPython")
        assert type(listener(None)) is Progress

    def test_a_bar_that_becomes_its_seconds(self, shell, monkeypatch):
        monkeypatch.setattr(NotebookProgress, "_PAUSE", -1)
        with NotebookProgress().stage("pursuit <b>", 4) as advance:
            advance()
            advance("half & half")
        assert shell.shown[0] == "<div><progress></progress> pursuit &lt;b&gt; compiling…</div>"
        assert '<progress value="1" max="4">' in shell.shown[1]
        assert '<progress value="2" max="4"></progress> pursuit &lt;b&gt; half &amp; half' in shell.shown[2]
        assert re.fullmatch(r"<div>pursuit &lt;b&gt;: \d+\.\d s</div>", shell.shown[3])
        assert len(shell.shown) == 4

    def test_stages_stay_and_threads_are_counted(self, shell):
        bars = NotebookProgress()
        with bars.stage("one", 1) as advance:
            advance()
        with bars.stage("two", 100) as advance:
            threads = [threading.Thread(target=lambda: [advance() for _ in range(25)]) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert bars._stages["two"]["done"] == 100
        assert re.fullmatch(r"<div>one: .* s</div><div>two: .* s</div>", shell.shown[-1])
        assert len(shell.shown) < 60  # not a picture for every step

    def test_work_shows_its_bars(self, shell):
        from jaxsep.separation.separate import separate

        settings = SeparationSettings(restarts=1, steps=3, search="greedy")
        mixture = np.stack([sinusoid(440.0), sinusoid(660.0)]).sum(axis=0)
        found = separate(mixture, RATE, 2, settings=settings, key=jax.random.key(0))
        assert "finding the tones: " in shell.shown[-1]
        assert "<progress" not in shell.shown[-1]
        np.testing.assert_array_equal(found.mixture, mixture)
        assert found.settings == settings
        assert isinstance(found.tones.amplitude, np.ndarray | jnp.ndarray)

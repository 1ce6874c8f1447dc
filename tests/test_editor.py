"""Correcting notes on the listening page, in a browser."""

import dataclasses
import json

import numpy as np
import pytest
from test_page import SECONDS, changed, noise_separation, write_folder

from jaxsep.notes.reading import read_notes
from jaxsep.notes.score import Score, plain_note
from jaxsep.report import page
from jaxsep.results.read import read_results
from jaxsep.separation.result import KnownNotes

NAMES = ("flute", 'Violin, "first"')


def known(count=6):
    """Notes of two instruments in turn, half a second each."""
    return [plain_note(n % 2, 1.0 + n, 1.5 + n, 60 + 2 * n, -20.0) for n in range(count)]


def open_page(browser, folder, home, notes):
    separation = noise_separation()
    given = KnownNotes(Score(notes, NAMES), "all")
    separation = changed(separation, known=given)
    write_folder(folder, separation, separation.stems.sum(axis=0))
    results = read_results(folder)
    # As if the second half were doubtful.
    doubted = [dataclasses.replace(n, confidence=3.0 if n.onset < 4 else 0.1) for n in results.notes]
    results = dataclasses.replace(results, notes=doubted)
    (folder / "report.html").write_text(page.listening_page(results), encoding="utf-8")
    return browser.browser(home)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    browser = pytest.importorskip("browser", reason="websockets is not installed")
    if browser.chromium() is None:
        pytest.skip("chromium is not installed")
    place, home = tmp_path_factory.mktemp("page"), tmp_path_factory.mktemp("browser")
    with open_page(browser, place, home, known()) as view:
        view.resize(1280, 1400)
        view.open(place / "report.html")
        yield view, place
    assert view.complaints == []
    assert {url.partition(":")[0] for url in view.requests} <= {"file", "data", "blob"}


@pytest.fixture
def view(opened):
    """The page as it is when it has been loaded, with editing switched on."""
    view, _ = opened
    view.call("Page.reload")
    view.wait(
        "window.editor && document.readyState === 'complete' && !document.getElementById('play').disabled"
    )
    view.press("e", "KeyE")
    return view


def notes(view):
    """Instrument, onset, offset and pitch of every note."""
    found = json.loads(view.value("JSON.stringify(editor.notes)"))
    return [(n["instrument"], n["onset"], n["offset"], n["pitch"]) for n in found]


def saved(view, folder):
    (folder / "saved.csv").write_text(view.value("editor.table()"), encoding="utf-8")
    return read_notes(folder / "saved.csv")


def at(view, time, pitch):
    """The place of a time and a pitch in the piano roll, in the window."""
    view.value("document.querySelector('.roll .lane').scrollIntoView({ block: 'center' })")
    box = view.value("document.querySelector('.roll .lane').getBoundingClientRect().toJSON()")
    low, high = json.loads(view.value("document.getElementById('data').textContent"))["keys"]
    height = (pitch - low) / (high - low)
    return box["x"] + time / SECONDS * box["width"], box["y"] + (1 - height) * box["height"]


def drag(view, start, stop):
    start, stop = at(view, *start), at(view, *stop)
    view.pointer("mouseMoved", *start)
    view.pointer("mousePressed", *start)
    for part in (0.3, 0.7, 1.0):
        between = [a + part * (b - a) for a, b in zip(start, stop, strict=True)]
        view.call(
            "Input.dispatchMouseEvent",
            type="mouseMoved",
            x=between[0],
            y=between[1],
            button="left",
            buttons=1,
        )
    view.pointer("mouseReleased", *stop)


def click(view, time, pitch):
    place = at(view, time, pitch)
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        view.pointer(kind, *place)


def test_nothing_is_lost_when_nothing_is_changed(view, opened):
    _, folder = opened
    score = saved(view, folder)
    original = read_notes(folder / "notes.csv")
    assert score.names == original.names == NAMES
    assert not any(note.held for note in score.notes)
    for a, b in zip(original.notes, score.notes, strict=True):
        assert (a.instrument, a.onset, a.offset, a.pitch, a.level) == (
            b.instrument,
            b.onset,
            b.offset,
            b.pitch,
            b.level,
        )


def test_a_note_is_dragged(view, opened):
    drag(view, (1.25, 60), (1.75, 63))
    instrument, onset, offset, pitch = notes(view)[0]
    assert (instrument, pitch) == (0, 63)
    assert (onset, offset) == pytest.approx((1.5, 2.0), abs=0.03)
    (held,) = [note for note in saved(view, opened[1]).notes if note.held]
    assert (held.onset, held.pitch) == (onset, 63)


def test_a_note_is_lengthened_at_either_end(view):
    drag(view, (1.495, 60), (1.795, 60))
    assert notes(view)[0][1:3] == pytest.approx((1.0, 1.8), abs=0.03)
    drag(view, (1.005, 60), (0.805, 60))
    assert notes(view)[0][1:3] == pytest.approx((0.8, 1.8), abs=0.03)


def test_a_note_is_drawn(view):
    drag(view, (8.0, 64), (9.0, 64))
    assert notes(view)[-1] == pytest.approx((0, 8.0, 9.0, 64), abs=0.03)
    assert len(notes(view)) == 7


def test_a_note_is_deleted_and_its_time_is_a_rest(view, opened):
    click(view, 2.25, 62)
    view.press("Delete", "Delete")
    assert len(notes(view)) == 5
    score = saved(view, opened[1])
    (rest,) = score.rests
    assert (rest.instrument, rest.onset, rest.offset) == (1, 2.0, 2.5)


def test_undo_and_redo(view):
    before = notes(view)
    drag(view, (1.25, 60), (1.75, 63))
    click(view, 2.25, 62)
    view.press("Delete", "Delete")
    after = notes(view)
    for _ in range(2):
        view.value("document.getElementById('undo').click()")
    assert notes(view) == before
    assert view.value("document.getElementById('undo').disabled")
    for _ in range(2):
        view.value("document.getElementById('redo').click()")
    assert notes(view) == after


def test_keys_alone(view):
    view.press("n", "KeyN")  # the most doubtful: the loudest and longest of the second half
    first = view.value("editor.selected.onset")
    assert first >= 4
    view.press("n", "KeyN")
    assert view.value("editor.selected.onset") != first
    view.press("Escape", "Escape")
    view.press(".", "Period")
    start = view.value(
        "[editor.selected.instrument, editor.selected.pitch, editor.selected.onset, editor.selected.offset]"
    )
    view.press("ArrowUp", "ArrowUp")
    view.press("ArrowDown", "ArrowDown", shift=True)
    view.press("ArrowRight", "ArrowRight")
    view.press("ArrowRight", "ArrowRight", shift=True)
    view.press(str(2 - start[0]), f"Digit{2 - start[0]}")
    now = view.value(
        "[editor.selected.instrument, editor.selected.pitch, editor.selected.onset, editor.selected.offset]"
    )
    assert now[0] == 1 - start[0] or now[0] == start[0]
    assert now[1:] == pytest.approx(
        [
            max(
                start[1] + 1 - 12,
                view.value("JSON.parse(document.getElementById('data').textContent).keys[0]"),
            ),
            start[2] + 0.01,
            start[3] + 0.02,
        ]
    )
    assert view.value("editor.selected.held")
    view.press("a", "KeyA")
    assert len(notes(view)) == 7
    view.press("Backspace", "Backspace")
    assert len(notes(view)) == 6


def test_the_seek_keys_work_where_nothing_is_chosen(view):
    view.press("Escape", "Escape")
    view.press("ArrowRight", "ArrowRight")
    assert view.value("player.now()") == pytest.approx(2, abs=0.05)


def test_enter_says_that_a_note_is_right(view, opened):
    click(view, 5.25, 68)
    count = view.value("document.querySelectorAll('#worth li').length")
    view.press("Enter", "Enter")
    assert view.value("document.querySelectorAll('#worth li').length") == count - 1
    assert sum(note.held for note in saved(view, opened[1]).notes) == 1


def test_it_sounds_as_sines(view):
    view.value("document.getElementById('sine').click()")
    view.value("player.move(0.9), player.start()")
    view.wait("editor.sounding > 0")
    view.value("player.stop()")
    view.wait("editor.sounding === 0")


def test_the_saved_file_is_what_is_shown(view, opened, tmp_path):
    drag(view, (1.25, 60), (1.75, 63))
    shown = view.value("editor.table()")
    view.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    view.value("document.getElementById('save').click()")
    view.wait("new Promise((done) => setTimeout(() => done(true), 500))")
    assert (tmp_path / "notes.csv").read_text(encoding="utf-8") == shown


def test_the_page_says_the_command(view, opened):
    assert view.value("document.getElementById('command').textContent") == (
        f"jaxsep separate duet.wav --from {opened[1].name} --notes notes.csv -o OUT"
    )


def test_ten_minutes_of_notes_stay_fluid(view):
    """Five notes a second: a drawing takes less than a frame of 30 a second."""
    many = """(() => {
      const notes = editor.notes;
      for (let n = 0; n < 3000; n++)
        notes.push({ ...notes[n % 6], onset: 12 * n / 3000, offset: 12 * n / 3000 + 0.2 });
      const begin = performance.now();
      for (let n = 0; n < 20; n++) editor.draw();
      return (performance.now() - begin) / 20;
    })()"""
    milliseconds = view.value(many)
    print(f"{milliseconds:.1f} ms for 3000 notes")
    assert np.isfinite(milliseconds)
    assert milliseconds < 200  # a slow machine without a graphics card

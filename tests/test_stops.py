"""Ctrl-C, SIGTERM and SIGKILL at any moment: old results or new ones whole, and the status says what came."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_audio import contents
from test_cli import RESULTS
from test_report import RATE, sinusoid

from jaxsep import files
from jaxsep.audio import read_audio, write_audio
from jaxsep.cli.process import Stopped
from jaxsep.files import OutputFolder, discard_drafts, replacing

#: Stands before the code of a process: signals as in the foreground.
FOREGROUND = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def in_process(code, *arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-c", FOREGROUND + code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def replace_folder(place, force):
    with OutputFolder(place / "deep" / "out", force=force) as folder:
        (folder / "a.txt").write_text("new")
        (folder / "b.txt").write_text("new")


def replace_file(place, durable):
    (place / "deep").mkdir(exist_ok=True)
    with replacing(place / "deep" / "out", durable=durable) as draft:
        draft.write_text("new")


def stopped_at(step, work, *arguments):
    """Whether `Stopped` was raised before a step, a line or a return, of this work in `files.py` or here."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if frame.f_code.co_filename not in (files.__file__, __file__):
            return None
        if event != "call":
            count += 1
        if count == step and event != "call":
            sys.settrace(None)
            raise Stopped(signal.SIGINT)
        return trace

    def run():
        sys.settrace(trace)
        try:
            work(*arguments)
        except Stopped:
            discard_drafts()  # as the command line does
            return True
        finally:
            sys.settrace(None)
        return False

    files._naming = threading.RLock()  # stopped at the end of a `with`, nobody gives it back
    # An exception that a `with` was about to swallow stays that of the thread, in which rich shows nothing.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def gone(*_):
    raise AttributeError


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that nobody closed
@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    ("work", "options"),
    [(replace_folder, [True]), (replace_folder, [False]), (replace_file, [True]), (replace_file, [False])],
)
def test_at_every_step(tmp_path, monkeypatch, work, options, old, exchange):
    if not exchange:
        monkeypatch.setattr(files.ctypes, "CDLL", gone)
    before = {"deep/out/a.txt": "old"} if old else {}
    after = {"deep/out/a.txt": "new", "deep/out/b.txt": "new"}
    if work is replace_file:
        before, after = ({"deep/out": "old"} if old else {"deep": None}), {"deep/out": "new"}
    elif old and not options[0]:
        pytest.skip("is refused")
    seen = set()
    for step in range(1, 1000):
        place = tmp_path / str(step)
        for name, text in before.items():
            (place / name).parent.mkdir(parents=True)
            (place / name).write_text(text) if text else (place / name).mkdir()
        place.mkdir(exist_ok=True)
        stopped = stopped_at(step, work, place, *options)
        found = contents(place)
        assert found in (before, after, {}, {"deep": None}), step
        assert not old or found in (before, after), step
        seen.add(found == after)
        if not stopped:
            break
    assert (stopped, found, seen) == (False, after, {False, True})
    assert step > 20
    assert files._drafts == {}


SWALLOWED = """
import gc, os, sys, time
from pathlib import Path
from jaxsep.cli.process import stoppable, end, Stopped, go_on
from jaxsep.files import OutputFolder
class Deaf:
    def __del__(self):
        time.sleep(10)
def callback(*_):
    os.kill(os.getpid(), signal.SIGINT if sys.argv[2] == "2" else signal.SIGTERM)
    for _ in range(3): time.sleep(0)
try:
    with stoppable(), OutputFolder("new/out") as folder:
        (folder / "a.txt").write_text("new")
        if sys.argv[1] == "callback":
            gc.callbacks.append(callback); gc.collect(); gc.callbacks.pop()
        else:
            try: callback()
            except BaseException: pass
        print("swallowed", flush=True)
        if sys.argv[1] == "result":
            end_of_work = True
        else:
            while True: sum(range(1000))
except Stopped as stopped:
    end(stopped.number)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["callback", "except", "result"])
def test_nobody_swallows_them(tmp_path, where, number):
    """In a callback, an `except:` such as of an import, and where the work then ends at once."""
    process = in_process(SWALLOWED, where, int(number), cwd=tmp_path)
    assert process.stdout.readline() == "swallowed\n"
    begin = time.monotonic()
    _, err = process.communicate(timeout=30)
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    assert (process.returncode, err.splitlines()[-1]) == (128 + number, f"jaxsep: {word}")
    assert time.monotonic() - begin < 5
    assert contents(tmp_path) == ({"new/out/a.txt": "new"} if where == "result" else {})


LONG_WORK_IN_C = """
import hashlib
from jaxsep.cli.process import stoppable
from jaxsep.files import OutputFolder
with stoppable(), OutputFolder("out"):
    print("started", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def test_long_work_in_c_does_not_hold_them(tmp_path):
    process = in_process(LONG_WORK_IN_C, cwd=tmp_path)
    assert process.stdout.readline() == "started\n"
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert contents(tmp_path) == {}


#: The command line with a made-up separation, which takes a moment, of three instruments three seconds;
#: every step of the rest is the real one.
QUICK = """
import os, sys, time
sys.path[:0] = sys.argv[1].split(os.pathsep)
import jax, numpy as np
from test_report import synthetic_separation
from jaxsep.cli import compute, process
from jaxsep.separation import separate as pursuit
def separate(samples, rate, number, *, progress, **options):
    with progress.stage("separating", 3) as advance:
        for _ in range(3):
            time.sleep(0.02 if number == 2 else 1.0)
            advance()
    return synthetic_separation()
pursuit.separate = separate
compute.overview = lambda separation, samples, rate, target: target.write_bytes(b"a picture")
from jaxsep.cli import app
import warnings; warnings.simplefilter("ignore")  # of JAX, that it has threads; none of them has begun
from jaxsep.__main__ import main
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.argv[1:] = line.split()
        os.dup2(2, 1)
        sys.exit(main())
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runs:
    """Many runs of the command line, one after the other, of which each may be killed."""

    def __init__(self, place):
        self.server = subprocess.Popen(
            [sys.executable, "-c", FOREGROUND + QUICK, os.pathsep.join(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=place,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )

    def __call__(self, *arguments, number=None, delay=0.0):
        """The exit status of a run, and how long it took."""
        print(*arguments, file=self.server.stdin, flush=True)
        child = int(self.server.stdout.readline())
        begin = time.monotonic()
        if number is not None:
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
        status = int(self.server.stdout.readline())
        return status, time.monotonic() - begin

    def close(self):
        self.server.communicate()


@pytest.fixture
def runs(tmp_path):
    place = tmp_path / "work"
    place.mkdir()
    write_audio(place / "mix.wav", sinusoid(440.0) + sinusoid(660.0), RATE)
    write_audio(place / "other.wav", sinusoid(550.0), RATE)
    started = Runs(place)
    yield place, started
    started.close()


def whole(folder):
    """The seed of the results in a folder, which are all there; None without any."""
    if not folder.exists():
        return None
    assert {path.name for path in folder.iterdir()} == RESULTS
    document = json.loads((folder / "separation.json").read_text())
    for name in [document["mixture"], *document["stems"]]:
        read_audio(folder / name, allow_silence=True)
    return document["seed"]


STATUSES = {signal.SIGINT: {130, -2}, signal.SIGTERM: {143, -15}, signal.SIGKILL: {-9}}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
def test_killed_at_any_moment(runs):
    place, run = runs
    rng, out = random.Random(0), place / "out"
    command = ["separate", "mix.wav", "-n", 2, "-o", "out", "--no-cache", "--seed"]
    assert run(*command, 0)[0] == 0
    whole_time = max(run(*command, 0, "--force")[1] for _ in range(3))
    ends = {"old": 0, "new": 0}
    moments = [1.1 * whole_time * n / 99 for n in range(100)]
    rng.shuffle(moments)
    for seed, moment in enumerate(moments, start=1):
        force, number = rng.random() < 0.5, rng.choice(list(STATUSES))
        old = whole(out)
        if not force:
            shutil.rmtree(out, ignore_errors=True)
            old = None
        options = ["--force"] if force else []
        status, took = run(*command, seed, *options, number=number, delay=moment)
        assert status in STATUSES[number] | {0}
        found = whole(out)
        assert found == seed if status == 0 else found in (old, seed)
        ends["new" if found == seed else "old"] += 1
        assert took < 1.1 * whole_time + 3
        left = {path.name for path in place.iterdir()} - {"mix.wav", "other.wav", "out"}
        if number != signal.SIGKILL:
            assert left == set()
        for name in left:
            assert name.startswith(".jaxsep-")
            shutil.rmtree(place / name)
    assert min(ends.values()) > 5, ends


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_batch_begins_no_more(runs, number):
    place, run = runs
    command = ["separate", "mix.wav", "other.wav", "-n", 3, "-o", "out", "--no-cache"]
    for delay in (0.05, 0.2, 0.4):
        status, _ = run(*command, number=number, delay=delay)
        assert status in STATUSES[number]
        assert not (place / "out").exists()

"""A headless Chromium, driven through its remote debugging protocol."""

import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

from websockets.sync.client import connect

#: Names under which systems install it.
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: Sound goes to a device that only counts time; pages may play without having been clicked.
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-port=0",
)


def chromium():
    """Path of the program, or None."""
    return next(filter(None, map(shutil.which, _PROGRAMS)), None)


@contextmanager
def browser(folder, patience=60):
    """A page of a fresh browser that keeps its files in `folder`."""
    command = [chromium(), *_OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _port(folder / "DevToolsActivePort", process, patience)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=patience) as answer:
            address = next(x for x in json.load(answer) if x["type"] == "page")["webSocketDebuggerUrl"]
        with connect(address, max_size=None, open_timeout=patience) as socket:
            yield Page(socket, patience)
    finally:
        process.terminate()
        process.wait(30)


def _port(path, process, patience):
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and (lines := path.read_text().split()):
            return lines[0]
        time.sleep(0.1)
    raise TimeoutError("the browser does not start")


class Page:
    """Commands to a page, and all that it reported: messages of its console and requests."""

    def __init__(self, socket, patience):
        self._socket, self._patience, self._number = socket, patience, 0
        self.complaints: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Result of a command of the protocol."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(self._patience))
            self._note(message)
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]

    def _note(self, message):
        method, content = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(content["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(content["args"]))
        elif method == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.complaints.append(content["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])

    def open(self, path):
        """Goes to a file, and waits until it can play."""
        self.call("Page.navigate", url=path.as_uri())
        self.wait("document.readyState === 'complete' && !document.getElementById('play').disabled")

    def value(self, expression):
        """Value of an expression of JavaScript, awaited if it is a promise."""
        result = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def wait(self, condition):
        """Waits until an expression is true."""
        end = time.monotonic() + self._patience
        while not self.value(condition):
            if time.monotonic() > end:
                raise TimeoutError(condition)
            time.sleep(0.05)

    def press(self, key, code, *, shift=False):
        """Presses and releases a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code, modifiers=8 * shift)

    def pointer(self, kind, x, y):
        """Moves the pointer (`mouseMoved`), or presses (`mousePressed`) and releases it (`mouseReleased`)."""
        button = "none" if kind == "mouseMoved" else "left"
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def resize(self, width, height, *, scale=1, dark=False):
        """Sets the size of the window and the preferred colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

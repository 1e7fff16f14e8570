"""Controls headless Chromium by the DevTools protocol over two pipes, without other packages."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time

import pytest

PATH = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 60.0
needs_chromium = pytest.mark.skipif(
    PATH is None, reason="CHROMIUM IS NOT INSTALLED: THE PAGE IS NOT TESTED IN A BROWSER"
)


class Chromium:
    """A page of a headless browser."""

    def __init__(self, profile):
        read_end, self._write = os.pipe()
        self._read, write_end = os.pipe()
        command = [
            *(PATH, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}"),
            *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "about:blank"),
        ]
        # Chromium reads from file 3 and writes to file 4.
        script = f'exec "$@" 3<&{read_end} 4>&{write_end}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(read_end, write_end),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read_end)
        os.close(write_end)
        self._number, self._session, self._buffer = 0, None, b""
        (target,) = (t for t in self._targets() if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]

    def _targets(self):
        end = time.monotonic() + SECONDS
        while True:
            found = self.call("Target.getTargets")["targetInfos"]
            if any(target["type"] == "page" for target in found) or time.monotonic() > end:
                return found
            time.sleep(0.05)

    def call(self, method, **params):
        """Calls a method of the protocol and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + SECONDS  # Chromium may send events instead of an answer
        while True:
            answer = json.loads(self._receive(end))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self, end):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
            part = os.read(self._read, 2**20) if ready else b""
            assert part, "Chromium does not answer"
            self._buffer += part
        assert time.monotonic() < end, "Chromium sends events, but no answer"
        line, _, self._buffer = self._buffer.partition(b"\0")
        return line

    def open(self, url, width=1280, height=900):
        """Opens a page in a window of the given size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        self.evaluate("window.isEarlier = true")
        self.call("Page.navigate", url=url)
        self.wait_for("!window.isEarlier && document.readyState != 'loading'")

    def evaluate(self, expression):
        """Returns the value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression, seconds=SECONDS):
        """Waits until an expression is true, and returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            text = self.evaluate("document.body?.innerText")
            assert time.monotonic() < end, f"{expression} is not true on the page:\n{text}"
            time.sleep(0.1)
        return value

    def screenshot(self, path, whole=True):
        """Writes a PNG of the window or of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        with open(path, "wb") as file:
            file.write(base64.b64decode(found["data"]))

    def close(self):
        self._session = None
        with contextlib.suppress(OSError, AssertionError):
            self.call("Browser.close")
        for file in (self._read, self._write):
            os.close(file)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()


@contextlib.contextmanager
def open_chromium(profile):
    """Context manager of a browser with a profile in the given folder."""
    browser = Chromium(profile)
    try:
        yield browser
    finally:
        browser.close()

"""Chromium driven over a pipe: keys that are really pressed, a mouse that really moves, and the clock on the wall.

The DevTools protocol needs no package: requests and answers are JSON, each ended by a zero byte, on two pipes that the
browser holds as its file descriptors 3 and 4.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEYS = {"Tab": 9, "Enter": 13, " ": 32}
"""The codes of keys on Windows, by which the protocol knows them."""


class Driven:
    """A tab of a browser, in which one page after another is opened."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers, self._unread, self._last, self._session = requests, answers, b"", 0, ""
        self._events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """What the browser answers to a request."""
        self._last += 1
        request = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            request["sessionId"] = self._session
        data = json.dumps(request).encode() + b"\0"
        while data:
            data = data[os.write(self._requests, data) :]
        while True:
            message = self._read()
            if message.get("id") == self._last:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._events.append(message)

    def open(self, page: Path) -> float:
        """Open a page, and tell how many seconds have passed until it was read, run and painted."""
        self._events.clear()
        started = time.monotonic()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return time.monotonic() - started

    def run(self, expression: str) -> Any:
        """The value of JavaScript, awaited where it is a promise."""
        told = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            raise RuntimeError(told["exceptionDetails"])
        return told["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        common = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a place of the window, as if from its left."""
        for left in (8, 0):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x - left, y=y)

    def messages(self) -> list[str]:
        """What the page has said to the console, and its errors."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self._events if event.get("method") in kinds]

    def resize(self, width: int, height: int) -> None:
        """Give the page a window of a width that no real one has, as that of a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def dark(self, dark: bool) -> None:
        """Ask for the dark theme, or the light one."""
        value = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def picture(self, file: Path) -> None:
        """Save what is seen."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            data = os.read(self._answers, 1 << 20)
            if not data:
                raise RuntimeError("the browser has gone")
            self._unread += data
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)


@contextmanager
def driven(chromium: str, flags: Sequence[str], profile: Path) -> Iterator[Driven]:
    """Start a browser with an empty profile, and end it."""
    ours, theirs = os.pipe(), os.pipe()
    to_read, answers = (fcntl.fcntl(ours[0], fcntl.F_DUPFD, 10), theirs[0])
    requests, to_write = (ours[1], fcntl.fcntl(theirs[1], fcntl.F_DUPFD, 10))

    def as_3_and_4() -> None:
        os.dup2(to_read, 3)
        os.dup2(to_write, 4)

    browser = subprocess.Popen(
        [chromium, *flags, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
        preexec_fn=as_3_and_4,
        pass_fds=(3, 4),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (ours[0], theirs[1], to_read, to_write):
        os.close(end)
    try:
        yield Driven(requests, answers)
    finally:
        browser.terminate()
        browser.wait(30)
        os.close(requests)
        os.close(answers)

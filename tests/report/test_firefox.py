"""The report in an engine other than Chromium's: Firefox draws all of it, without an error, at both widths."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from .test_browser import PANELS

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")

LISTENS = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => errors.push("blocked: " + event.blockedURI));
for (const level of ["error", "warn"]) console[level] = (...words) => errors.push(words.join(" "));
</script>"""

TELLS = """<script>
addEventListener("load", () => {
  const told = new XMLHttpRequest();
  told.open("POST", "SERVER", false);  // the browser leaves as soon as the page is loaded
  told.send(JSON.stringify({
    errors: errors,
    drawn: [...document.querySelectorAll("figure")].filter((figure) => figure.querySelector(".main-svg"))
      .map((figure) => figure.id),
    overflow: document.documentElement.scrollWidth - innerWidth,
    width: innerWidth,
    agent: navigator.userAgent,
  }));
});
</script></body>"""


@pytest.fixture
def told() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """The address of a server on the loopback interface, and what it is told."""
    received: list[dict[str, object]] = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", received
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(FIREFOX is None, reason="needs Firefox (on Debian: apt install firefox-esr)")
@pytest.mark.parametrize("width", [1280, 500])  # no window of Firefox is narrower than 450
def test_firefox_draws_every_panel_without_an_error(
    report: Path, told: tuple[str, list[dict[str, object]]], tmp_path: Path, width: int
) -> None:
    server, received = told
    page = report.read_text(encoding="utf-8")
    assert page.count("default-src 'none'") == 1
    page = page.replace("default-src 'none'", f"connect-src {server}; default-src 'none'")
    page = page.replace("<head>", f"<head>{LISTENS}", 1).replace("</body>", TELLS.replace("SERVER", server))
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (tmp_path / "profile").mkdir()
    picture = tmp_path / "page.png"
    subprocess.run(
        [
            str(FIREFOX),
            "--headless",
            "--no-remote",
            *("--profile", str(tmp_path / "profile")),
            *("--screenshot", str(picture), f"--window-size={width},2000"),
            (tmp_path / "page.html").as_uri(),
        ],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        timeout=120,
        check=True,
    )
    (seen,) = received
    assert "Firefox" in str(seen["agent"]) and seen["width"] == width
    assert seen["errors"] == []
    assert seen["drawn"] == PANELS
    assert seen["overflow"] == 0
    assert picture.stat().st_size > 50_000

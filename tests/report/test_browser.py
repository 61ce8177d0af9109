"""The report as a browser sees it: drawn without an error and without a request to any network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lightning_symmetry.history import History
from lightning_symmetry.report import render_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (on Debian: apt install chromium)")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=5000",
    "--enable-logging=stderr",
    "--v=0",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
PANELS = ["dynamics", "groups", "complexity", "layers", "ranks"]


@dataclass(frozen=True)
class Visit:
    """What came of opening a page: its document afterwards, console messages, and the addresses it asked for."""

    document: str
    console: list[str]
    requests: list[str]


Browser = Callable[[Path], Visit]


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """A function that opens a file in a new, empty profile; names resolve to nothing, so nothing leaves the machine."""

    def visit(page: Path) -> Visit:
        folder = tmp_path_factory.mktemp("chromium")
        net_log = folder / "net.json"
        flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={net_log}"]
        command = [str(CHROMIUM), *flags, "--dump-dom", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        started = [event.get("params", {}) for event in json.loads(net_log.read_text())["events"]]
        requests = [  # the browser's own have the initiator "not an origin"
            params["url"] for params in started if params.get("initiator", "not an origin") != "not an origin"
        ]
        return Visit(done.stdout, re.findall(r":CONSOLE:\d+\] (.*)", done.stderr), requests)

    return visit


@pytest.fixture
def report(run_history: History, tmp_path: Path) -> Path:
    return render_report(run_history, tmp_path / "report.html")


def drawn(document: str) -> list[str]:
    """Names of the panels that hold a drawing."""
    panels = re.findall(r'<figure id="(\w+)">(.*?)</figure>', document, flags=re.DOTALL)
    return [name for name, content in panels if 'class="main-svg"' in content and ">training step</text>" in content]


def test_the_way_of_observing_sees_errors_and_requests(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>new Image().src = 'http://tile.invalid/a.png'; undefinedFunction()</script>")
    visit = browser(page)
    assert "http://tile.invalid/a.png" in visit.requests
    assert any("undefinedFunction is not defined" in message for message in visit.console)
    assert drawn(visit.document) == []


def test_it_draws_every_panel_without_a_message_or_a_request(browser: Browser, report: Path) -> None:
    visit = browser(report)
    assert visit.console == []
    assert visit.requests == []
    assert drawn(visit.document) == PANELS
    assert "blocks_2_mlp_hidden" in visit.document


def test_names_that_look_like_markup_are_shown_as_text(browser: Browser, tmp_path: Path) -> None:
    evil = "<script>console.log(1)</script>"
    history = History(None)
    history.append_event(0, "run", name=evil)
    for step in range(3):
        history.append(step, {f"{key}/{evil}": 1.0 for key in ("symmetry/broken_fraction", "spectrum/effective_rank")})
    visit = browser(render_report(history, tmp_path / "report.html"))
    assert visit.console == []
    assert drawn(visit.document) == ["dynamics", "groups", "layers", "ranks"]
    assert re.search(r"<h1>&lt;script&gt;console\.log\(1\)&lt;/script&gt;", visit.document)
    assert re.search(r'<text class="legendtext"[^>]*>&lt;script&gt;|<text[^>]*>&lt;script', visit.document)


@pytest.mark.parametrize("values", [{}, {"loss": 1.0, "spectrum/effective_rank/fc": float("nan")}])
def test_it_opens_however_little_was_measured(values: dict[str, float], browser: Browser, tmp_path: Path) -> None:
    history = History(None)
    if values:
        history.append(0, values)
    visit = browser(render_report(history, tmp_path / "report.html"))
    assert visit.console == []
    assert "parameter symmetry</h1>" in visit.document


def test_steps_can_be_put_on_a_logarithmic_scale_and_back(browser: Browser, report: Path) -> None:
    probe = """<script>
    const layouts = () => [...document.querySelectorAll(".js-plotly-plot")].map((chart) => chart._fullLayout);
    const scales = () => layouts().flatMap((layout) =>
      Object.keys(layout).filter((key) => key.startsWith("xaxis")).map((axis) => layout[axis].type));
    const seen = [scales()];
    for (const value of ["log", "linear"]) {
      document.querySelector(`input[value=${value}]`).click();
      seen.push(scales());
    }
    document.body.dataset.scales = seen.map((types) => [...new Set(types)].join("+")).join(" ");
    </script></body>"""
    report.write_text(report.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    visit = browser(report)
    assert 'data-scales="linear log linear"' in visit.document
    assert visit.console == []


def test_it_fits_a_phone(browser: Browser, report: Path, tmp_path: Path) -> None:
    probe = """<script>
    const {clientWidth, scrollWidth} = document.documentElement;
    parent.postMessage({phone: innerWidth, overflow: scrollWidth - clientWidth}, "*");
    </script></body>"""
    report.write_text(report.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<script>onmessage = ({data}) => document.body.dataset.fit = `${data.phone} ${data.overflow}`</script>"
        f'<body><iframe src="{report.name}" style="border: 0; width: 390px; height: 3000px"></iframe>'
    )
    assert 'data-fit="390 0"' in browser(frame).document

"""A run as a real one looks: twelve groups, twenty layers, a merge, a rank collapse, a NaN; and a browser to see it."""

from __future__ import annotations

import html
import json
import math
import random
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lightning_symmetry.history import History
from lightning_symmetry.report import render_report

from .devtools import Driven, driven

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
IN_VIRTUAL_TIME = ["--virtual-time-budget=5000", "--enable-logging=stderr", "--v=0"]


@dataclass(frozen=True)
class Visit:
    """What came of opening a page.

    Attributes:
        document: The page afterwards.
        seen: What the probe returned.
        console: Console messages.
        requests: The addresses that it asked for.
        seconds: Processor time of the whole browser.
    """

    document: str
    seen: dict[str, object]
    console: list[str]
    requests: list[str]
    seconds: float


Browser = Callable[..., Visit]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """A function that opens a file in a new, empty profile; names resolve to nothing, so nothing leaves the machine.

    A probe is JavaScript that runs when the page has been read, and returns what it sees as an object.
    """
    if CHROMIUM is None:
        pytest.skip("needs Chromium (on Debian: apt install chromium)")

    def visit(page: Path, probe: str = "", *flags: str) -> Visit:
        folder = tmp_path_factory.mktemp("chromium")
        net_log = folder / "net.json"
        opened = page
        if probe:
            script = f"<script>document.body.dataset.seen = JSON.stringify((() => {{ {probe} }})())</script></body>"
            opened = folder / "page.html"
            opened.write_text(page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
        command = [
            str(CHROMIUM),
            *FLAGS,
            *IN_VIRTUAL_TIME,
            *flags,
            f"--user-data-dir={folder / 'profile'}",
            f"--log-net-log={net_log}",
        ]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [*command, "--dump-dom", opened.as_uri()], capture_output=True, text=True, timeout=120, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = [event.get("params", {}) for event in json.loads(net_log.read_text())["events"]]
        requests = [  # the browser's own have the initiator "not an origin"
            params["url"] for params in started if params.get("initiator", "not an origin") != "not an origin"
        ]
        found = re.search(r'data-seen="([^"]*)"', done.stdout)
        seen = json.loads(html.unescape(found[1])) if found else {}
        console = re.findall(r":CONSOLE:\d+\] (.*)", done.stderr)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Visit(done.stdout, seen, console, requests, seconds)

    return visit


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Driven]:
    """A tab of a browser in which keys are pressed and a mouse moves, 1280 pixels wide."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (on Debian: apt install chromium)")
    with driven(CHROMIUM, FLAGS, tmp_path / "profile") as tab:
        tab.resize(1280, 900)
        yield tab


@pytest.fixture(scope="session")
def report(run_history: History, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_report(run_history, tmp_path_factory.mktemp("report") / "report.html")


GROUPS = [f"model.encoder.blocks.{i}.{part}" for i in range(4) for part in ("attention.heads", "mlp.hidden", "norm")]
LAYERS = [
    f"model.encoder.blocks.{i}.{part}"
    for i in range(4)
    for part in ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj", "mlp.fc1")
]


@pytest.fixture(scope="session")
def run_history() -> History:
    return synthetic_run()


def synthetic_run() -> History:
    rng = random.Random(0)
    history = History(None)
    history.append_event(
        0,
        "run",
        name="digits-vit",
        model="VisionTransformer",
        versions={"lightning-symmetry": "0.1.0", "torch": "2.13.0"},
    )
    groups = [
        {
            "kind": "permutation",
            "name": name,
            "size": 4 if "heads" in name else 128,
            "dimension": 0,
            "parameters": [f"{name}.{tensor}" for tensor in ("in.weight", "in.bias", "out.weight")],
            "buffers": [f"{name}.running_mean"] if "norm" in name else [],
            "preserves": "output",
            "exact": True,
            "verified": True if "norm" not in name else None,
        }
        for name in GROUPS
    ]
    history.append_event(0, "symmetries", groups=groups, share=0.93)
    for i in range(300):
        step = 10 * i
        first, second = (1 / (1 + math.exp((step - at) / 40)) for at in (600, 1700))
        broken = {}
        for j, name in enumerate(GROUPS):
            merging = j in (1, 4, 7)
            start = 1500 if merging else 10_000
            broken[name] = 0.35 + 0.65 * (1 - first) - (0.45 + 0.05 * j) / (1 + math.exp((start - step) / 60))
            broken[name] = min(1.0, max(0.0, broken[name] + (0 if merging else -0.01 * j)))
        values = {"loss": 0.15 + 1.2 * first + 0.9 * second + 0.02 * rng.random()}
        values["symmetry/broken_fraction"] = sum(broken.values()) / len(broken)
        for name, value in broken.items():
            key = name.replace(".", "_")
            values[f"symmetry/broken_fraction/{key}"] = value
            values[f"symmetry/nearest_distance_min/{key}"] = 0.02 + 0.4 * value**3 + 0.01 * rng.random()
        for j, name in enumerate(LAYERS):
            full = 120 if "fc1" in name else 64
            fall = (0.03 * j) * (1 - second) + 0.1 * (1 - first)
            values[f"spectrum/effective_rank/{name.replace('.', '_')}"] = full * (0.9 - fall) + 0.3 * rng.random()
        if 150 < i < 156:
            values["spectrum/effective_rank/model_encoder_blocks_2_mlp_fc1"] = math.nan
        values["complexity/effective_parameters"] = 180_000 + 210_000 * values["symmetry/broken_fraction"]
        values["complexity/effective_rank_fraction"] = 0.5 + 0.4 * second
        values["monitor/overhead"] = 0.008 + 0.001 * rng.random()
        history.append(step, values)
    history.append_event(
        620,
        "breaking",
        group="model_encoder_blocks_0_mlp_hidden",
        indicator="symmetry/distinct_units",
        since=590,
        before=60.0,
        after=96.0,
        size=36.0,
        confidence=0.998,
    )
    history.append_event(1510, "nonfinite", parameter="model.encoder.blocks.2.mlp.fc1.weight")
    history.append_event(1520, "error", where="spectrum", message="the matrix holds NaN <0 & more>")
    return history

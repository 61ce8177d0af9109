"""What users name is shown as text, and never run: neither as markup, nor in an attribute, nor in embedded JSON."""

from __future__ import annotations

from pathlib import Path

from lightning_symmetry.history import History
from lightning_symmetry.report import render_comparison, render_report

from .conftest import Browser

EVIL = [
    "<script>console.log(1)</script>",
    "</script><script>console.log(2)</script>",
    '"><img src=x onerror=console.log(3)>',
    "' onmouseover='console.log(4)' autofocus onfocus='console.log(5)",
    "<!--<script>",
    "{{ 7 * 7 }} %{x} ${console.log(6)} \u2028 javascript:console.log(7)",
    "<a href='javascript:console.log(8)'>b</a>",
]


def evil_run() -> History:
    history = History(None)
    history.append_event(0, "run", name=EVIL[0], model=EVIL[1], versions={EVIL[2]: EVIL[3]}, config={EVIL[4]: EVIL[5]})
    groups = [
        {"kind": evil, "name": evil, "size": evil, "parameters": [evil], "buffers": [evil], "preserves": evil}
        for evil in EVIL
    ]
    history.append_event(0, "symmetries", groups=groups, share=1.0)
    indicators = (
        "symmetry/broken_fraction",
        "symmetry/nearest_distance_min",
        "spectrum/effective_rank",
        "representation/effective_rank",
        "representation/nc1",
        "representation/dormant_fraction",
    )
    for step in range(3):
        values = {f"{indicator}/{evil}": 0.5 for indicator in indicators for evil in EVIL}
        values |= {f"representation/linear_cka/{evil.replace('/', '')}/{EVIL[5]}": 0.5 for evil in EVIL}
        history.append(step, {"loss": 1.0, **values})
    for evil in EVIL:
        told = {"group": evil, "indicator": f"spectrum/{evil}", "since": 0, "before": 2.0, "after": 1.0}
        history.append_event(1, "rank_collapse", **told, confidence=0.99)
        history.append_event(1, "error", where=evil, message=evil)
        history.append_event(2, evil, what=evil)
    return history


PROBE = """
for (const element of document.querySelectorAll("*")) element.dispatchEvent(new Event("mouseover"));
const inserted = [...document.querySelectorAll("main *")].filter((element) =>
  element.tagName === "IMG" || /^javascript:/i.test(element.getAttribute("href") ?? "") ||
  element.getAttributeNames().some((name) => name.startsWith("on")));
return {heading: document.querySelector("h1").textContent, inserted: inserted.map((element) => element.outerHTML),
  charts: document.querySelectorAll(".main-svg").length > 0};"""


def test_a_report_of_evil_names_runs_nothing_of_them(browser: Browser, tmp_path: Path) -> None:
    visit = browser(render_report(evil_run(), tmp_path / "report.html"), PROBE)
    assert visit.console == []
    assert visit.requests == []
    assert visit.seen == {"heading": f"{EVIL[1]}, run {EVIL[0]}: parameter symmetry", "inserted": [], "charts": True}


def test_a_comparison_of_evil_names_runs_nothing_of_them(browser: Browser, tmp_path: Path) -> None:
    other = History(None)
    other.append_event(0, "run", config={EVIL[4]: EVIL[6]})
    page = render_comparison({EVIL[1]: evil_run(), EVIL[2]: other}, tmp_path / "comparison.html")
    visit = browser(page, PROBE)
    assert visit.console == []
    assert visit.requests == []
    assert visit.seen["heading"].startswith(f"{EVIL[1]} and {EVIL[2]}")
    assert visit.seen["inserted"] == []

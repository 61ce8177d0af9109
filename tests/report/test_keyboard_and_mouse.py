"""The report in the hands of a reader: keys that are pressed, and a mouse that points, in a real browser."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from lightning_symmetry.history import History
from lightning_symmetry.report import render_comparison, render_report

from .conftest import synthetic_run
from .devtools import Driven

FOCUSED = """(() => {
  const focused = document.activeElement;
  return {text: focused.innerText.trim(), tag: focused.tagName, outline: getComputedStyle(focused).outlineStyle,
    table: focused.closest("table")?.id ?? "", href: focused.getAttribute("href")};
})()"""
SIZES = """(() => {
  const table = document.getElementById("symmetry-table");
  const sizes = [...table.tBodies[0].rows].map((row) => row.cells[2].innerText.trim());
  return [table.tHead.rows[0].cells[2].ariaSort, sizes];
})()"""


def tab_to(tab: Driven, text: str, table: str) -> int:
    """Press Tab until what is focused reads so, in a table of that id; how often it took."""
    for presses in range(1, 200):
        tab.press("Tab")
        focused = tab.run(FOCUSED)
        assert focused["outline"] != "none", focused  # whoever uses keys sees where they are
        if (focused["text"], focused["table"]) == (text, table):
            return presses
    raise AssertionError(f"no Tab leads to {text}")


def test_the_first_tab_offers_to_skip_to_the_content(tab: Driven, report: Path) -> None:
    tab.open(report)
    tab.press("Tab")
    assert tab.run(FOCUSED)["href"] == "#content"
    tab.press("Enter")
    assert tab.run(FOCUSED)["tag"] == "MAIN"


def test_tab_leads_to_the_heading_of_a_column_and_enter_and_space_sort_it(tab: Driven, report: Path) -> None:
    tab.open(report)
    assert tab.run(SIZES)[0] == "none"
    tab_to(tab, "Size", "symmetry-table")
    tab.press("Enter")
    assert tab.run(SIZES) == ["ascending", ["4"] * 4 + ["128"] * 8]
    tab.press("Enter")
    assert tab.run(SIZES) == ["descending", ["128"] * 8 + ["4"] * 4]
    tab.press(" ")
    assert tab.run(SIZES)[0] == "ascending"
    assert tab.messages() == []


PLACE = """(() => {{
  const chart = document.getElementById("chart-{chart}");
  chart.scrollIntoView({{block: "center", behavior: "instant"}});
  const box = chart.getBoundingClientRect();
  const layout = chart._fullLayout;
  const traces = chart.data.filter((trace) => (trace.yaxis ?? "y") === "{axis}");
  const trace = traces[traces.length - 1];
  const [x, y] = [layout[(trace.xaxis ?? "x").replace("x", "xaxis")], layout["{axis}".replace("y", "yaxis")]];
  const heatmap = trace.type === "heatmap";
  const i = heatmap ? 1 : Math.floor(trace.x.length / 2);
  return [
    box.left + x._offset + x.d2p(heatmap ? trace.x?.[i] ?? 0 : trace.x[i]),
    box.top + y._offset + y.d2p(heatmap ? 1 : trace.y[i]),
  ];
}})()"""


def pointed_at(tab: Driven, chart: str, axis: str) -> str:
    """What a chart tells of a point that the mouse is moved to."""
    x, y = tab.run(PLACE.format(chart=chart, axis=axis))
    for _ in range(20):
        tab.point(x, y)
        time.sleep(0.1)  # Plotly looks at the mouse some ten times a second
        told = tab.run(f"document.querySelector('#chart-{chart} .hoverlayer').textContent")
        if told:
            return str(told)
    raise AssertionError(f"nothing is told of {chart}, {axis}")


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """The report of a run that has all charts."""
    history = synthetic_run()
    for step in range(3000, 3300, 10):
        share = (step - 3000) / 300
        values = {f"representation/effective_rank/net_fc{i}": 5.0 + i + share for i in range(3)}
        values |= {f"representation/linear_cka/net_fc{i}/net_fc{i + 1}": 0.5 for i in range(2)}
        values |= {
            f"representation/{mark}/net_head": 0.5 + share for mark in ("nc1", "nc2_equiangularity", "nc3", "nc4")
        }
        for indicator in ("activation_weight_alignment", "dormant_fraction"):
            values[f"representation/{indicator}/net_fc0"] = 0.5 * share
        values["representation/effective_rank_fraction"] = 0.5
        history.append(step, values)
    return render_report(history, tmp_path / "report.html")


NUMBER = r"[\d.]+(?:e\+\d)?"
LINE = rf"step \d+{NUMBER}"
TOLD = {
    "dynamics y": rf"training loss{LINE}",
    "dynamics y2": rf"mean of all groups{LINE}",
    "dynamics y3": rf"model_encoder_blocks_\d_\w+{LINE}",
    "groups y": rf"model_encoder_blocks_0_mlp_hiddenstep \d+broken fraction {NUMBER}",
    "complexity y": rf"effective parameters{LINE}",
    "complexity y2": rf"rank fraction{LINE}",
    "layers y": rf"model_encoder_blocks_0_attention_k_projstep \d+effective rank {NUMBER}\d+% of its largest",
    "ranks y": rf"model_encoder_blocks_\d_\w+{LINE}",
    "formation y": rf"mean of all layers{LINE}",
    "formation y2": rf"net_fc0{LINE}",
    "formation y3": rf"net_fc0{LINE}",
    "features y": rf"net_fc1step \d+effective rank {NUMBER}\d+% of its largest",
    "similarity y": rf"net_fc1net_fc0linear CKA {NUMBER}",
    "collapse y": rf"NC1 within / between, net_head{LINE}",
    "collapse y2": rf"NC2 angles, net_head{LINE}",
    "collapse y3": rf"NC3 duality, net_head{LINE}",
    "collapse y4": rf"NC4 nearest mean, net_head{LINE}",
}


def test_every_chart_tells_what_the_mouse_points_at(tab: Driven, everything: Path) -> None:
    tab.open(everything)
    charts = tab.run("""[...document.querySelectorAll(".js-plotly-plot")].flatMap((chart) =>
      [...new Set(chart.data.map((trace) => `${chart.id.slice(6)} ${trace.yaxis ?? "y"}`))])""")
    assert charts == list(TOLD)
    told = {place: pointed_at(tab, *place.split()) for place in charts}
    assert {place: text for place, text in told.items() if not re.fullmatch(TOLD[place], text)} == {}
    assert tab.messages() == []


def test_a_comparison_tells_the_run_that_the_mouse_points_at(tab: Driven, run_history: History, tmp_path: Path) -> None:
    tab.open(render_comparison({"one": run_history, "two": synthetic_run()}, tmp_path / "comparison.html"))
    for axis in ("y", "y2"):
        assert re.fullmatch(rf"two{LINE}", pointed_at(tab, "dynamics", axis))

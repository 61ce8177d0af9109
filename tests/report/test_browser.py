"""The report as a browser sees it: drawn without an error and without a request to any network.

Here the browser is Chromium; the page uses nothing but standard features that Firefox and Safari have too.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_symmetry.history import History
from lightning_symmetry.report import render_comparison, render_report

from .conftest import Browser

PANELS = ["dynamics", "groups", "complexity", "layers", "ranks"]


def drawn(document: str) -> list[str]:
    """Names of the panels that hold a drawing."""
    panels = re.findall(r'<figure id="(\w+)"[^>]*>(.*?)</figure>', document, flags=re.DOTALL)
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


@pytest.mark.parametrize("values", [{}, {"loss": 1.0, "spectrum/effective_rank/fc": float("nan")}])
def test_it_opens_however_little_was_measured(values: dict[str, float], browser: Browser, tmp_path: Path) -> None:
    history = History(None)
    if values:
        history.append(0, values)
    visit = browser(render_report(history, tmp_path / "report.html"))
    assert visit.console == []
    assert "parameter symmetry</h1>" in visit.document


def test_what_is_pointed_at_tells_layer_step_and_value(browser: Browser, report: Path) -> None:
    probe = """
    const told = (id, place) => {
      const chart = document.getElementById(id);
      Plotly.Fx.hover(chart, place, "xy");
      return chart.querySelector(".hoverlayer").textContent;
    };
    const figure = document.getElementById("chart-ranks");
    const grey = figure.data.findIndex((trace) => trace.legendgroup === "others");
    return {
      line: told("chart-ranks", [{curveNumber: grey, pointNumber: 10}]),
      cell: told("chart-layers", {xval: 105, yval: 2}),
    };"""
    seen = browser(report, probe).seen
    assert re.search(r"model_encoder_blocks_\d_\w+step \d+\d+\.\d", seen["line"])
    assert re.search(
        r"model_encoder_blocks_0_attention_v_projstep \d+effective rank [\d.]+% of its largest", seen["cell"]
    )


def test_steps_can_be_put_on_a_logarithmic_scale_and_back(browser: Browser, report: Path) -> None:
    probe = """
    const layouts = () => [...document.querySelectorAll(".js-plotly-plot")].map((chart) => chart._fullLayout);
    const scales = () => layouts().flatMap((layout) =>
      Object.keys(layout).filter((key) => key.startsWith("xaxis")).map((axis) => layout[axis].type));
    const seen = [scales()];
    for (const value of ["log", "linear"]) {
      document.querySelector(`input[value=${value}]`).click();
      seen.push(scales());
    }
    return {scales: seen.map((types) => [...new Set(types)].join("+")).join(" ")};"""
    visit = browser(report, probe)
    assert visit.seen == {"scales": "linear log linear"}
    assert visit.console == []


def test_an_event_leads_to_its_step_in_its_chart(browser: Browser, report: Path) -> None:
    probe = """
    const link = document.querySelector('#events a[data-step="620"]');
    link.click();
    link.click();
    const chart = document.querySelector(link.hash + " .js-plotly-plot");
    const chosen = chart.layout.shapes.filter((shape) => shape.name === "chosen");
    return {place: link.hash, lines: chosen.map((shape) => shape.x0)};"""
    assert browser(report, probe).seen == {"place": "#dynamics", "lines": [620]}


def test_the_table_of_symmetries_can_be_sorted_and_filtered(browser: Browser, report: Path) -> None:
    probe = """
    const table = document.getElementById("symmetry-table");
    const headings = [...table.tHead.rows[0].cells];
    const shown = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
    const column = (i) => shown().map((row) => row.cells[i].dataset.value ?? row.cells[i].textContent.trim());
    const sort = (i) => { headings[i].querySelector("button").click(); return [headings[i].ariaSort, column(i)]; };
    const filter = document.querySelector(".filters");
    const type = (selector, value, event) => {
      const field = filter.querySelector(selector);
      field.value = value;
      field.dispatchEvent(new Event(event));
      return [shown().length, filter.querySelector("output").textContent];
    };
    return {
      before: headings.map((heading) => heading.ariaSort),
      sizes: [sort(2), sort(2)],
      broken: sort(3),
      others: headings.map((heading) => heading.ariaSort),
      found: type("input", "BLOCKS.2 hidden", "input"),
      none: type("input", "nothing like it", "input"),
      all: type("input", "", "input"),
      kinds: [...filter.querySelectorAll("option")].map((option) => option.textContent),
      kind: type("select", "permutation", "change"),
    };"""
    seen = browser(report, probe).seen
    assert seen["before"] == ["none"] * 6
    assert seen["sizes"] == [["ascending", ["4"] * 4 + ["128"] * 8], ["descending", ["128"] * 8 + ["4"] * 4]]
    assert seen["broken"][1] == sorted(seen["broken"][1], key=float)
    assert seen["others"] == ["none", "none", "none", "ascending", "none", "none"]
    assert seen["found"] == [1, "1 of 12 groups"]
    assert seen["none"] == [0, "0 of 12 groups"]
    assert seen["all"] == [12, "12 of 12 groups"]
    assert seen["kinds"] == ["all", "permutation"]
    assert seen["kind"] == [12, "12 of 12 groups"]


PHONE = """
for (const details of document.querySelectorAll("details")) details.open = true;
const {clientWidth, scrollWidth} = document.documentElement;
const cells = [...document.querySelectorAll("td, th")].filter((cell) => cell.checkVisibility());
const clipped = cells.filter((cell) => {
  const [inner, box] = [cell, cell.closest(".scroll")].map((element) => element.getBoundingClientRect());
  return inner.left < box.left || inner.right > box.right || cell.scrollWidth > cell.clientWidth;
});
const rows = [...document.querySelectorAll(".sortable:not(.events) tbody tr")];
const search = document.querySelector("input[type=search]");
search.value = "nothing like it";
search.dispatchEvent(new Event("input"));
return {
  width: innerWidth,
  overflow: scrollWidth - clientWidth,
  cells: cells.length,
  clipped: clipped.map((cell) => cell.outerHTML),
  events: [...document.querySelectorAll(".events tbody tr")].map((row) => row.innerText),
  headings: [...new Set(rows.map((row) => [...row.cells].map((cell) => cell.dataset.heading).join(", ")))],
  left: rows.filter((row) => row.checkVisibility()).length,
};"""


@pytest.mark.parametrize("pages", ["report", "comparison"])
def test_it_fits_a_phone_and_no_cell_of_a_table_is_clipped(
    pages: str, run_history: History, browser: Browser, report: Path, tmp_path: Path
) -> None:
    page = report
    if pages == "comparison":
        page = render_comparison({"a" * 40: run_history, "b" * 40: run_history}, tmp_path / "comparison.html")
    probe = f"<script>parent.postMessage(JSON.stringify((() => {{ {PHONE} }})()), '*')</script></body>"
    phone = tmp_path / "phone.html"
    phone.write_text(page.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    frame = tmp_path / "frame.html"  # since a window without a screen is never that narrow
    frame.write_text(
        "<script>onmessage = ({data}) => document.body.dataset.seen = data</script>"
        f'<body><iframe src="{phone.name}" style="border: 0; width: 390px; height: 3000px"></iframe>'
    )
    seen = browser(frame).seen
    assert (seen["width"], seen["overflow"]) == (390, 0)
    assert seen["cells"] > 100
    assert seen["clipped"] == []
    events = list(seen["events"])
    assert len(events) == (3 if pages == "report" else 6)
    assert "from 60 to 96 between steps 590 and 620 (confidence 0.998)" in " ".join(events[0].split())
    headings = "Kind, Name, Size, Broken fraction, Verified, Moves"
    if pages == "comparison":
        headings = f"Indicator, Group or layer, {'a' * 40}, {'b' * 40}, Difference"
    assert seen["headings"] == [headings]
    assert seen["left"] == 0  # filtered away


def test_a_box_shows_that_it_goes_on_and_a_dozen_events_need_none(browser: Browser, tmp_path: Path) -> None:
    probe = """
    const box = document.querySelector("#events .scroll");
    const shadow = getComputedStyle(box).backgroundImage.includes("0.28");
    return {hidden: box.scrollHeight - box.clientHeight, shadow};"""
    hidden = []
    for count in (12, 30):
        history = History(None)
        for step in range(count):
            history.append_event(step, "nonfinite", parameter="fc.weight")
        seen = browser(render_report(history, tmp_path / "report.html"), probe).seen
        assert seen["shadow"]
        hidden.append(seen["hidden"])
    assert hidden[0] == 0
    assert hidden[1] > 100

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from lightning_symmetry.history import History
from lightning_symmetry.report import render_comparison
from lightning_symmetry.report.comparison import comparison_chart

from .conftest import Browser, synthetic_run


def run(losses: list[float], **details: object) -> History:
    history = History(None)
    history.append_event(0, "run", started=0.0, **details)
    for step, loss in enumerate(losses):
        history.append(step, {"loss": loss})
    return history


def page(histories: dict[str, History], folder: Path) -> str:
    text = render_comparison(histories, folder / "comparison.html").read_text(encoding="utf-8")
    return re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def cells(text: str, first: str) -> list[str]:
    """The texts of the row of a table that begins so."""
    (row,) = [
        row for row in re.findall(r"<tr>\s*(.*?)</tr>", text, flags=re.DOTALL) if re.search(f"<td>{first}\\s*<", row)
    ]
    return [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", row)]


def test_a_run_is_a_line_of_one_colour_in_every_chart(run_history: History) -> None:
    histories = {"one": run_history, "two": synthetic_run()}
    dynamics, complexity = (comparison_chart(histories, name) for name in ("dynamics", "complexity"))
    colours = {trace.name: trace.line.color for trace in dynamics.data}
    assert colours.keys() == {"one", "two"}
    assert len(set(colours.values())) == 2
    assert {trace.name: trace.line.color for trace in complexity.data} == colours
    assert [axis.title.text for axis in dynamics.select_yaxes()] == ["loss", "broken fraction"]
    assert [trace.name for trace in dynamics.data if trace.showlegend] == ["one", "two"]


def test_events_are_marked_in_the_colour_of_their_run_and_name_it() -> None:
    told = {"group": "fc", "indicator": "symmetry/distinct_units", "since": 0, "before": 8.0, "after": 6.0}
    quiet, loud = run([2.0, 1.0]), run([2.0, 1.0])
    loud.append_event(1, "restoration", **told)
    figure = comparison_chart({"quiet": quiet, "loud": loud}, "dynamics")
    (mark,) = figure.layout.annotations
    assert figure.data[1].line.color in mark.text
    assert "loud" in mark.hovertext and "distinct units of fc fell" in mark.hovertext


def test_the_last_values_stand_side_by_side(tmp_path: Path) -> None:
    text = page({"one": run([2.0, 1.0]), "two": run([2.0, 0.25])}, tmp_path)
    assert cells(text, "training loss") == ["training loss of one batch", "1", "0.25"]


def test_groups_and_layers_are_told_with_their_difference_those_that_differ_most_first(tmp_path: Path) -> None:
    one, two = run([1.0]), run([1.0])
    one.append(
        5, {"symmetry/broken_fraction/a": 1.0, "spectrum/effective_rank/fc": 60.0, "spectrum/effective_rank/x": 3.0}
    )
    two.append(5, {"symmetry/broken_fraction/a": 0.25, "spectrum/effective_rank/fc": 57.0})
    text = page({"one": one, "two": two}, tmp_path)
    assert cells(text, "broken fraction") == ["broken fraction", "a", "1", "0.25", "-0.75"]
    ranks = re.findall(r"<td>rank of weights</td>.*?<code>(.*?)</code></td>(.*?)</tr>", text)
    told = {name: re.findall(r"<td.*?>(.*?)</td>", rest) for name, rest in ranks}
    assert told == {"fc": ["60", "57", "-3"], "x": ["3", "-", "-"]}
    assert text.index("<code>a</code>") < text.index("<code>fc</code>") < text.index("<code>x</code>")


def test_of_three_runs_the_largest_difference_is_told(tmp_path: Path) -> None:
    histories = {}
    for name, value in (("one", 0.5), ("two", 0.25), ("three", math.nan)):
        histories[name] = run([1.0])
        histories[name].append(1, {"symmetry/broken_fraction/a": value})
    text = page(histories, tmp_path)
    assert cells(text, "broken fraction") == ["broken fraction", "a", "0.5", "0.25", "not finite", "0.25"]
    assert "<h1>3 runs: comparison of parameter symmetry</h1>" in text
    assert "Largest difference" in text


def test_only_settings_that_differ_are_told(tmp_path: Path) -> None:
    same = {"model": "Net", "versions": {"torch": "2.13.0"}}
    one = run([1.0], **same, config={"SymmetryMonitor": {"tolerance": 0.01, "max_overhead": 0.01}})
    two = run([1.0], **same, config={"SymmetryMonitor": {"tolerance": 0.1, "max_overhead": 0.01}}, parameters=5)
    text = page({"one": one, "two": two}, tmp_path)
    settings = re.findall(
        r'<td class="name"><code>(.*?)</code></td><td class="name">(.*?)</td><td class="name">(.*?)</td>', text
    )
    assert settings == [("config.SymmetryMonitor.tolerance", "0.01", "0.1"), ("parameters", "-", "5")]
    assert "set up alike" not in text
    assert "set up alike" in page({"one": one, "two": one}, tmp_path)


def test_events_of_all_runs_are_listed_with_their_run(tmp_path: Path) -> None:
    one, two = run([1.0]), run([1.0])
    two.append_event(7, "nonfinite", parameter="fc.weight")
    text = page({"one": one, "two": two}, tmp_path)
    assert re.search(r'</span>two</td>\s*<td class="number"><a href="#dynamics" data-step="7">7</a>', text)
    assert "No sudden change was found in any run" in page({"one": one, "other": one}, tmp_path)


def test_one_run_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"histories=\['one'\]: a comparison needs two runs or more"):
        render_comparison({"one": run([1.0])}, tmp_path / "comparison.html")
    assert list(tmp_path.iterdir()) == []


def test_runs_without_a_measurement_are_compared_as_such(tmp_path: Path) -> None:
    assert "Nothing has been measured yet" in page({"one": History(None), "two": History(None)}, tmp_path)


def test_a_browser_draws_it_without_a_message_or_a_request(
    browser: Browser, run_history: History, tmp_path: Path
) -> None:
    comparison = render_comparison({"one": run_history, "two": synthetic_run()}, tmp_path / "comparison.html")
    probe = """
    const heading = [...document.querySelectorAll("#part-table th")].pop();
    heading.querySelector("button").click();
    const charts = document.querySelectorAll(".main-svg .xtitle, .main-svg .x2title");
    return {charts: charts.length, sorted: heading.ariaSort};"""
    visit = browser(comparison, probe)
    assert visit.console == []
    assert visit.requests == []
    assert visit.seen == {"charts": 2, "sorted": "ascending"}

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from lightning_symmetry.history import History
from lightning_symmetry.report import render_report
from lightning_symmetry.report.drawing import MOST_POINTS


def page(history: History, folder: Path) -> str:
    """The report without the code of plotly.js."""
    text = render_report(history, folder / "report.html").read_text(encoding="utf-8")
    return re.sub(r"<script>.*?</script>(?=\s*</head>)", "", text, flags=re.DOTALL)


def group(name: str, **changes: object) -> dict[str, object]:
    return {
        "kind": "permutation",
        "name": name,
        "size": 16,
        "dimension": 0,
        "parameters": [f"{name}.weight", f"{name}.bias"],
        "buffers": [f"{name}.running_mean"],
        "preserves": "output",
        "exact": True,
        "verified": True,
        **changes,
    }


def test_it_names_run_model_and_what_was_measured(run_history: History, tmp_path: Path) -> None:
    text = page(run_history, tmp_path)
    title = r"<title>digits-vit · VisionTransformer · \d{4}-\d\d-\d\d \d\d:\d\d \S+: parameter symmetry</title>"
    assert re.search(title, text)
    assert "<h1>VisionTransformer, run digits-vit: parameter symmetry</h1>" in text
    assert "300 measurements, up to step 2990" in text
    assert "torch 2.13.0" in text


def test_it_has_a_panel_for_everything_measured(run_history: History, tmp_path: Path) -> None:
    text = page(run_history, tmp_path)
    assert re.findall(r'<figure id="(\w+)"', text) == ["dynamics", "groups", "complexity", "layers", "ranks"]
    for name in ("dynamics", "groups", "complexity", "layers", "ranks"):
        assert f'id="chart-{name}"' in text


def test_headlines_go_from_first_to_last(tmp_path: Path) -> None:
    history = History(None)
    history.append(0, {"loss": 2.5, "symmetry/broken_fraction": 1.0, "monitor/overhead": 0.5})
    history.append(9, {"loss": 0.25, "symmetry/broken_fraction": math.nan, "monitor/overhead": 0.0123})
    numbers = re.findall(r'<dd class="number">(.*?)</dd>', page(history, tmp_path))
    assert numbers == ["2.5 → 0.25", "1.00 → not finite", "1.23%"]


@pytest.mark.parametrize(
    ("grids", "told"),
    [
        ((None, None), "share of training time"),
        ((100, 100), "share of training time, on a fixed grid of 100 steps instead of a budget"),
        ((100, 20), "share of training time, on a fixed grid of 20 and 100 steps instead of a budget"),
    ],
)
def test_a_cost_that_no_budget_bounds_is_told_with_its_grid(
    grids: tuple[int | None, int | None], told: str, tmp_path: Path
) -> None:
    history = History(None)
    config = {f"Monitor{i}": {"every_n_train_steps": grid, "max_overhead": 0.01} for i, grid in enumerate(grids)}
    history.append_event(0, "run", name="a", config=config)
    history.append(0, {"monitor/overhead": 0.13})
    assert f'<dd class="muted">{told}</dd>' in page(history, tmp_path)


def test_a_run_without_a_name_or_a_model_has_a_heading(tmp_path: Path) -> None:
    assert "<h1>unnamed run: parameter symmetry</h1>" in page(History(None), tmp_path)


def test_units_are_told_in_whole_numbers_and_ranks_in_digits(tmp_path: Path) -> None:
    history = History(None)
    for indicator in ("symmetry/distinct_units", "spectrum/effective_rank"):
        told = {"group": "fc1", "indicator": indicator, "since": 40, "before": 47.59, "after": 45.0}
        history.append_event(60, "restoration", **told)
    text = page(history, tmp_path)
    assert "distinct units of fc1 fell from 48 to 45 between" in text
    assert "effective rank of fc1 fell from 47.59 to 45 between" in text


def test_the_table_tells_each_group(tmp_path: Path) -> None:
    history = History(None)
    groups = [group("net.fc1"), group("head", preserves="loss", exact=False, verified=None)]
    history.append_event(0, "symmetries", groups=groups, share=0.5)
    history.append(0, {"symmetry/broken_fraction/net_fc1": 1.0})
    history.append(5, {"symmetry/broken_fraction/net_fc1": 0.25})
    first, second = re.findall(r"<tr>\n<td>permutation.*?</tr>", page(history, tmp_path), flags=re.DOTALL)
    assert "net.fc1" in first and "1.00 → 0.25" in first and "<td>yes</td>" in first
    assert "3 tensors" in first and "net.fc1.running_mean" in first
    assert "not measured" in second and "<td>not tried, loss only, approximate</td>" in second


def test_groups_whose_names_differ_in_dots_alone_have_values_of_their_own(tmp_path: Path) -> None:
    history = History(None)
    history.append_event(0, "symmetries", groups=[group("net.fc"), group("net_fc")], share=0.5)
    history.append(0, {"symmetry/broken_fraction/net_fc": 0.5, "symmetry/broken_fraction/net_fc_2": 0.25})
    first, second = re.findall(r"<tr>\n<td>permutation.*?</tr>", page(history, tmp_path), flags=re.DOTALL)
    assert "0.50 → 0.50" in first
    assert "0.25 → 0.25" in second


def test_what_was_not_measured_takes_no_value_of_others(tmp_path: Path) -> None:
    history = History(None)
    history.append_event(0, "symmetries", groups=[group("net.fc"), group("net_fc")], share=0.5)
    history.append_event(0, "unmeasured", groups=["net.fc"], why="too many")
    history.append(0, {"symmetry/broken_fraction/net_fc": 0.5})
    first, second = re.findall(r"<tr>\n<td>permutation.*?</tr>", page(history, tmp_path), flags=re.DOTALL)
    assert "not measured" in first
    assert "0.50 → 0.50" in second


def test_of_a_resumed_run_the_symmetries_found_last_count(tmp_path: Path) -> None:
    history = History(None)
    history.append_event(0, "symmetries", groups=[group("old")], share=0.5)
    history.append_event(5, "symmetries", groups=[group("new")], share=0.5)
    text = page(history, tmp_path)
    assert "new.weight" in text
    assert "old.weight" not in text


def test_everything_that_a_user_names_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    history = History(None)
    history.append_event(0, "run", name=evil, model=evil, versions={evil: evil})
    history.append_event(0, "symmetries", groups=[group(evil, kind=evil, size=evil, preserves=evil)], share=1.0)
    history.append_event(0, "error", where=evil, message=evil)
    keys = ("symmetry/broken_fraction/", "symmetry/nearest_distance_min/", "spectrum/effective_rank/")
    history.append(0, {key + evil: 1.0 for key in keys})
    text = page(history, tmp_path)
    assert evil not in text
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 10


def test_events_are_listed_and_bounded(tmp_path: Path) -> None:
    history = History(None)
    for step in range(130):
        history.append_event(step, "nonfinite", parameter=f"fc{step}.weight")
    text = page(history, tmp_path)
    assert "parameter: fc129.weight" in text and "parameter: fc30.weight" in text
    assert "fc29.weight" not in text
    assert "30 earlier ones are in the history file" in text


def test_a_transition_is_told_in_a_sentence_with_what_it_usually_means(tmp_path: Path) -> None:
    history = History(None)
    told = {"group": "fc1", "indicator": "spectrum/effective_rank", "since": 40, "before": 8.0, "after": 2.0}
    history.append_event(60, "rank_collapse", **told, confidence=0.998)
    text = page(history, tmp_path)
    assert "effective rank of fc1 fell from 8 to 2 between steps 40 and 60 (confidence 0.998)" in text
    assert '<td class="bad">rank collapse</td>' in text
    assert "A layer has lost directions" in text
    history.append_event(80, "breaking", **told)
    assert "<td>breaking</td>" in page(history, tmp_path)


def test_start_and_symmetries_are_no_events_to_worry_about(tmp_path: Path) -> None:
    history = History(None)
    history.append_event(0, "run", name="a")
    history.append_event(0, "symmetries", groups=[], share=0.0)
    assert 'id="events"' not in page(history, tmp_path)


@pytest.mark.parametrize(
    ("values", "panels"),
    [
        ({}, []),
        ({"loss": 1.0}, ["dynamics"]),
        ({"symmetry/broken_fraction/fc": 1.0}, ["dynamics", "groups"]),
        ({"spectrum/effective_rank/fc": 1.0}, ["layers", "ranks"]),
        ({"loss": math.nan, "spectrum/effective_rank/fc": math.nan}, ["dynamics", "layers", "ranks"]),
    ],
)
def test_what_was_not_measured_is_left_out(values: dict[str, float], panels: list[str], tmp_path: Path) -> None:
    history = History(None)
    if values:
        history.append(0, values)
    text = page(history, tmp_path)
    assert re.findall(r'<figure id="(\w+)"', text) == panels
    assert ("Nothing has been measured yet" in text) == (not panels)
    sections = re.findall(r"<h2>(.*?)</h2>", text)
    hierarchies = ["Learning dynamics", "Model complexity", "Representation formation"]
    assert sections == (["What happened", *hierarchies] if panels else [])
    monitors = {"SymmetryMonitor": "groups", "SpectrumMonitor": "layers", "RepresentationMonitor": "features"}
    for monitor, panel in monitors.items():
        assert (f"add <code>{monitor}()</code>" in text) == (bool(panels) and panel not in panels)


def test_a_model_without_symmetries_says_so_and_one_that_nobody_searched_says_nothing(tmp_path: Path) -> None:
    history = History(None)
    assert 'id="symmetries"' not in page(history, tmp_path)
    history.append_event(0, "symmetries", groups=[], share=0.0)
    assert "No symmetry group has been found" in page(history, tmp_path)


def test_a_large_model_says_how_many_rows_are_shown(tmp_path: Path) -> None:
    history = History(None)
    history.append(0, {f"spectrum/effective_rank/n{i}": 1.0 for i in range(70)})
    assert "Shown: the 60 of 70 that moved most." in page(history, tmp_path)


def test_the_page_forbids_every_request(run_history: History, tmp_path: Path) -> None:
    text = page(run_history, tmp_path)
    assert "default-src 'none'" in text
    assert not re.search(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?!data:)', text)


def test_it_replaces_the_file_and_leaves_nothing_else(run_history: History, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "report.html"
    assert render_report(History(None), path) == path
    before = path.stat()
    render_report(run_history, path)
    assert path.stat().st_ino != before.st_ino  # another file in its place, not the same one written over
    assert list(path.parent.iterdir()) == [path]


def test_a_report_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError):
        render_report(History(None), tmp_path / "report.html")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_every_hierarchy_says_what_one_sees_what_is_good_and_what_to_do(tmp_path: Path) -> None:
    history = History(None)
    history.append(0, {"loss": 1.0, "representation/effective_rank/fc": 1.0})
    text = page(history, tmp_path)
    assert re.findall(r"<dt>(What .*?)</dt>", text) == ["What you see", "What is good", "What to do"] * 3


def test_an_event_is_linked_to_the_chart_of_its_indicator(run_history: History, tmp_path: Path) -> None:
    text = page(run_history, tmp_path)
    assert re.findall(r'<a href="#(\w+)" data-step="(\d+)">', text) == [
        ("dynamics", "620"),
        ("dynamics", "1510"),
        ("dynamics", "1520"),
    ]


def test_a_quiet_run_says_that_nothing_happened(tmp_path: Path) -> None:
    history = History(None)
    history.append(0, {"loss": 1.0})
    assert "No sudden change was found, and nothing went wrong." in page(history, tmp_path)


def test_a_long_run_says_that_it_is_thinned(tmp_path: Path) -> None:
    history = History(None)
    for step in range(MOST_POINTS):
        history.append(step, {"loss": 1.0})
    assert "Long series are thinned" not in page(history, tmp_path)
    history.append(MOST_POINTS, {"loss": 1.0})
    assert "Long series are thinned" in page(history, tmp_path)


@pytest.mark.parametrize(("count", "told"), [(1, "1 event"), (12, "12 events"), (13, "13 events"), (130, "130 events")])
def test_the_list_of_events_says_how_long_it_is_and_a_dozen_are_shown_without_a_box(
    count: int, told: str, tmp_path: Path
) -> None:
    history = History(None)
    for step in range(count):
        history.append_event(step, "nonfinite", parameter="fc.weight")
    text = page(history, tmp_path)
    assert f"<strong>{told}</strong>" in text
    assert ('<div class="scroll whole"' in text) == (count <= 12)


def test_what_a_kind_of_event_means_is_told_once(tmp_path: Path) -> None:
    history = History(None)
    for step, kind in enumerate(("nonfinite", "nonfinite", "error")):
        history.append_event(step, kind, where="fc.weight")
    text = page(history, tmp_path)
    assert text.count("Training has diverged or overflowed") == 1
    assert text.count("A monitor could not measure") == 1

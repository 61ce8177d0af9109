"""The workspace of a project: the three hierarchies as sections, whose panels find the keys that monitors log."""

from __future__ import annotations

import json
import re

from lightning_symmetry.sinks.heatmaps import HEATMAPS
from lightning_symmetry.sinks.wandb_run import REPORT
from lightning_symmetry.sinks.wandb_workspace import MOST_BARS, least_broken, specification, workspace
from tests.callbacks.trainings import Net, monitors, train


def panels(made):
    """The kind and the configuration of every panel."""
    sections = specification(made)["spec"]["section"]["panelBankConfig"]["sections"]
    return [(panel["viewType"], panel["config"]) for section in sections for panel in section["panels"]]


def test_the_sections_are_the_three_hierarchies_the_monitor_and_a_comparison():
    spec = specification(workspace("me", "vision"))["spec"]["section"]
    names = [section["name"] for section in spec["panelBankConfig"]["sections"]]
    assert names == ["Learning dynamics", "Complexity", "Representation", "Monitor", "Comparison of runs"]
    assert "Run Comparer" in [kind for kind, _ in panels(workspace("me", "vision"))]


def test_every_axis_of_steps_is_the_trainers():
    spec = specification(workspace("me", "vision"))["spec"]["section"]
    lines = [config for kind, config in panels(workspace("me", "vision")) if kind == "Run History Line Plot"]
    assert {config["xAxis"] for config in lines} == {spec["settings"]["xAxis"]} == {"trainer/global_step"}


def test_every_key_that_monitors_log_has_a_panel(tmp_path):
    callbacks = monitors()
    train(tmp_path, callbacks, Net())
    lines = [config for kind, config in panels(workspace("me", "vision")) if kind == "Run History Line Plot"]
    named = {key for config in lines for key in config["metrics"]}
    patterns = [config["metricRegex"] for config in lines if config.get("useMetricRegex")]
    keys = callbacks[0].history.keys("")
    shown = {key for key in keys if key in named or any(re.search(pattern, key) for pattern in patterns)}
    unseen = {key.split("/")[1] for key in keys if key not in shown}
    assert unseen <= {"effective_units", "relative_distance", "nearest_distance_q05", "nearest_distance_median"}


def test_every_heatmap_and_the_report_have_a_media_panel():
    media = [config["mediaKeys"] for kind, config in panels(workspace("me", "vision")) if kind == "Media Browser"]
    assert sorted(key for keys in media for key in keys) == sorted([*HEATMAPS, REPORT])


def test_bars_show_the_last_values_of_the_groups_that_are_given():
    def bars(made):
        return [config["metrics"] for kind, config in panels(made) if kind == "Bar Chart"]

    mean = ["symmetry/broken_fraction.last"]
    assert bars(workspace("me", "vision")) == [mean]
    groups = ["symmetry/broken_fraction/fc2.last", "symmetry/broken_fraction/fc1.last"]
    assert bars(workspace("me", "vision", groups=["fc2", "fc1"])) == [mean, groups]


def test_the_least_broken_groups_are_the_lowest_last_values_of_any_run():
    first = {f"symmetry/broken_fraction/g{i:02}": {"last": i / 100, "min": 0.0} for i in range(30)}
    second = {"symmetry/broken_fraction/g29": {"last": 0.005}, "symmetry/broken_fraction/g28": {"last": "NaN"}}
    others = {"symmetry/broken_fraction": {"last": 0.0}, "train_loss": 0.0, "_step": 3}
    assert least_broken([first, second, others]) == ["g00", "g29", *(f"g{i:02}" for i in range(1, MOST_BARS - 1))]


def test_the_same_project_gives_the_same_specification_with_distinct_panels():
    once, again = (specification(workspace("me", "vision", groups=["fc1"])) for _ in range(2))
    ids = re.findall(r'"__id__": "(\w+)"', json.dumps(once))
    assert len(ids) == len(set(ids)) > 20
    # the library draws a name for the set of runs at random
    assert json.dumps(once).count("runSets") == 1
    for spec in (once, again):
        spec["spec"]["section"]["runSets"][0].pop("id", None)
    assert once == again

"""Alerts: what they say, how often, and that a real W&B run gets them."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.loggers import WandbLogger

from lightning_symmetry.history import Event
from lightning_symmetry.measurement.transitions import TRANSITION_KINDS
from lightning_symmetry.report.events import MEANINGS
from lightning_symmetry.sinks.wandb_alerts import LONGEST_TITLE, MOST_NAMED, Alerts
from tests.callbacks.test_transitions_in_training import PLANTED, run
from tests.callbacks.trainings import monitors
from tests.sinks.test_wandb import of_type, records


class Sent:
    """What a run was asked to send."""

    def __init__(self):
        self.alerts = []

    def alert(self, title, text, level):
        self.alerts.append((title, text, level))


def fall(group, step=60, kind="rank_collapse"):
    details = {"indicator": "spectrum/effective_rank", "since": 40, "before": 8.0, "after": 2.0, "confidence": 0.998}
    return Event(step, 0.0, kind, {"group": group, **details})


def test_it_says_what_happened_where_since_when_and_what_it_usually_means():
    Alerts().send(sent := Sent(), [fall("fc1")])
    ((title, text, level),) = sent.alerts
    assert title == "Rank collapse: fc1"
    assert text.splitlines()[0] == (
        "Step 60: effective rank of fc1 fell from 8 to 2 between steps 40 and 60 (confidence 0.998)."
    )
    assert text.endswith(MEANINGS["rank_collapse"])
    assert level == "WARN"


def test_what_happened_at_once_is_one_alert():
    Alerts().send(sent := Sent(), [fall(f"fc{i}") for i in range(MOST_NAMED + 5)])
    ((title, text, _),) = sent.alerts
    assert title == f"Rank collapse: fc0 and {MOST_NAMED + 4} more"
    assert f"fc{MOST_NAMED - 1} " in text and f"fc{MOST_NAMED} " not in text
    assert "And 5 more." in text


def test_a_title_keeps_within_what_wandb_allows_and_shows_the_end_of_a_long_name():
    group = "model_encoder_layers_11_self_attention_output_projection_heads"
    Alerts().send(sent := Sent(), [fall(group), fall("fc2")])
    ((title, text, _),) = sent.alerts
    assert len(title) == LONGEST_TITLE
    assert title.startswith("Rank collapse: …") and title.endswith("output_projection_heads and 1 more")
    assert f"effective rank of {group} fell" in text


def test_the_same_kind_of_the_same_group_waits_and_others_do_not():
    now = [0.0]
    alerts, sent = Alerts(wait=100, clock=lambda: now[0]), Sent()
    for now[0], event in [
        (0, fall("fc1")),
        (99, fall("fc1")),  # too soon
        (99, fall("fc2")),
        (99, fall("fc1", kind="rank_jump")),
        (100, fall("fc1")),
        (150, fall("fc1")),  # too soon after the one at 100
    ]:
        alerts.send(sent, [event])
    titles = [title for title, _, _ in sent.alerts]
    assert titles == ["Rank collapse: fc1", "Rank collapse: fc2", "Rank jump: fc1", "Rank collapse: fc1"]


def test_a_parameter_that_is_not_finite_is_an_error():
    names = [f"fc{i}.weight" for i in range(5)]
    details = {"parameter": names[0], "parameters": names}
    Alerts().send(sent := Sent(), [Event(7, 0.0, "nonfinite", details)])
    ((title, text, level),) = sent.alerts
    assert (title, level) == ("Nonfinite: fc0.weight", "ERROR")
    assert text.startswith("Step 7: NaN or infinity in fc0.weight, fc1.weight, fc2.weight and 2 more.")


@pytest.mark.parametrize("kind", [*TRANSITION_KINDS, "nonfinite", "error"])
def test_every_kind_says_what_it_usually_means(kind):
    assert MEANINGS[kind].endswith(".")


def test_a_real_run_gets_an_alert_of_the_kinds_asked_for_and_of_no_others(tmp_path):
    logger = WandbLogger(project="test", mode="offline", save_dir=tmp_path)
    run(tmp_path, monitors(every_n_train_steps=1, alert_on={"restoration"}), logger=logger)
    folder = Path(logger.experiment.dir).parent
    logger.experiment.finish()
    found = records(folder)
    (alert,) = of_type(found, "alert")
    assert alert["title"] == "Restoration: hidden"
    assert f"Step {PLANTED + 2}: distinct units of hidden fell from 8 to 5" in alert["text"]
    assert alert["level"] == "INFO"
    rows = [row["item"] for row in of_type(found, "history")]
    assert [row["transition/restoration"] for row in rows if "transition/restoration" in row][-1] == 1

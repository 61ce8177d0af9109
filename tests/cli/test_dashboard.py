"""`lightning-symmetry dashboard` against a W&B server of the tests' own, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time

import pytest

from tests.wandb_server import WandbServer

COMMAND = "from lightning_symmetry.cli import main; main(prog_name='lightning-symmetry')"
NO_NETWORK = "import socket\ndef refuse(*args): raise OSError('no network')\nsocket.socket.connect = refuse\n"


def call(*arguments, server=None, before=""):
    """Call the command; without a server there is no network."""
    environment = server.environment if server else {"WANDB_API_KEY": "", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    return subprocess.run(
        [sys.executable, "-c", (before if server else NO_NETWORK + before) + COMMAND, "dashboard", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
    )


@pytest.fixture
def server():
    with WandbServer() as server:
        for number, broken in enumerate([0.9, 0.2]):
            server.runs[f"run{number}"].summary = {"symmetry/broken_fraction/fc1": {"last": broken}, "loss": 1.0}
        yield server


def sections(view):
    return json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]


def test_a_second_call_updates_the_view_of_that_name_and_leaves_others_alone(server):
    server.views_per_page = 1
    first = call("me/vision", server=server)
    assert first.returncode == 0, first.stderr
    other = call("me/vision", "--name", "Encoders", server=server)
    assert other.returncode == 0, other.stderr
    before = {id: dict(view) for id, view in server.views.items()}
    server.runs["run2"].summary = {"symmetry/broken_fraction/fc2": {"last": 0.1}}
    again = call("me/vision", "--name", "Encoders", server=server)
    assert again.returncode == 0, again.stderr
    assert [view["displayName"] for view in server.views.values()] == ["Symmetry", "Encoders"]
    assert other.stdout == again.stdout != first.stdout
    symmetry, encoders = server.views.values()
    assert symmetry in before.values() and encoders not in before.values()
    assert (symmetry["entityName"], symmetry["projectName"], symmetry["type"]) == ("me", "vision", "project-view")


def test_it_prints_the_address_and_shows_the_least_broken_groups_of_the_latest_runs(server):
    printed = call("me/vision", server=server)
    (view,) = server.views.values()
    assert printed.stdout.startswith(f"{server.url}/me/vision?nw=")
    (bars,) = [
        panel["config"]["metrics"]
        for panel in sections(view)[0]["panels"]
        if panel["config"].get("chartTitle") == "The least broken groups"
    ]
    assert bars == ["symmetry/broken_fraction/fc1.last"]


def test_a_dry_run_prints_the_specification_without_network():
    printed = call("me/vision", "--dry-run", "--name", "Encoders")
    assert printed.returncode == 0, printed.stderr
    spec = json.loads(printed.stdout)
    assert (spec["entity"], spec["project"], spec["name"]) == ("me", "vision", "Encoders")
    assert len(spec["spec"]["section"]["panelBankConfig"]["sections"]) == 5


def test_without_the_extra_one_line_says_what_to_install():
    hidden = "import sys; sys.modules['wandb_workspaces'] = None\n"
    printed = call("me/vision", "--dry-run", before=hidden)
    assert printed.returncode == 2
    (line,) = printed.stderr.strip().splitlines()
    assert line.endswith('pip install "lightning-symmetry[dashboard]"')


@pytest.mark.parametrize("project", ["vision", "me/", "/vision", "me/vision/extra"])
def test_what_is_no_project_is_bad_usage(project):
    printed = call(project, "--dry-run")
    assert printed.returncode == 2
    assert "give the owner and the project, as in my-team/vision" in printed.stderr


REFUSED = """
import os
import lightning_symmetry.sinks.wandb_views as views
del os.environ["WANDB_BASE_URL"]
def summaries(*project): raise RuntimeError("Failed to verify credentials with http://127.0.0.1:9: no answer")
views.summaries = summaries
"""


@pytest.mark.parametrize("before", ["", REFUSED], ids=["named by the user", "named by W&B, too late"])
def test_a_server_that_is_away_is_named(before):
    started = time.monotonic()
    printed = call("me/vision", before=before)
    assert printed.returncode == 2
    (line,) = printed.stderr.splitlines()
    assert line.startswith("Error: cannot reach http://127.0.0.1:9 (")
    assert line.endswith("); check the network and WANDB_BASE_URL")
    assert time.monotonic() - started < 15  # W&B alone would wait for 20


def test_help_says_what_a_dry_run_lacks():
    printed = call("--help")
    assert "without the bars of the least broken groups" in " ".join(printed.stdout.split())


def test_a_project_that_does_not_exist_is_named(server):
    server.runs.clear()
    printed = call("me/vision", server=server)
    assert printed.returncode == 2
    (line,) = [line for line in printed.stderr.splitlines() if not line.startswith("wandb:")]
    assert "there is no project me/vision" in line
    assert not server.views

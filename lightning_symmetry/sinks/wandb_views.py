"""The saved views of a W&B project: looked up by name, so that saving twice updates one view. Asks the network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import wandb
import wandb_workspaces.workspaces as ws
from wandb_workspaces._graphql import execute_graphql

MOST_RUNS = 20
"""How many of the latest runs are asked for their summaries."""

_VIEWS = """
query ProjectViews($project: String!, $entity: String!, $cursor: String) {
    project(name: $project, entityName: $entity) {
        allViews(viewType: "project-view", first: 100, after: $cursor) {
            edges { node { id name displayName } cursor }
            pageInfo { hasNextPage }
        }
    }
}
"""

_SUMMARIES = """
query Summaries($project: String!, $entity: String!, $first: Int!) {
    project(name: $project, entityName: $entity) {
        runs(first: $first, order: "-createdAt") { edges { node { summaryMetrics } } }
    }
}
"""


def save(workspace: ws.Workspace) -> str:
    """Save a workspace: in place of the view of its name where the project has one, else as a new view.

    Args:
        workspace: What to save.

    Returns:
        The address of the view.

    Raises:
        ValueError: The project does not exist, or is hidden from this user.
        wandb.errors.Error: The server cannot be reached, or refuses.
    """
    for view in _views(workspace.entity, workspace.project):
        if view["displayName"] == workspace.name:
            workspace._internal_id, workspace._internal_name = view["id"], view["name"]
            break
    return str(workspace.save().url)


def summaries(entity: str, project: str) -> list[dict[str, Any]]:
    """Return the summaries of the latest runs of a project, the latest first.

    Raises:
        ValueError: The project does not exist, or is hidden from this user.
    """
    runs = _project(_SUMMARIES, entity, project, first=MOST_RUNS)["runs"]
    return [json.loads(edge["node"]["summaryMetrics"] or "{}") for edge in runs["edges"]]


def _views(entity: str, project: str) -> Iterator[dict[str, str]]:
    cursor = None
    while True:
        page = _project(_VIEWS, entity, project, cursor=cursor)["allViews"]
        yield from (edge["node"] for edge in page["edges"])
        if not page["pageInfo"]["hasNextPage"]:
            return
        cursor = page["edges"][-1]["cursor"]


def _project(query: str, entity: str, project: str, **variables: Any) -> dict[str, Any]:
    answer = execute_graphql(wandb.Api(), query, {"entity": entity, "project": project, **variables})
    found: dict[str, Any] | None = answer["project"]
    if found is None:
        raise ValueError(
            f"there is no project {entity}/{project} that this user may see: log a run to it first, or log in as "
            "another user with `wandb login`"
        )
    return found

"""`lightning-symmetry dashboard`: a saved workspace for a W&B project."""

from __future__ import annotations

import json
import os
import re

import click

from lightning_symmetry.cli.failure import Failure


@click.command(
    epilog="""\b
Examples:
  lightning-symmetry dashboard my-team/vision
  lightning-symmetry dashboard my-team/vision --name "Symmetry of encoders"
  lightning-symmetry dashboard my-team/vision --dry-run > workspace.json"""
)
@click.argument("project", metavar="ENTITY/PROJECT")
@click.option("--name", default="Symmetry", show_default=True, help="The name of the workspace.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the specification as JSON, and ask no server: without the bars of the least broken groups, which only "
    "the server knows.",
)
def dashboard(project: str, name: str, dry_run: bool) -> None:
    """Make a W&B workspace of the symmetries, ranks and representations of a project's runs.

    It has a section for each hierarchy: learning dynamics, complexity, representation; with heatmaps, the least broken
    groups of the latest runs as bars, and a comparison of runs. A second call updates the workspace of the same name.
    """
    entity, slash, project = project.strip("/").partition("/")
    if not (entity and slash and project) or "/" in project:
        raise click.BadParameter("give the owner and the project, as in my-team/vision", param_hint="ENTITY/PROJECT")
    try:
        from lightning_symmetry.sinks.wandb_workspace import least_broken, specification, workspace
    except ModuleNotFoundError as error:
        raise Failure(f'{error}; the dashboard needs: pip install "lightning-symmetry[dashboard]"') from error
    if dry_run:
        click.echo(json.dumps(specification(workspace(entity, project, name)), indent=2))
        return
    from lightning_symmetry.sinks.wandb_views import save, summaries

    if "WANDB_BASE_URL" in os.environ:
        _check_server(os.environ["WANDB_BASE_URL"])
    try:
        groups = least_broken(summaries(entity, project))
    except Exception as error:
        for url in re.findall(r"https?://[^\s:/]+(?::\d+)?", str(error)):  # of which W&B says that it refuses the user
            _check_server(url)
        raise
    click.echo(save(workspace(entity, project, name, groups)))


def _check_server(url: str) -> None:
    """Ask a server for anything, so that one that is away is told of as such, and at once.

    Raises:
        Failure: There is no answer.
    """
    from ssl import SSLError
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    try:
        urlopen(url, timeout=10).close()
    except HTTPError:
        return  # an answer
    except OSError as error:
        reason = error.reason if isinstance(error, URLError) else error
        if not isinstance(reason, SSLError):  # W&B may trust certificates that Python does not
            raise Failure(f"cannot reach {url} ({reason}); check the network and WANDB_BASE_URL") from error

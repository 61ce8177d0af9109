"""The command that makes the report of a run, or of several, anew."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    short_help="Make the HTML report of a run, or of several.",
    epilog="""\b
Examples:
  lightning-symmetry report logs/version_0/symmetry/version_0
  lightning-symmetry report run_a run_b -o comparison.html""",
)
@click.argument("runs", metavar="RUN_DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The HTML file. [default: report.html in RUN_DIR; of several runs comparison.html here]",
)
def report(runs: tuple[Path, ...], output: Path | None) -> None:
    """Make the report of a run anew from its history.jsonl, while it still runs too; of several runs, compare them."""
    from lightning_symmetry.cli.failure import Failure, check_folder
    from lightning_symmetry.history import read_history
    from lightning_symmetry.report import render_comparison, render_report

    try:
        histories = {run: read_history(run) for run in dict.fromkeys(runs)}
    except FileNotFoundError as error:
        within = sorted(path.parent for run in runs if run.is_dir() for path in run.rglob("history.jsonl"))
        raise Failure(f"{error}{' There is one in ' * bool(within)}{', '.join(map(str, within[:5]))}") from error
    except ValueError as error:
        raise Failure(str(error)) from error
    if output is not None:
        check_folder(output, "--output")
    if len(histories) == 1:
        [(run, history)] = histories.items()
        folder = run if run.is_dir() else run.parent
        click.echo(render_report(history, output or folder / "report.html"))
    else:
        names = _short(list(histories))
        named = dict(zip(names, histories.values(), strict=True))
        click.echo(render_comparison(named, output or Path("comparison.html")))


def _short(runs: list[Path]) -> list[str]:
    """The names of folders, or where two are alike as much of their paths as was given."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]

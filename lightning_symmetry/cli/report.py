"""The command that makes the report of a run, or of several, anew."""

from __future__ import annotations

from pathlib import Path

import click

CHECKPOINTS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
"""How the names of checkpoints end."""


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

    if output is not None:
        check_folder(output, "--output")
    for run in runs:
        _check_run(run)
    try:
        histories = {run: read_history(run) for run in dict.fromkeys(runs)}
    except ValueError as error:
        raise Failure(str(error)) from error
    if len(histories) == 1:
        [(run, history)] = histories.items()
        folder = run if run.is_dir() else run.parent
        click.echo(render_report(history, output or folder / "report.html"))
    else:
        names = _short(list(histories))
        named = dict(zip(names, histories.values(), strict=True))
        click.echo(render_comparison(named, output or Path("comparison.html")))


def _check_run(run: Path) -> None:
    """Refuse what is no run, and say where one is.

    Raises:
        Failure: There is nothing, no history, or a checkpoint.
    """
    from lightning_symmetry.cli.failure import Failure
    from lightning_symmetry.history import FILE_NAME

    wanted = f"give the {FILE_NAME} of a run, or its folder, which is printed when a run ends"
    if run.is_dir():
        if not (run / FILE_NAME).is_file():
            within = ", ".join(str(path.parent) for path in sorted(run.rglob(FILE_NAME))[:5])
            raise Failure(f"{run} holds no {FILE_NAME}: {f'there is one in {within}' if within else wanted}")
    elif not run.is_file():
        raise Failure(f"there is no run at {run}: {wanted}")
    elif run.suffix in CHECKPOINTS:
        raise Failure(f"{run} is a checkpoint, and reports are made of runs: `lightning-symmetry scan {run}` reads it")
    else:
        with run.open("rb") as file:
            if file.read(1) not in (b"{", b""):
                raise Failure(f"{run} is no history of a run: {wanted}")


def _short(runs: list[Path]) -> list[str]:
    """The names of folders, or where two are alike as much of their paths as was given."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]

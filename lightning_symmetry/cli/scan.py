"""The command that measures a checkpoint, or what changed between two."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lightning_symmetry.cli.conditions import Condition, ConditionType
from lightning_symmetry.cli.names import Names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_symmetry.cli.checkpoint import Stored
    from lightning_symmetry.cli.listing import Listing
    from lightning_symmetry.cli.order_parameters import OrderParameters
    from lightning_symmetry.cli.spectra import Scan
    from lightning_symmetry.symmetry.groups import Symmetries

ROWS_OF_A_TABLE = 40
"""How many layers a table in the terminal shows unless it is told otherwise."""


def _indicators() -> tuple[str, ...]:
    from lightning_symmetry.functional.spectrum import SPECTRAL_INDICATORS

    return ("effective_rank_fraction", *SPECTRAL_INDICATORS)


class Rows(click.ParamType[int]):
    """How many rows to show."""

    name = "rows"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a whole number that is not negative."""
        if not str(value).isdecimal():
            self.fail(f"{value!r} is no number of rows: give a whole number, 0 for all", param, ctx)
        return int(str(value))


@contextmanager
def _as_options() -> Iterator[None]:
    """Tell of arguments as of options: what is wrong with `include` is wrong with --include."""
    from lightning_symmetry.cli.failure import Failure

    try:
        yield
    except ValueError as error:
        raise Failure(f"--{error}") from error


@click.command(
    short_help="Measure a checkpoint, or what changed between two.",
    epilog="""\b
Examples:
  lightning-symmetry scan last.ckpt
  lightning-symmetry scan llama/ --include mlp --indicators stable_rank
  lightning-symmetry scan before.ckpt after.ckpt --html change.html
  lightning-symmetry scan last.ckpt --model train:Net --batch train:batch
  lightning-symmetry scan last.ckpt --fail-on 'effective_rank_fraction<0.1'""",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("other", required=False, type=click.Path(path_type=Path))
@click.option(
    "--indicators",
    type=Names(_indicators),
    help="What to show of each spectrum, separated by commas: effective_rank, stable_rank, participation_ratio, "
    "entropy_rank, numerical_rank, srank, spectral_norm, nuclear_norm, frobenius_norm, condition_number, "
    "alpha, effective_rank_fraction. [default: effective_rank,stable_rank,spectral_norm; of two checkpoints "
    "effective_rank]",
)
@click.option("--include", metavar="REGEX", help="Only tensors whose name it is found in.")
@click.option("--exclude", metavar="REGEX", help="No tensor whose name it is found in.")
@click.option(
    "--limit",
    type=Rows(),
    metavar="N",
    help="Show N rows of each table, 0 for all; all layers are measured and judged. "
    f"[default: {ROWS_OF_A_TABLE}; all with --json or --html]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write one HTML file too."
)
@click.option("--model", metavar="PACKAGE.MODULE:FACTORY", help="What returns the model: adds its symmetries.")
@click.option("--batch", metavar="PACKAGE.MODULE:NAME", help="One batch of data for the model, or what returns one.")
@click.option(
    "--fail-on",
    type=ConditionType(),
    multiple=True,
    metavar="CONDITION",
    help="Exit with 1 where it holds of a layer or a group: nonfinite, or a bound as 'effective_rank_fraction<0.1' or "
    "'broken_fraction<0.5'. Of two checkpoints the second is judged, and 'effective_rank_change<-0.2' and "
    "'relative_distance>0.5' are known too. What is not finite is found with any condition. May be repeated.",
)
@click.pass_context
def scan(
    ctx: click.Context,
    checkpoint: Path,
    other: Path | None,
    indicators: tuple[str, ...] | None,
    include: str | None,
    exclude: str | None,
    limit: int | None,
    as_json: bool,
    html: Path | None,
    model: str | None,
    batch: str | None,
    fail_on: tuple[Condition, ...],
) -> None:
    """Measure the spectra of every matrix of a CHECKPOINT, worst layers first; of two, what changed.

    A checkpoint is a .ckpt of Lightning, a .pt or .pth of torch.save, a .safetensors, the index of a sharded one, or a
    folder with one of these. It is never unpickled, and read one tensor at a time. Worst is what is not finite, then
    the lowest effective rank fraction: effective rank / min(m, n).
    Exit codes: 0; 1 where --fail-on found something; 2 for what cannot be done.
    """
    from lightning_symmetry.cli.failure import Failure, check_folder
    from lightning_symmetry.cli.loading import find
    from lightning_symmetry.measurement.selection import check_patterns, select

    paths = [checkpoint] if other is None else [checkpoint, other]
    for path in paths:
        if not path.exists():
            raise Failure(
                f"no checkpoint at {path}: give a file of torch.save or safetensors, an index, or their folder"
            )
    if html is not None:
        check_folder(html, "--html")
    with _as_options():
        check_patterns(include, exclude)
    if (model is None) != (batch is None):
        raise click.UsageError("--model and --batch belong together: the symmetries are found by running the model")
    for option, named in (("--model", model), ("--batch", batch)):
        if named is not None:
            find(option, named)

    import json  # what follows imports torch: what can be told without it has been

    from lightning_symmetry.cli.checkpoint import checkpoint_file, open_checkpoint
    from lightning_symmetry.cli.conditions import judge
    from lightning_symmetry.cli.listing import console, show
    from lightning_symmetry.cli.page import write_page
    from lightning_symmetry.cli.plain import plain
    from lightning_symmetry.cli.printable import printable
    from lightning_symmetry.cli.tables import broken_table, changes_table, spectra_table

    shown = indicators or (("effective_rank", "stable_rank", "spectral_norm") if other is None else ("effective_rank",))
    wanted = _wanted(shown, fail_on, compared=other is not None, with_model=model is not None)

    paths = [checkpoint_file(path) for path in paths]
    checkpoints = [open_checkpoint(path) for path in paths]
    every_name = dict.fromkeys(name for tensors in checkpoints for name in tensors)
    with _as_options():
        names = select(every_name, include, exclude, of="tensor")
    chosen = [{name: tensors[name] for name in names if name in tensors} for tensors in checkpoints]
    found = _spectra(chosen, wanted)
    if other is not None and not found.changes:
        first, second = (next(iter(tensors), "nothing") for tensors in checkpoints)
        raise Failure(
            f"no matrix of one name and shape is in both: {checkpoint} begins with {first}, {other} with {second}; "
            "give two checkpoints of one model"
        )
    symmetries: Symmetries | None = None
    points: list[OrderParameters] = []
    if model is not None and batch is not None:
        symmetries, points = _order_parameters(model, batch, dict(zip(paths, checkpoints, strict=True)))

    layers = [(layer.name, layer.values) for layer in found.layers]
    changes = [(change.name, change.values) for change in found.changes]
    groups = list(points[-1].groups.items()) if points else []
    findings = judge(fail_on, [*layers, *changes, *groups], found.nonfinite)

    def tables(rows: int) -> list[Listing]:
        bad = {finding.name for finding in findings}
        table = (spectra_table if other is None else changes_table)(paths, found, shown, rows, bad)
        return [table, *([broken_table(symmetries, points, rows, bad)] if symmetries is not None else [])]

    if html is not None:
        write_page(" → ".join(map(str, paths)), tables(limit or 0), html)
    if as_json:
        click.echo(json.dumps(plain(paths, found, symmetries, points, findings, limit or 0)))
    else:
        for number, table in enumerate(tables(ROWS_OF_A_TABLE if limit is None else limit)):
            click.echo("\n" * (number > 0), nl=False)
            show(table, console())
    for finding in findings:
        click.echo(printable(f"found {finding}"), err=True)
    ctx.exit(1 if findings else 0)


def _wanted(shown: Sequence[str], conditions: Sequence[Condition], compared: bool, with_model: bool) -> list[str]:
    """The indicators to measure: those that are shown, and those that conditions are about.

    Raises:
        BadParameter: A condition is about something that is not known.
    """
    of_layer = {name: name for name in _indicators()}
    of_change = {f"{name}_change": name for name in of_layer} | {"relative_distance": "effective_rank"}
    known = of_layer | (of_change if compared else {}) | ({"broken_fraction": "effective_rank"} if with_model else {})
    wanted = list(shown)
    for condition in conditions:
        if condition.indicator is not None:
            if condition.indicator not in known:
                raise click.BadParameter(
                    f"{condition.indicator!r} is not known here; known are {', '.join(known)}", param_hint="--fail-on"
                )
            wanted.append(known[condition.indicator])
    return list(dict.fromkeys(wanted))


def _spectra(checkpoints: Sequence[Mapping[str, Stored]], indicators: Sequence[str]) -> Scan:
    """The spectra of one checkpoint, or the changes between two, with a bar on a terminal that tells how far it is."""
    import sys

    from rich.console import Console
    from rich.progress import Progress

    from lightning_symmetry.cli.spectra import compare, cost, matrices, measure

    total = sum(cost(stored) for tensors in checkpoints for stored in matrices(tensors).values())
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("measuring", total=total)
        if len(checkpoints) == 1:
            return measure(checkpoints[0], indicators, lambda done: progress.advance(task, done))
        return compare(checkpoints[0], checkpoints[1], indicators, lambda done: progress.advance(task, done))


def _order_parameters(
    factory: str, batch: str, checkpoints: Mapping[Path, Mapping[str, Stored]]
) -> tuple[Symmetries, list[OrderParameters]]:
    """The symmetries of a model, and how far they are broken at each checkpoint."""
    from lightning_symmetry.cli.loading import load, load_model
    from lightning_symmetry.cli.order_parameters import fill, order_parameters
    from lightning_symmetry.symmetry.find import find_symmetries

    module, data = load_model("--model", factory), load("--batch", batch)
    points = []
    symmetries = None
    for path, tensors in checkpoints.items():
        fill(module, tensors, str(path), factory)
        symmetries = symmetries or find_symmetries(module, data)
        points.append(order_parameters(module, symmetries))
    assert symmetries is not None
    return symmetries, points

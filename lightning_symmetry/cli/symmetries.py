"""The command that finds the symmetries of a model."""

from __future__ import annotations

import click

from lightning_symmetry.cli.names import Names


def _kinds() -> tuple[str, ...]:
    from lightning_symmetry.symmetry.kinds import KINDS

    return tuple(KINDS)


@click.command(
    short_help="Find the symmetries of a model.",
    epilog="""\b
Examples:
  lightning-symmetry symmetries train:Net --batch train:batch
  lightning-symmetry symmetries project.nets:make_net --batch project.data:one
  lightning-symmetry symmetries train:Net --batch train:batch --kinds sign
  lightning-symmetry symmetries train:Net --batch train:batch --json""",
)
@click.argument("model", metavar="PACKAGE.MODULE:FACTORY")
@click.option("--batch", required=True, metavar="PACKAGE.MODULE:NAME", help="One batch of data, or what returns one.")
@click.option(
    "--kinds",
    type=Names(_kinds),
    help="Only these kinds: permutation, sign, rescaling, rotation, scale, translation. [default: all]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def symmetries(model: str, batch: str, kinds: tuple[str, ...] | None, as_json: bool) -> None:
    """Find the parameter symmetries of a model, each verified by rerunning it.

    PACKAGE.MODULE:FACTORY names a module, a LightningModule, or a function or class that returns one when it is called
    without arguments. Modules of the working directory are found.
    """
    from lightning_symmetry.cli.loading import find, load, load_model

    find("MODEL", model)
    find("--batch", batch)

    import json

    from lightning_symmetry.cli.listing import console, show
    from lightning_symmetry.cli.tables import symmetries_table
    from lightning_symmetry.symmetry.find import find_symmetries

    found = find_symmetries(load_model("MODEL", model), load("--batch", batch), kinds=kinds)
    if as_json:
        click.echo(json.dumps(found.to_dict()))
    else:
        show(symmetries_table(found), console())

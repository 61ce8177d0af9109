"""A table as the terminal and the HTML page both show it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_symmetry.cli.printable import printable


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        cells: What is shown, one a column.
        share: The length of its bar, in [0, 1]; None for no bar.
        bad: Whether it is to be seen first.
    """

    cells: Sequence[str]
    share: float | None = None
    bad: bool = False


@dataclass(frozen=True)
class Listing:
    """A table with its title, and notes below it.

    Attributes:
        title: What is shown, in one line.
        columns: The heading of each column, and what it holds: a name, that may be long, words or numbers.
        rows: All rows.
        notes: What there is to say below.
        bar: The number of the column that the bars of the rows show, on the page.
        of: What it was measured of, in front of the title in the terminal.
        meaning: What its numbers mean and which of them are bad, on the page.
    """

    title: str
    columns: Sequence[tuple[str, Literal["name", "words", "number"]]]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    bar: int | None = None
    of: str = ""
    meaning: str = ""


def number(value: float) -> str:
    """A value as text, in four digits.

    Example:
        >>> number(742.0213), number(1), number(math.nan), number(math.inf)
        ('742.0', '1.000', 'NaN', '∞')
    """
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞"
    return f"{value:#.4g}".removesuffix(".")


def count(value: float) -> str:
    """A count, or a mean of counts, as text.

    Example:
        >>> count(32), count(31.5)
        ('32', '31.5')
    """
    return f"{value:.4g}" if math.isfinite(value) else number(value)


def fraction(value: float) -> str:
    """A number from 0 to 1 as text.

    Example:
        >>> fraction(0.9638), fraction(1)
        ('0.964', '1.000')
    """
    return f"{value:.3f}" if math.isfinite(value) else number(value)


def signed(value: float) -> str:
    """A relative change as text.

    Example:
        >>> signed(-0.25), signed(math.inf)
        ('-25.0%', '∞')
    """
    return f"{value:+.1%}" if math.isfinite(value) else number(value)


def shape(sizes: Sequence[int]) -> str:
    """A shape as text.

    Example:
        >>> shape((768, 3072))
        '768x3072'
    """
    return "x".join(map(str, sizes))


def console() -> Console:
    """Where tables go: as wide as the terminal; into a file or a pipe as wide as they are, so that no name is cut."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=1000)


def show(listing: Listing, on: Console) -> None:
    """Print a table."""
    on.print(Text(printable(": ".join(filter(None, (listing.of, listing.title)))), style="bold"))
    if listing.rows:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for heading, holds in listing.columns:
            table.add_column(
                heading.replace(" ", "\n"),
                justify="right" if holds == "number" else "left",
                vertical="bottom",
                overflow="fold",
                no_wrap=holds == "number",
            )
        for row in listing.rows:
            table.add_row(*(Text(printable(cell)) for cell in row.cells), style="red" if row.bad else "")
        on.print()
        on.print(table)
        on.print()
    for note in listing.notes:
        on.print(Text(printable(note)))

"""What a scan found as one HTML file: tables with a bar a row, without a script and without a request."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from lightning_symmetry.cli.listing import Listing


def write_page(title: str, listings: Sequence[Listing], path: Path) -> None:
    """Write the tables.

    Args:
        title: What was scanned.
        listings: The tables.
        path: The HTML file.

    Raises:
        OSError: The file cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("lightning_symmetry", "cli"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    try:
        by = f"lightning-symmetry {version('lightning-symmetry')}"
    except PackageNotFoundError:
        by = "lightning-symmetry"
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    page = environment.get_template("page.html").render(title=title, listings=listings, by=by, when=when)
    path.write_text(page, encoding="utf-8")

"""Where an error came from, for messages."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path


def line_of(error: BaseException) -> str:
    """Where in the user's own code an error came from: the last line that is of no installed package and not ours."""
    installed = (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), str(Path(__file__).parents[1]))
    lines = [
        line for line in traceback.extract_tb(error.__traceback__) if not line.filename.startswith((*installed, "<"))
    ]
    return f" ({lines[-1].filename}, line {lines[-1].lineno}, in {lines[-1].name})" if lines else ""

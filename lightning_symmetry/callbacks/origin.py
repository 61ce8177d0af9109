"""Where an error came from, for messages: by the line, and not by whose folder it is in."""

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
    return f" ({place_of(lines[-1].filename)}, line {lines[-1].lineno}, in {lines[-1].name})" if lines else ""


def place_of(filename: str) -> str:
    """A file, from the working directory where it is below that, or else from ``site-packages``, or by its name alone.

    Example:
        >>> place_of(str(Path("models", "net.py").absolute()))
        'models/net.py'
        >>> place_of("/home/alice/.local/lib/python3.11/site-packages/nets/mlp.py")
        'nets/mlp.py'
        >>> place_of("/home/alice/train.py")
        'train.py'
    """
    path, here = Path(filename), Path.cwd()
    if path.is_relative_to(here):
        return path.relative_to(here).as_posix()
    for packages in ("site-packages", "dist-packages"):
        if packages in path.parts:
            return Path(*path.parts[path.parts.index(packages) + 1 :]).as_posix()
    return path.name

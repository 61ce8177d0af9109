"""What a user names on the command line: `package.module:attribute`."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from typing import TYPE_CHECKING, Any

from lightning_symmetry.cli.failure import Failure

if TYPE_CHECKING:
    from torch import nn


def find(option: str, path: str) -> Any:
    """The object that `package.module:attribute` names. Imports nothing but that module, which may be found at once.

    Modules of the working directory are found too.

    Args:
        option: The option that it was given to, for errors.
        path: The name, as `my_project.models:make_model`.

    Raises:
        Failure: There is no such object.

    Example:
        >>> find("--batch", "math:pi")
        3.141592653589793
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise Failure(f"{option} {path!r}: give package.module:name, as my_project.models:make_model")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise Failure(f"{option} {path!r}: there is no module {missing}, neither here nor installed") from error
        raise Failure(f"{option} {path!r}: cannot import {module_name}: {_told(error)}") from error
    if not hasattr(module, name):
        nearest = difflib.get_close_matches(name, vars(module), n=3) or ["none that is like it"]
        raise Failure(f"{option} {path!r}: {module_name} has no {name}; it has {', '.join(nearest)}")
    return getattr(module, name)


def load(option: str, path: str) -> Any:
    """The object that `package.module:attribute` names; what it returns, where it can be called and is no module.

    Raises:
        Failure: As for `find`, or it raised.
    """
    from torch import nn

    value = find(option, path)
    if isinstance(value, nn.Module) or not callable(value):
        return value
    try:
        return value()
    except Exception as error:
        name = path.partition(":")[2]
        raise Failure(f"{option} {path!r}: {name}(), called without arguments, raised {_told(error)}") from error


def load_model(option: str, path: str) -> nn.Module:
    """The module that `package.module:attribute` names, or returns.

    Raises:
        Failure: As for `load`, or it is no module.
    """
    from torch import nn

    model = load(option, path)
    if not isinstance(model, nn.Module):
        raise Failure(f"{option} {path!r} is a {type(model).__name__}: name a module, or what returns one")
    return model


def _told(error: Exception) -> str:
    """An exception in one line, with the place in the user's code that raised it."""
    places = [place for place in traceback.extract_tb(error.__traceback__) if "importlib" not in place.filename]
    inner = f" ({places[-1].filename}:{places[-1].lineno})" if places[1:] else ""  # the first is where this file asks
    return f"{type(error).__name__}: {error}{inner}"

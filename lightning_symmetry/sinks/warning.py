"""How all that fails here says so: by a warning, and never by an exception."""

from __future__ import annotations

import logging
import warnings

from lightning_symmetry.sinks.discretion import discreet


def warn(message: str) -> None:
    """Warn. Where warnings are made errors the message is logged instead, since nothing here may stop a training."""
    try:
        message = discreet(message)
    except Exception as error:
        message = (
            f"lightning_symmetry does not tell what failed: {type(error).__name__} while it looked for secrets in it"
        )
    try:
        warnings.warn(message, stacklevel=2)
    except Warning:
        logging.getLogger("lightning_symmetry").warning(message)

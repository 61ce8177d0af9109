"""What is told of a failure tells nothing of the environment that it happened in.

The message of an exception holds whatever its author put there: a URL with a password, the value of a variable, a path
with a user's name. It would end in a file, a report and an alert that others read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
LEAST_SECRET = 8
"""The fewest characters of a secret: shorter values, as "true", are words of other meanings too."""

_SECRET = r"key|token|secret|password"
_OF_URLS = re.compile(rf"(?<=://)[^/?#\s]+(?=@)|(?<=[?&])([^=&#\s]*(?:{_SECRET})[^=&#\s]*=)[^&#\s'\"]+", re.IGNORECASE)
"""The user and password of a URL, and what its query calls a secret."""


def discreet(told: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """A text, or plain values at any depth, without what the environment calls a secret, and without the home.

    Args:
        told: What is to be written; anything but text, mappings and sequences is returned as it is.
        environment: The variables; secret are values of those whose names contain key, token, secret or password.

    Returns:
        The same with ``***`` for secrets, and for the user and the password of a URL, and ``~`` for the home directory.

    Example:
        >>> environment = {"HOME": "/home/alice", "HF_TOKEN": "hf_12345678"}
        >>> discreet("no /home/alice/a.pt at https://alice:1234@host/?v=1&api_key=5 with hf_12345678", environment)
        'no ~/a.pt at https://***@host/?v=1&api_key=*** with ***'
    """
    secrets = sorted(_secrets(environment), key=len, reverse=True)  # one may begin as another does
    homes = [home for home in _homes(environment) if home.strip(os.sep)]
    secret = re.compile("|".join(map(re.escape, secrets)) or "(?!)")
    home = re.compile(rf"(?<![\w.~-])(?:{'|'.join(map(re.escape, homes)) or '(?!)'})(?![\w.-])")

    def without(value: Any) -> Any:
        if isinstance(value, str):
            return home.sub("~", _OF_URLS.sub(lambda found: (found[1] or "") + HIDDEN, secret.sub(HIDDEN, value)))
        if isinstance(value, Mapping):
            return {key: without(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [without(entry) for entry in value]
        return value

    return without(told)


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    """The values to be hidden, as they are and as a URL writes them."""
    for name, value in environment.items():
        if re.search(_SECRET, name, re.IGNORECASE) and len(value.strip()) >= LEAST_SECRET:
            yield from {value.strip(), quote(value.strip(), safe="")}


def _homes(environment: Mapping[str, str]) -> set[str]:
    home = (environment.get("HOME") or os.path.expanduser("~")).rstrip(os.sep)
    return {home, os.path.realpath(home)}

"""A list of known names on the command line, separated by commas."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import click
from click.shell_completion import CompletionItem


class Names(click.ParamType[tuple[str, ...]]):
    """Names out of some that are known.

    Args:
        known: Returns the known names; called when there is a name to look for, since they may lie behind torch.
    """

    name = "name,name"

    def __init__(self, known: Callable[[], Sequence[str]]) -> None:
        self._known = known

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Split at the commas, and refuse what is not known."""
        if isinstance(value, tuple):
            return value
        names = tuple(dict.fromkeys(name.strip() for name in str(value).split(",") if name.strip()))
        known = self._known()
        for name in names:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {nearest[0]}? Known" if nearest else "known"
                self.fail(f"{name!r} is not known; {hint} are {', '.join(known)}", param, ctx)
        if not names:
            self.fail(f"{value!r} names none; known are {', '.join(known)}", param, ctx)
        return names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the last name."""
        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{name}") for name in self._known() if name.startswith(last)]

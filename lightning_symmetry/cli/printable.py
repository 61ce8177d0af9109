"""Names as text: a checkpoint may call its tensors what it likes."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Text without what would steer a terminal.

    Example:
        >>> print(printable("fc\x1b[2J.weight"))
        fc\x1b[2J.weight
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)

"""Names of groups and layers, short enough for legends and axes."""

from __future__ import annotations

from collections.abc import Sequence

LABEL_LENGTH = 24


def short_names(names: Sequence[str], length: int = LABEL_LENGTH) -> list[str]:
    """Shorten names for legends and axes: drop the words that all begin with, then words from the middle of long ones.

    Example:
        >>> short_names(["model_encoder_fc1", "model_encoder_fc2"])
        ['fc1', 'fc2']
        >>> short_names(["blocks_11_self_attention_output_projection"])
        ['blocks_11_…_projection']
    """
    words = [name.split("_") for name in names]
    shared = 0
    if len(names) > 1:
        shortest = min(len(row) for row in words)
        while shared < shortest - 1 and len({row[shared] for row in words}) == 1:
            shared += 1
        if shared and any(row[shared].isdigit() for row in words):
            shared -= 1  # "blocks_0", not a bare "0"
    return [_short_name(row[shared:], length) for row in words]


def _short_name(words: list[str], length: int) -> str:
    head, tail = words[: len(words) // 2], words[len(words) // 2 :]
    name = "_".join(words)
    while len(name) > length and len(tail) > 1:
        if len(head) > len(tail):
            head = head[:-1]
        else:
            tail = tail[1:]
        name = "_".join([*head, "…", *tail])
    return name if len(name) <= length else f"{name[: length // 2]}…{name[-(length - 1 - length // 2) :]}"

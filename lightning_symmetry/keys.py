"""Names of groups and layers as parts of the keys under which values are logged; reports are made without torch."""

from __future__ import annotations

from collections.abc import Iterable

_READABLE = str.maketrans({".": "_", "*": "each", "{": "each_of_", "}": "", ",": "_"})
"""Dots, in which W&B sees nesting, stars, in which it sees patterns, and what stands for several modules beside."""


def key_names(names: Iterable[str]) -> dict[str, str]:
    """Names of groups or layers as parts of keys, no two of them the same."""
    keys: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        stem = key = name.removesuffix(".weight").translate(_READABLE)
        number = 1
        while key in taken:
            number += 1
            key = f"{stem}_{number}"
        keys[name] = key
        taken.add(key)
    return keys

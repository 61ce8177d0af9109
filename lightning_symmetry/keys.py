"""Names of groups and layers as parts of the keys under which values are logged; reports are made without torch."""

from __future__ import annotations

from collections.abc import Iterable


def key_names(names: Iterable[str]) -> dict[str, str]:
    """Names of groups or layers as parts of keys, in which W&B would take dots for nesting, and stars for patterns."""
    keys: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        stem = key = name.removesuffix(".weight").replace(".", "_").replace("*", "each")
        number = 1
        while key in taken:
            number += 1
            key = f"{stem}_{number}"
        keys[name] = key
        taken.add(key)
    return keys

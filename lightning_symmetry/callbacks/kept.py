"""What was found, kept as plain values, so that a run that resumes need not look again.

It is kept with a digest of what was asked of which model: the names and shapes of its parameters and buffers, the
classes of its modules, the arguments of the search and the version of this package. Where any of these has changed, the
symmetries are looked for anew; not where the model is spread over processes otherwise than before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from lightning_symmetry.callbacks.unsharded import own_class
from lightning_symmetry.symmetry.groups import Symmetries


def keep(found: Symmetries, model: nn.Module, kinds: Sequence[str] | None, verify_up_to: int) -> dict[str, Any]:
    """What `recall` needs: values that JSON can hold.

    Args:
        found: What the search returned.
        model: The model that was searched.
        kinds: The kinds that were looked for; None for all.
        verify_up_to: The number of parameters up to which groups were verified.
    """
    return {"of": _digest(model, kinds, verify_up_to), "found": found.to_dict()}


def recall(
    kept: Mapping[str, Any], model: nn.Module, kinds: Sequence[str] | None, verify_up_to: int
) -> Symmetries | None:
    """The symmetries that were kept; None where they are of another model, or of another search.

    Args:
        kept: What `keep` returned, also after a way through JSON; anything else is of another model.
        model: The model of now.
        kinds: The kinds to look for now.
        verify_up_to: The number of parameters up to which groups are verified now.

    Example:
        >>> import torch
        >>> from lightning_symmetry import find_symmetries
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = find_symmetries(model, torch.randn(16, 4))
        >>> kept = keep(found, model, None, 200_000_000)
        >>> recall(kept, model, None, 200_000_000) == found
        True
        >>> recall(kept, model[:2], None, 200_000_000) is None
        True
    """
    if kept.get("of") != _digest(model, kinds, verify_up_to):
        return None
    return Symmetries.from_dict(kept["found"])


def _digest(model: nn.Module, kinds: Sequence[str] | None, verify_up_to: int) -> str:
    asked = {
        "kinds": kinds if kinds is None else list(kinds),
        "verify_up_to": verify_up_to,
        "tensors": [(name, list(tensor.shape)) for name, tensor in (*model.named_parameters(), *model.named_buffers())],
        "modules": [(name, own_class(module).__qualname__) for name, module in model.named_modules()],
        "version": _version(),
    }
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _version() -> str | None:
    try:
        return version("lightning-symmetry")
    except PackageNotFoundError:
        return None

"""What a model is, for telling whether an atlas is of it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import nn

from lxt.errors import InvalidModel

__all__ = ["identity_of", "require_same"]

_SAMPLES = 64


def identity_of(model: nn.Module) -> dict[str, str]:
    """Its name, class and type, and a hash of all weights' names, shapes and some of each one's
    numbers: it takes no longer for a large model, and a model trained any further has another one.
    """
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(json.dumps([name, list(weight.shape), str(weight.dtype)]).encode())
        flat = weight.detach().reshape(-1)
        if flat.is_meta or not flat.numel():
            continue
        some = flat[:: -(-flat.numel() // _SAMPLES)]
        digest.update(str(some.double().tolist()).encode())
    config: Any = getattr(model, "config", None)
    return {
        "model": str(getattr(config, "name_or_path", None) or type(model).__name__),
        "class": type(model).__name__,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "weights": digest.hexdigest(),
    }


def require_same(model: nn.Module, identity: dict[str, str], folder: str) -> None:
    """Make sure that an atlas is of this model.

    Raises:
        InvalidModel: it is of another one.

    """
    own = identity_of(model)
    if own["weights"] == identity["weights"]:
        return
    how = [
        f"its {what} is {own[what]!r} and not {identity[what]!r}"
        for what in ("model", "class", "dtype")
        if own[what] != identity[what]
    ]
    raise InvalidModel(
        f"the atlas in {folder!r} is of another model than this {type(model).__name__}: "
        f"{', '.join(how) or 'its weights are others'}"
    )

"""What a model is, for telling whether an atlas is of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lxt.errors import InvalidModel, InvalidTap
from lxt.latent.sae import SAE
from lxt.latent.sae_weights import Weights

__all__ = ["identity_of", "identity_of_sae", "require_same", "weights_of_sae"]

_SAMPLES, _SAMPLES_OF_SAE = 64, 4096


def identity_of(model: nn.Module) -> dict[str, str]:
    """Its name, class and type, and a hash of all weights' names, shapes and some of each one's
    numbers: it takes no longer for a large model, and a model trained any further has another one.
    """
    config: Any = getattr(model, "config", None)
    return {
        "model": str(getattr(config, "name_or_path", None) or type(model).__name__),
        "class": type(model).__name__,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "weights": _hash_of(model.named_parameters(), _SAMPLES),
    }


def identity_of_sae(sae: SAE) -> str:
    """A hash of an autoencoder's weights, as of a model's but of more numbers of each, since there
    are few weights; and of what else it is known to compute by.

    Raises:
        InvalidTap: it holds no weights.

    """
    coder = sae.coder
    found = dict(weights_of_sae(coder))
    if not found:
        raise InvalidTap(
            f"{sae.name} holds no tensors, so an atlas can't tell it from another: let its weights "
            "be attributes of it, or of a module in it"
        )
    computes: list[Any] = [type(coder).__name__]
    if isinstance(coder, Weights):
        computes += [coder.activation, coder.k, coder.apply_b_dec_to_input]
        computes += [coder.normalisation, coder.by_norm]
    return _hash_of(found.items(), _SAMPLES_OF_SAE, json.dumps(computes))


def weights_of_sae(coder: Any) -> Iterable[tuple[str, Tensor]]:
    """The tensors, by name, that an object with `encode` and `decode` holds."""
    if isinstance(coder, nn.Module):
        yield from coder.named_parameters()
        yield from coder.named_buffers()
        return
    for name, value in vars(coder).items() if hasattr(coder, "__dict__") else ():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, nn.Module):
            yield from ((f"{name}.{part}", weight) for part, weight in weights_of_sae(value))


def _hash_of(weights: Iterable[tuple[str, Tensor]], samples: int, start: str = "") -> str:
    digest = hashlib.sha256(start.encode())
    for name, weight in weights:
        digest.update(json.dumps([name, list(weight.shape), str(weight.dtype)]).encode())
        flat = weight.detach().reshape(-1)
        if flat.is_meta or not flat.numel():
            continue
        some = flat[:: -(-flat.numel() // samples)]
        digest.update(str(some.double().tolist()).encode())
    return digest.hexdigest()


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

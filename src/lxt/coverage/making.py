"""What an example is made with: the model, the size, and helpers that draw tensors."""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lxt.coverage.size import Size

FIRST_ORDINARY_TOKEN = 8
"""Ids below it may be special."""


class Making:
    """The state while one example is made; functions in `lxt.coverage.exceptions` are given it.

    Attributes:
        model: the model that the example is for.
        name: its model type.
        size: how large the input is.
        config: the model's configuration.
    """

    def __init__(self, model: Any, name: str, size: Size) -> None:
        self.model, self.name, self.size = model, name, size
        self.config: Any = model.config
        self._generator = torch.Generator().manual_seed(size.seed + 1)

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Parameters of the model's forward."""
        return dict(inspect.signature(type(self.model).forward).parameters)

    @cached_property
    def text_config(self) -> Any:
        """The part of the configuration that has the vocabulary."""
        for name in ("text_encoder", "thinker_config"):  # where there are several
            if getattr(self.config, name, None) is not None:
                return getattr(self.config, name).get_text_config()
        return self.config.get_text_config()

    @property
    def inner_config(self) -> Any:
        """The configuration of the multimodal model inside a wrapper; None if there is none."""
        names = ("thinker_config", "vlm_config")
        return next(
            (getattr(self.config, name) for name in names if hasattr(self.config, name)), None
        )

    @property
    def vision_config(self) -> Any:
        """The part of the configuration that describes images."""
        for name in ("vision_config", "image_config", "backbone_config", "vision", "visual"):
            found = getattr(self.config, name, None)
            if found is not None and not isinstance(found, dict):
                return getattr(found, "vision_config", found)
        return getattr(self.inner_config, "vision_config", self.config)

    @property
    def audio_config(self) -> Any:
        """The part of the configuration that describes sound."""
        for name in ("audio_config", "audio_encoder", "encoder_config", "audio_encoder_config"):
            found = getattr(self.config, name, None)
            if found is not None and not isinstance(found, dict):
                return found
        return getattr(self.inner_config, "audio_config", self.config)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return getattr(self.text_config, "vocab_size", None) or self.size.vocabulary

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return getattr(self.config, "hidden_size", None) or self.size.hidden

    def ids(self, tokens: int | None = None, *more: int) -> Tensor:
        """Token ids [batch, tokens, …], none of them special."""
        shape = (self.size.batch, self.size.tokens if tokens is None else tokens, *more)
        last = min(max(FIRST_ORDINARY_TOKEN + 8, self.vocabulary * 3 // 4), self.vocabulary)
        first = min(FIRST_ORDINARY_TOKEN, last // 2)
        return torch.randint(first, last, shape, generator=self._generator)

    def floats(self, *shape: int) -> Tensor:
        """Normal random numbers in the model's dtype."""
        noise = torch.randn(shape, dtype=torch.float64, generator=self._generator)
        return noise.to(self.model.dtype)

    def ones(self, *shape: int) -> Tensor:
        """A mask that hides nothing, int64."""
        return torch.ones(shape, dtype=torch.long)

    def features(self, name: str, /, **arguments: Any) -> int:
        """How many placeholder tokens each row needs for what `get_…_features` returns.

        It is given those of the `arguments` of the model's forward that it knows.
        """
        methods = self.methods(f"get_{name}_features")
        known = {key for method in methods for key in inspect.signature(method).parameters}
        with torch.no_grad():
            found = methods[0](**{key: value for key, value in arguments.items() if key in known})
        return _rows(found) // self.size.batch

    def methods(self, name: str) -> list[Any]:
        """The methods of this name of the model and of the modules in it, outer ones first."""
        return [getattr(m, name) for m in self.model.modules() if hasattr(type(m), name)]

    def token(self, *names: str) -> int:
        """The id of a special token: the first of `names` that the configuration has."""
        for name in names:
            for part in (self.config, self.text_config, self.inner_config):
                found = getattr(part, name, None)
                if found is not None:
                    return found
        raise AttributeError(f"{type(self.config).__name__} has none of {names}")


def _rows(found: Any) -> int:
    """Number of feature vectors in what a model returns for its images or sounds."""
    if isinstance(found, Tensor):
        return found[..., 0].numel()
    if isinstance(found, list | tuple):
        return sum(_rows(entry) for entry in found)
    for name in ("pooler_output", "last_hidden_state"):
        inner = getattr(found, name, None)
        if inner is not None:
            return _rows(inner)
    raise TypeError(f"cannot count features in {type(found).__name__}")

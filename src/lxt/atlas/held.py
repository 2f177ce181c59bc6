"""What holds tensors under names, to be written and read again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

__all__ = ["Held"]


class Held:
    """An object of which some attributes are tensors."""

    NAMES: ClassVar[tuple[str, ...]]
    """These attributes."""

    def tensors(self) -> dict[str, Tensor]:
        """All that it holds."""
        return {name: getattr(self, name) for name in self.NAMES}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `tensors` gave.

        Raises:
            ValueError: it has other shapes.

        """
        for name, own in self.tensors().items():
            if tensors[name].shape != own.shape or tensors[name].dtype != own.dtype:
                raise ValueError(f"{name} is {list(tensors[name].shape)}, not {list(own.shape)}")
            setattr(self, name, tensors[name])

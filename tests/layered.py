"""Models of layers, for tests of `checkpoint=`, and what they cost in memory."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lxt
import zoo
from lxt.engine import segments


def gradient(
    model: nn.Module,
    of: zoo.Example,
    checkpoint: Any = None,
    composite: lxt.Composite = lxt.attnlrp,
) -> Tensor:
    with composite.context(model, checkpoint=checkpoint):
        logits = of.run(model)
    (result,) = torch.autograd.grad(logits[of.output_mask].square().sum(), of.leaf)
    return result


def llama(layers: int = 5, **options: Any) -> tuple[Any, zoo.Example]:
    model = zoo.build("llama", num_hidden_layers=layers, **options)
    return model, zoo.example("llama", model)


class Recorded:
    """How many layers there are in each segment of the forward passes since."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._made: list[Any] = []
        made, build = self._made, segments._SecondRun.__init__

        def record(second: Any, *args: Any) -> None:
            build(second, *args)
            made.append(second)

        monkeypatch.setattr(segments._SecondRun, "__init__", record)

    def lengths(self) -> list[int]:
        lengths = [len(second.calls) for second in self._made]
        self._made.clear()
        return lengths


class Layer(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.linear(x))


class Stack(nn.Module):
    """Layers of a kind, in a row unless `forward` is another one."""

    def __init__(self, layers: list[nn.Module] | None = None, route: Any = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.layers = nn.ModuleList(layers or [Layer() for _ in range(6)])
            for parameter in self.parameters():
                nn.init.normal_(parameter)
        self.route = route
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        if self.route is not None:
            return self.route(self.layers, x)
        for layer in self.layers:
            x = layer(x)
        return x


def leaf() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 4, dtype=torch.float64, generator=generator).requires_grad_()


def of_stack(model: nn.Module, x: Tensor, checkpoint: Any = None) -> Tensor:
    with lxt.attnlrp.context(model, checkpoint=checkpoint):
        y = model(x)
    return torch.autograd.grad(y.square().sum(), x)[0]


class Live(TorchDispatchMode):
    """The bytes of all tensors made inside that are alive, and the most there were."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.most = 0
        given = (*model.parameters(), *model.buffers())
        self._known: dict[int, Any] = {t.untyped_storage()._cdata: None for t in given}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        results = function(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._add(result.untyped_storage())
        return results

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)

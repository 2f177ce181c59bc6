"""Where heads, neurons and experts are in a model, by what its layers compute.

One short forward pass tells: what comes out of attention and goes into a linear map is heads side
by side, and what comes out of a non-linearity and goes into one is neurons. No model, no class and
no module name is known here.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lxt.engine.opaque import tensors_in
from lxt.engine.segments import layers_of
from lxt.engine.walk import modules_in
from lxt.latent.provenance import Kind, Provenance, Value
from lxt.latent.units import Site

__all__ = ["Anatomy", "Experts", "Layer", "anatomy_of"]


@dataclass(frozen=True)
class Experts:
    """A module that runs routed experts, each token through k of them.

    Attributes:
        path: the module's.
        count: how many experts there are.
        hidden: where it takes what the experts are given, [tokens, channels] or [batch, tokens,
            channels]: a position in its call, or a name.
        indices: where it takes which experts, integers [tokens, k].
        weights: where it takes how much of each, [tokens, k].

    """

    path: str
    count: int
    hidden: int | str
    indices: int | str
    weights: int | str

    def of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states, indices and weights of a call.

        Raises:
            KeyError, IndexError: it is called in another way than it was.

        """
        keys = (self.hidden, self.indices, self.weights)
        hidden, indices, weights = (
            kwargs[key] if isinstance(key, str) else args[key] for key in keys
        )
        return hidden, indices, weights


@dataclass(frozen=True)
class Layer:
    """What a layer is made of.

    A site's tensor is [batch, tokens, channels], or [batch · tokens, channels] where the model puts
    rows and tokens into one axis, as some do for their MLP.

    Attributes:
        path: the layer's.
        attentions: the inputs of attention's output projections, in the order in which they run;
            in the layer of a decoder self-attention, then cross-attention. The last axis is as many
            blocks of equal size as there are query heads.
        neurons: the inputs of the projections out of MLPs, in the order in which they run.
        widths: how many neurons each of these has.
        experts: its routed experts, whose neurons are not among `neurons`; None if it has none.

    """

    path: str
    attentions: tuple[Site, ...] = ()
    neurons: tuple[Site, ...] = ()
    widths: tuple[int, ...] = ()
    experts: Experts | None = None

    @property
    def heads(self) -> Site | None:
        """The heads of its attention, the first if it has several; None if it has none."""
        return self.attentions[0] if self.attentions else None


@dataclass(frozen=True)
class Anatomy:
    """The layers of a model that ran and that put out a tensor [batch, tokens, …].

    Attributes:
        stacks: the layers, by the stack that they are in: an encoder's and a decoder's are two.

    """

    stacks: tuple[tuple[Layer, ...], ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Those of all stacks."""
        return tuple(layer for stack in self.stacks for layer in stack)


_Modules = tuple[tuple[str, int, type], ...]
_known = weakref.WeakKeyDictionary[nn.Module, tuple[_Modules, Anatomy]]()
# One scan at a time: torch runs a module's hooks from the very table that another scan adds to.
_scanning = threading.RLock()


def anatomy_of(model: nn.Module, run: Callable[[], Any]) -> Anatomy:
    """Find heads, neurons and experts of a model's layers.

    It is kept for as long as the model has the same modules, so `run` should be what is to be
    explained, or a shorter such: layers that it leaves out are not found.

    Args:
        model: the model; nothing of it is changed.
        run: runs its forward once, on a few tokens, at least two. Gradients are switched off
            meanwhile, so a composite that is on the model stands aside.

    Returns:
        What was found; no stacks if the model has no layers that can be told.

    """
    modules = tuple((name, id(m), type(m)) for name, m in model.named_modules())
    with _scanning:
        known = _known.get(model)
        if known is not None and known[0] == modules:
            return known[1]
        anatomy = _Scan(model).of(run)
        if anatomy.layers:
            _known[model] = modules, anatomy
        return anatomy


@dataclass
class _Call:
    """A module that is running: what it was called with, and what was counted before."""

    module: nn.Module
    operand: Tensor | None
    value: Value | None
    mixed: int
    bent: int
    is_experts: bool = False


@dataclass
class _Found:
    """What was found of one layer, in the order in which it ran."""

    leading: tuple[int, ...] = ()
    has_output: bool = False
    attentions: dict[Site, int] = field(default_factory=dict)
    neurons: dict[Site, int] = field(default_factory=dict)
    experts: Experts | None = None


class _Scan:
    """One forward pass with hooks on all modules, in one thread."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = {module: name for name, module in model.named_modules()}
        self._stacks = layers_of(model)
        self._found = {layer: _Found() for stack in self._stacks for layer in stack}
        self._layer: _Found | None = None
        self._running: list[nn.Module] = []
        self._calls: list[_Call] = []
        self._linear: dict[tuple[int, nn.Module], tuple[Value, Tensor]] = {}
        self._provenance = Provenance(self._running)
        self._thread = threading.get_ident()

    def of(self, run: Callable[[], Any]) -> Anatomy:
        """Run it."""
        if not self._stacks:
            return Anatomy(())
        with contextlib.ExitStack() as undo:
            for module in modules_in(self._model):
                before = module.register_forward_pre_hook(self._begins, with_kwargs=True)
                undo.callback(before.remove)
                undo.callback(module.register_forward_hook(self._ends).remove)
            undo.enter_context(_same_dropout(self._model))
            undo.enter_context(torch.inference_mode(False))
            undo.enter_context(torch.no_grad())
            with self._provenance:
                run()
        stacks = (tuple(self._layers(stack)) for stack in self._stacks)
        return Anatomy(tuple(stack for stack in stacks if stack))

    def _layers(self, stack: list[nn.Module]) -> Iterator[Layer]:
        for module in stack:
            found = self._found[module]
            if found.has_output:
                yield Layer(
                    self._names[module],
                    tuple(found.attentions),
                    tuple(found.neurons),
                    tuple(found.neurons.values()),
                    found.experts,
                )

    def _begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != self._thread:
            return
        if self._layer is None:
            if module not in self._found:
                return
            self._enter(self._found[module], [*tensors_in(args), *tensors_in(kwargs)])
        provenance, tensors = self._provenance, [*tensors_in(args), *tensors_in(kwargs)]
        operand = tensors[0] if len(tensors) == 1 and tensors[0].is_floating_point() else None
        call = _Call(module, operand, None, provenance.mixed, provenance.bent)
        if operand is not None:
            call.value = provenance.value(operand)
        self._running.append(module)
        self._calls.append(call)
        if not provenance.is_on:
            return
        experts = _experts(self._names[module], module, args, kwargs)
        if experts is not None:
            # Neurons within are those of some tokens only.
            assert self._layer is not None
            self._layer.experts = self._layer.experts or experts
            call.is_experts = True
            provenance.is_on = False

    def _enter(self, layer: _Found, tensors: list[Tensor]) -> None:
        self._layer = layer
        self._running.clear()
        self._calls.clear()
        self._provenance.is_on = True
        stream = next((x for x in tensors if x.is_floating_point() and x.dim() > 1), None)
        if stream is not None:
            layer.leading = tuple(stream.shape[:-1])
            self._provenance.declare(stream, Kind.OTHER)

    def _ends(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() != self._thread or self._layer is None:
            return
        while self._calls and self._calls[-1].module is not module:  # one that raised
            self._calls.pop()
            self._running.pop()
        if not self._calls:
            return
        call = self._calls.pop()
        self._running.pop()
        if call.is_experts:
            self._provenance.is_on = True
            for x in tensors_in(output):
                self._provenance.declare(x, Kind.OTHER)
        elif self._provenance.is_on:
            self._note_linear(call, output)
        if not self._calls:
            self._leave(self._layer, output)

    def _note_linear(self, call: _Call, output: Any) -> None:
        """Keep a call of a module that computes a linear map of the last axis."""
        x, value, provenance = call.operand, call.value, self._provenance
        if (
            x is None
            or not isinstance(output, Tensor)
            or not output.is_floating_point()
            or output.shape[:-1] != x.shape[:-1]
            or isinstance(call.module, _ConvNd)
            or provenance.mixed == call.mixed
            or provenance.bent != call.bent
            or not any(_has_matrix(part) for part in modules_in(call.module))
        ):
            return
        if value is not None and value.kind in (Kind.ATTENTION, Kind.HIDDEN):
            self._linear[value.number, call.module] = value, x
        if not call.module._modules:
            # A quantised one computes it by operations that are none.
            gathered = value is not None and value.gathered
            provenance.declare(output, Kind.LINEAR, gathered=gathered)

    def _leave(self, layer: _Found, output: Any) -> None:
        self._layer = None
        self._provenance.is_on = False
        first = next((x for x in tensors_in(output) if x.is_floating_point()), None)
        layer.has_output |= first is not None and first.dim() > 2
        for number, consumers in self._provenance.consumers.items():
            innermost = _in_common(consumers)
            if innermost is None or (number, innermost) not in self._linear:
                continue
            value, x = self._linear[number, innermost]
            if value.gathered or not _is_of_tokens(x, layer.leading):
                continue
            path, width = self._names[innermost], x.shape[-1]
            if any(
                path.startswith(f"{site.module}.") for site in (*layer.attentions, *layer.neurons)
            ):
                continue  # within a module that has been found, which may clamp or scale it
            if value.kind is Kind.HIDDEN:
                layer.neurons[Site(path, end="input")] = width
            elif value.heads and width % value.heads == 0:
                layer.attentions[Site(path, end="input", heads=value.heads)] = width
        self._linear.clear()
        self._provenance.forget()


def _in_common(consumers: Sequence[tuple[nn.Module, ...]]) -> nn.Module | None:
    """The innermost module that was running at all of these times."""
    innermost = None
    for modules in zip(*consumers, strict=False):
        if len(set(modules)) > 1:
            break
        innermost = modules[0]
    return innermost


def _is_of_tokens(x: Tensor, leading: tuple[int, ...]) -> bool:
    """Whether a tensor has a row for each token of a layer's input [… leading, channels].

    That may have several streams, before rows and tokens or after.
    """
    rows = tuple(x.shape[:-1])
    if len(rows) == 1:
        return rows[0] in (prod(leading[-2:]), prod(leading[:2]))
    return rows in (leading[-len(rows) :], leading[: len(rows)])


def _has_matrix(module: nn.Module) -> bool:
    """Whether it holds one itself, perhaps a quantised one."""
    held = [*dict(module._parameters).values(), *dict(module._buffers).values()]
    return any(x is not None and x.dim() > 1 for x in held)


def _experts(
    path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Experts | None:
    """What a module is if it is called with hidden states, and experts for each and their weights.

    These are [tokens, k] both. It must hold parameters or modules, one for each expert.
    """
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    tensors = [(key, x) for key, x in given if isinstance(x, Tensor) and x.dim() > 1]
    indices = [(key, x) for key, x in tensors if x.dtype in (torch.int64, torch.int32)]
    if len(tensors) != 3 or len(indices) != 1 or indices[0][1].dim() != 2:
        return None
    ((at, index),) = indices
    rows = [(key, x) for key, x in tensors if key != at and prod(x.shape[:-1]) == len(index)]
    count = _count_of_experts(module) if len(rows) > 1 else None
    if count is None or bool(index.max() >= count):
        return None
    weights = [key for key, x in rows if x.shape == index.shape]
    hidden = [key for key, x in rows if x.shape != index.shape]
    if len(weights) != 1 or len(hidden) != 1:
        return None
    return Experts(path, count, hidden[0], at, weights[0])


def _count_of_experts(module: nn.Module) -> int | None:
    """How many there are: the first axis of its parameters, or modules in a list."""
    lists = [part for part in modules_in(module) if isinstance(part, nn.ModuleList)]
    if lists:
        return len(lists[0])
    if module._modules and all(name.isdecimal() for name in module._modules):
        return len(module._modules)
    stacked = [p for p in (*module.parameters(), *module.buffers()) if p.dim() > 2]
    return stacked[0].shape[0] if stacked else None


@contextlib.contextmanager
def _same_dropout(model: nn.Module) -> Iterator[None]:
    """Draw no random number that a model in training would draw."""
    parts = modules_in(model)
    if not any(part.training for part in parts):
        yield
        return
    devices = {p.device.index for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(sorted(index for index in devices if index is not None)):
        yield

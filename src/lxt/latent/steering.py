"""Steering: a model runs with some of its activations edited, until the edits are taken off.

Edits are hooks on modules of the one instance. A hook on the model, and on each module within that
is called with rows of tokens, finds out which tokens a pass holds; checkpoints that run a part of
it again in the backward pass find the same edits and tokens in force.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt.engine.admission import require_module, require_ready
from lxt.engine.beside import beside
from lxt.engine.checkpoint import is_recomputing, reenter_checkpoint
from lxt.engine.mode import outside_rules
from lxt.errors import InvalidModel, InvalidTap, UnusedEditWarning
from lxt.latent.edits import Edit, Part, part_of, require_fits
from lxt.latent.positions import Ends, Tokens, host_of
from lxt.latent.steering_hooks import Begins, Finishes, Generate, Hook, Input, Output
from lxt.latent.units import Site, Unit

__all__ = ["Steering", "steer", "steer_likewise"]


def steer(model: nn.Module, edits: Mapping[Any, Edit]) -> Steering:
    """Run a model with some of its activations edited.

    >>> neuron = lxt.Unit("layers.17.mlp.act_fn", neuron=5687)
    >>> with lxt.steer(model, {neuron: lxt.Scale(0), "layers.3": lxt.Add(v)}):
    ...     model.generate(**inputs)

    The edits are in force from now on, in every call of this instance and of its parts, until the
    block is left or `.remove()` is called. Edits of one place act in order; those of a further
    `lxt.steer` see what the earlier ones have made of it. Under a composite it is the steered model
    that is explained: what is set carries no relevance further back, and what is added is a
    constant.

    Args:
        model: any module; neither it nor any other is changed for good.
        edits: units of the model, per token, and what is done to them. A site, or the path of a
            module, is all that goes through it; a path with `*` is each module that fits. Of a
            unit without a position all tokens are edited, of one with a position that token of
            each row, counted without padding. Negative positions count from the end of the row;
            in `model.generate` from the end of the prompt.

    Returns:
        A handle; also a context manager.

    Raises:
        InvalidTap: there is no such unit, or no such value; or, when the model runs, its positions
            can't be told.
        InvalidModel: it is no module, or is compiled.

    """
    require_module(model)
    require_ready(model)
    for name, module in model.named_modules():
        if module.__dict__.get("_compiled_call") is not None:
            where = f"its module {name!r}" if name else "this model"
            raise InvalidModel(
                f"{where} has been compiled for generation, and would go on without the edits: "
                "load it anew, and generate with disable_compile=True"
            )
    return Steering(model, edits)


def steer_likewise(copied: nn.Module, model: nn.Module) -> None:
    """Put the edits of a model on a deep copy of it, for as long as the copy is there."""
    same = dict(zip(model.modules(), copied.modules(), strict=True))
    found: dict[Steering, None] = {}
    for module in same:
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        found |= {hook.steering: None for hook in hooks if isinstance(hook, Hook)}
    for steering in sorted(found, key=lambda steering: steering.number):
        if steering.model in same:
            Steering(same[steering.model], steering.edits)


@dataclass(frozen=True)
class Placed:
    """An edit at one module."""

    number: int
    unit: Unit
    edit: Edit
    module: nn.Module
    host: nn.Module | None
    parts: dict[int, Part]
    """By the width of the last axis."""


class _Run:
    """A call of a host, in this thread."""

    def __init__(self, steering: Steering, tokens: Tokens) -> None:
        self.steering = steering
        self.tokens = tokens

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same tokens and edits in force, for a part of the pass."""
        with self.steering._revived(self):
            yield


class _Local(threading.local):
    ends: Ends | None = None
    revivals = 0

    def __init__(self) -> None:
        self.runs: list[_Run] = []


_numbers = iter(range(2**63))


class Steering:
    """Edits in force on one model instance; `.remove()` takes them off again. Made by `steer`."""

    def __init__(self, model: nn.Module, edits: Mapping[Any, Edit]) -> None:
        self.model = model
        self.edits = _as_edits(edits)
        self.number = next(_numbers)
        self._placed = list(_places(model, self.edits))
        self._local = _Local()
        self._lock = threading.Lock()
        self._in_place = 0
        self._undo = ExitStack()
        self._is_on = True
        self._has_run = False
        self._used: set[int] = set()
        self._generate: Generate | None = None
        self._install()
        positions = [p.unit.position for p in self._placed if p.unit.position is not None]
        if any(position < 0 for position in positions) and hasattr(model, "generate"):
            self._generate = Generate(model, self)

    def remove(self) -> None:
        """Take the edits off. Removing twice is harmless."""
        if not self._is_on:
            return
        self._is_on = False
        if self._generate is not None:
            self._generate.remove()
        self._uninstall()
        unused = [unit for n, unit in enumerate(self.edits) if n not in self._used]
        if self._has_run and unused:
            names = ", ".join(
                unit.name if unit.position is None else f"{unit.name} at position {unit.position}"
                for unit in unused
            )
            warnings.warn(
                f"nothing was done to {names} of {type(self.model).__name__}: no token came by "
                "there, or the model runs compiled",
                UnusedEditWarning,
                stacklevel=2,
            )

    def __enter__(self) -> Steering:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._has_run = self._has_run and kind is None  # nobody asks what a failed run left out
        self.remove()

    def __repr__(self) -> str:
        state = "on" if self._is_on else "removed from"
        return f"<Steering of {len(self.edits)} units {state} {type(self.model).__name__}>"

    # --- hooks -----------------------------------------------------------------------------------

    def _install(self) -> None:
        """Put hooks in place, from the first time that they are wanted to the last."""
        with self._lock:
            self._in_place += 1
            if self._in_place > 1:
                return
            hosts = dict.fromkeys(p.host for p in self._placed if p.host is not None)
            hosts.setdefault(self.model)
            with ExitStack() as undo:
                for host in hosts:
                    hook = Begins(self, host)
                    handle = host.register_forward_pre_hook(hook, with_kwargs=True)
                    undo.callback(handle.remove)
                for module in dict.fromkeys(p.module for p in self._placed):
                    at = [p for p in self._placed if p.module is module]
                    before = [p for p in at if p.unit.place.end == "input"]
                    after = [p for p in at if p.unit.place.end == "output"]
                    if before:
                        hook = Input(self, before)
                        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                        undo.callback(handle.remove)
                    if after:
                        handle = module.register_forward_hook(Output(self, after))
                        undo.callback(handle.remove)
                for host in hosts:
                    handle = host.register_forward_hook(Finishes(self, host), always_call=True)
                    undo.callback(handle.remove)
                self._undo = undo.pop_all()

    def _uninstall(self) -> None:
        with self._lock:
            self._in_place -= 1
            if self._in_place == 0:
                self._undo.close()

    @contextmanager
    def _revived(self, run: _Run | None) -> Iterator[None]:
        """In force in this thread once more, for a part of a pass that runs again."""
        self._install()
        self._local.revivals += 1
        if run is not None:
            self._local.runs.append(run)
        try:
            yield
        finally:
            if run is not None:
                self._local.runs.remove(run)
            self._local.revivals -= 1
            self._uninstall()

    def begins(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A host is called."""
        positions = {
            p.unit.position
            for p in self._placed
            if p.host is host and p.unit.position is not None and not p.edit.is_idle
        }
        run = _Run(self, Tokens(host))
        if positions:
            with torch.no_grad(), outside_rules():
                run.tokens.take_down(args, kwargs, positions, self._local.ends)
        self._has_run = True
        self._local.runs.append(run)
        beside.enters(run.again)

    def ends(self, host: nn.Module) -> None:
        """Its call is over, or has failed."""
        runs = self._local.runs
        run = next((run for run in reversed(runs) if run.tokens.host is host), None)
        if run is not None:
            runs.remove(run)
            beside.leaves(run.again)

    @contextmanager
    def generating(self) -> Iterator[None]:
        """A generation runs: its first forward pass of a host holds the prompts."""
        outer, self._local.ends = self._local.ends, Ends()
        try:
            yield
        finally:
            self._local.ends = outer

    def edited(self, x: Tensor, placed: list[Placed]) -> Tensor:
        """What goes on in place of `x`; itself where nothing is to be done."""
        if self._local.revivals == 0:
            if not self._is_on or is_recomputing():
                return x  # another pass's
            self._has_run = True
            reenter_checkpoint(self._again(), self)
        for one in placed:
            x = self._edited(x, one)
        return x

    def _again(self) -> Any:
        runs = list(self._local.runs)

        @contextmanager
        def enter() -> Iterator[None]:
            with ExitStack() as revived:
                for run in runs or [None]:
                    revived.enter_context(self._revived(run))
                yield

        return enter

    def _edited(self, x: Tensor, placed: Placed) -> Tensor:
        unit, edit = placed.unit, placed.edit
        width = x.shape[-1] if x.dim() else 0
        part = placed.parts.get(width)
        if part is None:
            part = placed.parts[width] = part_of(unit, width)
            require_fits(unit, edit, part.size)
        edit.require_finite_in(x.dtype)
        here = None
        if unit.position is not None and not edit.is_idle:
            here = self._tokens(placed).here(unit.position, x, str(unit.place))
            if here is None:
                return x
        self._used.add(placed.number)
        if edit.is_idle:
            return x
        y = part.applied(edit, x)
        return y if here is None else torch.where(here, y, x)

    def _tokens(self, placed: Placed) -> Tokens:
        for run in reversed(self._local.runs):
            if run.tokens.host is placed.host:
                return run.tokens
        raise InvalidTap(
            f"position={placed.unit.position} of {placed.unit.name}: it runs outside of "
            f"{type(placed.host).__name__}, so nothing tells which tokens it holds: call that, or "
            "leave out position="
        )


# --- what is asked for ---------------------------------------------------------------------------


def _as_edits(edits: Any) -> dict[Unit, Edit]:
    if not isinstance(edits, Mapping):
        raise InvalidTap(f"{edits!r} is no mapping of units to edits: {{unit: lxt.Scale(0)}}")
    found: dict[Unit, Edit] = {}
    for unit, edit in edits.items():
        if isinstance(unit, Site | str):
            unit = Unit(unit)
        if not isinstance(unit, Unit):
            raise InvalidTap(f"{unit!r} is no lxt.Unit, nor a site or the path of a module")
        if not isinstance(edit, Edit):
            raise InvalidTap(
                f"{edit!r} is nothing to do to {unit.name}: give lxt.Scale(…), lxt.Set(…) or "
                "lxt.Add(…)"
            )
        found[unit] = edit
    return found


def _places(model: nn.Module, edits: Mapping[Unit, Edit]) -> Iterator[Placed]:
    for number, (unit, edit) in enumerate(edits.items()):
        site = unit.place
        if any(sign in site.module for sign in "*?["):
            modules = [module for _, module in site.modules(model)]
        else:
            modules = [site.the_module(model)]
        for module in modules:
            parts: dict[int, Part] = {}
            width = _width(module, site)
            if width is not None:
                part = parts[width] = part_of(unit, width)
                require_fits(unit, edit, part.size)
            elif unit.neuron is not None or unit.direction is not None:
                require_fits(unit, edit, 1)
            host = None if unit.position is None else host_of(module, model)
            yield Placed(number, unit, edit, module, host, parts)


def _width(module: nn.Module, site: Site) -> int | None:
    """How many channels go through a site, of modules that say so."""
    if isinstance(module, nn.Linear):
        return module.in_features if site.end == "input" else module.out_features
    if isinstance(module, nn.Embedding) and site.end == "output":
        return module.embedding_dim
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    return None

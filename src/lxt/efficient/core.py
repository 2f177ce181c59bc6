"""`monkey_patch`: the rules for every model that a Python module defines, or for one instance.

Only classes of that module are touched: their `forward` and `__call__` become entrances, behind
which an instance runs under a composite as it does after `Composite.register`. So nothing that
several models share, such as `torch.nn.Dropout` or the registry of attention functions, changes for
others.
"""

from __future__ import annotations

import inspect
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from lxt.composite import Composite
from lxt.efficient.entrances import ClassEntrance
from lxt.efficient.models import get_default_map
from lxt.efficient.patches import apply
from lxt.efficient.recipe import Recipe
from lxt.errors import InvalidComposite, InvalidModel
from lxt.propagation import Propagation

__all__ = ["Patch", "monkey_patch"]

PatchMap = Mapping[Any, Callable[[Any], Any]]

_patched: weakref.WeakKeyDictionary[Any, Patch] = weakref.WeakKeyDictionary()
"""What is patched now: Python modules and instances, with the patch in force."""

_lock = threading.RLock()


def monkey_patch(
    module: ModuleType | nn.Module,
    patch_map: PatchMap | Composite | None = None,
    verbose: bool = False,
) -> Patch:
    """Make relevance flow through every model of a Python module, by activation · gradient.

    >>> monkey_patch(transformers.models.llama.modeling_llama)

    Patching anew switches to the new map; the same map again changes nothing.

    Args:
        module: the Python module, such as any `transformers.models.*.modeling_*`; or a model, of
            which then only that instance is patched.
        patch_map: what to patch, see `lxt.efficient.patches`, or a composite for all of it. By
            default AttnLRP; for `torchvision.models.vision_transformer` CP-LRP.
        verbose: whether to print what was patched.

    Returns:
        A handle, whose `.remove()` undoes it. As a context manager it puts back, at the end of the
        block, what was before.

    Raises:
        InvalidModel: no Python module with models in it, and no model.
        InvalidComposite: the patch map is none, or can't be applied.

    Warns:
        UserWarning: a patch of the map says that it had nothing to do.

    """
    if not isinstance(module, ModuleType | nn.Module):
        raise InvalidModel(
            f"{module!r} can't be patched: give a Python module, such as "
            "transformers.models.llama.modeling_llama, or a model"
        )
    source = module if isinstance(module, ModuleType) else inspect.getmodule(type(module))
    if source is None:
        raise InvalidModel(f"nothing says which Python module defines {type(module).__name__}")
    if patch_map is None:
        patch_map = get_default_map(source)
    elif isinstance(patch_map, Composite):
        patch_map = {source: apply(patch_map)}
    _require_map(patch_map)

    with _lock:
        previous = _patched.get(module)
        if previous is not None:
            previous.suspend()
            if not previous._is_entered:
                previous._previous = None  # which it has replaced for good
        try:
            patch = Patch(module, source, patch_map, previous)
        except BaseException:
            if previous is not None:
                previous.resume()
            raise
    if verbose:
        for name in patch.names:
            print(f"Patched {name}")
    return patch


class Patch:
    """A patch map at work on a Python module, or on one model; `.remove()` undoes it.

    Attributes:
        composite: the rules that its models run under.
        names: what was patched.

    """

    def __init__(
        self,
        target: ModuleType | nn.Module,
        source: ModuleType,
        patch_map: PatchMap,
        previous: Patch | None,
    ) -> None:
        self._target: Any = weakref.ref(target)  # an instance goes when its owner lets it go
        self._source = source
        self._map = dict(patch_map)
        self._previous = previous
        self._is_removed = False
        self._is_entered = False
        self._handle: Any = None
        self.resume()

    @property
    def target(self) -> ModuleType | nn.Module | None:
        """The Python module or the model; None if it is gone."""
        return self._target()

    def resume(self) -> None:
        """Carry the map out, at first and after `suspend`."""
        target = self.target
        classes = _model_classes(target) if isinstance(target, ModuleType) else []
        recipe = self._recipe = Recipe(self._source)
        with recipe.writing(self._map):
            for patched, patch in self._map.items():
                if not patch(patched):
                    warnings.warn(f"{patched.__name__} was not patched", stacklevel=4)
            self.composite = recipe.composite()
        # A map that spells its rules out leaves gradients of parameters to autograd, too.
        constants = recipe.base is not None
        if isinstance(target, nn.Module):
            if changed := recipe.changed:
                recipe.undo()
                raise InvalidComposite(
                    f"the patch map changes {', '.join(changed)}, which other instances share: "
                    f"patch the Python module {self._source.__name__} instead"
                )
            # Kept alive by the instance itself.
            on_unknown = self.composite.on_unknown
            handle = Propagation(target, self.composite, on_unknown, constants=constants)
            self._handle = weakref.ref(handle)
        self._entrances: list[ClassEntrance] = []
        try:
            for cls in classes:
                self._entrances.append(ClassEntrance(cls, self.composite, constants))
        except BaseException:
            self.suspend()
            raise
        targets = dict.fromkeys([*self._map, *classes])
        self.names = [patched.__name__ for patched in targets]
        _patched[target] = self

    def suspend(self) -> None:
        """Take the patch off, until `resume`."""
        for entrance in self._entrances:
            entrance.remove()
        handle = self._handle and self._handle()
        if handle is not None:
            handle.remove()
        self._recipe.undo()
        _patched.pop(self.target, None)

    def remove(self) -> None:
        """Put the target back as it was unpatched. Removing twice is harmless."""
        with _lock:
            self._is_removed = True
            if self._is_on():
                self.suspend()

    def _is_on(self) -> bool:
        target = self.target
        return target is not None and _patched.get(target) is self

    def __enter__(self) -> Patch:
        self._is_entered = True
        return self

    def __exit__(self, *_: Any) -> None:
        """Put back what was before the block, unless a block that began within it is still on."""
        with _lock:
            self._is_removed, self._is_entered = True, False
            target = self.target
            current = None if target is None else _patched.get(target)
            later: list[Patch] = []  # those that began within the block, newest first
            patch = current
            while patch is not None and patch is not self:
                later.append(patch)
                patch = patch._previous
            if any(patch._is_entered for patch in later):
                later[-1]._previous = self._previous
                return
            if current is not None:
                current.suspend()
            if self._previous is not None and not self._previous._is_removed:
                self._previous.resume()

    def __repr__(self) -> str:
        state = "on" if self._is_on() else "removed from"
        name = getattr(self.target, "__name__", type(self.target).__name__)
        return f"Patch({self.composite.name!r} {state} {name})"


def _require_map(patch_map: Any) -> None:
    if not isinstance(patch_map, Mapping):
        raise InvalidComposite(
            f"{patch_map!r} is no patch map: give a dictionary from classes or Python modules to "
            "functions that patch them, or a composite"
        )
    for target, patch in patch_map.items():
        if not isinstance(target, type | ModuleType):
            raise InvalidComposite(f"{target!r} in the patch map is no class and no Python module")
        if not callable(patch):
            raise InvalidComposite(
                f"the patch of {target.__name__} is {patch!r}: give a function of the target that "
                "returns True"
            )


def _model_classes(module: ModuleType) -> list[type[nn.Module]]:
    """The classes of models, and of their parts, that a Python module defines."""
    defined = {
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and value.__module__ == module.__name__
        and value.forward is not nn.Module.forward
    }
    # A class that inherits the forward of another one of them inherits its entrance.
    classes = [cls for cls in defined if _provider(cls) not in defined - {cls}]
    if not classes:
        raise InvalidModel(
            f"{module.__name__} defines no torch.nn.Module that could be patched: give the module "
            "with the model's code, such as transformers.models.llama.modeling_llama"
        )
    return sorted(classes, key=lambda cls: cls.__name__)


def _provider(cls: type) -> type:
    """The class whose `forward` a class has."""
    return next(base for base in cls.__mro__ if "forward" in vars(base))

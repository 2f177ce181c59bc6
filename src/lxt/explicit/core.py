"""LXT's `Composite`: rules by module class, module name and function, put on a model.

What it names is what has a rule; all else keeps autograd's own gradient, with a warning where that
is no relevance. It is a front to `lxt.Composite`: nothing is traced, so functions work under
gradient checkpointing too, and all of it can be undone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lxt import composite as engine
from lxt.errors import InvalidComposite
from lxt.explicit.modules import INIT_MODULE_MAPPING
from lxt.explicit.registration import Registration
from lxt.explicit.rules import WrapModule
from lxt.explicit.survey import print_table

__all__ = ["Composite", "CompositeContext"]


class Composite:
    """A table of rules that is registered on models.

    Args:
        layer_map: what gets which rule. A key is a module class (subclasses too; of several keys
            the first that fits counts), a name of modules as a shell pattern matched against the
            end of the path, or a function of torch or `operator` (all spellings: `a + b`,
            `torch.add` and `a.add(b)` are one). A value is a `WrapModule` such as
            `rules.EpsilonRule`, a module of `lxt.explicit.modules` to stand in for the original, or
            for a function one of `lxt.explicit.functional` or your own with the same arguments.
            An `lxt.Composite` in the explicit form is a map too.
        canonizers: objects with `apply(model)` that prepare the model, such as Zennit's.
        zennit_composite: registered after all else; its rules go before these.

    Raises:
        InvalidComposite: a key, value or canonizer is none.

    """

    def __init__(
        self,
        layer_map: Mapping[Any, Any],
        canonizers: Iterable[Any] | None = (),
        zennit_composite: Any = None,
    ) -> None:
        if not isinstance(layer_map, Mapping):
            raise InvalidComposite(
                f"{layer_map!r} is no dictionary from modules and functions to rules"
            )
        self.layer_map = layer_map
        self.canonizers = list(canonizers or ())
        self.zennit_composite = zennit_composite
        self._registrations: list[Registration] = []
        for canonizer in self.canonizers:
            if isinstance(canonizer, type):
                raise InvalidComposite(
                    f"{canonizer.__name__} is a class: give an instance, {canonizer.__name__}()"
                )
        if isinstance(layer_map, engine.Composite):
            if layer_map.formulation != "relevance":
                raise InvalidComposite(
                    f"{layer_map.name!r} hands back gradients: give its lxt.explicit.explicit_form"
                )
        else:
            for key, value in layer_map.items():
                _check(key, value)

    def register(
        self,
        parent: nn.Module,
        dummy_inputs: Mapping[str, Any] | None = None,
        tracer: Any = None,
        verbose: bool = False,
        no_grad: bool = True,
    ) -> nn.Module:
        """Put the rules on a model, so that the gradient of a tensor is its relevance.

        Args:
            parent: the model.
            dummy_inputs: arguments of the model by name, to run it once and see which functions it
                calls; only for the table.
            tracer: ignored: nothing is traced.
            verbose: whether to print a table of the modules and functions: those replaced, those
                that are right as they are, and those that are not.
            no_grad: whether parameters stop requiring grad until `remove`.

        Returns:
            The model itself.

        Raises:
            AlreadyRegistered: another composite is on the model.

        """
        self._take_off(parent)  # a notebook's cell that runs again
        registration = Registration(
            parent, self.layer_map, self.canonizers, self.zennit_composite, no_grad
        )
        self._registrations.append(registration)
        if verbose:
            print_table(registration, dummy_inputs)
        return parent

    def remove(self) -> None:
        """Take the rules off every model that they are on. Removing twice is harmless."""
        while self._registrations:
            self._registrations.pop().remove()

    def _is_on(self, model: nn.Module) -> bool:
        return any(r.propagation.model is model for r in self._registrations)

    def _take_off(self, model: nn.Module) -> None:
        for registration in [r for r in self._registrations if r.propagation.model is model]:
            self._registrations.remove(registration)
            registration.remove()

    def context(self, module: nn.Module, verbose: bool = False) -> CompositeContext:
        """`register` for the length of a `with` block, which gets the model."""
        return CompositeContext(module, self, verbose)


class CompositeContext:
    """A composite on a model, for the length of a `with` block."""

    def __init__(self, module: nn.Module, composite: Composite, verbose: bool) -> None:
        self.module = module
        self.composite = composite
        self.verbose = verbose

    def __enter__(self) -> nn.Module:
        self._was_on = self.composite._is_on(self.module)
        if not self._was_on:
            self.composite.register(self.module, verbose=self.verbose)
        return self.module

    def __exit__(self, *_: Any) -> None:
        if not self._was_on:
            self.composite._take_off(self.module)


def _check(key: Any, value: Any) -> None:
    name = getattr(key, "__name__", repr(key))
    if isinstance(key, type) and not issubclass(key, nn.Module):
        raise InvalidComposite(f"{name} is a class but no torch.nn.Module")
    if isinstance(key, nn.Module) or not (callable(key) or isinstance(key, str)):
        raise InvalidComposite(
            f"{key!r} is no key: give a module class, a name pattern or a torch function"
        )
    rule = value.func if isinstance(value, functools.partial) else value
    if not isinstance(key, str | type):
        if not callable(rule) or isinstance(rule, type):
            raise InvalidComposite(
                f"the rule of {name} is {value!r}: give a function, such as those of "
                "lxt.explicit.functional"
            )
    elif not (isinstance(rule, type) and issubclass(rule, nn.Module)):
        raise InvalidComposite(
            f"the rule of {name} is {value!r}: give a rule of lxt.explicit.rules, or a module of "
            "lxt.explicit.modules"
        )
    elif not issubclass(rule, WrapModule) and value not in INIT_MODULE_MAPPING:
        raise InvalidComposite(
            f"nothing says how to make a {rule.__name__} of a {name}: enter a function "
            "(original, replacement class) → module into lxt.explicit.modules.INIT_MODULE_MAPPING"
        )

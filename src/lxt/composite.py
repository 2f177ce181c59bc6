"""A composite: the immutable table that says which rule stands in for which operation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import nn

from lxt.engine.dispatch import as_dispatched
from lxt.engine.nodes import Formulation
from lxt.entries import (
    OnUnknown,
    Rule,
    Target,
    check,
    checked_on_unknown,
    is_pythons,
    operator_name,
    rule_name,
    spelled,
)
from lxt.errors import InvalidComposite, UnusedCompositeWarning
from lxt.structure import (
    ClassPath,
    Having,
    OperatorName,
    Signature,
    matches,
    require_names,
)

if TYPE_CHECKING:
    from lxt.engine.segments import Checkpoint
    from lxt.fusion import Fusions
    from lxt.propagation import Propagation

__all__ = ["Composite", "nothing_to_explain"]

_MOST_RULES = 24
"""So many fit on a screen where a composite is printed."""


class Composite(Mapping[Target, Rule]):
    """A table from targets to rules, applied to one model instance at a time.

    Targets are torch functions (`torch.nn.functional.silu`, or
    `OperatorName("library::operator")`), module classes (`MyActivation`, or
    `ClassPath("package.module.MyActivation")`), and module names as shell patterns
    (`"layers.*.mlp.act_fn"`), matched against the end of a module's path; with a leading slash a
    name is the whole path and no pattern (`"/lm_head"`). A name is preferred to a class, a class to
    what the module is made of (`Having("A_log")`), and that to the functions its forward calls.

    A function written in Python that a module's forward calls is a target too, by itself
    (`my_package.selective_scan`) or by the arguments it takes (`Signature("A", "B", "C", "dt")`).

    Each spelling of an operation is a target by itself: `torch.sigmoid` is not `Tensor.sigmoid`.
    `dict.fromkeys(lxt.rules.spelled("sigmoid"), rule)` has all.

    Composites don't change. `attnlrp | {target: rule}` is a new one, with the right side preferred.

    Args:
        rules: the table.
        name: how the composite is called in messages and results.
        on_unknown: what becomes of an operation on the path of relevance that has no rule:
            `"error"` raises `UnknownOperation`, `"gradient"` takes autograd's own gradient.
        formulation: what the rules hand back. Those of `"gradient"` take and return gradients, and
            relevance is activation · gradient; those of `"relevance"` (`lxt.explicit`) take and
            return relevance, so that the gradient of a tensor is its relevance.

    Raises:
        InvalidComposite: a target or a rule is not one.

    """

    __slots__ = (
        "_fusions",
        "_havings",
        "_held",
        "_names",
        "_patterns",
        "_rules",
        "_signatures",
        "formulation",
        "name",
        "on_unknown",
    )

    def __init__(
        self,
        rules: Mapping[Any, Any],
        *,
        name: str = "composite",
        on_unknown: OnUnknown = "error",
        formulation: Formulation = "gradient",
    ) -> None:
        for target, rule in rules.items():
            check(target, rule)
        rules = {as_dispatched(target): rule for target, rule in rules.items()}
        self._rules: Mapping[Target, Rule] = MappingProxyType(rules)
        # later ones first, since they are preferred
        patterns = [target for target in reversed(list(rules)) if isinstance(target, str)]
        self._names = tuple(patterns)
        self._patterns = tuple(name for name in patterns if not name.startswith("/"))
        self._havings = tuple(t for t in reversed(list(rules)) if isinstance(t, Having))
        self._held = frozenset(name for having in self._havings for name in having.first)
        self._signatures = tuple(t for t in reversed(list(rules)) if isinstance(t, Signature))
        self.name = name
        self.on_unknown: OnUnknown = checked_on_unknown(on_unknown)
        if formulation not in ("gradient", "relevance"):
            raise InvalidComposite(f'formulation is "gradient" or "relevance", not {formulation!r}')
        self.formulation: Formulation = formulation
        self._fusions: Fusions | None = None

    @property
    def fusions(self) -> Fusions:
        """The modules that may run as one operation under these rules, as far as it was proven."""
        from lxt.fusion import Fusions  # which needs this module's types

        if self._fusions is None:
            # Names are those of a whole model: modules that have one are no units anyway.
            self._fusions = Fusions(self.without(*self._names) if self._names else self)
        return self._fusions

    def __getitem__(self, target: Target) -> Rule:
        return self._rules[as_dispatched(target)]

    def __iter__(self) -> Iterator[Target]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def __hash__(self) -> int:
        return hash(frozenset(self._rules))

    def __or__(self, other: Mapping[Any, Any]) -> Composite:
        if not isinstance(other, Mapping):
            return NotImplemented
        if isinstance(other, Composite) and other.formulation != self.formulation:
            raise InvalidComposite(
                f"the rules of {self.name!r} hand back {self.formulation} and those of "
                f"{other.name!r} {other.formulation}: they can't be mixed"
            )
        added = other.name if isinstance(other, Composite) else f"{len(other)} more"
        return self._with({**self._rules, **other}, f"{self.name} | {added}")

    def without(self, *targets: Target) -> Composite:
        """A copy less the rules of some targets, each of which it must have."""
        targets = tuple(map(as_dispatched, targets))
        missing = [spelled(target) for target in targets if target not in self._rules]
        if missing:
            raise InvalidComposite(f"{self.name} has no rule for {', '.join(missing)}")
        rules = {target: rule for target, rule in self._rules.items() if target not in targets}
        return self._with(rules, f"{self.name} without {', '.join(map(spelled, targets))}")

    def _with(self, rules: Mapping[Any, Any], name: str) -> Composite:
        return Composite(rules, name=name, on_unknown=self.on_unknown, formulation=self.formulation)

    def register(
        self,
        model: nn.Module,
        *,
        on_unknown: OnUnknown | None = None,
        checkpoint: Checkpoint = None,
        fuse: bool = True,
    ) -> Propagation:
        """Apply this composite to every forward pass of `model` until the result is removed.

        Relevance is `activation * gradient` of the backward passes that follow, or, for a composite
        of the formulation `"relevance"`, the gradient itself.

        Args:
            model: the instance to explain; its class and every other instance stay as they are.
            on_unknown: overrides the composite's own choice (see the class).
            checkpoint: keep activations for the backward pass only between segments of so many
                consecutive layers, and compute the rest again there: the same relevance for one
                more forward pass. `"sqrt"`, or True, makes segments of about √layers layers, so
                that memory grows with the root of the depth.
            fuse: whether norms and MLPs may run as one operation each, where that is proven to be
                the same (`lxt.fusion`); the result's `fused` says which do.

        Returns:
            The handle, whose `.remove()` undoes it.

        Raises:
            InvalidModel: `model` is no module, or none of layers that could be checkpointed.
            InvalidComposite: `checkpoint` is none of these.
            CheckpointFailed: in a forward pass with `checkpoint`, a layer writes to what it was
                given, such as a cache of keys and values; in the backward pass, a layer did not do
                the same a second time.
            AlreadyRegistered: a composite is registered on it, or on a module within.

        """
        from lxt.propagation import Propagation  # which needs this module's types

        choice = self.on_unknown if on_unknown is None else checked_on_unknown(on_unknown)
        return Propagation(model, self, choice, checkpoint=checkpoint, fuse=fuse)

    @contextmanager
    def context(
        self,
        model: nn.Module,
        *,
        on_unknown: OnUnknown | None = None,
        checkpoint: Checkpoint = None,
        fuse: bool = True,
    ) -> Iterator[Propagation]:
        """`register` for the length of a `with` block.

        Warns:
            UnusedCompositeWarning: the model's own forward did not run inside, or with nothing to
                explain.

        """
        propagation = self.register(model, on_unknown=on_unknown, checkpoint=checkpoint, fuse=fuse)
        try:
            yield propagation
        finally:
            put_aside = propagation.is_put_aside()
            propagation.remove()
        problem = None
        if put_aside:
            problem = (
                f"somebody put the forward of {type(model).__name__} back while it was under "
                f"{self.name!r}, so later calls ran without rules: remove accelerate's hooks first"
            )
        elif not propagation.was_called:
            problem = (
                f"{type(model).__name__} was not called under {self.name!r}, so it did nothing: "
                "call the registered model itself, not a part or another method of it"
            )
        elif propagation.carried_relevance is False:
            problem = nothing_to_explain(model, self)
        if problem:
            warnings.warn(problem, UnusedCompositeWarning, stacklevel=3)

    def function_rule(self, function: Callable[..., Any]) -> Rule | None:
        """The rule for a torch function or an operator, or None if it has none."""
        rule = self._rules.get(function)
        if rule is None and (name := operator_name(function)):
            rule = self._rules.get(OperatorName(name))
        return rule

    def named_rule(self, name: str) -> Rule | None:
        """The rule for the module at path `name` of a model, or None if no pattern matches it."""
        if (rule := self._rules.get(f"/{name}")) is not None:
            return rule
        for pattern in self._patterns:
            if matches(name, pattern):
                return self._rules[pattern]
        return None

    def named_rules(self, model: nn.Module) -> dict[nn.Module, Rule]:
        """The modules of a model that are targets by their names, with their rules."""
        if not self._names:
            return {}
        found: dict[nn.Module, Rule] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            rule = self.named_rule(name)
            if rule is not None:
                found.setdefault(module, rule)
        return found

    def class_rule(self, cls: type[nn.Module]) -> Rule | None:
        """The rule for modules of a class, or None if it has none.

        A class stands for its subclasses too, unless they have a `forward` of their own.
        """
        forward = getattr(cls, "forward", None)  # None for scripted ones
        for base in cls.__mro__:
            if getattr(base, "forward", None) is not forward:
                return None
            path = ClassPath(f"{base.__module__}.{base.__qualname__}")
            rule = self._rules.get(base) or self._rules.get(path)
            if rule is not None:
                return rule
        return None

    def structure_rule(self, module: nn.Module) -> Rule | None:
        """The rule for a module by what it holds, or None if it has none."""
        held = module._parameters, module._buffers, module._modules
        if type(held[0]) is dict and all(map(self._held.isdisjoint, held)):
            return None  # as of most modules, which is soon said; those of scripted ones can't be
        return next((self._rules[having] for having in self._havings if having.fits(module)), None)

    def module_rule(self, name: str, module: nn.Module) -> Rule | None:
        """The rule for a module at path `name` of a model, by its name, class or structure."""
        by_class = self.named_rule(name) or self.class_rule(type(module))
        return by_class or self.structure_rule(module)

    @property
    def has_calls(self) -> bool:
        """Whether functions written in Python are among its targets."""
        return bool(self._signatures) or any(map(is_pythons, self._rules))

    def call_rule(self, function: Callable[..., Any]) -> Rule | None:
        """The rule for a function written in Python that a module calls, or None if it has none.

        Torch's own are no such functions: each call of them is seen.
        """
        function = getattr(function, "__func__", function)
        if not is_pythons(function) and not isinstance(function, nn.Module):
            return None
        if (rule := self._rules.get(function)) is not None:  # pyright: ignore[reportArgumentType, reportCallIssue]
            return rule
        fitting = (names for names in self._signatures if names.fits(function))
        return next((self._rules[names] for names in fitting), None)

    def require_names_in(self, model: nn.Module) -> None:
        """Make sure that each pattern of module names matches something.

        Raises:
            InvalidComposite: one doesn't; the message shows names that there are.
        """
        require_names(model, self._names)

    def __repr__(self) -> str:
        return f"Composite({self.name!r}, {len(self)} targets, on_unknown={self.on_unknown!r})"

    def __str__(self) -> str:
        groups: dict[str, list[str]] = {}
        for target, rule in self._rules.items():
            groups.setdefault(rule_name(rule), []).append(spelled(target).rsplit(".", 1)[-1])
        lines = [repr(self)]
        largest = sorted(groups.items(), key=lambda item: -len(item[1]))
        for label, names in largest[:_MOST_RULES]:
            names = list(dict.fromkeys(names))
            text = ", ".join(names)
            if len(text) > 60:
                text = text[:60].rsplit(", ", 1)[0] + f", … ({len(names)} in all)"
            lines.append(f"  {label:<20} {text}")
        if others := [label for label, _ in largest[_MOST_RULES:]]:
            lines.append(f"  … and {len(others)} rules for few targets each, such as {others[0]}")
        return "\n".join(lines)


def nothing_to_explain(model: nn.Module, composite: Composite) -> str:
    """The warning for a forward pass that no relevance can flow through."""
    return (
        f"nothing that {type(model).__name__} put out under {composite.name!r} depends on a tensor "
        "that requires grad (parameters are constants here): give it a leaf to explain, such as "
        "x = model.get_input_embeddings()(ids).detach().requires_grad_() as inputs_embeds"
    )

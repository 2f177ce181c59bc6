"""The presets in the explicit formulation, where the gradient of a tensor *is* its relevance.

They stand for the same mathematics as `lxt.attnlrp` and `lxt.cp_lrp`, written down once more: so
each is the other's proof. Every rule of gradients has an explicit one here, found by the operation
where the operation decides, and by the rule otherwise.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from lxt import composites
from lxt.architectures import RECURRENT, TRAINING
from lxt.architectures.quantized import linear
from lxt.architectures.recurrent import recurrent
from lxt.composite import Composite
from lxt.entries import Rule, Target
from lxt.errors import InvalidComposite
from lxt.explicit import compound, operations as explicit, written
from lxt.rules import bilinear, constants, losses, normalization, powers, spectral
from lxt.rules.attention import scaled_dot_product_attention, value_only_attention
from lxt.rules.elementary import constant, passthrough
from lxt.rules.exponential import EXPONENTIALS_WITHOUT_SOFTMAX, check_logarithm, log1p
from lxt.rules.flex import flex_attention, value_only_flex_attention
from lxt.rules.linear import lookup
from lxt.rules.registry import REGISTRY, Family, Operation, as_family, in_place, spelled
from lxt.rules.secants import Elementwise
from lxt.structure import InTheOpen, Within

__all__ = ["attnlrp", "cp_lrp", "explicit_form"]

# What moves values moves their relevance along; these add some up too.
_MOVES = ("moves values", "picks values", "writes constants", "dropout is off", "its parts")
_ADDING = ("scatter_add", "scatter_reduce", "index_add", "index_put")
_SUMS = frozenset(
    spelled("fold", "quantile", "nanquantile", *_ADDING, *(f"{name}_" for name in _ADDING))
)

# Moves that are not mere moves of complex numbers.
_CONJUGATES = frozenset(
    (
        *spelled("adjoint"),
        *(attribute.__get__ for attribute in (torch.Tensor.H, torch.Tensor.mH)),  # pyright: ignore[reportAttributeAccessIssue]
    )
)

# Operations that put out more than one tensor, each of them a linear map by its rule.
_OUTPUTS: dict[Operation, int] = {
    torch.lstm: 3,
    **dict.fromkeys((torch.gru, torch.rnn_tanh, torch.rnn_relu, torch.lstm_cell), 2),
    **dict.fromkeys((torch.var_mean, torch.std_mean), 2),
}

_FLEX = (
    'nothing shows the scores inside its kernel; load the model with attn_implementation="eager"'
)


def explicit_form(composite: Composite, epsilon: float = 1e-8) -> Composite:
    """The explicit form of a composite of gradients.

    A rule that has no explicit counterpart here, such as one of your own, becomes the ε-rule for
    the linear map that it makes of its operation: R = x ⊙ Jᵀ (R / (y + ε)).

    Args:
        composite: rules that hand back gradients.
        epsilon: what stabilises denominators: y + ε.

    Raises:
        InvalidComposite: the rules hand back relevance already.

    """
    if composite.formulation != "gradient":
        raise InvalidComposite(f"{composite.name!r} is in the explicit form already")
    form = _Form(epsilon)
    return Composite(
        {target: form.of(target, rule) for target, rule in composite.items()},
        name=f"explicit {composite.name}",
        on_unknown=composite.on_unknown,
        formulation="relevance",
    )


class _Form:
    """Explicit rules for those of gradients, with one ε."""

    def __init__(self, eps: float) -> None:
        self.eps = eps
        self.recurrent = recurrent(with_kernels=False)
        product = explicit.uniform_epsilon(eps)
        self.by_rule: dict[Rule, Rule] = {
            constant: constant,
            passthrough: explicit.epsilon(eps),
            bilinear.product: product,
            bilinear.weighted: product,
            linear: explicit.linear(linear, eps),
            scaled_dot_product_attention: compound.attention(eps),
            bilinear.sum_with_gated_product: explicit.gated(
                explicit.linearised(bilinear.sum_with_product, eps), 1, bilinear.FACTORS
            ),
            bilinear.gated_einsum: explicit.gated_einsum(eps),
            value_only_attention: compound.attention(eps, weights_are_constant=True),
            flex_attention: explicit.refused(_FLEX),
            value_only_flex_attention: explicit.refused(_FLEX),
            normalization.layer_norm: compound.layer_norm(eps),
            normalization.rms_norm: explicit.uniform,
            normalization.normalize: written.checked(normalization.check_norm, explicit.uniform),
            bilinear.sum_with_quotient: written.checked(
                bilinear.check_no_softmax, explicit.linearised(bilinear.sum_with_quotient, eps)
            ),
            losses.classes: written.checked(losses.check_classes, explicit.epsilon(eps)),
            spectral.polar: compound.polar(eps),
            losses.mse_loss: compound.squared_difference(eps),
            log1p: written.checked(check_logarithm, explicit.identity(eps, gates=False)),
            constants.inverse: constants.inverse,
            constants.norm: constants.norm,
            powers.power: written.checked(
                powers.check_power, explicit.linearised(powers.power, eps)
            ),
            bilinear.quotient: written.quotient(eps, bilinear.quotient),
            bilinear.quotient_without_softmax: written.quotient(
                eps, bilinear.quotient, softmax_is_constant=True
            ),
        }
        self.by_operation: dict[Operation, dict[Rule, Rule]] = {
            torch.einsum: {bilinear.einsum: product},
            torch.embedding_bag: {lookup: explicit.refused("it returns more than the sums")},
        }
        for operation in spelled("softmax"):
            self.by_operation[operation] = {passthrough: explicit.softmax}
        for operation, without_softmax in EXPONENTIALS_WITHOUT_SOFTMAX.items():
            if not_in_place(operation) is None:
                self.by_operation[operation] = {
                    REGISTRY[operation].rule: written.exponential(eps),
                    without_softmax: written.exponential(eps, softmax_is_constant=True),
                }
        for operation, outputs in _OUTPUTS.items():
            rule = REGISTRY[operation].rule
            self.by_operation[operation] = {rule: explicit.each_output(rule, eps, outputs)}
        for operation in spelled("log", "log2", "log10"):
            self.by_operation[operation] = {REGISTRY[operation].rule: written.logarithm(eps)}
        elements = explicit.elementwise_product(eps)
        for operation in spelled("mul", "multiply"):
            self.by_operation[operation] = {
                bilinear.product: elements,
                bilinear.gated_product: explicit.gated(elements),
            }
        for operation in bilinear.MATRIX_PRODUCTS:
            self.by_operation[operation] = {bilinear.gated_product: explicit.gated(product)}

    def of(self, target: Target, rule: Rule) -> Rule:
        """The explicit form of the rule of a target."""
        if target in _CONJUGATES:
            return explicit.move(self.eps)
        if target in TRAINING or moves(target):
            return rule
        if isinstance(rule, Within):
            table = {function: self.of(function, r) for function, r in rule.table.items()}
            return Within(table, recurrence=rule.recurrence)
        if isinstance(rule, InTheOpen):
            return self.recurrent[target] if rule is RECURRENT.get(target) else rule
        plain = not_in_place(target)
        if plain is not None:
            return self._in_place(target, plain, rule)
        if not isinstance(rule, Hashable):
            return explicit.linearised(rule, self.eps)
        form = self.by_operation.get(target, {}).get(rule) or self.by_rule.get(rule)  # pyright: ignore[reportArgumentType, reportCallIssue]
        if form is not None:
            return form
        if isinstance(rule, Elementwise):
            return explicit.identity(self.eps, rule.gates)
        return explicit.linearised(rule, self.eps)

    def _in_place(self, target: Target, plain: Operation, rule: explicit.Rule) -> Family:
        """The form of the rule of an in-place operation: that of its twin if both are presets'."""
        for preset in (composites.attnlrp, composites.cp_lrp):
            if preset.get(target) is rule:
                form = self.of(plain, preset[plain])
                assert not isinstance(form, Within), "that is for modules"
                return in_place(as_family(form), plain)
        operation: Any = target
        form = explicit.linearised(explicit.on_a_copy(rule), self.eps)
        return in_place(as_family(form), operation)


def moves(target: Target) -> bool:
    """Whether an operation moves values, and their relevance with them."""
    entry = REGISTRY.get(target)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return entry is not None and entry.source in _MOVES and target not in _SUMS


def not_in_place(target: Target) -> Operation | None:
    """The operation whose in-place twin a target is, if it is one."""
    name = getattr(target, "__name__", "")
    if target not in REGISTRY:
        return None
    if name == "__ipow__":
        return torch.pow
    if not name.endswith("_") or name.startswith("__"):
        return None
    return next((twin for twin in spelled(name[:-1]) if twin in REGISTRY), None)


attnlrp = explicit_form(composites.attnlrp)
"""AttnLRP (Achtibat et al. 2024), in the explicit formulation."""

cp_lrp = explicit_form(composites.cp_lrp)
"""CP-LRP (Ali et al. 2022), in the explicit formulation."""

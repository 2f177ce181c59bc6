"""Relevance within a model against what happens there: ablation, and patching.

To first order a component of activation a and gradient g, replaced by r, changes a target by
(r − a) · g. With the gradient of an LRP composite in the place of the plain one that is another
prediction, and how good it is can be measured by replacing the component.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lxt._version import __version__
from lxt.batching import as_batch_size
from lxt.composite import Composite
from lxt.composites import as_composite
from lxt.entries import OnUnknown
from lxt.errors import InvalidComposite, InvalidInput, InvalidModel, InvalidTarget
from lxt.evaluate.components import Component, Groups, components_of
from lxt.evaluate.interventions import Interventions
from lxt.evaluate.runs import Replacement, Row, Sharing
from lxt.explained import ExplainedTarget
from lxt.inputs import TokenBatch, encode, input_embeddings
from lxt.latent.anatomy import Anatomy, anatomy_of
from lxt.latent.units import Site, Unit
from lxt.progress import as_progress, progress_of
from lxt.targets import Every, Prediction, Target, task_of
from lxt.text_case import TextCase

__all__ = ["Composites", "Positions", "Reference", "ablation", "patching"]

Reference = Literal["mean", "mean at position", "zero"]
Positions = Literal["all", "each"]
Composites = Composite | str | Sequence[Composite | str] | Mapping[str, Composite | str]


# Short passes, for rows are one up to the first replacement of a batch.
_TOKENS_AT_ONCE = {"cpu": 1024}
_TOKENS_ON_ACCELERATORS = 65536


@torch.inference_mode(False)
def ablation(
    model: nn.Module,
    inputs: Any,
    *,
    tokenizer: Any = None,
    target: Target | Sequence[Target] | None = None,
    components: Sequence[str | Site] | str | Site = ("heads", "neurons", "attention", "mlp"),
    composites: Composites = ("attnlrp", "cp_lrp", "gradient"),
    reference: Reference = "mean",
    reference_inputs: Any = None,
    groups: Groups = 16,
    positions: Positions = "all",
    on_unknown: OnUnknown | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Interventions:
    """Ablate the components of a model one by one, beside what relevance predicts.

    A component's relevance Σ a · g, over its channels and positions, is what it contributes as it
    is; to ablate it against a reference r takes Σ (a − r) · g away, to first order. So there are
    two predictions for each composite, `"attnlrp"` and `"attnlrp, difference"`, which are one where
    the reference is zero. All of them are compared with the same ablations, which run as rows of
    batches.

    Args:
        model: as for `lxt.explain`, in evaluation mode, and under no composite.
        inputs: as for `lxt.explain`, one row or several.
        tokenizer: as for `lxt.explain`.
        target: one for all rows, or a list or tuple with one for each: `Logit`, `Contrast`, `Label`
            or by default the model's own prediction, the same whatever is ablated.
        components: what is ablated: `"heads"`, each by itself, as the output projection reads them;
            `"neurons"` of MLPs, group by group, as the last projection reads them; `"attention"`
            and `"mlp"`, what these projections put out; `"residual"`, what layers put out; or an
            `lxt.Site`, or the path of modules, whose whole vector is ablated, or each head.
        composites: the rules, by name, or as a mapping from what they are to be called. They must
            hand back gradients. `"gradient"` is gradient × activation.
        reference: `"mean"` over all tokens of the reference inputs, `"mean at position"` over their
            rows at each position, or `"zero"`.
        reference_inputs: texts or ids; by default `inputs`.
        groups: so many groups of neighbouring neurons in each MLP, or lists of neurons.
        positions: `"all"` ablates a component at all tokens at once, `"each"` at one at a time.
        on_unknown: as for `lxt.explain`.
        batch_size: how many rows run at a time; by default as many as make up to 1024 tokens on a
            CPU, 65,536 elsewhere.
        progress: as for `lxt.explain`.

    Returns:
        Effects (the target as it is, less the target with the component ablated) and predictions.

    Raises:
        InvalidInput: inputs, components, groups or a reference that there are not.
        InvalidTap: nothing of a kind was found, or it does not run once in a forward pass.
        InvalidTarget: as for `lxt.explain`; or a list that has not one for each row, or units.
        InvalidComposite: as for `lxt.explain`; or it hands back relevance.
        InvalidModel: as for `lxt.explain`; or the model is in training mode.
        LxtError: what else `lxt.explain` raises.

    """
    methods, shown = _as_composites(composites), as_progress(progress)
    _require_one_of(reference, Reference, "reference")
    rows = _rows(model, inputs, tokenizer, target, "inputs")
    parts = components_of(components, model, _anatomy(model, rows[0]), groups)
    sites = list(dict.fromkeys(part.site for part in parts))
    means = _Means(reference, sites)
    if reference != "zero":
        references = rows
        if reference_inputs is not None:
            anywhere = None if task_of(model) == "label" else Prediction(position=0)
            references = _rows(model, reference_inputs, tokenizer, anywhere, "reference_inputs")
        for row in references:
            means.add(row.activations(sites))
    elif reference_inputs is not None:
        raise InvalidInput('reference="zero" takes no reference_inputs')
    work = _Work(model, "ablation", parts, methods, on_unknown, positions, batch_size)
    work.absolute = True
    work.relative = reference != "zero"
    with progress_of(len(rows), "ablating", shown=shown) as tick:
        for number, row in enumerate(rows):
            here = row.activations(sites)
            work.put(number, row, here, means.like(here, number))
            tick(1)
    return work.result({"reference": reference})


@torch.inference_mode(False)
def patching(
    model: nn.Module,
    clean: Any,
    corrupt: Any,
    *,
    tokenizer: Any = None,
    target: Target | Sequence[Target] | None = None,
    components: Sequence[str | Site] | str | Site = ("residual", "attention", "mlp"),
    composites: Composites = ("attnlrp", "cp_lrp", "gradient"),
    groups: Groups = 16,
    positions: Positions = "each",
    on_unknown: OnUnknown | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Interventions:
    """Patch the components of a clean run into a corrupt one, beside what relevance predicts.

    Activation patching runs the corrupt prompt with one component's activation of the clean one.
    Attribution patching approximates its effect by Σ (a_clean − a_corrupt) · g, with the gradient g
    of the corrupt run (Nanda 2023); relevance patching takes an LRP gradient there (Jafari et al.
    2025, "RelP: Faithful and Efficient Circuit Discovery via Relevance Patching"). Here
    `"gradient"` is the former, and each other composite one of the latter.

    Where both runs agree there is nothing to patch, so this is no intervention, and not among the
    results: of a causal model the positions before the first token that differs.

    Args:
        model: as for `ablation`.
        clean: as for `lxt.explain`, one row or several.
        corrupt: as many rows, of the same lengths.
        tokenizer: as for `lxt.explain`.
        target: as for `ablation`, such as `lxt.Contrast(" Mary", " John")` for each row. The
            model's own prediction is that of the clean run.
        components: as for `ablation`; each position by itself, or all of them at once.
        composites: as for `ablation`.
        groups: as for `ablation`.
        positions: `"each"`, or `"all"` at once.
        on_unknown: as for `lxt.explain`.
        batch_size: as for `ablation`.
        progress: as for `lxt.explain`.

    Returns:
        Effects (the target with the component patched, less that of the corrupt run) and
        predictions.

    Raises:
        InvalidInput: rows or lengths that differ in number, or prompts that don't differ.
        LxtError: see `ablation`.

    """
    methods, shown = _as_composites(composites), as_progress(progress)
    rows = _rows(model, clean, tokenizer, target, "clean")
    others = _rows(model, corrupt, tokenizer, target, "corrupt")
    if len(rows) != len(others):
        raise InvalidInput(f"there are {len(rows)} clean prompts, and {len(others)} corrupt ones")
    for number, (one, other) in enumerate(zip(rows, others, strict=True)):
        _require_pair(one.case.batch, other.case.batch, number)
        if one.case.aims[0][0].position != other.case.aims[0][0].position:
            raise InvalidInput(
                f"pair {number} is read at positions {one.case.aims[0][0].position} and "
                f"{other.case.aims[0][0].position}: give a target with one position=…"
            )
    parts = components_of(components, model, _anatomy(model, rows[0]), groups)
    sites = list(dict.fromkeys(part.site for part in parts))
    work = _Work(model, "patching", parts, methods, on_unknown, positions, batch_size)
    with progress_of(len(rows), "patching", shown=shown) as tick:
        for number, (one, other) in enumerate(zip(rows, others, strict=True)):
            changed = other.read_as(one)
            work.put(number, changed, changed.activations(sites), one.activations(sites))
            tick(1)
    return work.result({})


class _Work:
    """Interventions on rows, one row after another.

    Attributes:
        absolute: whether a · g is among the predictions.
        relative: whether (a − r) · g is.

    """

    def __init__(
        self,
        model: nn.Module,
        kind: str,
        parts: Sequence[Component],
        methods: Mapping[str, Composite],
        on_unknown: OnUnknown | None,
        positions: Any,
        batch_size: Any,
    ) -> None:
        _require_one_of(positions, Positions, "positions")
        self._batch_size = as_batch_size(batch_size)
        self._model, self._kind, self._parts, self._methods = model, kind, parts, methods
        self._on_unknown: OnUnknown | None = on_unknown
        self._positions = positions
        self._sharing = Sharing()
        self.absolute, self.relative = False, True
        self._component: list[str] = []
        self._site: list[str] = []
        self._numbers: list[tuple[int, int, int, int]] = []
        self._effects: list[Tensor] = []
        self._predicted: dict[str, list[float]] = {}
        self._targets: list[ExplainedTarget] = []

    def put(
        self,
        number: int,
        row: Row,
        here: Mapping[Site, Tensor],
        there: Mapping[Site, Tensor],
    ) -> None:
        """Put the values `there` [tokens, channels] in the place of those `here`, part by part."""
        sign = 1 if self._kind == "patching" else -1
        changes, start = [], len(self._numbers)
        for part in self._parts:
            a, r = here[part.site], there[part.site]
            for unit, channels in part.parts(a.shape[-1]):
                channels = channels.to(a.device)
                for position, tokens in self._places(len(a)):
                    values = r[tokens][:, channels]
                    if torch.equal(values, a[tokens][:, channels]):
                        continue
                    changes.append(Replacement(part.site, tokens, channels, values))
                    self._component.append(part.kind)
                    self._site.append(part.name)
                    self._numbers.append((number, part.layer, unit, position))
        if len(self._numbers) == start:
            raise InvalidInput(
                f"row {number}: every component is already what it is to be replaced by, so there "
                "is nothing to compare"
            )
        for name, composite in self._methods.items():
            gradients = row.gradients(list(here), composite, self._on_unknown)
            self._predict(name, changes, here, gradients, sign)
        tokens = _TOKENS_AT_ONCE.get(row.weights.device.type, _TOKENS_ON_ACCELERATORS)
        at_once = self._batch_size or tokens // row.tokens
        effects = row.effects(changes, max(at_once - 1, 1), self._sharing)
        self._effects.append(sign * effects)
        self._targets.append(row.explained)

    def _places(self, tokens: int) -> list[tuple[int, slice]]:
        if self._positions == "all":
            return [(-1, slice(0, tokens))]
        return [(position, slice(position, position + 1)) for position in range(tokens)]

    def _predict(
        self,
        name: str,
        changes: Sequence[Replacement],
        here: Mapping[Site, Tensor],
        gradients: Mapping[Site, Tensor],
        sign: int,
    ) -> None:
        for change in changes:
            a = here[change.site][change.tokens][:, change.channels].double()
            g = gradients[change.site][change.tokens][:, change.channels].double()
            found = {}
            if self.absolute:
                found[name] = a * g
            if self.relative:
                key = f"{name}, difference" if self.absolute else name
                found[key] = sign * (change.values.double() - a) * g
            for key, product in found.items():
                self._predicted.setdefault(key, []).append(float(product.sum()))

    def result(self, facts: Mapping[str, str]) -> Interventions:
        """All of them."""
        import transformers

        config: Any = getattr(self._model, "config", None)
        name = getattr(config, "name_or_path", None) or type(self._model).__name__
        numbers = torch.tensor(self._numbers, dtype=torch.int64)
        row, layer, unit, position = numbers.unbind(1)
        return Interventions(
            self._kind,
            self._component,
            row,
            self._site,
            layer,
            unit,
            position,
            torch.cat(self._effects),
            {
                key: torch.tensor(values, dtype=torch.float64)
                for key, values in self._predicted.items()
            },
            self._targets,
            {
                "model": str(name),
                "class": type(self._model).__name__,
                "composites": ", ".join(self._methods),
                "positions": self._positions,
                **facts,
                "dtype": str(next(self._model.parameters()).dtype).removeprefix("torch."),
                "lxt": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        )


class _Means:
    """What components are replaced by in an ablation."""

    def __init__(self, reference: Reference, sites: Sequence[Site]) -> None:
        self._reference = reference
        self._sums: dict[Site, Tensor] = {}
        self._counts = torch.zeros(0, dtype=torch.float64)
        self._sites = sites

    def add(self, found: Mapping[Site, Tensor]) -> None:
        """One row of the reference: of each site [tokens, channels]."""
        tokens = len(found[self._sites[0]])
        more = max(tokens - len(self._counts), 0)
        self._counts = nn.functional.pad(self._counts, (0, more))
        self._counts[:tokens] += 1
        for site, x in found.items():
            old = self._sums.get(site, x.new_zeros(0, x.shape[-1], dtype=torch.float64))
            self._sums[site] = nn.functional.pad(old, (0, 0, 0, more))
            self._sums[site][:tokens] += x

    def like(self, here: Mapping[Site, Tensor], row: int) -> dict[Site, Tensor]:
        """The reference of each site, in the shape of what passes it.

        Raises:
            InvalidInput: no row of the reference reaches as far.

        """
        if self._reference == "zero":
            return {site: torch.zeros_like(x) for site, x in here.items()}
        found = {}
        for site, x in here.items():
            sums, counts = self._sums[site], self._counts.to(x.device)
            if self._reference == "mean":
                found[site] = (sums.sum(0) / counts.sum()).to(x).expand_as(x)
                continue
            if len(x) > len(counts):
                raise InvalidInput(
                    f"row {row} has {len(x)} tokens, and the reference no more than {len(counts)}, "
                    "so there is no mean at each position"
                )
            found[site] = (sums[: len(x)] / counts[: len(x), None]).to(x)
        return found


def _rows(model: nn.Module, inputs: Any, tokenizer: Any, target: Any, argument: str) -> list[Row]:
    """Each row by itself, with its target."""
    input_embeddings(model)  # or raise
    if any(module.training for module in model.modules()):
        raise InvalidModel(
            f"{type(model).__name__} is in training mode, where dropout hides the effect of "
            "anything else: call model.eval()"
        )
    batch = encode(inputs, tokenizer, model)
    count = len(batch.ids)
    targets = list(target) if isinstance(target, list | tuple) else [target] * count
    if len(targets) != count:
        raise InvalidTarget(f"there are {len(targets)} targets for {count} rows of {argument}")
    for one in targets:
        if isinstance(one, Unit | Every | list | tuple):
            raise InvalidTarget(
                f"{one!r}: a row has one target here, a logit or a difference of logits: "
                "lxt.Logit(token), lxt.Contrast(a, b), lxt.Label(name)"
            )
    return [
        Row(TextCase(model, _alone(batch, row), tokenizer=tokenizer, target=one))
        for row, one in enumerate(targets)
    ]


def _alone(batch: TokenBatch, row: int) -> dict[str, Any]:
    one = batch.of_rows([row])
    return {
        "input_ids": one.right_padded(one.ids),
        "attention_mask": one.right_padded(one.mask.long()),
        **{name: one.right_padded(values) for name, values in one.per_token.items()},
        **one.other,
    }


def _require_pair(clean: TokenBatch, corrupt: TokenBatch, number: int) -> None:
    lengths = clean.lengths()[0], corrupt.lengths()[0]
    if lengths[0] != lengths[1]:
        raise InvalidInput(
            f"pair {number}: the clean prompt has {lengths[0]} tokens and the corrupt one "
            f"{lengths[1]}; what is patched must have the same positions in both"
        )
    if torch.equal(clean.ids[clean.mask], corrupt.ids[corrupt.mask]):
        raise InvalidInput(f"pair {number}: the clean prompt and the corrupt one are the same")


def _anatomy(model: nn.Module, row: Row) -> Any:
    def anatomy() -> Anatomy:
        return anatomy_of(model, lambda: row.case.read([0]))

    return anatomy


def _as_composites(composites: Any) -> dict[str, Composite]:
    """Composites by what they are called.

    Raises:
        InvalidComposite: one of them is none, or hands back relevance, or there are no two names.

    """
    if isinstance(composites, str | Composite):
        composites = [composites]
    if isinstance(composites, Mapping):
        named = [(str(name), as_composite(one)) for name, one in composites.items()]
    else:
        found = [as_composite(one) for one in composites]
        named = [(one.name, one) for one in found]
    if not named:
        raise InvalidComposite("composites is empty: give one, such as 'attnlrp'")
    names = [name for name, _ in named]
    for name, one in named:
        if one.formulation != "gradient":
            raise InvalidComposite(
                f"{name!r} hands back relevance, and gradients are needed here: give the efficient "
                "one of its kind, such as lxt.attnlrp"
            )
        if names.count(name) > 1:
            raise InvalidComposite(
                f"two composites are called {name!r}: give a mapping, {{name: composite}}"
            )
    return dict(named)


def _require_one_of(given: Any, kind: Any, argument: str) -> None:
    if given not in get_args(kind):
        known = ", ".join(map(repr, get_args(kind)))
        raise InvalidInput(f"{argument}={given!r} is none of {known}")

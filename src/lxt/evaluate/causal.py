"""Relevance within a model against what happens there: ablation, and patching.

To first order a component of activation a and gradient g, replaced by r, changes a target by
(r − a) · g. With the gradient of an LRP composite in the place of the plain one that is another
prediction, and how good it is can be measured by replacing the component.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lxt.entries import OnUnknown
from lxt.errors import InvalidInput
from lxt.evaluate.arguments import (
    Composites,
    as_composites,
    require_one_of,
    require_pair,
    rows_of,
)
from lxt.evaluate.components import Groups, components_of
from lxt.evaluate.interventions import Interventions
from lxt.evaluate.runs import Row
from lxt.evaluate.work import Positions, Work
from lxt.latent.anatomy import Anatomy, anatomy_of
from lxt.latent.units import Site
from lxt.progress import as_progress, progress_of
from lxt.targets import Prediction, Target, task_of

__all__ = ["Reference", "ablation", "patching"]

Reference = Literal["mean", "mean at position", "zero"]


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
        batch_size: how many rows run at a time, at least 2; by default as many as make up
            to 1024 tokens on a CPU, 65,536 elsewhere.
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
    methods, shown = as_composites(composites), as_progress(progress)
    require_one_of(reference, Reference, "reference")
    rows = rows_of(model, inputs, tokenizer, target, "inputs")
    parts = components_of(components, model, _anatomy(model, rows[0]), groups)
    sites = list(dict.fromkeys(part.site for part in parts))
    means = _Means(reference, sites)
    if reference != "zero":
        references = rows
        if reference_inputs is not None:
            anywhere = None if task_of(model) == "label" else Prediction(position=0)
            references = rows_of(model, reference_inputs, tokenizer, anywhere, "reference_inputs")
        for row in references:
            means.add(row.activations(sites))
    elif reference_inputs is not None:
        raise InvalidInput('reference="zero" takes no reference_inputs')
    work = Work(model, "ablation", parts, methods, on_unknown, positions, batch_size)
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
    methods, shown = as_composites(composites), as_progress(progress)
    rows = rows_of(model, clean, tokenizer, target, "clean")
    others = rows_of(model, corrupt, tokenizer, target, "corrupt")
    if len(rows) != len(others):
        raise InvalidInput(f"there are {len(rows)} clean prompts, and {len(others)} corrupt ones")
    for number, (one, other) in enumerate(zip(rows, others, strict=True)):
        require_pair(one.case.batch, other.case.batch, number)
        if one.case.aims[0][0].position != other.case.aims[0][0].position:
            raise InvalidInput(
                f"pair {number} is read at positions {one.case.aims[0][0].position} and "
                f"{other.case.aims[0][0].position}: give a target with one position=…"
            )
    parts = components_of(components, model, _anatomy(model, rows[0]), groups)
    sites = list(dict.fromkeys(part.site for part in parts))
    work = Work(model, "patching", parts, methods, on_unknown, positions, batch_size)
    with progress_of(len(rows), "patching", shown=shown) as tick:
        for number, (one, other) in enumerate(zip(rows, others, strict=True)):
            changed = other.read_as(one)
            work.put(number, changed, changed.activations(sites), one.activations(sites))
            tick(1)
    return work.result({})


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


def _anatomy(model: nn.Module, row: Row) -> Callable[[], Anatomy]:
    def anatomy() -> Anatomy:
        return anatomy_of(model, lambda: row.case.read([0]))

    return anatomy

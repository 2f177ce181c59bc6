"""`explain`: from a model and a prompt to relevance, in one forward and one backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lxt._version import __version__
from lxt.backward import Backward
from lxt.batching import Footprint, Halving, as_batch_size, rows_of_like_length, tokens_at_once
from lxt.composite import Composite
from lxt.composites import as_composite
from lxt.engine.segments import Checkpoint
from lxt.entries import OnUnknown
from lxt.errors import InvalidTarget
from lxt.explained import ExplainedTarget
from lxt.explanation import Explanation
from lxt.gradients import compute_dtype
from lxt.inputs import input_embeddings
from lxt.latent.anatomy import anatomy_of
from lxt.latent.inside import Inside, as_units
from lxt.latent.store import Store
from lxt.latent.taps import AnyTap, as_taps
from lxt.latent.units import Site, Unit
from lxt.many import Found, ManyTargets
from lxt.memory import as_bytes
from lxt.progress import as_progress, progress_of
from lxt.targets import Every, Readout, Targets
from lxt.text_case import TextCase
from lxt.tokens import readable_tokens

__all__ = ["explain", "look_within"]


@torch.inference_mode(False)  # and with gradients, whatever the caller has switched off
def explain(
    model: nn.Module,
    inputs: Any,
    *,
    tokenizer: Any = None,
    target: Targets | None = None,
    taps: Sequence[AnyTap | Site | str] | AnyTap | Site | str = (),
    through: Unit | Sequence[Unit] | None = None,
    composite: Composite | str = "attnlrp",
    on_unknown: OnUnknown | None = None,
    reduce: Literal["sum"] | None = None,
    batch_size: int | None = None,
    memory_budget: int | str | None = None,
    checkpoint: Checkpoint = None,
    progress: bool | None = None,
) -> Explanation:
    """Say how much each input token contributed to something that the model computed.

    For causal language models, masked language models and sequence classifiers. The relevance of a
    token is Σ x · ∂z/∂x over the channels of its embedding x, under the rules of the composite (of
    an explicit one, which returns relevance, the sum of what arrives).

    Many targets share forward passes, and their backward passes run in batches. In a causal model
    a target needs no token after its position: where that is cheaper, targets are explained by
    passes over the tokens up to them, once it is proved that the logits there are the same.

    Args:
        model: a PyTorch model with input embeddings, on any device, in any floating point type.
        inputs: a text, a list of texts, token ids [tokens] or [batch, tokens], or a mapping with
            "input_ids", "attention_mask" and whatever else the model's forward takes. Padding may
            be on either side. A tensor in it that has as many entries as there are rows is taken
            to have one for each.
        tokenizer: reads texts and spells tokens; needed for texts.
        target: what to explain: `Logit`, `Contrast` or `Label`, or a `Unit` within the model; by
            default the model's own prediction. Or many: a list or tuple of these, or `Every`. With
            a batch, the same targets for each row.
        taps: the places within the model whose relevance, and activation, is read in the same
            passes: `Residual`, `Heads`, `Neurons`, `Tap`, or paths of modules such as
            `"layers.*.mlp.act_fn"`. It is in `Explanation.latent`.
        through: only the relevance that flows through this unit, or any of several at one site; of
            units at several sites, through one at each. What flows past a site in parallel to it,
            as along the residual stream, is left out. Taps behind a site, towards the output, see
            relevance before that (conditional relevance: Achtibat et al. 2023, "From attribution
            maps to human-understandable explanations through Concept Relevance Propagation").
        composite: the rules, or the name of a preset.
        on_unknown: what becomes of an operation without a rule, see `Composite`.
        reduce: `"sum"` explains the sum of many targets, in one forward and one backward pass.
        batch_size: how many rows run at a time. Rows of similar length run together, whatever
            their order. By default as many as make up to 4096 tokens on a CPU, 65,536 elsewhere
            (longer passes save no time), and fit the memory budget.
        memory_budget: bytes, or a text such as `"2GiB"`, that the activations and gradients of
            passes may take, by an estimate from the shapes of the weights; at least one row and
            target run at a time. By default half of what is free on the model's device. If an
            accelerator runs out of memory nevertheless, the work goes on in halves.
        checkpoint: keeps the activations of few layers only and computes the others again in the
            backward pass, see `Composite.register`; with many targets once for each chunk of them.
        progress: whether to show a progress bar on standard error once work takes more than a
            moment; by default only if that is a terminal.

    Returns:
        Relevance [tokens], or [batch, tokens] for a batch, in float32 (float64 for a float64
        model), exactly 0 at padding; with tokens, target and provenance. For many targets
        [targets, tokens] or [batch, targets, tokens], unless they are summed up; `axes` names
        them. `Every` has as many targets in a row as that has positions, so in a batch of unequal
        rows the shorter ones end with targets of relevance 0, which `e[row]` leaves out.

    Raises:
        InvalidModel: no module, no input embeddings, or an output that is none of the three kinds.
        InvalidInput: nothing to explain, too long, or ids out of range; or a batch size, budget or
            progress that is none.
        InvalidTarget: a token, label or position that isn't there; no targets at all; or `reduce`
            of a single one.
        InvalidTap: a tap or unit that isn't there, or that can't be read.
        InvalidComposite: a name that isn't there.
        AlreadyRegistered: the model is under a composite.
        UnknownOperation: the model runs an operation without a rule.
        NonFiniteLogits: the explained logits hold NaN or infinity.
        NonFiniteRelevance: the backward pass overflows.
        CheckpointFailed: see `Composite.register`.
        torch.OutOfMemoryError: an accelerator has no room for one row and one target.

    Warns:
        SequentialBackwardWarning: the model's backward pass can't take several targets at once.

    """
    composite = as_composite(composite)
    batch_size, shown = as_batch_size(batch_size), as_progress(progress)
    is_many = isinstance(target, list | tuple | Every)
    _check_reduce(reduce, is_many)
    look = look_within(model, target, taps, through, composite)
    case = TextCase(model, inputs, tokenizer=tokenizer, target=target, inside=look)
    device = next(model.parameters()).device
    budget = as_bytes(memory_budget, device)
    size = Footprint(model)
    tokens = min(budget // (size.saved + size.gradients), tokens_at_once(device))
    groups = rows_of_like_length(case.batch.lengths(), batch_size, tokens)
    one_number = not is_many or reduce == "sum"
    steps = len(case.aims) if one_number else sum(map(len, case.aims))
    result = _Result(case, 1 if one_number else case.count)
    with (
        progress_of(steps, "explaining", shown=shown) as tick,
        composite.context(model, on_unknown=on_unknown, checkpoint=checkpoint) as propagation,
    ):
        if case.inside is not None:
            propagation.probes = case.inside.probes
        backward = Backward(composite, type(model).__name__)
        many = ManyTargets(backward, size, budget, tick, result.latent.put)

        def work(rows: Sequence[int]) -> None:
            part = case.of_rows(rows)
            result.put(rows, *(many.total(part) if one_number else many.each(part)))

        Halving()(groups, work)
    return result.explanation(
        is_many and reduce is None, tokenizer, _provenance(model, composite, case.readout)
    )


def _check_reduce(reduce: Any, is_many: bool) -> None:
    if reduce not in (None, "sum"):
        raise InvalidTarget(f'reduce is {reduce!r}: give "sum", or None for each target by itself')
    if reduce and not is_many:
        raise InvalidTarget(
            f"reduce={reduce!r} is of many targets: give a list of them, or lxt.Every()"
        )


def look_within(
    model: nn.Module, target: Any, taps: Any, through: Any, composite: Composite
) -> Callable[[Callable[[], object]], Inside] | None:
    """What is looked at within the model, once there is a way to run it for a moment."""
    found, conditions = as_taps(taps), as_units(through, "through")
    each = target if isinstance(target, list | tuple) else [target]
    units = [unit for unit in each if isinstance(unit, Unit)]
    if not (found or conditions or units):
        return None

    def look(run: Callable[[], object]) -> Inside:
        explicit = composite.formulation == "relevance"
        anatomy = functools.partial(anatomy_of, model, run)
        return Inside(model, anatomy, found, units, conditions, explicit)

    return look


class _Result:
    """Relevance [batch, targets, width] and targets, put together from groups of rows."""

    def __init__(self, case: TextCase, targets: int) -> None:
        dtype = compute_dtype(input_embeddings(case.model).weight.dtype)
        rows, width = case.batch.mask.shape
        self._batch = case.batch
        self._relevance = torch.zeros(rows, targets, width, dtype=dtype, device="cpu")
        self._targets: list[list[ExplainedTarget]] = [[]] * rows
        self.latent = Store(rows, targets, width)

    def put(self, rows: Sequence[int], relevance: Tensor, targets: Found) -> None:
        """Relevance [targets, some rows, width]."""
        self._relevance[list(rows), : len(relevance)] = relevance.movedim(0, 1)
        for row, explained in zip(rows, targets, strict=True):
            self._targets[row] = explained

    def explanation(self, is_many: bool, tokenizer: Any, provenance: dict[str, str]) -> Explanation:
        """All of it, with or without an axis of rows, and of targets."""
        batch, relevance = self._batch, self._relevance
        rows = zip(batch.ids, batch.mask, strict=True)
        tokens = [_labels(row, keep, tokenizer) for row, keep in rows]
        relevance = relevance if is_many else relevance[:, 0]
        targets: Any = self._targets if is_many else [row[0] for row in self._targets]
        latent = self.latent.latents(is_many=is_many, is_batch=not batch.single)
        if batch.single:
            mask = batch.mask[0]
            return Explanation(
                relevance[0], tokens[0], batch.ids[0], mask, targets[0], provenance, latent=latent
            )
        return Explanation(
            relevance, tokens, batch.ids, batch.mask, targets, provenance, latent=latent
        )


def _labels(ids: Tensor, keep: Tensor, tokenizer: Any) -> list[str]:
    """The labels of a row: its tokens read as one text, and each token of padding by itself."""
    text = iter(readable_tokens(tokenizer, ids[keep].tolist()))
    return [
        next(text) if kept else readable_tokens(tokenizer, [token])[0]
        for token, kept in zip(ids.tolist(), keep.tolist(), strict=True)
    ]


def _provenance(model: nn.Module, composite: Composite, readout: Readout) -> dict[str, str]:
    import transformers

    config: Any = getattr(model, "config", None)
    name = getattr(config, "name_or_path", None) or type(model).__name__
    return {
        "model": str(name),
        "class": type(model).__name__,
        "composite": composite.name,
        "task": readout.task,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "lxt": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }

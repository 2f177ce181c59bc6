"""`explain`: from a model and a prompt to relevance, in one forward and one backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lxt._version import __version__
from lxt.composite import Composite, OnUnknown
from lxt.composites import as_composite
from lxt.errors import NonFiniteRelevance
from lxt.explanation import ExplainedTarget, Explanation
from lxt.gradients import compute_dtype
from lxt.inputs import TokenBatch
from lxt.passes import Pass
from lxt.targets import Readout, Target
from lxt.text_case import TextCase
from lxt.tokens import readable_tokens

__all__ = ["explain"]


@torch.inference_mode(False)  # and with gradients, whatever the caller has switched off
def explain(
    model: nn.Module,
    inputs: Any,
    *,
    tokenizer: Any = None,
    target: Target | None = None,
    composite: Composite | str = "attnlrp",
    on_unknown: OnUnknown | None = None,
) -> Explanation:
    """Say how much each input token contributed to something that the model computed.

    For causal language models, masked language models and sequence classifiers. The relevance of a
    token is Σ x · ∂z/∂x over the channels of its embedding x, under the rules of the composite (of
    an explicit one, which returns relevance, the sum of what arrives).

    Args:
        model: a PyTorch model with input embeddings, on any device, in any floating point type.
        inputs: a text, a list of texts, token ids [tokens] or [batch, tokens], or a mapping with
            "input_ids", "attention_mask" and whatever else the model's forward takes. Padding may
            be on either side.
        tokenizer: reads texts and spells tokens; needed for texts.
        target: what to explain: `Logit`, `Contrast` or `Label`; by default the model's own
            prediction. With a batch, the same target for each row.
        composite: the rules, or the name of a preset.
        on_unknown: what becomes of an operation without a rule, see `Composite`.

    Returns:
        Relevance [tokens], or [batch, tokens] for a batch, in float32 (float64 for a float64
        model), exactly 0 at padding; with tokens, target and provenance.

    Raises:
        InvalidModel: no module, no input embeddings, or an output that is none of the three kinds.
        InvalidInput: nothing to explain, too long, or ids out of range.
        InvalidTarget: a token, label or position that isn't there.
        InvalidComposite: a name that isn't there.
        AlreadyRegistered: the model is under a composite.
        UnknownOperation: the model runs an operation without a rule.
        NonFiniteLogits: the explained logits hold NaN or infinity.

    """
    composite = as_composite(composite)
    case = TextCase(model, inputs, tokenizer=tokenizer, target=target)
    with composite.context(model, on_unknown=on_unknown):
        run = case.forward()
    case.require_path(run)
    relevance = _relevance(run, composite)
    values = run.output.detach().cpu()
    targets = [
        case.seed.explained(row, case.readout, position)
        for row, position in zip(values, case.positions or [None] * len(values), strict=True)
    ]
    return _explanation(
        case.batch, relevance, targets, tokenizer, _provenance(model, composite, case.readout)
    )


def _relevance(run: Pass, composite: Composite) -> Tensor:
    """Σ x · ∂(w · z)/∂x over channels, [batch, tokens].

    In the explicit formulation the backward pass takes w · z and returns relevance as it is.

    The backward pass of a float16 model starts from a scaled seed, the largest power of 2 under
    which nothing overflows, so that small gradients don't vanish.
    """
    logits, weights, leaf = run.output, run.seed, run.leaves["inputs_embeds"]
    wide = compute_dtype(leaf.dtype)
    explicit = composite.formulation == "relevance"
    seed = weights * logits.detach() if explicit else weights
    factor = 1 if explicit else leaf.detach().to(wide)
    narrow = leaf.dtype is torch.float16
    for exponent in range(14, -11, -4) if narrow else (0,):
        (gradient,) = torch.autograd.grad(logits, leaf, seed * 2.0**exponent, retain_graph=narrow)
        if gradient.isfinite().all():
            return (gradient.to(wide) * factor).sum(-1) * 2.0**-exponent
    raise NonFiniteRelevance(
        "the backward pass overflows: run the model in a wider dtype, such as bfloat16 or float32"
    )


def _explanation(
    batch: TokenBatch,
    relevance: Tensor,
    targets: list[ExplainedTarget],
    tokenizer: Any,
    provenance: dict[str, str],
) -> Explanation:
    relevance = batch.as_given(relevance.cpu())
    rows = zip(batch.ids, batch.mask, strict=True)
    tokens = [_labels(row, keep, tokenizer) for row, keep in rows]
    if batch.single:
        return Explanation(
            relevance[0], tokens[0], batch.ids[0], batch.mask[0], targets[0], provenance
        )
    return Explanation(relevance, tokens, batch.ids, batch.mask, targets, provenance)


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

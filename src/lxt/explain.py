"""`explain`: from a model and a prompt to relevance, in one forward and one backward pass."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lxt._version import __version__
from lxt.composite import Composite, OnUnknown
from lxt.composites import by_name
from lxt.errors import (
    InvalidComposite,
    InvalidInput,
    InvalidModel,
    InvalidTarget,
    NonFiniteLogits,
    NonFiniteRelevance,
)
from lxt.explanation import ExplainedTarget, Explanation
from lxt.gradients import compute_dtype
from lxt.inputs import EmbeddingLeaf, TokenBatch, encode, input_embeddings
from lxt.targets import Label, Prediction, Readout, Seed, Target, task_of
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
    composite = _composite(composite)
    embedding = input_embeddings(model)
    batch = encode(inputs, tokenizer, model)
    readout = _readout(model, target, tokenizer, embedding)
    seed = _seed(target, readout)
    positions = _positions(seed, readout, batch, model)

    arguments = _arguments(model, batch, embedding, positions)
    with composite.context(model, on_unknown=on_unknown), EmbeddingLeaf(model) as leaf:
        output = model(**arguments)
    logits = _explained_logits(output, positions, max(batch.lengths()), readout, model)
    _check_finite(logits, positions)
    rows, longest = len(batch.ids), max(batch.lengths())
    if leaf.value is None or leaf.value.shape[:2] != (rows, longest) or not logits.requires_grad:
        raise InvalidModel(
            f"the logits of {type(model).__name__} do not come from its input embeddings "
            "[batch, tokens, channels]: explain it with `with composite.context(model):`"
        )
    values = logits.detach()
    weights = torch.stack([seed.weights(row) for row in values])
    relevance = _relevance(logits, weights, leaf.value, composite)
    targets = [
        seed.explained(row, readout, position)
        for row, position in zip(values.cpu(), positions or [None] * len(values), strict=True)
    ]
    return _explanation(
        batch, relevance, targets, tokenizer, _provenance(model, composite, readout)
    )


def _composite(composite: Composite | str) -> Composite:
    if isinstance(composite, str):
        return by_name(composite)
    if not isinstance(composite, Composite):
        raise InvalidComposite(f"{composite!r} is no composite: give lxt.attnlrp, or its name")
    return composite


def _readout(
    model: nn.Module, target: Target | None, tokenizer: Any, embedding: nn.Embedding
) -> Readout:
    """What the model's output means, from its class's name and its configuration."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise InvalidModel(
            f"{type(model).__name__} is an encoder-decoder, whose prompt alone doesn't say what it "
            "reads on the decoder's side: explain it with `with composite.context(model):`"
        )
    name = type(model).__name__
    if any(kind in name for kind in ("TokenClassification", "QuestionAnswering", "MultipleChoice")):
        raise InvalidModel(
            f"{name} is no language model and no classifier of whole texts: explain it with "
            "`with composite.context(model):`"
        )
    task = task_of(model)
    if isinstance(target, Label) and "LM" not in type(model).__name__:
        task = "label"
    if task == "label":
        labels = getattr(config, "id2label", None) or {}
        size = getattr(config, "num_labels", None)
        return Readout("label", size, tokenizer, {int(k): str(v) for k, v in labels.items()})
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    size = getattr(config, "vocab_size", None) or embedding.weight.shape[0]
    return Readout(task, size, tokenizer, {})


def _seed(target: Target | None, readout: Readout) -> Seed:
    if target is None:
        target = Prediction()
    if not isinstance(target, Target):
        raise InvalidTarget(
            f"{target!r} is no target: give lxt.Logit(token), lxt.Contrast(a, b), lxt.Label(name), "
            "or nothing for the model's own prediction"
        )
    return target.resolve(readout)


def _positions(
    seed: Seed, readout: Readout, batch: TokenBatch, model: nn.Module
) -> list[int] | None:
    """The explained position in each row, counted without padding; None for a classifier."""
    if readout.task == "label":
        if seed.position is not None:
            raise InvalidTarget(
                f"a classifier has no positions, so position={seed.position} is void"
            )
        return None
    lengths = batch.lengths()
    if seed.position is not None:
        if not isinstance(seed.position, int):
            raise InvalidTarget(f"position {seed.position!r} is no integer")
        for row, length in enumerate(lengths):
            if not -length <= seed.position < length:
                raise InvalidTarget(
                    f"there is no position {seed.position} in row {row}: it has {length} tokens"
                )
        return [seed.position % length for length in lengths]
    if readout.task == "masked":
        return [_mask_position(row, batch, readout, model) for row in range(len(lengths))]
    return [length - 1 for length in lengths]


def _mask_position(row: int, batch: TokenBatch, readout: Readout, model: nn.Module) -> int:
    mask_id = getattr(readout.tokenizer, "mask_token_id", None)
    if mask_id is None:
        lack = "this tokenizer has no mask token" if readout.tokenizer else "there is no tokenizer"
        raise InvalidTarget(
            f"{type(model).__name__} predicts the token at a mask, and {lack} to say where that "
            "is: give another tokenizer=…, or position=…"
        )
    places = (batch.ids[row][batch.mask[row]] == mask_id).nonzero()[:, 0].tolist()
    if len(places) != 1:
        mask = readout.tokenizer.mask_token
        found = f"at positions {places}" if places else "not at all"
        raise InvalidInput(
            f"{type(model).__name__} predicts the token at {mask}, which stands {found} in row "
            f"{row}: write it once into the text, or give position=…"
        )
    return places[0]


def _arguments(
    model: nn.Module, batch: TokenBatch, embedding: nn.Embedding, positions: list[int] | None
) -> dict[str, Any]:
    """What the model's forward is called with: no logits, no cache beyond what is needed."""
    config: Any = getattr(model, "config", None)
    pad = getattr(config, "pad_token_id", None)
    pad = pad if isinstance(pad, int) and 0 <= pad < len(embedding.weight) else 0
    # Where weights are offloaded, they lie nowhere, and inputs are sent where they are needed.
    device = "cpu" if embedding.weight.is_meta else embedding.weight.device
    parameters = inspect.signature(model.forward).parameters
    arguments: dict[str, Any] = {
        "input_ids": batch.right_padded(batch.ids, pad).to(device),
        **{
            k: batch.right_padded(v.to(batch.mask.device)).to(device)
            for k, v in batch.per_token.items()
        },
        **batch.other,
    }
    if "attention_mask" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        arguments["attention_mask"] = batch.right_padded(batch.mask.long()).to(device)
    elif len(set(batch.lengths())) > 1:
        raise InvalidInput(
            f"{type(model).__name__} takes no attention_mask, so rows of different lengths "
            f"({batch.lengths()} tokens) can't be told from padding: explain them one by one"
        )
    if "use_cache" in parameters:
        arguments.setdefault("use_cache", False)
    if "logits_to_keep" in parameters and positions is not None:
        arguments["logits_to_keep"] = torch.tensor(sorted(set(positions)), device=device)
    return arguments


def _explained_logits(
    output: Any, positions: list[int] | None, length: int, readout: Readout, model: nn.Module
) -> Tensor:
    """The logits [batch, vocabulary] at the explained positions, in float32 or more."""
    logits = getattr(output, "logits", None)
    if logits is None:
        logits = output[0] if isinstance(output, Sequence) else output
    expected = 2 if positions is None else 3
    if not isinstance(logits, Tensor) or logits.dim() != expected:
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        kind = "[batch, labels]" if positions is None else "[batch, tokens, vocabulary]"
        raise InvalidModel(
            f"the output of {type(model).__name__} is {shape}, where {kind} was expected of a "
            f"{readout.task} model: explain it with `with composite.context(model):`"
        )
    if logits.shape[-1] < (readout.size or 0):
        raise InvalidModel(
            f"{type(model).__name__} puts out {logits.shape[-1]} logits where {readout.size} were "
            f"expected of a {readout.task} model: explain it with `with composite.context(model):`"
        )
    if positions is not None:
        kept = sorted(set(positions))
        if logits.shape[1] == len(kept):
            columns = [kept.index(position) for position in positions]
        elif logits.shape[1] == length:
            columns = positions
        else:
            raise InvalidModel(
                f"{type(model).__name__} puts out logits at {logits.shape[1]} positions for "
                f"{length} tokens, so nothing says which position is whose: explain it with "
                "`with composite.context(model):`"
            )
        rows = torch.arange(len(columns), device=logits.device)
        logits = logits[rows, torch.tensor(columns, device=logits.device)]
    return logits.to(compute_dtype(logits.dtype))


def _check_finite(logits: Tensor, positions: list[int] | None) -> None:
    for row, values in enumerate(logits.detach()):
        bad = int((~values.isfinite()).sum())
        if bad:
            where = "" if positions is None else f" at position {positions[row]}"
            raise NonFiniteLogits(
                f"{bad} of {len(values)} logits in row {row}{where} are NaN or infinite: check the "
                "weights, or run the model in a wider dtype"
            )


def _relevance(logits: Tensor, weights: Tensor, leaf: Tensor, composite: Composite) -> Tensor:
    """Σ x · ∂(w · z)/∂x over channels, [batch, tokens].

    In the explicit formulation the backward pass takes w · z and returns relevance as it is.

    The backward pass of a float16 model starts from a scaled seed, the largest power of 2 under
    which nothing overflows, so that small gradients don't vanish.
    """
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

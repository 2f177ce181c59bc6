"""A text to explain: a language model or classifier of texts, an input, and a target.

The explained logits come with their seed, and the embedded tokens are the leaf that relevance flows
to.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lxt.errors import InvalidInput, InvalidModel, InvalidTarget, NonFiniteLogits
from lxt.gradients import compute_dtype
from lxt.inputs import EmbeddingLeaf, TokenBatch, encode, input_embeddings
from lxt.passes import Change, Pass
from lxt.targets import Label, Prediction, Readout, Seed, Target, task_of

__all__ = ["TextCase"]


class TextCase:
    """A model, rows of tokens, and what is explained of them, to be run any number of times.

    Attributes:
        model: the instance.
        batch: the tokens.
        readout: what the model's output means.
        seed: what is explained.
        positions: the explained position in each row, counted without padding; None for a
            classifier.

    Raises:
        InvalidModel, InvalidInput, InvalidTarget: see `lxt.explain`.

    """

    def __init__(
        self, model: nn.Module, inputs: Any, *, tokenizer: Any = None, target: Target | None = None
    ) -> None:
        embedding = input_embeddings(model)
        self.model = model
        self.batch = encode(inputs, tokenizer, model)
        self.readout = _readout(model, target, tokenizer, embedding)
        self.seed = _seed(target, self.readout)
        self.positions = _positions(self.seed, self.readout, self.batch, model)

    def on(self, model: nn.Module) -> TextCase:
        """The same case of another instance of the same architecture."""
        case = copy.copy(self)
        case.model = model
        return case

    def forward(self, change: Change | None = None) -> Pass:
        """Run the model once, under whatever composite is on it.

        `change` makes other values of the leaf, "inputs_embeds" [batch, tokens, channels].
        """
        model, batch, positions = self.model, self.batch, self.positions
        arguments = _arguments(model, batch, input_embeddings(model), positions)
        with EmbeddingLeaf(model, change) as leaf:
            output = model(**arguments)
        rows, longest = len(batch.ids), max(batch.lengths())
        logits = _explained_logits(output, positions, longest, self.readout, model)
        _check_finite(logits, positions)
        if leaf.value is None or leaf.value.shape[:2] != (rows, longest):
            raise InvalidModel(_no_path(model))
        weights = torch.stack([self.seed.weights(row) for row in logits.detach()])
        return Pass(logits, weights, {"inputs_embeds": leaf.value})

    def require_path(self, run: Pass) -> None:
        """Make sure that the explained logits depend on the leaf.

        Raises:
            InvalidModel: they don't.
        """
        if not run.output.requires_grad:
            raise InvalidModel(_no_path(self.model))


def _no_path(model: nn.Module) -> str:
    return (
        f"the logits of {type(model).__name__} do not come from its input embeddings "
        "[batch, tokens, channels]: explain it with `with composite.context(model):`"
    )


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

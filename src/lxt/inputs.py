"""Inputs: from texts or token ids to rows of tokens, and back to the layout that was given.

Rows run through the model padded on the right, whichever side they were padded on: there a row's
tokens have the positions that they have alone, in every architecture.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from lxt.errors import InvalidInput, InvalidModel
from lxt.passes import Change

__all__ = ["EmbeddingLeaf", "TokenBatch", "encode", "input_embeddings"]


@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens, in the layout in which they were given.

    Attributes:
        ids: token ids [batch, tokens].
        mask: bool [batch, tokens]; false at padding.
        single: whether one row was given without a batch dimension.
        per_token: further arguments of the model that have the layout of `ids`.
        other: further arguments that have not.

    """

    ids: Tensor
    mask: Tensor
    single: bool
    per_token: dict[str, Tensor]
    other: dict[str, Any]

    def lengths(self) -> list[int]:
        """The number of tokens of each row."""
        return self.mask.sum(1).tolist()

    def of_rows(self, rows: Sequence[int]) -> TokenBatch:
        """Some of the rows, with what else has one entry for each row."""
        index = torch.tensor(rows, device="cpu")
        count = len(self.ids)

        def pick(value: Any) -> Any:
            is_per_row = isinstance(value, Tensor) and value.dim() and len(value) == count
            return value[index.to(value.device)] if is_per_row else value

        return TokenBatch(
            self.ids[index],
            self.mask[index],
            self.single,
            {name: pick(value) for name, value in self.per_token.items()},
            {name: pick(value) for name, value in self.other.items()},
        )

    def up_to(self, length: int) -> TokenBatch:
        """The first `length` tokens of each row; the rest counts as padding."""
        return replace(self, mask=self.mask & (self.mask.cumsum(1) <= length))

    def right_padded(self, values: Tensor, fill: int | float | bool = 0) -> Tensor:
        """`values` [batch, tokens, …], moved to the left and cut to the longest row."""
        rows = [row[keep] for row, keep in zip(values, self.mask, strict=True)]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)

    def as_given(self, values: Tensor) -> Tensor:
        """The inverse of `right_padded`, [batch, tokens, …], with zeros at padding."""
        result = values.new_zeros(*self.mask.shape, *values.shape[2:])
        for row, keep, length in zip(range(len(values)), self.mask, self.lengths(), strict=True):
            result[row, keep] = values[row, :length]
        return result


def encode(inputs: Any, tokenizer: Any, model: nn.Module) -> TokenBatch:
    """Turn what was given to `explain` into rows of tokens.

    Args:
        inputs: a text, a list of texts, token ids ([tokens] or [batch, tokens], a tensor or lists),
            or a mapping with "input_ids" and whatever else the model's forward takes.
        tokenizer: needed for texts.
        model: whose vocabulary and context bound what is valid.

    Raises:
        InvalidInput: nothing there, not of these kinds, ids out of range, too long, or a mask that
            doesn't fit.

    """
    if isinstance(inputs, list | tuple) and not inputs:
        raise InvalidInput(f"there is nothing in {inputs!r}: give a text, texts, or token ids")
    if isinstance(inputs, list | tuple) and any(isinstance(text, str) for text in inputs):
        for index, text in enumerate(inputs):
            if not isinstance(text, str):
                raise InvalidInput(f"prompt {index} is {_short(text)}, and the others are texts")
    if isinstance(inputs, str) or _is_list_of(inputs, str):
        batch = _encode_texts(inputs, tokenizer, inspect.signature(model.forward).parameters)
    elif isinstance(inputs, Mapping):
        batch = _encode_mapping(inputs)
    else:
        batch = _encode_mapping({"input_ids": inputs})
    _check_range(batch, input_embeddings(model))
    _check_length(batch, model, tokenizer)
    return batch


def _is_list_of(value: Any, kind: type) -> bool:
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(v, kind) for v in value)
    )


def _encode_texts(
    inputs: str | Sequence[str], tokenizer: Any, parameters: Collection[str]
) -> TokenBatch:
    """Tokenise; what else the tokenizer says of each token is kept if the model's forward asks."""
    texts = [inputs] if isinstance(inputs, str) else list(inputs)
    if tokenizer is None:
        raise InvalidInput(f"the text {texts[0][:40]!r} needs a tokenizer: give tokenizer=…")
    encoded = []
    for index, text in enumerate(texts):
        which = "the prompt" if isinstance(inputs, str) else f"prompt {index}"
        if not text.strip():
            raise InvalidInput(f"{which} is empty ({text!r}): give some text to explain")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"{which} is no Unicode text ({text[:40]!r}): {error}") from None
        encoded.append(tokenizer(text))
    lengths = [len(row["input_ids"]) for row in encoded]

    def padded(name: str) -> Tensor:
        rows = [torch.tensor(row[name], dtype=torch.long, device="cpu") for row in encoded]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    ids = padded("input_ids")
    mask = torch.arange(ids.shape[1], device="cpu")[None] < _integers(lengths, "lengths")[:, None]
    per_token = {
        name: padded(name)
        for name in encoded[0]
        if name in parameters
        and name not in ("input_ids", "attention_mask")
        and [len(row[name]) for row in encoded] == lengths
    }
    return TokenBatch(ids, mask, isinstance(inputs, str), per_token, {})


def _encode_mapping(inputs: Mapping[str, Any]) -> TokenBatch:
    if inputs.get("input_ids") is None:
        raise InvalidInput(
            f'a mapping needs "input_ids", and has {sorted(map(str, inputs))}: for embeddings of '
            "your own use `with composite.context(model):`"
        )
    ids = _integers(inputs["input_ids"], "input_ids")
    single = ids.dim() == 1
    ids = ids[None] if single else ids
    if ids.dim() != 2 or not ids.numel():
        raise InvalidInput(
            f"input_ids has the shape {list(ids.shape)}: give [tokens] or [batch, tokens]"
        )
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    given = rest.pop("attention_mask", None)
    mask = torch.ones_like(ids) if given is None else _integers(given, "attention_mask")
    mask = mask[None] if mask.dim() == 1 else mask
    _check_mask(mask, ids)
    per_token: dict[str, Tensor] = {}
    for name in list(rest):
        value = _tensor_of(rest[name])
        if isinstance(value, Tensor) and value.shape[: 1 if single else 2] == (
            ids.shape[1:] if single else ids.shape
        ):
            per_token[name] = value[None] if single else value
            del rest[name]
    return TokenBatch(ids, mask.bool(), single, per_token, rest)


def _tensor_of(value: Any) -> Any:
    """Numbers in lists as a tensor, as tokenizers give them; anything else as it is."""
    if isinstance(value, list | tuple):
        try:
            return torch.tensor(value, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            pass
    return value


def _integers(value: Any, name: str) -> Tensor:
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"{name} is {_short(value)}: give a text, texts, or integers [tokens] or "
            f"[batch, tokens] ({error})"
        ) from error
    whole = name == "attention_mask" and tensor.is_floating_point()  # masks often are floats
    if tensor.numel() and not whole and (tensor.is_floating_point() or tensor.is_complex()):
        raise InvalidInput(f"{name} holds {tensor.dtype}: give integers")
    integers = tensor.detach().cpu().long()
    if whole and (integers != tensor.detach().cpu()).any():
        raise InvalidInput("attention_mask holds other values than 0 and 1")
    return integers


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _check_mask(mask: Tensor, ids: Tensor) -> None:
    if mask.shape != ids.shape:
        raise InvalidInput(
            f"attention_mask has the shape {list(mask.shape)}, input_ids {list(ids.shape)}"
        )
    if not ((mask == 0) | (mask == 1)).all():
        raise InvalidInput("attention_mask holds other values than 0 and 1")
    for row, keep in enumerate(mask.bool()):
        places = keep.nonzero()[:, 0]
        if not len(places):
            raise InvalidInput(f"row {row} is all padding: its attention_mask has no 1")
        if places[-1] - places[0] + 1 != len(places):
            raise InvalidInput(
                f"the attention_mask of row {row} has holes: padding goes before or after tokens"
            )


def _check_range(batch: TokenBatch, embedding: nn.Embedding) -> None:
    size = embedding.weight.shape[0]
    bad = batch.mask & ((batch.ids < 0) | (batch.ids >= size))
    if bad.any():
        row = int(bad.any(1).nonzero()[0])
        ids = ", ".join(map(str, batch.ids[row][bad[row]][:5].tolist()))
        where = "" if batch.single else f" in row {row}"
        raise InvalidInput(
            f"token ids out of range{where}: {ids}; the vocabulary goes from 0 to {size - 1}"
        )


def _check_length(batch: TokenBatch, model: nn.Module, tokenizer: Any) -> None:
    limit = context_length(model, tokenizer)
    for row, length in enumerate(batch.lengths()):
        which = "the prompt" if batch.single else f"prompt {row}"
        if length == 0:
            raise InvalidInput(f"{which} has no tokens: give some text to explain")
        if limit is not None and length > limit:
            raise InvalidInput(
                f"{which} is {length} tokens long, the model's context {limit}: "
                f"shorten it by {length - limit} tokens"
            )


def context_length(model: nn.Module, tokenizer: Any) -> int | None:
    """How many tokens the model can read at once, or None where nothing says."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    limits.append(getattr(tokenizer, "model_max_length", None))
    # RoBERTa and its kin count positions from behind the padding index.
    for name, module in model.named_modules():
        if name.endswith("embeddings.position_embeddings") and isinstance(module, nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - offset)
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]
    return min(known, default=None)


def input_embeddings(model: nn.Module) -> nn.Embedding:
    """The module that embeds token ids; whatever its class, it has a `weight`.

    Raises:
        InvalidModel: `model` has none, or is no module.

    """
    if not isinstance(model, nn.Module):
        raise InvalidModel(
            f"{_short(model)} ({type(model).__name__}) is no torch.nn.Module: give a loaded model, "
            "for instance lxt.load_model(name).model"
        )
    try:
        embedding = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    except (AttributeError, NotImplementedError, TypeError):
        embedding = None
    if not isinstance(embedding, nn.Module) or not isinstance(
        getattr(embedding, "weight", None), Tensor
    ):
        raise InvalidModel(
            f"{type(model).__name__} has no input embeddings (get_input_embeddings): to explain "
            "other inputs use `with composite.context(model):`"
        )
    return cast("nn.Embedding", embedding)


class EmbeddingLeaf:
    """While entered, the embedded tokens of a forward pass are the leaf that relevance flows to.

    Attributes:
        value: the leaf [batch, tokens, channels], once a forward has run; the embedded tokens, or
            what `change` makes of them.

    """

    def __init__(self, model: nn.Module, change: Change | None = None) -> None:
        self._embedding = input_embeddings(model)
        self._change = change
        self.value: Tensor | None = None

    def __enter__(self) -> EmbeddingLeaf:
        self._hook = self._embedding.register_forward_hook(self._make_leaf)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _make_leaf(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if self.value is not None:
            raise InvalidModel(
                f"the model calls its input embeddings ({type(module).__name__}) more than once in "
                "a forward pass: explain it with `with composite.context(model):`"
            )
        value = output.detach()
        self.value = (self._change(value) if self._change else value).requires_grad_()
        return self.value

"""A text to explain: a language model or classifier of texts, an input, and a target.

The explained logits come with their seed, and the embedded tokens are the leaf that relevance flows
to.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lxt.aims import aims_of
from lxt.errors import InvalidInput, InvalidModel, InvalidTarget, NonFiniteLogits
from lxt.explained import ExplainedTarget
from lxt.gradients import compute_dtype
from lxt.heads import Head
from lxt.inputs import EmbeddingLeaf, TokenBatch, encode, input_embeddings
from lxt.latent.inside import Inside
from lxt.latent.probes import Told
from lxt.latent.units import Unit
from lxt.latent.waypoints import Waypoint
from lxt.passes import Change, Pass
from lxt.targets import Label, Readout, Targets, task_of

__all__ = ["Reading", "TextCase"]


@dataclass(frozen=True)
class Reading:
    """The logits of one forward pass at the positions that some targets ask for.

    Several targets at the same places share a slot.

    Attributes:
        logits: [batch, slots, vocabulary], in float32 or more; of a classifier [batch, 1, labels].
        slots: the slot of each target, by its number.
        leaf: the embedded tokens [batch, tokens, channels].
        hidden: what the head made these logits of [batch, columns, channels]; None if it is not
            known, or a classifier's.
        columns: for each row, the column of `hidden` that each slot comes from.
        taps: what each tap was told, by its key.
        waypoints: what relevance must go through, from the output on.

    """

    logits: Tensor
    slots: dict[int, int]
    leaf: Tensor
    hidden: Tensor | None
    columns: list[list[int]]
    taps: dict[str, list[Told]] = field(default_factory=dict)
    waypoints: list[Waypoint] = field(default_factory=list)

    @property
    def told(self) -> list[Told]:
        """What all taps were told, in one list."""
        return [told for of_tap in self.taps.values() for told in of_tap]


class TextCase:
    """A model, rows of tokens, and what is explained of them, to be run any number of times.

    Attributes:
        model: the instance.
        batch: the tokens.
        readout: what the model's output means.
        aims: what is explained, by row and target.
        numbers: the number of each row among those that were given.
        inside: what is looked at within the model.

    Raises:
        InvalidModel, InvalidInput, InvalidTarget: see `lxt.explain`.

    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        *,
        tokenizer: Any = None,
        target: Targets | None = None,
        inside: Callable[[Callable[[], object]], Inside] | None = None,
    ) -> None:
        """`inside` is told how to run the model on a few of the tokens."""
        embedding = input_embeddings(model)
        self.model = model
        self.batch = encode(inputs, tokenizer, model)
        self.readout = _readout(model, target, tokenizer, embedding)
        self.inside = None if inside is None else inside(self._glimpse)
        self.aims = aims_of(target, self.readout, self.batch, model, self.inside)
        self.numbers: Sequence[int] = range(len(self.aims))
        self._picking = _Picking()
        _require_mask_or_equal_lengths(self.batch, model)

    def on(self, model: nn.Module) -> TextCase:
        """The same case of another instance of the same architecture."""
        case = copy.copy(self)
        case.model = model
        return case

    def of_rows(self, rows: Sequence[int]) -> TextCase:
        """The same case of some of its rows."""
        case = copy.copy(self)
        case.batch = self.batch.of_rows(rows)
        case.aims = [self.aims[row] for row in rows]
        case.numbers = [self.numbers[row] for row in rows]
        return case

    def up_to(self, length: int) -> TextCase:
        """The same case with no more than the first `length` tokens of each row."""
        case = copy.copy(self)
        case.batch = self.batch.up_to(length)
        return case

    @property
    def count(self) -> int:
        """The number of targets, of the row that has most."""
        return max(map(len, self.aims))

    def last_position(self, target: int) -> int:
        """The last position that a target asks for in any row; 0 for a classifier."""
        return max((aims[target].position or 0) for aims in self.aims if target < len(aims))

    def weights(self, target: int, logits: Tensor) -> Tensor:
        """The weights of logits [batch, vocabulary] in a target; 0 in rows that lack it.

        Raises:
            InvalidTarget: the logits don't reach as far as the target.
        """
        rows = zip(self.aims, logits, strict=True)
        return torch.stack(
            [
                aims[target].seed.weights(row) if target < len(aims) else torch.zeros_like(row)
                for aims, row in rows
            ]
        )

    def explained(self, row: int, target: int, logits: Tensor) -> ExplainedTarget:
        """What a target is in a row, for its logits [vocabulary]."""
        aim = self.aims[row][target]
        return aim.seed.explained(logits, self.readout, aim.position)

    def forward(self, change: Change | None = None) -> Pass:
        """Run the model once, under whatever composite is on it, for a case of one target.

        `change` makes other values of the leaf, "inputs_embeds" [batch, tokens, channels].

        Raises:
            InvalidTarget: there are several targets.
        """
        if self.count > 1:
            raise InvalidTarget(f"one target at a time here, and {self.count} were given")
        reading = self.read([0], change)
        logits = reading.logits[:, 0]
        return Pass(logits, self.weights(0, logits.detach()), {"inputs_embeds": reading.leaf})

    def read(self, targets: Sequence[int], change: Change | None = None) -> Reading:
        """Run the model once, for some of the targets, by their numbers."""
        places = self._places(targets)
        slots = {place: slot for slot, place in enumerate(dict.fromkeys(places))}
        kept = sorted({at for place in slots for at in place if at is not None})
        inside = self.inside
        if inside is not None:
            inside.expects(self.batch.lengths(), kept)
        if inside is not None and self.readout.task == "unit":
            leaf, hidden = self._run_to_units(change), None
            logits = inside.values()
        else:
            logits, leaf, hidden = self._run(kept, change)
        if self.readout.task == "label":
            columns = [[0]] * len(logits)
        elif logits.shape[1] == len(kept):
            columns = [[kept.index(place[row] or 0) for place in slots] for row in self._rows()]
        else:
            columns = [[place[row] or 0 for place in slots] for row in self._rows()]
        if any(row != list(range(logits.shape[1])) for row in columns):
            index = torch.tensor(columns, device=logits.device)
            logits = logits[torch.arange(len(logits), device=logits.device)[:, None], index]
        logits = logits.to(compute_dtype(logits.dtype))
        _check_finite(logits, list(slots), self)
        numbers = {target: slots[place] for target, place in zip(targets, places, strict=True)}
        taps, waypoints = {}, []
        if inside is not None and torch.is_grad_enabled():
            taps, waypoints = inside.told(), list(inside.waypoints())
        return Reading(logits, numbers, leaf, hidden, columns, taps, waypoints)

    def _glimpse(self) -> object:
        """Run the model on the first tokens of one row, for those who watch."""
        batch = self.batch.of_rows([0]).up_to(_GLIMPSE)
        return self.model(**_arguments(self.model, batch, input_embeddings(self.model), None))

    def _run_to_units(self, change: Change | None) -> Tensor:
        """Run the model for what passes within; the leaf."""
        leaf = EmbeddingLeaf(self.model, change)
        with leaf:
            self.model(**_arguments(self.model, self.batch, input_embeddings(self.model), [0]))
        if leaf.value is None:
            raise InvalidModel(_no_path(self.model))
        return leaf.value

    def _rows(self) -> range:
        return range(len(self.aims))

    def _places(self, targets: Sequence[int]) -> list[tuple[int | None, ...]]:
        """For each target its position in each row.

        A row that lacks the target lends any position, where it gets no weight.
        """
        return [
            tuple(
                aims[target].position if target < len(aims) else aims[0].position and 0
                for aims in self.aims
            )
            for target in targets
        ]

    def _run(self, kept: list[int], change: Change | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits, at `kept` or all positions; the leaf; and the input of the head, if known."""
        model, batch = self.model, self.batch
        positions = None if self.readout.task == "label" else kept
        arguments = _arguments(model, batch, input_embeddings(model), positions)
        longest = max(batch.lengths())
        pick = None
        if positions is not None and "logits_to_keep" not in arguments and self._picking.works:
            pick = torch.tensor(positions, device="cpu")
        leaf, head = EmbeddingLeaf(model, change), Head(model, pick, longest)
        logits = None
        try:
            with leaf, head:
                output = model(**arguments)
            logits = _logits_of(output, positions, longest, self.readout, model)
        except Exception as error:
            # A model may count positions after its head; what else is wrong shows up once more.
            if not head.picked or isinstance(error, torch.OutOfMemoryError):
                raise
        if logits is None or (head.picked and not head.put_out(logits)):
            self._picking.works = False
            return self._run(kept, change)
        if leaf.value is None or leaf.value.shape[:2] != (len(batch.ids), longest):
            raise InvalidModel(_no_path(model))
        hidden = head.input
        if hidden is None or positions is None or hidden.shape[:2] != logits.shape[:2]:
            hidden = None
        return logits, leaf.value, hidden

    def require_path(self, reading: Reading) -> None:
        """Make sure that the explained logits depend on the leaf.

        Raises:
            InvalidModel: they don't.
        """
        if not reading.logits.requires_grad:
            raise InvalidModel(_no_path(self.model))


_GLIMPSE = 8
"""Tokens."""


@dataclass
class _Picking:
    """Whether the head of a model can be given the explained positions only."""

    works: bool = True


def _no_path(model: nn.Module) -> str:
    return (
        f"the logits of {type(model).__name__} do not come from its input embeddings "
        "[batch, tokens, channels]: explain it with `with composite.context(model):`"
    )


def _readout(
    model: nn.Module, targets: Targets | None, tokenizer: Any, embedding: nn.Embedding
) -> Readout:
    """What the model's output means, from its class's name and its configuration."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise InvalidModel(
            f"{type(model).__name__} is an encoder-decoder, whose prompt alone doesn't say what it "
            "reads on the decoder's side: explain it with `with composite.context(model):`"
        )
    each = targets if isinstance(targets, list | tuple) else [targets]
    if any(isinstance(target, Unit) for target in each):
        return Readout("unit", None, tokenizer, {})
    name = type(model).__name__
    if any(kind in name for kind in ("TokenClassification", "QuestionAnswering", "MultipleChoice")):
        raise InvalidModel(
            f"{name} is no language model and no classifier of whole texts: explain it with "
            "`with composite.context(model):`"
        )
    task = task_of(model)
    if any(isinstance(target, Label) for target in each) and "LM" not in type(model).__name__:
        task = "label"
    if task == "label":
        labels = getattr(config, "id2label", None) or {}
        size = getattr(config, "num_labels", None)
        return Readout("label", size, tokenizer, {int(k): str(v) for k, v in labels.items()})
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    size = getattr(config, "vocab_size", None) or embedding.weight.shape[0]
    return Readout(task, size, tokenizer, {})


def _takes_mask(model: nn.Module) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return "attention_mask" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _require_mask_or_equal_lengths(batch: TokenBatch, model: nn.Module) -> None:
    if len(set(batch.lengths())) > 1 and not _takes_mask(model):
        raise InvalidInput(
            f"{type(model).__name__} takes no attention_mask, so rows of different lengths "
            f"({batch.lengths()} tokens) can't be told from padding: explain them one by one"
        )


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
    if _takes_mask(model):
        arguments["attention_mask"] = batch.right_padded(batch.mask.long()).to(device)
    if "use_cache" in parameters:
        arguments.setdefault("use_cache", False)
    if "logits_to_keep" in parameters and positions is not None:
        arguments["logits_to_keep"] = torch.tensor(positions, device=device)
    return arguments


def _logits_of(
    output: Any, kept: list[int] | None, length: int, readout: Readout, model: nn.Module
) -> Tensor:
    """The logits of an output [batch, positions, vocabulary], of a classifier [batch, 1, labels].

    The positions are those in `kept`, or all.
    """
    logits = getattr(output, "logits", None)
    if logits is None:
        logits = output[0] if isinstance(output, Sequence) else output
    expected = 2 if kept is None else 3
    if not isinstance(logits, Tensor) or logits.dim() != expected:
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        kind = "[batch, labels]" if kept is None else "[batch, tokens, vocabulary]"
        raise InvalidModel(
            f"the output of {type(model).__name__} is {shape}, where {kind} was expected of a "
            f"{readout.task} model: explain it with `with composite.context(model):`"
        )
    if logits.shape[-1] < (readout.size or 0):
        raise InvalidModel(
            f"{type(model).__name__} puts out {logits.shape[-1]} logits where {readout.size} were "
            f"expected of a {readout.task} model: explain it with `with composite.context(model):`"
        )
    if kept is None:
        return logits[:, None]
    if logits.shape[1] not in (len(kept), length):
        raise InvalidModel(
            f"{type(model).__name__} puts out logits at {logits.shape[1]} positions for "
            f"{length} tokens, so nothing says which position is whose: explain it with "
            "`with composite.context(model):`"
        )
    return logits


def _check_finite(logits: Tensor, slots: Sequence[tuple[int | None, ...]], case: TextCase) -> None:
    fine = logits.detach().isfinite()
    if fine.all():
        return
    row, slot = (~fine.all(-1)).nonzero()[0].tolist()
    bad = int((~fine[row, slot]).sum())
    where = "" if case.readout.task == "label" else f" at position {slots[slot][row]}"
    raise NonFiniteLogits(
        f"{bad} of {logits.shape[-1]} logits in row {case.numbers[row]}{where} are NaN or "
        "infinite: check the weights, or run the model in a wider dtype"
    )

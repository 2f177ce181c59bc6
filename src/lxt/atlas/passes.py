"""What passes the tapped sites of a model in a batch, and its relevance for the own predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt.atlas.rows import Batch
from lxt.backward import Backward
from lxt.composite import Composite
from lxt.engine.passages import first_tensor
from lxt.errors import InvalidTap, NonFiniteLogits
from lxt.latent.anatomy import Anatomy, anatomy_of
from lxt.latent.inside import Inside
from lxt.latent.parts import Kind, Parts, by_tokens
from lxt.latent.relevance import names_of
from lxt.latent.taps import AnyTap
from lxt.propagation import Propagation
from lxt.targets import Every, Prediction, task_of
from lxt.text_case import Reading, TextCase

__all__ = ["Passes", "Seen", "SiteOfAtlas"]


@dataclass(frozen=True)
class SiteOfAtlas:
    """A site and what its units are.

    Attributes:
        name: the module's path, with ":input" where it is the input; with a number where it ran
            several times.
        kind: "neurons", each channel; "heads"; or "tokens", all channels together.
        units: how many there are.
        heads: how many heads the channels are divided into, if they are.

    """

    name: str
    kind: Kind
    units: int
    heads: int | None


@dataclass(frozen=True)
class Seen:
    """What passed a site: activation and relevance [rows, tokens, units]."""

    site: SiteOfAtlas
    activation: Tensor
    relevance: Tensor | None


class Passes:
    """Runs batches through a model, under a composite if relevance is wanted. A context manager.

    Relevance is that for the sum, over all tokens of a row, of the logit which the model ranks
    first there: its own predictions. Of a classifier it is that for its highest logit.

    Args:
        model: in eval mode.
        taps: what is seen.
        composite: the rules; None if only activations are wanted, and then nothing is put on the
            model but hooks, and no graph is made.

    """

    def __init__(
        self, model: nn.Module, taps: Sequence[AnyTap], composite: Composite | None
    ) -> None:
        for tap in taps:
            if tap.over is not None or tap.top is not None:
                raise InvalidTap(f"{tap}: an atlas needs each token: leave out over=… and top=…")
        self._model = model
        self._taps = taps
        self._composite = composite
        self._undo = ExitStack()
        self._way: tuple[Propagation, Backward] | None = None
        self._inside: Inside | None = None

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @torch.inference_mode(False)
    def __call__(self, batch: Batch) -> list[Seen]:
        """Each tapped site, in the order of the taps and of the model.

        Raises:
            InvalidTap: nothing passed, or what passed is no [batch, tokens, …].
            NonFiniteLogits: a logit, or an activation, holds NaN or infinity.
            NonFiniteRelevance: the backward pass overflows.

        """
        if self._composite is None:
            seen = self._activations(batch)
        else:
            seen = self._both(batch, self._composite)
        for one in seen:
            if not one.activation.isfinite().all():
                raise NonFiniteLogits(
                    f"{one.site.name}: the activation holds NaN or infinity in a batch of rows "
                    f"{batch.rows[0].number} and others: run the model in a wider dtype"
                )
        return seen

    def _case(self, batch: Batch, target: Any) -> tuple[TextCase, Inside]:
        rows = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
        case = TextCase(self._model, rows, target=target, inside=self._look)
        assert case.inside is not None, "it was made for taps"
        return case, case.inside

    def _look(self, run: Callable[[], object]) -> Inside:
        """What is looked at: the same for all batches, as it holds what the last one was told."""
        if self._inside is None:
            explicit = self._composite is not None and self._composite.formulation == "relevance"

            def anatomy() -> Anatomy:
                return anatomy_of(self._model, run)

            self._inside = Inside(self._model, anatomy, self._taps, [], [], explicit)
        return self._inside

    def _on(self, composite: Composite) -> tuple[Propagation, Backward]:
        """Put the composite on the model, once there is something to run."""
        propagation = self._undo.enter_context(composite.context(self._model))
        self._way = propagation, Backward(composite, type(self._model).__name__)
        return self._way

    def _both(self, batch: Batch, composite: Composite) -> list[Seen]:
        is_classifier = task_of(self._model) == "label"
        case, inside = self._case(batch, None if is_classifier else Every())
        propagation, backward = self._way or self._on(composite)
        propagation.probes = inside.probes
        with torch.enable_grad():
            reading = case.read(range(case.count))
            case.require_path(reading)
            arrived = backward.one(reading, _own_predictions(case, reading))
        relevances = iter(arrived.told)
        seen: list[Seen] = []
        for told in reading.taps.values():
            names = names_of([one.site for one in told])
            for name, one in zip(names, told, strict=True):
                assert one.activation is not None, "no tap keeps the strongest only"
                site = SiteOfAtlas(name, one.parts.kind, one.units, one.parts.heads)
                seen.append(_by_units(site, one.activation, next(relevances)[0]))
        return seen

    def _activations(self, batch: Batch) -> list[Seen]:
        is_classifier = task_of(self._model) == "label"
        # One logit is the least that a run can be asked for.
        case, _ = self._case(batch, None if is_classifier else Prediction(position=0))
        seen: list[Seen] = []
        with ExitStack() as undo, torch.no_grad():
            found = [undo.enter_context(_Hooks(case, tap)) for tap in self._taps]
            case.read([0])
            for hooks in found:
                seen += hooks.seen()
        return seen


def _by_units(site: SiteOfAtlas, activation: Tensor, relevance: Tensor | None) -> Seen:
    if site.kind == "tokens":
        activation = activation[..., None]
        relevance = None if relevance is None else relevance[..., None]
    return Seen(site, activation, relevance)


def _own_predictions(case: TextCase, reading: Reading) -> Tensor:
    """The weights of the highest logit at each position of each row, [batch, slots, vocabulary]."""
    logits = reading.logits.detach()
    weights = torch.zeros_like(logits)
    best = logits.argmax(-1)
    counts = torch.tensor([len(aims) for aims in case.aims])
    for target, slot in reading.slots.items():
        rows = (counts > target).nonzero()[:, 0].to(logits.device)
        weights[rows, slot, best[rows, slot]] += 1
    return weights


class _Hooks:
    """Sees what passes the sites of a tap, without a graph."""

    def __init__(self, case: TextCase, tap: AnyTap) -> None:
        inside = case.inside
        assert inside is not None, "it was made for taps"
        self._tap = tap
        self._places = inside.places[tap.key]
        self._passage = inside.passage
        self._found: list[tuple[str, Parts, Tensor, int]] = []
        self._undo = ExitStack()

    def __enter__(self) -> _Hooks:
        for place in self._places:
            name = str(place.site).removeprefix("/")

            def see(given: Any, name: str = name, parts: Parts = place.parts) -> None:
                value = first_tensor(given)
                if value is None:
                    return
                passage = self._passage
                x = by_tokens(value, passage.rows, passage.tokens, name)
                units = {"tokens": 1, "heads": parts.heads or 1, "neurons": x.shape[-1]}
                activation = parts.activation(x, passage.mask.to(x.device))
                self._found.append((name, parts, activation, units[parts.kind]))

            if place.site.end == "output":
                hook = place.module.register_forward_hook(lambda _, args, out, see=see: see(out))
            else:
                hook = place.module.register_forward_pre_hook(
                    lambda _, args, kwargs, see=see: see([*args, *kwargs.values()]),
                    with_kwargs=True,
                )
            self._undo.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def seen(self) -> list[Seen]:
        """All of it.

        Raises:
            InvalidTap: nothing passed.

        """
        if not self._found:
            names = ", ".join(str(place.site).removeprefix("/") for place in self._places[:3])
            raise InvalidTap(f"the tap {self._tap.key!r} saw nothing pass: {names} did not run")
        names = names_of([name for name, *_ in self._found])
        return [
            _by_units(SiteOfAtlas(name, parts.kind, units, parts.heads), activation, None)
            for name, (_, parts, activation, units) in zip(names, self._found, strict=True)
        ]

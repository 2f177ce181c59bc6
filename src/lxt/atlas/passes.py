"""What passes the tapped sites of a model in a batch, and its relevance for the own predictions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from lxt.atlas.identity import identity_of_sae
from lxt.atlas.rows import Batch
from lxt.backward import Backward
from lxt.composite import Composite
from lxt.engine.passages import Passing, Probe, first_tensor
from lxt.errors import InvalidTap, NonFiniteLogits
from lxt.latent.anatomy import Anatomy, anatomy_of
from lxt.latent.features import Features
from lxt.latent.inside import Inside
from lxt.latent.parts import Kind
from lxt.latent.probes import Told
from lxt.latent.relevance import names_of
from lxt.latent.taps import AnyTap
from lxt.propagation import Propagation
from lxt.targets import Every, Prediction, task_of
from lxt.text_case import Reading, TextCase

__all__ = ["Passes", "Seen", "SiteOfAtlas"]

_KEY = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class SiteOfAtlas:
    """A site and what its units are.

    Attributes:
        name: the module's path, with ":input" where it is the input; with a number where it ran
            several times. Of features with the tap's key behind: "layers.15:features".
        kind: "neurons", each channel; "heads"; "tokens", all channels together; routed "experts",
            whose activation is the router's weight; or "features" of an autoencoder.
        units: how many there are.
        heads: how many heads the channels are divided into, if they are.
        sae: of features, which autoencoder's they are; see `identity_of_sae`.

    """

    name: str
    kind: Kind
    units: int
    heads: int | None
    sae: str | None = None


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
            if isinstance(tap, Features) and not _KEY.fullmatch(tap.key):
                raise InvalidTap(
                    f"name={tap.key!r}: in an atlas it is a part of units' names: give one of "
                    "letters, digits, '_', '-' and '.'"
                )
        self._model = model
        self._taps = taps
        self._saes = {t.key: identity_of_sae(t.sae) for t in taps if isinstance(t, Features)}
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
        return self._seen(reading.taps, (relevance[0] for relevance in arrived.told))

    def _activations(self, batch: Batch) -> list[Seen]:
        is_classifier = task_of(self._model) == "label"
        # One logit is the least that a run can be asked for.
        case, inside = self._case(batch, None if is_classifier else Prediction(position=0))
        with _Hooks(self._model, inside.probes), torch.no_grad():
            case.read([0])
        return self._seen(inside.told(), repeat(None))

    def _seen(
        self, told: Mapping[str, Sequence[Told]], relevances: Iterable[Tensor | None]
    ) -> list[Seen]:
        """What taps were told, with relevance in the same order."""
        arriving = iter(relevances)
        seen: list[Seen] = []
        for key, of_tap in told.items():
            sae = self._saes.get(key)
            end = "" if sae is None else f":{key}"
            names = names_of([one.site + end for one in of_tap])
            for name, one in zip(names, of_tap, strict=True):
                assert one.activation is not None, "no tap keeps the strongest only"
                site = SiteOfAtlas(name, one.parts.kind, one.units, one.parts.heads, sae)
                seen.append(_by_units(site, one.activation, next(arriving)))
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
    """Shows probes what passes a model by itself, with no composite on it and no graph."""

    def __init__(self, model: nn.Module, probes: Sequence[Probe]) -> None:
        self._model = model
        self._probes = probes
        self._undo = ExitStack()

    def __enter__(self) -> None:
        def starts(*_: object) -> None:
            for probe in self._probes:
                probe.starts()

        self._undo.callback(self._model.register_forward_pre_hook(starts).remove)
        for probe in self._probes:
            if probe.end == "output":
                hook = probe.module.register_forward_hook(
                    lambda _, args, kwargs, output, probe=probe: _show(probe, output, args, kwargs),
                    with_kwargs=True,
                )
            else:
                hook = probe.module.register_forward_pre_hook(
                    lambda _, args, kwargs, probe=probe: _show(probe, (args, kwargs), args, kwargs),
                    with_kwargs=True,
                )
            self._undo.callback(hook.remove)

    def __exit__(self, *_: object) -> None:
        self._undo.close()


def _show(probe: Probe, value: Any, args: Any, kwargs: Any) -> None:
    x = first_tensor(value)
    if x is not None:
        with torch.enable_grad():  # what is told is put in order by the numbers of autograd's nodes
            torch.zeros((), requires_grad=True).clone()
        probe(Passing(x, args, kwargs, is_rerun=False))

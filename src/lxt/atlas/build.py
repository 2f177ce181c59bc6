"""Building an atlas: a corpus through a model, batch by batch, to be gone on with after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lxt._version import __version__
from lxt.atlas import tables
from lxt.atlas.arrow import pyarrow_of
from lxt.atlas.corpus import Corpus
from lxt.atlas.folder import Folder
from lxt.atlas.identity import identity_of, identity_of_sae, require_same, weights_of_sae
from lxt.atlas.passes import Passes
from lxt.atlas.rows import Rows
from lxt.atlas.state import ORDERS, State
from lxt.batching import Footprint, as_batch_size, tokens_at_once
from lxt.composites import as_composite
from lxt.errors import InvalidInput, InvalidModel
from lxt.inputs import context_length
from lxt.latent.features import Features
from lxt.latent.taps import AnyTap, Neurons, as_taps
from lxt.memory import as_bytes
from lxt.progress import as_progress, progress_of

__all__ = ["build"]

_SHARE = 20
"""State is written when so many times as long has gone by as that took."""


_COPIES = 6
"""Of all features of the tokens of a batch, in float32: 5 were measured of 65,536 features, with
relevance, and 4 without."""


def build(
    model: nn.Module,
    corpus: Any,
    *,
    tokenizer: Any,
    folder: Any,
    taps: Any,
    by: Sequence[str],
    top: int,
    context: int,
    window: tuple[int, int],
    skip: int,
    column: str | None,
    composite: Any,
    batch_size: int | None,
    memory_budget: int | str | None,
    flush: int | None,
    progress: bool | None,
) -> None:
    """Build an atlas, or go on with one; see `Atlas.build`."""
    pyarrow_of()
    shown, batch_size = as_progress(progress), as_batch_size(batch_size)
    found = as_taps(taps if taps is not None else [Neurons()], companions=False)
    composite = as_composite(composite)
    _check(model, tokenizer, found, by, top, context, window, skip, flush)
    texts = Corpus(corpus, column)
    needs_relevance = any(one.endswith("relevance") for one in by)
    settings: dict[str, Any] = {
        "taps": [repr(tap) for tap in found],
        "by": list(by),
        "top": top,
        "context": context,
        "window": list(window),
        "skip": skip,
        "composite": composite.name if needs_relevance else None,
    }
    saes = {tap.key: identity_of_sae(tap.sae) for tap in found if isinstance(tap, Features)}
    if saes:
        settings["weights of sae"] = saes
    passes = Passes(model, found, composite if needs_relevance else None)
    place = Folder(folder)
    with place.writing():
        manifest = _begun(place, model, settings, batch_size)
        if manifest is None:
            size = batch_size or _fitting(model, found, context, memory_budget)
            manifest = {
                "status": "building",
                "identity": identity_of(model),
                "settings": {**settings, "batch_size": size},
                "progress": {"batches": 0, "rows": "", "texts": 0, "tokens": 0},
                "sites": [],
                "files": {},
                "versions": _versions(),
            }
            place.put_manifest(manifest)
        rows = Rows(texts, tokenizer, context, skip, manifest["settings"]["batch_size"])
        state = State(by, top, (window[0], window[1]))
        run = _Run(place, manifest, rows, state, flush)
        with passes, progress_of(texts.size, "texts", shown=shown) as tick:
            run.through(passes, tick)
        run.finish(tokenizer)


class _Run:
    """One run over the corpus, from where the last one was."""

    def __init__(
        self, folder: Folder, manifest: dict[str, Any], rows: Rows, state: State, flush: int | None
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._rows = rows
        self._state = state
        self._flush_every = flush
        self._is_complete = manifest["status"] == "complete"
        self._done = manifest["progress"]["batches"]
        if self._done and not self._is_complete:
            ((name, expected),) = manifest["files"].items()
            state.load(manifest["sites"], folder.tensors(name, expected))
        if not self._is_complete:
            folder.clean(manifest["files"])

    def through(self, passes: Passes, tick: Callable[[int], None]) -> None:
        """Run all batches that are left.

        Raises:
            InvalidInput: the corpus is not the one that the folder's state is of; or it is empty.

        """
        number, read, at, took = -1, 0, time.monotonic(), 0.0
        for number, batch in enumerate(self._rows):
            if number >= self._done:
                if self._is_complete:
                    self._refuse("has more texts")
                self._state.add(batch, passes(batch))
                is_time = time.monotonic() - at > _SHARE * took
                if self._flush_every is not None:
                    is_time = (number + 1) % self._flush_every == 0
                if is_time:
                    before = time.monotonic()
                    self._flush(number + 1)
                    at = time.monotonic()
                    took = at - before
            elif number == self._done - 1 and not self._is_complete:
                self._require_same_rows()
            tick(self._rows.read - read)
            read = self._rows.read
        if number < 0:
            raise InvalidInput("the corpus holds no texts with tokens that count")
        if number + 1 < self._done:
            self._refuse("has fewer texts")
        if self._is_complete:
            self._require_same_rows()

    def finish(self, tokenizer: Any) -> None:
        """Write what is kept, as tables."""
        if self._is_complete:
            return
        state, folder = self._state, self._folder
        state.drop_rows()
        units, contexts, rows = tables.FILES
        files = {
            units: folder.put(units, lambda part: tables.write_units(part, state)),
            contexts: folder.put(contexts, lambda part: tables.write_contexts(part, state)),
            rows: folder.put(
                rows, lambda part: tables.write_rows(part, state.rows.values(), tokenizer)
            ),
        }
        self._put("complete", self._rows.batches, files)
        folder.clean(files)

    def _flush(self, batches: int) -> None:
        name = f"state-{batches:08}.safetensors"
        files = {name: self._folder.put_tensors(name, self._state.tensors())}
        self._put("building", batches, files)
        self._folder.clean(files)

    def _put(self, status: str, batches: int, files: dict[str, Any]) -> None:
        rows = self._rows
        self._manifest |= {
            "status": status,
            "progress": {
                "batches": batches,
                "rows": rows.fingerprint,
                "texts": rows.read,
                "tokens": rows.tokens,
            },
            "sites": self._state.described(),
            "files": files,
        }
        self._folder.put_manifest(self._manifest)

    def _require_same_rows(self) -> None:
        if self._rows.fingerprint != self._manifest["progress"]["rows"]:
            self._refuse("has other texts, or they are in another order, or read by other tokens")

    def _refuse(self, how: str) -> None:
        read = self._manifest["progress"]["texts"]
        raise InvalidInput(
            f"the atlas in {str(self._folder.path)!r} is of another corpus, of which it has read "
            f"{read} texts: this one {how}. Give the same, or another folder"
        )


def _begun(
    folder: Folder, model: nn.Module, settings: dict[str, Any], batch_size: int | None
) -> dict[str, Any] | None:
    """The manifest of what is to be gone on with.

    Raises:
        InvalidModel: it is of another model.
        InvalidInput: it was begun with other settings.

    """
    manifest = folder.manifest()
    if manifest is None:
        return None
    require_same(model, manifest["identity"], str(folder.path))
    before = manifest["settings"]
    now = settings | ({"batch_size": batch_size} if batch_size is not None else {})
    other = [
        f"{name}={before.get(name)!r}, and not {value!r}"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if other:
        raise InvalidInput(
            f"the atlas in {str(folder.path)!r} was begun with {'; '.join(other)}: give the same, "
            "or another folder"
        )
    return manifest


def _check(
    model: nn.Module,
    tokenizer: Any,
    taps: Sequence[AnyTap],
    by: Any,
    top: Any,
    context: Any,
    window: Any,
    skip: Any,
    flush: Any,
) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidModel(f"{model!r} is no torch.nn.Module: give a loaded model")
    if model.training:
        raise InvalidModel(f"{type(model).__name__} is in training mode: call model.eval() first")
    if tokenizer is None or not callable(tokenizer):
        raise InvalidInput("a corpus of texts needs a tokenizer: give tokenizer=…")
    if not taps:
        raise InvalidInput("there is nothing to look at: give taps=[lxt.Neurons()], for instance")
    if isinstance(by, str) or not by or any(one not in ORDERS for one in by):
        raise InvalidInput(f"by={by!r}: give a list of {', '.join(map(repr, ORDERS))}")
    if len(set(by)) < len(by):
        raise InvalidInput(f"by={by!r} names one twice")
    for name, value, least in (("top", top, 1), ("context", context, 1), ("skip", skip, 0)):
        if not _is_count(value, least):
            raise InvalidInput(f"{name}={value!r} is no integer, from {least}")
    if flush is not None and not _is_count(flush, 1):
        raise InvalidInput(f"flush={flush!r} is no number of batches, from 1, nor None")
    if len(window) != 2 or not all(_is_count(one, 0) for one in window):
        raise InvalidInput(f"window={window!r}: give how many tokens before and after, as (24, 8)")
    limit = context_length(model, tokenizer)
    if limit is not None and context > limit:
        raise InvalidInput(f"context={context} is more than the model reads, {limit} tokens")


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _fitting(
    model: nn.Module, taps: Sequence[AnyTap], context: int, memory_budget: int | str | None
) -> int:
    """How many rows fit at a time."""
    device = next(model.parameters()).device
    size = Footprint(model)
    budget = as_bytes(memory_budget, device)
    # With logits of all tokens, and what taps are told: on SmolLM2-135M with all neurons 2.3 MB of
    # a token were measured, where this makes 3.1.
    # Features are the longest axis of their autoencoder's weights.
    coders = [tap.sae.coder for tap in taps if isinstance(tap, Features)]
    features = sum(
        max((n for _, x in weights_of_sae(coder) for n in x.shape), default=0) for coder in coders
    )
    of_token = 3 * size.saved + size.gradients + size.logits + _COPIES * 4 * features
    tokens = budget // of_token
    return max(1, min(tokens, tokens_at_once(device) // 4) // context)


def _versions() -> dict[str, str]:
    import transformers

    return {
        "lxt": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pyarrow": pyarrow_of().__version__,
    }

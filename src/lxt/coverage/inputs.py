"""Example inputs for tiny models of any type, and the tensor of their output that is explained."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lxt.coverage.arguments import ARGUMENTS, LEAVES
from lxt.coverage.exceptions import Tweak, tweak_of
from lxt.coverage.making import Making

if TYPE_CHECKING:
    from lxt.coverage.size import Size

_OUTPUTS = (
    "logits",
    "prediction_logits",
    "logits_per_image",
    "prediction_outputs",
    "last_hidden_state",
    "pred_masks",
    "predicted_depth",
    "feature_maps",
)
"""Attributes of a model's output in the order in which they are explained."""


@dataclass(frozen=True)
class Example:
    """An input for one model, good for any number of runs, on the original and under lxt.

    Attributes:
        leaves: the tensors that are explained, leaves that require grad, by the name of the
            argument of the model's forward; "embedding" stands for the output of the model's
            input embedding, put there by a hook.
        kwargs: the other arguments of the model's forward.
        output: attribute of the model's output that is explained, dotted; "" finds it.
        embedding: path of the input embedding in the model; "" asks the model.
    """

    leaves: dict[str, Tensor]
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: str = ""
    embedding: str = ""

    def run(self, model: nn.Module, leaves: dict[str, Tensor] | None = None) -> Tensor:
        """Run `model`, on `leaves` if given instead of the example's own.

        Returns:
            The tensor to explain, a floating one of any shape with a graph: the logits, or
            the last hidden state, or the first of the output's tensors that depends on a leaf.
        """
        # Copies, since some models write into their arguments, which a leaf does not bear.
        leaves = {key: leaf.clone() for key, leaf in (leaves or self.leaves).items()}
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)  # some models draw numbers, which must be the same each time
            return self._run(model, leaves)

    def _run(self, model: nn.Module, leaves: dict[str, Tensor]) -> Tensor:
        embedded = leaves.pop("embedding", None)
        if embedded is None:
            return self.pick(model(**self.kwargs, **leaves))

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (embedded, *output[1:])
            return embedded if output.shape == embedded.shape else None

        handle = embedding_of(model, self.embedding).register_forward_hook(replace)
        try:
            return self.pick(model(**self.kwargs, **leaves))
        finally:
            handle.remove()

    def pick(self, output: Any) -> Tensor:
        """The tensor to explain in what the model returned."""
        if self.output:
            for step in self.output.split("."):
                output = output[int(step)] if step.isdigit() else getattr(output, step)
            return output
        if isinstance(output, dict):
            for name in _OUTPUTS:
                found = _first(output.get(name))
                if found is not None:
                    return found
        found = _first(output)
        if found is None:
            raise TypeError(f"{type(output).__name__} holds no floating tensor with a gradient")
        return found


def embedding_of(model: Any, path: str = "") -> nn.Module:
    """The module that turns token ids into embeddings.

    It is at `path`, or where the model says, or the first embedding that is named after tokens or
    words, for models of several towers don't say.
    """
    if path:
        return model.get_submodule(path)
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        for name, module in model.named_modules():
            last = name.rpartition(".")[2]
            if isinstance(module, nn.Embedding) and ("token" in last or "word" in last):
                return module
        raise


def _first(output: Any) -> Tensor | None:
    """The first floating tensor in `output` that depends on a leaf."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.requires_grad else None
    values = output.values() if isinstance(output, dict) else output
    if isinstance(values, list | tuple) or isinstance(output, dict):
        for value in values:
            found = _first(value)
            if found is not None:
                return found
    return None


def example(model: Any, name: str, size: Size) -> Example:
    """Make an input for `model`, a model that `lxt.coverage.build` made of the type `name`.

    What is made follows from the signature of the model's forward and from its configuration:
    images for `pixel_values`, sound for `input_features` or `input_values`, series for
    `past_values`, text as embeddings. A model of images and text gets both, with as many
    placeholder tokens in the text as the images have features.

    Raises:
        TypeError: the forward requires an argument that nothing here knows how to make.
    """
    tweak, making = tweak_of(name), Making(model, name, size)
    leaves: dict[str, Tensor] = {}
    kwargs: dict[str, Any] = {}
    for argument, make in tweak.leaves.items():
        if make is not None and argument not in ("embedding", "inputs_embeds"):
            leaves[argument] = _tensor(making, make)
    for argument, make in LEAVES.items():
        if argument in making.parameters and argument not in (*tweak.leaves, *tweak.kwargs):
            made = make(making, leaves)
            if made is not None:
                leaves[argument] = made
    for argument, value in tweak.kwargs.items():
        if value is not None:
            kwargs[argument] = value(making) if callable(value) else value
    for argument, make in ARGUMENTS.items():
        if argument in making.parameters and argument not in (*tweak.kwargs, *tweak.leaves):
            made = make(making, leaves, kwargs)
            if made is not None:
                kwargs[argument] = made
    embedding = _embed(making, tweak, leaves, kwargs)
    _complete(making, tweak, leaves, kwargs)
    leaves = {key: leaf.detach().clone().requires_grad_() for key, leaf in leaves.items()}
    return Example(leaves, kwargs, tweak.output, embedding)


def _tensor(making: Making, make: Any) -> Tensor:
    made: Any = make(making) if callable(make) else make
    return made if isinstance(made, Tensor) else making.floats(*made)


def _embed(making: Making, tweak: Tweak, leaves: dict[str, Tensor], kwargs: dict[str, Any]) -> str:
    """Explain the embeddings of `input_ids`: as `inputs_embeds` where text is all there is.

    Returns:
        The path of the input embedding, "" if the model names it.
    """
    made = {k: v for k, v in tweak.leaves.items() if k in ("embedding", "inputs_embeds")}
    for key, make in made.items():
        if make is not None:
            leaves[key] = _tensor(making, make)
            if key == "inputs_embeds":
                kwargs.pop("input_ids", None)
    ids = kwargs.get("input_ids")
    if made or (ids is None and not tweak.embedding):
        return tweak.embedding
    path = tweak.embedding
    if not path and not _names_embedding(making.model):
        path = _path_of_embedding(making, ids, leaves, kwargs)
    if path:
        leaves["embedding"] = _caught(making, path, leaves, kwargs)
    elif "inputs_embeds" in making.parameters and not leaves and not tweak.by_ids:
        leaves["inputs_embeds"] = _embedded(making, kwargs.pop("input_ids"))
    else:
        leaves["embedding"] = _embedded(making, ids)
    return path


def _names_embedding(model: Any) -> bool:
    try:
        return isinstance(model.get_input_embeddings(), nn.Module)
    except (NotImplementedError, AttributeError):
        return False


@torch.no_grad()
def _path_of_embedding(
    making: Making, ids: Any, leaves: dict[str, Tensor], kwargs: dict[str, Any]
) -> str:
    """The path of the module that the model looks `ids` up in, for it doesn't name it."""
    found: list[str] = []
    handles = []
    for path, module in making.model.named_modules():

        def watch(module: nn.Module, args: Any, output: Any, path: str = path) -> None:
            if args and isinstance(args[0], Tensor) and torch.equal(args[0], ids):
                found.append(path)

        if isinstance(module, nn.Embedding):
            handles.append(module.register_forward_hook(watch))
    try:
        making.model(**kwargs, **leaves)
    finally:
        for handle in handles:
            handle.remove()
    return found[0]


@torch.no_grad()
def _embedded(making: Making, ids: Any) -> Tensor:
    return embedding_of(making.model)(ids)


@torch.no_grad()
def _caught(making: Making, path: str, leaves: dict[str, Tensor], kwargs: dict[str, Any]) -> Tensor:
    """What the embedding at `path` returns when the model runs."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)

    handle = embedding_of(making.model, path).register_forward_hook(catch)
    try:
        making.model(**kwargs, **leaves)
    finally:
        handle.remove()
    return caught[0]


def _complete(
    making: Making, tweak: Tweak, leaves: dict[str, Tensor], kwargs: dict[str, Any]
) -> None:
    for key, parameter in making.parameters.items():
        required = parameter.default is inspect.Parameter.empty and parameter.kind not in (
            inspect.Parameter.VAR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        )
        if required and key != "self" and key not in leaves and key not in kwargs:
            if key in tweak.kwargs or (key == "input_ids" and "inputs_embeds" in leaves):
                kwargs[key] = None
                continue
            if key in ("inputs_embeds", "query_embeds", "patch_embeds"):
                size = making.size
                leaves[key] = making.floats(size.batch, size.tokens, making.hidden)
                continue
            raise TypeError(
                f"{type(making.model).__name__}.forward requires {key!r}, which nothing in "
                f"lxt.coverage.arguments makes; add it to the entry of {making.name!r} in "
                "lxt.coverage.exceptions"
            )

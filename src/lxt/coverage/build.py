"""Tiny models of any type of `transformers`, with weights that hide nothing."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lxt.coverage.catalogue import NO_MODEL, model_type
from lxt.coverage.exceptions import tweak_of
from lxt.coverage.tiny import parts, tiny_config
from lxt.errors import InvalidModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lxt.coverage.size import Size


def build(
    name: str, size: Size, dtype: torch.dtype = torch.float32, attention: str | None = None
) -> Any:
    """Build a tiny random model of the type `name` on the CPU, in eval mode.

    The same seed gives the same weights for every attention implementation and, up to rounding,
    for every dtype. All parameters are random, those too that a model initialises with zeros or
    ones, and all are large enough for activations of order one: with the usual initialisation
    logits are nearly 0, softmaxes uniform and activations linear, which hides errors. In float64,
    experts run one by one, since grouped matrix products know no float64.

    Args:
        name: a model type, see `lxt.coverage.model_types`.
        size: how large the model is.
        dtype: floating point type of the parameters; buffers keep their own.
        attention: "eager", "sdpa", …; the type's default if left out.

    Raises:
        InvalidModel: there is no such type, or it can't be built; the message says why.
        ValueError: `transformers` has no such attention implementation for the model.
    """
    row, tweak = model_type(name), tweak_of(name)
    if tweak.unbuildable:
        raise InvalidModel(f"{name}: {tweak.reason}")
    if row.task == NO_MODEL and not tweak.model_class:
        raise InvalidModel(f"{name}: {NO_MODEL}")
    model_class = load_model_class(name)
    config = tiny_config(name, size)
    if dtype is torch.float64:
        for part in parts(config):
            part._experts_implementation = "eager"
    options: dict[str, Any] = {"dtype": dtype}
    if attention or tweak.attention:
        options["attn_implementation"] = attention or tweak.attention
    with _seeded(size.seed):
        model = model_class._from_config(config, **options)
    if dtype is not torch.float32:  # random numbers differ between types
        with _seeded(size.seed):
            twin = model_class._from_config(config, **options | {"dtype": torch.float32})
        _copy(twin, model)
        config.dtype = dtype
    model.train(tweak.training)
    randomise(model, size.seed, tweak.gain)
    return model


def load_model_class(name: str) -> type[Any]:
    """The model class that stands for a type: the exception's, else the catalogue's."""
    import dataclasses

    row, other = model_type(name), tweak_of(name).model_class
    return dataclasses.replace(row, model_class=other or row.model_class).load_model_class()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the random state for a while, and fill uninitialised memory with NaN, to be found."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and buffers, each keeping its type."""
    own = dict(target.named_parameters()) | dict(target.named_buffers())
    for name, tensor in (*source.named_parameters(), *source.named_buffers()):
        own[name].copy_(tensor)


@torch.no_grad()
def randomise(model: nn.Module, seed: int, gain: float = 1.0) -> None:
    """Draw all parameters anew, and move the statistics of batch norms and routers' corrections.

    Matrices get a standard deviation of `gain` / √inputs, embeddings 1, vectors what they were
    plus noise of 0.3.
    """
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in done and parameter.is_floating_point():
                done.add(id(parameter))
                _draw(module, name, parameter, generator, gain)
        for name, buffer in module.named_buffers(recurse=False):
            if id(buffer) not in done:
                done.add(id(buffer))
                _draw_buffer(module, name, buffer, generator)


def _draw(
    module: nn.Module, name: str, parameter: Tensor, generator: torch.Generator, gain: float
) -> None:
    noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    if parameter.ndim < 2:
        start = parameter.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        parameter.copy_(start + 0.3 * noise)
    else:
        parameter.copy_(noise * _std(module, name, parameter, gain))


def _std(module: nn.Module, name: str, parameter: Tensor, gain: float) -> float:
    shape = parameter.shape
    if isinstance(module, nn.Embedding):
        return 1.0
    if isinstance(module, nn.Linear):
        return gain / math.sqrt(shape[1])
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return gain / math.sqrt(parameter.numel() / shape[1] / math.prod(module.stride))
    if isinstance(module, nn.modules.conv._ConvNd):
        return gain / math.sqrt(parameter.numel() / shape[0])
    if type(module).__name__ == "Conv1D":  # transformers' transposed linear layer
        return gain / math.sqrt(shape[0])
    if shape[0] == 1 or "embed" in name or "token" in name or "query" in name:
        return 1.0
    if parameter.ndim > 2:  # experts, [expert, out, in] or [expert, in, out]
        return gain / (shape[-1] * shape[-2]) ** 0.25
    return gain / math.sqrt(shape[-1])


def _draw_buffer(module: nn.Module, name: str, buffer: Tensor, generator: torch.Generator) -> None:
    if name == "tid2eid":  # hash routing: which experts each token id goes to
        experts: Any = module.num_experts
        order = torch.rand(buffer.shape[0], experts, generator=generator).argsort()
        buffer.copy_(order[:, : buffer.shape[1]])
    if not buffer.is_floating_point():
        return
    noise = torch.randn(buffer.shape, dtype=torch.float64, generator=generator)
    if name == "running_var":
        buffer.copy_(1 + 0.3 * noise.abs())
    elif name == "running_mean" or name.endswith("correction_bias"):
        buffer.copy_(0.3 * noise)
    elif buffer.isnan().all() and buffer.numel():
        buffer.copy_(noise)

"""`torch.compile` around a registered model, and within one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lxt
import zoo


def relevance(model: nn.Module, call: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    example = zoo.example("llama", model)
    logits = example.run(model if call is None else call)
    (gradient,) = torch.autograd.grad(logits[example.output_mask].sum(), example.leaf)
    return logits.detach(), (example.leaf * gradient).detach()


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch._dynamo.reset()


def test_a_registered_model_may_be_compiled() -> None:
    model = zoo.build("llama", dtype=torch.float32)
    plain = relevance(model)
    handle = lxt.attnlrp.register(model)
    expected = relevance(model)
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        found = relevance(model, compiled)
        assert all(map(torch.equal, found, expected))
    handle.remove()
    for found, wanted in zip(relevance(model, compiled), plain, strict=True):
        torch.testing.assert_close(found, wanted)
    assert not torch.allclose(plain[1], expected[1])


def test_what_is_compiled_within_runs_as_it_is_written() -> None:
    model = zoo.build("llama", dtype=torch.float32)
    with lxt.attnlrp.context(model):
        expected = relevance(model)
    calls = []

    def backend(graph, inputs):
        return lambda *args: (calls.append(1), graph.forward(*args))[1]

    mlp = model.model.layers[0].mlp
    as_compiled = torch.compile(type(mlp).forward, backend=backend)
    mlp.forward = as_compiled.__get__(mlp)
    relevance(model)
    assert calls
    calls.clear()
    with lxt.attnlrp.context(model):
        found = relevance(model)
    assert not calls
    torch.testing.assert_close(found, expected)


def test_one_graph_alone_is_refused_by_the_compiler() -> None:
    model = zoo.build("llama", dtype=torch.float32)
    with lxt.attnlrp.context(model), pytest.raises(Exception, match="disable"):
        relevance(model, torch.compile(model, backend="aot_eager", fullgraph=True))

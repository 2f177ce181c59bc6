"""`checkpoint=`: what it refuses, what it leaves alone, and what it costs in memory."""

from __future__ import annotations

import gc
import itertools
import threading
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn
from torch.nn import functional as F

import lxt
import zoo
from layered import Layer, Live, Recorded, Stack, gradient, leaf, llama, of_stack
from lxt.engine.segments import Checkpointing
from lxt.engine.standins import StandIn
from lxt.errors import CheckpointFailed, InvalidComposite, InvalidModel

LENGTHS = (1, 2, "sqrt")
over_lengths = pytest.mark.parametrize("length", LENGTHS)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(monkeypatch)


@pytest.fixture
def x() -> Tensor:
    return leaf()


# --- what can't be, or must be refused -----------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -3, "foo", 2.5, [2]])
def test_what_checkpoint_may_be(wrong: Any) -> None:
    model = Stack()
    with pytest.raises(InvalidComposite, match="sqrt") as error:
        lxt.attnlrp.register(model, checkpoint=wrong)
    assert repr(wrong) in str(error.value)
    lxt.attnlrp.register(model, checkpoint=False).remove()  # nothing is left of the one refused


def test_models_without_layers() -> None:
    for model in (nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), Layer()):
        with pytest.raises(InvalidModel, match=f"'sqrt'.*{type(model).__name__}"):
            lxt.attnlrp.register(model, checkpoint="sqrt")
        lxt.attnlrp.register(model).remove()


class WritesToItsInput(Layer):
    def forward(self, x: Tensor) -> Tensor:
        x += self.linear(x)
        return x * 2


def before_writing(layers: nn.ModuleList, x: Tensor) -> Tensor:
    return layers[1](layers[0](x * 2))


def test_a_layer_that_writes_to_its_input(x: Tensor) -> None:
    """It can be repeated if the input is another layer's output, of the same segment."""
    model = Stack([Layer(), WritesToItsInput()], before_writing)
    expected = of_stack(model, x)
    assert torch.equal(of_stack(model, x, 2), expected)
    with pytest.raises(CheckpointFailed, match=r"'layers\.1'.*argument 0"):
        of_stack(model, x, 1)
    assert torch.equal(of_stack(model, x), expected)


class Counts(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_a_layer_that_writes_to_its_buffers(x: Tensor) -> None:
    with pytest.raises(CheckpointFailed, match="buffers"):
        of_stack(Stack([Counts(), Counts()]), x, 1)


class Differs(Layer):
    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(x) if self.runs == 1 else torch.cat([F.silu(x), x])[:2]


def test_a_layer_that_does_something_else_the_second_time(x: Tensor) -> None:
    with pytest.raises(CheckpointFailed, match=r"'layers\.0' \(Differs\).*second time"):
        of_stack(Stack([Differs(), Layer()]), x, 1)


def masked(layers: nn.ModuleList, x: Tensor) -> Tensor:
    mask = torch.ones_like(x)
    for layer in layers:
        x, mask = layer(x, mask=mask), mask.add_(1)
    return x


class Masked(Layer):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x * mask)


def test_a_mask_that_is_written_to_after_the_layer_ran(x: Tensor) -> None:
    with pytest.raises(CheckpointFailed, match=r"'layers\.\d'.*in place after"):
        of_stack(Stack([Masked(), Masked()], masked), x, 1)


def input_written_to(layers: nn.ModuleList, x: Tensor) -> Tensor:
    x = x * 2
    y = layers[0](x)
    x += 1
    return layers[1](y) + x


def test_an_input_that_is_written_to_after_the_layer_ran(x: Tensor) -> None:
    model = Stack([Layer(), Layer()], input_written_to)
    of_stack(model, x)
    with pytest.raises(CheckpointFailed, match=r"'layers\.0'.*in place after"):
        of_stack(model, x, 1)


class InPlace:
    """A cache that has its memory from the start."""

    def __init__(self) -> None:
        self.kept = torch.zeros(6, 2, 4, dtype=torch.float64)

    def update(self, index: int, x: Tensor) -> Tensor:
        self.kept[index] = x.detach()
        return self.kept[: index + 1].sum(0)


class Cached(Layer):
    def forward(self, x: Tensor, index: int, cache: Any) -> Tensor:  # type: ignore[override]
        return super().forward(x) + cache.update(index, x)


def test_a_cache_that_is_written_to_in_place(x: Tensor) -> None:
    def cached(layers: nn.ModuleList, x: Tensor) -> Tensor:
        cache = InPlace()
        for index, layer in enumerate(layers):
            x = layer(x, index, cache=cache)
        return x

    model = Stack([Cached() for _ in range(3)], cached)
    with pytest.raises(CheckpointFailed, match=r"'layers\.0'.*'cache' \(a InPlace\)[^|]*use_cache"):
        of_stack(model, x, 2)


# --- caches of keys and values -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_cache_goes_through_the_layers_and_on(name: str, recorded: Recorded) -> None:
    """What the layers put there is there afterwards, once, and a second call goes on with it."""
    model = zoo.build(name, num_hidden_layers=4, num_decoder_layers=4)
    of = zoo.example(name, model)
    key = "decoder_inputs_embeds" if name == "t5" else "inputs_embeds"
    results = []
    for checkpoint in (None, 2):
        with lxt.attnlrp.context(model, checkpoint=checkpoint):
            first = model(**of.kwargs, inputs_embeds=of.leaf, use_cache=True)
            cache = first.past_key_values
            arguments: dict[str, Any] = {key: of.leaf[:, :1], "past_key_values": cache}
            if name == "t5":
                arguments["encoder_outputs"] = (first.encoder_last_hidden_state,)
            logits = model(**arguments).logits
        length = cache.get_seq_length()
        once, twice = (
            torch.autograd.grad(logits.square().sum(), of.leaf, retain_graph=keep)[0]
            for keep in (True, False)
        )
        assert torch.equal(once, twice)
        results.append((once, logits, length))
        assert cache.get_seq_length() == length
    (expected, logits, length), (found, again, other) = results
    assert torch.equal(found, expected)
    assert torch.equal(again, logits)
    assert length == other
    assert max(recorded.lengths()) == 2


# --- with other ways of saving memory ------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable")
@over_lengths
def test_models_that_checkpoint_their_layers_themselves(length: Any, recorded: Recorded) -> None:
    model, of = llama(training=True)
    expected = gradient(model, of)
    model.gradient_checkpointing_enable()
    assert torch.equal(gradient(model, of, length), expected)
    assert sum(recorded.lengths()) == 5


def test_offloaded_weights() -> None:
    model, of = llama()
    expected = gradient(model, of)
    offloaded = cpu_offload(zoo.build("llama", num_hidden_layers=5), torch.device("cpu"))
    assert torch.equal(gradient(offloaded, of, 2), expected)
    assert {p.device.type for p in offloaded.parameters()} == {"meta"}


def test_saved_tensors_on_the_disk_or_elsewhere(x: Tensor) -> None:
    """Hooks of one's own see what is kept of a segment: its inputs."""
    model, moved = Stack(), []
    expected = of_stack(model, x)
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: moved.append(t.shape) or t, lambda t: t),
        lxt.attnlrp.context(model, checkpoint=2),
    ):
        y = model(x)
    assert moved == [x.shape] * 3
    assert torch.equal(torch.autograd.grad(y.square().sum(), x)[0], expected)


# --- nothing else changes ------------------------------------------------------------------------


def traces(model: nn.Module) -> list[Any]:
    return [
        (name, sorted(vars(module)), vars(type(module)).get("forward"), len(module._forward_hooks))
        for name, module in model.named_modules()
    ]


def test_nothing_is_left_behind() -> None:
    model, of = llama()
    before, plain = traces(model), of.run(model)
    with lxt.attnlrp.context(model, checkpoint=2):
        logits = of.run(model)
    assert torch.equal(logits, plain)
    assert traces(model) == before
    torch.autograd.grad(logits.sum(), of.leaf)
    assert traces(model) == before
    assert all(parameter.requires_grad for parameter in model.parameters())

    model.model.layers[3].mlp.register_forward_hook(lambda *_: 1 / 0)
    before = traces(model)
    with lxt.attnlrp.context(model, checkpoint=2), pytest.raises(ZeroDivisionError):
        of.run(model)
    assert traces(model) == before


def test_an_error_in_the_second_run_leaves_nothing_behind(x: Tensor) -> None:
    model = Stack()
    with lxt.attnlrp.context(model, checkpoint=2):
        y = model(x)
    before = traces(model)
    hook = model.layers[1].get_submodule("linear").register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        torch.autograd.grad(y.sum(), x, retain_graph=True)
    hook.remove()
    assert traces(model) == before
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.autograd.grad(y.sum(), x)


def test_nothing_happens_without_gradients(recorded: Recorded) -> None:
    model, of = llama()
    ids = of.input_ids
    assert ids is not None
    expected = model.generate(ids, max_new_tokens=4, do_sample=False)
    handle = lxt.attnlrp.register(model, checkpoint=2)
    with torch.no_grad():
        model(ids)
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), expected)
    handle.remove()
    assert not recorded.lengths()


def test_two_models_in_two_threads() -> None:
    cases = [llama(), llama(6)]
    expected = [gradient(model, of) for model, of in cases]
    found: dict[int, list[Tensor]] = {0: [], 1: []}

    def work(index: int) -> None:
        for length in (1, 2, 3):
            found[index].append(gradient(*cases[index], length))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        assert len(found[index]) == 3
        assert all(torch.equal(one, expected[index]) for one in found[index])


class Noisy(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * torch.rand(4, dtype=x.dtype).round())


def test_random_numbers_are_drawn_again(x: Tensor) -> None:
    """The same ones, from another place of the generator, which stays where it was."""
    model = Stack([Noisy() for _ in range(5)])
    results = []
    with torch.random.fork_rng(devices=[]):
        for checkpoint in (None, 1, 2):
            torch.default_generator.manual_seed(5)
            with lxt.attnlrp.context(model, checkpoint=checkpoint):
                y = model(x)
            torch.rand(3)
            state = torch.get_rng_state()
            results.append(torch.autograd.grad(y.square().sum(), x)[0])
            assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(results[0], one) for one in results[1:])


def test_stand_ins_leave_in_any_order() -> None:
    model = Stack()
    propagation = lxt.attnlrp.register(model, checkpoint=2)
    take_off = Checkpointing(model, 2).install(propagation)
    on_top = [StandIn(layer) for layer in model.layers]
    take_off()
    for stand_in in on_top:
        stand_in.remove()
    propagation.remove()
    assert not any("forward" in vars(module) for module in model.modules())


# --- memory --------------------------------------------------------------------------------------


def memory(layers: int, checkpoint: Any, **arguments: Any) -> tuple[int, int, int]:
    """Bytes after the forward pass, at most, and in the end."""
    model = zoo.build("llama", dtype=torch.float32, num_hidden_layers=layers, num_key_value_heads=4)
    x = torch.zeros(1, 48, 32).normal_(generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    gc.collect()
    gc.disable()  # nothing waits for it
    try:
        with Live(model) as live:
            with lxt.attnlrp.context(model, checkpoint=checkpoint):
                logit = model(inputs_embeds=x, logits_to_keep=1, **arguments).logits[0, -1].max()
            kept = live.now
            (found,) = torch.autograd.grad(logit, x)
            del logit, found
            return kept, live.most, live.now
    finally:
        gc.enable()


def test_memory_grows_with_the_root_of_the_depth() -> None:
    peaks = {}
    for checkpoint in (None, 1, "sqrt"):
        kept, most, left = zip(
            *(memory(layers, checkpoint, use_cache=False) for layers in (4, 16, 64)), strict=True
        )
        assert max(left) < 2**14  # rotary positions and the like
        peaks[checkpoint] = [b - a for a, b in itertools.pairwise(most)]
        if checkpoint == "sqrt":
            assert kept[2] - kept[1] < 1.3 * 2 * (kept[1] - kept[0])
    assert peaks[None][1] > 3.8 * peaks[None][0]  # 48 layers more are 4 × 12
    assert peaks["sqrt"][1] < 2.6 * peaks["sqrt"][0]  # √64 − √16 = 2 (√16 − √4)
    assert peaks["sqrt"][1] < 0.15 * peaks[None][1]
    assert peaks[1][1] < 0.25 * peaks[None][1]


def test_memory_that_is_kept_for_later_backward_passes_is_no_more() -> None:
    model, _ = llama(16, dtype=torch.float32)
    x = torch.zeros(1, 48, 32).normal_(generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    with Live(model) as live:
        with lxt.attnlrp.context(model, checkpoint="sqrt"):
            logit = model(inputs_embeds=x, use_cache=False).logits[0, -1].max()
        kept = live.now
        mosts = []
        for _ in range(3):
            live.most = 0
            (found,) = torch.autograd.grad(logit, x, retain_graph=True)
            size = found.untyped_storage().nbytes()
            del found
            assert live.now - kept <= size
            mosts.append(live.most)
    assert max(mosts) == mosts[0]


def test_with_a_cache_nothing_keeps_itself_alive() -> None:
    *_, left = memory(16, "sqrt", use_cache=True)
    assert left < 2**14

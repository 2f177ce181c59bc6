"""Functions written in Python that modules call: how they are found, and targets by structure."""

# ruff: noqa: N803 - A, B, C and D are what scans call their arguments

import contextlib
import functools
import gc
import threading
import types
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn

import lxt
import mixers
from lxt.errors import InvalidComposite, UnknownOperation
from lxt.structure import Having, Signature, Within
from mixers import Mixer, difference, random, relevance, scan

COMPOSITES = {"attnlrp": lxt.attnlrp, "cp_lrp": lxt.cp_lrp}
over_composites = pytest.mark.parametrize("composite", COMPOSITES)


class ByGlobal(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        return scan(*self.operands(x))


class ByHelper(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        return helper(self, x)


def helper(mixer: Mixer, x: Tensor) -> Tensor:
    return scan(*mixer.operands(x))


def decorated(forward: Any) -> Any:
    @functools.wraps(forward)
    def wrapper(self: Mixer, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return forward(self, *args, **kwargs)

    return wrapper


class ByDecorator(Mixer):
    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return scan(*self.operands(x))


class ByMethod(Mixer):
    """The stand-in for the module is a module of that class, and takes what is written to it."""

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self, ByMethod)
        self.calls += 1
        self.seen = x.shape
        return self.selective_scan(*self.operands(x))

    def selective_scan(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
    ) -> Tensor:
        self.calls += 1
        return plain(u, delta, A, B, C, D)


plain = types.FunctionType(scan.__code__, {"torch": torch}, "plain")
plain.__module__ = "torch"  # as if it were one of torch's own: not to be found by itself


class BySlowPath(Mixer):
    """The forward calls a method, and that the function."""

    def forward(self, x: Tensor) -> Tensor:
        return self.slow_forward(x)

    def slow_forward(self, x: Tensor) -> Tensor:
        return scan(*self.operands(x))


class ByStaticMethod(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        return self.run(*self.operands(x))

    run = staticmethod(scan)


class ByAttribute(Mixer):
    """As a layer that picks a kernel when it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.scan_fn = scan

    def forward(self, x: Tensor) -> Tensor:
        return self.scan_fn(*self.operands(x))


class ByPartial(Mixer):
    def __init__(self) -> None:
        super().__init__()
        self.scan_fn = functools.partial(scan, D=self.D)

    def forward(self, x: Tensor) -> Tensor:
        return self.scan_fn(*self.operands(x)[:-1])


class ByNamespace(Mixer):
    """As `ops.scan`, of a package imported whole."""

    def forward(self, x: Tensor) -> Tensor:
        operands = self.operands(x)
        assert mixers.__name__ == "mixers"
        return mixers.scan(*operands)


class Scan(nn.Module):
    def forward(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
    ) -> Tensor:
        return plain(u, delta, A, B, C, D)


class ByModule(Mixer):
    def __init__(self) -> None:
        super().__init__()
        self.scan = Scan()

    def forward(self, x: Tensor) -> Tensor:
        return self.scan(*self.operands(x))


WAYS = (
    *(ByGlobal, ByHelper, ByDecorator, ByMethod, BySlowPath, ByStaticMethod, ByAttribute),
    *(ByPartial, ByNamespace, ByModule),
)


@over_composites
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hooked", [False, True])
def test_a_scan_is_found_however_it_is_called(
    way: type[Mixer], hooked: bool, composite: str
) -> None:
    mixer = way()
    if hooked:
        add_hook_to_module(mixer, ModelHook())
    x = random(6, 4).requires_grad_()
    untouched = dict(mixer.__dict__), dict(vars(way)), dict(globals())
    with COMPOSITES[composite].context(mixer):
        y = mixer(x)
    assert vars(way) == untouched[1]
    assert globals() == untouched[2]
    assert mixer.__dict__.keys() - {"seen"} == untouched[0].keys()
    assert torch.equal(y, mixer(x))
    g = random(*y.shape, seed=1)
    assert difference(relevance(y, x, g), relevance(mixer.expected(x), x, g)) <= 1e-12
    if way is ByMethod:
        assert mixer.calls == 4
        assert mixer.seen == x.shape


def convolve(x: Tensor, weight: float, bias: float, activation: str | None = None) -> Tensor:
    return x * weight + bias


class Inline(Mixer):
    """The recurrence is written out in the forward: B, C and x can't be told apart."""

    def forward(self, x: Tensor) -> Tensor:
        x = convolve(x, 1.0, 0.0)  # which has a rule too, but is no recurrence
        return self.expected(x) if not x.requires_grad else plain(*self.operands(x))


def test_an_inline_recurrence_is_refused() -> None:
    mixer, x = Inline(), random(6, 4).requires_grad_()
    refused = pytest.raises(UnknownOperation, match=r"Inline .* runs in no function that takes \(A")
    with refused, lxt.attnlrp.context(mixer):
        mixer(x)
    with lxt.attnlrp.context(mixer, on_unknown="gradient"):
        assert torch.equal(mixer(x), mixer(x))
    with lxt.attnlrp.context(mixer):
        mixer(x.detach())  # where nothing carries relevance, nothing is refused
    mine = Signature("u", "delta")
    rule = lxt.attnlrp[Signature("A", "B", "C", "dt|delta", "hidden_states|x|u")]
    with (lxt.attnlrp.without(Having("A_log", "D")) | {mine: rule}).context(mixer):
        assert mixer(x).requires_grad  # whoever takes the check away, knows better


def test_threads_with_other_composites_dont_meet() -> None:
    """Two instances of a class, under two composites at once, while a third is under none."""
    x = random(6, 4)
    barrier = threading.Barrier(3, timeout=60)
    results: dict[str, Tensor] = {}

    def run(name: str, composite: lxt.Composite | None) -> None:
        torch.manual_seed(0)
        mixer, leaf = ByMethod(), x.clone().requires_grad_()
        mixer.load_state_dict(state)
        y = leaf
        for _ in range(20):
            with composite.context(mixer) if composite else contextlib.nullcontext():
                barrier.wait()
                y = mixer(leaf)
                barrier.wait()
        results[name] = torch.autograd.grad(y.sum(), leaf)[0]

    state = ByMethod().state_dict()
    composites = {"rules": lxt.attnlrp, "plain": None, "gradient": lxt.gradient}
    threads = [threading.Thread(target=run, args=item) for item in composites.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mixer, leaf = ByMethod(), x.clone().requires_grad_()
    mixer.load_state_dict(state)
    assert torch.equal(results["plain"], results["gradient"])
    assert torch.equal(results["plain"], torch.autograd.grad(mixer(leaf).sum(), leaf)[0])
    expected = torch.autograd.grad(mixer.expected(leaf).sum(), leaf)[0]
    assert difference(results["rules"], expected) <= 1e-12


def curve(x: Tensor) -> Tensor:
    return x * torch.exp(x)


class Curved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return curve(x) + x


def test_a_function_of_ones_own_is_a_target() -> None:
    """By itself, with a rule for all of it or with those of its parts."""
    x, model = random(5).requires_grad_(), Curved()

    def slope(rule: Any) -> Tensor:
        with (lxt.attnlrp | {curve: rule} if rule else lxt.attnlrp).context(model):
            return torch.autograd.grad(model(x).sum(), x)[0].detach() - 1

    exp = x.detach().exp()
    parts = exp / 2 + (exp - 1) / 2
    assert difference(slope(lxt.rules.passthrough), exp + x.detach() * exp) <= 1e-12
    assert difference(slope(lxt.rules.unit), exp) <= 1e-8
    assert not slope(lxt.rules.constant).any()
    assert difference(slope(lxt.rules.composed), parts) <= 1e-12
    assert difference(slope(None), parts) <= 1e-12


def test_structures_as_targets() -> None:
    assert Having("A_log", "D").fits(ByGlobal())
    assert Having("A_log", "to_bc|to_b").fits(ByGlobal())
    assert not Having("A_log", "E").fits(ByGlobal())
    assert Signature("A", "dt|delta").fits(scan)
    assert not Signature("A", "dt").fits(scan)
    assert not Signature("x").fits(print)
    assert Signature("A", "B|C") == Signature("A", "B|C") != Having("A", "B|C")
    assert {Having("A"): 1}[Having("A")] == 1
    assert repr(Having("A", "B|C")) == "lxt.Having('A', 'B|C')"
    composite = lxt.Composite({Having("A_log"): Within({F.silu: lxt.rules.constant})})
    assert str(composite).count("Having") == 1
    assert repr(composite[Having("A_log")]) == "lxt.Within(1 functions)"
    with pytest.raises(InvalidComposite, match=r"Signature\('A'\) is 3: give a function"):
        lxt.Composite({Signature("A"): 3})
    with pytest.raises(InvalidComposite, match=r"silu is lxt.Within\(0 functions\), which is for"):
        lxt.Composite({F.silu: Within({})})


def test_what_other_rules_hold_within_ends_with_it() -> None:
    """Nested modules too: `Within` is for what runs while its module does, and nothing after."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Buffer(torch.ones(1))
            self.inner = nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            return x * self.inner(x)

    model, x = nn.Sequential(Gate(), nn.Sigmoid()), random(5).requires_grad_()
    rule = Within(dict.fromkeys(lxt.rules.spelled("sigmoid"), lxt.rules.constant))
    with (lxt.attnlrp | {Having("slope"): rule}).context(model):
        y = model(x)
    with torch.no_grad():
        inner = x * x.sigmoid()
        expected = (y - 0.5) / inner * x.sigmoid()
    assert difference(torch.autograd.grad(y.sum(), x)[0], expected) <= 1e-12


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_kept_alive_after_removal(way: type[Mixer]) -> None:
    gc.collect()
    gc.disable()
    try:
        mixer = way()
        with lxt.attnlrp.context(mixer):
            mixer(random(3, 4).requires_grad_()).sum().backward()
        reference = weakref.ref(mixer)
        del mixer
        assert reference() is None
    finally:
        gc.enable()

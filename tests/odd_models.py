"""Models that are odd on purpose: they hide what they compute, or decide it by themselves."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from lxt.composites import attnlrp, cp_lrp
from lxt.errors import UnknownOperation
from lxt.explicit.composites import attnlrp as explicit_attnlrp, cp_lrp as explicit_cp_lrp


class Odd(nn.Module):
    """A model that is one function of its input, with modules for it to call."""

    def __init__(self, function: Callable[[Odd, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.activation = nn.SiLU()
        self.linear = nn.Linear(4, 4)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.GELU())

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


# --- autograd Functions that hide x³ --------------------------------------------------------------


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, *gradients):
        (x,) = ctx.saved_tensors
        return gradients[0] * 3 * x**2


class OnceCube(torch.autograd.Function):
    forward = Cube.forward
    backward: Any = staticmethod(once_differentiable(Cube.backward))


class SetUpCube(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    backward = Cube.backward


class ViewingCube(torch.autograd.Function):
    """Returns a view of its operand, and the gradient of its cube."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.clone())
        return x.view(-1)

    @staticmethod
    def backward(ctx, *gradients):
        (x,) = ctx.saved_tensors
        return gradients[0].view_as(x) * 3 * x**2


class DirtyCube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.clone())
        x.pow_(3)
        ctx.mark_dirty(x)
        return x

    backward = Cube.backward


class CubeAndSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3, x**2

    @staticmethod
    def backward(ctx, *gradients):
        (x,) = ctx.saved_tensors
        return gradients[0] * 3 * x**2 + gradients[1] * 2 * x


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Cube": Cube.apply,
    "OnceCube": OnceCube.apply,
    "SetUpCube": SetUpCube.apply,
    "ViewingCube": lambda x: ViewingCube.apply(x.clone()).view_as(x),
    "DirtyCube": lambda x: DirtyCube.apply(x.clone()),
    "CubeAndSquare": lambda x: CubeAndSquare.apply(x)[0],
}


# --- kernels, and other ways out of torch ---------------------------------------------------------


def kernel_on_pointers(source: int, target: int, count: int) -> None:
    """What a Triton kernel does: it gets addresses, reads from one and writes to the other."""
    read = np.ctypeslib.as_array((ctypes.c_double * count).from_address(source))
    write = np.ctypeslib.as_array((ctypes.c_double * count).from_address(target))
    write[:] = read**3


def launched(x: Tensor, of: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    out = torch.empty_like(x)
    kernel_on_pointers(of(x).data_ptr(), out.data_ptr(), x.numel())
    return out


def out_of_storage(x: Tensor) -> Tensor:
    empty: Any = x.new_empty(0)
    return empty.set_(x.untyped_storage(), 0, x.shape) ** 3


WAYS_OUT: dict[str, Callable[[Tensor], Any]] = {
    "data_ptr": launched,
    "data_ptr of detached": lambda x: launched(x, Tensor.detach),
    "data_ptr of .data": lambda x: launched(x, lambda x: x.data),
    "numpy": lambda x: torch.from_numpy(x.detach().numpy() ** 3),
    "numpy by force": lambda x: torch.from_numpy(x.numpy(force=True) ** 3),
    "numpy of a copy": lambda x: torch.from_numpy(x.detach().clone().float().numpy() ** 3),
    "numpy of a part": lambda x: torch.from_numpy(x.data[0].contiguous().numpy() ** 3),
    "np.asarray": lambda x: torch.from_numpy(np.asarray(x.detach()) ** 3),
    "a ufunc of numpy": lambda x: torch.as_tensor(np.tanh(x.detach())),
    "torch.from_dlpack": lambda x: torch.from_dlpack(x.detach()) ** 3,
    "np.from_dlpack": lambda x: torch.from_numpy(np.tanh(np.from_dlpack(x.detach()))),
    "untyped_storage": out_of_storage,
    "storage": lambda x: torch.tensor(list(x.storage()), dtype=x.dtype).view_as(x) ** 3,
    "apply_": lambda x: x.detach().clone().apply_(lambda v: v**3),
    "tolist": lambda x: torch.tensor(x.tolist(), dtype=x.dtype) ** 3,
    "item": lambda x: x * x.mean().item(),
    "items": lambda x: torch.as_tensor([v.item() for v in x.flatten()]).view_as(x) ** 3,
    "float": lambda x: x * float(x.mean().sigmoid()),
    "math": lambda x: x * __import__("math").exp(x[0, 0]),
    "complex": lambda x: x * abs(complex(x[0, 0])),
    "torch.tensor": lambda x: torch.tensor([x[0, 0], x[0, 1]]) ** 3,
    "new_tensor": lambda x: x.new_tensor(x) ** 3,
}


def written(write: Callable[[Tensor, Tensor], Any], graph: bool = False) -> Any:
    """A function that computes a tensor, writes to it with a constant's help, and goes on."""

    def function(x: Tensor) -> Tensor:
        y, g = x * 1, x.sigmoid().detach()
        with torch.set_grad_enabled(graph):
            write(y, g)
        return y * 1

    return function


def data_set(y: Tensor, g: Tensor) -> None:
    y.data = g


def item_set(y: Tensor, g: Tensor) -> None:
    y.detach()[0] = g[0]


UNSEEN_WRITES: dict[str, Callable[[Tensor], Any]] = {
    "no_grad mul_": written(lambda y, g: y.mul_(g)),
    "no_grad tanh_": written(lambda y, _: y.tanh_()),
    "no_grad relu_": written(lambda y, _: torch.relu_(y)),
    "no_grad inplace": written(lambda y, _: F.relu(y, inplace=True)),
    "no_grad *=": written(lambda y, g: y.__imul__(g)),
    "no_grad []=": written(lambda y, g: y.__setitem__(0, g[0])),
    "no_grad part": written(lambda y, g: y[0].mul_(g[0])),
    "no_grad out": written(lambda y, g: torch.mul(g, g, out=y)),
    "no_grad .data": written(lambda y, g: y.data.mul_(g)),
    "no_grad foreach": written(lambda y, g: torch._foreach_mul_([y], [g])),  # pyright: ignore[reportPrivateImportUsage]
    "detach mul_": written(lambda y, g: y.detach().mul_(g), graph=True),
    "detach of a part": written(lambda y, g: y[0].detach().mul_(g[0]), graph=True),
    "part of detach": written(lambda y, g: y.detach()[:, 1:].mul_(g[:, 1:]), graph=True),
    "detach twice": written(lambda y, g: y.detach().detach().mul_(g), graph=True),
    "detach []=": written(item_set, graph=True),
    "detach mul_ by what carries": written(lambda y, _: y.detach().mul_(y.sigmoid()), graph=True),
    ".data.mul_": written(lambda y, g: y.data.mul_(g), graph=True),
    ".data.copy_": written(lambda y, _: y.data.copy_(torch.tanh(y).data), graph=True),
    ".data =": written(data_set, graph=True),
    "no_grad .data =": written(data_set),
}


# --- operators ------------------------------------------------------------------------------------


@torch.library.custom_op("lxt_odd::cube", mutates_args=())
def cube(x: Tensor) -> Tensor:
    return x**3


@torch.library.custom_op("lxt_odd::cube_with_gradient", mutates_args=())
def cube_with_gradient(x: Tensor) -> Tensor:
    return x**3


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


cube_with_gradient.register_autograd(Cube.backward, setup_context=_keep)


@torch.library.custom_op("lxt_odd::cube_into", mutates_args=("out",))
def cube_into(x: Tensor, out: Tensor) -> None:
    out.copy_(x**3)


def by_writing(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    cube_into(x, out)
    return out


LIBRARY = torch.library.Library("lxt_odd", "FRAGMENT")
LIBRARY.define("raw(Tensor x) -> Tensor")
LIBRARY.impl("raw", lambda x: x.detach() ** 3, "CPU")
LIBRARY.define("composite(Tensor x) -> Tensor")
LIBRARY.impl("composite", lambda x: x**3, "CompositeImplicitAutograd")


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * x * x


traced: Any = torch.jit.trace(lambda x: x * x.sigmoid(), torch.ones(3, 4, dtype=torch.float64))

OPERATORS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a custom operator": (cube, "lxt_odd::cube"),
    "one with a gradient": (cube_with_gradient, "lxt_odd::cube_with_gradient"),
    "one that writes": (by_writing, "lxt_odd::cube_into"),
    "a C++ operator": (torch.ops.lxt_odd.raw, "lxt_odd::raw"),
    "a composite one": (torch.ops.lxt_odd.composite, "lxt_odd::composite"),
    "torch.ops.aten": (torch.ops.aten.silu, "aten::silu"),
    "an overload": (torch.ops.aten.silu.default, "aten::silu"),
    "prims": (torch.ops.prims.tanh, "prims::tanh"),
    "scripted": (scripted, "MulBackward|DifferentiableGraph"),
    "traced": (traced, "MulBackward|DifferentiableGraph"),
    "vmap": (torch.func.vmap(lambda v: v.sigmoid() * v), "torch.func"),
    "torch.func.grad": (torch.func.grad(lambda v: (v**3).sum()), "torch.func"),
    "torch.autograd.grad": (
        lambda x: torch.autograd.grad((x**3).sum(), x, create_graph=True)[0],
        "torch.autograd.grad",
    ),
}


# --- tensors that decide by themselves ------------------------------------------------------------


class Plain(Tensor):
    """A subclass that overrides nothing."""


class PlainParameter(nn.Parameter):
    """A parameter of a class of its own, that overrides nothing."""


class Sneaky(Tensor):
    """Puts out the tanh of whatever is asked of it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            return result.tanh() if isinstance(result, Tensor) else result


class SneakyParameter(nn.Parameter):
    """Squashes what linear layers make of it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            return result.tanh() if func is F.linear else result


class Dispatching(Tensor):
    """Does so below autograd, where no function is seen."""

    @staticmethod
    def __new__(cls, x: Tensor):
        made: Any = Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype)
        made.wrapped = x
        return made

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map(lambda x: getattr(x, "wrapped", x), (args, kwargs or {}))
        return func(*args, **kwargs).tanh()


class Squashing(TorchDispatchMode):
    """Changes what operations compute while it is active."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {})).tanh()


class Stranger:
    """No tensor at all, but torch asks it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return args[0].tanh()


def squashed(x: Tensor) -> Tensor:
    with Squashing():
        return F.silu(x)


def unseen(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return F.silu(x)


def with_sneaky_weight(model: Odd, x: Tensor) -> Tensor:
    return F.linear(x, SneakyParameter(model.linear.weight.detach()))


ONE = torch.ones(4, dtype=torch.float64)

SUBCLASSES: dict[str, tuple[Callable[[Odd, Tensor], Any], str]] = {
    "activations": (lambda _, x: F.silu(x.as_subclass(Sneaky)), "Sneaky"),
    "a constant operand": (lambda _, x: x + ONE.as_subclass(Sneaky), "Sneaky"),
    "one in a list": (lambda _, x: torch.cat([x, ONE[None].as_subclass(Sneaky)]), "Sneaky"),
    "a parameter": (with_sneaky_weight, "SneakyParameter"),
    "dispatch": (lambda _, x: x * Dispatching(ONE), "Dispatching"),
    "a dispatch mode": (lambda _, x: squashed(x), "Squashing"),
    "no tensor": (lambda _, x: torch.add(x, Stranger()), "Stranger"),  # pyright: ignore[reportArgumentType, reportCallIssue]
    "functions switched off": (lambda _, x: unseen(x), "SiluBackward"),
}


# --- what is done with them -----------------------------------------------------------------------

COMPOSITES = {
    composite.name: composite for composite in (attnlrp, cp_lrp, explicit_attnlrp, explicit_cp_lrp)
}


def operand() -> Tensor:
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.requires_grad_()


def model_of(function: Callable[[Odd, Tensor], Any]) -> Odd:
    torch.manual_seed(0)
    return Odd(function).double()


def assert_refused(function: Callable[[Odd, Tensor], Any], reason: str) -> None:
    for composite in COMPOSITES.values():
        model, x = model_of(function), operand()
        with composite.context(model), pytest.raises(UnknownOperation, match=reason) as raised:
            model(x * 1)
        assert "in module" in str(raised.value) or "torch.func" in str(raised.value)


def upstream() -> Tensor:
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

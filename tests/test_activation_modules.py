"""Activation and norm modules of torch and transformers, as modules inside a model."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F
import transformers.activations
from mpmath import mpf
from torch import Tensor, nn
from torch.nn.modules import activation as torch_activations

import naive
import operations
from lxt.composites import attnlrp
from lxt.errors import UnknownOperation
from lxt.rules.registry import constant_t, sample, t
from naive_functions import FUNCTIONS, clamp, gelu, secant, sigmoid, softplus
from operations import Call, Model

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Inside(nn.Module):
    """A model that is one module, whose operand it may write to."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.clone())


def with_parameters(module: nn.Module) -> nn.Module:
    """`module` in float64 with parameters and statistics that are not all 0 or 1."""
    module.double()
    for parameter in module.parameters():
        parameter.data.copy_(operations.POSITIVE_GRID[: parameter.numel()].reshape(parameter.shape))
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.copy_(operations.POSITIVE_GRID[10 : 10 + buffer.numel()])
    return module


def check_module(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    reference: Callable[[nn.Module, Tensor, Tensor], Tensor],
    limit: Callable[[float], float] = lambda eps: max(1e-12, 3 * eps),
) -> None:
    """Values to the bit and gradients as in `reference`, in all dtypes, for modules `make` makes.

    `limit` maps the precision of a dtype to what a gradient may be off, relative to the largest.
    """
    x = operations.GRID[: math.prod(shape)].reshape(shape)
    for dtype in DTYPES:
        plain, ours = make().to(dtype), make().to(dtype)
        leaf = x.to(dtype, copy=True).requires_grad_()
        value = Inside(plain)(x.to(dtype))
        with attnlrp.context(model := Inside(ours)):
            y = model(leaf)
        assert y.dtype == value.dtype
        assert torch.equal(y, value)
        assert all(map(torch.equal, ours.buffers(), plain.buffers()))
        g = operations.GRID[100 : 100 + y.numel()].reshape(y.shape)
        (gradient,) = torch.autograd.grad(y, leaf, g.to(dtype))
        # The module's own parameters are those rounded to dtype.
        wanted = reference(make().to(dtype).double(), x, g)
        assert gradient.isfinite().all()
        assert (gradient.double() - wanted).abs().max() <= (
            limit(torch.finfo(dtype).eps) * wanted.abs().max()
        )
        assert all(p.grad is None and p.requires_grad for p in ours.parameters())


def element_by_element(f: Callable[[mpf], mpf], module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    slopes = [secant(f, value) for value in x.flatten().tolist()]
    return g * torch.tensor(slopes, dtype=torch.float64).reshape(x.shape)


def by_function(operation: Callable[..., Any], *args: Any, **kwargs: Any):
    """A module's gradient is that of the function it calls, with its weight and bias by name."""

    def reference(module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
        call = Call(operation, ((operations.Slot(0), *args), dict(kwargs)), (x,), (True,))
        for name in ("weight", "bias", "running_mean", "running_var"):
            if (value := getattr(module, name, None)) is not None:
                slot = operations.Slot(len(call.tensors))
                call = Call(
                    operation,
                    (call.arguments[0], {**call.arguments[1], name: slot}),
                    (*call.tensors, value.detach()),
                    (*call.carries, False),
                )
        return naive.gradients(call, [g])[0]

    return reference


ELEMENTWISE_MODULES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "Threshold": ("threshold", (0.1, 0.5)),
    "ReLU": ("relu", ()),
    "RReLU": ("rrelu", (0.1, 0.4)),
    "Hardtanh": ("hardtanh", (-0.5, 1.5)),
    "ReLU6": ("relu6", ()),
    "Sigmoid": ("sigmoid", ()),
    "Hardsigmoid": ("hardsigmoid", ()),
    "Tanh": ("tanh", ()),
    "SiLU": ("silu", ()),
    "Mish": ("mish", ()),
    "Hardswish": ("hardswish", ()),
    "ELU": ("elu", (1.3,)),
    "CELU": ("celu", (0.7,)),
    "SELU": ("selu", ()),
    "GELU": ("gelu", ("tanh",)),
    "Hardshrink": ("hardshrink", (0.3,)),
    "LeakyReLU": ("leaky_relu", (0.2,)),
    "LogSigmoid": ("logsigmoid", ()),
    "Softplus": ("softplus", (2.0,)),
    "Softshrink": ("softshrink", (0.3,)),
    "Softsign": ("softsign", ()),
    "Tanhshrink": ("tanhshrink", ()),
}
OTHER_MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "GLU": (nn.GLU, (3, 4), by_function(F.glu)),
    "PReLU": (nn.PReLU, (3, 4), by_function(F.prelu)),
    "Softmin": (lambda: nn.Softmin(1), (3, 4), by_function(F.softmin, 1)),
    "Softmax": (lambda: nn.Softmax(1), (3, 4), by_function(F.softmax, 1)),
    "Softmax2d": (nn.Softmax2d, (1, 3, 2, 2), by_function(F.softmax, 1)),
    "LogSoftmax": (lambda: nn.LogSoftmax(1), (3, 4), by_function(F.log_softmax, 1)),
}
RANDOM_IN_TRAINING = {"RReLU"}


def test_every_activation_module_of_torch_is_here():
    here = ELEMENTWISE_MODULES.keys() | OTHER_MODULES.keys()
    assert here == set(torch_activations.__all__) - {"MultiheadAttention"}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ELEMENTWISE_MODULES)
def test_elementwise_module_of_torch(name, training):
    if training and name in RANDOM_IN_TRAINING:
        return
    function, args = ELEMENTWISE_MODULES[name]
    cls = getattr(nn, name)
    takes_inplace = "inplace" in inspect.signature(cls).parameters
    for options in ({}, {"inplace": True}) if takes_inplace else ({},):
        check_module(
            lambda options=options: cls(*args, **options).train(training),
            (3, 8),
            functools.partial(element_by_element, lambda x: FUNCTIONS[function](x, *args)),
        )


@pytest.mark.parametrize("name", OTHER_MODULES)
def test_other_activation_module_of_torch(name):
    make, shape, reference = OTHER_MODULES[name]
    check_module(lambda: with_parameters(make()), shape, reference)


def test_prelu_with_a_weight_for_each_channel():
    make = lambda: with_parameters(nn.PReLU(3))  # noqa: E731
    check_module(make, (2, 3, 2, 2), by_function(F.prelu))


def test_inplace_by_position_and_by_name_writes_to_the_operand():
    for function, args in {F.relu: (), F.elu: (1.0,), F.leaky_relu: (0.2,), F.silu: ()}.items():
        for args_, options in (((*args, True), {}), (args, {"inplace": True})):

            def operation(x, function=function, args_=args_, options=options):
                y = function(x, *args_, **options)
                assert torch.equal(x, y)
                return x

            call = Call.of(operation, sample(t(3, 5)))
            model, g = Model(call, torch.float64), call.upstream()
            outputs = model.under(attnlrp)
            plain = Call.of(function, sample(t(3, 5), *args))
            (wanted,) = naive.gradients(plain, g)
            assert torch.allclose(model.handed_back(outputs, g)[0], wanted, rtol=1e-12)


def test_random_slopes_are_refused():
    with pytest.raises(UnknownOperation, match=r"random; call model.eval\(\)"):
        Model(Call.of(nn.RReLU().train(), sample(t(3, 5))), torch.float64).under(attnlrp)


# --- transformers.activations --------------------------------------------------------------------


def xielu(x: mpf, module: nn.Module) -> mpf:
    """arXiv 2411.13010, with the module's values; its ε only matters for |x| < 1e-6."""
    softplus = lambda p: mpmath.log1p(mpmath.exp(mpf(p.item())))  # noqa: E731
    beta = mpf(module.beta.item())
    if x > 0:
        return softplus(module.alpha_p) * x * x + beta * x
    alpha_n = beta + softplus(module.alpha_n)
    return (mpmath.expm1(min(x, mpf(module.eps.item()))) - x) * alpha_n + beta * x


def laplace(x: mpf, mu: float = 0.707107, sigma: float = 0.282095) -> mpf:
    return (1 + mpmath.erf((x - mpf(mu)) / (mpf(sigma) * math.sqrt(2.0)))) / 2


tanh_gelu = functools.partial(gelu, approximate="tanh")
TRANSFORMERS: dict[str, list[tuple[tuple[Any, ...], Callable[[mpf], mpf]]]] = {
    "GELUTanh": [((), tanh_gelu), ((True,), tanh_gelu)],
    "PytorchGELUTanh": [((), tanh_gelu)],
    "NewGELUActivation": [((), tanh_gelu)],
    "GELUActivation": [((), gelu), ((True,), gelu)],
    "SiLUActivation": [((), FUNCTIONS["silu"])],
    "FastGELUActivation": [((), tanh_gelu)],
    "QuickGELUActivation": [((), lambda x: x * sigmoid(mpf("1.702") * x))],
    "ClippedGELUActivation": [((-0.1, 1.0), lambda x: clamp(gelu(x), -0.1, 1.0))],
    "AccurateGELUActivation": [((), tanh_gelu)],
    "MishActivation": [((), FUNCTIONS["mish"])],
    "LinearActivation": [((), lambda x: x)],
    "LaplaceActivation": [((), laplace)],
    "ReLUSquaredActivation": [((), lambda x: max(x, mpf(0)) ** 2)],
    "SqrtSoftplusActivation": [((), lambda x: mpmath.sqrt(softplus(x)))],
    "XIELUActivation": [((), xielu)],
}
# The slope comes from values, which are rounded to the dtype of the model: (f(x) − f(0)) / x is off
# by eps / |x|, where |x| ≥ eps^(1/3), below which the derivative is taken.
FROM_VALUES = {
    "ClippedGELUActivation",
    "LaplaceActivation",
    "SqrtSoftplusActivation",
    "XIELUActivation",
}


def test_every_activation_of_transformers_is_here():
    classes = {
        name
        for name, cls in vars(transformers.activations).items()
        if inspect.isclass(cls) and issubclass(cls, nn.Module)
    }
    assert classes <= TRANSFORMERS.keys()
    for spec in transformers.activations.ACT2CLS.values():
        cls = spec[0] if isinstance(spec, tuple) else spec
        assert cls.__name__ in TRANSFORMERS.keys() | ELEMENTWISE_MODULES.keys() | {"PReLU"}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_activation_of_transformers(name):
    cls = getattr(transformers.activations, name, None)
    if cls is None:
        pytest.skip(f"this release of transformers has no {name}")
    for args, f in TRANSFORMERS[name]:

        def reference(module, x, g, f=f):
            bound = functools.partial(f, module=module) if f is xielu else f
            return element_by_element(bound, module, x, g)

        check_module(
            lambda args=args: cls(*args),
            (6, 16),
            reference,
            # 1e-9: some classes write their constants with 10 digits.
            lambda eps: max(1e-9, 2 * eps ** (2 / 3) if name in FROM_VALUES else 3 * eps),
        )


# --- norms ---------------------------------------------------------------------------------------

VOLUMES = {1: (2, 4, 3), 2: (2, 4, 2, 3), 3: (2, 4, 2, 1, 3)}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "layer": (lambda: nn.LayerNorm(5), (2, 3, 5), by_function(F.layer_norm, (5,))),
    "layer over two": (lambda: nn.LayerNorm((3, 5)), (2, 3, 5), by_function(F.layer_norm, (3, 5))),
    "layer, bare": (
        lambda: nn.LayerNorm(5, eps=1e-3, elementwise_affine=False),
        (3, 5),
        by_function(F.layer_norm, (5,), eps=1e-3),
    ),
    "rms": (lambda: nn.RMSNorm(5, eps=1e-6), (2, 3, 5), by_function(F.rms_norm, (5,), eps=1e-6)),
    "rms, default eps": (lambda: nn.RMSNorm(5), (2, 3, 5), by_function(F.rms_norm, (5,))),
    "group": (lambda: nn.GroupNorm(2, 4), (2, 4, 3, 2), by_function(F.group_norm, 2)),
    "response": (
        lambda: nn.LocalResponseNorm(3, alpha=0.5),
        (2, 4, 3),
        by_function(F.local_response_norm, 3, 0.5),
    ),
    **{
        f"batch {n}d": (lambda n=n: BATCH_NORMS[n](4).eval(), shape, by_function(F.batch_norm))
        for n, shape in VOLUMES.items()
    },
    **{
        f"instance {n}d, affine={affine}": (
            lambda n=n, affine=affine: INSTANCE_NORMS[n](4, affine=affine),
            shape,
            by_function(F.instance_norm),
        )
        for n, shape in VOLUMES.items()
        for affine in (False, True)
    },
    "instance, tracking, eval": (
        lambda: nn.InstanceNorm1d(4, track_running_stats=True).eval(),
        VOLUMES[1],
        by_function(F.instance_norm, use_input_stats=False),
    ),
    "instance, tracking, training": (
        lambda: nn.InstanceNorm1d(4, track_running_stats=True),
        VOLUMES[1],
        by_function(F.instance_norm),
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_norm_module(name):
    make, shape, reference = NORMS[name]
    # Centring cancels in low precision; the layer norm kernel saves its statistics rounded.
    check_module(lambda: with_parameters(make()), shape, reference, lambda eps: max(1e-12, 8 * eps))


def test_norms_in_float64_conserve_relevance_but_for_the_bias():
    for operation, args in {F.layer_norm: ((4,),), F.group_norm: (2,), F.instance_norm: ()}.items():
        call = Call.of(operation, sample(t(2, 4, 4), *args, weight=constant_t(4)))
        model, g = Model(call, torch.float64), call.upstream()
        (y,) = model.under(attnlrp)
        (received,) = model.handed_back([y], g)
        assert torch.allclose((model.explained[0] * received).sum(), (y * g[0]).sum(), rtol=1e-10)

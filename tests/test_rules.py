"""Every rule of the registry, on every sample, against its naive twin in `naive.py`."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import naive
import naive_attention
import naive_losses
import naive_norms
import naive_products
import naive_recurrent
import operations
from lxt.composites import attnlrp
from lxt.errors import UnknownOperation, UnusedCompositeWarning
from lxt.rules.registry import REGISTRY
from operations import Call, Model, assert_close

ENTRIES = operations.all_entries()
NEEDS_A_GPU = {"torch.Tensor.cuda"}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Not implemented on the CPU in all four dtypes.
_NOT_IN_HALF = ("quantile", "nanquantile", "cdist", "solve_triangular", "multi_dot", "chain_matmul")
DTYPES_OF = {
    "torch.nn.functional.avg_pool3d": (torch.float64, torch.float32),
    "torch._grouped_mm": (torch.float32, torch.bfloat16),
    "torch.nn.functional.grouped_mm": (torch.float32, torch.bfloat16),
    **dict.fromkeys(
        (
            name
            for name, entry in ENTRIES.items()
            if entry.family == "spectral" or operations.base_name(entry.operation) in _NOT_IN_HALF
        ),
        (torch.float64, torch.float32),
    ),
}

# Change the shape of the tensor they are called on, or nothing, but no values.
WRITE_NO_VALUES = frozenset({"squeeze", "unsqueeze", "transpose", "swapaxes", "t"})

WRITING = [
    name
    for name, entry in ENTRIES.items()
    if operations.is_in_place(entry.operation)
    and operations.base_name(entry.operation) not in WRITE_NO_VALUES
]

every_entry = pytest.mark.parametrize("name", sorted(set(ENTRIES) - NEEDS_A_GPU))


@pytest.fixture(autouse=True)
def _every_warning_is_seen():
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


def calls(name: str) -> list[Call]:
    return operations.entry_calls(ENTRIES[name])


def dtypes(name: str, call: Call) -> tuple[torch.dtype, ...]:
    """Those that an operation is implemented in; few are for complex numbers of less."""
    narrow = any(x.is_complex() for x in call.tensors)
    return DTYPES_OF.get(name, DTYPES[:2] if narrow else DTYPES)


@functools.cache
def expected(name: str, number: int, shift: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of the outputs, and what the operands must receive for them, in float64."""
    call = calls(name)[number]
    g = call.upstream(shift)
    return g, naive.gradients(call, g)


def quiet(function, *args):
    """The result, and the warnings given on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(*args)
    # Samples without anything to explain are what they are.
    caught = [w for w in caught if not issubclass(w.category, UnusedCompositeWarning)]
    return result, {str(warning.message) for warning in caught}


# --- the registry --------------------------------------------------------------------------------


def test_every_entry_has_a_name_of_its_own():
    assert len(ENTRIES) == len(REGISTRY)


def test_every_entry_has_a_reference():
    names = {operations.base_name(entry.operation) for entry in ENTRIES.values()}
    assert names - naive.REFERENCES.keys() == set()


def test_every_reference_has_an_entry():
    names = {operations.base_name(entry.operation) for entry in ENTRIES.values()}
    # Names that releases of torch give to the same function.
    assert naive.REFERENCES.keys() - names <= {"spmm", "mm", "__rdiv__", "__rtruediv__"}


def test_every_entry_has_samples_in_which_something_carries_relevance():
    assert [name for name in ENTRIES if not calls(name)] == []
    assert [name for name in ENTRIES for call in calls(name) if not call.carriers()] == []


# --- values --------------------------------------------------------------------------------------


@every_entry
def test_value_is_the_plain_operations_to_the_bit(name):
    for call in calls(name):
        for dtype in dtypes(name, call):
            # With gradients required alike: attention chooses its kernel by that.
            operands = [x.clone() for x in call.copies(dtype)]
            plain, plain_warnings = quiet(call, *operands)
            outputs, new_warnings = quiet(Model(call, dtype).under, attnlrp)
            assert len(outputs) == len(plain) > 0
            for y, reference in zip(outputs, plain, strict=True):
                assert y.dtype == reference.dtype
                assert y.shape == reference.shape
                assert torch.equal(y.nan_to_num(7.5), reference.nan_to_num(7.5))
            assert new_warnings <= plain_warnings


@every_entry
def test_only_in_place_operations_write_to_an_operand(name):
    for call in calls(name):
        written = set()

        def watched(*args, call=call, written=written, **kwargs):
            tensors = [*args, *kwargs.values()]
            flat = [x for x in tensors for x in (x if isinstance(x, tuple | list) else [x])]
            flat = [(n, x) for n, x in enumerate(flat) if isinstance(x, Tensor)]
            before = [(n, x, x.detach().clone(), x._version) for n, x in flat]
            result = call.operation(*args, **kwargs)
            for n, x, value, version in before:
                if x._version != version or not torch.equal(x.reshape(value.shape), value):
                    written.add(n)
            return result

        model = Model(replace(call, operation=watched), call.precise)
        operands = [x.detach().clone() for x in model.explained]
        model.under(attnlrp)
        assert written <= ({0} if operations.is_in_place(call.operation) else set())
        assert all(map(torch.equal, model.explained, operands))


# --- gradients -----------------------------------------------------------------------------------


@every_entry
def test_gradient_is_the_naive_references(name):
    for number, call in enumerate(calls(name)):
        g, reference = expected(name, number)
        model = Model(call, call.precise)
        received = model.handed_back(model.under(attnlrp), g)
        # Where float32 is the most there is, the numbers are exact in it, but for their last sum.
        tolerance = 1e-12 if call.precise == torch.float64 else 1e-6
        for gradient, wanted in zip(received, reference, strict=True):
            assert_close(gradient, wanted, tolerance)
        assert all(parameter.grad is None for parameter in model.parameters())


@every_entry
def test_reference_departs_from_autograd_where_the_rule_should(name):
    departing = []
    for number, call in enumerate(calls(name)):
        g, reference = expected(name, number)
        model = Model(call, call.precise).requires_grad_(False)
        try:
            received = model.handed_back(model(*model.explained), g)
        except (NotImplementedError, RuntimeError) as error:  # which a rule is free to have
            assert "derivative" in str(error)  # noqa: PT017
            received = []
        same = len(received) > 0 and all(
            torch.allclose(operations.as_real(a).double(), operations.as_real(b), rtol=1e-9)
            for a, b in zip(received, reference, strict=True)
        )
        departing.append((not same, naive.departs(call)))
    assert [actual for actual, _ in departing] == [wanted for _, wanted in departing]


@every_entry
def test_gradient_in_low_precision_is_that_of_float64_rounded(name):
    for number, call in enumerate(calls(name)):
        g, reference = expected(name, number)
        # The operands are exact in every dtype. An ulp is at most eps times the largest number; the
        # fused kernels of attention round their weights, and the sums over keys, before the end.
        # Multi-head attention rounds its scores too, before it takes their exponential.
        ulps = 64 if "multi_head" in name else 8 if "attention" in name else 3
        for dtype in set(dtypes(name, call)) - {torch.float64}:
            model = Model(call, dtype)
            received = model.handed_back(model.under(attnlrp), g)
            for gradient, wanted in zip(received, reference, strict=True):
                assert operations.as_real(gradient).dtype == dtype
                assert gradient.isfinite().all()
                assert_close(gradient, wanted, ulps * torch.finfo(dtype).eps)


@every_entry
def test_batched_gradients_are_those_one_by_one(name):
    for call in calls(name):
        model = Model(call, call.precise)
        outputs = model.under(attnlrp)
        g = [call.upstream(shift) for shift in range(3)]
        one_by_one = [model.handed_back(outputs, g_n) for g_n in g]
        if not any(y.requires_grad for y in outputs):
            continue
        stacked = [torch.stack(g_y) for g_y in zip(*g, strict=True)]
        batched, messages = quiet(
            functools.partial(model.handed_back, is_grads_batched=True), outputs, stacked
        )
        assert not messages
        for all_at_once, *each in zip(batched, *one_by_one, strict=True):
            assert_close(all_at_once.expand(3, *each[0].shape), torch.stack(each), 1e-12)


WRITE_CONSTANTS = {
    name
    for name in WRITING
    if operations.base_name(ENTRIES[name].operation) in ("rsqrt", "sqrt", "reciprocal")
}


@pytest.mark.parametrize("name", sorted(WRITE_CONSTANTS))
def test_constants_are_not_written_into_a_part_of_a_tensor(name):
    """The part would still pass for something that carries relevance."""
    (call, *_) = calls(name)
    with pytest.raises(UnknownOperation, match="constants into a view"):
        Model(call, torch.float64, in_slice=True).under(attnlrp)


@pytest.mark.parametrize("name", sorted(set(WRITING) - WRITE_CONSTANTS))
def test_writing_to_a_slice_of_a_computed_tensor(name):
    written = [call for call in calls(name) if call.carries[0]]
    for call in written:
        g = call.upstream()
        model = Model(call, torch.float64, in_slice=True)
        outputs = model.under(attnlrp)
        plain = call(*[x.detach() for x in call.copies()])
        assert torch.equal(outputs[0], plain[0])
        for gradient, wanted in zip(
            model.handed_back(outputs, g), naive.gradients(call, g), strict=True
        ):
            assert_close(gradient, wanted, 1e-12)
    assert written


# --- conservation --------------------------------------------------------------------------------

_ABSORBING = (
    *(naive_products.nothing, naive_products.places_are_constant, naive_norms.spread_and_mean),
    *(naive_attention.softmax, naive_attention.logsumexp, naive_attention.logcumsumexp),
    *(naive_attention.attention, naive_attention.glu, naive_recurrent.recurrent),
    naive_losses.cross_entropy,
)


def conserves(call: Call) -> bool:
    """Whether nothing absorbs: all carries relevance or multiplies, so y is 0 where they are."""
    if naive.REFERENCES[operations.base_name(call.operation)] in _ABSORBING:
        return False
    at_zero = [
        x * (0 if carries and received.any() else 1) if operations.is_real(x) else x
        for x, carries, received in zip(call.tensors, call.carries, _received(call), strict=True)
    ]
    return all(not y.any() for y in call(*at_zero))


def _received(call: Call) -> list[Tensor]:
    found = dict(zip(call.carriers(), naive.gradients(call, call.upstream()), strict=True))
    return [found.get(n, torch.zeros(1)) for n in range(len(call.tensors))]


_CONSERVING = [
    (name, number)
    for name in ENTRIES
    if name not in NEEDS_A_GPU | DTYPES_OF.keys()
    for number in range(len(calls(name)))
]


def test_relevance_is_conserved_where_nothing_absorbs():
    families = set()
    for name, number in _CONSERVING:
        call = calls(name)[number]
        if not conserves(call):
            continue
        families.add(naive.REFERENCES[operations.base_name(call.operation)].__name__)
        model, g = Model(call, torch.float64), call.upstream()
        outputs = model.under(attnlrp)
        put_in = sum((y.double() * g_y).sum() for y, g_y in zip(outputs, g, strict=True))
        received = model.handed_back(outputs, g)
        got_out = sum(
            (operations.as_real(x) * operations.as_real(g_x)).sum()
            for x, g_x in zip(model.explained, received, strict=True)
        )
        scale = sum((y.double() * g_y).abs().sum() for y, g_y in zip(outputs, g, strict=True))
        assert abs(got_out - put_in) <= 1e-10 * scale, name
    assert families >= {
        *("linear", "picks", "product", "sum_with_product", "quotient", "elementwise", "power"),
        *("layer_norm", "rms_norm", "group_norm", "normalize", "local_response_norm"),
    }

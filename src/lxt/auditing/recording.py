"""One forward and backward pass with a recorder: what a ledger is made of."""

from __future__ import annotations

from dataclasses import dataclass

from lxt.composite import Composite
from lxt.engine.recorder import Recorder
from lxt.engine.records import Call, Escape, Settlement
from lxt.errors import InvalidModel, UnknownOperation
from lxt.passes import Case, Pass

__all__ = ["Record", "recorded"]


@dataclass(frozen=True)
class Record:
    """A forward pass, its calls, what its backward pass did, and what it hid from the rules."""

    run: Pass
    calls: list[Call]
    settlement: Settlement
    escaped: list[Escape]


def recorded(case: Case, composite: Composite) -> Record:
    """Run a case under a composite; operations without a rule hand back their own gradient.

    Raises:
        InvalidModel: the output depends on nothing that is explained, or is what is explained.
        UnknownOperation: an operation without a rule has no gradient of its own either.

    """
    recorder = Recorder(case.model, composite.formulation)
    propagation = composite.register(case.model, on_unknown="gradient")
    propagation.observer = recorder
    propagation.on_plain = recorder.left_plain
    try:
        run = case.forward()
    finally:
        propagation.remove()
    if not run.output.requires_grad:
        raise InvalidModel(
            f"what {type(case.model).__name__} put out does not depend on "
            f"{', '.join(run.leaves)} under {composite.name!r}: nothing can be explained"
        )
    if run.output.grad_fn is None:
        raise InvalidModel(
            f"{type(case.model).__name__} puts out {', '.join(run.leaves)} as it is: no operation "
            "runs, and there is nothing to audit"
        )
    try:
        settlement = recorder.settle(run.output, run.seed, run.leaves)
    except (RuntimeError, NotImplementedError) as error:
        unknown = [call for call in recorder.calls if call.rule is None and call.carries]
        if not unknown:
            raise
        site = unknown[0].callsite
        raise UnknownOperation(
            f"{unknown[0].operation} has no rule in composite {composite.name!r}, and no gradient "
            f"of its own ({error})\n  in module {site.module or 'model'!r} ({site.module_class})\n"
            f"  at {site.file}:{site.line}: {site.text}"
        ) from error
    return Record(run, recorder.calls, settlement, recorder.escaped)

"""`check_model`: an audit that raises."""

from __future__ import annotations

from typing import Any

from torch import nn

from lxt.audit import audit
from lxt.auditing.report import Report
from lxt.composite import Composite
from lxt.errors import CheckFailed
from lxt.targets import Target
from lxt.tensor_case import TensorTarget
from lxt.tokens import printable

__all__ = ["check_model"]


def check_model(
    model: nn.Module,
    inputs: Any,
    target: Target | TensorTarget = None,
    composite: Composite | str | None = None,
    *,
    tokenizer: Any = None,
) -> Report:
    """Make sure that an audit of the model finds nothing.

    The arguments are those of `lxt.audit`.

    Returns:
        The report of the audit.

    Raises:
        CheckFailed: there are findings; the message has all of them.
        InvalidModel, InvalidInput, InvalidTarget, InvalidComposite: as for `lxt.audit`.

    """
    report = audit(model, inputs, target, composite, tokenizer=tokenizer)
    if not report.ok:
        lines = [f"{report.model} under {report.composite!r} is not sound:"]
        for number, finding in enumerate(report.findings, start=1):
            lines.append(printable(f"  {number}. {finding.kind}: {finding.text}"))
            if finding.line:
                lines.append(printable(f"     write: {finding.line}"))
        raise CheckFailed("\n".join(lines))
    return report

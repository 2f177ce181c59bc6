"""`lxt audit MODEL`."""

from __future__ import annotations

from typing import Annotated

import typer

from lxt.cli import common, outputs


def audit(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A hub id, a local folder, a .gguf file, or default: the model."
        ),
    ],
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text to run; - reads standard input.")
    ] = "The capital of France is",
    target: Annotated[
        str | None,
        typer.Option(
            "--target", "-t", metavar="TOKEN|LABEL", help="What to explain, as for lxt explain."
        ),
    ] = None,
    composite: common.Composite = "attnlrp",
    json: outputs.Json = None,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Say whether relevance of a model can be trusted. Exits with 0 if it is sound, else 1."""
    from rich.console import Console

    with common.reported():
        prompt = common.read(prompt)
        common.check_composite(composite)
        outputs.check_files([json])
        errors_console = Console(stderr=True)
        with errors_console.status("loading the model") as status:
            loaded = common.load(model, device, dtype)
            from lxt.audit import audit as compute

            report = compute(
                loaded.model,
                prompt,
                common.target_of(loaded.model, target, None),
                composite,
                tokenizer=loaded.tokenizer,
                progress=status.update,
            )
        if json == "-":
            outputs.put_text(report.to_json())
        else:
            if json:
                report.to_json(json)
            outputs.put(report)
        if not report.ok:
            raise typer.Exit(1)

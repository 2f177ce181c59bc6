"""`lxt explain PROMPT`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lxt.cli import common, outputs
from lxt.errors import InvalidInput

if TYPE_CHECKING:
    from lxt.models import LoadedModel


def explain(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text to explain; - reads standard input.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A hub id, a local folder or a .gguf file. Default: SmolLM2-135M-Instruct.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            metavar="TOKEN|LABEL",
            help='Explain this token (" Paris") or label instead of the model\'s own prediction.',
        ),
    ] = None,
    versus: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN|LABEL",
            help="Explain why the target, or the prediction, rather than this one.",
        ),
    ] = None,
    composite: common.Composite = "attnlrp",
    trace: Annotated[
        bool, typer.Option("--trace", help="Follow relevance through the model's layers.")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Wrap the prompt in the model's chat template.")
    ] = False,
    html: outputs.Html = None,
    open: outputs.Open = False,
    json: outputs.Json = None,
    save: outputs.Save = None,
    pdf: outputs.Pdf = None,
    png: outputs.Png = None,
    svg: outputs.Svg = None,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Say which tokens of a prompt made the model say what it says."""
    with common.reported():
        prompt = common.read(prompt)
        common.check_composite(composite)
        to = outputs.Outputs(html, open, json, save, pdf, png, svg)
        to.check()
        loaded = common.load(model, device, dtype)
        from lxt import explain as explained, trace as traced

        compute = traced if trace else explained
        explanation = compute(
            loaded.model,
            _chat(loaded, prompt) if chat else prompt,
            tokenizer=loaded.tokenizer,
            target=common.target_of(loaded.model, target, versus),
            composite=composite,
        )
        to.put(explanation)


def _chat(loaded: LoadedModel, prompt: str) -> Any:
    """The prompt as the user's turn of a conversation, up to where the model answers."""
    if not getattr(loaded.tokenizer, "chat_template", None):
        raise InvalidInput(f"{loaded.name} has no chat template: leave out --chat")
    return loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )

"""The shell: `lxt explain PROMPT` and `lxt audit MODEL`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lxt import errors
from lxt._version import __version__

if TYPE_CHECKING:
    from lxt.models import LoadedModel
    from lxt.targets import Target

__all__ = ["app"]

# What the caller got wrong exits like a usage error, what the machine lacks like a failure.
_MISUSE = (
    errors.InvalidInput,
    errors.InvalidTarget,
    errors.InvalidComposite,
    errors.InvalidModel,
    errors.InvalidFile,
)

app = typer.Typer(
    help="Layer-wise Relevance Propagation for any PyTorch transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


# Options that the commands share.
_Composite = Annotated[str, typer.Option(help="The rules: attnlrp, cp_lrp or gradient.")]
_Json = Annotated[
    str | None, typer.Option(metavar="PATH", help="Write it as JSON; - prints nothing else.")
]
_Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps, … Default: a GPU if there is one.")
]
_Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16. Default: float32 on a CPU.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lxt {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command()
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
    composite: _Composite = "attnlrp",
    chat: Annotated[
        bool, typer.Option("--chat", help="Wrap the prompt in the model's chat template.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write the explanation as a page.")] = None,
    json: _Json = None,
    save: Annotated[
        Path | None, typer.Option(help="Write it to a file that lxt.Explanation.load reads.")
    ] = None,
    device: _Device = None,
    dtype: _Dtype = None,
) -> None:
    """Say which tokens of a prompt made the model say what it says."""
    with _reported():
        prompt = _read(prompt)
        _check_options(prompt, composite, [html, json, save])
        loaded = _load(model, device, dtype)
        from lxt.explain import explain as compute

        explanation = compute(
            loaded.model,
            _chat(loaded, prompt) if chat else prompt,
            tokenizer=loaded.tokenizer,
            target=_target(loaded.model, target, versus),
            composite=composite,
        )
        if save:
            explanation.save(save)
        if html:
            explanation.to_html(html)
        if json == "-":
            typer.echo(explanation.to_json())
            return
        if json:
            explanation.to_json(json)
        from rich.console import Console

        Console().print(explanation)


@app.command()
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
    composite: _Composite = "attnlrp",
    json: _Json = None,
    device: _Device = None,
    dtype: _Dtype = None,
) -> None:
    """Say whether relevance of a model can be trusted. Exits with 0 if it is sound, else 1."""
    from rich.console import Console

    with _reported():
        prompt = _read(prompt)
        _check_options(prompt, composite, [json])
        errors_console = Console(stderr=True)
        with errors_console.status("loading the model") as status:
            loaded = _load(None if model == "default" else model, device, dtype)
            from lxt.audit import audit as compute

            report = compute(
                loaded.model,
                prompt,
                _target(loaded.model, target, None),
                composite,
                tokenizer=loaded.tokenizer,
                progress=status.update,
            )
        if json == "-":
            typer.echo(report.to_json())
        else:
            if json:
                report.to_json(json)
            Console().print(report)
        if not report.ok:
            raise typer.Exit(1)


@contextmanager
def _reported() -> Iterator[None]:
    """Turn an error of ours into a message on standard error and an exit code."""
    try:
        yield
    except errors.LxtError as error:
        typer.secho("error: ", fg=typer.colors.RED, bold=True, err=True, nl=False)
        typer.echo(str(error), err=True)
        raise typer.Exit(2 if isinstance(error, _MISUSE) else 1) from None


def _read(prompt: str) -> str:
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise errors.InvalidInput(f"standard input is not UTF-8 text: {error}") from None


def _check_options(prompt: str, composite: str, files: list[Any]) -> None:
    """Find mistakes before a model is loaded."""
    from lxt.composites import by_name
    from lxt.storage import check_writable

    if not prompt.strip():
        raise errors.InvalidInput(f"the prompt is empty ({prompt!r}): give some text to explain")
    by_name(composite)
    files = [file for file in files if file is not None and file != "-"]
    for file in files:
        check_writable(file)
    if len({Path(file).resolve() for file in files}) < len(files):
        raise errors.InvalidInput(
            f"{', '.join(map(str, files))}: two of the files to write are the same"
        )


def _load(name: str | None, device: str | None, dtype: str | None) -> LoadedModel:
    from lxt.models import load_model

    return load_model(name, device=device, dtype=dtype)


def _target(model: Any, target: str | None, versus: str | None) -> Target | None:
    from lxt.targets import Contrast, Label, Logit, task_of

    if versus is not None:
        return Contrast(target, versus)
    if target is None:
        return None
    return Label(target) if task_of(model) == "label" else Logit(target)


def _chat(loaded: LoadedModel, prompt: str) -> Any:
    """The prompt as the user's turn of a conversation, up to where the model answers."""
    if not getattr(loaded.tokenizer, "chat_template", None):
        raise errors.InvalidInput(f"{loaded.name} has no chat template: leave out --chat")
    return loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )

"""What commands share: how errors end, what a model is given, and the options for both."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lxt import errors
from lxt.tokens import printable

if TYPE_CHECKING:
    from lxt.models import LoadedModel
    from lxt.targets import Target

Composite = Annotated[str, typer.Option(help="The rules: attnlrp, cp_lrp or gradient.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps, … Default: a GPU if there is one.")
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16. Default: float32 on a CPU.")
]

# What the caller got wrong exits like a usage error, what the machine lacks like a failure.
_MISUSE = (
    errors.InvalidInput,
    errors.InvalidTarget,
    errors.InvalidTap,
    errors.InvalidComposite,
    errors.InvalidModel,
    errors.InvalidFile,
)


@contextmanager
def reported() -> Iterator[None]:
    """Turn an error of ours into a message on standard error and an exit code."""
    try:
        yield
    except errors.LxtError as error:
        typer.secho("error: ", fg=typer.colors.RED, bold=True, err=True, nl=False)
        # A message may quote a file's or a model's own words: nothing in it acts on the terminal.
        typer.echo("\n".join(map(printable, str(error).split("\n"))), err=True)
        raise typer.Exit(2 if isinstance(error, _MISUSE) else 1) from None


def read(prompt: str) -> str:
    """Return a prompt, of ``-`` what standard input holds; raise if there is nothing in it.

    Raises:
        InvalidInput: standard input is not UTF-8 text, or the prompt is empty.

    """
    if prompt == "-":
        try:
            prompt = standard_input().decode().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise errors.InvalidInput(f"standard input is not UTF-8 text: {error}") from None
    if not prompt.strip():
        raise errors.InvalidInput(f"the prompt is empty ({prompt!r}): give some text to explain")
    return prompt


def standard_input() -> bytes:
    """Return all that standard input holds.

    Raises:
        InvalidInput: it is closed.

    """
    if sys.stdin is None:  # as a shell's <&- makes it
        raise errors.InvalidInput("standard input is closed, and - reads it")
    return sys.stdin.buffer.read()


def check_composite(name: str) -> None:
    """Raise `InvalidComposite` before a model is loaded, and not after."""
    from lxt.composites import by_name

    by_name(name)


def load(name: str | None, device: str | None, dtype: str | None) -> LoadedModel:
    """Load a model; none, and the one called default, is the embedded one."""
    from lxt.models import load_model

    return load_model(None if name == "default" else name, device=device, dtype=dtype)


def target_of(model: Any, target: str | None, versus: str | None) -> Target | None:
    """Return what is to be explained, in the words that go with the model's task."""
    from lxt.targets import Contrast, Label, Logit, task_of

    if versus is not None:
        return Contrast(target, versus)
    if target is None:
        return None
    return Label(target) if task_of(model) == "label" else Logit(target)

"""The shell: `lxt explain`, `lxt show`, `lxt audit` and `lxt atlas`, each in its own file."""

from typing import Annotated

import typer

from lxt._version import __version__
from lxt.cli import atlas, audit, explain, show

__all__ = ["app"]

app = typer.Typer(
    help="Layer-wise Relevance Propagation for any PyTorch transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (explain.explain, show.show, audit.audit):
    app.command()(_command)
app.add_typer(atlas.atlas, name="atlas")


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

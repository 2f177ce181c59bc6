"""`python -m lxt.coverage`: the checks of every model type of transformers, as a table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lxt import errors
from lxt.coverage.catalogue import NO_MODEL, ModelType, model_type, model_types
from lxt.coverage.size import Size
from lxt.coverage.sweep import Limits, sweep
from lxt.coverage.table import as_document, as_json, as_markdown
from lxt.storage import check_writable

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_SIZE = Size()


@app.command()
def main(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="TYPE…", help="Model types, as llama; all there are if left out."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help='Only types whose task contains this, as "causal LM".')
    ] = None,
    hidden: Annotated[int, typer.Option(help="Width of the residual stream.")] = _SIZE.hidden,
    layers: Annotated[int, typer.Option(help="Number of layers.")] = _SIZE.layers,
    heads: Annotated[int, typer.Option(help="Number of attention heads.")] = _SIZE.heads,
    tokens: Annotated[int, typer.Option(help="Length of the input.")] = _SIZE.tokens,
    batch: Annotated[int, typer.Option(help="Number of rows.")] = _SIZE.batch,
    seed: Annotated[int, typer.Option(help="What weights and inputs follow from.")] = _SIZE.seed,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at once.")] = os.cpu_count() or 1,
    seconds: Annotated[float, typer.Option(help="Time that a type may take.")] = Limits.seconds,
    gibibytes: Annotated[
        float, typer.Option(help="Memory that a type may take.")
    ] = Limits.gibibytes,
    markdown: Annotated[Path | None, typer.Option(help="Write the table here.")] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write everything that was found here.")
    ] = None,
) -> None:
    """Check lxt on tiny random models of transformers' types.

    Exits with 1 if one fails, or is named and can't be built; with 2 if nothing can be checked.
    """
    from rich.console import Console
    from rich.progress import track

    try:
        chosen = [model_type(name) for name in names] if names else list(model_types())
        size = Size(
            hidden=hidden, layers=layers, heads=heads, tokens=tokens, batch=batch, seed=seed
        )
        for path in filter(None, (markdown, json_path)):
            check_writable(path)
        if task is not None:
            chosen = _of_task(chosen, task)
    except (errors.LxtError, ValueError) as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(2) from None
    limits = Limits(seconds, gibibytes)
    console = Console(stderr=True)
    rows = []
    for row in track(
        sweep([row.name for row in chosen], size, jobs=jobs, limits=limits),
        total=len(chosen),
        description="checking",
        console=console,
    ):
        rows.append(row)
        if row.status == "failed" or (row.status == "not built" and NO_MODEL not in row.reason):
            console.print(f"{row.name}: {row.status}: {row.reason}", markup=False, highlight=False)
    document = as_document(rows, size)
    if json_path:
        json_path.write_text(as_json(document), encoding="utf-8")
    if markdown:
        command = "python -m lxt.coverage --markdown docs/coverage.md --json docs/coverage.json"
        markdown.write_text(as_markdown(document, command), encoding="utf-8")
    typer.echo(", ".join(f"{count} {status}" for status, count in document["counts"].items()))
    wanting = {"failed", "not built"} if names else {"failed"}
    if any(row.status in wanting for row in rows):
        raise typer.Exit(1)


def _of_task(rows: list[ModelType], task: str) -> list[ModelType]:
    chosen = [row for row in rows if task in row.task]
    if not chosen:
        tasks = ", ".join(sorted({row.task for row in rows}))
        raise ValueError(f"no type has a task that contains {task!r}: there are {tasks}")
    return chosen


if __name__ == "__main__":
    app()

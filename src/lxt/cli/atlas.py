"""`lxt atlas build MODEL` and `lxt atlas show DIR`."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from lxt.cli import common, outputs
from lxt.errors import InvalidInput, InvalidTap

__all__ = ["atlas"]

atlas = typer.Typer(
    help="What neurons and heads mean: the contexts of a corpus that drive them most.",
    no_args_is_help=True,
)

_KINDS = ("neurons", "heads", "residual")


@atlas.command()
def build(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A hub id, a local folder, a .gguf file, or default: the model."
        ),
    ],
    corpus: Annotated[
        Path,
        typer.Option(
            help="A .txt, .jsonl, .parquet or .csv file, or a folder of them. In a .txt file texts "
            "are apart by empty lines."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The folder of the atlas; one that was begun is gone on with.")
    ],
    taps: Annotated[
        list[str] | None,
        typer.Option(
            help="neurons, heads, residual, or the path of modules such as layers.*.mlp.act_fn. "
            "May be given several times. Default: neurons."
        ),
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(help="Only this layer, from 0. May be given several times."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="activation, relevance, -activation or -relevance. May be given several times. "
            "Default: activation and relevance."
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Contexts of each unit.")] = 16,
    context: Annotated[int, typer.Option(help="Tokens of a context.")] = 64,
    skip: Annotated[int, typer.Option(help="So many first tokens of a context don't count.")] = 0,
    column: Annotated[
        str | None, typer.Option(help="The column that texts are in. Default: text.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Contexts that run at a time.")] = None,
    composite: common.Composite = "attnlrp",
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Run a corpus through a model, and keep what drives each neuron most."""
    with common.reported():
        common.check_composite(composite)
        found = _taps(taps or ["neurons"], layer)
        from lxt.atlas.arrow import pyarrow_of
        from lxt.atlas.corpus import Corpus

        pyarrow_of()
        Corpus(corpus, column)  # which says before the model is loaded whether there is one
        loaded = common.load(model, device, dtype)
        from lxt.atlas.atlas import Atlas

        made = Atlas.build(
            loaded.model,
            corpus,
            tokenizer=loaded.tokenizer,
            folder=out,
            taps=found,
            by=by or ("activation", "relevance"),
            top=top,
            context=context,
            skip=skip,
            column=column,
            batch_size=batch_size,
            composite=composite,
        )
        outputs.put_text(_summary(made, 10))


@atlas.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the atlas.")],
    unit: Annotated[
        str | None,
        typer.Argument(metavar="UNIT", help="Such as layers.3.mlp.down_proj[7]. Default: all."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Attributes contexts to the unit, and tells its vocabulary; default is the model.",
        ),
    ] = None,
    contexts: Annotated[int, typer.Option(help="How many contexts of each ranking.")] = 8,
    pages: Annotated[int, typer.Option(help="Of all units, so many get a page.")] = 100,
    html: Annotated[
        Path | None,
        typer.Option(help="Write a page of the unit; without one, a folder of pages."),
    ] = None,
    open: Annotated[bool, typer.Option("--open", help="Open what --html wrote.")] = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Show a unit of an atlas, or those that stand out."""
    with common.reported():
        if open and html is None:
            raise InvalidInput("--open opens what --html writes: give --html PATH")
        from lxt.atlas.atlas import Atlas

        found = Atlas.open(folder)
        if unit is not None:
            found.name(unit)  # which says before the model is loaded whether there is one
        given: dict[str, Any] = {"contexts": contexts}
        if model is not None:
            loaded = common.load(model, device, dtype)
            given |= {"model": loaded.model, "tokenizer": loaded.tokenizer}
        page = html
        if unit is not None:
            description = found.describe(unit, **given)
            if html is not None:
                description.to_html(html)
            outputs.put_text(str(description))
        else:
            if html is not None:
                found.to_html(html, most=pages, **given)
                page = html / "index.html"
            outputs.put_text(_summary(found, 20))
        if open and page is not None and not webbrowser.open(page.resolve().as_uri()):
            typer.echo(f"no browser is there to open {str(page)!r}", err=True)


def _taps(names: list[str], layer: list[int] | None) -> list[Any]:
    from lxt.latent.taps import Heads, Neurons, Residual, Tap

    found: list[Any] = []
    for name in names:
        if name in _KINDS:
            if name == "residual":
                found.append(Residual(layer=layer, channels=True))
            else:
                found.append((Neurons if name == "neurons" else Heads)(layer=layer))
        elif layer is not None:
            raise InvalidTap(f"--layer goes with {', '.join(_KINDS)}, and not with {name!r}")
        else:
            found.append(Tap(name))
    return found


def _summary(found: Any, count: int) -> str:
    """The atlas, and the units that stand out, each with the tokens that it is largest at."""
    from lxt.tokens import printable

    lines = [repr(found)[1:-1]]
    for name in found.strongest(count):
        tokens = [printable(c.tokens[c.peak]) for c in found.top(name, k=5)]
        lines.append(f"  {printable(name)}  {'  '.join(map(repr, tokens))}")
    return "\n".join(lines)

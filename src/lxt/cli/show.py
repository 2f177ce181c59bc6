"""`lxt show FILE…`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard, cast

import typer

from lxt.cli import common, outputs
from lxt.errors import InvalidInput

if TYPE_CHECKING:
    from lxt.explanation import Explanation
    from lxt.image_explanation import ImageExplanation


def show(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="What --save or --json wrote; - reads JSON from standard input. Several files are "
            "compared.",
        ),
    ],
    row: Annotated[
        int | None, typer.Option(metavar="INDEX", help="Only this row of a batch, from 0.")
    ] = None,
    target: Annotated[
        int | None, typer.Option(metavar="INDEX", help="Only this one of many targets, from 0.")
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(metavar="NAME|INDEX", help="Only this layer, by its name or from 0."),
    ] = None,
    html: outputs.Html = None,
    open: outputs.Open = False,
    json: outputs.Json = None,
    save: outputs.Save = None,
    pdf: outputs.Pdf = None,
    png: outputs.Png = None,
    svg: outputs.Svg = None,
) -> None:
    """Show saved explanations: one as it is, or several side by side."""
    with common.reported():
        to = outputs.Outputs(html, open, json, save, pdf, png, svg)
        if len(files) > 1:
            to.check_for_comparison()
        if files.count("-") > 1:
            raise InvalidInput("standard input is there once, and - is given more often")
        to.check(read=files)
        loaded = [_load(file) for file in files]
        if len(loaded) == 1 and not _is_text(loaded[0]):
            _refuse_parts(files[0], {"--row": row, "--target": target, "--layer": layer})
            to.put(loaded[0])
            return
        explanations = _texts(files, loaded)
        parts = [
            _part_of(file, explanation, row, target, layer)
            for file, explanation in zip(files, explanations, strict=True)
        ]
        if len(parts) == 1:
            to.put(parts[0])
            return
        from lxt.comparison import compare

        for file, part in zip(files, parts, strict=True):
            if len(part.axes) > 1:
                raise InvalidInput(
                    f"{file!r} has the axes {', '.join(part.axes)}: pick a part with --row, "
                    "--target or --layer to compare it"
                )
        to.put_comparison(compare(*parts))


def _is_text(explanation: Explanation | ImageExplanation) -> TypeGuard[Explanation]:
    from lxt.explanation import Explanation

    return isinstance(explanation, Explanation)


def _texts(files: list[str], loaded: list[Explanation | ImageExplanation]) -> list[Explanation]:
    """Return what several files hold, if it is explanations of text, which can be compared."""
    pictures = [f for f, one in zip(files, loaded, strict=True) if not _is_text(one)]
    if not pictures:
        return [explanation for explanation in loaded if _is_text(explanation)]
    listed = ", ".join(map(repr, pictures))
    if len(pictures) < len(files):
        raise InvalidInput(
            f"{listed}: of a picture, and the others are of text; only these are compared"
        )
    raise InvalidInput(f"{listed}: explanations of pictures are not compared; give one file")


def _refuse_parts(file: str, given: dict[str, int | str | None]) -> None:
    """Raise where an option asks for a part that an explanation of a picture doesn't have."""
    for option, value in given.items():
        if value is not None:
            raise InvalidInput(
                f"{file!r} is an explanation of a picture, whole as it is: {option} picks a part "
                "of one of text"
            )


def _part_of(
    file: str, explanation: Explanation, row: int | None, target: int | None, layer: str | None
) -> Explanation:
    try:
        if layer is not None:
            explanation = _layer(explanation, layer)
        if target is not None:
            explanation = _target(explanation, target)
        if row is not None:
            if not explanation.is_batch:
                raise InvalidInput(_lacks(explanation, "--row", "a batch"))
            explanation = explanation[row]
    except (IndexError, InvalidInput) as error:
        raise InvalidInput(f"{file!r}: {error}") from None
    return explanation


def _load(file: str) -> Explanation | ImageExplanation:
    from lxt import kinds

    if file == "-":
        return kinds.from_json(common.standard_input(), "standard input")
    return kinds.load(file)


def _lacks(explanation: Explanation, option: str, what: str) -> str:
    return f"{option} takes {what}, and its axes are {', '.join(explanation.axes)}"


def _layer(explanation: Explanation, layer: str) -> Explanation:
    names = explanation.layers
    if names is None:
        raise InvalidInput(_lacks(explanation, "--layer", "layers"))
    if layer in names:
        index = names.index(layer)
    else:
        try:
            index = range(len(names))[int(layer)]
        except (ValueError, IndexError):
            listed = ", ".join(map(repr, names))
            raise InvalidInput(
                f"--layer {layer!r} is none of its {len(names)} layers, {listed}"
            ) from None
    axis = explanation.axes.index("layers")
    return replace(explanation, relevance=explanation.relevance.select(axis, index), layers=None)


def _target(explanation: Explanation, index: int) -> Explanation:
    if not explanation.is_many:
        raise InvalidInput(_lacks(explanation, "--target", "many targets"))
    if not explanation.is_batch:
        return explanation[index]
    targets = cast("list[list[Any]]", explanation.target)
    if not all(-len(of_row) <= index < len(of_row) for of_row in targets):
        counts = ", ".join(str(len(of_row)) for of_row in targets)
        raise InvalidInput(f"--target {index} is not there in every row, which have {counts}")
    # Counted in each row by itself: from the end they lie at different places.
    chosen = [range(len(of_row))[index] for of_row in targets]
    rows = range(len(targets))
    return replace(
        explanation,
        relevance=explanation.relevance[rows, chosen],
        target=[of_row[index] for of_row in targets],
    )

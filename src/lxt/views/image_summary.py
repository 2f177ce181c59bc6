"""What every view says of an explanation of a picture: the same words and numbers, made once."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from lxt.errors import InvalidInput
from lxt.tokens import printable
from lxt.views.options import percentile_of
from lxt.views.raster import Field, check_smooth, field_of
from lxt.views.summary import in_words, number_format

if TYPE_CHECKING:
    from lxt.image_explanation import ImageExplanation

Sign = Literal["both", "positive"]

_MOST_ACROSS = 40
"""More cells than that beside each other are too small to be read one by one."""
_USUAL = (16, 14, 32)
"""Sides of the patches of vision transformers, in pixels."""


@dataclass(frozen=True)
class Shown:
    """An explanation as it is shown: what is coloured, and what is said of it; all texts inert."""

    explanation: "ImageExplanation"
    """Of patches, where those are asked for."""
    field: Field
    positive: bool
    smoothed: bool
    headline: str
    facts: dict[str, str]
    notes: list[str]
    """What was done to relevance before it was shown, and what isn't."""
    unit: str
    """What a number of the scale belongs to."""
    ends: tuple[str, str]
    """The lowest and the highest number of the scale."""

    @property
    def description(self) -> str:
        """One sentence for those who don't see it."""
        return f"{self.headline}, {self.unit}, sum {self.facts['sum of relevance']}"


def shown(
    explanation: "ImageExplanation",
    *,
    sign: Sign = "both",
    patch: int | tuple[int, int] | None = None,
    smooth: float | None = None,
    robust: bool | float = False,
) -> Shown:
    """Put an explanation into what is shown of it; see ``ImageExplanation.to_image``.

    Raises:
        InvalidInput: an option is none of those that there are; quotes what was given.

    """
    if sign not in get_args(Sign):
        raise InvalidInput(f"sign={sign!r} is neither 'both' nor 'positive'")
    check_smooth(smooth)
    percentile = percentile_of(robust)
    if patch is not None:
        explanation = explanation.by_patches(patch)
    positive = sign == "positive"
    field = field_of(explanation, positive=positive, smooth=smooth, percentile=percentile)
    number = number_format(field.scale.end)
    most = number(field.scale.end)
    least = "0" if positive else number(-field.scale.end)
    if field.scale.beyond:
        most, least = f"≥ {most}", least if positive else f"≤ {least}"
    height, width = explanation.cell
    unit = "relevance of a pixel of the model"
    if (height, width) != (1, 1):
        unit = f"relevance of a patch of {height} × {width} pixels of the model"
    return Shown(
        explanation,
        field,
        positive,
        bool(smooth),
        f"Relevance for {printable(explanation.target.name)}",
        facts(explanation),
        _notes(explanation, field, smooth, positive=positive),
        unit,
        (least, most),
    )


def patches_of(cell: tuple[int, int]) -> str:
    """Say what relevance is of, many of them."""
    height, width = cell
    if cell == (1, 1):
        return "pixels of the model"
    return f"patches of {height} × {width} pixels of the model"


def place(box: tuple[float, ...]) -> str:
    """Say which of the picture's pixels a patch covers, across and down."""
    top, left, bottom, right = box
    return f"{left:.0f}…{right:.0f} × {top:.0f}…{bottom:.0f}"


def block_sizes(explanation: "ImageExplanation") -> list[tuple[int, int]]:
    """Return the patches that relevance can be read by, in the model's pixels: the best first.

    That is as it is, where there are few; single pixels are read by patches as models have them.
    All others follow by size; squares of what there is, up to a quarter of the shorter side.
    """
    (rows, columns), (height, width) = explanation.relevance.shape, explanation.cell
    sides = [
        n
        for n in range(1, max(min(rows, columns) // 4, 1) + 1)
        if rows % n == 0 and columns % n == 0
    ]
    few = [n for n in sides if max(rows, columns) <= _MOST_ACROSS * n]
    usual = [n for n in _USUAL if n in few]
    best = 1 if 1 in few else (usual or few or sides[-1:])[0]
    ordered = [best, *(n for n in sides if n != best)]
    return [(n * height, n * width) for n in ordered]


def facts(explanation: "ImageExplanation") -> dict[str, str]:
    """Return what was explained, by what, and the sums."""
    target, total = explanation.target, explanation.total
    of_sums = number_format(max(abs(total), abs(target.value)))
    said = {
        "explained": in_words(target),
        "value": of_sums(target.value).removeprefix("+"),
        "sum of relevance": of_sums(total).removeprefix("+"),
        "model predicts": printable(target.prediction),
    }
    provenance = explanation.provenance
    said |= {
        name: printable(provenance[name]) for name in ("composite", "model") if name in provenance
    }
    return said | {"picture": _geometry(explanation)}


def _geometry(explanation: "ImageExplanation") -> str:
    geometry = explanation.geometry
    (height, width), (rows, columns) = geometry.image, geometry.pixels
    top, left, bottom, right = geometry.seen
    words = f"{width} × {height}, shown to the model as {columns} × {rows}"
    if (top, left, bottom, right) != (0, 0, height, width):
        part = (bottom - top) * (right - left) / (height * width)
        words += f"; it saw {part:.0%} of it"
    return words


def _notes(
    explanation: "ImageExplanation", field: Field, smooth: float | None, *, positive: bool
) -> list[str]:
    notes = []
    if smooth:
        notes.append(
            f"smoothed with a Gaussian of standard deviation {smooth:g} pixels of the model, "
            "which keeps the sum"
        )
    if positive:
        negative = explanation.relevance.double().clamp(max=0).sum().item()
        if negative:
            amount = number_format(abs(negative))(negative)
            notes.append(f"positive relevance only: negative, {amount} in all, is not shown")
    notes += field.scale.note("colours")
    outside = explanation.outside
    total = explanation.relevance.double().abs().sum().item()
    if abs(outside) > 1e-6 * total:
        amount = number_format(abs(outside))(outside)
        notes.append(f"{amount} of the relevance lies in pixels that were added to the picture")
    return notes

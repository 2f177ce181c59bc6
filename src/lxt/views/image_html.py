"""Relevance over a picture as HTML: one page that needs nothing else, or a part of a notebook."""

from __future__ import annotations

import base64
import io
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from lxt.tokens import printable
from lxt.views import colour, payload, raster
from lxt.views.html import script_of, source
from lxt.views.image import draw
from lxt.views.image_summary import Shown, Sign, block_sizes, patches_of, place, shown
from lxt.views.summary import number_format

if TYPE_CHECKING:
    from lxt.image_explanation import ImageExplanation

__all__ = ["fragment", "page"]

_MOST_ACROSS, _LEAST_ACROSS = 1000, 480
"""Pixels of a picture's longer side: larger ones are made smaller, and smaller ones larger."""
_STRONGEST = 20
_QUALITY = 92

# In the order in which they build on each other, as in lxt.views.html.
_SCRIPTS = ("elements", "data", "picture")


def page(
    explanation: ImageExplanation,
    *,
    sign: Sign = "both",
    patch: int | tuple[int, int] | None = None,
    smooth: float | None = None,
    robust: bool | float = False,
) -> str:
    """Return a complete HTML5 document; see ``ImageExplanation.to_html``."""
    what = shown(explanation, sign=sign, patch=patch, smooth=smooth, robust=robust)
    layers = [name for name in get_args(raster.Layer) if name != "picture"] + ["picture"]
    height, width = what.explanation.geometry.image
    style = (
        _environment()
        .get_template("image_style.css.jinja")
        .render(
            light=colour.LIGHT,
            dark=colour.DARK,
            layers=layers,
            bars=_bars(what),
            aspect=f"{width / height:.6g}",
        )
    )
    script = script_of(_SCRIPTS)
    readable = what.explanation.by_patches(block_sizes(what.explanation)[0])
    provenance = {printable(k): printable(v) for k, v in explanation.provenance.items()}
    return (
        _environment()
        .get_template("image_page.html.jinja")
        .render(
            what=what,
            layers={name: _uri(_layer(name, what), name) for name in layers},
            strongest=_strongest(readable, positive=what.positive),
            count=readable.relevance.numel(),
            cells=patches_of(readable.cell),
            provenance=provenance,
            style=Markup(style),
            script=Markup(script),
            data=Markup(payload.as_json(_data(what.explanation))),
            policy=f"default-src 'none'; style-src {source(style)}; script-src {source(script)}; "
            "img-src data:; base-uri 'none'; form-action 'none'",
        )
    )


def fragment(explanation: ImageExplanation) -> str:
    """Return one ``<figure>`` for use inside other pages, which needs neither style nor script."""
    data = base64.b64encode(draw(explanation, "png")).decode()
    return (
        _environment()
        .get_template("image_fragment.html.jinja")
        .render(what=shown(explanation), uri=f"data:image/png;base64,{data}")
    )


def _layer(name: raster.Layer, what: Shown) -> np.ndarray:
    height, width = what.explanation.geometry.image
    scale = min(_MOST_ACROSS, max(_LEAST_ACROSS, height, width)) / max(height, width)
    size = max(round(height * scale), 1), max(round(width * scale), 1)
    drawn = raster.layer(name, what.explanation.image, what.field, size)
    return drawn if name == "picture" else raster.framed(drawn, what.field.geometry)


def _uri(pixels: np.ndarray, name: raster.Layer) -> str:
    file = io.BytesIO()
    # Flat colours stay sharp, and photographs small.
    if name == "heatmap":
        Image.fromarray(pixels).save(file, "PNG")
        kind = "png"
    else:
        Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, subsampling=0)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _bars(what: Shown) -> dict[str, list[list[str]]]:
    darkest, brightest = raster.greys()
    over = [raster.bar(grey, positive=what.positive, opaque=False) for grey in (brightest, darkest)]
    alone = raster.bar(brightest, positive=what.positive, opaque=True)
    return {"overlay": over, "heatmap": [alone]}


def _data(explanation: ImageExplanation) -> dict[str, Any]:
    """What the page's script is given: relevance as it is before it is smoothed or scaled."""
    rows, columns = explanation.relevance.shape
    return {
        **payload.values(explanation.relevance),
        "rows": rows,
        "columns": columns,
        "cell": explanation.cell,
        "image": explanation.geometry.image,
        "box": explanation.geometry.box,
        "sizes": block_sizes(explanation),
    }


def _strongest(explanation: ImageExplanation, *, positive: bool) -> list[dict[str, str]]:
    patches = [one for one in explanation.top(_STRONGEST) if one.relevance > 0 or not positive]
    number = number_format(max((abs(patch.relevance) for patch in patches), default=0.0))
    absolute = explanation.relevance.double().abs().sum().item()
    return [
        {
            "row": str(patch.row),
            "column": str(patch.column),
            "place": place(patch.box),
            "relevance": number(patch.relevance),
            "share": f"{100 * abs(patch.relevance) / (absolute or 1):.1f} %",
        }
        for patch in patches
    ]


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("lxt", "views"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

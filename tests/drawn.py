"""What is in a picture that was drawn: pages, texts, colours."""

import io
import re
import xml.etree.ElementTree as ElementTree

import torch
from matplotlib.image import imread
from pypdf import PdfReader

from explained import TARGET, single

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    "</text><script>alert(1)</script>",
    '"><image href="http://x.invalid/"/>',
    "]]>",
    "$\\frac{a}{b}$",
    "\x1b[31m",
    "\x00",
    "\ud800",
    "\u202eevil",
    "\n",
    "東京",
    " עולם",
    "🚀",
    "x" * 3000,
]


def pages(pdf):
    return [re.sub(r"\s+", " ", page.extract_text()) for page in PdfReader(io.BytesIO(pdf)).pages]


def svg_of(explanation, **options):
    return ElementTree.fromstring(explanation.to_image(format="svg", **options))


def texts_of(svg):
    return [(text.text or "").replace("\xa0", " ") for text in svg.iter(f"{SVG}text")]


def said(svg):
    """All text, lines that were wrapped joined."""
    return re.sub(r"\s+", " ", " ".join(texts_of(svg)))


def fills_of(svg):
    """Each colour that is filled, in order, with how many rectangles are."""
    fills = []
    for path in svg.iter(f"{SVG}path"):
        fill = re.search("fill: (#[0-9a-f]+)", path.get("style", ""))
        if fill:
            fills.append((fill[1], path.get("d", "").count("M")))
    return fills


def pixels(png):
    return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)


def texts_at(svg):
    """Each text with where it begins and whether it goes up."""
    found = []
    for text in svg.iter(f"{SVG}text"):
        style = text.get("transform", "")
        numbers = [float(x) for x in re.findall(r"-?\d+\.?\d*", style)]
        if "translate" in style:
            x, y = numbers[0], numbers[1]
        else:
            x, y = float(text.get("x")), float(text.get("y"))
        found.append(((text.text or "").replace("\xa0", " "), x, y, "rotate(-90" in style))
    return found


def generated(count=4, tokens=6):
    """One input, many targets at its end, each of the tokens before it."""
    relevance = torch.randn(count, tokens, generator=torch.Generator().manual_seed(0))
    return single(
        relevance=relevance.tril(tokens - count),
        tokens=[f" word{i}" for i in range(tokens)],
        token_ids=torch.arange(tokens),
        mask=torch.ones(tokens, dtype=torch.bool),
        target=[TARGET] * count,
    )


def named(tokens, layers=None, targets=None):
    """An explanation of such tokens, and layers or targets of such names."""
    names = layers or targets
    shape = (len(names), len(tokens)) if names else (len(tokens),)
    target = [type(TARGET)("logit", name, 1.0, 0, name) for name in targets or ['" Paris"']]
    return single(
        relevance=torch.randn(*shape, generator=torch.Generator().manual_seed(1)),
        tokens=list(tokens),
        token_ids=torch.arange(len(tokens)),
        mask=torch.ones(len(tokens), dtype=torch.bool),
        target=target if targets else target[0],
        layers=layers,
    )


def explain_matrix(relevance):
    rows, tokens = relevance.shape
    return single(
        relevance=relevance,
        tokens=["a"] * tokens,
        token_ids=torch.arange(tokens),
        mask=torch.ones(tokens, dtype=torch.bool),
        target=[TARGET] * rows,
    )

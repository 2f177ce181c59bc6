"""What is in a picture that was drawn: pages, texts, colours."""

import io
import re
import xml.etree.ElementTree as ElementTree

from matplotlib.image import imread
from pypdf import PdfReader

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

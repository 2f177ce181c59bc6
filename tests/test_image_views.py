"""Relevance over a picture: in its colours, at its place, said what was done, and inert."""

import base64
import hashlib
import html
import io
import re
import subprocess
import sys
import threading
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from matplotlib.colors import to_rgb
from PIL import Image
from pypdf import PdfReader

from lxt.errors import InvalidInput
from lxt.views import colour, raster
from lxt.views.image_summary import shown
from pictured import TARGET, pictured

VIEWS = ["overlay", "heatmap", "side by side"]
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\"'\x00"
HOSTILE += "\x1b[31m\u202e$a_b$\ud800]]>"


def layer(which, e, size=None, **options):
    return raster.layer(which, e.image, raster.field_of(e, **options), size or e.geometry.image)


def one(row, column, value=1.0, grid=(16, 16), **changes):
    relevance = torch.zeros(grid, dtype=torch.float64)
    relevance[row, column] = value
    return pictured(relevance, **changes)


def rgb(name):
    return np.round(np.array(to_rgb(name)) * 255)


# Colours


def test_colours_lie_where_relevance_does():
    e = one(2, 5)
    drawn = layer("heatmap", e)
    assert np.array_equal(drawn[6:9, 21:24], np.broadcast_to(rgb(colour.LIGHT.positive), (3, 3, 3)))
    drawn[6:9, 21:24] = 255
    assert (drawn[:, 6:54] == 255).all()
    assert (drawn[:, :6] == 227).all()
    assert (drawn[:, 54:] == 227).all()


def test_signs_have_the_colours_of_the_library():
    relevance = torch.zeros(16, 16)
    relevance[0, 0], relevance[0, 1], relevance[0, 2] = 2.0, -2.0, -1.0
    drawn = layer("heatmap", pictured(relevance)).astype(float)
    half = (255 + rgb(colour.LIGHT.negative)) / 2
    for x, wanted in [
        (7, rgb(colour.LIGHT.positive)),
        (10, rgb(colour.LIGHT.negative)),
        (13, half),
    ]:
        assert np.abs(drawn[1, x] - wanted).max() <= 1
    drawn = layer("heatmap", pictured(relevance), positive=True)
    assert (drawn[1, 9:15] == 255).all()
    assert np.abs(drawn[1, 7] - rgb(colour.LIGHT.positive)).max() <= 1


def test_the_overlay_greys_the_picture_and_dims_what_was_not_seen():
    e = one(2, 5)
    drawn = layer("overlay", e).astype(float)
    grey = np.ptp(drawn, axis=-1) <= 1
    assert grey.sum() == 48 * 60 - 9
    assert not grey[6:9, 21:24].any()
    bright = e.image.numpy() @ np.array([0.2126, 0.7152, 0.0722])
    assert np.corrcoef(drawn[20:, 6:54, 0].ravel(), bright[20:, 6:54].ravel())[0, 1] > 0.999
    assert np.corrcoef(drawn[:, :6, 0].ravel(), bright[:, :6].ravel())[0, 1] > 0.999
    seen, unseen = np.ptp(drawn[20:, 6:54]), np.ptp(drawn[:, :6])
    assert unseen < seen
    # What is strong hides the picture, but not all of it.
    strong = drawn[6:9, 21:24]
    assert np.abs(strong - rgb(colour.LIGHT.positive)).max() < 0.1 * 255 + 1


def test_the_picture_itself_is_left_as_it_is():
    e = pictured()
    assert np.array_equal(layer("picture", e), e.image.numpy())


@settings(deadline=None, max_examples=30)
@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.floats(-20, 10),
    st.floats(12, 50),
)
def test_any_picture_can_be_drawn_at_any_size(image, size, start, length):
    box = (start, start, start + length, start + length)
    if start + length <= 0 or start >= min(image):
        return
    e = pictured(image=image, box=box)
    for which in ("picture", "overlay", "heatmap"):
        drawn = layer(which, e, size)
        assert (drawn.shape, drawn.dtype) == ((*size, 3), np.uint8)
        raster.framed(drawn, e.geometry)


def test_smoothing_keeps_the_sum_and_is_a_gaussian():
    e = one(8, 8)
    field = raster.field_of(e, smooth=1.5)
    values = field.values * field.scale.end
    assert values.sum().item() == pytest.approx(1, abs=1e-12)
    x = torch.arange(16, dtype=torch.float64) - 8
    wanted = (-0.5 * (x / 1.5) ** 2).exp()
    assert torch.allclose(values[8] / values[8, 8], wanted, atol=1e-12)
    edge = raster.field_of(one(0, 0), smooth=3)
    assert (edge.values * edge.scale.end).sum().item() == pytest.approx(1, abs=1e-12)
    # Of patches, the width is still told in pixels of the model.
    coarse = raster.field_of(pictured(torch.eye(4, dtype=torch.float64)), smooth=4)
    fine = raster.field_of(pictured(torch.eye(4, dtype=torch.float64), pixels=(4, 4)), smooth=1)
    assert torch.equal(coarse.values, fine.values)


def test_a_robust_scale_ends_at_a_percentile():
    relevance = torch.arange(1.0, 257).reshape(16, 16)
    field = raster.field_of(pictured(relevance), percentile=50)
    assert (field.scale.end, field.scale.beyond, field.scale.count) == (128, 128, 256)
    assert field.values.max() == 1
    assert field.values[0, 0] == 1 / 128


def test_no_relevance_has_no_colour():
    e = pictured(torch.zeros(16, 16))
    assert (layer("heatmap", e)[:, 6:54] == 255).all()
    for view in VIEWS:
        assert e.to_image(view=view, robust=True, smooth=2, sign="positive")
    assert e.to_html()


# Words


def test_what_was_done_is_said():
    e = pictured()
    assert shown(e).notes == []
    assert shown(e).facts["sum of relevance"] == f"{e.total:.2f}"
    assert shown(e).facts["composite"] == "attnlrp"
    notes = shown(e, smooth=2.5, sign="positive", robust=90, patch=4).notes
    assert notes[0].startswith("smoothed with a Gaussian of standard deviation 2.5 pixels")
    negative = e.patches(4).clamp(max=0).sum().item()
    amount = float(re.search("negative, (.*) in all, is not shown", notes[1])[1])
    assert amount == pytest.approx(negative, rel=1e-3)
    assert "90th percentile" in notes[2]
    assert shown(e).unit == "relevance of a pixel of the model"
    assert shown(e, patch=(4, 8)).unit == "relevance of a patch of 4 × 8 pixels of the model"
    padded = one(15, 0, 2.0, box=(0, 0, 96, 60))
    assert shown(padded).notes == [
        "+2.000 of the relevance lies in pixels that were added to the picture"
    ]
    assert shown(e).ends == (f"-{shown(e).ends[1][1:]}", shown(e).ends[1])
    assert shown(e, sign="positive").ends[0] == "0"
    assert shown(e, robust=50).ends[0].startswith("≤ -")
    assert shown(e, robust=50).ends[1].startswith("≥ +")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view": "text"}, "view='text' is none of 'overlay', 'heatmap', 'side by side'"),
        ({"sign": "negative"}, "sign='negative' is neither"),
        ({"smooth": -1}, "smooth=-1 is no standard deviation"),
        ({"smooth": float("nan")}, "smooth=nan is no"),
        ({"smooth": True}, "smooth=True is no"),
        ({"smooth": "2"}, "smooth='2' is no"),
        ({"robust": 0.0}, "robust=0.0 is no percentile"),
        ({"robust": "yes"}, "robust='yes' is no percentile"),
        ({"patch": 3}, "can't be divided into patches of 3"),
        ({"title": 3}, "title=3 is no text"),
        ({"title": "x" * 2000}, "is no text of up to"),
        ({"dpi": 0}, "dpi=0 is no number"),
        ({"format": "jpg"}, "neither PNG nor SVG"),
    ],
)
def test_wrong_options_are_refused_and_nothing_written(tmp_path, options, message):
    with pytest.raises(InvalidInput, match=re.escape(message)):
        pictured().to_image(tmp_path / "e.png", **options)
    assert not list(tmp_path.iterdir())


# Files


def embedded(svg):
    pictures = []
    for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}image"):
        address, turn = (
            element.get(f) for f in ("{http://www.w3.org/1999/xlink}href", "transform")
        )
        drawn = Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1]))).convert("RGB")
        across, *none, down = map(float, re.match(r"matrix\((.*?)\)", turn)[1].split()[:4])
        assert (across > 0, none) == (True, [0, 0])
        pictures.append(np.asarray(drawn)[:: 1 if down > 0 else -1])
    return pictures


def upright(drawn, e):
    """Whether the picture stands upright and not mirrored: its corners are its own."""
    size = drawn.shape[:2]
    wanted = layer("picture", e, size).astype(int)
    return [np.abs(turned - wanted).mean() for turned in (drawn, drawn[::-1], drawn[:, ::-1])]


def test_pictures_stand_upright_in_every_format():
    e = pictured()
    png = np.asarray(
        Image.open(io.BytesIO(e.to_image(view="side by side", title=""))).convert("RGB")
    )
    # The first panel begins at the margins.
    scale = 200 / 72
    width = round((200 / 25.4 * 72 - 18 - 24) / 3 * scale)
    left = round(9 * scale)
    top = left
    in_png = png[top : top + round(width * 48 / 60), left : left + width]
    (in_svg, *others) = embedded(e.to_image(format="svg", view="side by side"))
    assert len(others) == 2
    (page,) = PdfReader(io.BytesIO(e.to_pdf(view="side by side"))).pages
    # Of a PDF's images the name only tells the order.
    images = {image.name: image.image.convert("RGB") for image in page.images}
    (in_pdf,) = [i for i in map(np.asarray, images.values()) if upright(i, e)[0] < 5]
    for drawn in (in_png, in_svg, in_pdf):
        same, flipped, mirrored = upright(drawn, e)
        assert same < 3
        assert min(flipped, mirrored) > 15


def test_files_say_in_words_what_they_show():
    e = pictured()
    svg = e.to_image(format="svg", smooth=2).decode()
    texts = " ".join(ElementTree.fromstring(svg).itertext()).replace("\xa0", " ")
    (page,) = PdfReader(io.BytesIO(e.to_pdf(smooth=2))).pages
    for text in (texts, page.extract_text()):
        text = " ".join(text.split())
        assert "Relevance for tabby cat" in text
        assert "explained: label tabby cat" in text
        assert f"sum of relevance: {e.total:.2f}" in text
        assert "composite: attnlrp · model: tiny" in text
        assert "smoothed with a Gaussian of standard deviation 2 pixels" in text
        assert "it saw 80% of it" in text
        assert shown(e, smooth=2).ends[1] in text


def test_panels_and_titles():
    e = pictured()
    assert len(embedded(e.to_image(format="svg"))) == 1
    titled = e.to_image(format="svg", title="mine").decode()
    assert "mine" in titled
    assert "Relevance for" not in titled
    wide = pictured(image=(10, 60), box=(0, 0, 10, 60))
    sizes = [Image.open(io.BytesIO(p.to_image(view="side by side"))).size for p in (e, wide)]
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] > 3 * (sizes[1][0] - 50) / 6  # three wide ones, one below the other


@pytest.mark.parametrize("image", [(1, 1), (1, 3000), (3000, 1), (2000, 2)])
@pytest.mark.parametrize("view", VIEWS)
def test_elongated_pictures(image, view):
    e = pictured(torch.ones(2, 2), image=image, pixels=(2, 2), box=(0, 0, *image))
    for format in ("png", "svg"):
        assert e.to_image(view=view, format=format)
    assert e.to_pdf(view=view)
    assert e.to_html()


def test_fine_pictures_are_enlarged_not_composed():
    image = Image.open(io.BytesIO(pictured().to_image(dpi=600)))
    assert image.size[0] == pytest.approx(358 / 72 * 600, abs=2)
    with pytest.raises(InvalidInput, match="more than can be drawn"):
        pictured().to_image(dpi=10_000)


@pytest.mark.parametrize("view", VIEWS)
def test_hostile_names_are_inert(view):
    target = replace(TARGET, name=HOSTILE, prediction=HOSTILE)
    e = pictured(target=target, provenance={"model": HOSTILE, HOSTILE: HOSTILE, "composite": "x"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = e.to_image(view=view), e.to_pdf(view=view)
        svg = e.to_image(view=view, format="svg", title=HOSTILE).decode()
    assert all(files)
    root = ElementTree.fromstring(svg)
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert "\u202e" not in svg
    assert "\x1b" not in str(e)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def sources(text, kind):
    """What the policy lets run or style, and what is there of it."""
    policy = html.unescape(re.search('content="(default-src[^"]*)"', text)[1])
    (allowed,) = re.findall(f"{kind}-src ([^;]*)", policy)
    there = re.findall(f"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in there]
    return policy, allowed.split(), [f"'sha256-{digest}'" for digest in digests]


def test_the_page_is_one_file_that_runs_its_own_script_alone():
    e = pictured(target=replace(TARGET, name=HOSTILE), provenance={HOSTILE: HOSTILE})
    text = e.to_html(patch=4, smooth=2, robust=True)
    tags = Tags(text).tags
    scripts = [attributes for tag, attributes in tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    for kind in ("script", "style"):
        policy, allowed, there = sources(text, kind)
        assert allowed == there
        assert len(there) == 1
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "img-src data:; base-uri 'none'; form-action 'none'" in policy
    assert "link" not in [tag for tag, _ in tags]
    assert not any(key.startswith("on") for _, attributes in tags for key in attributes)
    assert "style" not in {key for _, attributes in tags for key in attributes}
    addresses = [a["src"] for _, a in tags if "src" in a] + [
        a["href"] for _, a in tags if "href" in a
    ]
    assert len(addresses) == 3
    assert all(re.match("data:image/(png|jpeg);base64,", address) for address in addresses)
    assert all(a.get("alt") for t, a in tags if t == "img")
    assert "\u202e" not in text
    assert "\x00" not in text
    for address in addresses:
        image = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
        assert image.size == (480, 384)
    assert "The strongest 16 of 16 patches of 4 × 4 pixels of the model, before smoothing" in text


def test_a_page_of_single_pixels_stays_small():
    relevance = torch.randn(224, 224, generator=torch.Generator().manual_seed(0))
    text = pictured(relevance, pixels=(224, 224)).to_html()
    assert len(text) < 1_000_000
    assert "The strongest 20 of 196 patches of 16 × 16 pixels of the model" in text


def test_the_pages_numbers_are_the_explanations():
    e = pictured()
    text = e.to_html(patch=4)
    cells = re.findall(r"<tr><td>(\d+)</td><td>(\d+)</td><td>.*?</td><td>(.*?)</td>", text)
    sums = e.patches(4)
    assert len(cells) == 16
    for row, column, number in cells:
        assert float(number) == pytest.approx(sums[int(row), int(column)].item(), abs=6e-4)
    positive = e.to_html(patch=4, sign="positive")
    assert len(re.findall(r"<tr><td>\d", positive)) == (sums > 0).sum().item()


def test_notebooks_show_it_by_itself():
    e = pictured(target=replace(TARGET, name=HOSTILE))
    tags = Tags(e._repr_html_()).tags
    assert [tag for tag, _ in tags] == ["figure", "img"]
    address = tags[1][1]["src"]
    assert base64.b64decode(address.split(",")[1]) == e._repr_png_()
    assert "Relevance for" in tags[1][1]["alt"]


def test_same_input_same_bytes_in_another_process():
    code = (
        "import sys, hashlib; from pictured import pictured; e = pictured();"
        "[print(hashlib.sha256(d).hexdigest()) for d in (e.to_image(), e.to_pdf(),"
        " e.to_image(format='svg', view='side by side'), e.to_html().encode())]"
    )

    def digests(seed):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, check=True, capture_output=True).stdout

    one = digests("1")
    assert one == digests("2")
    assert len(one.split()) == 4


def test_settings_of_the_user_neither_matter_nor_change():
    e = pictured()

    def files():
        return e.to_image(), e.to_image(format="svg"), e.to_pdf(view="side by side")

    expected = files()
    odd = {
        "image.cmap": "jet",
        "image.interpolation": "bicubic",
        "image.origin": "lower",
        "image.resample": False,
        "image.composite_image": False,
        "savefig.facecolor": "black",
        "savefig.bbox": "tight",
        "figure.dpi": 30,
        "font.size": 40,
        "svg.image_inline": False,
        "text.usetex": True,
        "pdf.compression": 0,
    }
    with mpl.rc_context(odd):
        assert files() == expected
        assert mpl.rcParams["svg.image_inline"] is False


def test_threads_draw_at_once():
    e = pictured()
    expected, drawn = e.to_image(), []
    threads = [threading.Thread(target=lambda: drawn.append(e.to_image())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn == [expected] * 4

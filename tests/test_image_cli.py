"""`lxt show` of explanations of pictures: all that it does for text, but parts and comparisons."""

import json

import pytest
from typer.testing import CliRunner

import lxt
from explained import single
from lxt.cli import app
from lxt.errors import InvalidInput
from lxt.image_explanation import ImageExplanation
from pictured import same_picture, stored


def run(*arguments, code=0, input=None):
    result = CliRunner().invoke(app, ["show", *map(str, arguments)], input=input)
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def printed(result):
    return "\n".join(line.rstrip() for line in result.stdout.splitlines())


def said(result):
    return " ".join(result.stderr.split())


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")


@pytest.fixture
def file(tmp_path):
    stored().save(tmp_path / "picture.safetensors")
    return tmp_path / "picture.safetensors"


@pytest.fixture
def text(tmp_path):
    single().to_json(tmp_path / "text.json")
    return tmp_path / "text.json"


def test_both_kinds_of_files_and_standard_input(file, tmp_path):
    stored().to_json(tmp_path / "picture.json")
    for result in (
        run(file),
        run(tmp_path / "picture.json"),
        run("-", input=stored().to_json()),
    ):
        assert printed(result) == str(stored())
    broken = stored().to_json().replace("[0.5,", '["x",')
    result = run("-", input=broken, code=2)
    assert 'standard input is not an explanation in JSON: relevance[0][0]: "x" is not' in said(
        result
    )


def test_it_is_written_as_what_is_asked_for(file, tmp_path):
    assert run(file, "--json", "-").stdout == stored().to_json()
    files = {kind: tmp_path / f"x.{kind}" for kind in ("html", "json", "save", "pdf", "png", "svg")}
    options = [part for kind, path in files.items() for part in (f"--{kind}", path)]
    assert printed(run(file, *options)) == str(stored())
    assert files["html"].read_text("utf-8") == stored().to_html()
    assert json.loads(files["json"].read_text("utf-8")) == json.loads(stored().to_json())
    same_picture(ImageExplanation.load(files["save"]), stored())
    assert files["png"].read_bytes() == stored().to_image()
    for kind, beginning in {"pdf": b"%PDF-", "svg": b"<?xml"}.items():
        assert files[kind].read_bytes().startswith(beginning)


def test_the_page_is_opened(file, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    run(file, "--open", "--html", tmp_path / "e.html")
    assert opened == [(tmp_path / "e.html").as_uri()]


@pytest.mark.parametrize("option", ["--row", "--target", "--layer"])
def test_parts_of_texts_are_refused(file, option, tmp_path):
    page = tmp_path / "e.html"
    result = run(file, option, 0, "--html", page, code=2)
    assert f"{str(file)!r} is an explanation of a picture, whole as it is: {option} picks" in said(
        result
    )
    assert not page.exists()


def test_pictures_are_compared_neither_with_text_nor_with_each_other(file, text):
    for files in ((file, text), (text, file)):
        assert f"{str(file)!r}: of a picture, and the others are of text" in said(
            run(*files, code=2)
        )
    assert "explanations of pictures are not compared; give one file" in said(
        run(file, file, code=2)
    )


def test_a_file_that_is_neither(tmp_path):
    (tmp_path / "x").write_text('{"format": "other", "version": 1}')
    assert 'format: "other" is not one of' in said(run(tmp_path / "x", code=2))


def test_compare_says_that_it_takes_text():
    with pytest.raises(InvalidInput, match="number 1 is <ImageExplanation of .* pictures are not"):
        lxt.compare(single(), stored())

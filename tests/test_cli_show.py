"""`lxt show`: saved explanations of any kind and version, parts of them, and several at once."""

import json
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from explained import batch, batch_of_many, explain, many, same, single, traced
from lxt import kinds
from lxt.cli import app, common
from lxt.comparison import compare
from lxt.errors import InvalidInput
from lxt.explained import ExplainedTarget
from lxt.explanation import Explanation

DATA = Path(__file__).parent / "data"


def run(*arguments: object, code: int = 0, input: str | bytes | None = None):
    result = CliRunner().invoke(app, ["show", *map(str, arguments)], input=input)
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def printed(result) -> str:
    return "\n".join(line.rstrip() for line in result.stdout.splitlines())


def said(result) -> str:
    return " ".join(result.stderr.split())


def other(**changes):
    return single(relevance=torch.tensor([1.0, -1.0, 0.5]), **changes)


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")


@pytest.fixture
def saved(tmp_path):
    def save(name: str, explanation: Explanation) -> Path:
        path = tmp_path / name
        explanation.to_json(path) if name.endswith(".json") else explanation.save(path)
        return path

    return save


@pytest.mark.parametrize(
    "path", sorted([*DATA.glob("*.json"), *DATA.glob("*.safetensors")]), ids=lambda path: path.name
)
def test_files_of_every_kind_and_version_are_shown(path):
    assert printed(run(path)) == str(kinds.load(path))


def test_standard_input(saved):
    assert printed(run("-", input=single().to_json())) == str(single())
    result = run("-", input=b"\xff", code=2)
    assert "standard input is not an explanation in JSON: it is neither" in said(result)
    assert "given more often" in said(run("-", "-", input=single().to_json(), code=2))


def test_it_is_written_as_what_is_asked_for(saved, tmp_path):
    path = saved("e.safetensors", single())
    assert run(path, "--json", "-").stdout == single().to_json()
    files = {kind: tmp_path / f"x.{kind}" for kind in ("html", "json", "save", "pdf", "png", "svg")}
    options = [part for kind, file in files.items() for part in (f"--{kind}", file)]
    assert printed(run(path, *options)) == str(single())
    assert files["html"].read_text("utf-8") == single().to_html()
    assert files["json"].read_text("utf-8") == single().to_json()
    same(Explanation.load(files["save"]), single())
    beginnings = {"pdf": b"%PDF-", "png": b"\x89PNG", "svg": b"<?xml"}
    for kind, beginning in beginnings.items():
        assert files[kind].read_bytes().startswith(beginning)


def test_a_page_is_opened_and_is_temporary_without_a_path(saved, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = saved("e.json", single())
    assert not run(path, "--open", "--html", tmp_path / "a b.html").stderr
    assert opened.pop() == (tmp_path / "a b.html").as_uri()
    run(path, "--open")
    (page,) = tmp_path.glob("lxt-*.html")
    assert opened == [page.as_uri()]
    assert page.read_text("utf-8") == single().to_html()
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert "no browser" in said(run(path, "--open"))


@pytest.mark.parametrize(
    ("explanation", "options", "expected"),
    [
        (batch(), ("--row", 1), batch()[1]),
        (batch(), ("--row", -2), batch()[0]),
        (many(), ("--target", 2), many()[2]),
        (traced(), ("--layer", "layers.0"), traced()[1]),
        (traced(), ("--layer", 0), traced()[0]),
        (traced(), ("--layer", -1), traced()[1]),
        (batch_of_many(), ("--row", 0), batch_of_many()[0]),
        (batch_of_many(), ("--row", 0, "--target", 0), batch_of_many()[0][0]),
        (batch_of_many(), ("--row", 1, "--target", -1), batch_of_many()[1][0]),
    ],
)
def test_a_part_is_picked(saved, explanation, options, expected):
    path = saved("e", explanation)
    assert run(path, *options, "--json", "-").stdout == expected.to_json()


def test_a_target_of_all_rows_is_that_of_each():
    full = batch_of_many()
    path_free = run("-", "--target", -1, "--json", "-", input=full.to_json()).stdout
    rows = Explanation.from_json(path_free).inputs()
    for row, whole in zip(rows, full.inputs(), strict=True):
        same(row, whole[len(whole) - 1])


def test_layers_are_picked_before_targets_and_rows(saved):
    layers = ["a", "b"]
    relevance = torch.arange(12, dtype=torch.float32).reshape(2, 2, 3)
    targets = [many().target[0], many().target[1]]
    explanation = single(relevance=relevance, target=targets, layers=layers)
    shown = run(saved("e", explanation), "--layer", "b", "--target", 1, "--json", "-").stdout
    assert Explanation.from_json(shown).relevance.tolist() == [9.0, 10.0, 11.0]


@pytest.mark.parametrize(
    ("explanation", "options", "message"),
    [
        (single(), ("--row", 0), "--row takes a batch, and its axes are tokens"),
        (batch(), ("--row", 2), "row 2 of a batch of 2"),
        (single(), ("--target", 0), "--target takes many targets, and its axes are tokens"),
        (many(), ("--target", 3), "target 3 of a list of 3"),
        (batch_of_many(), ("--target", 1), "--target 1 is not there in every row, which have 2, 1"),
        (single(), ("--layer", 0), "--layer takes layers, and its axes are tokens"),
        (traced(), ("--layer", "x"), "'x' is none of its 2 layers, 'embed_tokens', 'layers.0'"),
        (traced(), ("--layer", 2), "--layer '2' is none"),
    ],
)
def test_parts_that_are_not_there(saved, explanation, options, message):
    path = saved("e", explanation)
    result = run(path, *options, code=2)
    assert message in said(result)
    assert repr(str(path)) in said(result)
    assert not result.stdout


def test_several_are_compared(saved, tmp_path):
    paths = saved("a", single()), saved("b.json", other(provenance={"composite": "cp_lrp"}))
    comparison = compare(*(Explanation.load(path) for path in paths))
    files = {kind: tmp_path / f"x.{kind}" for kind in ("html", "pdf", "png", "svg")}
    result = run(*paths, *(part for kind, file in files.items() for part in (f"--{kind}", file)))
    assert printed(result) == str(comparison)
    assert files["html"].read_text("utf-8") == comparison.to_html()
    assert files["pdf"].read_bytes() == comparison.to_pdf()
    assert files["png"].read_bytes() == comparison.to_image()
    assert files["svg"].read_bytes() == comparison.to_image(format="svg")


def test_parts_of_several_are_compared(saved):
    paths = saved("a", many()), saved("b.json", traced())
    assert "pick a part" in said(run(*paths, code=2))
    assert "--target takes many targets" in said(run(*paths, "--target", 0, code=2))
    paths = saved("a", batch()), saved("b.json", batch(target=batch().target[::-1]))
    assert "difference" in run(*paths, "--row", 0).stdout


@pytest.mark.parametrize("option", ["--json", "--save"])
def test_what_only_one_explanation_is_written_as(saved, tmp_path, option):
    path = saved("e", single())
    assert f"{option} takes one file" in said(run(path, path, option, tmp_path / "x", code=2))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "FILE"),
        (["no-such-file"], 2, "'no-such-file' is not a saved explanation: [Errno 2] No such file"),
        (["no-such-file", "--html", "/no/such/folder/e.html"], 1, "/no/such/folder"),
        (["no-such-file", "--html", "same", "--pdf", "./same"], 2, "are the same"),
        (["no-such-file", "--row", "x"], 2, "--row"),
    ],
)
def test_mistakes(arguments, code, message):
    result = run(*arguments, code=code)
    assert message in said(result)
    assert not result.stdout


HOSTILE = "\x1b[8m\x07\x9b2J\u202e\u2066\r\x00"
INERT = HOSTILE.replace("\x00", "")  # which no file name can hold


def assert_inert(*texts: str) -> None:
    for text in texts:
        controls = [char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Zl")]
        assert set(controls) <= {"\n"}


def test_nothing_in_a_file_or_its_name_acts_on_the_terminal(saved, tmp_path):
    target = ExplainedTarget("logit", HOSTILE, 1.0, 0, HOSTILE)
    provenance = {"model": HOSTILE, "composite": "a", HOSTILE: HOSTILE}
    bad = explain([HOSTILE, "b"], [1.0, -2.0], provenance=provenance)
    bad = Explanation(**{**vars(bad), "target": target})
    again = Explanation(**{**vars(bad), "provenance": provenance | {"composite": HOSTILE}})
    differs = explain(["a" + HOSTILE, "b"], [1.0, -2.0], provenance=provenance)
    layered = single(relevance=torch.ones(1, 3), layers=[HOSTILE])
    paths = [saved(INERT + str(i), e) for i, e in enumerate([bad, again, differs, layered])]
    for arguments, code in [
        ((paths[0],), 0),
        ((paths[0], paths[1]), 0),
        ((paths[0], paths[2]), 0),
        ((paths[3],), 0),
        ((paths[3], "--layer", "x" + INERT), 2),
        ((paths[0], paths[3]), 2),
        ((str(paths[0]) + "missing",), 2),
        ((paths[0], "--html", tmp_path / INERT / "x"), 1),
        ((paths[0], "--html", tmp_path / INERT, "--pdf", tmp_path / INERT), 2),
    ]:
        result = run(*arguments, code=code)
        assert_inert(result.stdout, result.stderr)


def test_no_escape_of_a_file_is_in_the_colours_of_a_terminal(saved, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    bad = explain([HOSTILE, "b"], [1.0, -2.0], provenance={"composite": HOSTILE})
    path = saved("e" + INERT, bad)
    for arguments in [(path,), (path, saved("f", bad))]:
        shown = run(*arguments).stdout
        assert "\x1b[" in shown
        assert "\x1b[8m" not in shown
        assert "\x07" not in shown
        assert "\u202e" not in shown


def test_broken_contents_are_quoted_inert(tmp_path):
    document = json.loads(single().to_json())
    document["rows"][0]["target"]["kind"] = HOSTILE + "\x7f"
    path = tmp_path / "e.json"
    path.write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    result = run(path, code=2)
    assert "rows[0].target.kind" in said(result)
    assert_inert(result.stderr)


def test_an_error_of_any_text_is_printed_inert(capsys):
    from typer import Exit

    with pytest.raises(Exit), common.reported():
        raise InvalidInput(f"one\n{HOSTILE}")
    assert_inert(capsys.readouterr().err)


def test_showing_needs_no_model_library(saved):
    import subprocess

    code = (
        "import sys; from lxt.cli import app; app(standalone_mode=False)\n"
        "print('transformers' in sys.modules)"
    )
    path = saved("e.json", single())
    result = subprocess.run(
        [sys.executable, "-c", code, "show", str(path)], capture_output=True, text=True, check=True
    )
    assert result.stdout.endswith("False\n")


@pytest.mark.parametrize("option", ["--html", "--json", "--save", "--pdf", "--png", "--svg"])
def test_what_is_read_is_never_written_over(option, tmp_path):
    file = tmp_path / "e.json"
    single().to_json(file)
    before = file.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(file)
    for path in (file, link):
        assert "is what is read" in run(file, option, path, code=2).stderr
    assert file.read_bytes() == before


def test_a_closed_standard_input_is_said(monkeypatch):
    monkeypatch.setattr(common.sys, "stdin", None)
    with pytest.raises(InvalidInput, match="standard input is closed"):
        common.standard_input()

"""`lxt atlas`, as a user calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import zoo
from lxt.cli import app
from spellings import byte_level_bpe

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    byte_level_bpe().save_pretrained(folder / "model")
    zoo.build("llama", vocab_size=320, dtype=torch.float32).save_pretrained(folder / "model")
    (folder / "corpus.txt").write_text("The capital of France\nis Paris.\n\nnaïve café Größe\n")
    options = ["--corpus", str(folder / "corpus.txt"), "--out", str(folder / "atlas")]
    more = ["--taps", "neurons", "--taps", "heads", "--layer", "1", "--context", "8", "--top", "3"]
    result = run("atlas", "build", str(folder / "model"), *options, *more)
    assert "52 units at 2 sites" in result.stdout
    return folder


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def test_units_that_stand_out_are_listed(place: Path) -> None:
    result = run("atlas", "show", str(place / "atlas"))
    assert "model.layers.1." in result.stdout
    assert len(result.stdout.splitlines()) == 21


def test_a_unit_is_shown_with_and_without_a_model(place: Path, tmp_path: Path) -> None:
    unit = "layers.1.mlp.down_proj[3]"
    result = run("atlas", "show", str(place / "atlas"), unit)
    assert "Unit model.layers.1.mlp.down_proj:input[3]" in result.stdout
    assert "colours: activation" in result.stdout
    page = tmp_path / "unit.html"
    result = run(
        "atlas", "show", str(place / "atlas"), unit, "-m", str(place / "model"), "--html", str(page)
    )
    assert "colours: relevance for the unit" in result.stdout
    assert "promotes" in result.stdout
    assert "promotes" in page.read_text()


def test_pages_of_all(place: Path, tmp_path: Path) -> None:
    run("atlas", "show", str(place / "atlas"), "--html", str(tmp_path / "html"), "--pages", "4")
    assert (tmp_path / "html" / "index.html").is_file()
    assert len(list((tmp_path / "html" / "units").iterdir())) == 4


def test_mistakes_are_told(place: Path, tmp_path: Path) -> None:
    atlas, corpus = str(place / "atlas"), str(place / "corpus.txt")
    new = ["--out", str(tmp_path / "new")]
    for arguments, words in [
        (["show", str(tmp_path)], "there is no atlas in"),
        (["show", atlas, "layers.9.mlp[3]"], "the atlas has no site 'layers.9.mlp'"),
        (["show", atlas, "--open"], "give --html PATH"),
        (["build", "default", "--corpus", str(tmp_path / "no.txt"), *new], "no file or folder"),
        (["build", "default", "--corpus", corpus, *new, "--taps", "mlp", "--layer", "1"],
         "--layer goes with neurons, heads, residual"),
        (["build", str(place / "model"), "--corpus", corpus, "--out", atlas], "was begun with"),
    ]:  # fmt: skip
        result = run("atlas", *arguments, code=2)
        assert words in " ".join(result.stderr.split()), result.stderr
    assert not (tmp_path / "new").exists()


def test_pyarrow_is_imported_late() -> None:
    code = "import sys, lxt, lxt.cli; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_pyarrow_the_message_says_what_to_install(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run("atlas", "show", str(place / "atlas"), code=1)
    assert "pip install lxt[atlas]" in result.stderr

"""`lxt audit` in a shell: what it prints where, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import lxt
import zoo
from lxt.cli import app
from spellings import byte_level_bpe

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("causal")
    byte_level_bpe().save_pretrained(folder)
    zoo.build("llama", vocab_size=320, dtype=torch.float32).save_pretrained(folder)
    return str(folder)


def audit(*arguments: str, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(app, ["audit", *arguments], input=stdin)
    assert "Traceback" not in result.output
    return result


def test_a_sound_model_exits_with_0_and_prints_the_report(causal: str) -> None:
    done = audit(causal)
    assert done.exit_code == 0, done.output
    assert "sound: LlamaForCausalLM under attnlrp" in done.stdout
    assert "ledger" in done.stdout
    for stage in ("loading", "with a ledger", "float64 ..."):
        assert stage not in done.stdout


def test_findings_exit_with_1(causal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = lxt.attnlrp.without(torch.nn.functional.silu)
    monkeypatch.setitem(lxt.composites.PRESETS, "attnlrp", lacking)
    done = audit(causal, PROMPT)
    assert done.exit_code == 1
    assert "1 finding" in done.stdout
    assert "write: composite | {torch.nn.functional.silu:" in done.stdout


def test_json_on_standard_output_and_nothing_else(causal: str) -> None:
    done = audit(causal, PROMPT, "--json", "-")
    document = json.loads(done.stdout)
    assert (document["ok"], document["model"]) == (True, "LlamaForCausalLM")


def test_json_in_a_file_beside_the_report(causal: str, tmp_path: Path) -> None:
    done = audit(causal, PROMPT, "--json", str(tmp_path / "report.json"))
    assert "sound" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["ok"] is True


def test_the_prompt_may_come_from_standard_input(causal: str) -> None:
    given = audit(causal, "-", "--json", "-", stdin=PROMPT.encode() + b"\n")
    written = audit(causal, PROMPT, "--json", "-")
    assert json.loads(given.stdout)["target"] == json.loads(written.stdout)["target"]


def test_another_target_and_composite(causal: str) -> None:
    done = audit(causal, PROMPT, "--target", "!", "--composite", "cp_lrp", "--json", "-")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["composite"] == "cp_lrp"


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        ([" "], "the prompt is empty", 2),
        ([PROMPT, "--composite", "atnlrp"], "did you mean 'attnlrp'", 2),
        ([PROMPT, "--json", "no/such/folder/report.json"], "no/such/folder", 1),
    ],
)
def test_misuse_is_found_before_the_model_is_loaded(
    options: list[str], message: str, code: int
) -> None:
    done = audit("no/such/model", *options)
    assert done.exit_code == code
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    done = audit(str(tmp_path / "nothing"), PROMPT)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "nothing" in done.stderr


def test_a_target_that_is_not_there(causal: str) -> None:
    done = audit(causal, PROMPT, "--target", "no token at all")
    assert done.exit_code == 2
    assert "no token at all" in done.stderr


def test_what_the_arguments_are_is_said() -> None:
    assert audit().exit_code == 2
    done = audit("--help")
    assert done.exit_code == 0
    assert "Exits with 0" in done.output

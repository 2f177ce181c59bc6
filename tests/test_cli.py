"""The shell, as a user calls it: output, files, exit codes, messages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import lxt
import zoo
from lxt.cli import app
from spellings import byte_level_bpe, word_piece

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("causal")
    tokenizer = byte_level_bpe()
    tokenizer.chat_template = (
        "{% for m in messages %}<|end|>{{ m.role }} {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|end|>assistant {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    zoo.build("llama", vocab_size=320, dtype=torch.float32).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("classifier")
    word_piece().save_pretrained(folder)
    labels = dict(enumerate(["GOOD", "BAD", "MEH", "ODD", "NONE"]))
    zoo.build("bert", dtype=torch.float32, id2label=labels).save_pretrained(folder)
    return str(folder)


def run(*arguments: str, input: str | bytes | None = None, code: int = 0):
    result = CliRunner().invoke(app, list(arguments), input=input)
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def test_the_explanation_is_printed(causal: str) -> None:
    result = run("explain", PROMPT, "--model", causal)
    for word in ("The", "France", "relevance", "attnlrp", "sum of relevance"):
        assert word in result.stdout
    assert "\x1b" not in result.stdout
    assert not result.stderr


def test_the_same_goes_to_files(causal: str, tmp_path) -> None:
    html, data, saved = (tmp_path / name for name in ("e.html", "e.json", "e.safetensors"))
    pictures = [str(tmp_path / name) for name in ("e.pdf", "e.png", "e.svg")]
    options = ["--html", str(html), "--json", str(data), "--save", str(saved)]
    for picture in pictures:
        options += [f"--{picture[-3:]}", picture]
    run("explain", PROMPT, "-m", causal, *options)
    assert all(Path(picture).stat().st_size > 1000 for picture in pictures)
    explanation = lxt.Explanation.load(saved)
    assert "".join(explanation.tokens) == PROMPT
    assert json.loads(data.read_text()) == json.loads(explanation.to_json())
    assert html.read_text() == explanation.to_html()
    loaded = lxt.load_model(causal)
    again = lxt.explain(loaded.model, PROMPT, tokenizer=loaded.tokenizer)
    assert torch.equal(again.relevance, explanation.relevance)


def test_json_on_standard_output_is_all_there_is(causal: str) -> None:
    result = run("explain", PROMPT, "-m", causal, "--json", "-", "--composite", "cp_lrp")
    assert json.loads(result.stdout)["format"] == "lxt.explanation"
    assert "cp_lrp" in result.stdout


def in_a_shell(arguments: list[str], **options):
    command = [sys.executable, "-m", "lxt", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["explain", "explain --json -", "audit --json -"])
def test_no_room_on_standard_output(causal: str, command: str) -> None:
    name, *options = command.split()
    model = ["-m", causal, PROMPT] if name == "explain" else [causal, PROMPT]
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = in_a_shell([name, *model, *options], stdout=full)
    assert done.returncode == 1
    assert "can't write to standard output: No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_encoding_that_lacks_characters(causal: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = in_a_shell(["explain", PROMPT, "-m", causal], stdout=subprocess.PIPE, env=environment)
    assert done.returncode == 0, done.stderr
    assert "sum of relevance" in done.stdout


def test_the_default_model_has_a_name(monkeypatch) -> None:
    monkeypatch.setattr("lxt.models.load_model", lambda name, **_: pytest.exit(str(name)))
    for arguments in (("explain", PROMPT, "-m", "default"), ("audit", "default", PROMPT)):
        with pytest.raises(pytest.exit.Exception, match="None"):
            CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_standard_input(causal: str) -> None:
    from_pipe = run("explain", "-", "-m", causal, "--json", "-", input=PROMPT + "\n")
    from_shell = run("explain", PROMPT, "-m", causal, "--json", "-")
    assert from_pipe.stdout == from_shell.stdout
    run("explain", "-", "-m", causal, input=b"\xff\xfe", code=2)
    run("explain", "-", "-m", causal, input="\n", code=2)


def test_targets(causal: str, classifier: str) -> None:
    def target(*arguments: str) -> dict:
        return json.loads(run("explain", *arguments, "--json", "-").stdout)["rows"][0]["target"]

    assert target(PROMPT, "-m", causal, "--target", "a")["name"] == '"a"'
    contrast = target(PROMPT, "-m", causal, "--target", "a", "--versus", "b")
    assert contrast["name"] == '"a" − "b"'
    assert contrast["kind"] == "contrast"
    prediction = target(PROMPT, "-m", causal)["name"]
    assert target(PROMPT, "-m", causal, "--versus", "b")["name"] == f'{prediction} − "b"'
    assert target("the capital", "-m", classifier, "--target", "bad")["name"] == "BAD"
    labels = target("the capital", "-m", classifier, "--target", "bad", "--versus", "good")
    assert labels["name"] == "BAD − GOOD"


def test_chat_wraps_the_prompt_in_the_template(causal: str, classifier: str) -> None:
    result = run("explain", "Paris", "-m", causal, "--chat", "--json", "-")
    tokens = json.loads(result.stdout)["rows"][0]["tokens"]
    text = "".join(token if isinstance(token, str) else token["token"] for token in tokens)
    assert text == "<|end|>user Paris<|end|>assistant "
    result = run("explain", "Paris", "-m", classifier, "--chat", code=2)
    assert "chat template" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["explain", ""], 2, "the prompt is empty"),
        (["explain", "Paris", "--composite", "atnlrp"], 2, "did you mean 'attnlrp'"),
        (["explain", "Paris", "--versus", "a b c"], 2, "tokens"),
        (["explain", "Paris", "--html", "/no/such/folder/e.html"], 1, "/no/such/folder"),
        (["explain", "Paris", "--json", "/"], 1, "'/'"),
        (["explain", "Paris", "--model", "./no-such-folder"], 1, "no-such-folder"),
        (["explain", "Paris", "--device", "warp"], 2, "warp"),
        (["explain", "Paris", "--dtype", "float3"], 2, "float3"),
        (["explain", "Paris", "--target", "a b c"], 2, "3 tokens|5 tokens"),
        (["explain", "Paris " * 99], 2, "tokens long"),
        (["explain", "\udcff"], 2, "no Unicode text"),
        (["explain", "Paris", "--html", "same.txt", "--json", "./same.txt"], 2, "the same"),
        (["explain"], 2, "PROMPT"),
        (["explian"], 2, "explian"),
        (["explain", "Paris", "--no-such-option"], 2, "no-such-option"),
    ],
)
def test_mistakes(causal: str, arguments: list[str], code: int, message: str) -> None:
    import re

    if len(arguments) > 1 and "--model" not in arguments:
        arguments = [*arguments, "--model", causal]
    result = run(*arguments, code=code)
    assert re.search(message, " ".join(result.stderr.split()))
    assert not result.stdout


def test_mistakes_are_found_before_the_model_is_loaded(monkeypatch) -> None:
    monkeypatch.setattr("lxt.models.load_model", lambda *_, **__: pytest.fail("loaded"))
    for arguments in (
        ("",),
        ("Paris", "--composite", "x"),
        ("Paris", "--html", "/no/such/folder/e.html"),
        ("Paris", "--save", "/no/such/folder/e"),
    ):
        assert run("explain", *arguments, code=1 if "/" in arguments[-1] else 2).stderr


def test_version_and_help() -> None:
    assert run("--version").stdout == f"lxt {lxt.__version__}\n"
    assert "explain" in run("--help").stdout
    assert "--target" in run("explain", "--help").stdout


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


def test_importing_lxt_stays_light() -> None:
    code = (
        "import sys, lxt\n"
        "heavy = {'transformers', 'matplotlib', 'rich', 'jinja2', 'typer', 'gguf', 'accelerate'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert python("-c", code).stdout == "[]\n"


def test_the_console_script() -> None:
    assert python("-m", "lxt", "--version").stdout == f"lxt {lxt.__version__}\n"


def test_every_public_name_is_there() -> None:
    for name in lxt.__all__:
        assert getattr(lxt, name) is not None

"""Each script of `examples/` runs and shows what it says that it shows.

Those that need packages of their own are run by `tests/peers/test_example_scripts.py`.
"""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from pypdf import PdfReader

import lxt
from lxt.efficient.core import _patched

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("[!_]*.py"))

Run = Callable[..., str]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Run a script as `python examples/NAME.py` does; what it printed."""

    def execute(name: str, *options: str) -> str:
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *options, "--out", str(tmp_path)])
        with mpl.rc_context({"backend": "agg"}):
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
            plt.close("all")
        assert not _patched, "a script left a patch behind"
        return capsys.readouterr().out

    yield execute
    for patch in list(_patched.values()):  # of a script that failed
        patch.remove()


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+\.?\d*(?:e[-+]\d+)?", text)]


def line(text: str, beginning: str) -> str:
    """The rest of the one line that begins so."""
    (found,) = (row.strip() for row in text.splitlines() if row.strip().startswith(beginning))
    return found.removeprefix(beginning)


def test_the_table_lists_every_script_and_each_says_what_it_prints() -> None:
    listed = re.findall(r"\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == SCRIPTS
    for name in SCRIPTS:
        doc = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text()))
        for part in ("Weights:", "Prints", f"python examples/{name}.py"):
            assert part in doc, name


def test_a_script_is_a_program_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "composite_sequential.py", "--out", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("options", [[], ["--checkpointing"]], ids=["plain", "checkpointing"])
def test_llama_quickstart(
    run: Run, options: list[str], smollm2: lxt.LoadedModel, tmp_path: Path
) -> None:
    out = run("llama_quickstart", *options)
    assert "' Ada'" in line(out, "prediction")
    assert numbers(line(out, "prediction")) == pytest.approx([14.26], abs=0.05)
    first, *_ = out.partition("most for it:\n")[2].splitlines()
    assert "' Ada' (token 19)" in first  # its copy in the passage
    assert numbers(first)[0] == pytest.approx(3.47, abs=0.05)
    (page,) = PdfReader(tmp_path / "llama.pdf").pages
    assert "lighthouse" in page.extract_text()


def test_gpt2_contrastive(run: Run) -> None:
    as_trained, lowered = run("gpt2_contrastive").split("\n\n")[1:]
    names = [
        re.search(r"predicts '(\w+)' with probability (\S+)", s) for s in (as_trained, lowered)
    ]
    assert names[0].groups() == names[1].groups()  # the same prediction
    plain, shifted = (numbers(line(s, "plain"))[0] for s in (as_trained, lowered))
    assert plain > 1
    assert shifted < -1
    contrasts = [numbers(line(s, "contrast")) for s in (as_trained, lowered)]
    assert contrasts[0] == pytest.approx(contrasts[1], abs=0.02)
    pair, *words = contrasts[0]
    assert pair > 0.8 * sum(max(word, 0) for word in words)
    for section in (as_trained, lowered):
        assert numbers(line(section, "lxt.Contrast(None) differs by"))[0] < 1e-4


def test_bert_classifier(run: Run, tmp_path: Path) -> None:
    out = run("bert_classifier")
    praise, complaint = numbers(line(out, "praise")), numbers(line(out, "complaint"))
    assert praise[0] > 0.3
    assert complaint[0] < -0.3
    assert praise[1] > 98
    assert complaint[1] > 98
    assert numbers(line(out, "neutral"))[0] < 0.1
    assert "right in 100.0%" in out
    assert "cold" in PdfReader(tmp_path / "bert.pdf").pages[0].extract_text()


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3", "qwen3_moe", "mixtral"])
def test_other_architectures(run: Run, family: str) -> None:
    out = run("other_architectures", family)
    for composite in ("attnlrp", "cp_lrp"):
        row = line(out, composite)
        assert "forward identical: True" in row
        assert numbers(row)[0] >= 90
    found = {name: numbers(line(out, name))[0] for name in ("attnlrp", "gradient")}
    assert found["gradient"] < found["attnlrp"] - 5  # so the task tells methods apart
    mixtures = re.findall(r"its experts carried (.*)", out)
    assert len(mixtures) == (2 if family in ("qwen3_moe", "mixtral") else 0)
    for mixture in mixtures:
        assert len(numbers(mixture)) == 4
        assert sum(numbers(mixture)) == pytest.approx(100, abs=2)  # rounded


def test_latent_trace(run: Run, smollm2: lxt.LoadedModel, tmp_path: Path) -> None:
    out = run("latent_trace")
    assert "goes on with ' horses'" in out
    rows = [row for row in out.splitlines() if row.startswith("layer")]
    last_word = [numbers(row)[1] for row in rows]
    assert last_word[0] < 40
    assert last_word[-1] > 80
    assert "' horses'" in rows[0]
    assert "' horses'" not in rows[-1]
    assert numbers(line(out, "the explicit form differs by"))[0] < 1e-4
    assert plt.imread(tmp_path / "latent_trace.png").std() > 0.1


def test_sae_smollm2(
    run: Run, smollm2: lxt.LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES.parent / "benchmarks")
    from texts import book_excerpts

    try:
        book_excerpts()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the books can't be had: {error}")
    out = run("sae_smollm2", "--tokens", "768")
    assert "epoch 6" in out
    assert 0 < numbers(line(out, "on texts not trained on:"))[2] <= 32
    assert 'goes on with " horses"' in out
    for name in ("features ", "features.error", "features.bias"):
        relevance, absolute = numbers(line(out, name))[:2]
        assert 0 < abs(relevance) <= absolute
    feature = re.search(r"layers\.15 feature (\d+) at", out)
    assert feature is not None
    assert f"feature {feature[1]:>4} at" in out
    again = run("sae_smollm2", "--tokens", "768")
    assert "epoch" not in again
    assert lxt.SAE.load(tmp_path / "sae_smollm2").encode(torch.zeros(1, 1, 576)).shape[-1] == 2048


def test_knowledge_neurons(run: Run, smollm2: lxt.LoadedModel, tmp_path: Path) -> None:
    out = run("knowledge_neurons")
    for country in ("France", "Italy", "Japan", "Germany", "Spain"):
        by_relevance, by_activation, at_random = numbers(line(out, f"The capital of {country} is"))
        assert by_relevance < 0.2
        assert by_activation > 0.5
        assert at_random > 0.9
    assert numbers(line(out, "others' answers, median, by relevance:"))[0] > 0.5
    rome, others = numbers(line(out, "those of Rome twice as active:"))
    assert rome > 1.5 > 1.2 > others
    assert plt.imread(tmp_path / "knowledge_neurons.png").std() > 0.1


def test_softmax_temperature(run: Run, smollm2: lxt.LoadedModel, tmp_path: Path) -> None:
    out = run("softmax_temperature")
    rows = out.splitlines()[1:]
    assert all("most: ' Ada'" in row for row in rows)
    probability = numbers(line(out, "prediction ' Ada', probability"))
    assert numbers(line(out, "T=1 "))[:1] == probability == pytest.approx([0.403], abs=0.005)
    received = [numbers(row.partition("Σ|R|")[2])[0] for row in rows]
    assert received == sorted(received, reverse=True)
    files = {path.name for path in tmp_path.glob("softmax_*.pdf")}
    assert files == {f"softmax_{name}.pdf" for name in ("logit", "T1", "T2", "T5", "T20")}


def test_explicit_functional(run: Run) -> None:
    out = run("explicit_functional")
    assert numbers(line(out, "largest difference of the values")) == [0]
    put_in, arrived = numbers(line(out, "a linear layer"))
    assert arrived == pytest.approx(put_in, abs=1e-5)
    put_in, arrived = numbers(line(out, "the block"))
    assert 0 < arrived < put_in
    assert numbers(line(out, "check, complete")) == [96, 96]
    assert numbers(line(out, "check, with a plain +")) == [96, 192]


def test_composite_sequential(run: Run) -> None:
    out = run("composite_sequential")
    without, with_rules, after = (s.partition("\n")[2] for s in out.split("\n\n")[:3])
    assert after == without
    assert with_rules.count("EpsilonRule") == 2
    assert "RootMeanSquareNorm(IdentityRule)" in with_rules
    explained = numbers(line(out, "explained output"))
    for name in ("relevance by rules", "relevance by modules"):
        assert numbers(line(out, name)) == pytest.approx(explained, abs=1e-4)
    assert numbers(line(out, "largest difference"))[0] < 1e-4


def test_composite_functions(run: Run) -> None:
    forgetful, complete = run("composite_functions").split("complete:")
    assert forgetful.count("✗") == 1
    assert "✗" not in complete
    assert (
        "the model itself warns: torch.nn.functional.softmax is not in the layer map" in forgetful
    )
    for name in ("same relevance under checkpointing", "rules changed the gradient",
                 "remove() put it back"):  # fmt: skip
        assert line(complete, name).strip() == "True"


def test_extending(run: Run) -> None:
    out = run("extending")
    assert numbers(line(out, "AttnLRP differs from it by"))[0] < 1e-6
    assert numbers(line(out, "AttnLRP differs by"))[0] > 1e-3
    assert numbers(line(out, "and with one entry more by"))[0] < 1e-6


def test_your_own_model(run: Run) -> None:
    out = run("your_own_model")
    assert line(out, "findings before:") == " 3"
    assert line(out, "findings after:").strip() == "0"
    assert "SquareFunction" in out
    assert "write: composite | {torch.special.i1: lxt.rules.unit}" in out
    assert "relevance is not conserved" in out
    assert line(out, "sound: ").startswith("Block")
    assert numbers(line(out, "the plain block's relevance differs by"))[0] < 1e-6

"""Code written for LXT 2.1 runs unchanged: its names, its scripts, and the page on coming from it.

`data/lxt_scripts` has scripts as its users write them, which know nothing of `lxt` beyond LXT's
names. Each runs as `__main__` would, on a tiny model in a folder.
"""

import ast
import importlib
import inspect
import re
import runpy
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

import lxt
import zoo
from lxt.efficient import core, monkey_patch

HERE = Path(__file__).parent
SCRIPTS = HERE / "data" / "lxt_scripts"
API = HERE / "data" / "golden" / "lxt_api.txt"
PAGE = HERE.parent / "docs" / "migrating-from-lxt.md"

WORDS = ["[UNK]", *(f"▁{word}" for word in ("the", "fox", "saw", "other", "&", "dog"))]
BY_TRANSFORMERS = "smart_apply|.*_cached_value"  # what it adds to classes at their first use
IDS = torch.tensor([[5, 9, 3, 17, 9, 4]])

Run = Callable[..., dict[str, Any]]


# --- names and signatures -------------------------------------------------------------------------


def api() -> Iterator[tuple[str, str, str, bool]]:
    """Module, name, signature and whether it is a class, of all that LXT 2.1 has."""
    module = ""
    for line in API.read_text().splitlines():
        if line.startswith("## "):
            module = line.removeprefix("## ").strip()
        elif line.strip():
            found = re.fullmatch(r"\s+(\w+) (\(.*?\)(?: -> \w+)?) ?(\(class\))?", line)
            assert found, line
            yield module, found[1], found[2], found[3] is not None


def parameters(signature: str) -> list[tuple[str, Any]]:
    """Each parameter of a signature as it is written, with its default."""
    function = ast.parse(f"def f{signature}: ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args
    required = len(arguments.args) - len(arguments.defaults)
    defaults = [inspect.Parameter.empty] * required
    defaults += [ast.literal_eval(default) for default in arguments.defaults]
    return [(a.arg, d) for a, d in zip(arguments.args, defaults, strict=True)]


def test_the_list_of_names_is_read() -> None:
    names = {f"{module}.{name}" for module, name, *_ in api()}
    assert len(names) > 80
    assert {"lxt.efficient.monkey_patch", "lxt.explicit.rules.EpsilonRule"} <= names
    assert parameters("(a, b: int = 2, c=None)") == [
        ("a", inspect.Parameter.empty),
        ("b", 2),
        ("c", None),
    ]


@pytest.mark.parametrize(
    ("module", "name", "signature", "is_class"), [pytest.param(*row, id=row[1]) for row in api()]
)
def test_name_and_signature(module: str, name: str, signature: str, is_class: bool) -> None:
    """Ours may add parameters with a default at the end, and defaults where there were none."""
    ours = getattr(importlib.import_module(module), name)
    assert isinstance(ours, type) is is_class
    if name.endswith("_fn"):
        assert issubclass(ours, torch.autograd.Function)
        return
    expected = parameters(signature)
    found = list(inspect.signature(ours).parameters.values())
    assert [p.name for p in found[: len(expected)]] == [name for name, _ in expected]
    for p, (_, default) in zip(found, expected, strict=False):
        assert p.kind is p.POSITIONAL_OR_KEYWORD
        if isinstance(default, list):
            assert list(p.default) == default
        elif default is not p.empty:
            assert p.default == default
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    assert all(p.default is not p.empty or p.kind in optional for p in found[len(expected) :])


def test_methods_of_a_composite() -> None:
    from lxt.explicit.core import Composite

    names = list(inspect.signature(Composite.register).parameters)
    assert names == ["self", "parent", "dummy_inputs", "tracer", "verbose", "no_grad"]
    assert callable(Composite.remove)
    assert list(inspect.signature(Composite.context).parameters)[:2] == ["self", "module"]


# --- scripts --------------------------------------------------------------------------------------


def modeling(name: str) -> ModuleType:
    return importlib.import_module(zoo.ARCHITECTURES[name].type.__module__)


def attributes(targets: list[Any]) -> list[dict[str, Any]]:
    return [dict(vars(target)) for target in targets]


def remove_patches() -> None:
    for patch in list(core._patched.values()):
        patch.remove()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Take off what a script leaves on; then all is what it was, by identity."""
    names = ("llama", "qwen2", "qwen3", "gemma3", "qwen3_moe", "gpt2", "bert")
    modules = [modeling(name) for name in names]
    targets: list[Any] = [nn.Dropout, nn.LayerNorm, nn.Linear, nn.SiLU, nn.Tanh, nn.Module, F]
    for module in modules:
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        targets += [module, *(cls for cls in classes if issubclass(cls, nn.Module))]
    before, registry = attributes(targets), dict(ALL_ATTENTION_FUNCTIONS)
    yield
    remove_patches()
    for target, old, new in zip(targets, before, attributes(targets), strict=True):
        added = new.keys() - old.keys()
        added -= {name for name in added if re.fullmatch(BY_TRANSFORMERS, name)}
        assert not added, target
        assert all(new[name] is value for name, value in old.items()), target
    assert dict(ALL_ATTENTION_FUNCTIONS) == registry


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a script with arguments, and return its globals."""

    def run(name: str, *arguments: Any) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        result = runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        result["printed"] = capsys.readouterr().out
        return result

    return run


def saved(name: str, folder: Path) -> Path:
    """A tiny random model of the zoo with a tokenizer, as `from_pretrained` reads them."""
    zoo.build(name, dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Metaspace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def relevance(
    model: nn.Module, x: Tensor, composite: lxt.Composite, seed: Tensor | None = None
) -> Tensor:
    """The relevance of tokens for the highest last logit, or for a seed of the last logits."""
    x = x.detach().requires_grad_()
    with composite.context(model):
        logits = model(inputs_embeds=x).logits
    logits = logits[:, -1] if logits.dim() == 3 else logits
    value = logits[0].max() if seed is None else (logits[0] * seed).sum()
    (gradient,) = torch.autograd.grad(value, x)
    return (x * gradient).float().sum(-1).detach()[0]


def difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3", "qwen3_moe"])
def test_quickstart(name: str, dtype: str, run: Run, tmp_path: Path) -> None:
    """In bfloat16 checkpointed in training mode, where dropout must be off."""
    checkpointing = "yes" if dtype == "bfloat16" else "no"
    kind, path = zoo.ARCHITECTURES[name].type, saved(name, tmp_path)
    heatmap = tmp_path / "heatmap.pdf"
    script = run("causal", kind.__module__, kind.__name__, path, dtype, checkpointing, heatmap)
    assert f"Patched {kind.__name__}\n" in script["printed"]
    assert "".join(script["pieces"]) == " the fox saw the other fox & the dog"
    assert heatmap.read_bytes().startswith(b"%PDF")
    remove_patches()
    model = script["model"].eval()
    assert model.dtype is getattr(torch, dtype)
    expected = relevance(model, script["x"], lxt.attnlrp)
    assert torch.equal(script["relevance"], expected)
    assert difference(relevance(model, script["x"], lxt.gradient), expected) > 0.1


def test_gpt2_contrastive_and_by_cp_lrp(run: Run, tmp_path: Path) -> None:
    path = saved("gpt2", tmp_path)
    contrastive = run("gpt2", path, "contrastive")
    by_cp = run("gpt2", path, "cp")
    remove_patches()
    for script, composite in ((contrastive, lxt.attnlrp), (by_cp, lxt.cp_lrp)):
        expected = relevance(script["model"], script["x"], composite, script["seed"])
        assert torch.equal(script["relevance"], expected)
    e = lxt.explain(by_cp["model"], {"input_ids": IDS}, composite=lxt.cp_lrp)
    assert difference(by_cp["relevance"], e.relevance.flatten().float()) <= 1e-5
    # Of n logits LXT's seed takes off 1/n of each other one, and `Contrast` 1/(n - 1).
    n = len(contrastive["logits"])
    e = lxt.explain(contrastive["model"], {"input_ids": IDS}, target=lxt.Contrast(None))
    best = F.one_hot(torch.tensor(contrastive["best"]), n).float()
    ours = relevance(contrastive["model"], contrastive["x"], lxt.attnlrp, (n * best - 1) / (n - 1))
    assert difference(ours, e.relevance.flatten().float()) <= 1e-5


def test_bert_classifier(run: Run, tmp_path: Path) -> None:
    script = run("bert", saved("bert", tmp_path))
    remove_patches()
    expected = relevance(script["model"], script["x"], lxt.attnlrp)
    assert torch.equal(script["relevance"], expected)
    assert script["label"].startswith("LABEL_")


def latent(model: Any, x: Tensor) -> Tensor:
    """The relevance of the residual stream after each layer of a Llama: [layer, token]."""
    x, hidden = x.detach().requires_grad_(), []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *call: hidden.append(call[2]))
    with lxt.attnlrp.context(model):
        value = model(inputs_embeds=x).logits[0, -1].max()
    gradients = torch.autograd.grad(value, hidden)
    trace = [(h * g).sum(-1)[0] for h, g in zip(hidden, gradients, strict=True)]
    return torch.stack(trace).detach()


@pytest.mark.parametrize("mode", ["plain", "checkpointing"])
def test_latent_trace(mode: str, run: Run, tmp_path: Path) -> None:
    script = run("latent", saved("llama", tmp_path), mode)
    remove_patches()
    for layer in script["model"].model.layers:
        layer._forward_hooks.clear()
    assert script["trace"].shape == (2, 6)
    assert torch.equal(script["trace"], latent(script["model"].eval(), script["x"]))
    # After the last layer only the last position is read.
    assert not script["trace"][-1, :-1].any()
    assert script["trace"][0, :-1].all()


def test_a_map_of_ones_own(run: Run) -> None:
    """Under a map that names all that matters, as under a composite with the same rules."""
    script = runpy.run_path(str(SCRIPTS / "extending.py"), run_name="my_modeling")
    module = ModuleType("my_modeling")
    vars(module).update(script)
    x = torch.randn(3, 6, dtype=torch.float64)
    model, by_map = script["run"](module, script["squash_forward"], x)
    remove_patches()

    def under(composite: lxt.Composite) -> Tensor:
        leaf = x.clone().requires_grad_()
        with composite.context(model):
            output = model(leaf)
        return (leaf * torch.autograd.grad(output.sum(), leaf)[0]).detach()

    assert difference(by_map, under(lxt.attnlrp)) <= 1e-6
    _, by_other_map = script["run"](module, script["plain_squash_forward"], x)
    assert difference(by_other_map, by_map) > 1e-2


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_explicit_llama(mode: str, run: Run, tmp_path: Path) -> None:
    from lxt.explicit.models.llama import LlamaForCausalLM, attnlrp

    assert LlamaForCausalLM is modeling_llama.LlamaForCausalLM
    try:
        script = run("explicit_llama", saved("llama", tmp_path), mode)
    finally:
        attnlrp.remove()
    expected = relevance(script["model"].eval(), script["x"], lxt.attnlrp)
    # The norms of transformers compute in float32, and what is left is ε.
    assert difference(script["relevance"], expected) <= 1e-5
    assert all(parameter.requires_grad for parameter in script["model"].parameters())
    for layer in script["model"].model.layers:
        layer._backward_hooks.clear()
    assert difference(script["trace"], latent(script["model"], script["x"])) <= 1e-5


def test_explicit_functional_and_sequential(run: Run) -> None:
    script = run("explicit_sequential")
    x, weight, bias = (script[name].detach() for name in ("inputs", "weight", "bias"))
    y = x @ weight.T + bias
    assert difference(script["linear"], x * ((y / (y + 1e-6)) @ weight)) <= 1e-12

    model, x = script["model"], script["x"].detach()
    z = x @ model[0].weight.T + model[0].bias
    normed = z / (z.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = x * ((normed / (z + 1e-8)) @ model[0].weight)
    assert difference(script["relevance"], expected.detach()) <= 1e-12
    assert "Epsilon" in script["printed"]
    assert str(model) == script["before"]
    assert all(parameter.requires_grad for parameter in model.parameters())
    x = x.requires_grad_()
    y = model(x)
    assert difference(torch.autograd.grad(y, x, y.detach())[0], expected.detach()) > 0.1


def test_explicit_functions(run: Run) -> None:
    script = run("explicit_functions")
    script["lrp"].remove()
    assert "add" in script["printed"]
    model, x = script["model"], script["x"].detach()
    a, b = model.scores(x), model.values(x)
    s = a.softmax(-1)
    y = s + b
    r_s, r_b = s * y / (y + 1e-8), b * y / (y + 1e-8)
    r_a = a * (r_s - s * r_s.sum(-1, keepdim=True))
    weights = model.scores.weight, model.values.weight
    expected = sum(
        x * ((r / (z + 1e-8)) @ w) for r, z, w in zip((r_a, r_b), (a, b), weights, strict=True)
    )
    assert isinstance(expected, Tensor)
    assert difference(script["relevance"], expected.detach()) <= 1e-10


# --- the page on coming from LXT ------------------------------------------------------------------


def blocks() -> Iterator[tuple[str, str]]:
    """Each block of Python on the page, with what its fence says besides."""
    pattern = re.compile(r"^( *)```python ?([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    for _, info, code in pattern.findall(PAGE.read_text()):
        yield info, textwrap.dedent(code)


def test_the_code_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks one after the other, but for those that need Zennit."""
    monkeypatch.chdir(tmp_path)
    model = zoo.build("llama")
    prompt = "the fox saw the other fox & the dog"
    tokenizer = tiny_tokenizer()
    input_ids = tokenizer(prompt, return_tensors="pt").input_ids
    names: dict[str, Any] = {
        "torch": torch,
        "lxt": lxt,
        "model": model,
        "tokenizer": tokenizer,
        "prompt": prompt,
        "input_ids": input_ids,
        "__name__": "page",
    }
    expected = relevance(model, model.get_input_embeddings()(input_ids), lxt.attnlrp)
    checked, ran = [], 0
    for info, code in blocks():
        assert info in ("", "no-run"), info
        compiled = compile(code, str(PAGE), "exec")
        if info == "no-run":
            assert "zennit" in code
            continue
        before = dict(names)
        exec(compiled, names)
        ran += 1
        remove_patches()
        if names.get("relevance") is not before.get("relevance"):
            tolerance = 1e-5 if "explicit" in code else 1e-6
            found = names["relevance"].detach().flatten().float()
            assert difference(found, expected) <= tolerance, code
            checked.append(code)
    assert ran >= 10
    assert len(checked) == 4
    # The residual stream after the last layer holds all relevance at the last position.
    assert names["trace"].shape == (2, len(expected))
    assert float(names["trace"][-1, -1].detach()) != 0
    assert not names["trace"][-1, :-1].any()
    assert names["tokens"] == [" Paris", " &", "\n", "10%_"]
    assert (tmp_path / "heatmap.pdf").read_bytes().startswith(b"%PDF")


def test_a_patch_map_on_the_page_does_lxts_arithmetic() -> None:
    """The same relevance up to LXT's 1e-10, which is there: the two are not equal."""
    (code,) = (code for _, code in blocks() if "as_lxt = {" in code)
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    expected = relevance(model, example.leaf[:1], lxt.attnlrp)
    exec(code, {"torch": torch, "modeling_llama": modeling_llama, "monkey_patch": monkey_patch})
    x = example.leaf.detach()[:1].requires_grad_()
    model(inputs_embeds=x).logits[0, -1].max().backward()
    assert x.grad is not None
    found = (x * x.grad).float().sum(-1).detach()[0]
    assert difference(found, expected) <= 1e-6
    (patch,) = core._patched.values()
    assert patch.composite.name == "patch map"


def test_moe_composite_on_the_page_takes_the_plain_gradient_of_the_division() -> None:
    """The in-place division is what Qwen3-MoE's router does, and the rule reaches it."""
    names: dict[str, Any] = {"torch": torch, "lxt": lxt}
    (code,) = (code for _, code in blocks() if "div_" in code)
    exec(code, names)
    changes = {}
    for normed in (True, False):
        model = zoo.build("qwen3_moe", norm_topk_prob=normed)
        x = zoo.example("qwen3_moe", model).leaf[:1]
        ours = relevance(model, x, lxt.attnlrp)
        changes[normed] = difference(relevance(model, x, names["as_lxt"]), ours)
    assert changes[True] > 1e-3
    assert changes[False] == 0


def test_what_the_page_names_exists() -> None:
    text = PAGE.read_text()
    section = text.partition("## What was silent")[2].partition("\n## ")[0]
    answers = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")]
    named = set(re.findall(r"`([A-Z]\w+)`", "".join(answers)))
    assert {"UnknownOperation", "UnmappedOperationWarning"} <= named
    assert all(hasattr(lxt.errors, name) for name in named)
    for file in re.findall(r"`(tests/\w+\.py)`", text):
        assert (HERE.parent / file).is_file()
    links = re.findall(r"\((?:\.\./(README\.md))?#([\w-]+)\)", text)
    assert len(links) >= 4
    for file, anchor in links:
        target = (HERE.parent / file).read_text() if file else text
        headings = re.findall(r"^## (.*)$", target, re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]

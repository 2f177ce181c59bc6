"""Many targets from one forward pass: each as if it were the only one."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import lxt
import zoo
from lxt import many
from lxt.backward import Backward
from lxt.batching import Footprint
from lxt.errors import (
    InvalidComposite,
    InvalidInput,
    InvalidTarget,
    NonFiniteLogits,
    SequentialBackwardWarning,
)
from spellings import byte_level_bpe

BPE = byte_level_bpe()
CAUSAL = [n for n in zoo.NAMES if "CausalLM" in zoo.ARCHITECTURES[n].model_class] + ["gpt2"]
MASKED = [n for n in zoo.NAMES if "MaskedLM" in zoo.ARCHITECTURES[n].model_class]
CLASSIFIERS = [n for n in zoo.NAMES if "SequenceClass" in zoo.ARCHITECTURES[n].model_class]
IDS = [9, 17, 30, 41, 5, 22, 60, 33, 71, 12, 8, 94]
TARGETS = [
    lxt.Logit(7),
    lxt.Contrast(7, 9, position=2),
    lxt.Prediction(),
    lxt.Contrast(3, position=-4),
    lxt.Logit(7, position=0),
    lxt.Logit(5),
]
EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}

# What starts a pass takes no time, so that tiny models are explained by shorter passes too.
SHORTER = {"cpu": 0}


@pytest.fixture
def shorter_passes(monkeypatch):
    monkeypatch.setattr(many, "_START", SHORTER)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def one_by_one(model, inputs, targets, **options):
    return [lxt.explain(model, inputs, target=target, **options) for target in targets]


def agree(together, alone, tolerance) -> None:
    assert len(together) == len(alone)
    for one, other in zip(together, alone, strict=True):
        assert difference(one.relevance, other.relevance) < tolerance
        assert one.target.name == other.target.name
        assert one.target.kind == other.target.kind
        assert one.target.position == other.target.position
        assert one.target.prediction == other.target.prediction
        assert one.target.value == pytest.approx(other.target.value, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CAUSAL)
def test_targets_of_a_causal_model_as_one_by_one(name: str, dtype: torch.dtype) -> None:
    model = zoo.build(name, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = lxt.explain(model, IDS, target=TARGETS)
    assert together.axes == ("targets", "tokens")
    agree(together, one_by_one(model, IDS, TARGETS), EXACT[dtype])


@pytest.mark.parametrize("composite", ["cp_lrp", "gradient", lxt.explicit.attnlrp])
def test_targets_under_other_composites(composite) -> None:
    model = zoo.build("qwen3")
    together = lxt.explain(model, IDS, target=TARGETS, composite=composite)
    agree(together, one_by_one(model, IDS, TARGETS, composite=composite), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CAUSAL)
def test_every_next_token_by_passes_over_the_tokens_before(
    name: str, dtype: torch.dtype, shorter_passes
) -> None:
    model = zoo.build(name, dtype=dtype)
    lengths = []
    with torch.no_grad():
        top = int(model(torch.tensor([IDS])).logits[0, -1].argmax())
    handle = model.get_input_embeddings().register_forward_hook(
        lambda m, args, out: lengths.append(out.shape[1])
    )
    matrix = lxt.explain(model, IDS, target=lxt.Every())
    handle.remove()
    assert lengths[0] == len(IDS)
    assert 1 < len(lengths) < len(IDS)
    assert lengths[1:] == sorted(lengths[1:])
    assert lengths[1] < len(IDS)
    following = [*IDS[1:], top]
    targets = [lxt.Logit(token, position=t) for t, token in enumerate(following)]
    alone = [*one_by_one(model, IDS, targets[:-1]), lxt.explain(model, IDS)]
    agree(matrix, alone, EXACT[dtype])
    assert matrix.relevance.shape == (len(IDS), len(IDS))
    assert (matrix.relevance.triu(1) == 0).all()
    assert matrix.target[-1].kind == "prediction"


@pytest.mark.parametrize("name", CAUSAL)
def test_a_pass_over_all_tokens_leaves_nothing_after_the_target(name: str) -> None:
    whole = lxt.explain(zoo.build(name), IDS, target=lxt.Logit(7, position=4))
    assert whole.relevance[5:].abs().max() <= 1e-12 * whole.relevance.abs().max()


def test_every_takes_positions() -> None:
    model = zoo.build("llama")
    matrix = lxt.explain(model, IDS, target=lxt.Every()).relevance
    for positions, rows in (
        ([3, -1, 3], [3, 11, 3]),
        (range(2, 9, 3), [2, 5, 8]),
        (slice(-3, None), [9, 10, 11]),
        (iter([1]), [1]),
        (torch.tensor([4, 2]), [4, 2]),
    ):
        some = lxt.explain(model, IDS, target=lxt.Every(positions))
        assert [target.position for target in some.target] == rows
        assert torch.allclose(some.relevance, matrix[rows], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MASKED)
def test_every_position_of_a_masked_model_is_its_own_prediction(name: str) -> None:
    model = zoo.build(name)
    together = lxt.explain(model, IDS, target=lxt.Every())
    alone = one_by_one(model, IDS, [lxt.Prediction(position=t) for t in range(len(IDS))])
    agree(together, alone, 1e-10)
    assert together.relevance.triu(1).abs().max() > 0


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_label_of_a_classifier(name: str) -> None:
    model = zoo.build(name)
    targets = [lxt.Label(i) for i in range(5)] + [lxt.Prediction(), lxt.Contrast(0, 1)]
    agree(lxt.explain(model, IDS, target=targets), one_by_one(model, IDS, targets), 1e-10)
    with pytest.raises(InvalidTarget, match=r"no positions.*lxt\.Label"):
        lxt.explain(model, IDS, target=lxt.Every())


def padded(side: str) -> dict[str, torch.Tensor]:
    rows = [IDS, IDS[3:8], IDS[2:9]]
    ids, mask = torch.zeros(3, 12, dtype=torch.long), torch.zeros(3, 12, dtype=torch.long)
    for row, tokens in enumerate(rows):
        at = slice(12 - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, at], mask[row, at] = torch.tensor(tokens), 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("short", [True, False])
def test_a_batch_of_many_targets(side: str, short: bool, monkeypatch) -> None:
    if short:
        monkeypatch.setattr(many, "_START", SHORTER)
    model, inputs = zoo.build("llama"), padded(side)
    together = lxt.explain(model, inputs, target=lxt.Every())
    assert together.axes == ("batch", "targets", "tokens")
    assert together.relevance.shape == (3, 12, 12)
    assert [len(targets) for targets in together.target] == [12, 5, 7]
    assert (together.relevance[1, 5:] == 0).all()
    assert (together.relevance.movedim(1, 2)[inputs["attention_mask"] == 0] == 0).all()
    for row, ids, keep in zip(
        together, inputs["input_ids"], inputs["attention_mask"].bool(), strict=True
    ):
        alone = lxt.explain(model, ids[keep], target=lxt.Every())
        assert row.token_ids.tolist() == ids[keep].tolist()
        agree(row, list(alone), 1e-10)
    fixed = lxt.explain(model, inputs, target=TARGETS[:3])
    assert fixed.relevance.shape == (3, 3, 12)
    for target, one in enumerate(TARGETS[:3]):
        alone = lxt.explain(model, inputs, target=one)
        assert torch.allclose(fixed.relevance[:, target], alone.relevance, rtol=1e-10, atol=1e-12)


def test_a_sum_is_one_backward_pass(monkeypatch) -> None:
    model = zoo.build("llama", vocab_size=320)
    text = "The capital of France is Paris"
    each = lxt.explain(model, text, tokenizer=BPE, target=lxt.Every(slice(-5, None)))
    calls = []
    one = Backward.one
    monkeypatch.setattr(Backward, "one", lambda *a: calls.append(a) or one(*a))
    monkeypatch.setattr(Backward, "many", lambda *_: pytest.fail("several backward passes"))
    total = lxt.explain(model, text, tokenizer=BPE, target=lxt.Every(slice(-5, None)), reduce="sum")
    assert len(calls) == 1
    assert total.axes == ("tokens",)
    # Norms of Llama are float32 in any model, so a sum of gradients is rounded there.
    assert difference(total.relevance, each.relevance.sum(0)) < 1e-6
    target = total.target
    assert target.kind == "sum"
    assert target.position is None
    assert target.name == f"5 tokens: {each.target[0].name} + …"
    assert target.value == pytest.approx(sum(part.value for part in each.target))
    assert target.prediction == each.target[-1].prediction
    pair = lxt.explain(model, IDS, target=[lxt.Logit(7), lxt.Logit(9)], reduce="sum")
    assert pair.target.name == "token 7 + token 9"
    assert pair.target.position == len(IDS) - 1
    batch = lxt.explain(model, padded("left"), target=lxt.Every(), reduce="sum")
    assert batch.axes == ("batch", "tokens")
    assert batch.target[1].name.startswith("5 tokens: ")


class OddForCausalLM(nn.Module):
    """A causal model by its name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.masked = zoo.build(MASKED[0])
        self.config = self.masked.config
        self.lengths: list[int] = []

    def get_input_embeddings(self) -> nn.Module:
        return self.masked.get_input_embeddings()

    def forward(self, input_ids, attention_mask):
        self.lengths.append(input_ids.shape[1])
        return self.masked(input_ids, attention_mask)


def test_a_model_that_looks_ahead_is_explained_on_all_tokens(shorter_passes) -> None:
    model = OddForCausalLM()
    together = lxt.explain(model, IDS, target=lxt.Every())
    first, shorter, *rest = model.lengths
    assert shorter < first == len(IDS)
    assert rest == [len(IDS)]
    targets = [lxt.Logit(token, position=t) for t, token in enumerate(IDS[1:])]
    agree(list(together)[:-1], one_by_one(model, IDS, targets), 1e-10)
    assert together.relevance.triu(1).abs().max() > 0


def test_a_backward_pass_that_takes_one_target_only(monkeypatch) -> None:
    """The value of one number decides in it what to do: no such thing under vmap."""

    def silu(input, inplace=False):
        return OneAtATime.apply(input)

    model = zoo.build("llama")
    composite = lxt.attnlrp | {nn.functional.silu: silu}
    expected = one_by_one(model, IDS, TARGETS, composite=composite)
    with pytest.warns(SequentialBackwardWarning, match="LlamaForCausalLM.*one at a time") as caught:
        together = lxt.explain(model, IDS, target=TARGETS, composite=composite)
    assert len(caught) == 1
    agree(together, expected, 1e-10)


class OneAtATime(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return nn.functional.silu(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.sigmoid() if g.sum().item() < 1e9 else g


def test_where_memory_runs_out_chunks_are_halved(monkeypatch) -> None:
    model = zoo.build("llama")
    expected = lxt.explain(model, IDS, target=lxt.Every())
    sizes, grad = [], torch.autograd.grad

    def small(outputs, inputs, seeds, **options):
        if options.get("is_grads_batched"):
            sizes.append(len(seeds))
            if len(seeds) > 3:
                raise torch.OutOfMemoryError("out of memory")
        return grad(outputs, inputs, seeds, **options)

    monkeypatch.setattr(torch.autograd, "grad", small)
    together = lxt.explain(model, IDS, target=lxt.Every())
    agree(together, list(expected), 1e-10)
    assert sizes[:3] == [12, 6, 3]
    assert all(size <= 3 for size in sizes[2:])


def test_no_memory_for_a_single_target(monkeypatch) -> None:
    def never(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.autograd, "grad", never)
    with pytest.raises(torch.OutOfMemoryError):
        lxt.explain(zoo.build("llama"), IDS, target=TARGETS)


@pytest.mark.parametrize(("budget", "largest"), [(1, 1), ("1 kB", 1), ("64MiB", 12), (None, 12)])
def test_a_budget_bounds_the_chunks(budget, largest, monkeypatch) -> None:
    model = zoo.build("llama")
    expected = lxt.explain(model, IDS, target=lxt.Every())
    sizes, many_at_once = [], Backward.many

    def seen(self, reading, targets, weights):
        sizes.append(len(targets))
        return many_at_once(self, reading, targets, weights)

    monkeypatch.setattr(Backward, "many", seen)
    together = lxt.explain(model, IDS, target=lxt.Every(), memory_budget=budget)
    assert max(sizes) == largest
    agree(together, list(expected), 1e-10)


def test_the_estimate_of_what_a_forward_pass_saves() -> None:
    """Linear layers' outputs are what is kept; embeddings and head are not among them."""
    size = Footprint(zoo.build("llama", hidden_size=32, intermediate_size=48))
    layers = 2 * (4 * 32 + 2 * 48 + 48)  # projections; gate and up; the wider side of down
    assert size.saved == layers * 8
    assert size.gradients == 12 * 48 * 8


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_checkpoints(name: str) -> None:
    model = zoo.build(name, num_hidden_layers=4)
    targets = [lxt.Label(i) for i in range(5)] if name == "bert" else lxt.Every()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = lxt.explain(model, IDS, target=targets, checkpoint=True)
    agree(again, list(lxt.explain(model, IDS, target=targets)), 1e-10)
    with pytest.raises(InvalidComposite, match="checkpoint"):
        lxt.explain(model, IDS, checkpoint="yes")


def test_targets_at_different_positions_share_the_pass_through_the_head(monkeypatch) -> None:
    """What goes on is a vector of channels for each target, and not one of the vocabulary."""
    model = zoo.build("llama")
    shapes, grad = [], torch.autograd.grad

    def seen(outputs, inputs, seeds, **options):
        if options:  # not in the proof of a fusion
            shapes.append((tuple(seeds.shape), options.get("is_grads_batched", False)))
        return grad(outputs, inputs, seeds, **options)

    monkeypatch.setattr(torch.autograd, "grad", seen)
    lxt.explain(model, IDS, target=[lxt.Logit(7, position=t) for t in (1, 5, 5, 9)])
    proof, first, second, passes = shapes
    assert proof == first == second == ((1, 3, 128), False)
    assert passes == ((4, 1, 3, 32), True)
    shapes.clear()
    lxt.explain(model, IDS, target=[lxt.Logit(7), lxt.Logit(9)])
    assert shapes == [((2, 1, 1, 128), True)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, shorter_passes) -> None:
    model = zoo.build("llama", dtype=dtype)
    together = lxt.explain(model, IDS, target=lxt.Every())
    targets = [lxt.Logit(token, position=t) for t, token in enumerate(IDS[1:])]
    for one, other in zip(together, one_by_one(model, IDS, targets), strict=False):
        assert one.relevance.dtype is torch.float32
        assert torch.cosine_similarity(one.relevance, other.relevance, dim=0) > 0.99


def test_float16_scales_each_target_by_itself() -> None:
    """A seed as large as one target bears makes another one overflow."""
    model = zoo.build("llama", dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.clamp_(-0.5, 0.5)
        model.lm_head.weight[7] *= 1e-6
        model.lm_head.weight[9] *= 1e4
    targets = [lxt.Logit(7), lxt.Logit(9), lxt.Logit(7, position=3)]
    wide = lxt.explain(model, IDS, target=targets)
    narrow = lxt.explain(model.to(torch.float16), IDS, target=targets)
    for one, other in zip(wide, narrow, strict=True):
        assert one.relevance.abs().max() > 0
        assert torch.cosine_similarity(one.relevance, other.relevance, dim=0) > 0.97


def test_logits_that_are_not_finite_name_row_and_position() -> None:
    model = zoo.build("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(NonFiniteLogits, match="row 1 at position 3"):
        lxt.explain(model, padded("left"), target=lxt.Every([3]), batch_size=1)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([], r"nothing in \[\]"),
        ([lxt.Logit(7), " Paris"], "target 1: ' Paris' is no target"),
        ([lxt.Logit(7), lxt.Logit(7, position=12)], "target 1: there is no position 12"),
        ([lxt.Logit(999)], "target 0: there is no token id 999"),
        ([[lxt.Logit(7)]], "target 0"),
        (lxt.Every([]), "names no position of row 0"),
        (lxt.Every([12]), "no position 12 in row 0: it has 12 tokens"),
        (lxt.Every([-13]), "no position -13"),
        (lxt.Every(slice(5, 2)), "names no position"),
    ],
)
def test_bad_targets(target, message: str) -> None:
    model = zoo.build("llama")
    model.register_forward_pre_hook(lambda *_: pytest.fail("long work began"))
    with pytest.raises(InvalidTarget, match=message):
        lxt.explain(model, IDS, target=target)


@pytest.mark.parametrize("positions", [3, "3", [1.5], [True], 2.0])
def test_positions_that_are_none(positions) -> None:
    with pytest.raises(InvalidTarget, match="positions"):
        lxt.Every(positions)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reduce": "mean"}, InvalidTarget, "'mean'"),
        ({"reduce": "sum", "target": lxt.Logit(7)}, InvalidTarget, "many targets"),
        ({"memory_budget": 0}, InvalidInput, "memory_budget is 0"),
        ({"memory_budget": -5}, InvalidInput, "-5"),
        ({"memory_budget": True}, InvalidInput, "True"),
        ({"memory_budget": "much"}, InvalidInput, "'much'.*2GiB"),
        ({"memory_budget": "2iB"}, InvalidInput, "'2iB'"),
        ({"memory_budget": 1.5}, InvalidInput, "1.5"),
        ({"progress": "yes"}, InvalidInput, "'yes'"),
    ],
)
def test_bad_options(options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        lxt.explain(zoo.build("llama"), IDS, **{"target": TARGETS} | options)


def test_the_matrix_is_shown_saved_and_read(tmp_path) -> None:
    model = zoo.build("llama", vocab_size=320)
    matrix = lxt.explain(model, "The capital of France", tokenizer=BPE, target=lxt.Every())
    assert "explained  9 targets" in str(matrix)
    assert "one target with all of its tokens: e[0] … e[8]" in str(matrix)
    assert "<title>Relevance for 9 targets</title>" in matrix.to_html()
    assert "… and 1 more" in matrix._repr_html_()
    matrix.save(tmp_path / "matrix")
    read = lxt.Explanation.load(tmp_path / "matrix")
    assert torch.equal(read.relevance, matrix.relevance)
    assert read.target == matrix.target


def test_progress_goes_to_standard_error_and_only_when_wanted() -> None:
    script = (
        "import sys; sys.path[:0] = ['tests', 'src']\n"
        "import lxt, zoo, lxt.progress\n"
        "lxt.progress._MOMENT = 0\n"
        "wanted = {'True': True, 'None': None}[sys.argv[1]]\n"
        "lxt.explain(zoo.build('llama'), [[9, 8, 7]] * 3, batch_size=1, progress=wanted)\n"
    )
    for wanted in ("True", "None"):
        done = subprocess.run(
            [sys.executable, "-c", script, wanted], capture_output=True, text=True, check=True
        )
        assert done.stdout == ""
        assert ("explaining" in done.stderr) == (wanted == "True")


def test_the_matrix_of_the_default_model(smollm2) -> None:
    model, tokenizer, _ = smollm2
    ids = tokenizer("The capital of France is Paris, and that of Italy is Rome.")["input_ids"]
    matrix = lxt.explain(model, ids, target=lxt.Every())
    for t in (2, len(ids) - 2):
        alone = lxt.explain(model, ids, target=lxt.Logit(ids[t + 1], position=t))
        assert difference(matrix[t].relevance, alone.relevance) < 1e-5
    assert (matrix.relevance.triu(1) == 0).all()

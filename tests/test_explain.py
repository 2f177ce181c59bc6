"""`lxt.explain`: prompts, targets, batches, precision, and what it says to bad input."""

import pytest
import torch
import transformers

import lxt
import zoo
from lxt.errors import (
    AlreadyRegistered,
    InvalidComposite,
    InvalidInput,
    InvalidModel,
    InvalidTarget,
    NonFiniteLogits,
    UnknownOperation,
)
from spellings import byte_level_bpe, llama_like, word_piece

BPE, BERT = byte_level_bpe(), word_piece()
CAUSAL = [n for n in zoo.NAMES if "CausalLM" in zoo.ARCHITECTURES[n].model_class] + ["gpt2"]
MASKED = [n for n in zoo.NAMES if "MaskedLM" in zoo.ARCHITECTURES[n].model_class]
CLASSIFIERS = [n for n in zoo.NAMES if "SequenceClass" in zoo.ARCHITECTURES[n].model_class]
LABELS = {"id2label": dict(enumerate(["Good", "bad", "meh", "odd", "LABEL_4"]))}
IDS = [[9, 17, 30, 41, 5, 22, 60], [70, 8, 33, 12]]


def causal(name: str = "llama", **options) -> torch.nn.Module:
    return zoo.build(name, vocab_size=320, **options)


def padded(side: str) -> dict[str, torch.Tensor]:
    short = len(IDS[0]) - len(IDS[1])
    ids = torch.tensor([IDS[0], [0] * short + IDS[1] if side == "left" else IDS[1] + [0] * short])
    mask = torch.ones_like(ids)
    mask[1, :short] = 0
    return {"input_ids": ids, "attention_mask": mask if side == "left" else mask.flip(1)}


def by_hand(model, ids, weights, position=-1, composite=lxt.attnlrp):
    """Relevance by the recipe of the paper: hook the embeddings, run, and multiply."""
    leaves = []

    def leaf(module, args, output):
        leaves.append(output.detach().requires_grad_())
        return leaves[0]

    hook = model.get_input_embeddings().register_forward_hook(leaf)
    with composite.context(model):
        logits = model(torch.tensor([ids])).logits
    hook.remove()
    value = (logits[0, position] if logits.dim() == 3 else logits[0]).double() @ weights
    (gradient,) = torch.autograd.grad(value, leaves[0])
    return (leaves[0].detach() * gradient).sum(-1)[0], float(value)


def one_hot(index: int, size: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(index), size).double()


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp", "gradient"])
def test_the_prediction_of_a_causal_model(name: str, composite: str) -> None:
    model = causal(name)
    explanation = lxt.explain(model, IDS[0], composite=composite)
    assert isinstance(explanation.target, lxt.ExplainedTarget)
    top = int(model(torch.tensor([IDS[0]])).logits[0, -1].argmax())
    expected, value = by_hand(model, IDS[0], one_hot(top, 320), composite=getattr(lxt, composite))
    assert torch.allclose(explanation.relevance, expected, rtol=1e-5, atol=1e-6)
    assert explanation.relevance.dtype is torch.float64
    assert explanation.target.value == pytest.approx(value, rel=1e-5)
    assert explanation.target.prediction == f"token {top}"
    assert explanation.target.position == 6
    assert explanation.provenance["composite"] == composite
    assert explanation.relevance.abs().sum() > 0


def test_targets_of_a_causal_model() -> None:
    model = causal()
    for target, weights, position in (
        (lxt.Logit(7), one_hot(7, 320), -1),
        (lxt.Logit(7, position=2), one_hot(7, 320), 2),
        (lxt.Contrast(7, 9), one_hot(7, 320) - one_hot(9, 320), -1),
        (lxt.Contrast(7, position=-3), one_hot(7, 320) * 320 / 319 - 1 / 319, -3),
    ):
        explanation = lxt.explain(model, IDS[0], target=target)
        expected, value = by_hand(model, IDS[0], weights, position)
        assert torch.allclose(explanation.relevance, expected, rtol=1e-5, atol=1e-7)
        assert explanation.target.value == pytest.approx(value, rel=1e-5)
        assert explanation.target.position == position % 7
    contrast = lxt.explain(model, IDS[0], target=lxt.Contrast(7, 9)).relevance
    parts = [lxt.explain(model, IDS[0], target=lxt.Logit(i)).relevance for i in (7, 9)]
    assert torch.allclose(contrast, parts[0] - parts[1], atol=1e-9)


def test_text_is_tokenised_and_its_tokens_read_as_the_text() -> None:
    text = "The capital of France is 🙂 café"
    explanation = lxt.explain(causal(), text, tokenizer=BPE)
    assert "".join(explanation.tokens).replace(lxt.tokens.CONTINUATION, "") == text
    assert explanation.token_ids.tolist() == BPE(text)["input_ids"]
    assert explanation.relevance.shape == (len(explanation.tokens),)
    assert explanation.target.prediction.startswith('"')


def test_a_token_by_its_text() -> None:
    token = BPE.decode([BPE(" France is")["input_ids"][0]])
    index = BPE(token)["input_ids"][0]
    by_text = lxt.explain(causal(), "The capital", tokenizer=BPE, target=lxt.Logit(token))
    by_id = lxt.explain(causal(), "The capital", tokenizer=BPE, target=lxt.Logit(index))
    assert torch.equal(by_text.relevance, by_id.relevance)
    assert by_text.target.name == f'"{token}"'


def test_a_token_that_begins_a_word_in_sentencepiece() -> None:
    tokenizer = llama_like()
    model = zoo.build("llama", vocab_size=300)
    explanation = lxt.explain(model, "The", tokenizer=tokenizer, target=lxt.Logit("T"))
    assert explanation.target.name == '"T"'
    assert tokenizer.convert_ids_to_tokens(tokenizer.get_vocab()["T"]) == "T"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", [*CAUSAL, *CLASSIFIERS])
def test_rows_of_a_batch_equal_the_row_alone_on_either_side(name: str, side: str) -> None:
    """Tolerance: transformers' norms and softmax are float32 in a float64 model."""
    model = causal(name)
    inputs = padded(side)
    together = lxt.explain(model, inputs)
    assert together.relevance.shape == (2, 7)
    padding = inputs["attention_mask"] == 0
    assert (together.relevance[padding] == 0).all()
    assert padding.sum() == 3
    for row, ids in zip(together, IDS, strict=True):
        alone = lxt.explain(model, ids)
        assert row.token_ids.tolist() == ids
        assert torch.allclose(row.relevance, alone.relevance, rtol=1e-5, atol=1e-6)
        assert row.target.position == alone.target.position
        assert row.target.value == pytest.approx(alone.target.value, rel=1e-5)


def test_a_list_of_texts_is_a_batch() -> None:
    texts = ["The capital of France", "Paris"]
    together = lxt.explain(causal(), texts, tokenizer=BPE)
    assert len(together) == 2
    for row, text in zip(together, texts, strict=True):
        alone = lxt.explain(causal(), text, tokenizer=BPE)
        assert row.tokens == alone.tokens
        assert torch.allclose(row.relevance, alone.relevance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_model_is_explained_at_its_mask(name: str) -> None:
    model = zoo.build(name)
    text = "the capital [MASK] a"
    explanation = lxt.explain(model, text, tokenizer=BERT)
    position = BERT(text)["input_ids"].index(BERT.mask_token_id)
    assert explanation.target.position == position
    ids = BERT(text)["input_ids"]
    top = int(model(torch.tensor([ids])).logits[0, position].argmax())
    weights = one_hot(top, model.config.vocab_size)
    expected, _ = by_hand(model, ids, weights, position)
    assert torch.allclose(explanation.relevance, expected, rtol=1e-4, atol=1e-6)
    elsewhere = lxt.explain(model, "the capital", tokenizer=BERT, target=lxt.Prediction(position=0))
    assert elsewhere.target.position == 0
    for wrong in ("the capital", "[MASK] capital [MASK]"):
        with pytest.raises(InvalidInput, match=r"\[MASK\].*position="):
            lxt.explain(model, wrong, tokenizer=BERT)
    with pytest.raises(InvalidTarget, match="tokenizer"):
        lxt.explain(model, ids)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_and_its_labels(name: str) -> None:
    model = zoo.build(name, **LABELS)
    ids = IDS[0]
    logits = model(torch.tensor([ids])).logits[0]
    contrast = lxt.explain(model, ids, target=lxt.Contrast("good", "meh"))
    expected, value = by_hand(model, ids, one_hot(0, 5) - one_hot(2, 5))
    assert torch.allclose(contrast.relevance, expected, rtol=1e-5, atol=1e-7)
    assert contrast.target.value == pytest.approx(value)
    for target, index in ((None, int(logits.argmax())), (lxt.Label("BAD"), 1), (lxt.Label(3), 3)):
        explanation = lxt.explain(model, ids, target=target)
        expected, value = by_hand(model, ids, one_hot(index, 5))
        assert torch.allclose(explanation.relevance, expected, rtol=1e-5, atol=1e-7)
        assert explanation.target.name == LABELS["id2label"][index]
        assert explanation.target.prediction == LABELS["id2label"][int(logits.argmax())]
        assert explanation.target.position is None
        assert explanation.target.value == pytest.approx(value)


def test_a_causal_model_with_a_classifier_head() -> None:
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForSequenceClassification(config).eval()
    together = lxt.explain(model, padded("left"))
    alone = lxt.explain(model, IDS[1])
    assert torch.allclose(together[1].relevance, alone.relevance, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "bert", "opt"])
def test_half_precision_is_accumulated_in_float32(name: str, dtype: torch.dtype) -> None:
    target = lxt.Label(0) if name == "bert" else lxt.Logit(7)
    wide = lxt.explain(causal(name, dtype=torch.float32), IDS[0], target=target)
    narrow = lxt.explain(causal(name, dtype=dtype), IDS[0], target=target)
    assert narrow.relevance.dtype is torch.float32
    cosine = torch.cosine_similarity(wide.relevance, narrow.relevance, dim=0)
    assert cosine > (0.95 if dtype is torch.bfloat16 else 0.999)


@pytest.mark.parametrize("factor", [1e-7, 1e-5, 1e4])
def test_float16_neither_underflows_nor_overflows(factor: float) -> None:
    """The last layer's weights scale the gradient beyond float16, whose least is 6e-8."""

    def build(dtype: torch.dtype) -> torch.nn.Module:
        model = causal(dtype=torch.float32)
        with torch.no_grad():
            model.model.norm.weight.mul_(factor)
            model.lm_head.weight.clamp_(-0.5, 0.5)
        return model.to(dtype)

    wide = lxt.explain(build(torch.float32), IDS[0], target=lxt.Contrast(3, 4))
    narrow = lxt.explain(build(torch.float16), IDS[0], target=lxt.Contrast(3, 4))
    assert wide.relevance.abs().max() > 0
    cosine = torch.cosine_similarity(wide.relevance, narrow.relevance, dim=0)
    assert narrow.relevance.isfinite().all()
    assert cosine > 0.97


def test_logits_are_computed_at_the_explained_positions_only() -> None:
    model = causal()
    shapes = []
    model.lm_head.register_forward_hook(lambda m, args, out: shapes.append(tuple(out.shape)))
    lxt.explain(model, IDS[0])
    lxt.explain(model, padded("left"))
    lxt.explain(model, IDS[0], target=lxt.Logit(3, position=1))
    assert shapes == [(1, 1, 320), (2, 2, 320), (1, 1, 320)]


def test_the_model_is_left_as_it_was() -> None:
    model = causal(training=True)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    expected = lxt.explain(model, IDS[0]).relevance
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(lxt.explain(model, IDS[0]).relevance, expected)
            assert not torch.is_grad_enabled()
    assert model.training
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert all(p.grad is None for p in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks
    assert "forward" not in model.__dict__


def test_what_else_the_model_takes_is_handed_on() -> None:
    model = zoo.build("bert")
    inputs = padded("right")
    types = torch.ones_like(inputs["input_ids"])
    plain = lxt.explain(model, inputs)
    typed = lxt.explain(model, inputs | {"token_type_ids": types})
    assert not torch.allclose(plain.relevance, typed.relevance)
    assert (typed.relevance[inputs["attention_mask"] == 0] == 0).all()
    again = lxt.explain(model, transformers.BatchEncoding(inputs | {"token_type_ids": types}))
    assert torch.equal(again.relevance, typed.relevance)


BAD_INPUTS = [
    ("", InvalidInput, "empty"),
    (" \n", InvalidInput, "empty"),
    (["ok", ""], InvalidInput, "prompt 1 is empty"),
    ([], InvalidInput, "nothing"),
    ([[]], InvalidInput, "shape"),
    ([[1, 2], [3]], InvalidInput, "input_ids"),
    ([1.5, 2.5], InvalidInput, "integers"),
    (None, InvalidInput, "input_ids"),
    ({"ids": [1]}, InvalidInput, r"input_ids.*\['ids'\]"),
    ({"input_ids": None, "inputs_embeds": 1}, InvalidInput, "embeddings of your own"),
    ([5, 320], InvalidInput, "320.*0 to 319"),
    ([5, -1], InvalidInput, "-1"),
    (torch.ones(2, 2, 2, dtype=torch.long), InvalidInput, r"\[2, 2, 2\]"),
    ([7] * 65, InvalidInput, "65 tokens.*64"),
    ({"input_ids": [[1, 2]], "attention_mask": [[1, 1, 1]]}, InvalidInput, r"\[1, 3\]"),
    ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, InvalidInput, "row 0 is all padding"),
    ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, InvalidInput, "holes"),
    ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 2, 1]]}, InvalidInput, "0 and 1"),
]


@pytest.mark.parametrize(("inputs", "error", "message"), BAD_INPUTS)
def test_bad_inputs(inputs: object, error: type[Exception], message: str) -> None:
    model = causal()
    model.register_forward_pre_hook(lambda *_: pytest.fail("long work began"))
    with pytest.raises(error, match=message):
        lxt.explain(model, inputs, tokenizer=BPE)


def test_ids_under_padding_are_nobodys_business() -> None:
    inputs = padded("left")
    expected = lxt.explain(causal(), inputs)
    inputs["input_ids"][1, 0] = 10**6
    assert torch.equal(lxt.explain(causal(), inputs).relevance, expected.relevance)


BAD_TARGETS = [
    (lxt.Logit("France is Paris"), r"tokens.*'.*' \+ '"),
    (lxt.Logit(""), "nothing"),
    (lxt.Logit(320), "320.*0 to 319"),
    (lxt.Logit(-1), "-1"),
    (lxt.Logit(True), "True"),
    (lxt.Logit(1.5), "1.5"),  # type: ignore[arg-type]
    (lxt.Contrast(7, 7), "same token"),
    (lxt.Contrast(7, 999), "999"),
    (lxt.Label("good"), "language model"),
    (lxt.Logit(7, position=9), "position 9"),
    (lxt.Logit(7, position=-9), "position -9"),
    (" Paris", "lxt.Logit"),
    (5, "lxt.Logit"),
]


@pytest.mark.parametrize(("target", "message"), BAD_TARGETS)
def test_bad_targets(target: object, message: str) -> None:
    model = causal()
    model.register_forward_pre_hook(lambda *_: pytest.fail("long work began"))
    with pytest.raises(InvalidTarget, match=message):
        lxt.explain(model, "Paris", tokenizer=BPE, target=target)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lxt.Label("goood"), "'goood'.*'Good', 'bad'"),
        (lxt.Label(5), "5.*0 to 4"),
        (lxt.Logit(3), "lxt.Label.*'Good'"),
        (lxt.Prediction(position=2), "no positions"),
        (lxt.Contrast("Good", "good"), "same"),
        (lxt.Contrast("Good", "better"), "'better'.*'Good', 'bad'"),
    ],
)
def test_bad_targets_of_a_classifier(target: object, message: str) -> None:
    with pytest.raises(InvalidTarget, match=message):
        lxt.explain(zoo.build("bert", **LABELS), IDS[0], target=target)  # type: ignore[arg-type]


class NoEmbeddings(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("gpt2", "'gpt2'.*Module"),
        (None, "None"),
        (NoEmbeddings(), "NoEmbeddings has no input embeddings"),
        (zoo.build("vit"), "ViTForImageClassification"),
        (zoo.build("t5"), "encoder-decoder"),
    ],
)
def test_bad_models(model: object, message: str) -> None:
    with pytest.raises(InvalidModel, match=message):
        lxt.explain(model, IDS[0])  # type: ignore[arg-type]


def test_text_without_a_tokenizer() -> None:
    with pytest.raises(InvalidInput, match="tokenizer"):
        lxt.explain(causal(), "Paris")
    with pytest.raises(InvalidTarget, match="tokenizer"):
        lxt.explain(causal(), IDS[0], target=lxt.Logit("Paris"))


def test_bad_composites() -> None:
    with pytest.raises(InvalidComposite, match="'atnlrp'.*'attnlrp'"):
        lxt.explain(causal(), IDS[0], composite="atnlrp")
    with pytest.raises(InvalidComposite, match="lxt.attnlrp"):
        lxt.explain(causal(), IDS[0], composite={})  # type: ignore[arg-type]


def test_a_model_under_a_composite() -> None:
    model = causal()
    with lxt.cp_lrp.context(model), pytest.raises(AlreadyRegistered, match="cp_lrp"):
        lxt.explain(model, IDS[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(bad: float) -> None:
    model = causal()
    with torch.no_grad():
        model.lm_head.weight[7] = bad
    with pytest.raises(NonFiniteLogits, match="1 of 320 logits in row 0 at position 6"):
        lxt.explain(model, IDS[0])


def test_an_operation_without_a_rule() -> None:
    model = causal()
    composite = lxt.attnlrp.without(torch.nn.functional.silu)
    with pytest.raises(UnknownOperation, match=r"silu.*\n.*layers\.0\.mlp") as caught:
        lxt.explain(model, IDS[0], composite=composite)
    assert "on_unknown" in str(caught.value)
    plain = lxt.explain(model, IDS[0], composite=composite, on_unknown="gradient")
    assert not torch.allclose(plain.relevance, lxt.explain(model, IDS[0]).relevance)


def test_the_default_model_predicts_paris(smollm2) -> None:
    model, tokenizer, _ = smollm2
    prompt = "The capital of France is"
    explanation = lxt.explain(model, prompt, tokenizer=tokenizer)
    assert explanation.target.prediction == '" Paris"'
    assert explanation.target.value == pytest.approx(17.37, abs=0.01)
    assert explanation.tokens == ["The", " capital", " of", " France", " is"]
    contrast = lxt.explain(
        model, prompt, tokenizer=tokenizer, target=lxt.Contrast(" Paris", " London")
    )
    assert contrast.top(1)[0][1] == " France"

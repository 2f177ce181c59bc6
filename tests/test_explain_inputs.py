"""`lxt.explain` on models and inputs that are out of the ordinary."""

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import lxt
import zoo
from lxt.errors import InvalidInput, InvalidModel, InvalidTarget
from spellings import byte_level_bpe, word_piece

BPE, BERT = byte_level_bpe(), word_piece()
IDS = [9, 17, 30, 41, 5]


def test_what_a_tokenizer_gives_is_taken_as_it_is() -> None:
    """Lists, with or without a batch dimension, and token types where the model has them."""
    model = zoo.build("bert")
    from_text = lxt.explain(model, "the capital", tokenizer=BERT)
    encoded = BERT("the capital", return_token_type_ids=True)
    assert torch.equal(lxt.explain(model, encoded).relevance, from_text.relevance)
    batch = BERT(["the capital", "a"], padding=True, return_token_type_ids=True)
    assert torch.allclose(
        lxt.explain(model, batch)[0].relevance, from_text.relevance, rtol=1e-5, atol=1e-7
    )


class Typed:
    """A tokenizer that marks its tokens, as one does for pairs of texts."""

    mask_token_id = None

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        ids = [ord(char) % 100 + 5 for char in text]
        return {"input_ids": ids, "token_type_ids": [1] * len(ids), "offsets": [0] * len(ids)}

    def get_vocab(self) -> dict[str, int]:
        return {}

    def convert_ids_to_tokens(self, index: int) -> str:
        return f"<{index}>"


def test_token_types_of_a_text_reach_the_model() -> None:
    model = zoo.build("bert")
    tokenizer = Typed()
    ids = tokenizer("abc")["input_ids"]
    typed = lxt.explain(model, {"input_ids": ids, "token_type_ids": [1, 1, 1]})
    assert torch.equal(lxt.explain(model, "abc", tokenizer=tokenizer).relevance, typed.relevance)
    assert not torch.allclose(typed.relevance, lxt.explain(model, ids).relevance)
    lxt.explain(zoo.build("llama"), "abc", tokenizer=tokenizer)  # which has no token types


class Wrapper(nn.Module):
    """What peft and DataParallel look like from outside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def get_input_embeddings(self) -> nn.Module:
        return self.module.get_input_embeddings()  # type: ignore[operator]

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.module(*args, **kwargs)


class MyMasked(transformers.BertForMaskedLM):
    pass


def test_the_kind_of_a_model_is_seen_through_wrappers_and_subclasses() -> None:
    classifier = zoo.build("bert")
    wrapped = lxt.explain(Wrapper(classifier), IDS)
    assert wrapped.provenance["task"] == "label"
    assert torch.equal(wrapped.relevance, lxt.explain(classifier, IDS).relevance)
    masked = zoo.build("bert_mlm")
    masked.__class__ = MyMasked
    explanation = lxt.explain(masked, "the [MASK] capital", tokenizer=BERT)
    assert explanation.provenance["task"] == "masked"
    assert explanation.target.position == BERT("the [MASK] capital")["input_ids"].index(4)


class Prefixed(Wrapper):
    """Puts two more tokens in front, as prompt tuning does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.config = module.config
        self.prefix = nn.Parameter(torch.randn(1, 2, 32, dtype=torch.float64))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        embedded = self.get_input_embeddings()(input_ids)
        return self.module(inputs_embeds=torch.cat([self.prefix, embedded], 1))


def test_logits_at_positions_of_their_own_are_refused() -> None:
    with pytest.raises(InvalidModel, match="7 positions for 5 tokens"):
        lxt.explain(Prefixed(zoo.build("llama")), IDS)


class WithoutMask(Wrapper):
    def forward(self, input_ids: torch.Tensor) -> object:
        return self.module(input_ids)


def test_a_model_without_attention_mask() -> None:
    plain = zoo.build("gpt2")
    model = WithoutMask(plain)
    model.config = plain.config
    assert torch.allclose(
        lxt.explain(model, IDS).relevance, lxt.explain(plain, IDS).relevance, atol=1e-9
    )
    lxt.explain(model, [IDS, IDS])
    inputs = {"input_ids": [IDS, IDS], "attention_mask": [[1] * 5, [1] * 3 + [0] * 2]}
    with pytest.raises(InvalidInput, match=r"\[5, 3\] tokens.*one by one"):
        lxt.explain(model, inputs)


def test_a_padding_id_that_is_none() -> None:
    for pad in (-1, None, 10**6):
        model = zoo.build("llama")
        model.config.pad_token_id = pad
        lxt.explain(
            model, {"input_ids": [IDS, IDS], "attention_mask": [[1] * 5, [0] * 2 + [1] * 3]}
        )


def test_a_default_device_of_the_caller_is_not_ours() -> None:
    """A tensor that is made without a device lands there, and holds nothing or lacks a kernel."""
    model = zoo.build("llama", vocab_size=320)
    ids = BPE("The capital")["input_ids"]
    masked = {"input_ids": [ids, ids], "attention_mask": [[1] * len(ids)] * 2}
    for inputs in ("The capital", ["The", "The capital"], masked):
        expected = lxt.explain(model, inputs, tokenizer=BPE)
        with torch.device("meta"):
            actual = lxt.explain(model, inputs, tokenizer=BPE)
        assert torch.equal(actual.relevance, expected.relevance)
        assert actual.target == expected.target


def test_models_of_other_kinds_are_refused() -> None:
    config = zoo.build("bert").config
    for kind in ("BertForTokenClassification", "BertForQuestionAnswering"):
        with pytest.raises(InvalidModel, match=kind):
            lxt.explain(getattr(transformers, kind)(config).eval(), IDS)
    tagger = Wrapper(transformers.BertForTokenClassification(config).eval())
    tagger.config = config
    with pytest.raises(InvalidModel, match="5 logits where 128"):
        lxt.explain(tagger, IDS)


def test_the_prediction_against_another_token() -> None:
    model = zoo.build("llama")
    top = int(model(torch.tensor([IDS])).logits[0, -1].argmax())
    other = 7 if top != 7 else 8
    contrast = lxt.explain(model, IDS, target=lxt.Contrast(None, other))
    expected = lxt.explain(model, IDS, target=lxt.Contrast(top, other))
    assert torch.equal(contrast.relevance, expected.relevance)
    with pytest.raises(InvalidTarget, match="predicts itself"):
        lxt.explain(model, IDS, target=lxt.Contrast(None, top))


def test_integers_of_other_libraries_are_integers() -> None:
    model = zoo.build("llama")
    expected = lxt.explain(model, IDS, target=lxt.Logit(7)).relevance
    for index in (np.int64(7), torch.tensor(7)):
        target = lxt.Logit(index)  # type: ignore[arg-type]
        assert torch.equal(lxt.explain(model, IDS, target=target).relevance, expected)
    ids = np.array(IDS)
    assert torch.equal(lxt.explain(model, ids, target=lxt.Logit(7)).relevance, expected)
    with pytest.raises(InvalidTarget, match="1.5"):
        lxt.explain(model, IDS, target=lxt.Prediction(position=1.5))  # type: ignore[arg-type]


def test_text_that_is_no_unicode() -> None:
    with pytest.raises(InvalidInput, match="no Unicode"):
        lxt.explain(zoo.build("llama", vocab_size=320), "a\udcff", tokenizer=BPE)

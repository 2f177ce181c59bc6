"""Labels of tokens, on small tokenizers of each kind that models use."""

import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models

from lxt.tokens import CONTINUATION, printable, readable_tokens
from spellings import (
    byte_level_bpe,
    clip_like,
    fast,
    gemma_like,
    llama_like,
    suffix_bpe,
    t5_like,
    word_piece,
)

# A text that holds the dotted circle itself can't be told from a continuation.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=CONTINUATION))


class Slow:
    """A tokenizer without a backend that tells how its pieces are spelled."""

    unk_token, unk_token_id, all_special_ids = "<unk>", 0, (0, 1)

    def __init__(self, pieces):
        self.pieces = ["<unk>", "<s>", *pieces]

    def get_vocab(self):
        return {piece: i for i, piece in enumerate(self.pieces)}

    def convert_ids_to_tokens(self, token):
        return self.pieces[token] if token < len(self.pieces) else "<unk>"


class Failing:
    """A tokenizer whose every part fails."""

    def fail(self, *_):
        raise NotImplementedError

    backend_tokenizer = unk_token = added_tokens_decoder = all_special_ids = property(fail)
    get_vocab = convert_ids_to_tokens = fail


BYTE_LEVEL, LLAMA, GEMMA, T5 = byte_level_bpe(), llama_like(), gemma_like(), t5_like()
BERT, GPT, CLIP = word_piece(), suffix_bpe(), clip_like()
SLOW = Slow(["▁Paris", "é", "<0xE2>", "<0x82>", "<0xAC>"])


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def joined(labels):
    return "".join(label for label in labels if label != CONTINUATION)


@settings(deadline=None)
@given(TEXT)
def test_byte_level_labels_are_the_text(text):
    assert joined(readable_tokens(BYTE_LEVEL, encode(BYTE_LEVEL, text))) == text


@pytest.mark.parametrize("tokenizer", [LLAMA, GEMMA, T5, t5_like("never"), BERT, GPT])
@settings(deadline=None)
@given(text=TEXT)
def test_labels_are_the_text_as_the_tokenizer_itself_decodes_it(tokenizer, text):
    ids = [i for i in encode(tokenizer, text) if i not in tokenizer.all_special_ids]
    decoded = tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
    assert joined(readable_tokens(tokenizer, ids)) == decoded


@pytest.mark.parametrize(
    "tokenizer", [None, BYTE_LEVEL, LLAMA, T5, BERT, GPT, CLIP, SLOW, Failing()]
)
@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 400) | st.integers()))
def test_any_ids_have_a_label_each(tokenizer, ids):
    labels = readable_tokens(tokenizer, ids)
    assert len(labels) == len(ids)
    assert all(isinstance(label, str) and label for label in labels)


def test_without_a_tokenizer_the_labels_are_the_ids():
    assert readable_tokens(None, [3, 10**20]) == [" 3", " 100000000000000000000"]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, LLAMA, T5, BERT, GPT, SLOW, Failing()])
def test_unknown_ids_are_named(tokenizer):
    assert readable_tokens(tokenizer, [123456, -1, 2**70]) == [
        "<id 123456>",
        "<id -1>",
        f"<id {2**70}>",
    ]


def test_a_character_stands_at_the_token_with_its_first_byte():
    ids = [BYTE_LEVEL.convert_tokens_to_ids(char) for char in "aâĤ¬"]  # the bytes of "a€"
    assert readable_tokens(BYTE_LEVEL, ids) == ["a", "€", CONTINUATION, CONTINUATION]
    ids = SLOW.get_vocab()
    assert readable_tokens(SLOW, [ids["<0xE2>"], ids["<0x82>"], ids["<0xAC>"]]) == [
        "€",
        CONTINUATION,
        CONTINUATION,
    ]


def test_bytes_that_are_no_character_are_written_out():
    ids = [BYTE_LEVEL.convert_tokens_to_ids(char) for char in "âĤa"]
    assert readable_tokens(BYTE_LEVEL, ids) == [r"\xE2", r"\x82", "a"]
    end = BYTE_LEVEL.convert_tokens_to_ids("<|end|>")
    assert readable_tokens(BYTE_LEVEL, [ids[0], end, ids[1]]) == [r"\xE2", "<|end|>", r"\x82"]


def test_special_and_added_tokens_stay_verbatim():
    ids = encode(BYTE_LEVEL, "a naïf<|end|>")
    assert readable_tokens(BYTE_LEVEL, ids)[-2:] == ["naïf", "<|end|>"]
    ids = BERT.convert_tokens_to_ids(["[CLS]", "the", "lxt", "par", "##is", ".", "[SEP]", "a"])
    labels = ["[CLS]", "the", " lxt", " par", "is", " .", "[SEP]", " a"]
    assert readable_tokens(BERT, ids) == labels


def test_added_runs_of_spaces_are_spaces():
    ids = GEMMA.convert_tokens_to_ids(["<s>", "▁▁▁", "T"])
    assert readable_tokens(GEMMA, ids) == ["<s>", "   ", "T"]


def test_ids_that_continue_a_text_keep_their_first_space():
    ids = T5.convert_tokens_to_ids(["▁France", "▁is"])
    assert readable_tokens(T5, ids) == ["France", " is"]
    assert readable_tokens(T5, ids, continues=True) == [" France", " is"]
    (the,) = BERT.convert_tokens_to_ids(["the"])
    assert readable_tokens(BERT, [the], continues=True) == [" the"]


def test_the_space_before_a_text_alone_is_no_text():
    ids = LLAMA.convert_tokens_to_ids(["▁", "T"])
    assert readable_tokens(LLAMA, ids) == [CONTINUATION, "T"]


def test_word_ends_become_spaces():
    ids = GPT.convert_tokens_to_ids(["a", "b</w>", "c</w>"])
    assert readable_tokens(GPT, ids) == ["a", "b ", "c"]
    ids = CLIP.convert_tokens_to_ids(["Ã", "©</w>", "c</w>"])
    assert readable_tokens(CLIP, ids) == ["é", " ", "c"]


@pytest.mark.parametrize(
    ("pieces", "labels"),
    [
        (["▁Paris", "▁is"], ["Paris", " is"]),
        (["ĠParis", "Ã©"], [" Paris", "é"]),
        (["par", "##is", "the"], ["par", "is", " the"]),
        (["par", "is</w>", "the</w>"], ["par", "is ", "the"]),
        (["par", "is"], ["par", "is"]),
        ([b"\xc3", b"\xa9"], ["é", CONTINUATION]),
    ],
)
def test_spelling_is_guessed_from_the_vocabulary(pieces, labels):
    ids = range(2, 2 + len(pieces))
    assert readable_tokens(Slow(pieces), ids) == labels


def test_a_decoder_written_in_python_does_not_stop_it():
    class Shout:
        def decode_chain(self, tokens):
            return [token.upper() for token in tokens]

    tokenizer = fast(Tokenizer(models.WordLevel({"Ġa": 0, "b": 1})))
    tokenizer.backend_tokenizer.decoder = decoders.Decoder.custom(Shout())
    assert readable_tokens(tokenizer, [0, 1]) == [" a", "b"]


def test_a_tokenizer_needs_no_more_than_pieces():
    class Plain:
        def convert_ids_to_tokens(self, token):
            return ["le", "chat"][token]

    assert readable_tokens(Plain(), [1, 0, 2]) == ["chat", "le", "<id 2>"]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=[])))
def test_printable_leaves_nothing_invisible(text):
    shown = printable(text)
    shown.encode()  # a lone surrogate would raise
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not set(shown) & set("\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u202e\u2066\u2069")
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (" a\nb\t", " a↵b⇥"),
        ("\x1b[31m\x00\x7f\r", "␛[31m␀␡␍"),
        ("\x85\u202e\u2066\ufeff\ud800", r"\u0085\u202E\u2066\uFEFF\uD800"),
        ("👩\u200d🚀", r"👩\u200D🚀"),
        ("\U000e0041", r"\U000E0041"),
        ("Größe 東京 é \u0600١ <b>", "Größe 東京 é \u0600١ <b>"),
    ],
)
def test_printable(label, shown):
    assert printable(label) == shown


def test_transformers_is_not_imported():
    code = "import sys, lxt.tokens; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

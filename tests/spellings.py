"""Small tokenizers of each kind of spelling that models use."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The capital of France is Paris.",
    "Größe, café, naïve",
    "東京は日本の首都です",
    "👩‍🚀🙂",
] * 3


def fast(tokenizer, **names):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def byte_level_bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.add_tokens([AddedToken("naïf", normalized=False)])
    return fast(tokenizer, eos_token="<|end|>")


WORDS = ["▁", "▁The", "▁capital", "▁of", "▁France", "s", "▁is", "é", "▁▁"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def llama_like():
    """SentencePiece BPE with byte fallback, as in Llama 2: a space is put before every text."""
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "<s>", *BYTES, *"▁Thcapitlofs"])}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "<unk>"])
    return fast(tokenizer, bos_token="<s>", unk_token="<unk>")


def gemma_like():
    """The same without the space, and with runs of spaces among the added tokens."""
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "<s>", *BYTES, *"▁Thcapitlofs"])}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<s>", "<unk>"])
    tokenizer.add_tokens([AddedToken("▁▁▁", normalized=True)])
    return fast(tokenizer, bos_token="<s>", unk_token="<unk>")


def t5_like(scheme="always"):
    pieces = [
        ("<unk>", 0.0),
        ("</s>", 0.0),
        *[(w, -1.0) for w in WORDS],
        *[(b, -9.0) for b in BYTES],
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)]
    )
    tokenizer.add_special_tokens(["</s>", "<unk>"])
    return fast(tokenizer, eos_token="</s>", unk_token="<unk>")


def word_piece():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, "the", "capital", "par", "##is", ".", "a"]
    tokenizer = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(["lxt"])
    return fast(
        tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


def suffix_bpe():
    """The first GPT's spelling: a piece that ends a word says so."""
    letters = [*"abcdef", *(letter + "</w>" for letter in "abcdef"), "<unk>"]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(letters)},
            [],
            unk_token="<unk>",
            end_of_word_suffix="</w>",
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return fast(tokenizer, unk_token="<unk>")


def clip_like():
    """Byte-level characters and word ends at once; its decoder knows of the bytes only."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(char + "</w>" for char in alphabet)]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], end_of_word_suffix="</w>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return fast(tokenizer)

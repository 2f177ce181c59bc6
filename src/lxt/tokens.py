"""Tokens as a person reads them: the text that each token id stands for.

A tokenizer's pieces are spelled for machines (``ĠParis``, ``▁Paris``, ``##ris``, ``<0xE2>``).
The labels made here, read one after the other, are the text.
"""

import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

# A character may be spread over several tokens, and then belongs to the one with its first byte.
# The others still need a label that is seen, takes one column and is not taken for text: the
# dotted circle, Unicode's own placeholder for "a mark goes with something else".
CONTINUATION = "◌"

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# Format characters that do have a glyph: signs written below or around Arabic, Syriac and Kaithi
# numbers (Unicode's Prepended_Concatenation_Mark).
_VISIBLE_FORMAT_CHARACTERS = frozenset(
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)


def readable_tokens(tokenizer: Any, ids: Sequence[int], *, continues: bool = False) -> list[str]:
    r"""Label each token with its text, so that the labels read in order are the text.

    A character spread over several tokens stands at the token that holds its first byte; a token
    that begins no character is labelled ``CONTINUATION``. Bytes that are not UTF-8 are written
    ``\xNN``. Special tokens stay as the tokenizer names them.

    Args:
        tokenizer: a tokenizer of ``transformers`` or one with its methods; with ``None`` the
            labels are the ids in digits.
        ids: token ids, of one sequence.
        continues: whether the ids go on from earlier text, such as a predicted token. Their first
            label then keeps the space that some tokenizers put before every text: ``" Paris"``.

    Returns:
        One label for each id; ``<id 123>`` where the tokenizer does not know the id.

    """
    ids = [int(token) for token in ids]
    if tokenizer is None:
        return [f" {token}" for token in ids]  # apart, when they stand side by side
    spelling = _spelling_of(tokenizer)
    special, added = _special_and_added(tokenizer)
    pieces = [_piece(tokenizer, token) for token in ids]
    in_text = [i for i, token in enumerate(ids) if pieces[i] is not None and token not in special]
    first = in_text[0] if in_text and not continues else None
    last = in_text[-1] if in_text else None

    parts: list[bytes | str] = []
    for i, (token, piece) in enumerate(zip(ids, pieces, strict=True)):
        if piece is None:
            parts.append(f"<id {token}>")
        elif isinstance(piece, bytes) or token in special:
            parts.append(piece)
        elif token in added and spelling.byte_level:
            parts.append(piece)  # added tokens are matched in the text itself, before its bytes
        else:
            parts.append(spelling.read(piece, first=i == first, last=i == last))
    return _labels(parts)


def readable_pieces(pieces: Sequence[str | bytes]) -> list[str]:
    r"""Return the text of a tokenizer's pieces, without the tokenizer.

    How they are spelled is told by their marks: ``▁`` or ``Ġ`` where a word begins, ``Ċ`` for a
    newline, ``##`` or ``</w>`` inside and at the end of words. Pieces without any stay as they
    are. As nothing else tells a special token from text, those stay too.

    A character spread over several pieces stands at the first of them, the others are
    ``CONTINUATION``; bytes that are not UTF-8 are written ``\xNN``.
    """
    spelling = replace(_guessed_spelling(pieces), adds_space=False)
    last = len(pieces) - 1
    parts = [
        piece if isinstance(piece, bytes) else spelling.read(piece, first=i == 0, last=i == last)
        for i, piece in enumerate(pieces)
    ]
    return [label if piece else "" for piece, label in zip(pieces, _labels(parts), strict=True)]


def printable(label: str) -> str:
    r"""Make everything visible in a label that would otherwise be invisible or act on the display.

    A newline becomes ``↵``, a tab ``⇥``, other control characters their Unicode pictures (``␛``);
    C1 controls, bidirectional controls, zero-width characters, the byte order mark, line and
    paragraph separators and lone surrogates become ``\uXXXX``. So does the joiner inside an emoji
    sequence: which characters a token holds matters here more than how they would combine.
    """
    return "".join(map(_printable_character, label))


def _printable_character(char: str) -> str:
    if char == "\n":
        return "↵"
    if char == "\t":
        return "⇥"
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    category = unicodedata.category(char)
    if category not in ("Cc", "Cf", "Cs", "Zl", "Zp") or char in _VISIBLE_FORMAT_CHARACTERS:
        return char
    return escaped(char)


def escaped(char: str) -> str:
    r"""Write a character by its number, ``\u202E`` or ``\U0001F680``."""
    code = ord(char)
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"


@dataclass(frozen=True)
class _Spelling:
    """How a tokenizer writes text as pieces; the empty spelling writes it as it is."""

    byte_level: bool = False  # each character of a piece stands for one byte, as in GPT-2
    space: str = ""  # stands for a space, as "▁" in SentencePiece
    adds_space: bool = False  # puts a space of its own before the text
    inside_word: str = ""  # begins a piece that is not the start of a word, as "##" in WordPiece
    end_of_word: str = ""  # ends the last piece of a word, as "</w>" in the first GPT

    def read(self, piece: str, *, first: bool, last: bool) -> bytes | str:
        """Return the text of a piece, as bytes where it may be a fragment of a character."""
        after = ""
        if self.end_of_word and piece.endswith(self.end_of_word):
            piece = piece.removesuffix(self.end_of_word)
            after = "" if last else " "
        if self.byte_level:
            if all(char in _BYTE_OF for char in piece):
                return bytes(_BYTE_OF[char] for char in piece) + after.encode()
            return piece + after
        if match := _BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(match[1])
        if self.inside_word:
            if piece.startswith(self.inside_word) and piece != self.inside_word:
                return piece.removeprefix(self.inside_word)
            return piece if first else " " + piece
        if self.space:
            piece = piece.replace(self.space, " ")
            if first and self.adds_space:
                piece = piece.removeprefix(" ")
        return piece + after


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes: Latin-1 where visible, else from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return {chr(byte if byte in visible else next(others)): byte for byte in range(256)}


_BYTE_OF = _byte_alphabet()


def _spelling_of(tokenizer: Any) -> _Spelling:
    decoder = _decoder(tokenizer)
    if decoder is None:
        return _guessed_spelling(_vocabulary(tokenizer))
    spelling: dict[str, Any] = {}
    for step in _steps(decoder):
        match step:
            case {"type": "ByteLevel"}:
                spelling["byte_level"] = True
                # CLIP's pieces are byte-level and end words with "</w>" as well.
                model = tokenizer.backend_tokenizer.model
                spelling["end_of_word"] = getattr(model, "end_of_word_suffix", None) or ""
            case {"type": "Metaspace", "replacement": space, "prepend_scheme": scheme}:
                spelling |= {"space": space, "adds_space": scheme != "never"}
            case {"type": "Replace", "pattern": {"String": space}, "content": " "}:
                spelling["space"] = space
            case {"type": "Strip", "content": " ", "start": start} if start > 0:
                spelling["adds_space"] = True
            case {"type": "WordPiece", "prefix": prefix}:
                spelling["inside_word"] = prefix
            case {"type": "BPEDecoder", "suffix": suffix}:
                spelling["end_of_word"] = suffix
    return _Spelling(**spelling)


def _steps(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder.get("type") == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _guessed_spelling(pieces: Iterable[Any]) -> _Spelling:
    """Take the spelling whose marks are the most frequent among the pieces."""
    pieces = [piece for piece in pieces if isinstance(piece, str)]
    spellings = {
        # Markdown's headings are pieces in vocabularies of all kinds; they end after the marks.
        _Spelling(inside_word="##"): sum(
            piece.startswith("##") and piece[2:3] not in ("", "#") for piece in pieces
        ),
        _Spelling(byte_level=True): sum("Ċ" in piece or piece.startswith("Ġ") for piece in pieces),
        _Spelling(space="▁", adds_space=True): sum(
            piece.startswith("▁") or bool(_BYTE_PIECE.fullmatch(piece)) for piece in pieces
        ),
        _Spelling(end_of_word="</w>"): sum(piece.endswith("</w>") for piece in pieces),
    }
    likeliest = max(spellings, key=lambda spelling: spellings[spelling])
    return likeliest if spellings[likeliest] else _Spelling()


def _labels(parts: Sequence[bytes | str]) -> list[str]:
    labels: list[str] = []
    for _, group in itertools.groupby(parts, key=type):
        run = list(group)
        texts = [part for part in run if isinstance(part, str)]
        labels += texts or _labels_of_bytes([part for part in run if isinstance(part, bytes)])
    return [label or CONTINUATION for label in labels]


def _labels_of_bytes(parts: Sequence[bytes]) -> list[str]:
    labels = [""] * len(parts)
    holder = [i for i, part in enumerate(parts) for _ in part]
    offset = 0
    # "surrogateescape" turns an invalid byte 0xNN, alone, into U+DCNN, which UTF-8 never holds.
    for char in b"".join(parts).decode("utf-8", errors="surrogateescape"):
        invalid = 0xDC80 <= ord(char) <= 0xDCFF
        labels[holder[offset]] += f"\\x{ord(char) - 0xDC00:02X}" if invalid else char
        offset += 1 if invalid else len(char.encode())
    return labels


# Tokenizers are other people's code, often fetched with the model. Whatever theirs raises for an
# odd id, or leaves unimplemented, costs a label and not the explanation: hence `except Exception`.


def _piece(tokenizer: Any, token: int) -> str | bytes | None:
    if token < 0:
        return None  # a slow tokenizer would count it from the end of its vocabulary
    try:
        piece = tokenizer.convert_ids_to_tokens(token)
        unknown = getattr(tokenizer, "unk_token", None)
        stands_in = piece == unknown and token != getattr(tokenizer, "unk_token_id", None)
    except Exception:
        return None
    return piece if isinstance(piece, str | bytes) and not stands_in else None


def _special_and_added(tokenizer: Any) -> tuple[set[int], set[int]]:
    try:
        tokens = dict(tokenizer.added_tokens_decoder)
    except Exception:
        tokens = {}
    special = {token for token, added in tokens.items() if getattr(added, "special", False)}
    try:
        special |= set(tokenizer.all_special_ids)
    except Exception:
        return special, set(tokens)
    return special, set(tokens)


def _decoder(tokenizer: Any) -> dict[str, Any] | None:
    # Its pickled state is its JSON; that of the whole backend would hold the vocabulary as well.
    try:
        return json.loads(tokenizer.backend_tokenizer.decoder.__getstate__())
    except Exception:
        return None


def _vocabulary(tokenizer: Any) -> Iterable[str]:
    try:
        return list(tokenizer.get_vocab())
    except Exception:
        return []

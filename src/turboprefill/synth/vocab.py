"""The synthetic models' tokenizer: SentencePiece-style merges over English pieces, with byte fallback.

`pieces.txt` lists the merges in the order in which they were learned (one per line, "_" stands for a word's
leading space), so any first part of it is a working vocabulary: small models take less of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from itertools import count, product

import gguf

_SPACE = "\u2581"
_UNKNOWN, _CONTROL, _BYTE, _NORMAL = 2, 3, 6, 1
_SPECIAL = (("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL))
_CHARACTERS = _SPACE + "".join(chr(c) for c in range(33, 127))

MIN_VOCAB = len(_SPECIAL) + 256 + len(_CHARACTERS)


@lru_cache(maxsize=1)
def learned_pieces() -> tuple[str, ...]:
    """The merged pieces, most useful first, with the word-start mark in place."""
    text = resources.files(__package__).joinpath("pieces.txt").read_text(encoding="utf-8")
    return tuple(line.replace("_", _SPACE) for line in text.split())


def _made_up_words(taken: set[str]) -> Iterator[str]:
    """Pronounceable words that fill a vocabulary larger than the list; reading text never produces most of them."""
    for syllables in count(3):
        for parts in product(("ka", "lo", "mi", "ru", "te", "sha", "vo", "ny", "zi", "dra"), repeat=syllables):
            word = _SPACE + "".join(parts)
            if word not in taken:
                yield word


def add_tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """Write a tokenizer of exactly `n_vocab` tokens.

    Raises:
        ValueError: `n_vocab` has no room for the special tokens, 256 bytes and the printable characters.
    """
    if n_vocab < MIN_VOCAB:
        raise ValueError(f"a vocabulary of {n_vocab} tokens is too small: expected at least {MIN_VOCAB}")
    tokens = [name for name, _ in _SPECIAL] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [kind for _, kind in _SPECIAL] + [_BYTE] * 256
    pieces = learned_pieces()[: n_vocab - MIN_VOCAB]
    tokens += [*pieces, *_CHARACTERS]
    filler = _made_up_words(set(tokens))
    tokens += [next(filler) for _ in range(n_vocab - len(tokens))]
    types += [_NORMAL] * (n_vocab - len(types))
    scores = [0.0] * (len(_SPECIAL) + 256) + [-float(rank) for rank in range(n_vocab - len(_SPECIAL) - 256)]

    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)

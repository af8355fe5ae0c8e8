"""Text to token ids and back, by the tokenizer file in the base model's folder: one interface, three kinds.

    tokenizer.json   byte-level BPE in Hugging Face's form (Llama 3, SmolLM2, GPT-2)    merged by tiktoken
    tokenizer.model  Llama 3's: one piece per line, base64 and rank                     merged by tiktoken
    tokenizer.model  Llama 2's: sentencepiece's protobuf                                by sentencepiece

A regular expression first cuts the text into words, and no merge crosses a cut. Within a word, BPE starts
from single bytes (sentencepiece: characters) and keeps merging the neighbouring pair that was learned first,
until no known pair is left. The libraries do the merging. files/ reads and checks the tokenizer files, and
refuses rules that it cannot reproduce exactly.

A control token's name in a report ("<|end_of_text|>") is plain text: `encode` never returns a control token.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import tiktoken

from .files.byte_level import LLAMA3_WORDS, read_byte_level  # tokenizer.json in tiktoken's terms
from .files.tokenizer_files import (  # the other two kinds, and the ids that config.json declares
    declared_eos,
    find_tokenizer,
    read_llama3,
    read_sentencepiece,
)

SPACE_RUN = re.compile(r"(\s{25000})")  # tiktoken's regex panics on much longer runs; Meta cuts here too


class Tokenizer:
    """encode(text) -> ids, decode(ids) -> text, and the ids that begin and end a text: bos_id (or None),
    eos_ids."""

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        pieces: dict[int, bytes],
        control: Iterable[int],
        bos_id: int | None = None,
        eos_ids: tuple[int, ...] = (),
        leading_space: bool = False,
    ):
        """encode: text -> ids. pieces: id -> its bytes. control: ids that no text encodes to.
        leading_space: whether encode adds a space before the text, which decode removes."""
        self.encode, self.pieces, self.control = encode, pieces, frozenset(control)
        self.leading_space = leading_space
        self.vocab_size = max([*pieces, *self.control]) + 1
        self.bos_id, self.eos_ids = bos_id, eos_ids

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a control token."""
        return self.pieces.get(token, b"")

    def decode(self, ids: list[int]) -> str:
        """The text of ids. Control tokens give nothing, broken UTF-8 gives the replacement character."""
        text = b"".join(map(self.bytes_of, ids)).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.leading_space else text


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder, with the EOS that config.json and the like declare.

    Raises UserError, which names the file, where it is missing, damaged, of no known kind, or has rules that
    are not supported.
    """
    kind, path, content = find_tokenizer(folder)
    if kind == "byte-level":
        tokenizer = _byte_level_tokenizer(path, content)
    elif kind == "llama3":
        tokenizer = _llama3_tokenizer(path, content)
    else:
        tokenizer = _sentencepiece_tokenizer(path, content)
    tokenizer.eos_ids = declared_eos(folder, tokenizer.eos_ids, tokenizer.vocab_size)
    return tokenizer


def _byte_level_tokenizer(path: Path, spec: dict) -> Tokenizer:
    """tokenizer.json: files/byte_level.py turns its rules and merges into tiktoken's terms."""
    bpe = read_byte_level(path, spec)
    return Tokenizer(_merge(bpe.words, bpe.ranks, bpe.ids), bpe.pieces, bpe.control, bpe.bos_id)


def _llama3_tokenizer(path: Path, data: bytes) -> Tokenizer:
    """Llama 3's tokenizer.model: the id of a piece is its rank, and 256 control tokens follow."""
    ranks = read_llama3(path, data)
    control = range(len(ranks), len(ranks) + 256)
    pieces = {rank: piece for piece, rank in ranks.items()}
    begin_of_text, end_of_text = control[:2]
    encode = _merge(LLAMA3_WORDS, ranks, range(len(ranks)))
    return Tokenizer(encode, pieces, control, begin_of_text, (end_of_text,))


def _merge(words: str, ranks: dict[bytes, int], ids: list[int] | range) -> Callable[[str], list[int]]:
    """tiktoken's encode. words: the regular expression that cuts text into words. ranks: piece -> its rank in
    the order of merges, 0..n-1. ids: rank -> id, or -1 for a byte that the vocabulary lacks."""
    bpe = tiktoken.Encoding("llamaxr", pat_str=words, mergeable_ranks=ranks, special_tokens={})
    return lambda text: [
        ids[rank] for part in SPACE_RUN.split(text) for rank in bpe.encode_ordinary(part) if ids[rank] >= 0
    ]


def _sentencepiece_tokenizer(path: Path, data: bytes) -> Tokenizer:
    """Llama 2's tokenizer.model, which adds a space before the text."""
    sp, pieces, control, bos_id = read_sentencepiece(path, data)
    # Halves of surrogate pairs, which JSON may hold, become U+FFFD, as in tiktoken.
    valid = lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    eos_ids = (sp.eos_id(),) if sp.eos_id() >= 0 else ()
    leading_space = pieces[sp.encode("a")[0]].startswith(b" ")  # a few are made without it
    return Tokenizer(lambda text: sp.encode(valid(text)), pieces, control, bos_id, eos_ids, leading_space)

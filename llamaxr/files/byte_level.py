"""A byte-level tokenizer.json (Hugging Face's form) in the terms of tiktoken, which does the merging.

Both know BPE. tokenizer.json has a vocabulary (text -> id), a list of merges (two halves become one piece,
the first of the list before all others), and rules that cut text into words beforehand, in steps. tiktoken
has ranks (bytes -> order in which pieces are made), merges *any* two neighbours that together have a rank,
takes a word that has one at once, and cuts words by one regular expression. So here the steps become one
expression and the merges become ranks, and each piece is proved to be merged alike in both. A vocabulary that
came out of training always is. A hand-made one may not be, and is refused.

The vocabulary is written with a printable letter for each byte (as in GPT-2): " the" is "\u0120the".
"""

import json
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError

# What reading damaged or hostile JSON as if it were sound can raise.
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The rules that a file may bring along: Llama 3's, and the same with digits one by one (Qwen's) or by twos.
# A rule from elsewhere could take for ever on some text, and no limit stops it then.
SPLIT_WORDS = {LLAMA3_WORDS.replace("{1,3}", digits) for digits in ("{1,3}", "", "{1,2}", "+")} | {GPT2_WORDS}
MAX_WORK = 5 * 10**7  # sum of the squares of the pieces' bytes, to prove merges by; Llama 3 takes 10**7
# GPT-2's rule after the digits are cut out: white space before a digit ends as it does at the text's end.
GPT2_BESIDE_DIGITS = r"|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


class ByteLevelBPE(NamedTuple):
    """A tokenizer.json in tiktoken's terms."""

    words: str  # the regular expression that cuts text into words
    ranks: dict[bytes, int]  # piece -> the order in which it is made, 0..n-1
    ids: list[int]  # rank -> token id, or -1 for a byte that the vocabulary lacks
    pieces: dict[int, bytes]  # token id -> the bytes that it stands for, without control tokens
    control: set[int]
    bos_id: int | None


def read_byte_level(path: Path, spec: dict) -> ByteLevelBPE:
    """The content of a tokenizer.json. Raises UserError where it is damaged or has unsupported rules."""
    try:
        words, added = word_rule(path, spec), spec["added_tokens"]
        control = {token["id"] for token in added if token.get("special", True)}
        ranks, ids = ranks_and_ids(path, spec["model"], control)
        pieces = {i: bytes_of(text) for text, i in spec["model"]["vocab"].items()}
        pieces |= {token["id"]: token["content"].encode() for token in added}
        if any(type(i) is not int or not 0 <= i < 2**31 for i in pieces):
            raise ValueError("an id that is not a number from 0 on")
        pieces = {i: piece for i, piece in pieces.items() if i not in control}
        # Whether texts begin with BOS is declared by the template here, not by config.json.
        bos_id, post = None, spec.get("post_processor") or {}
        for step in [post, *post.get("processors", [])]:
            if step.get("type") == "TemplateProcessing" and "SpecialToken" in step["single"][0]:
                bos = step["single"][0]["SpecialToken"]["id"]
                bos_id = {token["content"]: token["id"] for token in added}[bos]
    except DAMAGE as error:
        raise UserError(f"{path} is damaged or not byte-level BPE ({error!r}); download it again") from None
    return ByteLevelBPE(words, ranks, ids, pieces, control, bos_id)


def word_rule(path: Path, spec: dict) -> str:
    """The regular expression that cuts text into words, all steps in one. UserError for unknown steps."""
    normalizer, pre = spec.get("normalizer"), spec.get("pre_tokenizer") or {"type": "none"}
    if normalizer and normalizer.get("normalizers") != []:
        raise UserError(f"{path}: normalizer {normalizer['type']} is not supported; use a base without one")
    steps = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    match [{"use_regex": True, "invert": False} | step for step in steps]:  # the defaults in old files
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return GPT2_WORDS
        case [{"type": "Digits", "individual_digits": single_digits},
              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:  # fmt: skip
            return (r"\p{N}" if single_digits else r"\p{N}+") + GPT2_BESIDE_DIGITS
        case [{"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False},
              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}] if (
                  words in SPLIT_WORDS):  # fmt: skip
            return words
    names = ", ".join(json.dumps(step)[:80] for step in steps)
    raise UserError(
        f"{path}: pre-tokenizer {names} is not supported; use a base with GPT-2's, SmolLM2's or Llama 3's"
    )


def ranks_and_ids(path: Path, model: dict, control: set[int]) -> tuple[dict[bytes, int], list[int]]:
    """The "model" of a tokenizer.json -> (ranks: piece -> 0..n-1, ids: rank -> token id).

    The order of the merges need not be the order of the ids, so each has its own table. A byte that the
    vocabulary lacks has id -1. Raises UserError for another model than BPE and for merges that tiktoken would
    merge differently, and one of DAMAGE where the file is damaged.
    """
    if model.get("type", "BPE") != "BPE":  # old files leave it out
        raise UserError(f"{path}: model {model['type']} is not supported; use a base with byte-level BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UserError(f"{path}: {name} is not supported; use a base without it")
    vocab, ignore_merges = model["vocab"], bool(model.get("ignore_merges"))
    if len(set(vocab.values())) < len(vocab):
        raise ValueError("two pieces share an id")
    spelled = {text: bytes_of(text) for text in vocab}
    if sum(len(piece) ** 2 for piece in spelled.values()) > MAX_WORK:
        raise ValueError("its pieces are too long")
    ids = [vocab.get(letter, -1) for letter in BYTE_LETTERS]
    if ids.count(-1) > 128:  # SmolLM2 lacks 21, most of which never occur in UTF-8
        raise ValueError("most bytes are not in the vocabulary")
    ranks = {bytes([b]): b for b in range(256)}
    halves: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        pair, piece = (spelled[left], spelled[right]), spelled[left + right]
        if piece not in ranks:
            ranks[piece] = len(ids)
            ids.append(vocab[left + right])
        if ranks[piece] == len(ids) - 1:  # Llama 3 lists all pairs that make a piece, one after the other
            halves.setdefault(piece, []).append(pair)
    if ignore_merges:  # a word that is in the vocabulary is taken even if no merge makes it
        for text, i in vocab.items():
            if i not in control and BYTE_OF.keys() >= set(text) and spelled[text] not in ranks:
                ranks[spelled[text]] = len(ids)
                ids.append(i)
    if not control.isdisjoint(ids):
        raise ValueError("a merge makes a control token")
    if (piece := first_mismatch(ranks, halves, ignore_merges)) is not None:
        raise UserError(f"{path}: its merges do not make {piece!r} as tiktoken would; use another base")
    return ranks, ids


def first_mismatch(ranks: dict[bytes, int], halves: dict, ignore_merges: bool) -> bytes | None:
    """The first piece that tiktoken might make where the list of merges does not, or None.

    halves: piece -> the pairs that are listed for it. Alone or within a text, merging makes a piece out of at
    most one pair of halves: the one that no earlier merge reaches across, since merging inside a piece does
    not depend on what surrounds it. Both agree if this pair is listed, or if there is no such pair and whole
    words are taken at once anyway (ignore_merges, as in Llama 3).
    """
    made: dict[bytes, tuple[bytes, bytes]] = {}  # piece -> its halves
    for piece, rank in ranks.items():
        if len(piece) == 1:
            continue
        listed = halves.get(piece, [])
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        pair = next((pair for pair in chain(listed, cuts) if _are_adjacent(*pair, rank, ranks, made)), None)
        if pair is None and ignore_merges:
            continue  # no pair makes it, in either library
        if pair not in listed:
            return piece
        made[piece] = pair
    return None


def _are_adjacent(left: bytes, right: bytes, below: int, ranks: dict[bytes, int], made: dict) -> bool:
    """Whether both are made, side by side, before any merge of a rank below `below` reaches across.

    The merges that made them are undone, the last one first, and of equal ones the right one first. Where the
    inner halves together have a rank and would have been merged by then, the two were never side by side.
    """
    if not all(len(piece) == 1 or piece in made for piece in (left, right)):
        return False
    while True:
        if ranks.get(left + right, below) < below:
            return False
        if len(left) == len(right) == 1:
            return True
        if ranks[left] > ranks[right]:
            below = ranks[left]  # of equal merges the one further left comes first: the one inside `left`
            left = made[left][1]
        else:
            below = ranks[right] + 1  # and here the one across
            right = made[right][0]


def bytes_of(text: str) -> bytes:
    """A byte for each letter of a vocabulary's text, or its UTF-8 where a letter stands for no byte."""
    try:
        return bytes(map(BYTE_OF.__getitem__, text))
    except KeyError:
        return text.encode()


def _byte_letters() -> list[str]:
    """Latin-1's own letter where it is printable and no space, else the next free letter from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    free = iter(range(256, 512))
    return [chr(b if b in printable else next(free)) for b in range(256)]


BYTE_LETTERS = _byte_letters()
BYTE_OF = {letter: b for b, letter in enumerate(BYTE_LETTERS)}

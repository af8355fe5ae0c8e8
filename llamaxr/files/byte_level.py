"""A byte-level tokenizer.json (Hugging Face's form) in the terms of tiktoken, which joins for us.

Both know BPE. tokenizer.json has a vocabulary (text -> id), a list of merges (two halves become one piece,
the first of the list before all others), and rules that cut text into words beforehand, in steps. tiktoken
has ranks (bytes -> order in which they are made), joins *any* two neighbours that together have a rank, takes
a word that has one at once, and cuts words by one regular expression. So here the steps become one
expression, the merges become ranks, and each piece is proved to be joined alike in both: a vocabulary that
came out of training always is, a hand-made one may not be and is refused.

The vocabulary is written with a printable letter for each byte (GPT-2's custom): " the" is "\u0120the".
"""

import json
from itertools import chain
from pathlib import Path

from ..errors import UserError

GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# GPT-2's rule after the digits were cut out: white space before a digit ends as it does before the end.
GPT2_BESIDE_DIGITS = r"|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


def word_rule(path: Path, spec: dict) -> str:
    """The regular expression that cuts text into words, all steps in one; UserError for unknown steps."""
    normalizer, pre = spec.get("normalizer"), spec.get("pre_tokenizer") or {"type": "none"}
    if normalizer and normalizer.get("normalizers") != []:
        raise UserError(f"{path}: normalizer {normalizer['type']} is unknown here; use a base without one")
    steps = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    match [{"use_regex": True, "invert": False} | step for step in steps]:  # what old files leave out
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return GPT2_WORDS
        case [{"type": "Digits", "individual_digits": apart},
              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:  # fmt: skip
            return (r"\p{N}" if apart else r"\p{N}+") + GPT2_BESIDE_DIGITS
        case [{"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False},
              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]:  # fmt: skip
            return rf"{words}|(?:(?!{words})[\s\S])+"  # what lies between two matches is a word as well
    names = ", ".join(json.dumps(step)[:80] for step in steps)
    raise UserError(f"{path}: pre-tokenizer {names} is unknown here; known are GPT-2's, SmolLM2's, Llama 3's")


def ranks_and_ids(path: Path, model: dict, control: set[int]) -> tuple[dict[bytes, int], list[int]]:
    """The "model" of a tokenizer.json -> (ranks: piece -> 0..n-1, ids: rank -> token id).

    The order of the merges need not be the order of the ids, so each has its own table. A byte that the
    vocabulary lacks has id -1. Raises UserError for another model than BPE and for merges that tiktoken
    would join otherwise; ValueError, KeyError or TypeError where the file is damaged.
    """
    if model.get("type", "BPE") != "BPE":  # old files leave it out
        raise UserError(f"{path}: model {model['type']} is unknown here; use a base with byte-level BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UserError(f"{path}: {name} is unknown here; use a base without it")
    vocab, whole_words = model["vocab"], bool(model.get("ignore_merges"))
    if len(set(vocab.values())) < len(vocab):
        raise ValueError("two pieces share an id")
    spelled = {text: bytes_of(text) for text in vocab}
    ids = [vocab.get(letter, -1) for letter in BYTE_LETTERS]
    if ids.count(-1) > 128:  # SmolLM2 lacks 21, most of which no UTF-8 has
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
    if whole_words:  # "ignore_merges": a word that is in the vocabulary is taken even if no merge makes it
        for text, i in vocab.items():
            if i not in control and BYTE_OF.keys() >= set(text) and spelled[text] not in ranks:
                ranks[spelled[text]] = len(ids)
                ids.append(i)
    if not control.isdisjoint(ids):
        raise ValueError("a merge makes a control token")
    if (piece := joined_otherwise(ranks, halves, whole_words)) is not None:
        raise UserError(f"{path}: its merges do not make {piece!r} as tiktoken would; use another base")
    return ranks, ids


def joined_otherwise(ranks: dict[bytes, int], halves: dict, whole_words: bool) -> bytes | None:
    """The first piece that tiktoken might make where the list of merges does not, or None.

    Alone or amid a text, joining makes a piece of just two halves, if of any: those that no earlier join
    reaches across, since what is joined inside of a piece does not depend on what stands around it. Both
    agree if these halves are listed, or if there are none and tiktoken's haste with whole words is wanted
    (Llama 3).
    """
    made: dict[bytes, tuple[bytes, bytes]] = {}
    for piece, rank in ranks.items():
        if len(piece) == 1:
            continue
        listed = halves.get(piece, [])
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        found = next((pair for pair in chain(listed, cuts) if _meet(*pair, rank, ranks, made)), None)
        if found is None and whole_words:
            continue  # no pair makes it, here or there
        if found not in listed:
            return piece
        made[piece] = found
    return None


def _meet(left: bytes, right: bytes, below: int, ranks: dict[bytes, int], made: dict) -> bool:
    """Whether the two are made, side by side, before any join of a rank below `below` reaches across.

    The joins that made them are undone, the last one first, of equals the right: where the inner halves
    together have a rank, and would have been joined by then, the two never stood side by side.
    """
    if not all(len(piece) == 1 or piece in made for piece in (left, right)):
        return False
    while True:
        if ranks.get(left + right, below) < below:
            return False
        if len(left) == len(right) == 1:
            return True
        if ranks[left] > ranks[right]:
            below = ranks[left]  # of equal joins the one more to the left comes first: inside of left
            left = made[left][1]
        else:
            below = ranks[right] + 1  # and here the one across
            right = made[right][0]


def bytes_of(text: str) -> bytes:
    """What a piece of the vocabulary stands for: letter by letter; itself where a letter is no byte's."""
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

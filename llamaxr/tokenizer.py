"""Text to token ids and back, for byte-level BPE tokenizers in Hugging Face's tokenizer.json.

BPE starts from bytes and joins neighbouring pieces, the pair learned first before the others, until no known
pair is left. tiktoken does the joining; this file reads the vocabulary, the order of the merges and the rule
that cuts text into words beforehand, and refuses by name what it does not know. A special token's text inside
a report stays text: `encode` never gives a control token.
"""

import json
from pathlib import Path

import tiktoken

from .errors import UserError

GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# GPT-2's rule after each digit was cut out by itself: white space before a digit ends as before end of text.
GPT2_WORDS_DIGITS_APART = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


class Tokenizer:
    """encode(text) -> ids, decode(ids) -> text, and ids with a meaning: bos_id (or None), eos_ids, pad_id.

    pad_id is never one of eos_ids: where the checkpoint pads with its end token, learning to ignore the one
    would be learning to ignore the other.
    """

    def __init__(self, ranks: dict[bytes, int], ids: list[int], words: str, special: dict[str, int]):
        """ranks: piece -> order in which BPE makes it, 0..n-1; ids: order -> token id, -1 for a byte that the
        vocabulary lacks; words: the regular expression that cuts text; special: control tokens by text."""
        self._bpe = tiktoken.Encoding("llamaxr", pat_str=words, mergeable_ranks=ranks, special_tokens={})
        self._ids = ids
        self._bytes = {ids[rank]: piece for piece, rank in ranks.items() if ids[rank] >= 0}
        self.special = special
        self.vocab_size = max([*self._bytes, *special.values()]) + 1
        self.bos_id: int | None = None
        self.eos_ids: tuple[int, ...] = ()
        self.pad_id = 0

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without any control token. Bytes that the vocabulary lacks are left out."""
        return [self._ids[r] for r in self._bpe.encode_ordinary(text) if self._ids[r] >= 0]

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a control token."""
        return self._bytes.get(token, b"")

    def decode(self, ids: list[int]) -> str:
        """The text of ids; control tokens give nothing, broken UTF-8 gives the replacement character."""
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", errors="replace")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json (and the special ids of config.json and its neighbours) of a checkpoint folder.

    Raises UserError where a file is missing, is not byte-level BPE, or cuts words by an unknown rule.
    """
    path = folder / "tokenizer.json"
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
        model, added = spec["model"], {t["content"]: t["id"] for t in spec["added_tokens"]}
        vocab, merges = model["vocab"], model["merges"]
        pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
        words = _word_rule(spec, path)
        if model["type"] != "BPE" or spec.get("normalizer") or model.get("byte_fallback"):
            raise UserError(f"{path}: only byte-level BPE without a normalizer is read; use such a base")
        ids = [vocab.get(symbol, -1) for symbol in _byte_symbols()]
        ranks = {bytes([b]): b for b in range(256)}
        byte_of = {symbol: bytes([b]) for b, symbol in enumerate(_byte_symbols())}
        for left, right in pairs:
            piece = b"".join(byte_of[symbol] for symbol in left + right)
            if piece not in ranks:
                ranks[piece] = len(ids)
                ids.append(vocab[left + right])
        tokenizer = Tokenizer(ranks, ids, words, added)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: --base needs a Hugging Face folder with tokenizer.json"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or not byte-level BPE ({error!r}); download it again") from None
    _set_control_ids(tokenizer, folder, spec, added)
    return tokenizer


def _word_rule(spec: dict, path: Path) -> str:
    """The regular expression of a tokenizer.json's pre-tokenizer."""
    pre = spec["pre_tokenizer"]
    steps = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return GPT2_WORDS
        case [{"type": "Digits", "individual_digits": True},
              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:  # fmt: skip
            return GPT2_WORDS_DIGITS_APART
        case [{"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated"},
              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]:  # fmt: skip
            return words
    names = ", ".join(step.get("type", "?") for step in steps)
    raise UserError(
        f"{path}: unknown pre-tokenizer rules ({names}); known are GPT-2's, SmolLM2's and LLaMA 3's"
    )


def _byte_symbols() -> list[str]:
    """The printable letter that stands for each byte in vocabularies of GPT-2's kind: itself where it is
    printable and no space, else the next free letter from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    free = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(free)) for b in range(256)]


def _set_control_ids(tokenizer: Tokenizer, folder: Path, spec: dict, added: dict[str, int]) -> None:
    config = {}
    for name in ("config.json", "generation_config.json"):  # the later one lists all ends of a chat model
        if (folder / name).is_file():
            try:
                config |= json.loads((folder / name).read_text(encoding="utf-8"))
            except (ValueError, TypeError) as error:
                raise UserError(f"{folder / name} is damaged ({error}); download it again") from None
    eos = config.get("eos_token_id")
    tokenizer.eos_ids = tuple(eos) if isinstance(eos, list) else (eos,)
    if not all(isinstance(i, int) and 0 <= i < tokenizer.vocab_size for i in tokenizer.eos_ids):
        raise UserError(f"{folder / 'config.json'} names no usable eos_token_id; add it")
    # A tokenizer that starts texts with BOS says so in its post-processor, not in config.json.
    if config.get("bos_token_id") in added.values() and any(
        added[t] == config["bos_token_id"] and json.dumps(t) in json.dumps(spec.get("post_processor"))
        for t in added
    ):
        tokenizer.bos_id = config["bos_token_id"]
    candidates = [config.get("pad_token_id"), *added.values(), *range(tokenizer.vocab_size)]
    tokenizer.pad_id = next(i for i in candidates if isinstance(i, int) and i not in tokenizer.eos_ids)

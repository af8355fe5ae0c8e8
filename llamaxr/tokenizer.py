"""Text to token ids and back, by the tokenizer file of a base's folder: one small interface, three kinds.

    tokenizer.json   byte-level BPE in Hugging Face's form (Llama 3, SmolLM2, GPT-2)   joined by tiktoken
    tokenizer.model  Llama 3's: a line for each piece, base64 and rank                 joined by tiktoken
    tokenizer.model  Llama 2's: sentencepiece's protobuf                               sentencepiece itself

BPE starts from single bytes (sentencepiece: letters) and joins neighbours, the pair learned first before all
others, until no known pair is left. Before that a regular expression cuts the text into words, and no pair
crosses a cut. The libraries do the joining; this file reads what they need, and refuses by name what it would
otherwise get wrong by a few ids. The kind is told by what is in the file. The words of a control token inside
a report stay words: `encode` never gives a control token.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import tiktoken
from sentencepiece import SentencePieceProcessor

from .files.byte_level import bytes_of, ranks_and_ids, word_rule
from .errors import UserError

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PIECES = 128_000  # lines of its file, where Meta's code begins the 256 control tokens: BOS, EOS, ...
LLAMA3_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (\d{1,7})\r?\n?")
SPACE_RUN = re.compile(r"(\s{25000})")  # tiktoken's regex panics on much longer runs; Meta cuts here too
LARGEST_FILE = 256 << 20  # bytes; Llama 3's tokenizer.json has 17 MB
DAMAGES = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


class Tokenizer:
    """encode(text) -> ids, decode(ids) -> text, and ids with a meaning: bos_id (or None), eos_ids, pad_id.

    pad_id is never one of eos_ids: where the checkpoint pads with its end token, learning to ignore the one
    would be learning to ignore the other.
    """

    def __init__(self, encode: Callable[[str], list[int]], pieces: dict[int, bytes], control: Iterable[int]):
        """encode: text -> ids; pieces: the bytes that an id stands for; control: ids that no text gives."""
        self.encode, self._pieces, self.control = encode, pieces, frozenset(control)
        self.leading_space = False  # whether encode sets a space before the text, which decode takes away
        self.vocab_size = max([*pieces, *self.control]) + 1
        self.bos_id: int | None = None
        self.eos_ids: tuple[int, ...] = ()
        self.pad_id = 0

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a control token."""
        return self._pieces.get(token, b"")

    def decode(self, ids: list[int]) -> str:
        """The text of ids; control tokens give nothing, broken UTF-8 gives the replacement character."""
        text = b"".join(map(self.bytes_of, ids)).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.leading_space else text


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a checkpoint folder, and the control ids that config.json and the like name.

    A tokenizer.json of sentencepiece's kind gives way to the tokenizer.model beside it. Raises UserError that
    names the file: missing, damaged, of no known kind, or with rules that are unknown here.
    """
    spec_path, model_path = folder / "tokenizer.json", folder / "tokenizer.model"
    spec = _read_json(spec_path)
    if spec is not None and not _is_sentencepiece(spec):
        tokenizer = _read_byte_level(spec_path, spec)
    elif model_path.is_file():
        data = _read(model_path)
        if LLAMA3_LINE.match(data):
            tokenizer = _read_llama3(model_path, data)
        elif data.startswith(b"\n"):  # protobuf's mark of field 1, the pieces
            tokenizer = _read_sentencepiece(model_path, data)
            if (_read_json(folder / "tokenizer_config.json") or {}).get("add_bos_token") is False:
                tokenizer.bos_id = None
        else:
            raise UserError(f"{model_path} is neither Llama 3's lines nor sentencepiece's; download it again")
    elif spec is not None:
        raise UserError(
            f"{spec_path} is of sentencepiece's kind (Metaspace, byte_fallback), which is read from its "
            "tokenizer.model: put that file beside it"
        )
    else:
        raise UserError(f"{folder} has neither tokenizer.json nor tokenizer.model: a base needs one")
    _set_control_ids(tokenizer, folder)
    return tokenizer


def _bpe(words: str, ranks: dict[bytes, int], ids: list[int] | range) -> Callable[[str], list[int]]:
    """tiktoken's joining. ranks: piece -> order in which it is made, 0..n-1; ids: order -> id, or -1."""
    bpe = tiktoken.Encoding("llamaxr", pat_str=words, mergeable_ranks=ranks, special_tokens={})
    return lambda text: [
        ids[rank] for part in SPACE_RUN.split(text) for rank in bpe.encode_ordinary(part) if ids[rank] >= 0
    ]


def _read_byte_level(path: Path, spec: dict) -> Tokenizer:
    """tokenizer.json of byte-level BPE; byte_level.py says what becomes of its vocabulary and merges."""
    try:
        words, added = word_rule(path, spec), spec["added_tokens"]
        control = {token["id"] for token in added if token.get("special", True)}
        ranks, ids = ranks_and_ids(path, spec["model"], control)
        pieces = {i: bytes_of(text) for text, i in spec["model"]["vocab"].items()}
        pieces |= {token["id"]: token["content"].encode() for token in added}
        if any(type(i) is not int or not 0 <= i < 2**31 for i in pieces):
            raise ValueError("an id that is no number from 0 on")
        pieces = {i: piece for i, piece in pieces.items() if i not in control}
        tokenizer = Tokenizer(_bpe(words, ranks, ids), pieces, control)
        # A tokenizer that begins texts with BOS says so in its template, not in config.json.
        post = spec.get("post_processor") or {}
        for step in [post, *post.get("processors", [])]:
            if step.get("type") == "TemplateProcessing" and "SpecialToken" in step["single"][0]:
                bos = step["single"][0]["SpecialToken"]["id"]
                tokenizer.bos_id = {token["content"]: token["id"] for token in added}[bos]
    except DAMAGES as error:
        raise UserError(f"{path} is damaged or not byte-level BPE ({error!r}); download it again") from None
    return tokenizer


def _read_llama3(path: Path, data: bytes) -> Tokenizer:
    """Llama 3's tokenizer.model; the id of a piece is its rank, and the control tokens come after."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(keepends=True)):
        match = LLAMA3_LINE.fullmatch(line)
        piece = base64.b64decode(match[1]) if match and len(match[1]) % 4 == 0 else b""
        if not piece or piece in ranks or int(match[2]) != number:
            raise UserError(
                f"{path}, line {number + 1}: no base64 of a new piece and rank; download it again"
            )
        ranks[piece] = number
    if len(ranks) != LLAMA3_PIECES or not all(bytes([b]) in ranks for b in range(256)):
        raise UserError(
            f"{path} has {len(ranks)} pieces, not Llama 3's {LLAMA3_PIECES} with all bytes; download it again"
        )
    pieces = {rank: piece for piece, rank in ranks.items()}
    control = range(LLAMA3_PIECES, LLAMA3_PIECES + 256)
    tokenizer = Tokenizer(_bpe(LLAMA3_WORDS, ranks, range(LLAMA3_PIECES)), pieces, control)
    tokenizer.bos_id, tokenizer.eos_ids = control[0], (control[1],)  # begin_of_text, end_of_text
    return tokenizer


def _read_sentencepiece(path: Path, data: bytes) -> Tokenizer:
    """Llama 2's tokenizer.model. A piece writes its space as U+2581, a byte without a letter as <0xNN>."""
    try:
        sp = SentencePieceProcessor(model_proto=data)
        # A letter that no vocabulary has must come out as bytes, not as <unk>.
        if sp.unk_id() in sp.encode("\U0010fffd"):
            raise ValueError("no byte_fallback")
        names = [sp.id_to_piece(i) for i in range(sp.vocab_size())]
        control = [i for i in range(len(names)) if sp.is_control(i) or sp.is_unknown(i)]
        pieces = {
            i: bytes([int(name[1:-1], 16)]) if sp.is_byte(i) else name.replace("\u2581", " ").encode()
            for i, name in enumerate(names)
            if i not in control
        }
        # Halves of surrogate pairs, which JSON may hold, become U+FFFD, as tiktoken does it.
        whole = lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        tokenizer = Tokenizer(lambda text: sp.encode(whole(text)), pieces, control)
        tokenizer.leading_space = names[sp.encode("a")[0]].startswith("\u2581")
    except (RuntimeError, OSError, *DAMAGES) as error:
        raise UserError(f"{path} is damaged or not Llama 2's kind ({error!r}); download it again") from None
    tokenizer.bos_id = sp.bos_id() if sp.bos_id() >= 0 else None
    tokenizer.eos_ids = (sp.eos_id(),) if sp.eos_id() >= 0 else ()
    return tokenizer


def _set_control_ids(tokenizer: Tokenizer, folder: Path) -> None:
    """Ends and filler as config.json has them, and generation_config.json, which lists all ends of a chat
    model. Where both are silent the ends stay those of the tokenizer's own file."""
    config: dict = {}
    for name in ("config.json", "generation_config.json"):
        config |= _read_json(folder / name) or {}
    if (eos := config.get("eos_token_id")) is not None:
        tokenizer.eos_ids = tuple(eos) if isinstance(eos, list) else (eos,)
    size = config.get("vocab_size") if type(config.get("vocab_size")) is int else tokenizer.vocab_size
    usable = lambda i: type(i) is int and 0 <= i < size
    candidates = chain([config.get("pad_token_id")], sorted(tokenizer.control), range(tokenizer.vocab_size))
    pad = next((i for i in candidates if usable(i) and i not in tokenizer.eos_ids), None)
    if not tokenizer.eos_ids or not all(map(usable, tokenizer.eos_ids)) or pad is None:
        raise UserError(f"{folder / 'config.json'} names no usable eos_token_id; add it")
    tokenizer.pad_id = pad


def _is_sentencepiece(spec: dict) -> bool:
    """Whether a tokenizer.json holds sentencepiece's rules: letters with bytes to fall back on, U+2581."""
    model, rules = spec.get("model"), [spec.get("normalizer"), spec.get("pre_tokenizer")]
    if isinstance(model, dict) and model.get("byte_fallback"):
        return True
    return any(mark in json.dumps(rules, ensure_ascii=False) for mark in ("\u2581", "Metaspace"))


def _read_json(path: Path) -> dict | None:
    """The object of a JSON file; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(_read(path).decode("utf-8")) | {}  # TypeError unless it is an object
    except DAMAGES as error:
        raise UserError(f"{path} is damaged ({error!r}); download it again") from None


def _read(path: Path) -> bytes:
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path} has over {LARGEST_FILE >> 20} MiB: no tokenizer has; download it again")
    return path.read_bytes()

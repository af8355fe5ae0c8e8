"""The files that make a tokenizer, out of a checkpoint folder from anywhere: found, read and checked.

In: the folder. Out: which kind of tokenizer it has, and its content as plain data. Damaged files and unknown
kinds are refused with a UserError that names the file. byte_level.py reads the content of tokenizer.json.
"""

import base64
import json
import os
import re
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from ..errors import UserError
from .byte_level import DAMAGE
from .text import read_bytes, read_json

MAX_BYTES = 2**25  # of a tokenizer file; Llama 3's tokenizer.json has 17 MB
LLAMA3_PIECES = 128_000  # lines of its file; in Meta's code the 256 control tokens follow
LLAMA3_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (\d{1,7})\r?\n?")


def find_tokenizer(folder: Path) -> tuple[str, Path, dict | bytes]:
    """The kind of tokenizer, its file and the content: ("byte-level", tokenizer.json, an object), ("llama3",
    tokenizer.model, bytes) or ("sentencepiece", tokenizer.model, bytes). The kind is recognised by content.

    A tokenizer.json that holds sentencepiece's rules is passed over for the tokenizer.model beside it.
    """
    spec_path, model_path = folder / "tokenizer.json", folder / "tokenizer.model"
    spec = _read_json(spec_path)
    if spec is not None and not _has_sentencepiece_rules(spec):
        return "byte-level", spec_path, spec
    if model_path.is_file():
        data = read_bytes(model_path, MAX_BYTES, "download it again")
        if LLAMA3_LINE.match(data):
            return "llama3", model_path, data
        if data.startswith(b"\n"):  # protobuf's tag of field 1, the pieces
            return "sentencepiece", model_path, data
        raise UserError(f"{model_path} is neither Llama 3's kind nor sentencepiece's; download it again")
    if spec is not None:
        raise UserError(
            f"{spec_path} is of sentencepiece's kind (Metaspace, byte_fallback), which is read from its "
            "tokenizer.model: put that file beside it"
        )
    raise UserError(f"{folder} has neither tokenizer.json nor tokenizer.model: a base needs one")


def read_llama3(path: Path, data: bytes) -> dict[bytes, int]:
    """Llama 3's tokenizer.model: piece -> rank, which is its line number from 0."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(keepends=True)):
        match = LLAMA3_LINE.fullmatch(line)
        piece = base64.b64decode(match[1]) if match and len(match[1]) % 4 == 0 else b""
        if not piece or piece in ranks or int(match[2]) != number:
            raise UserError(
                f"{path}, line {number + 1}: not a new piece in base64 with its rank; download it again"
            )
        ranks[piece] = number
    if len(ranks) != LLAMA3_PIECES or not all(bytes([b]) in ranks for b in range(256)):
        raise UserError(
            f"{path} has {len(ranks)} pieces, not Llama 3's {LLAMA3_PIECES} with all bytes; download it again"
        )
    return ranks


def read_sentencepiece(
    path: Path, data: bytes
) -> tuple[SentencePieceProcessor, dict[int, bytes], list[int], int | None]:
    """Llama 2's tokenizer.model: the processor, the bytes of each id, the control ids, and BOS.

    A piece has its space written as U+2581, and a byte that is no character as <0xNN>.
    """
    try:
        sp = SentencePieceProcessor(model_proto=data)
        # A character outside of the vocabulary must come out as bytes, not as <unk>.
        if sp.unk_id() in sp.encode("\U0010fffd"):
            raise ValueError("no byte_fallback")
        control = [i for i in range(sp.vocab_size()) if sp.is_control(i) or sp.is_unknown(i)]
        pieces = {}
        for i in set(range(sp.vocab_size())) - set(control):
            name = sp.id_to_piece(i)
            pieces[i] = (
                bytes([int(name[1:-1], 16)]) if sp.is_byte(i) else name.replace("\u2581", " ").encode()
            )
        if sp.encode("a")[0] not in pieces:
            raise ValueError("a letter gives a control token")
    except (RuntimeError, OSError, *DAMAGE) as error:
        raise UserError(f"{path} is damaged or not Llama 2's kind ({error!r}); download it again") from None
    settings = _read_json(path.parent / "tokenizer_config.json") or {}
    has_bos = sp.bos_id() >= 0 and settings.get("add_bos_token") is not False
    return sp, pieces, control, sp.bos_id() if has_bos else None


def declared_eos(folder: Path, default: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
    """The ids that end a text: generation_config.json's, which lists all ends of a chat model, or else those
    of config.json. default: the tokenizer's own, if neither declares any."""
    config: dict = {}
    for name in ("config.json", "generation_config.json"):
        config |= _read_json(folder / name) or {}
    eos = config.get("eos_token_id")
    eos_ids = default if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
    n_ids = config.get("vocab_size") if type(config.get("vocab_size")) is int else vocab_size
    usable = lambda i: type(i) is int and 0 <= i < n_ids
    if not eos_ids or not all(map(usable, eos_ids)):
        raise UserError(f"{folder / 'config.json'} names no usable eos_token_id; add it")
    return eos_ids


def _has_sentencepiece_rules(spec: dict) -> bool:
    """Whether a tokenizer.json spells spaces as U+2581 and falls back to bytes."""
    model, rules = spec.get("model"), [spec.get("normalizer"), spec.get("pre_tokenizer")]
    if isinstance(model, dict) and model.get("byte_fallback"):
        return True
    return any(mark in json.dumps(rules, ensure_ascii=False) for mark in ("\u2581", "Metaspace"))


def _read_json(path: Path) -> dict | None:
    """The object in a JSON file; None where there is no such file."""
    return read_json(path, MAX_BYTES, "download it again") if os.path.lexists(path) else None

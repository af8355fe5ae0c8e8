"""A tokenizer's files: damaged, hostile and unknown ones are refused by name."""

import base64
import functools
import itertools
import json
import random
import shutil

import pytest

from llamaxr.errors import UserError
from llamaxr.tokenizer import load_tokenizer
from tests.conftest import REPORTS, sentencepiece_model


@pytest.fixture()
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "copy")


@pytest.mark.parametrize("name, text", [
    ("tokenizer.json", None), ("tokenizer.json", "{"), ("tokenizer.json", "[]"), ("tokenizer.json", "{}"),
    ("tokenizer.json", 900), ("config.json", "{"), ("generation_config.json", "{"),
    ("generation_config.json", "[1]"),
    ("config.json", '{"eos_token_id": null}'), ("config.json", '{"eos_token_id": 99999}'),
])  # fmt: skip
def test_a_missing_or_damaged_file_is_named(folder, name, text):
    """text: the content; None: no file; a number: the file is cut at that byte."""
    if name == "config.json":
        (folder / "generation_config.json").unlink()
    if text is None:
        (folder / name).unlink()
    else:
        text = (folder / name).read_text()[:text] if isinstance(text, int) else text
        (folder / name).write_text(text)
    with pytest.raises(UserError, match=name):
        load_tokenizer(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model":' * 100_000, '{"model": NaN', "\ud800"])
def test_json_made_to_break_its_reader_is_refused(folder, text):
    (folder / "tokenizer.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match="tokenizer.json is damaged"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "config.json"])
def test_a_file_of_gigabytes_is_not_read(folder, name):
    if name == "tokenizer.model":
        (folder / "tokenizer.json").unlink()
    with open(folder / name, "wb") as file:
        file.truncate(1 << 40)  # sparse: takes no disk space
    with pytest.raises(UserError, match=f"{name} has more than 33554432 bytes"):
        load_tokenizer(folder)


# --- Llama 3's tokenizer.model ---


@functools.cache
def llama3_lines() -> list[bytes]:
    """A file of Llama 3's size with other pieces: all bytes, all pairs of bytes, some triples."""
    pieces = (bytes(letters) for n in (1, 2, 3) for letters in itertools.product(range(256), repeat=n))
    return [
        base64.b64encode(piece) + b" %d\n" % i for i, piece in enumerate(itertools.islice(pieces, 128_000))
    ]


def write_llama3(folder, lines=None):
    (folder / "tokenizer.model").write_bytes(b"".join(lines or llama3_lines()))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("how", [
    "cut in a line", "cut between lines", "wrong base64", "no rank", "a piece twice", "a rank twice", "a gap",
    "no UTF-8", "an empty line", "a byte is missing", "too long", "too long by a piece that was there",
    "a negative rank",
])  # fmt: skip
def test_a_damaged_file_of_llama_3_is_refused(tmp_path, how):
    lines = list(llama3_lines())
    match how:
        case "cut in a line":
            lines = [b"".join(lines)[:1_000_001]]
        case "cut between lines":
            lines = lines[:100_000]
        case "wrong base64":
            lines[5] = b"B=== 5\n"
        case "no rank":
            lines[5] = b"BQ==\n"
        case "a piece twice":
            lines[5] = lines[4].replace(b" 4", b" 5")
        case "a rank twice":
            lines[5] = b"BQ== 4\n"
        case "a gap":
            del lines[5]
        case "no UTF-8":
            lines[5] = b"\xff\xfe 5\n"
        case "an empty line":
            lines[5] = b"\n"
        case "a byte is missing":
            lines[5] = base64.b64encode(b"llama") + b" 5\n"
        case "too long":
            lines.append(base64.b64encode(b"llama") + b" 128000\n")
        case "too long by a piece that was there":
            lines.append(base64.b64encode(b"\0") + b" 128000\n")
        case "a negative rank":
            lines[5] = b"BQ== -5\n"
    write_llama3(tmp_path, lines)
    with pytest.raises(UserError, match="tokenizer.model.*download it again") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


# --- Llama 2's tokenizer.model ---


llama2_model = functools.cache(sentencepiece_model)


def write_llama2(folder):
    (folder / "tokenizer.model").write_bytes(llama2_model())
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture()
def llama2(tmp_path):
    return write_llama2(tmp_path)


def test_a_tokenizer_json_of_sentencepieces_kind_gives_way_to_the_file_beside_it(llama2):
    alone = {"model": {"type": "BPE", "byte_fallback": True, "vocab": {}, "merges": []}, "added_tokens": [],
             "normalizer": {"type": "Prepend", "prepend": "\u2581"}, "pre_tokenizer": None}  # fmt: skip
    (llama2 / "tokenizer.json").write_text(json.dumps(alone))
    assert load_tokenizer(llama2).eos_ids == (2,)
    (llama2 / "tokenizer.model").unlink()
    with pytest.raises(UserError, match="tokenizer.json is of sentencepiece's kind.*tokenizer.model: put"):
        load_tokenizer(llama2)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{}", b"\x00" * 99, b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_a_tokenizer_model_of_no_known_kind_is_refused(llama2, content):
    (llama2 / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match="tokenizer.model"):
        load_tokenizer(llama2)


def test_a_sentencepiece_vocabulary_that_cannot_spell_every_letter_is_refused(llama2):
    (llama2 / "tokenizer.model").write_bytes(sentencepiece_model(vocab_size=120, byte_fallback=False))
    with pytest.raises(UserError, match="tokenizer.model is damaged or not Llama 2's kind.*byte_fallback"):
        load_tokenizer(llama2)


def test_a_sentencepiece_file_that_is_cut_anywhere_is_refused(llama2):
    intact = (llama2 / "tokenizer.model").read_bytes()
    for cut in range(1, len(intact) - 50, 37):
        (llama2 / "tokenizer.model").write_bytes(intact[:cut])
        with pytest.raises(UserError, match="tokenizer.model"):
            load_tokenizer(llama2)


def test_flipped_bytes_in_a_sentencepiece_file_give_a_tokenizer_or_one_line(llama2):
    intact, draw = (llama2 / "tokenizer.model").read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(intact)
        damaged[draw.randrange(len(intact))] = draw.randrange(256)
        (llama2 / "tokenizer.model").write_bytes(damaged)
        try:
            load_tokenizer(llama2).encode(REPORTS[0])
        except UserError as error:
            assert "tokenizer.model" in str(error) and "\n" not in str(error)

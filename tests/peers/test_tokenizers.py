"""Ids both ways against the libraries whose files we read: Meta's own code for Llama 3, tokenizers (with
transformers' conversion of Llama 3), sentencepiece and transformers' LlamaTokenizer for Llama 2's kind."""

import importlib
import importlib.util
import itertools
import json
import os
import random
import shutil
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

import pytest

from llamaxr.errors import UserError
from llamaxr.files.byte_level import BYTE_LETTERS
from llamaxr.tokenizer import Tokenizer, load_tokenizer
from tests.conftest import REPORTS, sentencepiece_model, write_base

tokenizers = pytest.importorskip("tokenizers")

SHARED = Path(os.environ.get("LLAMAXR_SHARED", "/work/shared"))
if not SHARED.is_dir():
    SHARED = Path(__file__).parents[3] / "shared"
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|reserved_special_token_0|>", "<|pad|>",
           "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<0x0A>"]  # fmt: skip
PARTS = [*" ".join(REPORTS).split(), *SPECIAL, " ", "  ", "   ", " " * 20, "\n", "\n\n", "\t", "\r\n",
         "7", "123", "1234567", "3.5", "12/03/2004", "'s", "'S", " 's", "'ll", "'RE", "don't", "!", "--", "_",
         "...", "é", "e\u0301", "\u0301", "你", "你好", "一二三", "😀", "👩\u200d⚕\ufe0f", "שלום", "مرحبا",
         "\u200f", "Việc", "٣٤", "½", "Ⅳ", "ſ", "'ſ", "\u212a", "ß", "İ", "ﬁ", "\u00a0", "\u3000", "\u2028",
         "\x85", "\x00", "\x07", "\xad", "\ufeff", "\u2581", "\U0010fffd"]  # fmt: skip


class Pair(NamedTuple):
    ours: Tokenizer
    encode: callable  # the reference's, reading control tokens as words
    decode: callable  # the reference's, leaving control tokens out
    keeps_all: bool  # whether decoding gives back every text


def llama3_file() -> Path:
    if importlib.util.find_spec("llama_models") is None:
        pytest.skip("no package llama-models, which carries Llama 3's tokenizer.model")
    return Path(importlib.util.find_spec("llama_models").origin).parent / "llama3" / "tokenizer.model"


def tokenizers_pair(folder: Path) -> Pair:
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    full = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = tokenizers.Tokenizer(full.model)  # without the added tokens
    plain.pre_tokenizer = full.pre_tokenizer
    encode = lambda text: plain.encode(text, add_special_tokens=False).ids
    keeps_all = spec["model"]["vocab"].keys() >= set(BYTE_LETTERS)
    return Pair(load_tokenizer(folder), encode, full.decode, keeps_all)


def sentencepiece_pair(folder: Path, model: bytes) -> Pair:
    from sentencepiece import SentencePieceProcessor

    (folder / "tokenizer.model").write_bytes(model)
    (folder / "config.json").write_text("{}")
    theirs = SentencePieceProcessor(model_proto=model)
    return Pair(load_tokenizer(folder), theirs.encode, theirs.decode, False)  # U+2581 comes back as a space


@pytest.fixture(scope="module")
def reports() -> list[str]:
    """FINDINGS and IMPRESSION of all of Open-i's reports, each text once."""
    path = SHARED / "data" / "iu_xray" / "NLMCXR_reports.tgz"
    if not path.is_file():
        pytest.skip(f"no Open-i reports at {path} (LLAMAXR_SHARED says where)")
    texts, n = {}, 0
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(".xml"):
                n += 1
                for part in ET.fromstring(tar.extractfile(member).read()).iter("AbstractText"):
                    if part.get("Label") in ("FINDINGS", "IMPRESSION") and part.text:
                        texts[part.text] = None
    assert n == 3955
    return list(texts)


KINDS = ["llama3.model", "llama3.json", "smollm2.json", "gpt2.json", "digits.json", "digit-runs.json",
         "single-digits.json", "llama2.model", "mistral.model"]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory) -> Pair:
    kind, folder = request.param, tmp_path_factory.mktemp("tokenizer")
    match kind:
        case "llama3.model":
            shutil.copy(llama3_file(), folder / "tokenizer.model")
            (folder / "config.json").write_text('{"eos_token_id": 128001}')
            from llama_models.llama3.tokenizer import Tokenizer as Metas

            theirs = Metas(llama3_file())
            words = lambda ids: theirs.decode([i for i in ids if i < 128_000])
            return Pair(load_tokenizer(folder), lambda t: theirs.encode(t, bos=False, eos=False), words, True)
        case "llama3.json":
            write_llama3_json(folder)
        case "smollm2.json":
            if "LLAMAXR_SMOLLM2" not in os.environ:
                pytest.skip("LLAMAXR_SMOLLM2 does not say where SmolLM2's folder is")
            folder = Path(os.environ["LLAMAXR_SMOLLM2"])
        case "llama2.model":
            return sentencepiece_pair(folder, sentencepiece_model())
        case "mistral.model":  # real, and of Llama 2's kind and size
            if importlib.util.find_spec("mistral_common") is None:
                pytest.skip("no mistral-common, which carries a real tokenizer.model (pip install --no-deps)")
            origin = Path(importlib.util.find_spec("mistral_common").origin).parent
            return sentencepiece_pair(folder, (origin / "data" / "tokenizer.model.v1").read_bytes())
        case _:
            like = {"digit-runs.json": "digits", "single-digits.json": "llama3"}
            write_base(folder, like.get(kind, kind[:-5]))
            spec = json.loads((folder / "tokenizer.json").read_text())
            if kind == "digit-runs.json":
                spec["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = False
            if kind == "single-digits.json":  # Qwen's rule
                pattern = spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]
                pattern["Regex"] = pattern["Regex"].replace("{1,3}", "")
            spec["model"]["merges"].append(["\u0120", "\u0120"])  # two spaces, that their cuts may show
            spec["model"]["vocab"]["\u0120\u0120"] = 440
            (folder / "tokenizer.json").write_text(json.dumps(spec))
    return tokenizers_pair(folder)


def write_llama3_json(folder: Path) -> None:
    """Llama 3's tokenizer.json, made by transformers out of Meta's file."""
    module = importlib.import_module("transformers.convert_slow_tokenizer")
    converter = module.TikTokenConverter(str(llama3_file()), extra_special_tokens=SPECIAL[:4])
    converter.converted().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"eos_token_id": 128001}')


def drawn_texts(n: int = 1500) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choice(PARTS) + draw.choice(["", " "]) for _ in range(draw.randint(1, 8)))
            for _ in range(n)]  # fmt: skip


def assert_alike(pair: Pair, texts: list[str]) -> None:
    for text in texts:
        ids = pair.ours.encode(text)
        assert ids == pair.encode(text), repr(text)
        assert pair.ours.decode(ids) == pair.decode(ids), repr(text)
        assert pair.ours.control.isdisjoint(ids), repr(text)
        assert not pair.keeps_all or pair.ours.decode(ids) == text


def test_ids_equal_on_every_real_report(pair, reports):
    real = pair.ours.vocab_size > 30_000
    texts = reports if real else reports[::8]  # all of them where the vocabulary is a real one
    assert_alike(pair, texts)
    assert all(pair.ours.decode(pair.ours.encode(text)) == text for text in texts)


def test_ids_equal_on_odd_texts_and_on_the_words_of_control_tokens(pair):
    assert_alike(pair, ["", *PARTS, *(f"a {part}b" for part in PARTS), *drawn_texts()])


def test_any_ids_give_the_references_text(pair):
    draw = random.Random(1)
    theirs_alike = [i for i in range(pair.ours.vocab_size) if len(pair.ours.bytes_of(i)) > 1]
    for _ in range(300):
        ids = draw.choices(theirs_alike, k=10)
        assert pair.ours.decode(ids) == pair.decode(ids)


@pytest.mark.parametrize("pair", ["llama3.model", "llama3.json"], indirect=True)
def test_llama_3s_own_pieces_in_a_row_give_equal_ids(pair):
    """678 of its pieces, Vietnamese mostly, come out of no merge: only a complete word becomes one."""
    draw, pieces = random.Random(2), [pair.ours.bytes_of(i) for i in range(128_000)]
    odd = [piece for piece in pieces if "\u1ec7" in piece.decode(errors="ignore")] * 20
    texts = (b"".join(draw.choices(pieces + odd, k=3)).decode(errors="ignore") for _ in range(2000))
    assert_alike(pair, list(texts))


def test_llama_3s_control_ids_are_metas(tmp_path):
    from llama_models.llama3.tokenizer import Tokenizer as Metas

    shutil.copy(llama3_file(), tmp_path / "tokenizer.model")
    ours, theirs = load_tokenizer(tmp_path), Metas(llama3_file())
    assert ours.control == frozenset(theirs.special_tokens.values()) and ours.vocab_size == theirs.n_words
    assert (ours.bos_id, ours.eos_ids) == (theirs.bos_id, (theirs.eos_id,)) == (128000, (128001,))


def test_transformers_llama_tokenizer_gives_equal_ids(tmp_path, reports):
    """Its Metaspace sets no space before a text that begins with one; sentencepiece, Llama 2's own, does."""
    from sentencepiece import SentencePieceProcessor
    from transformers import LlamaTokenizer

    model = sentencepiece_model(reports[:1000], vocab_size=2000)
    pair, sp = sentencepiece_pair(tmp_path, model), SentencePieceProcessor(model_proto=model)
    vocab = {sp.id_to_piece(i): i for i in range(sp.vocab_size())}
    scores = {piece: sp.get_score(i) for piece, i in vocab.items()}
    merges = importlib.import_module("transformers.convert_slow_tokenizer").generate_merges(vocab, scores)
    theirs = LlamaTokenizer(vocab=vocab, merges=merges)
    for text in [*reports, *drawn_texts(1000)]:
        if text[0] not in " \u2581" and not any(control in text for control in ("<s>", "</s>", "<unk>")):
            ids = theirs.encode(text, add_special_tokens=False)
            assert pair.ours.encode(text) == ids, repr(text)
            assert pair.ours.decode(ids) == theirs.decode(ids), repr(text)


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_merges_in_any_order_are_merged_as_in_tokenizers_or_refused(tmp_path, ignore_merges):
    """Merges drawn at random over three letters, most in an order that no training gives: what is accepted
    must agree with tokenizers on every word up to six letters."""
    write_base(tmp_path, words="gpt2")
    spec, draw, accepted = json.loads((tmp_path / "tokenizer.json").read_text()), random.Random(3), 0
    letters = sorted(text for text in spec["model"]["vocab"] if len(text) == 1)
    texts = ["".join(word) for n in range(1, 7) for word in itertools.product("abc", repeat=n)]
    for _ in range(80):
        pieces, merges = ["a", "b", "c"], []
        for _ in range(draw.randint(2, 9)):
            pair = draw.choices(pieces, k=2)
            if pair not in merges:
                merges.append(pair)
                pieces += ["".join(pair)] * ("".join(pair) not in pieces)
        vocab = [*letters, *pieces[3:]]
        wordlike = draw.sample(["abc", "cab", "bbb", "acac"], k=draw.randint(0, 2))  # that no merge makes
        vocab += [text for text in wordlike if text not in vocab]
        draw.shuffle(vocab)  # ids in another order than the merges
        spec["model"] |= {"vocab": {text: i for i, text in enumerate(vocab)}, "merges": merges,
                          "ignore_merges": ignore_merges}  # fmt: skip
        spec["added_tokens"] = []
        (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
        try:
            ours = load_tokenizer(tmp_path)
        except UserError as error:
            assert "merges" in str(error)
            continue
        accepted += 1
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        for text in texts:
            assert ours.encode(text) == theirs.encode(text).ids, (text, merges, vocab)
    assert 20 <= accepted <= 60

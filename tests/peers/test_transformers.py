"""The language model and the tokenizer against transformers and tokenizers."""

import json
import random

import pytest
import torch

from llamaxr.decoding import generate
from llamaxr.tokenizer import load_tokenizer
from llamaxr.weights import load_llama
from tests.conftest import REPORTS, write_base

pytest.importorskip("transformers")

LLAMA31 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize("heads", [(4, 4, 16), (4, 2, 16), (8, 1, 8), (4, 2, 32)])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_transformers(tmp_path, heads, tied):
    n_heads, n_kv_heads, head_dim = heads
    theirs, _ = write_base(tmp_path, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, tied=tied)
    ours, _ = load_llama(tmp_path)
    ids = torch.randint(3, 400, (2, 60))
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() <= 1e-4


def test_logits_equal_transformers_past_the_trained_length_of_llama_31(tmp_path):
    theirs, _ = write_base(tmp_path, rope_scaling=LLAMA31)
    ours, _ = load_llama(tmp_path)
    assert ours.config.rope_scaling.original_max_positions == 64
    ids = torch.randint(3, 400, (1, 300))
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() <= 1e-4


def test_greedy_text_equals_transformers(base):
    from transformers import LlamaForCausalLM

    theirs = LlamaForCausalLM.from_pretrained(base).eval()
    ours, _ = load_llama(base)
    ids = torch.randint(3, 400, (1, 10))
    expected = theirs.generate(ids, max_new_tokens=50, do_sample=False, eos_token_id=1, pad_token_id=2)
    expected = [t for t in expected[0, 10:].tolist() if t != 1]
    with torch.no_grad():
        assert generate(ours, ours.embed(ids), None, (1,), 50)[0] == expected


TEXTS = [
    *REPORTS,
    "  two  spaces\n\nand 123456 digits, 3.5 cm\t tab   ",
    "naïve ünïcode 你好 😀 I'll we've XXXX 's 7's",
    "a text that says <|end_of_text|> and <|pad|>",
    "x  5  y 12a",
    "",
]


@pytest.mark.parametrize("words", ["gpt2", "digits", "llama3"])
def test_ids_equal_tokenizers_both_ways(tmp_path, words):
    from tokenizers import Tokenizer

    _, _ = write_base(tmp_path, words=words)
    theirs, ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), load_tokenizer(tmp_path)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ours.decode(ids) == text
        assert theirs.decode(ids) == text  # their decoder reads what we wrote
        if "<|" not in text:  # theirs reads control tokens out of plain text; ours never does
            assert ids == theirs.encode(text).ids
        assert not set(ids) & {0, 1, 2}


@pytest.mark.parametrize("words", ["gpt2", "digits", "llama3"])
def test_ids_equal_tokenizers_on_thousands_of_odd_texts(tmp_path, words):
    from tokenizers import Tokenizer

    write_base(tmp_path, words=words)
    theirs, ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), load_tokenizer(tmp_path)
    draw = random.Random(0)
    parts = [*" ".join(REPORTS).split(), " ", "  ", "\n", "\n\n", "\t", "\r\n", "7", "123", "3.5", "é",
             "你", "😀", "'s", "'S", " 's", "!", "--", "\u00a0", "\u3000", "½", "_", "e\u0301"]  # fmt: skip
    for _ in range(2000):
        text = "".join(draw.choice(parts) + draw.choice(["", " "]) for _ in range(draw.randint(1, 8)))
        assert ours.encode(text) == theirs.encode(text).ids, repr(text)
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("words", ["gpt2", "digits", "llama3"])
def test_a_control_tokens_text_is_encoded_as_tokenizers_would_if_it_had_no_control_tokens(tmp_path, words):
    from tokenizers import Tokenizer

    write_base(tmp_path, words=words)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    plain = Tokenizer.from_str(json.dumps(spec | {"added_tokens": []}))
    for text in ("<|end_of_text|>", "clear.<|end_of_text|> No <|pad|><|begin_of_text|>12"):
        assert load_tokenizer(tmp_path).encode(text) == plain.encode(text).ids

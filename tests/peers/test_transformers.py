"""The language model and the tokenizer against transformers and tokenizers."""

import copy
import json
import os
import random
import shutil

import pytest
import torch

from llamaxr.decoding import generate
from llamaxr.llama import KVCache, RMSNorm, rope_frequencies
from llamaxr.tokenizer import load_tokenizer
from llamaxr.weights import load_llama
from tests.conftest import REPORTS, write_base

transformers = pytest.importorskip("transformers")

LLAMA31 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_equals_transformers_bit_for_bit(dtype):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    ours, theirs, x = RMSNorm(64, 1e-5), LlamaRMSNorm(64, 1e-5), torch.randn(50, 64) * 3
    ours.weight.data = theirs.weight.data = torch.rand(64) + 0.5
    assert torch.equal(ours.to(dtype)(x.to(dtype)), theirs.to(dtype)(x.to(dtype)))


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


ROPE32 = LLAMA31 | {"factor": 32.0, "original_max_position_embeddings": 8192}
PLAIN = {"rope_type": "default"}
FAMILIES = {  # as published, but for width and depth
    "Llama 2": {"num_key_value_heads": 4, "rope_parameters": PLAIN | {"rope_theta": 1e4}},
    "Llama 3": {"rope_parameters": PLAIN | {"rope_theta": 5e5}},
    "Llama 3.1": {"rope_parameters": ROPE32 | {"factor": 8.0}},
    "Llama 3.2": {"rope_parameters": ROPE32, "tie_word_embeddings": True},
    "TinyLlama": {"hidden_size": 128, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 4},
    "SmolLM2": {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 8,
                "rope_parameters": PLAIN | {"rope_theta": 1e5}, "tie_word_embeddings": True},
    "wide heads": {"head_dim": 48}, "narrow heads": {"head_dim": 2},
}  # fmt: skip


def write_family(folder, base, family, dtype=torch.float32, max_shard_size="1GB"):
    """A random checkpoint, saved by transformers in that dtype; gives their model, loaded in fp32."""
    sizes = {"vocab_size": 448, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 131072,
             "rms_norm_eps": 1e-5, "initializer_range": 0.2, "eos_token_id": 1}  # fmt: skip
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**sizes | copy.deepcopy(FAMILIES[family]))
    model = transformers.LlamaForCausalLM(config)
    for name, p in model.named_parameters():
        if "norm" in name:  # all ones otherwise, which would hide a norm that forgets its weight
            torch.nn.init.uniform_(p.data, 0.5, 1.5)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    shutil.copy(base / "tokenizer.json", folder)
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_every_family_equal_transformers(tmp_path, base, family, dtype):
    shards = "50KB" if dtype == torch.bfloat16 else "1GB"
    theirs = write_family(tmp_path, base, family, dtype, shards)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (dtype == torch.bfloat16)
    ours, _ = load_llama(tmp_path)
    frequencies = rope_frequencies(ours.config, torch.device("cpu"))
    assert torch.equal(frequencies, theirs.model.rotary_emb.inv_freq)  # to the last bit, see there
    ids = torch.randint(3, 400, (2, 60))
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() <= 1e-4


@pytest.mark.parametrize("family", ["Llama 3.1", "Llama 3.2"])
def test_past_8192_positions_logits_equal_transformers(tmp_path, base, family):
    theirs = write_family(tmp_path, base, family)
    ours, _ = load_llama(tmp_path)
    ids = torch.randint(3, 400, (1, 9000))
    with torch.no_grad():
        kept = theirs(ids, logits_to_keep=500).logits
        hidden = ours.hidden(ours.embed(ids))
        assert (ours.logits(hidden[:, -500:]) - kept).abs().max() <= 1e-4
        cache = KVCache(ours.config, 1, 9000, "cpu", torch.float32)
        ours.hidden(ours.embed(ids[:, :8990]), cache=cache)
        last = [ours.hidden(ours.embed(ids[:, i : i + 1]), cache=cache) for i in range(8990, 9000)]
        assert (ours.logits(torch.cat(last, 1)) - kept[:, -10:]).abs().max() <= 1e-4


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2's real weights: ours, theirs (fp32 both), and the folder's tokenizer."""
    folder = os.environ.get("LLAMAXR_SMOLLM2")
    if not folder:
        pytest.skip("LLAMAXR_SMOLLM2 names no folder of SmolLM2-135M's real weights")
    ours, tokenizer = load_llama(folder)
    return ours, transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer


def test_logits_of_real_weights_equal_transformers(smollm2):
    ours, theirs, tokenizer = smollm2
    ids = torch.tensor([tokenizer.encode(" ".join(REPORTS * 3))])
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() <= 1e-4


def test_200_tokens_of_greedy_text_of_real_weights_equal_transformers(smollm2):
    ours, theirs, tokenizer = smollm2
    ids = torch.tensor([tokenizer.encode("The chest radiograph shows")])
    expected = theirs.generate(ids, max_new_tokens=200, do_sample=False, eos_token_id=None, pad_token_id=2)
    expected = expected[0, ids.shape[1] :].tolist()
    with torch.no_grad():
        assert generate(ours, ours.embed(ids), None, (), 200)[0] == expected
        text = torch.cat((ids, torch.tensor([expected])), 1)  # all at once, without a cache
        assert ours(text)[0, ids.shape[1] - 1 : -1].argmax(-1).tolist() == expected


def test_a_batch_with_filler_of_real_weights_says_what_its_rows_say_alone(smollm2):
    ours, _, tokenizer = smollm2
    prompts = [torch.tensor([tokenizer.encode(text)]) for text in ("The heart", REPORTS[0], "def f(n):")]
    longest = max(ids.shape[1] for ids in prompts)
    padding = torch.tensor([longest - ids.shape[1] for ids in prompts])
    filled = torch.cat([torch.nn.functional.pad(ids, (longest - ids.shape[1], 0)) for ids in prompts])
    alone = [generate(ours, ours.embed(ids), None, (), 30)[0] for ids in prompts]
    assert generate(ours, ours.embed(filled), padding, (), 30) == alone


def test_greedy_text_equals_transformers(base):
    theirs = transformers.LlamaForCausalLM.from_pretrained(base).eval()
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

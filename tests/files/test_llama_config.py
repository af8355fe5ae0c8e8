"""config.json: what is read, as transformers reads it, and what is refused, by the name of its field."""

import copy
import json
import os
import time

import pytest

from llamaxr.errors import UserError
from llamaxr.llama import LlamaConfig, RopeScaling
from llamaxr.weights import read_config

LLAMA_31_8B = {  # as Meta published it, without what is of no consequence here
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 128000,
    "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 128256,
}  # fmt: skip
NF4 = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_quant_storage": "uint8", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "float16",
}  # fmt: skip
SCALING = LLAMA_31_8B["rope_scaling"]
HOSTILE_NAME = "gpt\n" * 10**4


@pytest.fixture()
def read(tmp_path):
    def read(**changes):
        fields = {k: v for k, v in (LLAMA_31_8B | changes).items() if v is not ...}  # ... takes a field away
        (tmp_path / "config.json").write_text(json.dumps(fields))
        return read_config(tmp_path / "config.json")

    return read


def test_llama_31_8b_is_the_default(read):
    assert read() == LlamaConfig()


def test_it_is_read_as_transformers_5_writes_it_too(tmp_path, read):
    transformers = pytest.importorskip("transformers")
    transformers.LlamaConfig(**copy.deepcopy(LLAMA_31_8B)).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "rope_theta" not in saved and "rope_parameters" in saved
    assert read_config(tmp_path / "config.json") == LlamaConfig()


def test_fields_that_old_checkpoints_lack_are_what_transformers_takes(read):
    config = read(num_key_value_heads=..., rope_theta=..., rope_scaling=..., tie_word_embeddings=...,
                  attention_bias=..., mlp_bias=..., hidden_act=..., head_dim=None)  # fmt: skip
    assert (config.n_kv_heads, config.head_dim, config.rope_theta) == (32, 128, 10000.0)
    assert config.rope_scaling is None and not config.tie_embeddings


def test_a_stretch_may_be_named_by_the_older_field(read):
    scaling = {k: v for k, v in SCALING.items() if k != "rope_type"} | {"type": "llama3", "factor": 32}
    assert read(rope_scaling=scaling).rope_scaling == RopeScaling(factor=32.0)


def test_the_heads_width_may_differ_from_dim_over_heads(read):
    assert read(head_dim=64).head_dim == 64
    assert read(hidden_size=4000, head_dim=64, num_attention_heads=24).dim == 4000


def test_nf4_of_bitsandbytes_is_read(read):
    assert read(quantization_config=NF4) == LlamaConfig()


@pytest.mark.parametrize("field, value", [
    *[("model_type", v) for v in ("mistral", "gpt2", None, ..., 5, ["llama"], HOSTILE_NAME)],
    *[("hidden_act", v) for v in ("gelu", None, 1, {})],
    *[("attention_bias", v) for v in (True, 1, "false")], ("mlp_bias", True), ("tie_word_embeddings", "yes"),
    *[("num_hidden_layers", v) for v in (0, -1, 1001, 10**9, 10**400, 2.0, True, "32", None, ..., [32])],
    *[("num_hidden_layers", v) for v in (float("inf"), float("nan"))],
    *[("vocab_size", v) for v in (0, 2**20 + 1, 10**18, True, "128256", ...)],
    *[("hidden_size", v) for v in (0, -4096, 2**21, 4095, 4096.0, ...)],
    *[("num_attention_heads", v) for v in (0, 33, 10**6, None)],
    *[("num_key_value_heads", v) for v in (0, 5, 64, -8, True)],
    *[("head_dim", v) for v in (0, 1, 127, 2**21, "128", False)],
    *[("intermediate_size", v) for v in (0, 10**7, True, ...)],
    *[("rms_norm_eps", v) for v in (0, -1e-5, float("inf"), float("nan"), True, "1e-5", ...)],
    *[("rope_theta", v) for v in (0, -1.0, float("inf"), float("nan"), True, "1e4", 10**300, 10**400)],
    *[("rope_scaling", v) for v in (5, "llama3", [1])], ("partial_rotary_factor", 0.5),
    ("quantization_config", "nf4"),
])  # fmt: skip
def test_what_is_no_llamas_is_refused_by_its_field_on_one_line(read, field, value):
    with pytest.raises(UserError) as caught:
        read(**{field: value})
    message = str(caught.value)
    # The JSON reader refuses what is no number, or has hundreds of digits, before a field is looked at.
    assert "config.json: " in message and field in message or "config.json is damaged" in message
    assert "\n" not in message and len(message) < 500


@pytest.mark.parametrize("field, value", [
    *[("rope_type", v) for v in ("yarn", "linear", "dynamic", "longrope", None, 3)],
    *[("factor", v) for v in (0, -8, float("inf"), float("nan"), "8", True, ...)],
    *[("low_freq_factor", v) for v in (0, -1, 4.0, 5.0, float("nan"), ...)],
    *[("high_freq_factor", v) for v in (0, 1.0, float("inf"), ...)],
    *[("original_max_position_embeddings", v) for v in (0, -1, 8192.0, 2**40, True, ...)],
    *[("rope_theta", v) for v in (0, float("nan"), "x")], ("partial_rotary_factor", 0.25),
])  # fmt: skip
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_rotary_frequencies_that_are_not_llamas_are_refused(read, place, field, value):
    rope = {k: v for k, v in (SCALING | {field: value}).items() if v is not ...}
    no_number = r"config\.json is damaged \((NaN|Infinity) is no number"  # so says the JSON reader
    with pytest.raises(UserError, match=rf"config\.json: .*{field}|{no_number}"):
        read(**{"rope_scaling": None, place: rope})


@pytest.mark.parametrize("changes, named", [
    *[({"quant_method": m}, repr(m)) for m in ("gptq", "awq", "fp8", "compressed-tensors", "aqlm", None, [])],
    ({"load_in_8bit": True, "load_in_4bit": False}, "load_in_8bit"),
    ({"load_in_4bit": False}, "load_in_4bit"),
    ({"bnb_4bit_quant_type": "fp4"}, "fp4"), ({"bnb_4bit_quant_type": ...}, "fp4"),
    ({"bnb_4bit_quant_storage": "bfloat16"}, "bfloat16"), ({"bnb_4bit_blocksize": 128}, "blocksize 128"),
])  # fmt: skip
def test_other_quantisations_are_refused_by_name(read, changes, named):
    quantisation = {k: v for k, v in (NF4 | changes).items() if v is not ...}
    with pytest.raises(UserError, match=r"config\.json: quantization_config") as caught:
        read(quantization_config=quantisation)
    assert named in str(caught.value) and "NF4" in str(caught.value)


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"5", b'"llama"', b"null", b"\xff\xfe", b"[" * 10**5, b'{"a":' * 10**5, b"\0" * 100,
    b'{"vocab_size": ' + b"9" * 5000 + b"}",
])  # fmt: skip
def test_what_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is damaged .*give the folder") as caught:
        read_config(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_refused_unread(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**36)  # sparse: takes no room
    start = time.perf_counter()
    with pytest.raises(UserError, match="more than 1048576 bytes"):
        read_config(tmp_path / "config.json")
    assert time.perf_counter() - start < 0.5


def test_no_file_a_folder_and_a_pipe_are_refused(tmp_path):
    path = tmp_path / "config.json"
    for make in (lambda: None, lambda: os.mkfifo(path), lambda: (path.unlink(), path.mkdir())):
        make()
        with pytest.raises(UserError, match=r"config\.json is (missing|no file)"):
            read_config(path)

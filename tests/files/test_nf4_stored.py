"""A base stored in NF4: read to the bit, or refused before it is read where its parts state false sizes."""

import json
import os
import shutil
import time

import bitsandbytes.functional as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file

from llamaxr.errors import UserError
from llamaxr.files.checkpoint_tensors import CheckpointTensors
from llamaxr.files.nf4_stored import FACTS
from llamaxr.lora import TARGETS
from llamaxr.nf4 import NF4Linear
from llamaxr.weights import load_llama
from tests.test_weights import header_of, write

UP = "model.layers.1.mlp.up_proj.weight"  # (128, 64): 128 blocks of 64


def quantise(tensors, nested=True, names=TARGETS):
    """The blocks' linears as bitsandbytes stores them."""
    stored = {}
    for name, tensor in tensors.items():
        stored[name] = tensor
        if name.split(".")[-2] in names:
            stored[name], state = bnb.quantize_4bit(
                tensor, blocksize=64, quant_type="nf4", compress_statistics=nested
            )
            parts = state.as_dict(packed=True)
            stored |= {f"{name}.{part}": value.clone() for part, value in parts.items()}
    return stored


@pytest.fixture(scope="module", params=[True, False], ids=["nested", "plain"])
def quantised(base, tmp_path_factory, request):
    folder = shutil.copytree(base, tmp_path_factory.mktemp("nf4") / "base")
    save_file(quantise(load_file(base / "model.safetensors"), request.param), folder / "model.safetensors")
    return folder


@pytest.fixture()
def folder(quantised, tmp_path):
    return shutil.copytree(quantised, tmp_path / "copy")


def refusal(folder, monkeypatch):
    """The one line with which a folder is refused; no tensor of more than 4 KiB may be read before."""
    read = CheckpointTensors.read

    def read_small(self, name):
        header = self.header(name)
        assert torch.Size(header[0]).numel() * (4 if header[1] == "F32" else 1) <= 4096, f"{name} was read"
        return read(self, name)

    monkeypatch.setattr(CheckpointTensors, "read", read_small)
    with pytest.raises(UserError) as caught:
        load_llama(folder)
    message = str(caught.value)
    assert "model.safetensors: " in message and "\n" not in message and len(message) < 600
    return message


@pytest.mark.parametrize("quantised", [True], indirect=True)
def test_it_is_the_model_that_is_quantised_in_loading(folder, base):
    stored, made = load_llama(folder)[0], load_llama(base, "nf4")[0]
    assert isinstance(stored.layers[1].mlp.up_proj, NF4Linear)
    ids = torch.randint(3, 400, (1, 9))
    with torch.no_grad():
        assert torch.equal(stored(ids), made(ids))


def test_linears_that_were_left_in_floats_stay_so(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "copy")
    tensors = quantise(load_file(base / "model.safetensors"), names=("gate_proj", "up_proj"))
    save_file(tensors, folder / "model.safetensors")
    model, _ = load_llama(folder, "nf4")
    assert isinstance(model.layers[0].mlp.up_proj, NF4Linear)
    assert isinstance(model.layers[0].mlp.down_proj, torch.nn.Linear)


NESTED = [
    ("nested_absmax", None), ("nested_quant_map", None), ("nested_absmax", torch.ones(2)),
    ("nested_absmax", torch.ones(1, dtype=torch.float16)), ("nested_quant_map", torch.zeros(255)),
    ("absmax", torch.zeros(128)),
]  # fmt: skip
PARTS = [  # a part of UP, and what replaces it
    ("", torch.zeros(4095, 1, dtype=torch.uint8)), ("", torch.zeros(4097, 1, dtype=torch.uint8)),
    ("", torch.zeros(128, 64)), ("", torch.zeros(2048, 1, dtype=torch.bfloat16)), # quant_storage=bfloat16
    ("", torch.zeros(4096, 1, dtype=torch.int8)), ("absmax", torch.zeros(64, dtype=torch.uint8)),
    ("absmax", torch.zeros(0)), ("absmax", torch.zeros(127)), ("absmax", torch.zeros(128, dtype=torch.int64)),
    ("absmax", None), ("quant_map", None), ("quant_map", torch.zeros(16)), ("quant_map", torch.zeros(15)),
    ("quant_map", torch.zeros(10**6)), ("quant_map", torch.full((16,), float("nan"))), (FACTS, None),
    (FACTS, torch.zeros(0, dtype=torch.uint8)), (FACTS, torch.zeros(10**7, dtype=torch.uint8)),
    (FACTS, torch.zeros(100, dtype=torch.float32)), (FACTS, torch.full((100,), 255, dtype=torch.uint8)),
    (FACTS, torch.full((4000,), ord("["), dtype=torch.uint8)), (FACTS, torch.full((1,), ord("5")).byte()),
    ("more", torch.zeros(1)), ("bias", torch.zeros(128)),
    ("quant_state.bitsandbytes__fp4", torch.zeros(9).byte()),
]  # fmt: skip


def replace(folder, part, value):
    path, name = folder / "model.safetensors", f"{UP}.{part}".rstrip(".")
    tensors = load_file(path)
    tensors.pop(name, None)
    save_file(tensors if value is None else tensors | {name: value}, path)


@pytest.mark.parametrize("part, value", PARTS)
def test_a_part_of_another_size_or_kind_is_refused(folder, monkeypatch, part, value):
    replace(folder, part, value)
    assert UP in refusal(folder, monkeypatch)


@pytest.mark.parametrize("quantised", [True], indirect=True)
@pytest.mark.parametrize("part, value", NESTED)
def test_a_part_of_the_second_level_of_another_size_or_kind_is_refused(folder, monkeypatch, part, value):
    replace(folder, part, value)
    assert UP in refusal(folder, monkeypatch)


@pytest.mark.parametrize("fact, value", [
    *[("shape", v) for v in ([64, 128], [128, 65], [8192], "128, 64", None, [2**40, 2**40], {"0": 128})],
    *[("blocksize", v) for v in (128, 32, 0, -64, 2**40, "64", None)], ("quant_type", "fp4"),
    *[("nested_blocksize", v) for v in (255, 0, 4096, "256", None)],
    *[(name, v) for name in ("dtype", "nested_dtype") for v in ("bool", "load", "", None, 7)],
    *[("nested_offset", v) for v in (1e30, "0.1", None, [0.1])],
])  # fmt: skip
def test_false_facts_are_refused(folder, monkeypatch, fact, value):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    facts = json.loads(bytes(tensors[f"{UP}.{FACTS}"].tolist()))
    if fact not in facts:
        pytest.skip("absmaxes in fp32 have no such fact")
    raw = json.dumps(facts | {fact: value}).encode()
    save_file(tensors | {f"{UP}.{FACTS}": torch.tensor(list(raw), dtype=torch.uint8)}, path)
    message = refusal(folder, monkeypatch)
    assert UP in message and fact in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_facts_with_what_is_no_number_are_no_json(folder, monkeypatch, value):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    facts = json.loads(bytes(tensors[f"{UP}.{FACTS}"].tolist())) | {"nested_offset": value}
    raw = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
    save_file(tensors | {f"{UP}.{FACTS}": raw}, path)
    message = refusal(folder, monkeypatch)
    assert UP in message and "is no JSON" in message


def test_all_other_ways_to_flatten_a_part_are_read_alike(folder, base):
    """The kernels read by pointer: a part's shape must not decide which rows are cut out of it."""
    ids = torch.randint(3, 400, (1, 9))
    with torch.no_grad():
        expected = load_llama(folder)[0](ids)
        for part, shape in {"": (1, -1), "absmax": (1, -1), "quant_map": (4, 4), FACTS: (-1, 1)}.items():
            name = f"{UP}.{part}".rstrip(".")
            tensors = load_file(folder / "model.safetensors")
            save_file(tensors | {name: tensors[name].reshape(shape)}, folder / "model.safetensors")
        assert torch.equal(load_llama(folder)[0](ids), expected)


def test_an_embedding_in_4_bits_is_refused(folder, monkeypatch):
    path = folder / "model.safetensors"
    save_file(quantise(load_file(path), names=("embed_tokens",)), path)
    assert "embed_tokens.weight is in 4 bits; only the blocks' linears may be" in refusal(folder, monkeypatch)


def test_gigabytes_of_statistics_are_refused_unread(folder, monkeypatch):
    path = folder / "model.safetensors"
    header, data = header_of(path)
    for at, part in enumerate((".absmax", f".{FACTS}"), 1):
        n = len(data) + (at - 1) * 2**33
        old = header.pop(UP + part)["data_offsets"]
        name = (
            f"model.layers.{at}.self_attn.rotary_emb.inv_freq"  # which old checkpoints hold, and is ignored
        )
        header[name] = {"dtype": "U8", "shape": [old[1] - old[0]], "data_offsets": old}
        header[UP + part] = {"dtype": "U8", "shape": [2**33], "data_offsets": [n, n + 2**33]}
    write(path, header, data)
    os.truncate(path, path.stat().st_size + 2 * 2**33)  # sparse: 16 GiB that take no disk space
    start = time.perf_counter()
    assert f"{UP} is no NF4" in refusal(folder, monkeypatch)
    assert time.perf_counter() - start < 0.5

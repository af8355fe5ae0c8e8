"""A base's folder on disk: what loads, and that whatever is wrong with it is told before weights are read."""

import json
import os
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from llamaxr.errors import UserError
from llamaxr.files.checkpoint_tensors import CheckpointTensors
from llamaxr.weights import load_llama

UP = "model.layers.1.mlp.up_proj.weight"  # (128, 64) fp32, as the tests' base has it
GATE = "model.layers.1.mlp.gate_proj.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture()
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "copy")


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def header_of(path):
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:start]), raw[start:]


def write(path, header, data):
    """A safetensors file by hand: length, header (bytes, or what becomes JSON), data."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)


def shard(folder, halves):
    """Cut model.safetensors into the files that halves names, file -> names of tensors; with an index."""
    tensors = load_file(folder / "model.safetensors")
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    index = {"weight_map": {name: file for file, names in halves.items() for name in names}}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def refusal(folder):
    """The one line with which a folder is refused; no tensor may be read before."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as caught:
        for method in ("read", "nf4"):
            patch.setattr(CheckpointTensors, method, lambda self, name, *_: pytest.fail(f"{name} was read"))
        load_llama(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def test_shards_give_the_same_model_as_one_file(folder, base):
    names = sorted(load_file(folder / "model.safetensors"))
    shard(folder, {"a.safetensors": names[::2], "b.safetensors": names[1::2]})
    ids = torch.randint(3, 400, (1, 9))
    with torch.no_grad():
        assert torch.equal(load_llama(folder)[0](ids), load_llama(base)[0](ids))


def test_files_may_be_links_as_in_the_hubs_cache(folder, base, tmp_path):
    (tmp_path / "blobs").mkdir()
    for file in list(folder.iterdir()):
        blob = shutil.move(file, tmp_path / "blobs" / f"{file.stat().st_ino}")
        os.symlink(blob, file)
    assert load_llama(folder)[0].config == load_llama(base)[0].config


def test_nf4_holds_the_blocks_linears_only(base):
    model, _ = load_llama(base, "nf4")
    assert type(model.layers[0].mlp.up_proj).__name__ == "NF4Linear"
    assert model.embed_tokens.weight.dtype == torch.float32
    assert not any(p.requires_grad for p in model.parameters())


def test_frequencies_of_old_checkpoints_and_a_copied_head_are_passed_over(folder, base):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, folder / "model.safetensors")
    ids = torch.randint(3, 400, (1, 9))
    with torch.no_grad():
        assert torch.equal(load_llama(folder)[0](ids), load_llama(base)[0](ids))


@pytest.mark.parametrize("file, content, named", [
    ("config.json", None, "config.json is missing"), ("config.json", "{", "config.json is damaged"),
    ("tokenizer.json", None, "neither tokenizer.json nor tokenizer.model"),
    ("tokenizer.json", "[1,", "tokenizer.json"),
])  # fmt: skip
def test_a_missing_or_damaged_file_is_named(folder, file, content, named):
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    assert named in refusal(folder)


def test_an_unknown_rule_that_cuts_words_is_named(folder):
    edit(folder / "tokenizer.json", pre_tokenizer={"type": "Metaspace"})
    assert "Metaspace" in refusal(folder)


def test_a_tokenizer_with_ids_that_the_model_lacks_is_refused(folder):
    edit(folder / "config.json", vocab_size=100)
    assert "the tokenizer has 385 ids, the model 100" in refusal(folder)


def test_a_config_of_another_size_than_the_weights_is_refused(folder):
    edit(folder / "config.json", intermediate_size=256)
    assert "mlp.down_proj.weight has shape (64, 128), config.json says (64, 256)" in refusal(folder)


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_not_opened(folder, pickled):
    (folder / "model.safetensors").rename(folder / pickled)
    assert "no model.safetensors; pickled weights (.bin, .pth) are not opened" in refusal(folder)


@pytest.mark.parametrize("raw", [
    b"", b"\x10\0\0", (2**40).to_bytes(8, "little") + b"{}", (2**64 - 1).to_bytes(8, "little") + b"{}",
    (1000).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]",
    (2).to_bytes(8, "little") + b"\xff\xfe", (9**5).to_bytes(8, "little") + b"[" * 9**5,
    (2).to_bytes(8, "little") + b"{}trailing", b"PK\x03\x04" + b"\0" * 100,
])  # fmt: skip
def test_what_is_no_safetensors_file_is_refused(folder, raw):
    (folder / "model.safetensors").write_bytes(raw)
    assert "model.safetensors " in refusal(folder)


def test_a_file_that_was_cut_off_is_refused(folder):
    path = folder / "model.safetensors"
    for keep in (-1, -1000, 500):
        path.write_bytes(path.read_bytes()[:keep])
        assert "model.safetensors cannot be read" in refusal(folder)


LIES = {  # what a header says of UP, and what the refusal must name
    "overlapping": (lambda h: h[UP].update(data_offsets=h[GATE]["data_offsets"]), "cannot be read"),
    "out of range": (lambda h: h[UP].update(data_offsets=[10**9, 10**9 + 32768]), "cannot be read"),
    "backwards": (lambda h: h[UP].update(data_offsets=h[UP]["data_offsets"][::-1]), "cannot be read"),
    "negative": (lambda h: h[UP].update(data_offsets=[-32768, 0]), "cannot be read"),
    "a shape of another size": (lambda h: h[UP].update(shape=[128, 128]), "cannot be read"),
    "a shape past all numbers": (lambda h: h[UP].update(shape=[2**62, 2**62, 16]), "cannot be read"),
    "an unknown dtype": (lambda h: h[UP].update(dtype="F7"), "cannot be read"),
    "a name with line ends": (lambda h: h.update({"a\nb" * 10**4: h.pop("model.norm.weight")}), "lacks 1"),
    "turned": (lambda h: h[UP].update(shape=[64, 128]), f"{UP} has shape (64, 128)"),
    "flat": (lambda h: h[UP].update(shape=[128 * 64]), f"{UP} has shape (8192,)"),
    "a scalar's dimensions": (lambda h: h[UP].update(shape=[128, 64, 1, 1]), f"{UP} has shape"),
    "missing": (lambda h: h.update({GATE + "s": h.pop(UP)}), f"lacks 1 tensors, first {UP}"),
    "one of nothing": (lambda h: h.update({"model.layers.9.mlp.up_proj.weight": {
        "dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}), "unexpected tensor 'model.layers.9"),
    "a name of many lines": (lambda h: h.update({"a\nb" * 10**4: {
        "dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}), "unexpected tensor 'a ba b"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(folder, lie):
    change, named = LIES[lie]
    header, data = header_of(folder / "model.safetensors")
    change(header)
    write(folder / "model.safetensors", header, data)
    message = refusal(folder)
    assert named in message and ("model.safetensors" in message or "lacks" in message)


@pytest.mark.parametrize("dtype, n_columns", {
    "I32": 64, "U8": 256, "I8": 256, "F8_E4M3": 256, "F8_E5M2": 256, "I64": 32, "F64": 32, "BOOL": 256,
}.items())  # fmt: skip
def test_a_weight_of_another_dtype_is_refused(folder, dtype, n_columns):
    header, data = header_of(folder / "model.safetensors")
    header[UP].update(dtype=dtype, shape=[128, n_columns])  # as many bytes as before
    write(folder / "model.safetensors", header, data)
    assert f"model.safetensors: {UP} is {dtype}; supported are BF16, F16, F32 and NF4" in refusal(folder)


def test_a_header_of_a_million_tensors_is_refused_unread(folder):
    with (folder / "model.safetensors").open("wb") as file:
        file.write((99 * 10**6).to_bytes(8, "little"))
        file.truncate(10**8)
    assert "header of 99000000 bytes" in refusal(folder)


def test_gigabytes_of_the_wrong_shape_are_refused_unread(folder):
    path = folder / "model.safetensors"
    header, data = header_of(path)
    begin, _ = header.pop(UP)["data_offsets"]
    n_bytes = 4 * 2**17 * 2**14
    header[UP] = {"dtype": "F32", "shape": [2**17, 2**14], "data_offsets": [len(data), len(data) + n_bytes]}
    hole = {"dtype": "F32", "shape": [128, 64], "data_offsets": [begin, begin + 32768]}
    header["rotary_emb.inv_freq"] = hole  # which may stand there, and is passed over
    write(path, header, data)
    os.truncate(path, path.stat().st_size + n_bytes)  # sparse: 8 GiB that take no room
    start = time.perf_counter()
    assert f"{UP} has shape (131072, 16384)" in refusal(folder)
    assert time.perf_counter() - start < 0.5


def test_a_tensor_in_two_shards_is_refused(folder):
    names = sorted(load_file(folder / "model.safetensors"))
    shard(folder, {"a.safetensors": [*names[:9], UP], "b.safetensors": [*names[9:], UP]})
    assert f"b.safetensors: '{UP}' is in a.safetensors too" in refusal(folder)


@pytest.mark.parametrize("name", [
    "absent.safetensors", "../outside.safetensors", "/etc/passwd", "sub/inside.safetensors", ".", "..", "",
    "a\0b", "model\nof\nlines", "x" * 5000, "copy/../outside.safetensors", 5, None, ["a"],
])  # fmt: skip
def test_an_index_that_names_no_file_of_the_folder_is_refused(folder, name):
    shard(folder, {"a.safetensors": list(load_file(folder / "model.safetensors"))})
    (folder / "sub").mkdir()
    for place in (folder.parent / "outside.safetensors", folder / "sub" / "inside.safetensors"):
        shutil.copy(folder / "a.safetensors", place)
    edit(folder / INDEX, weight_map={UP: name})
    assert INDEX in refusal(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}',
                                     '{"weight_map": {"a": ' + "[" * 10**5])  # fmt: skip
def test_an_index_that_is_none_is_refused(folder, content):
    shard(folder, {"a.safetensors": list(load_file(folder / "model.safetensors"))})
    (folder / INDEX).write_text(content)
    assert INDEX in refusal(folder)


def test_a_huge_index_is_refused_unread(folder):
    (folder / "model.safetensors").unlink()
    (folder / INDEX).touch()
    os.truncate(folder / INDEX, 2**36)
    assert "more than 8388608 bytes" in refusal(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither a folder"):
        load_llama(tmp_path / "nothing")

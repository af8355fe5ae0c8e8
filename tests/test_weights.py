import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llamaxr.errors import UserError
from llamaxr.weights import load_llama


@pytest.fixture()
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "copy")


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_shards_give_the_same_model_as_one_file(folder, base):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({k: tensors[k] for k in keys}, folder / file)
    index = {"weight_map": {k: file for file, keys in halves.items() for k in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    ids = torch.randint(3, 400, (1, 9))
    with torch.no_grad():
        assert torch.equal(load_llama(folder)[0](ids), load_llama(base)[0](ids))


def test_nf4_holds_the_blocks_linears_only(base):
    model, _ = load_llama(base, "nf4")
    assert type(model.layers[0].mlp.up_proj).__name__ == "NF4Linear"
    assert model.embed_tokens.weight.dtype == torch.float32
    assert not any(p.requires_grad for p in model.parameters())


def break_it(folder, how):
    weights, config = folder / "model.safetensors", folder / "config.json"
    tensors = load_file(weights)
    name = "model.layers.1.mlp.up_proj.weight"
    match how:
        case "no config":
            config.unlink()
        case "config is no JSON":
            config.write_text("{")
        case "another architecture":
            edit(config, model_type="mistral")
        case "unknown rope type":
            edit(config, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4})
        case "no weights":
            weights.rename(folder / "pytorch_model.bin")
        case "truncated weights":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "header past the end":
            weights.write_bytes((2**40).to_bytes(8, "little") + b"{}")
        case "missing tensor":
            del tensors[name]
            save_file(tensors, weights)
        case "unexpected tensor":
            save_file(tensors | {"model.layers.9.mlp.up_proj.weight": torch.zeros(2, 2)}, weights)
        case "wrong shape":
            save_file(tensors | {name: torch.zeros(2, 2)}, weights)
        case "index outside the folder":
            weights.unlink()
            index = {"weight_map": {name: "../evil.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        case "index of numbers":
            weights.unlink()
            (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 5}}')
        case "no heads":
            edit(config, num_attention_heads=0, head_dim=None)
        case "negative width":
            edit(config, hidden_size=-1)
        case "endless layers":
            edit(config, num_hidden_layers=float("inf"))
        case "tokenizer larger than the vocabulary":
            edit(config, vocab_size=100)
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "tokenizer is no JSON":
            (folder / "tokenizer.json").write_text("[1,")
        case "unknown word rule":
            edit(folder / "tokenizer.json", pre_tokenizer={"type": "Metaspace"})


@pytest.mark.parametrize("how, named", [
    ("no config", "config.json"), ("config is no JSON", "config.json"), ("another architecture", "mistral"),
    ("unknown rope type", "yarn"), ("no weights", "no model.safetensors"), 
    ("truncated weights", "model.safetensors"),
    ("header past the end", "model.safetensors"), ("missing tensor", "model?.layers.1.mlp.up_proj"),
    ("unexpected tensor", "layers.9"), ("wrong shape", "layers.1.mlp.up_proj"),
    ("index outside the folder", "evil"), ("index of numbers", "index.json"), ("no heads", "config.json"),
    ("negative width", "config.json"), ("endless layers", "config.json"),
    ("tokenizer larger than the vocabulary", "tokenizer"),
    ("no tokenizer", "tokenizer.json"), ("tokenizer is no JSON", "tokenizer.json"), 
    ("unknown word rule", "Metaspace"),
])  # fmt: skip
def test_a_broken_base_is_refused_by_name(folder, how, named):
    break_it(folder, how)
    with pytest.raises(UserError) as caught:
        load_llama(folder)
    assert named.replace("model?.", "") in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither a folder"):
        load_llama(tmp_path / "nothing")

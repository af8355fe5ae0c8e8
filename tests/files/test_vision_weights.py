"""Where weights come from: names, files, and the safetensors that a pickle is converted to."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import densenet121, get_model_weights

from llamaxr.errors import UserError
from llamaxr.files import vision_weights
from llamaxr.files.vision_weights import KNOWN, OP_THRESHS, known_file, read_weights
from llamaxr.runs.vision_zoo import load_vision

WEIGHTS = {"features.norm0.weight": torch.arange(3.0), "features.norm0.bias": torch.ones(2, 2).t()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_pickle_is_unpickled_once_and_then_read_as_safetensors(tmp_path, monkeypatch):
    torch.save(WEIGHTS, tmp_path / "w.pth")
    first = read_weights(tmp_path / "w.pth", tmp_path / "cache")
    (converted,) = (tmp_path / "cache").iterdir()
    assert (
        converted.suffix == ".safetensors"
        and first.hash[:32] in converted.name
        and same(load_file(converted), WEIGHTS)
    )

    def never(path):
        raise AssertionError("unpickled again")

    monkeypatch.setattr(vision_weights, "read_pickled", never)
    second = read_weights(tmp_path / "w.pth", tmp_path / "cache")
    assert same(first.tensors, second.tensors) and first.hash == second.hash
    monkeypatch.undo()
    converted.write_bytes(converted.read_bytes()[:50])  # damaged: made again
    assert same(read_weights(tmp_path / "w.pth", tmp_path / "cache").tensors, WEIGHTS)
    assert same(load_file(converted), WEIGHTS)


def test_without_a_cache_nothing_is_written(tmp_path):
    torch.save(WEIGHTS, tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth").tensors, WEIGHTS)
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


def test_other_content_or_other_operating_points_have_another_hash(tmp_path):
    name = next(iter(OP_THRESHS))
    torch.save(WEIGHTS, tmp_path / "w.pth")
    (tmp_path / name).write_bytes((tmp_path / "w.pth").read_bytes())
    a, b = read_weights(tmp_path / "w.pth", tmp_path), read_weights(tmp_path / name, tmp_path)
    assert "op_threshs" not in a.tensors
    assert torch.equal(b.tensors["op_threshs"], torch.tensor(OP_THRESHS[name]))
    assert a.hash != b.hash
    torch.save({k: t + 1 for k, t in WEIGHTS.items()}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").hash != a.hash


def test_layers_named_as_until_2018_get_current_names(tmp_path):
    net = densenet121()
    truth = net.state_dict()
    old = {k.replace("norm1", "norm.1").replace("norm2", "norm.2").replace("conv1", "conv.1")
           .replace("conv2", "conv.2"): t for k, t in truth.items() if "num_batches" not in k}  # fmt: skip
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_vision(tmp_path / "old.pth").n_channels == 1024


def test_safetensors_are_hashed_as_they_are(tmp_path):
    save_file({k: t.contiguous() for k, t in WEIGHTS.items()}, tmp_path / "w.safetensors")
    stored = read_weights(tmp_path / "w.safetensors", tmp_path / "cache")
    assert stored.hash == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    assert not (tmp_path / "cache").exists()


def test_a_known_name_is_downloaded_from_its_published_address_into_the_cache(tmp_path, monkeypatch):
    requests = []

    def download(url, target, progress, sha256, warn):
        requests.append((url, target, progress))
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(WEIGHTS, target)
        return target

    monkeypatch.setattr(vision_weights, "download", download)
    name, progress = "densenet121-res224-all", lambda *_: None
    path = known_file(name, tmp_path, progress)
    assert requests == [(KNOWN[name], path, progress)] and path.is_relative_to(tmp_path)
    assert path.name.startswith("nih-pc-chex-mimic_ch-google-openi-kaggle-densenet121-d121-tw-lr001-")
    monkeypatch.undo()
    by_hand = tmp_path / "weights" / "vit_b_16-c867db91.pth"
    by_hand.write_bytes(b"another")
    with pytest.raises(UserError, match="vit_b_16-c867db91.pth is not the file"):  # by the hash in its name
        known_file("vit_b_16-imagenet", tmp_path)
    with pytest.raises(UserError, match="best.pt holds the weights of no known network"):
        load_vision(name, cache=tmp_path)


def test_a_name_without_a_cache_says_where_to_get_the_file():
    with pytest.raises(UserError, match="https://github.com/mlmed/torchxrayvision"):
        load_vision("densenet121-res224-all")


@pytest.mark.parametrize("name", ["nowhere.pt", "nowhere.safetensors", "densenet121", ""])
def test_a_missing_file_or_unknown_name_is_refused_with_the_known_names(name):
    with pytest.raises(UserError, match="densenet121-res224-all"):
        load_vision(name)


@pytest.mark.parametrize("name", ["densenet121", "convnext_tiny", "vit_b_16"])
def test_imagenet_weights_come_from_where_torchvision_has_them(name):
    assert KNOWN[f"{name}-imagenet"] == get_model_weights(name).DEFAULT.url

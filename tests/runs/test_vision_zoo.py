"""Vision networks by name or file: each loads as the network that its weights come from, or is refused."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torchvision.models import get_model
from torchvision.transforms.functional import normalize

from llamaxr.errors import UserError
from llamaxr.runs.recipes import apply_recipe
from llamaxr.runs.run import build
from llamaxr.runs.vision_zoo import TINY, TINY_WEIGHTS, ImageNetVision, _network_for, load_vision
from llamaxr.vision import DENSENET121, Vision


def radiographs(n=2):
    return torch.rand(n, 1, 224, 224, generator=torch.Generator().manual_seed(0)) * 2048 - 1024


@pytest.fixture(scope="module")
def large():
    torch.manual_seed(0)
    return Vision(DENSENET121).eval()


def test_a_file_without_an_architecture_is_densenet_121(large, tmp_path):
    save_file(large.net.state_dict(), tmp_path / "w.safetensors")
    loaded = load_vision(tmp_path / "w.safetensors")
    assert loaded.n_channels == 1024
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), large.parameters(), strict=True))


def bad(path, what):
    tensors = load_file(TINY_WEIGHTS)
    if what == "truncated":
        path.write_bytes(TINY_WEIGHTS.read_bytes()[:1000])
    elif what == "cut":
        path.write_bytes(TINY_WEIGHTS.read_bytes()[:-1000])
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "of another architecture":
        save_file(tensors, path)  # no metadata: taken for DenseNet-121
    elif what == "short of a tensor":
        tensors.pop("classifier.bias")
        save_file(tensors, path, {"densenet": json.dumps(TINY)})
    elif what in ("{", "7", '{"block_config": [2]}', '{"growth_rate": 9999, "block_config": [1]}'):
        save_file(tensors, path, {"densenet": what})
    return path


@pytest.mark.parametrize(
    "what",
    ["missing", "truncated", "cut", "empty", "of another architecture", "short of a tensor",
     "{", "7", '{"block_config": [2]}', '{"growth_rate": 9999, "block_config": [1]}'],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, what):
    with pytest.raises(UserError, match="weights.safetensors"):
        load_vision(bad(tmp_path / "weights.safetensors", what))


def test_an_unknown_name_is_refused_with_those_that_are_known():
    with pytest.raises(UserError, match="densenet121-res224-all"):
        load_vision("densenet121")


@pytest.mark.parametrize("name", ["densenet121", "convnext_tiny"])
def test_imagenet_weights_give_torchvisions_own_outputs(tmp_path, name):
    torch.manual_seed(0)
    net = get_model(name).eval()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    vision, x = load_vision(tmp_path / "w.pth"), radiographs(2)
    with torch.inference_mode():
        grid = vision.features(x)
        theirs = net(as_imagenet(x))
        head = net.classifier(grid.mean(dim=(2, 3)) if name == "densenet121" else net.avgpool(grid))
    assert grid.shape == (2, vision.n_channels, 7, 7) and not vision.has_scores
    assert vision.scores(grid).shape == (2, 0)
    torch.testing.assert_close(head, theirs, rtol=1e-5, atol=1e-5)


def test_the_vision_transformers_grid_is_its_patches_four_by_four_in_place():
    torch.manual_seed(0)
    vision, encoded, x = ImageNetVision("vit_b_16").eval(), [], radiographs(1)
    vision.net.encoder.register_forward_hook(lambda *args: encoded.append(args[-1]))
    with torch.inference_mode():
        vision.net(as_imagenet(x))
        grid = vision.features(x)
    patches = encoded[0][0, 1:].view(14, 14, 768)
    assert grid.shape == (1, 768, 7, 7)
    torch.testing.assert_close(grid[0, :, 2, 5], patches[4:6, 10:12].mean(dim=(0, 1)), rtol=1e-5, atol=1e-5)
    with torch.device("meta"):
        assert (
            _network_for(vision.net.state_dict(), {}).grid is vision.grid
        )  # recognised by its weights' names


def as_imagenet(x):
    """What torchvision's own transform makes of a grey image of 224 x 224, its resize and crop apart."""
    rgb = ((x + 1024) / 2048).expand(-1, 3, -1, -1)
    return normalize(rgb, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_bridges_of_scores_are_refused_where_there_are_none(tmp_path):
    torch.save(get_model("densenet121").state_dict(), tmp_path / "w.pth")
    for bridge in ("scores", "both"):
        options = apply_recipe("sample", vision=str(tmp_path / "w.pth"), bridge=bridge, cache=tmp_path)
        with pytest.raises(UserError, match="--bridge tokens"):
            build(options, torch.device("cpu"))


def test_operating_points_that_are_none_are_refused(tmp_path):
    for points in (torch.zeros(18), torch.full((17,), 0.5), torch.full((18,), 1.0)):
        tensors = load_file(TINY_WEIGHTS) | {"op_threshs": points}
        save_file(tensors, tmp_path / "w.safetensors", {"densenet": json.dumps(TINY)})
        with pytest.raises(UserError, match="w.safetensors.*op_threshs"):
            load_vision(tmp_path / "w.safetensors")


def test_the_embedded_network_is_small_frozen_and_tells_images_apart():
    vision = load_vision("tiny")
    assert sum(p.numel() for p in vision.parameters()) < 1e6 and not vision.training
    assert not any(p.requires_grad for p in vision.parameters()) and len(vision.hash) == 64
    grids = vision.features(radiographs(2))
    assert not torch.allclose(grids[0], grids[1])


def test_features_and_scores_are_those_of_the_bare_network():
    vision = load_vision("tiny")
    assert vision.op_threshs is None and vision.has_scores
    net = Vision(TINY).eval()
    net.net.load_state_dict(load_file(TINY_WEIGHTS))
    with torch.inference_mode():
        x = radiographs(1)
        grid = F.relu(net.net.features(x))
        assert torch.equal(vision.features(x), grid)
        assert torch.equal(vision.scores(grid), net.net.classifier(grid.mean(dim=(2, 3))).sigmoid())

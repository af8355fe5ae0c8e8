"""Vision on torchxrayvision's weights against torchxrayvision itself: same file, same image, same numbers."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from llamaxr.files.vision_weights import KNOWN, OP_THRESHS, XRV_SETS
from llamaxr.radiograph import load_radiograph
from llamaxr.runs.vision_zoo import load_vision
from llamaxr.vision import PATHOLOGIES

xrv = pytest.importorskip("torchxrayvision")


@pytest.fixture(scope="module")
def network():
    """The library's DenseNet with random weights, its batch norms as after training on radiographs."""
    torch.manual_seed(0)
    net = xrv.models.DenseNet(num_classes=18)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    net.features.norm0.running_var.fill_(1e6)  # raw values reach 1024
    torch.nn.init.normal_(net.classifier.weight, std=0.02)
    torch.nn.init.normal_(net.classifier.bias, mean=-3)  # probabilities around the operating points
    return net.eval()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)).save(path)
    return path


def as_the_library_reads(image):
    return torch.from_numpy(xrv.datasets.XRayCenterCrop()(xrv.utils.load_image(str(image))))[None]


@pytest.mark.parametrize("name, zipped", [("all", False), ("all", True), ("chex", False)])
def test_a_published_weight_file_gives_the_librarys_own_scores(tmp_path, network, image, name, zipped):
    file = tmp_path / KNOWN[f"densenet121-res224-{name}"].rpartition("/")[2]
    torch.save(network, file, _use_new_zipfile_serialization=zipped)  # as its training script does
    peer = xrv.models.DenseNet(weights=f"densenet121-res224-{name}", cache_dir=tmp_path)
    vision = load_vision(file, cache=tmp_path / "cache")
    with torch.inference_mode():
        theirs, raw = as_the_library_reads(image), load_radiograph(image)[None]
        grid = vision.features(raw)
        scores = peer(theirs)
        torch.testing.assert_close(raw, theirs, rtol=0, atol=1e-5 * 1024)
        torch.testing.assert_close(grid.mean(dim=(2, 3)), peer.features2(theirs), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(vision.scores(grid), scores, rtol=1e-5, atol=1e-5)
    labelled = [bool(p) for p in peer.pathologies]
    assert [s != 0.5 for s in vision.scores(grid)[0]] == labelled  # calibrated, both sides of a point
    assert (scores[0] > 0.5).any() and (scores[0] < 0.5).any()
    again = load_vision(file, cache=tmp_path / "cache")  # from the converted safetensors
    assert again.hash == vision.hash and torch.equal(again.scores(grid), vision.scores(grid))


def test_a_network_saved_with_its_operating_points_keeps_them(tmp_path, network, image):
    points = torch.tensor([0.1] * 17 + [math.nan])
    peer = xrv.models.DenseNet(num_classes=18, op_threshs=points)
    peer.load_state_dict(network.state_dict() | {"op_threshs": points})
    torch.save(peer.eval(), tmp_path / "mine.pt")
    vision = load_vision(tmp_path / "mine.pt")
    with torch.inference_mode():
        raw = load_radiograph(image)[None]
        torch.testing.assert_close(vision.scores(vision.features(raw)), peer(raw), rtol=1e-5, atol=1e-5)


def test_without_operating_points_scores_are_probabilities(tmp_path, network, image):
    torch.save(network, tmp_path / "mine.pt")
    vision = load_vision(tmp_path / "mine.pt")
    with torch.inference_mode():
        raw = load_radiograph(image)[None]
        torch.testing.assert_close(
            vision.scores(vision.features(raw)), network(raw).sigmoid(), rtol=1e-5, atol=1e-5
        )


def test_the_table_is_the_librarys():
    theirs = {k: v for k, v in xrv.models.model_urls.items() if k.startswith("densenet121-res224-")}
    assert theirs.keys() == {name for name in KNOWN if "-res224-" in name}
    for name, entry in theirs.items():
        assert KNOWN[name] == entry["weights_url"]
        points = OP_THRESHS[entry["weights_url"].rpartition("/")[2]]
        torch.testing.assert_close(torch.tensor(points), torch.tensor(entry["op_threshs"]), equal_nan=True)
        labelled = [p * (not math.isnan(t)) for p, t in zip(PATHOLOGIES, points, strict=True)]
        assert labelled == entry["labels"]
        assert XRV_SETS[name.removeprefix("densenet121-res224-")][1] == points

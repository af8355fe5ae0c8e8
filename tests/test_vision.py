"""The vision network is torchxrayvision's DenseNet, and takes radiographs in their range only."""

import pytest
import torch
from torchvision.models import densenet121

from llamaxr.vision import DENSENET121, PATHOLOGIES, Vision, extract_features


def radiographs(n=2):
    return torch.rand(n, 1, 224, 224, generator=torch.Generator().manual_seed(0)) * 2048 - 1024


@pytest.fixture(scope="module")
def large():
    torch.manual_seed(0)
    return Vision(DENSENET121).eval()


def test_the_large_network_is_densenet_121_with_one_grey_channel(large):
    peer = densenet121(num_classes=18)
    numbers = sum(p.numel() for p in peer.parameters()) - 2 * 64 * 7 * 7  # the stem's other two channels
    assert sum(p.numel() for p in large.net.parameters()) == numbers
    assert large.net.state_dict().keys() == peer.state_dict().keys()
    with torch.inference_mode():
        grid = large.features(radiographs(1))
    assert grid.shape == (1, 1024, 7, 7) and grid.amin() >= 0
    assert large.scores(grid).shape == (1, 18)


def test_pathologies_are_in_torchxrayvisions_order():
    xrv = pytest.importorskip("torchxrayvision")
    assert list(PATHOLOGIES) == list(xrv.datasets.default_pathologies)


def test_features_and_scores_equal_torchxrayvisions_for_the_same_weights(large):
    xrv = pytest.importorskip("torchxrayvision")
    peer = xrv.models.DenseNet(num_classes=18, in_channels=1, apply_sigmoid=True).eval()
    large.net.load_state_dict(peer.state_dict())
    x = radiographs(1)
    with torch.inference_mode():
        grid = large.features(x)
        # the same operations in the same order
        torch.testing.assert_close(grid.mean(dim=(2, 3)), peer.features2(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(large.scores(grid), peer(x), rtol=1e-5, atol=1e-5)


def test_radiographs_scaled_to_one_trip_the_assertion(large):
    with pytest.raises(AssertionError, match="1024"):
        large.features(radiographs(1) / 1024)


def test_extracted_features_are_the_networks_in_half_precision(large):
    x = radiographs(2)
    grids, scores = extract_features(large, list(x), torch.device("cpu"))
    with torch.inference_mode():
        expected = large.features(x.to(memory_format=torch.channels_last))
    assert torch.equal(grids, expected.half()) and torch.equal(scores, large.scores(expected))

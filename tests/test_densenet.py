import pytest
import torch
import torchvision

from llamaxr.densenet import DenseNet
from llamaxr.runs.vision_zoo import TINY
from llamaxr.vision import DENSENET121


@pytest.mark.parametrize("architecture", [DENSENET121, TINY])
def test_it_is_torchvisions_densenet_with_its_names_and_numbers(architecture):
    torch.manual_seed(0)
    theirs = torchvision.models.densenet.DenseNet(**architecture, num_classes=18)
    ours = DenseNet(**architecture, in_channels=3, n_classes=18)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics other than 0 and 1
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 96, 96)  # a grid of 3 x 3
    for mode in (False, True):  # in training mode the norms use the batch, and gradients reach all layers
        y, z = ours.train(mode)(x), theirs.train(mode)(x)
        assert torch.allclose(y, z, atol=1e-5 * z.abs().max().item())
        ours.zero_grad(), theirs.zero_grad()
        y.sum().backward(), z.sum().backward()
        grads = {name: p.grad for name, p in theirs.named_parameters()}
        for name, p in ours.named_parameters():
            assert torch.allclose(p.grad, grads[name], rtol=1e-2, atol=1e-3 * grads[name].abs().max().item())


def test_its_convolutions_start_as_torchvisions_do():
    torch.manual_seed(0)
    ours = DenseNet(**DENSENET121, in_channels=3, n_classes=18)
    theirs = torchvision.models.densenet.DenseNet(num_classes=18)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert p.shape == q.shape
        if p.dim() == 4:
            assert p.std().item() == pytest.approx(q.std().item(), rel=0.1), name
    assert not ours.classifier.bias.any()

"""DenseNet (Huang et al. 2017, the form with bottlenecks and compression): the network that sees.

Each layer reads everything that its block has computed so far and adds growth_rate channels to it. Between
blocks a transition halves the channels and the sides. An image of 224 x 224 ends as a grid of 7 x 7.

Names are torchvision's, so that its weights and torchxrayvision's load by name. The network is written out
here because importing torchvision takes a second.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """x (n, channels, side, side) -> (n, channels + growth_rate, side, side)."""

    def __init__(self, channels: int, growth_rate: int):
        super().__init__()
        bottleneck = 4 * growth_rate  # a 3x3 convolution of all channels would cost too much
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, bottleneck, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck)
        self.conv2 = nn.Conv2d(bottleneck, growth_rate, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.norm1(x), inplace=True))  # (n, bottleneck, side, side)
        new = self.conv2(F.relu(self.norm2(new), inplace=True))  # (n, growth_rate, side, side)
        return torch.cat([x, new], dim=1)


def dense_block(n_layers: int, channels: int, growth_rate: int) -> nn.Sequential:
    """(n, channels, side, side) -> (n, channels + n_layers * growth_rate, side, side)."""
    layers = (DenseLayer(channels + i * growth_rate, growth_rate) for i in range(n_layers))
    return nn.Sequential(OrderedDict((f"denselayer{i}", layer) for i, layer in enumerate(layers, 1)))


def transition(channels: int) -> nn.Sequential:
    """(n, channels, side, side) -> (n, channels / 2, side / 2, side / 2)."""
    return nn.Sequential(OrderedDict(
        norm=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True),
        conv=nn.Conv2d(channels, channels // 2, kernel_size=1, bias=False), pool=nn.AvgPool2d(2),
    ))  # fmt: skip


class DenseNet(nn.Module):
    """Images (n, in_channels, 224, 224) -> (n, n_classes). `features`: (n, channels, 7, 7), before a ReLU."""

    def __init__(
        self,
        growth_rate: int,
        block_config: list[int],
        num_init_features: int,
        in_channels: int,
        n_classes: int,
    ):
        super().__init__()
        channels = num_init_features
        parts = OrderedDict(
            conv0=nn.Conv2d(in_channels, channels, kernel_size=7, stride=2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(channels), relu0=nn.ReLU(inplace=True), pool0=nn.MaxPool2d(3, 2, padding=1),
        )  # fmt: skip
        for i, n_layers in enumerate(block_config, 1):
            parts[f"denseblock{i}"] = dense_block(n_layers, channels, growth_rate)
            channels += n_layers * growth_rate
            if i < len(block_config):
                parts[f"transition{i}"] = transition(channels)
                channels //= 2
        parts["norm5"] = nn.BatchNorm2d(channels)
        self.features, self.classifier = nn.Sequential(parts), nn.Linear(channels, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.relu(self.features(x)).mean(dim=(2, 3)))  # (n, n_classes)

"""The bridge from seeing to writing: a view's feature grid becomes soft tokens.

DenseNet's grid has a vector of features for each place in the image. Each becomes a vector in the language
model's embedding space, a "soft token", which takes the position of a word in the prompt. Two learned linear
layers do it, as in LLaVA-1.5 (Liu et al. 2023). A learned vector per view and place is added, so that side
and height, which reports name, are not lost. It is initialised from the language model's own words for the
place ("left" + "upper"), which even a model that has never seen an image can read.

All radiographs look alike to DenseNet: most of each feature is common to all, and the difference between two
patients is small beside it. So each channel is first standardised over the training studies to mean 0 and
standard deviation 1. Otherwise the language model needs epochs to notice the difference (docs/log.md).
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .radiograph import VIEWS

PLACE_WORDS = ("upper", "mid", "lower", "left", "right")


class Projector(nn.Module):
    """Standardise, linear, GELU, linear, + an embedding for each (view, place): random + name_places.

    in_channels: features per place. dim: the language model's width. grid: places per side after pooling (7
    keeps DenseNet's 49). token_std: the standard deviation of the language model's word embeddings. The soft
    tokens start near it, because a frozen model cannot use inputs a hundred times too large.
    """

    def __init__(self, in_channels: int, dim: int, grid: int = 7, token_std: float = 1.0):
        super().__init__()
        self.grid = grid
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("std", torch.ones(in_channels))
        self.fc1 = nn.Linear(in_channels, dim)
        self.fc2 = nn.Linear(dim, dim)
        row, column = torch.randn(len(VIEWS), grid, 1, dim), torch.randn(len(VIEWS), 1, grid, dim)
        self.place = nn.Parameter((row + column).flatten(1, 2) * token_std / 2)  # (n_views, n_tokens, dim)
        # fc1's default init and GELU turn inputs of std 1 into a root mean square near 0.34. Undo that.
        nn.init.normal_(self.fc2.weight, std=token_std / (0.34 * dim**0.5))
        nn.init.zeros_(self.fc2.bias)

    @property
    def n_tokens(self) -> int:
        """Soft tokens per view."""
        return self.grid * self.grid

    @torch.no_grad()
    def name_places(self, words: dict[str, Tensor]) -> None:
        """Add to each place's vector twice the embeddings (dim,) of its words: upper, mid, lower, or a blend
        of two, and in the frontal view left or right. The patient's right is at the left of the image."""
        middles = (torch.arange(self.grid) + 0.5) / self.grid  # (grid,) of rows and of columns, in [0, 1]
        thirds = torch.tensor([0.25, 0.45, 0.65])  # middles of the lungs' thirds, 0.2 apart, in film heights
        share = (1 - (middles.clamp(0.25, 0.65)[:, None] - thirds).abs() / 0.2).clamp(min=0)  # (grid, 3)
        zones = share.to(self.place) @ torch.stack([words[w] for w in PLACE_WORDS[:3]])  # (grid, dim)
        left = (middles.sub(0.5).sign() / 2 + 0.5)[:, None].to(zones)  # (grid, 1): 0, 1, or 0.5 in the middle
        frontal = zones[:, None] + left * words["left"] + (1 - left) * words["right"]  # (grid, grid, dim)
        lateral = zones[:, None].expand_as(frontal)
        self.place += 2 * torch.stack([frontal, lateral]).flatten(1, 2)  # twice: louder than the feature

    @torch.inference_mode()
    def standardise(self, studies: Iterable[Tensor]) -> None:
        """Set mean and std of each channel from the training studies' grids, each (n_views, channels, height,
        width). Called once, before training. Both are saved with the weights."""
        total, squares, n = 0.0, 0.0, 0
        for grids in studies:
            x = self.pooled(grids.double())  # (n_views, n_tokens, channels); double: large numbers cancel
            total, squares, n = total + x.sum((0, 1)), squares + x.square().sum((0, 1)), n + x[..., 0].numel()
        mean = total / n
        self.mean.copy_(mean)
        self.std.copy_((squares / n - mean.square()).clamp(min=0).sqrt())
        self.std.masked_fill_(self.std < 1e-6, 1.0)  # a dead channel: 0, not infinity

    def pooled(self, features: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, n_tokens, channels), row by row."""
        return F.adaptive_avg_pool2d(features, self.grid).flatten(2).transpose(1, 2)

    def forward(self, features: Tensor, views: Tensor) -> Tensor:
        """features (n, channels, height, width) and views (n,), indices in VIEWS -> (n, n_tokens, dim)."""
        x = (self.pooled(features) - self.mean) / self.std  # (n, n_tokens, channels)
        place = self.place.index_select(0, views)  # place[views]'s gradient adds up in varying order on a CPU
        return self.fc2(F.gelu(self.fc1(x))) + place  # (n, n_tokens, dim)

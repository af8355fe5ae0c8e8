import torch

from llamaxr.projector import Projector


def test_soft_tokens_follow_the_grid_row_by_row():
    projector = Projector(8, 16, grid=7)
    projector.place.data.zero_()
    features = torch.rand(1, 8, 7, 7)
    tokens = projector(features, torch.tensor([0]))
    mirrored = projector(features.flip(3), torch.tensor([0]))
    assert tokens.shape == (1, 49, 16)
    assert torch.allclose(mirrored.view(1, 7, 7, 16).flip(2), tokens.view(1, 7, 7, 16), atol=1e-6)


def test_side_survives_because_each_place_has_its_own_embedding():
    projector = Projector(8, 16)
    same_everywhere = torch.ones(1, 8, 7, 7) * torch.rand(1, 8, 1, 1)
    tokens = projector(same_everywhere, torch.tensor([0]))[0]
    assert not torch.allclose(tokens[0], tokens[6])
    assert not torch.allclose(tokens, projector(same_everywhere, torch.tensor([1]))[0])


def test_soft_tokens_start_with_the_spread_of_word_embeddings():
    torch.manual_seed(0)
    projector = Projector(256, 128, token_std=0.02)
    tokens = projector(torch.randn(4, 256, 7, 7), torch.zeros(4, dtype=torch.long))
    assert 0.015 < tokens.std().item() < 0.025


def test_a_smaller_grid_gives_fewer_tokens():
    assert Projector(8, 16, grid=3)(torch.rand(2, 8, 7, 7), torch.tensor([0, 1])).shape == (2, 9, 16)

import torch

from llamaxr.projector import PLACE_WORDS, Projector


def test_side_survives_because_each_place_has_its_own_embedding():
    projector = Projector(8, 16)
    same_everywhere = torch.ones(1, 8, 7, 7) * torch.rand(1, 8, 1, 1)
    tokens = projector(same_everywhere, torch.tensor([0]))[0]
    assert not torch.allclose(tokens[0], tokens[6])
    assert not torch.allclose(tokens, projector(same_everywhere, torch.tensor([1]))[0])


def test_a_mirrored_image_gives_other_tokens_and_not_the_same_ones_elsewhere():
    torch.manual_seed(0)
    projector, features = Projector(8, 16), torch.rand(1, 8, 7, 7)
    tokens = projector(features, torch.tensor([0])).view(7, 7, 16)
    mirrored = projector(features.flip(3), torch.tensor([0])).view(7, 7, 16)
    assert not torch.allclose(mirrored.flip(1), tokens, atol=1e-3)
    assert torch.allclose(
        mirrored[:, 3], tokens[:, 3], atol=1e-6
    )  # the middle column is its own mirror image


def test_permuting_places_before_and_after_is_the_same_except_for_the_place_embedding():
    torch.manual_seed(0)
    projector, features, order = Projector(8, 16), torch.rand(2, 8, 7, 7), torch.randperm(49)
    views = torch.tensor([1, 0])
    bare = lambda x: projector(x, views) - projector.place[views]
    permuted = features.flatten(2)[..., order].view_as(features)
    assert torch.allclose(bare(permuted), bare(features)[:, order], atol=1e-6)


def test_soft_tokens_start_with_the_spread_of_word_embeddings():
    torch.manual_seed(0)
    projector = Projector(256, 128, token_std=0.02)
    tokens = projector(torch.randn(4, 256, 7, 7), torch.zeros(4, dtype=torch.long))
    assert 0.015 < tokens.std().item() < 0.025


def test_places_start_with_their_words_and_the_patients_right_is_at_the_left():
    words = {word: torch.randn(16) for word in PLACE_WORDS}
    projector = Projector(8, 16, grid=5)  # rows at 0.1, 0.3, 0.5, 0.7 and 0.9 of the height
    projector.place.data.zero_()
    projector.name_places(words)
    frontal, lateral = projector.place.view(2, 5, 5, 16) / 2
    left, right, (upper, mid, lower) = words["left"], words["right"], (words[w] for w in PLACE_WORDS[:3])
    zones = upper, 0.75 * upper + 0.25 * mid, 0.75 * mid + 0.25 * lower, lower, lower
    for row, zone in enumerate(zones):
        expected = zone + torch.stack([right, right, (left + right) / 2, left, left])
        assert torch.allclose(frontal[row], expected, atol=1e-5)
        assert torch.allclose(lateral[row], zone.expand(5, 16), atol=1e-5)


def test_a_smaller_grid_gives_fewer_tokens():
    assert Projector(8, 16, grid=3)(torch.rand(2, 8, 7, 7), torch.tensor([0, 1])).shape == (2, 9, 16)


def test_features_are_standardised_over_all_training_studies_whatever_their_views():
    torch.manual_seed(0)
    projector = Projector(8, 16, grid=2)
    studies = [torch.rand(n, 8, 7, 7).half() * 5 + 100 for n in (1, 2, 2)]
    for grids in studies:
        grids[:, 7] = 3.0  # a channel is dead
    projector.standardise(studies)
    x = (projector.pooled(torch.cat(studies).float()) - projector.mean) / projector.std
    assert torch.allclose(x.mean((0, 1)), torch.zeros(8), atol=1e-3)
    assert torch.allclose(x.std((0, 1), unbiased=False), torch.tensor([1.0] * 7 + [0.0]), atol=1e-3)

"""Images unlike those that a run learned from: the distance, its limit, and what becomes of both."""

import numpy as np
import pytest
import torch

from llamaxr.data.phantom import phantom
from llamaxr.data.study import Study
from llamaxr.errors import UserError
from llamaxr.runs import unlike
from llamaxr.runs.checkpoint import write_tensors
from llamaxr.runs.vision_zoo import load_vision
from llamaxr.tools.vision_train import to_radiographs
from llamaxr.vision import StudyFeatures

CHANNELS = 3


def features(grids, views=(0,)):
    return StudyFeatures(list(views), grids, torch.zeros(len(grids), 18))


def normal_studies(n, seed, views=(0,), scale=1.0):
    """Studies whose features have a normal square root, as a Mahalanobis distance supposes."""
    generator = torch.Generator().manual_seed(seed)
    grids = 20 + scale * torch.randn(n, len(views), CHANNELS, 2, 2, generator=generator)  # 1 place a quarter
    return [features(grid.square(), views) for grid in grids]


@pytest.fixture(scope="module")
def known():
    return unlike.fit(normal_studies(2000, 0), normal_studies(1000, 1))


def test_the_distance_is_mahalanobis_where_the_covariance_has_full_rank(monkeypatch):
    studies = normal_studies(400, 0)
    monkeypatch.setattr(unlike, "DIRECTIONS", 4 * CHANNELS - 1)  # the rest is then one dimension: exact
    known = unlike.fit(studies, studies)
    x = torch.stack([study.grids[0].sqrt().flatten() for study in studies[::2]])  # the rest sets the limit
    z = ((x - x.mean(0)) / x.std(0)).double()
    exact = torch.einsum("ni,ij,nj->n", z, torch.linalg.inv(z.T @ z / len(z)), z).sqrt()
    ours = torch.tensor([unlike.distance(known, s) for s in studies[::2]]) * known["limit.frontal"]
    assert torch.allclose(ours.double(), exact, rtol=1e-2)


def test_the_limit_leaves_one_new_study_in_two_hundred_above(known):
    beyond = [unlike.distance(known, s) > 1 for s in normal_studies(4000, 2)]
    assert 0.001 < np.mean(beyond) < 0.012


def test_images_that_differ_more_are_far(known):
    assert min(unlike.distance(known, study) for study in normal_studies(50, 3, scale=4.0)) > 1


def test_each_view_is_judged_by_itself_and_a_study_by_its_worst():
    both = [normal_studies(300, seed, views=(0, 1)) for seed in (0, 1)]
    for split in both:
        for study in split:
            study.grids[1] *= 4  # laterals are twice as bright under the square root
    known = unlike.fit(*both)
    usual = both[1][0]
    swapped = features(usual.grids.flip(0), (0, 1))
    assert unlike.distance(known, usual) < 1.2 < unlike.distance(known, swapped)
    lateral = features(usual.grids[:1], (1,))
    assert unlike.distance(known, lateral) > 1 > unlike.distance(known, features(usual.grids[1:], (1,))) / 1.2


def test_a_view_that_training_hardly_had_is_not_judged():
    known = unlike.fit(normal_studies(100, 0), normal_studies(100, 1))
    assert unlike.distance(known, features(torch.full((1, CHANNELS, 2, 2), 1e4), (1,))) == 0
    assert unlike.fit(normal_studies(19, 0), normal_studies(100, 1)) == {}


def test_a_dead_channel_does_not_make_everything_unlike():
    splits = [normal_studies(300, seed) for seed in (0, 1)]
    for split in splits:
        for study in split:
            study.grids[:, 0] = 0
    known = unlike.fit(*splits)
    assert np.isfinite(unlike.distance(known, splits[1][0])) and known["scale.frontal"].min() > 0


def test_the_same_studies_give_the_same_bytes():
    one, two = (unlike.fit(normal_studies(100, 0), normal_studies(100, 1)) for _ in range(2))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_one_line_names_what_is_unlike_and_json_has_the_distance(known, tmp_path):
    write_tensors(tmp_path / unlike.FILE, known)
    usual, other = normal_studies(1, 5)[0], features(torch.full((1, CHANNELS, 2, 2), 1e4))
    studies = [Study(str(i), tmp_path / f"{i}.png", None, "", "test") for i in range(6)]
    lines = []
    pairs = list(zip([usual, *[other] * 5], studies, strict=True))
    told = unlike.judge(unlike.read(tmp_path), pairs, lines.append)
    assert [t["unlike_training"] for t in told] == [False] + [True] * 5
    assert told[0]["distance"] <= 1 < told[1]["distance"]
    assert len(lines) == 1 and "1.png" in lines[0] and "0.png" not in lines[0] and "and 2 more" in lines[0]
    assert unlike.share(unlike.read(tmp_path), [usual, other]) == 0.5


def test_a_checkpoint_from_before_says_nothing(tmp_path):
    pairs = [(normal_studies(1, 5)[0], Study("0", tmp_path / "0.png", None, "", "test"))]
    assert unlike.judge(unlike.read(tmp_path), pairs, pytest.fail) == [{}]
    assert unlike.share(unlike.read(tmp_path), normal_studies(1, 5)) is None


def test_statistics_of_another_network_are_a_users_error(known, tmp_path):
    write_tensors(tmp_path / unlike.FILE, known)
    with pytest.raises(UserError, match="does not fit the vision network"):
        unlike.distances(unlike.read(tmp_path), [features(torch.ones(1, 5, 2, 2))])
    write_tensors(tmp_path / unlike.FILE, {"mean.frontal": known["mean.frontal"]})
    with pytest.raises(UserError, match="does not fit the vision network"):
        unlike.distances(unlike.read(tmp_path), normal_studies(1, 5))


@pytest.fixture(scope="module")
def frontals():
    """Frontal films of 224 drawn studies: to learn, to set the limit, and to judge."""
    films = np.stack([phantom(4004, i)[1][0] for i in range(224)])
    return films[:160], films[160:200], films[200:]


@pytest.fixture(scope="module")
def judge(frontals):
    """films (n, 224, 224) -> the share that the embedded vision network's features call unlike phantoms."""
    vision = load_vision("tiny", torch.device("cpu"), None)

    @torch.inference_mode()
    def see(films):
        grids = vision.features(to_radiographs(torch.from_numpy(films.copy()), "cpu"))
        return [features(grid[None]) for grid in grids]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unlike, "QUANTILE", 0.9)  # 40 films do not tell what 99.5% of films stay below
        known = unlike.fit(*(see(films) for films in frontals[:2]))
    return lambda films: np.mean([unlike.distance(known, f) > 1 for f in see(films)])


def test_phantoms_are_no_strangers(frontals, judge):
    assert judge(frontals[2]) <= 0.25


@pytest.mark.parametrize("change", [
    lambda films: np.rot90(films, 1, axes=(1, 2)), lambda films: np.rot90(films, 3, axes=(1, 2)),
    lambda films: films[:, ::-1], lambda films: 255 - films,
    lambda films: np.random.default_rng(0).integers(0, 256, films.shape, np.uint8),
], ids=["turned left", "turned right", "upside down", "inverted", "noise"])  # fmt: skip
def test_films_that_are_not_as_a_radiologist_hangs_them_are_strangers(frontals, judge, change):
    assert judge(change(frontals[2])) >= 0.95


def test_repeated_studies_change_nothing():
    train, val = normal_studies(100, 0), normal_studies(100, 1)
    once, twice = unlike.fit(train, val), unlike.fit([s for s in train for _ in "ab"], val)
    assert all(torch.equal(t, twice[name]) for name, t in once.items())

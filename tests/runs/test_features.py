"""Features are computed once, cached, and never stale."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image, ImageOps
from safetensors import SafetensorError

from llamaxr.data.phantom import phantom
from llamaxr.data.study import Study
from llamaxr.errors import UserError
from llamaxr.radiograph import load_radiograph
from llamaxr.runs import features
from llamaxr.runs.features import study_features
from llamaxr.runs.vision_zoo import load_vision
from llamaxr.vision import StudyFeatures, extract_features

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vision():
    return load_vision("tiny")


@pytest.fixture
def studies(tmp_path):
    studies = []
    for i in range(3):
        frontal, lateral = tmp_path / f"{i}_0.png", tmp_path / f"{i}_1.png" if i else None
        for path, film in zip((frontal, lateral), phantom(0, i)[1], strict=False):
            if path:
                Image.fromarray(film).save(path)
        studies.append(Study(str(i), frontal, lateral if lateral and lateral.is_file() else None, "", "test"))
    return studies


def same(a, b):
    return all(
        x.views == y.views and torch.equal(x.grids, y.grids) and torch.equal(x.scores, y.scores)
        for x, y in zip(a, b, strict=True)
    )


def test_cached_features_equal_fresh_ones_and_are_not_computed_again(vision, studies, tmp_path):
    fresh, computed = study_features(vision, studies, CPU), []
    for _ in range(2):
        assert same(study_features(vision, studies, CPU, tmp_path / "cache", progress=computed.append), fresh)
    assert computed == [sum(len(s.views) for s in studies)]
    assert fresh[0].views == [0] and fresh[1].views == [0, 1]
    assert fresh[1].grids.shape == (2, vision.n_channels, 7, 7) and fresh[1].scores.shape == (2, 18)


def test_features_do_not_depend_on_their_batch(vision, studies):
    for a, b in zip(
        study_features(vision, studies, CPU, batch=1), study_features(vision, studies, CPU), strict=True
    ):
        # fp16 keeps 11 bits; convolutions of another batch add up in another order
        torch.testing.assert_close(a.grids, b.grids, rtol=2e-3, atol=1e-3)


def test_a_changed_image_is_noticed(vision, studies, tmp_path):
    before = study_features(vision, studies, CPU, tmp_path / "cache")
    Image.fromarray(phantom(7, 7)[1][0]).save(studies[1].frontal)
    after = study_features(vision, studies, CPU, tmp_path / "cache")
    for a, b in zip(after, study_features(vision, studies, CPU), strict=True):
        torch.testing.assert_close(a.grids, b.grids, rtol=2e-3, atol=1e-3)  # computed alone, not in a batch
    assert same(after[:1], before[:1]) and not same(after[1:2], before[1:2])


def test_only_a_changed_image_is_computed_again_and_a_part_of_the_studies_is_not(vision, studies, tmp_path):
    study_features(vision, studies, CPU, tmp_path / "cache")
    Image.fromarray(phantom(7, 7)[1][0]).save(studies[1].frontal)
    computed = []
    study_features(vision, studies, CPU, tmp_path / "cache", progress=computed.append)
    part = study_features(vision, studies[::-1][:2], CPU, tmp_path / "cache", progress=computed.append)
    assert computed == [1] and same(part, study_features(vision, studies, CPU, tmp_path / "cache")[:0:-1])


def test_an_interrupted_computation_goes_on_after_its_last_batch(vision, studies, tmp_path):
    def interrupt(n):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study_features(vision, studies, CPU, tmp_path / "cache", batch=2, progress=interrupt)
    computed = []
    again = study_features(vision, studies, CPU, tmp_path / "cache", batch=2, progress=computed.append)
    assert sum(computed) == sum(len(s.views) for s in studies) - 2
    assert same(again, study_features(vision, studies, CPU, batch=2))


def test_another_crop_is_noticed(vision, studies, tmp_path, monkeypatch):
    study_features(vision, studies, CPU, tmp_path / "cache")
    other = tmp_path / "radiograph.py"
    other.write_text(Path(features.radiograph.__file__).read_text() + "# another crop\n")
    monkeypatch.setattr(features.radiograph, "__file__", str(other))
    computed = []
    study_features(vision, studies, CPU, tmp_path / "cache", progress=computed.append)
    assert computed


def test_unreadable_images_are_counted_when_all_others_are_cached(vision, studies, tmp_path):
    studies[0].frontal.write_bytes(b"no image")
    studies[1].lateral.write_bytes(b"")
    with pytest.raises(UserError, match=r"2 images cannot be read; the first: .*1_1.png is empty"):
        study_features(vision, studies, CPU, tmp_path / "cache")
    computed, errors = [], []
    found = study_features(
        vision, studies, CPU, tmp_path / "cache", progress=computed.append, unreadable=errors
    )
    assert computed == [1] and len(errors) == 2  # only the damaged one is tried again
    assert [f.views for f in found] == [[], [0], studies[2].views and [v for v, _ in studies[2].views]]
    assert found[1].grids.shape == (1, vision.n_channels, 7, 7)


def test_one_unreadable_image_is_reported_by_its_own_error(vision, studies):
    studies[0].frontal.write_bytes(b"no image")
    with pytest.raises(UserError, match="0_0.png is no PNG"):
        study_features(vision, studies, CPU)


def test_the_same_image_in_two_studies_is_computed_once(vision, studies, tmp_path):
    computed = []
    twice = [studies[0], dataclasses.replace(studies[0], id="again")]
    a, b = study_features(vision, twice, CPU, progress=computed.append)
    assert computed == [1] and torch.equal(a.grids, b.grids)


def test_other_weights_are_noticed(vision, studies, tmp_path, monkeypatch):
    study_features(vision, studies, CPU, tmp_path / "cache")
    computed = []
    monkeypatch.setattr(vision, "hash", "another")
    study_features(vision, studies, CPU, tmp_path / "cache", progress=computed.append)
    assert computed


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * 100])
def test_a_damaged_cache_file_is_computed_again(vision, studies, tmp_path, damage):
    fresh = study_features(vision, studies, CPU, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*/*")
    content = file.read_bytes()
    fresh = [StudyFeatures(f.views, f.grids.clone(), f.scores.clone()) for f in fresh]
    file.unlink()
    file.write_bytes(damage(content))
    assert same(study_features(vision, studies, CPU, tmp_path / "cache"), fresh)
    assert file.read_bytes() == content


def test_a_full_disk_is_one_line_and_leaves_no_half_file(vision, studies, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("llamaxr.files.tensors.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        study_features(vision, studies, CPU, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/*"))


def test_a_mirrored_radiograph_gives_other_features(vision, studies, tmp_path):
    film = Image.open(studies[0].frontal)
    ImageOps.mirror(film).save(tmp_path / "mirrored.png")
    films = [load_radiograph(path) for path in (studies[0].frontal, tmp_path / "mirrored.png")]
    plain, mirrored = extract_features(vision, films, CPU)[0].float()
    assert (plain - mirrored).norm() > 0.1 * plain.norm()
    # nor are they the mirrored features: rounding alone is a thousandth
    assert (plain - mirrored.flip(-1)).norm() > 0.05 * plain.norm()


def test_a_network_without_scores_has_features_all_the_same(studies, tmp_path):
    torch.save(torchvision.models.densenet121().state_dict(), tmp_path / "imagenet.pth")
    imagenet = load_vision(tmp_path / "imagenet.pth")
    fresh = study_features(imagenet, studies, CPU, tmp_path / "cache")
    assert same(study_features(imagenet, studies, CPU, tmp_path / "cache"), fresh)
    assert fresh[1].grids.shape == (2, 1024, 7, 7) and fresh[1].scores.shape == (2, 0)

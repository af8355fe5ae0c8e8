"""Training a DenseNet's scores: labels, loss and augmentation; and one small run, as a user starts it."""

import math

import pytest
import torch

from llamaxr.data.phantom import make_studies
from llamaxr.data.study import Study
from llamaxr.errors import UserError
from llamaxr.metrics.findings import FINDINGS, PATHOLOGIES_OF
from llamaxr.radiograph import load_radiograph
from llamaxr.runs.vision_zoo import TINY, ImageNetVision, load_vision
from llamaxr.tools import vision_train
from llamaxr.tools.vision_train import (
    MIN_EXAMPLES,
    augment,
    fit,
    load_pixels,
    mask_rare,
    mean_over_views,
    pathology_labels,
    side_labels,
    to_radiographs,
    weights_to_save,
)
from llamaxr.vision import PATHOLOGIES, Vision

SHORT = ["--epochs", "1", "--batch", "16", "--device", "cpu"]


def study(report, findings=None):
    return Study("1", None, None, report, "train", findings)


def test_labels_are_the_known_findings_or_those_that_the_report_asserts():
    rows = pathology_labels([
        study("Heart size is normal. Small left pleural effusion. No pneumothorax."),
        study("The lungs are clear.", frozenset({"pneumothorax", "scoliosis"})),
        study("The lungs are clear."),
    ])  # fmt: skip
    present = [{p for p, label in zip(PATHOLOGIES, row, strict=True) if label} for row in rows]
    assert present == [{"Effusion"}, {"Pneumothorax"}, set()]


def test_findings_map_to_pathologies_that_exist():
    assert {p for names in PATHOLOGIES_OF.values() for p in names} <= set(PATHOLOGIES)
    assert {"cardiomegaly", "effusion", "nodule"} <= PATHOLOGIES_OF.keys() & set(FINDINGS)


def test_pathologies_that_too_few_have_or_lack_are_unknown():
    labels, n = torch.zeros(40, 18), MIN_EXAMPLES
    labels[:n, 0], labels[: n - 1, 1], labels[:, 2], labels[n:, 3] = 1, 1, 1, 1
    assert (~mask_rare(labels).isnan()).all(dim=0).nonzero().flatten().tolist() == [0, 3]
    assert mask_rare(labels).isnan().any(dim=0).sum() == 16


def test_a_finding_and_a_finding_on_a_side_are_labels_of_their_own():
    labels = side_labels([study("Left pleural effusion."), study("Right pleural effusion."), study("Clear.")])
    assert labels.tolist() == [[1, 1, 0], [1, 0, 1], [0, 0, 0]]  # effusion, on the left, on the right


def test_a_studys_score_is_the_mean_over_its_views():
    scores = mean_over_views(torch.tensor([[0.2], [0.4], [0.9]]), torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(scores, torch.tensor([[0.3], [0.9]]))


def test_augmentation_moves_little_never_mirrors_and_keeps_the_range():
    torch.manual_seed(0)
    film = torch.full((16, 1, 224, 224), -800.0)
    film[:, :, 60:100, 40:60] = 800  # high up, on one side
    varied = augment(film)
    assert varied.shape == film.shape and varied.abs().max() <= 1024
    assert not torch.equal(varied[0], varied[1])
    bright = (varied > 0).float()
    area = bright.sum(dim=(2, 3))
    assert ((area > 600) & (area < 1000)).all()  # of 800
    y = (bright * torch.arange(224.0).view(-1, 1)).sum(dim=(2, 3)) / area
    x = (bright * torch.arange(224.0)).sum(dim=(2, 3)) / area
    assert ((y - 79.5).abs() < 25).all() and ((x - 49.5).abs() < 25).all()


def train(scores, seed=0):
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (8, 224, 224), dtype=torch.uint8)
    torch.manual_seed(seed)
    vision, losses = Vision(TINY), []
    start = vision.net.classifier.weight.clone()
    fit(vision, pixels, scores, torch.zeros(8, 2), 2, 4, 1e-3, progress=losses.append)
    return vision, start, losses


def test_unknown_labels_teach_nothing_and_equal_seeds_give_equal_weights():
    scores = torch.zeros(8, 18)
    scores[:4] = 1
    scores[:, 5:] = math.nan
    vision, start, losses = train(scores)
    moved = (vision.net.classifier.weight - start * (1 - 1e-5)).abs().amax(dim=1)
    assert (moved[:5] > 1e-4).all() and (moved[5:] < 1e-4).all()  # apart from weight decay
    assert len(losses) == 4 and all(math.isfinite(x) for x in losses) and not vision.training
    again, _, same = train(scores)
    weights = weights_to_save(again)
    assert same == losses and all(torch.equal(t, weights[k]) for k, t in weights_to_save(vision).items())


def test_a_small_run_writes_weights_that_load_vision_takes(tmp_path, monkeypatch, capsys):
    studies = make_studies(tmp_path / "sample", 24, 8, 1)
    monkeypatch.setattr(vision_train, "load_studies", lambda *_, **__: studies)
    monkeypatch.setattr(vision_train, "MIN_EXAMPLES", 4)
    out = tmp_path / "new" / "mine.safetensors"
    vision_train.main([*SHORT, "--out", str(out)])
    assert "AUROC" in capsys.readouterr().out and [p.name for p in out.parent.iterdir()] == [out.name]
    vision = load_vision(out)
    scores = vision.scores(vision.features(torch.rand(1, 1, 224, 224) * 2048 - 1024))[0]
    never = PATHOLOGIES.index("Hernia")  # no report of the sample has it
    assert scores[never] == 0.5 and (scores != 0.5).any()
    with pytest.raises(UserError, match="too few"):
        vision_train.main(["--limit", "2", "--out", str(tmp_path / "w.safetensors")])
    vision_train.main(
        [*SHORT, "--start", str(out), "--lr", "1e-9", "--out", str(tmp_path / "on.safetensors")]
    )
    before, after = (load_vision(path).net.classifier.weight for path in (out, tmp_path / "on.safetensors"))
    assert torch.allclose(before, after, atol=1e-6)


@pytest.mark.parametrize("argv, message", [
    (["--start", "tiny", "--architecture", "tiny"], "--architecture has no effect"),
    (["--start", "missing.safetensors"], "missing.safetensors"),
])  # fmt: skip
def test_a_start_that_cannot_be_is_refused_at_once(argv, message, tmp_path):
    with pytest.raises(UserError, match=message):
        vision_train.main([*argv, "--out", str(tmp_path / "w.safetensors")])


def test_weights_that_a_run_may_use_are_not_overwritten_and_have_the_name_that_train_py_reads(tmp_path):
    used = tmp_path / "used.safetensors"
    used.touch()
    for out, message in ((used, "exists already"), (tmp_path / "mine.pt", "does not end in .safetensors")):
        with pytest.raises(UserError, match=message):
            vision_train.main([*SHORT, "--out", str(out)])


def test_it_starts_from_radiographs_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(vision_train, "load_vision", lambda *_, **__: ImageNetVision("densenet121"))
    with pytest.raises(UserError, match="trained on radiographs"):
        vision_train.main(["--start", "densenet121-imagenet", "--out", str(tmp_path / "w.safetensors")])


def test_pixels_are_the_radiographs_that_were_read_each_of_its_study(tmp_path):
    studies = make_studies(tmp_path, 3, 1, 1)
    views = [(i, path) for i, study in enumerate(studies) for _, path in study.views]
    pixels, study_of = load_pixels(studies, lambda n: None)
    assert study_of.tolist() == [i for i, _ in views]
    radiographs = torch.stack([load_radiograph(path) for _, path in views])
    half_a_level = 1024 / 255 + 0.01
    torch.testing.assert_close(to_radiographs(pixels, "cpu"), radiographs, rtol=0, atol=half_a_level)


def test_the_weights_of_the_best_epoch_are_kept(tmp_path, monkeypatch):
    studies, epochs, saved = make_studies(tmp_path / "sample", 24, 8, 1), [], []
    predict, save = vision_train.predict, vision_train.save_weights
    monkeypatch.setattr(vision_train, "load_studies", lambda *_, **__: studies)
    monkeypatch.setattr(vision_train, "MIN_EXAMPLES", 4)
    monkeypatch.setattr(vision_train, "predict", lambda *a: epochs.append(1) or predict(*a))
    monkeypatch.setattr(vision_train, "auroc", lambda *_: [0.6, 0.8, 0.7][len(epochs) - 1])
    monkeypatch.setattr(vision_train, "save_weights", lambda *a: saved.append(len(epochs)) or save(*a))
    vision_train.main([*SHORT, "--epochs", "3", "--out", str(tmp_path / "w.safetensors")])
    assert saved == [1, 2]

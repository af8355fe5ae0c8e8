"""Training a DenseNet's scores: labels, loss, variation, measure; and one small run, as a user starts it."""

import math

import pytest
import torch

from llamaxr.tools import vision_train
from llamaxr.data.phantom import make_studies
from llamaxr.data.study import Study
from llamaxr.errors import UserError
from llamaxr.metrics.findings import FINDINGS
from llamaxr.vision import PATHOLOGIES, TINY, Vision, load_vision
from llamaxr.tools.vision_train import (
    LEAST,
    PATHOLOGIES_OF,
    fit,
    only_labelled,
    pathologies,
    places,
    study_scores,
    vary,
    weights_of,
)


def study(report, findings=None):
    return Study("1", None, None, report, "train", findings)


def told(row):
    return {p for p, present in zip(PATHOLOGIES, row, strict=True) if present}


def test_labels_are_what_the_report_asserts_or_what_is_known_to_be_there():
    rows = pathologies([
        study("Heart size is normal. Small left pleural effusion. No pneumothorax."),
        study("The lungs are clear.", frozenset({"pneumothorax", "scoliosis"})),
        study("The lungs are clear."),
    ])  # fmt: skip
    assert [told(row) for row in rows] == [{"Effusion"}, {"Pneumothorax"}, set()]


def test_findings_map_to_pathologies_that_exist():
    assert {p for of in PATHOLOGIES_OF.values() for p in of} <= set(PATHOLOGIES)
    assert {"cardiomegaly", "effusion", "nodule"} <= PATHOLOGIES_OF.keys() & set(FINDINGS)


def test_pathologies_that_too_few_have_or_lack_are_unknown():
    present = torch.zeros(40, 18)
    present[:LEAST, 0], present[: LEAST - 1, 1], present[:, 2], present[LEAST:, 3] = 1, 1, 1, 1
    assert (~only_labelled(present).isnan()).all(dim=0).nonzero().flatten().tolist() == [0, 3]
    assert only_labelled(present).isnan().any(dim=0).sum() == 16


def test_places_tell_the_side():
    placed = places([study("Left pleural effusion."), study("Right pleural effusion."), study("Clear.")])
    assert placed.tolist() == [[1, 1, 0], [1, 0, 1], [0, 0, 0]]  # effusion, on the left, on the right


def test_a_studys_score_is_the_mean_over_its_views():
    predicted = torch.tensor([[0.2], [0.4], [0.9]])
    scores = study_scores(predicted, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(scores, torch.tensor([[0.3], [0.9]]))


def test_variation_moves_little_never_mirrors_and_keeps_the_range():
    torch.manual_seed(0)
    film = torch.full((16, 1, 224, 224), -800.0)
    film[:, :, 60:100, 40:60] = 800  # high up, on one side
    varied = vary(film)
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


def test_unknown_labels_teach_nothing_and_the_same_seed_the_same():
    scores = torch.zeros(8, 18)
    scores[:4] = 1
    scores[:, 5:] = math.nan
    vision, start, losses = train(scores)
    moved = (vision.net.classifier.weight - start * (1 - 1e-5)).abs().amax(dim=1)
    assert (moved[:5] > 1e-4).all() and (moved[5:] < 1e-4).all()  # weight decay apart
    assert len(losses) == 4 and all(math.isfinite(x) for x in losses) and not vision.training
    again, _, same = train(scores)
    assert same == losses and all(torch.equal(t, weights_of(again)[k]) for k, t in weights_of(vision).items())


def test_a_small_run_writes_weights_that_vision_takes(tmp_path, monkeypatch, capsys):
    studies = make_studies(tmp_path / "sample", 24, 8, 1)
    monkeypatch.setattr(vision_train, "load_studies", lambda *_, **__: studies)
    monkeypatch.setattr(vision_train, "LEAST", 4)
    out = tmp_path / "new" / "mine.safetensors"
    vision_train.main(["--epochs", "1", "--batch", "16", "--device", "cpu", "--out", str(out)])
    assert "AUROC" in capsys.readouterr().out and [p.name for p in out.parent.iterdir()] == [out.name]
    vision = load_vision(out)
    scores = vision.scores(vision.features(torch.rand(1, 1, 224, 224) * 2048 - 1024))[0]
    never = PATHOLOGIES.index("Hernia")  # no report of the sample has it
    assert scores[never] == 0.5 and (scores != 0.5).any()
    with pytest.raises(UserError, match="too few"):
        vision_train.main(["--limit", "2"])

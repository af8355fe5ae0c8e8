"""train.py's loop against the same steps written out by hand, and its parts."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import train
from llamaxr.data.emphasis import token_weights
from llamaxr.data.outline import outline_line, with_outline
from llamaxr.data.repeat import repeat_rare
from llamaxr.data.study import Study
from llamaxr.errors import UserError
from llamaxr.lora import add_lora
from llamaxr.model import LlamaXR
from llamaxr.projector import Projector
from llamaxr.prompt import IGNORE
from llamaxr.runs.checkpoint import adapter_tensors
from llamaxr.runs.features import study_features
from llamaxr.runs.log import check_finite
from llamaxr.runs.recipes import apply_recipe
from llamaxr.runs.run import TINY_BASE, training_splits
from llamaxr.runs.vision_zoo import load_vision
from llamaxr.weights import load_llama
from tests.conftest import lay_out_phantoms
from tests.test_model import assemble, study

SEED, LR, PROJECTOR_LR, DECAY, CUT, WEIGHT = 5, 3e-3, 1e-2, 0.1, 30, 3.0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder in R2Gen's form, and its (features, study) pairs, train and val."""
    root = tmp_path_factory.mktemp("iu")
    rows = lay_out_phantoms(root, 14, 3, 1)
    studies = []
    for split in ("train", "val"):
        for row in rows[split]:
            views = [*(root / "images" / name for name in row["image_path"]), None]
            studies.append(Study(row["id"], *views[:2], row["report"], split))
    features = study_features(load_vision("tiny"), studies, torch.device("cpu"), root / "cache")
    pairs = list(zip(features, studies, strict=True))
    return root, pairs[:14], pairs[14:]


def by_hand(train_pairs, val_pairs):
    """Three steps of six studies, each as one padded batch: the lines of metrics.jsonl, and the model."""
    llama, tokenizer = load_llama(TINY_BASE, "nf4")
    torch.manual_seed(SEED)
    add_lora(llama, 4, 8.0)
    embedding = llama.embed_tokens.weight.float()
    std = embedding[:: -(-len(embedding) // 4096)].std().item()
    projector = Projector(train_pairs[0][0].grids.shape[1], llama.config.dim, 4, token_std=std)
    words = ("upper", "mid", "lower", "left", "right")
    projector.name_places({word: embedding[tokenizer.encode(f" {word}")].mean(0) for word in words})
    model = LlamaXR(projector, llama, tokenizer, "tokens")
    pairs = repeat_rare(train_pairs, 0.3, SEED)
    assert len(pairs) > len(train_pairs)
    projector.standardise(f.grids for f, _ in pairs)
    lora = [p for p in llama.parameters() if p.requires_grad]
    learned = [*lora, *projector.parameters()]
    optimizer = torch.optim.AdamW([{"params": lora}, {"params": projector.parameters()}], weight_decay=DECAY)

    def loss(some, texts, has_end, weights=None):
        batch = model.collate([f for f, _ in some], texts, CUT, has_end)
        logits = llama.logits(llama.hidden(model.embed(batch))).float()
        each = F.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="none"
        )
        each = each[batch.targets.flatten() != IGNORE]
        return (each if weights is None else each * torch.tensor(weights)).sum(), len(each)

    def val_loss():
        with torch.no_grad():
            total, n = loss(val_pairs, [with_outline(s.report) for _, s in val_pairs], True)
        return total.item() / n

    lines = [{"step": 0, "val_loss": val_loss()}]
    order = [i for epoch in (0, 1) for i in np.random.default_rng((SEED, epoch)).permutation(len(pairs))]
    for step, factor in ((1, 0.5), (2, 1.0), (3, 1.0)):  # warm-up of two steps, then one from the peak down
        some = [pairs[i] for i in order[6 * step - 6 : 6 * step]]
        texts, has_end = [with_outline(s.report) for _, s in some], step > 1
        if step == 1:
            texts = [outline_line(text) for text in texts]
        weights = [(*token_weights(tokenizer, t, WEIGHT), *[1.0] * has_end)[:CUT] for t in texts]
        total, n = loss(some, texts, has_end, [w for row in weights for w in row])
        (total / n).backward()
        norm = torch.cat([p.grad.flatten() for p in learned]).norm()
        for p in learned:
            p.grad *= min(1.0, 1.0 / (norm.item() + 1e-6))
        for group, peak in zip(optimizer.param_groups, (LR, PROJECTOR_LR), strict=True):
            group["lr"] = factor * peak
        optimizer.step()
        optimizer.zero_grad()
        lines.append({"step": step, "loss": total.item() / n, "grad_norm": norm.item(), "lr": factor * LR})
    lines[-1]["val_loss"] = val_loss()
    return lines, model


@pytest.mark.parametrize("batch, accumulate", [(3, 2), (6, 1)])
def test_three_steps_are_those_written_out_by_hand(data, tmp_path, batch, accumulate):
    root, train_pairs, val_pairs = data
    train.main([str(a) for a in [
        "--data", "iu_xray", "--root", root, "--cache", root / "cache", "--base", "tiny", "--vision", "tiny",
        "--device", "cpu", "--plain", "--out", tmp_path / "run", "--steps", 3, "--val-every", 3,
        "--n-samples", 0, "--batch", batch, "--accumulate", accumulate, "--rank", 4, "--lora-alpha", 8,
        "--seed", SEED, "--lr", LR, "--projector-lr", PROJECTOR_LR, "--weight-decay", DECAY,
        "--warmup-share", 0.67, "--outline-share", 0.34, "--max-report-tokens", CUT,
        "--finding-weight", WEIGHT, "--repeat-rare", 0.3,
    ]])  # fmt: skip
    lines, model = by_hand(train_pairs, val_pairs)
    ours = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in ours] == [0, 1, 2, 3]
    assert max(line["grad_norm"] for line in lines[1:]) > 1  # so that clipping acts
    for line, expected in zip(ours, lines, strict=True):
        line.pop("report_tokens_per_s", None)
        assert line == pytest.approx(expected, rel=1e-4)
    saved = tmp_path / "run" / "step-000003"
    for file, expected in (
        ("adapter_model", adapter_tensors(model)),
        ("projector", model.projector.state_dict()),
    ):
        tensors = load_file(saved / f"{file}.safetensors")
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=2e-5)


def test_each_epoch_has_each_study_once_in_an_order_of_its_own():
    studies = [*range(13)]

    def order(seed, steps=range(1, 6)):
        options = apply_recipe("ours", batch=3, accumulate=2, seed=seed)
        parts = [part for step in steps for part in train.pairs_of_step(studies, step, options)]
        assert all(len(part) == 3 for part in parts)
        return [study for part in parts for study in part]

    first, second = order(0)[:13], order(0)[13:26]
    assert sorted(first) == sorted(second) == studies != first != second != studies
    assert order(1)[:13] not in (first, second)
    assert order(0, [3]) == order(0)[12:18]


def test_what_learns_and_how_fast(base):
    model = assemble(base)
    options = apply_recipe("ours", lr=1e-3, projector_lr=2e-3, weight_decay=0.3)
    lora, projector = train.make_optimizer(model, options).param_groups
    assert {*map(id, projector["params"])} == {*map(id, model.projector.parameters())}
    assert {*map(id, lora["params"])} == {id(p) for p in model.llama.parameters() if p.requires_grad}
    assert (lora["peak_lr"], projector["peak_lr"]) == (1e-3, 2e-3)
    assert lora["weight_decay"] == projector["weight_decay"] == 0.3


def test_what_a_step_learns_from(base):
    model, report = assemble(base), "The heart is normal. There is a left effusion."
    pairs = [(study(i), Study(str(i), None, None, report, "train")) for i in range(2)]
    options = apply_recipe("ours", steps=10, outline_share=0.2, finding_weight=3.0)
    (eos,) = model.tokenizer.eos_ids[:1]

    def texts(batch):
        return [[int(t) for t in row if t != IGNORE] for row in batch.targets]

    outline = model.tokenizer.encode(outline_line(with_outline(report)))
    whole = [*model.tokenizer.encode(with_outline(report)), eos]
    assert texts(train.collate(model, pairs, options, 2)) == [outline] * 2  # an outline alone has no end
    assert texts(train.collate(model, pairs, options, 3)) == [whole] * 2
    assert {*train.collate(model, pairs, options, 3).weights.tolist()} == {1.0, 3.0}
    validated = train.collate(model, pairs, options)
    assert texts(validated) == [whole] * 2 and validated.weights is None
    options = apply_recipe("ours", steps=10, max_report_tokens=8)
    assert texts(train.collate(model, pairs, options, math.inf)) == [whole[:8]] * 2


def test_rare_findings_are_drawn_more_often():
    reports = ["Clear."] * 19 + ["A pneumothorax."]
    pairs = [(None, Study(str(i), None, None, r, "train")) for i, r in enumerate(reports)]
    pairs.append((None, Study("v", None, None, "Clear.", "val")))
    drawn, _ = training_splits(apply_recipe("ours", repeat_rare=0.8), pairs)
    assert sum(s.id == "19" for _, s in drawn) == 4  # sqrt(0.8 / 0.05)
    assert len(training_splits(apply_recipe("ours", repeat_rare=0.0), pairs)[0]) == 20


@pytest.mark.parametrize("name", ["loss", "grad_norm", "val_loss"])
def test_a_step_that_went_wrong_is_not_saved(name, tmp_path):
    line = {"step": 7, "loss": 1.0, "grad_norm": 2.0, "val_loss": 1.5}
    check_finite(line, tmp_path)
    check_finite({"step": 7, "loss": 1.0, "grad_norm": 2.0}, tmp_path)
    with pytest.raises(UserError, match=f"the {name} is inf at step 7; the last good checkpoint is none yet"):
        check_finite(line | {name: math.inf}, tmp_path)


def test_a_limit_is_of_the_training_studies_and_validation_has_its_own():
    pairs = [(None, Study(f"{s}{i}", None, None, "Clear.", s)) for s in ("train", "val") for i in range(20)]
    train_pairs, val_pairs = training_splits(apply_recipe("ours", limit=9, val_studies=3), pairs)
    assert [s.id for _, s in train_pairs] == [f"train{i}" for i in range(9)]
    assert [s.id for _, s in val_pairs] == [f"val{i}" for i in range(3)]

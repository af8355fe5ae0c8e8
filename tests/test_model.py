from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from llamaxr import fast
from llamaxr.lora import add_lora
from llamaxr.model import FILLER, LlamaXR
from llamaxr.projector import Projector
from llamaxr.prompt import IGNORE, SLOT
from llamaxr.vision import StudyFeatures
from llamaxr.weights import load_llama

REPORTS = ["The heart is normal in size.", "There is a calcified granuloma in the left upper lobe."]


def assemble(base, bridge="tokens"):
    llama, tokenizer = load_llama(base, "nf4")
    torch.manual_seed(0)
    add_lora(llama, 4, 8.0)
    return LlamaXR(Projector(8, 64, grid=2, token_std=0.2), llama, tokenizer, bridge)


def study(seed, views=(0, 1)):
    g = torch.Generator().manual_seed(seed)
    return StudyFeatures(
        list(views), torch.rand(len(views), 8, 7, 7, generator=g), torch.rand(len(views), 18, generator=g)
    )


@pytest.fixture()
def model(base):
    return assemble(base)


def test_soft_tokens_stand_in_their_slots_in_order(model):
    studies = [study(1), study(2, views=(1,))]
    batch = model.collate(studies)
    x = model.embed(batch)
    soft = model.projector(batch.grids, batch.views).flatten(0, 1)
    assert torch.equal(x[batch.ids == SLOT], soft)
    words = batch.ids != SLOT
    assert torch.equal(x[words], model.llama.embed(batch.ids[words]))


def test_a_batch_holds_the_grids_and_the_views_of_its_studies_in_order(model):
    studies = [study(1), study(2, views=(1,)), study(3, views=(0,))]
    batch = model.collate(studies)
    assert batch.views.tolist() == [0, 1, 1, 0]
    assert torch.equal(batch.grids, torch.cat([one.grids for one in studies]))


def test_each_view_is_named_and_its_scores_follow_its_name(base):
    model = assemble(base)
    lone = model.tokenizer.decode([i for i in model.prompt(study(2, views=(1,))) if i != SLOT])
    assert "lateral view:" in lone and "frontal view:" not in lone
    model, both = assemble(base, "scores"), study(1)
    text = model.tokenizer.decode(model.prompt(both))
    for name, row in zip(("frontal", "lateral"), both.scores, strict=True):
        assert f"{name} view: " + ", ".join(f"{score:.3f}" for score in row) in text


@pytest.mark.parametrize("attach", [lambda model: None, fast.for_training])
def test_a_batch_knows_where_its_answers_and_soft_tokens_are(model, attach):
    attach(model)
    for texts in (REPORTS, None):
        batch = model.collate([study(1), study(2, views=(0,))], texts)
        assert batch.target_positions.tolist() == (batch.targets.flatten() != IGNORE).nonzero()[:, 0].tolist()
        assert batch.slots.tolist() == (batch.ids.flatten() == SLOT).nonzero()[:, 0].tolist()
        assert len(batch.slots) == 3 * model.projector.n_tokens


@pytest.mark.parametrize("attach", [lambda model: None, fast.for_training])
def test_an_end_is_learned_and_filler_is_not_even_where_both_have_one_id(model, attach):
    attach(model)
    model.tokenizer.eos_ids = (FILLER,)  # a checkpoint that pads with its end
    batch = model.collate([study(1), study(2, views=(0,))], REPORTS)
    assert len(batch.target_positions) == sum(len(model.tokenizer.encode(report)) + 1 for report in REPORTS)
    assert (batch.targets == FILLER).sum() == len(REPORTS)


def test_the_loss_of_a_batch_is_the_sum_of_its_studies(model):
    studies = [study(1), study(2, views=(0,))]
    whole = model.loss(model.collate(studies, REPORTS))
    parts = [model.loss(model.collate([s], [r])) for s, r in zip(studies, REPORTS, strict=True)]
    assert torch.allclose(whole, sum(parts), rtol=1e-4)


@pytest.mark.parametrize("bridge", ["tokens", "scores"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_cross_entropy_of_all_logits(base, bridge, weighted):
    model = assemble(base, bridge)
    batch = model.collate([study(1), study(2, views=(0,))], REPORTS)
    n_targets = len(batch.target_positions)
    weights = 1.0 + torch.arange(n_targets) % 3 if weighted else torch.ones(n_targets)
    loss = model.loss(replace(batch, weights=weights if weighted else None))
    logits = model.llama.logits(model.llama.hidden(model.embed(batch)))
    plain = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    plain = (plain[plain != 0] * weights).sum()
    assert loss.shape == () and torch.allclose(loss, plain, rtol=1e-5)


def test_a_text_that_is_only_a_beginning_has_no_end(model):
    whole, part = (model.collate([study(1)], ["Clear."], append_eos=ends) for ends in (True, False))
    assert (
        whole.targets[whole.targets != IGNORE].tolist()[:-1] == part.targets[part.targets != IGNORE].tolist()
    )


def test_the_loss_does_not_depend_on_the_order_of_studies(model):
    studies = [study(1), study(2)]
    a = model.loss(model.collate(studies, REPORTS))
    b = model.loss(model.collate(studies[::-1], REPORTS[::-1]))
    assert torch.allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize("bridge", ["tokens", "scores", "both"])
def test_another_image_gives_another_loss(base, bridge):
    model = assemble(base, bridge)
    model.projector.standardise([study(1).grids, study(2).grids])
    a = model.loss(model.collate([study(1)], REPORTS[:1]))
    b = model.loss(model.collate([study(2)], REPORTS[:1]))
    assert not torch.allclose(a, b, rtol=1e-4)


def test_projector_and_lora_learn_and_nothing_else(model):
    model.loss(model.collate([study(1)], REPORTS[:1])).backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learning == {n for n, _ in model.named_parameters() if n.startswith("projector.") or "lora_" in n}
    assert model.projector.fc1.weight.grad.abs().sum() > 0


def test_permuting_the_batch_permutes_what_is_read(model):
    studies, order = [study(1), study(2, views=(1,)), study(3)], [2, 0, 1]
    a, b = model.collate(studies), model.collate([studies[i] for i in order])
    x, y = (model.llama.hidden(model.embed(batch), batch.padding)[:, -1] for batch in (a, b))
    assert torch.allclose(x[order], y, atol=1e-5)


def test_the_bridge_of_scores_does_not_use_the_projector(base):
    model = assemble(base, "scores")
    batch = model.collate([study(1)], REPORTS[:1])
    before = model.loss(batch)
    for p in model.projector.parameters():
        p.data.fill_(7.0)
    after = model.loss(batch)
    assert torch.equal(before, after)
    after.backward()
    assert all(p.grad is None for p in model.projector.parameters())


def test_the_bridge_of_scores_has_no_slots(base):
    batch = assemble(base, "scores").collate([study(1)])
    assert (batch.ids != SLOT).all()

import pytest
import torch
import torch.nn.functional as F

from llamaxr.runs.features import StudyFeatures
from llamaxr.lora import add_lora
from llamaxr.model import LlamaXR, shared_length
from llamaxr.projector import Projector
from llamaxr.prompt import IGNORE, SLOT
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


def test_the_loss_of_a_batch_is_the_sum_of_its_studies(model):
    studies = [study(1), study(2, views=(0,))]
    whole, n = model.loss(model.collate(studies, REPORTS))
    parts = [model.loss(model.collate([s], [r])) for s, r in zip(studies, REPORTS, strict=True)]
    assert n == sum(p[1] for p in parts)
    assert torch.allclose(whole, sum(p[0] for p in parts), rtol=1e-4)


def test_an_outline_stands_before_the_report_carries_loss_and_is_no_part_of_what_is_said(base):
    model, report = assemble(base), REPORTS[1]
    plain = model.collate([study(1)], [report])
    model.outline = True
    batch = model.collate([study(1)], [report])
    carrying = batch.targets[batch.targets != IGNORE]
    assert len(carrying) > (plain.targets != IGNORE).sum()
    assert model.said(carrying[:-1].tolist()) == ("granuloma left.", report)
    alone = model.collate([study(1)], [report], outline_alone=True)
    carrying = alone.targets[alone.targets != IGNORE]
    assert model.tokenizer.decode(carrying.tolist()) == "Findings: granuloma left.\n"


@pytest.mark.parametrize("recompute", [False, True])
def test_packing_gives_the_loss_and_the_gradients_of_rows_read_apart(model, recompute):
    """The plain way: each study a row of its own, nothing shared."""
    studies, grads, losses = [study(1), study(2, views=(0,)), study(3)], [], []
    reports = [*REPORTS, "Clear."]
    for _, p in model.llama.named_parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(1))
    packed = [model.collate(studies, reports)]
    apart = [model.collate([s], [r]) for s, r in zip(studies, reports, strict=True)]
    assert packed[0].ids.shape[1] < sum(b.ids.shape[1] for b in apart)
    model.llama.recompute = recompute
    for batches in (packed, apart):
        loss = sum(model.loss(batch)[0] for batch in batches)
        learning = [p for p in model.parameters() if p.requires_grad]
        grads.append(torch.autograd.grad(loss, learning))
        losses.append(loss)
    assert torch.allclose(*losses, rtol=1e-5)
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * b.abs().max())


def test_the_packed_row_holds_the_common_beginning_once(model):
    batch = model.collate([study(1), study(2)], REPORTS)
    rows = [
        model.collate([s], [r]).ids[0].tolist() for s, r in zip([study(1), study(2)], REPORTS, strict=True)
    ]
    shared = shared_length([model.prompt(study(1)), model.prompt(study(2))])
    assert shared > 20 and rows[0][:shared] == rows[1][:shared] and rows[0][shared] == SLOT
    assert batch.ids[0].tolist() == rows[0] + rows[1][shared:]
    assert batch.packing.positions.tolist() == [*range(len(rows[0])), *range(shared, len(rows[1]))]


@pytest.mark.parametrize(
    "prompts",
    [
        [[1, 2, 3], [1, 2, 3]],
        [[1, 2, 3], [1, 2, 4, 5]],
        [[1, 2, SLOT, 7], [1, 2, SLOT, 7]],
        [[1, 2, SLOT, 7]],
    ],
)
def test_what_prompts_share_ends_before_an_image_and_leaves_each_a_word(prompts):
    assert shared_length(prompts) == 2


def test_one_prompt_whose_images_are_words_shares_nothing():
    assert shared_length([[1, 2, 3]]) == 0


@pytest.mark.parametrize("rows", [2**20, 64])  # the head's weight in one piece, and in pieces
def test_the_loss_is_the_cross_entropy_of_the_logits_its_gradient_too(model, monkeypatch, rows):
    monkeypatch.setattr("llamaxr.llama.HEAD_NUMBERS", rows * 64)
    batch = model.collate([study(1), study(2)], REPORTS)
    learning = [p for p in model.parameters() if p.requires_grad]
    fast, n = model.loss(batch)
    logits = model.llama.logits(model.llama.hidden(model.embed(batch), packing=batch.packing))
    plain = F.cross_entropy(logits[0].float(), batch.targets[0], reduction="sum")  # IGNORE is its own default
    assert n == (batch.targets != IGNORE).sum()
    assert torch.allclose(fast, plain, rtol=1e-5)
    for a, b in zip(*(torch.autograd.grad(loss, learning) for loss in (fast, plain)), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * b.abs().max())


def test_the_loss_does_not_depend_on_the_order_of_studies(model):
    studies = [study(1), study(2)]
    a, _ = model.loss(model.collate(studies, REPORTS))
    b, _ = model.loss(model.collate(studies[::-1], REPORTS[::-1]))
    assert torch.allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize("bridge", ["tokens", "scores", "both"])
def test_another_image_gives_another_loss(base, bridge):
    model = assemble(base, bridge)
    model.projector.standardise([study(1).grids, study(2).grids])
    a, _ = model.loss(model.collate([study(1)], REPORTS[:1]))
    b, _ = model.loss(model.collate([study(2)], REPORTS[:1]))
    assert not torch.allclose(a, b, rtol=1e-4)


def test_projector_and_lora_learn_and_nothing_else(model):
    model.loss(model.collate([study(1)], REPORTS[:1]))[0].backward()
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
    before, _ = model.loss(batch)
    for p in model.projector.parameters():
        p.data.fill_(7.0)
    after, _ = model.loss(batch)
    assert torch.equal(before, after)
    after.backward()
    assert all(p.grad is None for p in model.projector.parameters())


def test_the_bridge_of_scores_has_no_slots(base):
    batch = assemble(base, "scores").collate([study(1)])
    assert (batch.ids != SLOT).all()

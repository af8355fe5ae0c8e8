"""The weights of tokens: which sentences weigh more, and that there is one for each target."""

import pytest
import torch

from llamaxr import fast
from llamaxr.data.emphasis import batch_weights, token_weights
from llamaxr.data.outline import outline_line, with_outline
from tests.test_model import assemble, study

REPORT = "The heart is normal in size. There is a small left effusion. No pneumothorax. Low lung volumes."
ODD = [
    "",
    "...",
    "No full stop",
    "A 1.5 cm nodule..  Clear.\nScoliosis",
    ". Effusion is seen",
    "Kardiomegalie: ŧß.",
]


@pytest.mark.parametrize("outline", [False, True])
def test_only_sentences_that_tell_a_finding_weigh_more(base, outline):
    tokenizer = assemble(base).tokenizer
    text = with_outline(REPORT) if outline else REPORT
    ids, weights = tokenizer.encode(text), token_weights(tokenizer, text, 3.0)
    heavy = tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w == 3])
    light = tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w == 1])
    assert heavy == " There is a small left effusion."
    assert light == text.replace(heavy, "")


@pytest.mark.parametrize("attach", [lambda model: None, fast.for_training])
@pytest.mark.parametrize("max_tokens, append_eos", [(0, True), (7, True), (300, False)])
def test_there_is_a_weight_for_each_target(base, attach, max_tokens, append_eos):
    model = assemble(base)
    attach(model)
    reports = [REPORT, *ODD]
    for texts in (
        reports,
        [with_outline(r) for r in reports],
        [outline_line(with_outline(r)) for r in reports],
    ):
        texts = [text for text in texts if text or append_eos]  # without either there is nothing to learn
        batch = model.collate([study(i) for i in range(len(texts))], texts, max_tokens, append_eos)
        weights = batch_weights(model.tokenizer, texts, 2.0, max_tokens, append_eos)
        assert weights.shape == batch.answers.shape and {*weights.tolist()} <= {1.0, 2.0}


def test_a_weight_of_one_changes_nothing(base):
    model = assemble(base)
    assert torch.equal(batch_weights(model.tokenizer, [REPORT], 1.0, 0, True).unique(), torch.ones(1))

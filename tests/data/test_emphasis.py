"""The weights of tokens: which sentences weigh more, and that there is one for each target."""

import pytest

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
        assert weights.shape == batch.target_positions.shape and {*weights.tolist()} <= {1.0, 2.0}


def test_the_weights_of_a_batch_are_those_of_its_texts_in_order_each_with_its_end(base):
    tokenizer, texts = assemble(base).tokenizer, [REPORT, "Scoliosis."]
    rows = [token_weights(tokenizer, text, 3.0) for text in texts]
    assert rows[0][0] == 1 and rows[1][0] == 3
    assert batch_weights(tokenizer, texts, 3.0, 0, True).tolist() == [*rows[0], 1.0, *rows[1], 1.0]
    assert batch_weights(tokenizer, texts, 3.0, 0, False).tolist() == [*rows[0], *rows[1]]
    assert batch_weights(tokenizer, texts, 3.0, 9, True).tolist() == [*rows[0][:9], *[*rows[1], 1.0][:9]]

"""A decoding step of fixed shapes against decoding.generate."""

import pytest
import torch

from llamaxr.decoding import generate
from llamaxr.fast import graph
from llamaxr.fast.generation import merge
from llamaxr.fast.graph import DecodingStep
from llamaxr.llama import KVCache
from tests.fast.test_generation import trained


def prompts(llama, padded):
    # A seed with which no two tokens are nearly as probable: sums in another order would swap them.
    x = llama.embed(torch.randint(0, 99, (5, 9), generator=torch.Generator().manual_seed(22)))
    return x.detach(), torch.tensor([0, 3, 1, 0, 5]) if padded else None


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("merged", [False, True])
def test_it_generates_the_same_tokens(merged, padded):
    llama = trained()
    if merged:
        merge(llama)
    x, padding = prompts(llama, padded)
    assert graph.generate(llama, x, padding, (99,), 40) == generate(llama, x, padding, (99,), 40)


def test_rows_that_have_ended_leave_and_the_others_go_on_as_before(monkeypatch):
    llama, kept = trained(), []
    x, padding = prompts(llama, padded=True)
    free = generate(llama, x, padding, (99,), 40)
    eos_ids = tuple(row[6] for row in free[:3])
    expected = generate(llama, x, padding, eos_ids, 40)
    assert [len(row) for row in expected] == [6, 6, 4, 40, 18]
    select = DecodingStep.select
    monkeypatch.setattr(DecodingStep, "select", lambda self, rows: kept.append(rows) or select(self, rows))
    assert graph.generate(llama, x, padding, eos_ids, 40) == expected
    assert [rows.tolist() for rows in kept] == [[3, 4], [0]]


def test_no_more_tokens_than_asked_for():
    llama = trained()
    x, padding = prompts(llama, padded=True)
    for n in (1, 2, 16, 17):
        assert graph.generate(llama, x, padding, (99,), n) == generate(llama, x, padding, (99,), n)


def test_a_step_moves_its_token_and_place_on_in_the_same_memory():
    llama = trained()
    x, _ = prompts(llama, padded=False)
    with torch.inference_mode():
        cache = KVCache(llama.config, 5, 16, "cpu", x.dtype)
        first = llama.logits(llama.hidden(x, None, cache)[:, -1]).argmax(-1)
        step = DecodingStep(llama, cache, first)
        where = step.tokens.data_ptr(), step.cache.place.data_ptr()
        for _ in range(3):
            assert step().data_ptr() == where[0]
    assert step.cache.place.tolist() == [12] and step.cache.place.data_ptr() == where[1]

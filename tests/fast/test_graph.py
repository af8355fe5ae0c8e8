"""A decoding step of fixed shapes against the ones that grow. On a CPU it is computed, not replayed."""

import pytest
import torch

from llamaxr.decoding import beam_search, generate
from llamaxr.fast.generation import MergedLlama, merge
from llamaxr.fast.graph import DecodingStep, PlacedCache, ReplayedLlama
from llamaxr.llama import KVCache
from tests.fast.test_generation import trained


@pytest.fixture()
def both():
    """The same merged model, once replaying its steps; prompts, and filler."""
    models = []
    for kind in (MergedLlama, ReplayedLlama):
        llama = trained()
        merge(llama)
        llama.__class__ = kind
        models.append(llama)
    # A seed with which no two tokens are nearly as probable: sums in another order would swap them.
    x = llama.embed(torch.randint(0, 99, (5, 9), generator=torch.Generator().manual_seed(22)))
    return models, x.detach(), torch.tensor([0, 3, 1, 0, 5])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("n", [1, 2, 40])
def test_it_generates_the_same_tokens(both, padded, n):
    models, x, padding = both
    merged, replayed = (generate(llama, x, padding if padded else None, (99,), n) for llama in models)
    assert replayed == merged and [len(row) for row in merged] == [n] * 5


def test_it_samples_the_same_tokens(both):
    models, x, padding = both
    how = lambda: {"temperature": 1.0, "top_p": 0.9, "generator": torch.Generator().manual_seed(1)}
    merged, replayed = (generate(llama, x, padding, (99,), 20, **how()) for llama in models)
    assert replayed == merged


def test_beam_search_finds_the_same_reports(both):
    models, x, padding = both
    eos_ids = tuple(row[6] for row in beam_search(models[0], x, padding, (99,), 20, 3)[:3])
    merged, replayed = (beam_search(llama, x, padding, eos_ids, 20, 3) for llama in models)
    assert replayed == merged and len({len(row) for row in merged}) > 1


def test_rows_that_have_ended_leave_and_the_others_go_on_as_before(both, monkeypatch):
    models, x, padding = both
    free = generate(models[0], x, padding, (99,), 40)
    eos_ids, n_rows, make = tuple(row[6] for row in free[:3]), [], DecodingStep.__init__
    monkeypatch.setattr(DecodingStep, "__init__", lambda step, x: n_rows.append(len(x)) or make(step, x))
    merged, replayed = (generate(llama, x, padding, eos_ids, 40) for llama in models)
    assert replayed == merged and [len(row) for row in merged] == [6, 6, 4, 40, 18]
    assert n_rows == [5, 2, 1]  # recorded anew only where half of the rows or fewer are left


def test_each_step_works_in_the_same_memory(both):
    (_, llama), x, _ = both
    with torch.inference_mode():
        cache = KVCache(llama.config, 5, 16, "cpu", x.dtype)
        llama.hidden(x, None, cache)
        where = set()
        for rows in ([0, 1, 2, 3, 4], [4, 0, 2], [0, 1, 2]):
            cache.select(torch.tensor(rows))
            llama.hidden(x[rows, :1], None, cache)
            tensors = [cache.step.x, cache.step.padding, cache.step.place, *sum(cache.layers, ())]
            if isinstance(cache, PlacedCache):
                where.add(tuple(t.data_ptr() for t in tensors))
    assert len(where) == 1 and cache.step.place.tolist() == [11] and cache.length == 12

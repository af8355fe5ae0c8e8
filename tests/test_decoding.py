import itertools

import pytest
import torch

from llamaxr.decoding import beam_search, draw, generate, sample, stream
from llamaxr.llama import Llama, LlamaConfig


def sharp(seed):
    """A tiny random model with sharp distributions, so that beams differ."""
    torch.manual_seed(seed)
    model = Llama(
        LlamaConfig(vocab_size=6, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64)
    )
    for p in model.parameters():
        p.data.mul_(2)
    return model.eval()


@pytest.fixture()
def llama():
    return sharp(3)


def test_a_batch_of_unequal_prompts_is_written_as_one_by_one(llama):
    a, b = llama.embed(torch.tensor([[1, 2, 3, 4, 5]])), llama.embed_tokens(torch.tensor([[4, 2]]))
    together = torch.cat([a, torch.cat([torch.ones(1, 3, 32), b], 1)]).detach()
    rows = generate(llama, together, torch.tensor([0, 3]), (0,), 12)
    assert rows == [generate(llama, x.detach(), None, (0,), 12)[0] for x in (a, b)]


def test_a_row_that_ends_leaves_the_batch_and_the_others_go_on_as_before(llama):
    prompts = torch.randint(0, 6, (8, 5), generator=torch.Generator().manual_seed(2))
    padding = torch.tensor([0, 1, 2, 0, 3, 0, 1, 4])
    x = llama.embed(prompts).detach()
    together = generate(llama, x, padding, (0, 4), 30)
    alone = [generate(llama, x[i : i + 1, p:], None, (0, 4), 30)[0] for i, p in enumerate(padding)]
    assert together == alone and len({len(row) for row in alone}) > 3


def test_writing_stops_at_the_end_token_and_does_not_give_it(llama):
    x = llama.embed(torch.tensor([[1, 2]])).detach()
    free = generate(llama, x, None, (99,), 10)[0]
    stop = free[3]
    assert generate(llama, x, None, (stop,), 10)[0] == free[: free.index(stop)]


def test_what_streams_is_what_is_generated(llama):
    x = llama.embed(torch.tensor([[1, 2], [3, 4]])).detach()
    steps = list(stream(llama, x, None, (0,), 8))
    rows = [[s[i] for s in steps if s[i] is not None] for i in range(2)]
    assert rows == generate(llama, x, None, (0,), 8)


def test_drawing_repeats_with_its_seed_and_a_tiny_nucleus_is_greedy(llama):
    x = llama.embed(torch.tensor([[1, 2]])).detach()
    draw = lambda seed, **how: generate(  # noqa: E731
        llama, x, None, (99,), 20, generator=torch.Generator().manual_seed(seed), **how
    )
    assert draw(1, temperature=2.0) == draw(1, temperature=2.0) != draw(2, temperature=2.0)
    assert draw(1, temperature=2.0, top_p=1e-6) == generate(llama, x, None, (99,), 20)
    assert draw(1, temperature=1e-40) == generate(llama, x, None, (99,), 20)  # logits / 1e-40 are infinite


def test_drawn_tokens_follow_the_distribution_cut_to_its_nucleus():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(20000, 1)
    tokens = sample(logits, 1.0, 0.75, torch.Generator().manual_seed(0))
    share = torch.bincount(tokens, minlength=4) / 20000
    assert torch.allclose(share, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.015)  # 4 standard errors


def test_it_draws_what_torch_draws():
    probs = torch.rand(50, 300, generator=torch.Generator().manual_seed(1)).mul_(2).sub_(1).clamp_(min=0)
    ours, theirs = (torch.Generator().manual_seed(2) for _ in range(2))
    for _ in range(5):
        assert torch.equal(draw(probs, ours), torch.multinomial(probs, 1, generator=theirs)[:, 0])


def test_one_beam_is_greedy(llama):
    x = llama.embed(torch.tensor([[1, 2], [5, 5]])).detach()
    assert beam_search(llama, x, None, (99,), 7, 1) == generate(llama, x, None, (99,), 7)


@pytest.mark.parametrize(
    "seed", [0, 24, 37, 49, 56]
)  # all but 0: one row's search is over before the other's
def test_beams_of_a_report_do_not_depend_on_the_others_of_the_batch(seed):
    llama = sharp(seed)
    a, b = llama.embed(torch.tensor([[1, 2, 3, 4, 5]])), llama.embed_tokens(torch.tensor([[4, 2]]))
    together = torch.cat([a, torch.cat([torch.ones(1, 3, 32), b], 1)]).detach()
    rows = beam_search(llama, together, torch.tensor([0, 3]), (0,), 12, 3)
    assert rows == [beam_search(llama, x.detach(), None, (0,), 12, 3)[0] for x in (a, b)]


def test_a_higher_temperature_flattens_the_distribution():
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    for temperature in (0.5, 1.0, 2.0):
        tokens = sample(logits.repeat(20000, 1), temperature, 1.0, torch.Generator().manual_seed(0))
        share = torch.bincount(tokens, minlength=3) / 20000
        assert torch.allclose(share, (logits / temperature).softmax(-1), atol=0.015)  # 4 standard errors


def test_enough_beams_find_the_best_of_all_reports(llama):
    prompt, length = [1, 2], 3
    x = llama.embed(torch.tensor([prompt])).detach()

    def score(text):  # mean log-probability a token, the end token (0) counted
        ids = torch.tensor([prompt + list(text)])
        with torch.no_grad():
            log_probs = llama(ids)[0].log_softmax(-1)
        return sum(log_probs[len(prompt) - 1 + i, t].item() for i, t in enumerate(text)) / len(text)

    ended = [(*t, 0) for n in range(length) for t in itertools.product(range(1, 6), repeat=n)]
    cut = list(itertools.product(range(1, 6), repeat=length))
    best = max(ended + cut, key=score)
    assert beam_search(llama, x, None, (0,), length, 36) == [[t for t in best if t != 0]]

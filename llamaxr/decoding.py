"""Decoding: from a batch of prompts to report tokens, one step at a time.

Keys and values of past positions do not change. So each step feeds one new token per row and finds the rest
in the cache. `stream` is greedy or sampled and yields tokens as they come; `generate` runs it to its end;
`beam_search` keeps several beginnings of each report and returns the one most probable per token.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .llama import KVCache, Llama


@torch.inference_mode()
def stream(
    llama: Llama,
    x: Tensor,
    padding: Tensor | None,
    eos_ids: tuple[int, ...],
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[list[int | None]]:
    """Yield at each step the next token of each row, or None for a row that has ended (EOS is not yielded).

    x (batch, time, dim): embedded prompts, with `padding` (batch,) positions of filler at the left.
    Any temperature up to 1e-3 is greedy: dividing by less could overflow. Above it, tokens are sampled from
    the smallest set with total probability top_p (Holtzman et al. 2020). generator must be on x's device.
    Stops when every row has ended, or after max_tokens steps.
    """
    batch, time, _ = x.shape
    cache = KVCache(llama.config, batch, time + max_tokens, x.device, x.dtype)
    rows, ended = list(range(batch)), [False] * batch  # rows: which of the batch the tensors still hold
    hidden = llama.hidden(x, padding, cache)  # (batch, time, dim)
    for remaining in range(max_tokens, 0, -1):
        logits = llama.logits(hidden[:, -1]).float()  # (len(rows), vocab)
        tokens = sample(logits, temperature, top_p, generator) if temperature > 1e-3 else logits.argmax(-1)
        step: list[int | None] = [None] * batch
        for row, token in zip(rows, tokens.tolist(), strict=True):
            ended[row] = ended[row] or token in eos_ids
            step[row] = None if ended[row] else token
        if all(ended):
            return
        yield step
        if remaining == 1:  # the last token needs no forward pass
            return
        active = [i for i, row in enumerate(rows) if not ended[row]]
        # Only once a quarter has ended: copying the cache whenever a row ends would cost more than it saves.
        if 4 * len(active) <= 3 * len(rows):
            index = torch.tensor(active, device=x.device)
            cache.select(index)
            tokens, rows = tokens[index], [rows[i] for i in active]
            padding = None if padding is None else padding[index]
        hidden = llama.hidden(llama.embed(tokens)[:, None], padding, cache)  # (len(rows), 1, dim)


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """A token per row from softmax(logits / temperature), cut to its nucleus: (batch, vocab) -> (batch,)."""
    probs = (logits / temperature).softmax(-1)
    if top_p >= 1:  # the whole vocabulary: nothing to cut, so nothing to sort
        return draw(probs, generator)
    probs, order = probs.sort(dim=-1, descending=True)
    before = probs.cumsum(-1) - probs  # probability ahead of each token; the first is always kept
    probs = probs.masked_fill(before >= top_p, 0.0)
    return order.gather(1, draw(probs, generator)[:, None])[:, 0]


def draw(probs: Tensor, generator: torch.Generator | None) -> Tensor:
    """An index per row, with a probability proportional to its entry: (batch, n) -> (batch,).

    argmax of p / E with E ~ Exp(1) has this distribution. torch.multinomial draws the same indices, but
    checks the sums first, and on CUDA each check makes the CPU wait."""
    return (probs / torch.empty_like(probs).exponential_(generator=generator)).argmax(-1)


def generate(
    llama: Llama, x: Tensor, padding: Tensor | None, eos_ids: tuple[int, ...], max_tokens: int, **sampling
) -> list[list[int]]:
    """Run `stream` to its end: the tokens of each row, without EOS."""
    rows: list[list[int]] = [[] for _ in range(x.shape[0])]
    for step in stream(llama, x, padding, eos_ids, max_tokens, **sampling):
        for row, token in zip(rows, step, strict=True):
            if token is not None:
                row.append(token)
    return rows


@torch.inference_mode()
def beam_search(
    llama: Llama,
    x: Tensor,
    padding: Tensor | None,
    eos_ids: tuple[int, ...],
    max_tokens: int,
    n_beams: int,
) -> list[list[int]]:
    """For each row the report with the highest mean log-probability per token that the search finds.

    x (batch, time, dim). Each step looks at the 2 * n_beams best continuations of a row: those that end are
    stored with their score, and the n_beams best of the others stay active. A row is done when n_beams
    reports have finished and no active beam beats the worst of them.
    """
    batch, time, _ = x.shape
    device, vocab = x.device, llama.config.vocab_size
    cache = KVCache(llama.config, batch, time + max_tokens, device, x.dtype)
    logits = llama.logits(llama.hidden(x, padding, cache)[:, -1])  # (batch, vocab)
    cache.select(torch.arange(batch, device=device).repeat_interleave(n_beams))
    if padding is not None:
        padding = padding.repeat_interleave(n_beams)
    logits = logits.repeat_interleave(n_beams, 0)  # (batch * n_beams, vocab)
    scores = torch.full((batch, n_beams), -torch.inf, device=device)
    scores[:, 0] = 0.0  # all beams are equal at first: only one of them may go on
    beams: list[list[int]] = [[] for _ in range(batch * n_beams)]
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(batch)]
    done = [False] * batch  # a row that is done stops there, so its report does not depend on the other rows
    for step in range(1, max_tokens + 1):
        log_probs = logits.float().log_softmax(-1).view(batch, n_beams, vocab)
        total = (scores[:, :, None] + log_probs).flatten(1)  # (batch, n_beams * vocab)
        best, index = (t.tolist() for t in total.topk(min(2 * n_beams, total.shape[1]), dim=-1))
        kept_scores, chosen, tokens = [], [], []
        for row in range(batch):
            active: list[tuple[float, int, int]] = []
            candidates = [] if done[row] else zip(best[row], index[row], strict=True)
            for score, i in candidates:
                beam, token = row * n_beams + i // vocab, i % vocab
                if token in eos_ids:
                    finished[row].append((score / step, beams[beam]))
                elif len(active) < n_beams:
                    active.append((score, beam, token))
            # Done, or fewer continuations than beams (several EOS ids): fill up with beams that cannot win.
            active += [(-torch.inf, row * n_beams, 0)] * (n_beams - len(active))
            finished[row] = sorted(finished[row], key=lambda e: -e[0])[:n_beams]
            kept_scores.append([score for score, _, _ in active])
            chosen += [beam for _, beam, _ in active]
            tokens += [token for _, _, token in active]
        beams = [[*beams[beam], token] for beam, token in zip(chosen, tokens, strict=True)]
        scores = torch.tensor(kept_scores)  # (batch, n_beams)
        leading = (scores[:, 0] / step).tolist()  # per row: the best active beam's mean, as in `finished`
        done = [len(e) == n_beams and e[-1][0] >= lead for e, lead in zip(finished, leading, strict=True)]
        if step == max_tokens or all(done):
            break
        scores = scores.to(device)
        cache.select(torch.tensor(chosen, device=device))
        new = llama.embed(torch.tensor(tokens, device=device))[:, None]  # (batch * n_beams, 1, dim)
        logits = llama.logits(llama.hidden(new, padding, cache)[:, -1])
    for row in range(batch):  # reports that max_tokens cut off compete with those that ended
        finished[row].append((leading[row], beams[row * n_beams]))
    return [max(e, key=lambda candidate: candidate[0])[1] for e in finished]

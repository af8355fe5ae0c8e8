"""Writing: from a batch of prompts to report tokens, one step at a time.

All of it rests on one fact: the keys and values of what was read do not change, so each step feeds one new
token a row and looks the rest up in the cache. `stream` is greedy or sampled and yields tokens as they
come; `beam_search` keeps several beginnings of each report and gives the best whole one.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .llama import KVCache, Llama

READ_AT_ONCE = {"cpu": 2**10}  # positions of prompts that go through the layers together, by device


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
    shared: int = 0,
) -> Iterator[list[int | None]]:
    """Yield, a step, each row's next token, or None for a row that has ended (EOS itself is not yielded).

    x (batch, time, dim): embedded prompts, filler at the left by `padding` (batch,). temperature 0 is greedy;
    above, tokens are drawn from the smallest set that holds probability top_p (Holtzman et al. 2020), with
    `generator` on x's device. shared: leading positions that are the same in all rows, read once. Ends when
    all rows have, or after max_tokens. A row that has ended soon leaves the batch and costs nothing more.
    """
    batch, time, _ = x.shape
    cache = KVCache(llama.config, batch, time + max_tokens, x.device, x.dtype)
    eos, rows = set(eos_ids), list(range(batch))  # rows: which of the batch the tensors still hold
    ended = [False] * batch
    hidden = read(llama, x, padding, cache, shared)  # (batch, 1, dim)
    for left in range(max_tokens, 0, -1):
        logits = llama.logits(hidden[:, -1]).float()  # (len(rows), vocab)
        tokens = logits.argmax(-1) if temperature == 0 else sample(logits, temperature, top_p, generator)
        said: list[int | None] = [None] * batch
        for row, token in zip(rows, tokens.tolist(), strict=True):
            ended[row] = ended[row] or token in eos
            said[row] = None if ended[row] else token
        if all(ended):
            return
        yield said
        if left == 1:
            return
        going = [i for i, row in enumerate(rows) if not ended[row]]
        if 4 * len(going) <= 3 * len(rows):  # copying the cache at each end would cost more than it saves
            keep = torch.tensor(going, device=x.device)
            cache.select(keep)
            tokens, rows = tokens[keep], [rows[i] for i in going]
            padding = None if padding is None else padding[keep]
        hidden = llama.hidden(llama.embed(tokens)[:, None], padding, cache)  # (len(rows), 1, dim)


def read(llama: Llama, x: Tensor, padding: Tensor | None, cache: KVCache, shared: int = 0) -> Tensor:
    """Read prompts x (batch, time, dim) into an empty cache; the last position's hidden state, (batch, 1,
    dim). The first `shared` positions, the same in all rows, are read as one row and copied. A few rows are
    read at a time on a CPU: what the layers compute on the way is then used before it leaves the cache."""
    if shared:
        one = beginning(llama, x[:1, :shared])
        for mine, its in zip(cache.buffers, one.buffers, strict=True):
            mine[:, :, :shared] = its
        x = x[:, shared:]
    last, n_rows = [], max(1, READ_AT_ONCE.get(x.device.type, 2**16) // x.shape[1])
    end = torch.tensor([x.shape[1] - 1], device=x.device)  # the one position that is asked for
    for top in range(0, len(x), n_rows):
        rows = slice(top, top + n_rows)
        part = cache.rows(rows, shared)
        last.append(llama.hidden(x[rows], None if padding is None else padding[rows], part, asked=end))
    cache.length = part.length
    return torch.cat(last)


def beginning(llama: Llama, x: Tensor) -> KVCache:
    """The cache of a beginning x (1, time, dim) of prompts. Those of all studies begin with the same words: a
    model that can no longer learn (writing.py) reads them once."""
    kept = llama.beginning
    if kept is None or not torch.equal(kept[0], x):
        kept = x.clone(), KVCache(llama.config, 1, x.shape[1], x.device, x.dtype)
        llama.hidden(x, None, kept[1])
        if llama.head is not None:  # merged
            llama.beginning = kept
    return kept[1]


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """A token a row from softmax(logits / temperature) cut to its nucleus: (batch, vocab) -> (batch,)."""
    probs = (logits / temperature).softmax(-1)
    if top_p >= 1:  # the whole vocabulary: nothing to cut, so nothing to sort
        return torch.multinomial(probs, 1, generator=generator)[:, 0]
    probs, order = probs.sort(dim=-1, descending=True)
    before = probs.cumsum(-1) - probs  # probability ahead of each token; the first is always kept
    probs = probs.masked_fill(before >= top_p, 0.0)
    return order.gather(1, torch.multinomial(probs, 1, generator=generator))[:, 0]


def generate(
    llama: Llama, x: Tensor, padding: Tensor | None, eos_ids: tuple[int, ...], max_tokens: int, **how
):
    """`stream` to its end: the tokens of each row, as lists without EOS."""
    rows: list[list[int]] = [[] for _ in range(x.shape[0])]
    for step in stream(llama, x, padding, eos_ids, max_tokens, **how):
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
    shared: int = 0,
) -> list[list[int]]:
    """The report of highest mean log-probability a token that n_beams beginnings lead to; a list a row.

    Shapes: x (batch, time, dim). Each step every beam offers its best 2 * n_beams continuations; of all, the
    best n_beams that have not ended go on, and those that ended are kept with their score. A row is done when
    n_beams reports have ended and no beam that goes on has a better score already.
    """
    batch, time, _ = x.shape
    device, vocab = x.device, llama.config.vocab_size
    cache = KVCache(llama.config, batch, time + max_tokens, device, x.dtype)
    logits = llama.logits(read(llama, x, padding, cache, shared)[:, -1])  # (batch, vocab)
    first = torch.arange(batch, device=device)[:, None] * n_beams
    cache.select(torch.arange(batch, device=device).repeat_interleave(n_beams))
    if padding is not None:
        padding = padding.repeat_interleave(n_beams)
    logits = logits.repeat_interleave(n_beams, 0)  # (batch * n_beams, vocab)
    scores = torch.full((batch, n_beams), -torch.inf, device=device)
    scores[:, 0] = 0.0  # all beams are equal at first: let one alone speak
    texts: list[list[int]] = [[] for _ in range(batch * n_beams)]
    ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(batch)]
    done = [False] * batch  # such a row offers nothing more, so that it does not depend on its neighbours
    for step in range(1, max_tokens + 1):
        log_probs = logits.float().log_softmax(-1).view(batch, n_beams, vocab)
        total = (scores[:, :, None] + log_probs).flatten(1)  # (batch, n_beams * vocab)
        best, index = total.topk(min(2 * n_beams, total.shape[1]), dim=-1)
        chosen, tokens = [], []
        for row in range(batch):
            going: list[tuple[float, int, int]] = []
            offers = [] if done[row] else zip(best[row].tolist(), index[row].tolist(), strict=True)
            for score, i in offers:
                beam, token = row * n_beams + i // vocab, i % vocab
                if token in eos_ids:
                    ended[row].append((score / step, texts[beam]))
                elif len(going) < n_beams:
                    going.append((score, beam, token))
            while len(going) < n_beams:  # done, or fewer continuations than beams: idle ones that cannot win
                going.append((-torch.inf, row * n_beams, 0))
            ended[row] = sorted(ended[row], key=lambda e: -e[0])[:n_beams]
            scores[row] = torch.tensor([g[0] for g in going], device=device)
            chosen += [g[1] for g in going]
            tokens += [g[2] for g in going]
        texts = [[*texts[beam], token] for beam, token in zip(chosen, tokens, strict=True)]
        leading = (scores[:, 0] / step).tolist()
        done = [len(e) == n_beams and e[-1][0] >= lead for e, lead in zip(ended, leading, strict=True)]
        if step == max_tokens or all(done):
            break
        cache.select(torch.tensor(chosen, device=device))
        new = llama.embed(torch.tensor(tokens, device=device))[:, None]  # (batch * n_beams, 1, dim)
        logits = llama.logits(llama.hidden(new, padding, cache)[:, -1])
    for row in range(batch):  # reports that were cut off compete with those that ended
        ended[row].append((leading[row], texts[int(first[row])]))
    return [max(e, key=lambda candidate: candidate[0])[1] for e in ended]

"""A decoding step of fixed shapes, which a CUDA graph replays: hundreds of kernel launches become one.

decoding.stream reads the keys that there are, so each token brings new shapes, and a GPU that generates one
report waits for the CPU to launch its kernels. A CUDA graph replays the same kernels on the same memory. So
here a step attends to all places of the cache, under a mask over those that are filled. The newest tokens and
their place are tensors that the step itself moves on: it copies nothing from or to the CPU.

Worth: not measured on a GPU yet, so no script uses it. Tests hold its tokens equal to decoding.generate's.
"""

import torch
from torch import Tensor

from ..llama import KVCache, Llama, attention_mask, rope_frequencies

LOOK = 16  # steps after which the CPU looks which reports have ended


class PlacedCache(KVCache):
    """A KVCache that is continued at a place which the device knows: `place` (1,)."""

    def __init__(self, cache: KVCache):
        self.layers = cache.layers
        self.n_positions = cache.layers[0][0].shape[2]
        self.place = torch.full((1,), cache.length, device=cache.layers[0][0].device)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (batch, n_kv_heads, 1, head_dim); return keys and values of all places, also of those
        not filled yet."""
        keys, values = self.layers[layer]
        return keys.index_copy_(2, self.place, k), values.index_copy_(2, self.place, v)


class DecodingStep:
    """Each call reads the newest token of each row and returns the next one: (rows,), greedy.

    cache: the prompts, read, with room for a place per call. tokens (rows,): what follows them. padding
    (rows,): filler at the left of each row. The result is the same memory each time: clone it to keep it.
    """

    def __init__(self, llama: Llama, cache: KVCache, tokens: Tensor, padding: Tensor | None = None):
        self.llama, self.cache, self.padding = llama, PlacedCache(cache), padding
        self.tokens = tokens.clone()
        self.graph: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        if not self.tokens.is_cuda:
            self.run()
            return self.tokens
        if self.graph is None:
            self.record()
        self.graph.replay()
        return self.tokens

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        self.cache.select(rows)
        self.tokens, self.graph = self.tokens[rows], None
        self.padding = None if self.padding is None else self.padding[rows]

    def record(self) -> None:
        """Record the graph, which runs nothing. Before it the step must run once, on a stream of its own:
        kernels and workspaces that are loaded at their first use cannot be recorded."""
        before, current = (self.tokens.clone(), self.cache.place.clone()), torch.cuda.current_stream()
        first_run = torch.cuda.Stream()
        first_run.wait_stream(current)
        with torch.cuda.stream(first_run):
            self.run()
        current.wait_stream(first_run)
        self.tokens.copy_(before[0])
        self.cache.place.copy_(before[1])
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.run()

    def run(self) -> None:
        """The step itself: Llama.hidden for one position per row, then the most probable token."""
        llama, place = self.llama, self.cache.place
        x = llama.embed(self.tokens)[:, None]  # (rows, 1, dim)
        positions = place if self.padding is None else place - self.padding  # (1,) or (rows,)
        angles = positions[:, None, None, None] * rope_frequencies(llama.config, x.device)
        rope = angles.cos(), angles.sin()  # (rows or 1, 1, 1, head_dim / 2)
        visible = attention_mask(
            place, self.cache.n_positions, self.padding
        )  # (rows or 1, 1, 1, n_positions)
        # Added to the scores, as CUDA's kernels want it: otherwise each layer would convert it.
        mask = x.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        for block in llama.layers:
            x = block(x, rope, mask, self.cache)
        self.tokens.copy_(llama.logits(llama.norm(x)[:, -1]).argmax(-1))
        place += 1


@torch.inference_mode()
def generate(
    llama: Llama, x: Tensor, padding: Tensor | None, eos_ids: tuple[int, ...], max_tokens: int
) -> list[list[int]]:
    """decoding.generate, greedy. A row that has ended goes on, unread, until half of the rows have."""
    batch, time, _ = x.shape
    n_positions = -(-(time + max_tokens) // 16) * 16  # aligned, or each layer would copy the mask
    cache = KVCache(llama.config, batch, n_positions, x.device, x.dtype)
    first = llama.logits(llama.hidden(x, padding, cache)[:, -1]).argmax(-1)
    step, new = DecodingStep(llama, cache, first, padding), [first]
    texts: list[list[int]] = [[] for _ in range(batch)]
    rows = list(range(batch))  # which of the batch the step still holds
    for n in range(1, max_tokens + 1):  # n tokens per row are there
        if n % LOOK == 0 or n == max_tokens:
            for row, tokens in zip(rows, torch.stack(new, dim=1).tolist(), strict=True):
                texts[row] += tokens
            new = []
            active = [i for i, row in enumerate(rows) if not set(texts[row]) & set(eos_ids)]
            if not active or n == max_tokens:
                break
            if 2 * len(active) <= len(rows):  # recording anew costs about three steps
                step.select(torch.tensor(active, device=x.device))
                rows = [rows[i] for i in active]
        new.append(step().clone())
    ends = [next((i for i, token in enumerate(text) if token in eos_ids), len(text)) for text in texts]
    return [text[:end] for text, end in zip(texts, ends, strict=True)]

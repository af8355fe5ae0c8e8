"""A decoding step of fixed shapes, which a CUDA graph replays: hundreds of kernel launches become one.

Llama.hidden attends to the filled keys, so each token has new shapes, and a GPU that generates one
report waits for the CPU to launch its kernels. A CUDA graph replays the same kernels on the same memory. So
here a step attends to all places of the cache, with those not yet filled masked out, and the index of the
place that it fills is a tensor on the device. decoding.py knows nothing of it: greedy decoding, sampling and
beam search take the same steps.

Measured on an H200 with Llama 3.1 8B's shapes: 179 tokens per second for one report, 8557 for 64; the same
steps issued kernel by kernel, 56 and 3816 (`python benchmarks/gpu.py --only decoding`). Tests hold its tokens
equal to the plain form's.
"""

import torch
from torch import Tensor

from ..llama import KVCache, attention_mask, rope_frequencies
from .generation import MergedLlama


class PlacedCache(KVCache):
    """A KVCache in fixed memory, whose write position is a tensor on the device. After `select` only its
    first rows are in use. step: what writes to it."""

    step: "DecodingStep | None" = None

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (rows, n_kv_heads, 1, head_dim); return keys and values of all places, even those not
        filled yet."""
        return tuple(
            all_rows[: len(new)].index_copy_(2, self.step.place, new)
            for all_rows, new in zip(self.layers[layer], (k, v), strict=True)
        )

    def select(self, rows: Tensor) -> None:
        """As KVCache.select, to the front of the same memory."""
        for keys, values in self.layers:
            keys[: len(rows)], values[: len(rows)] = keys[rows], values[rows]


class DecodingStep:
    """Llama.hidden for one position per row, in the same memory each time. The first call runs the kernels
    directly, because a kernel that loads on first use cannot be captured; the second call captures them."""

    def __init__(self, x: Tensor):
        self.x, self.padding = torch.zeros_like(x), x.new_zeros(len(x), dtype=torch.long)
        self.place = torch.zeros(1, dtype=torch.long, device=x.device)
        self.hidden: Tensor | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, llama: MergedLlama, x: Tensor, padding: Tensor | None, cache: PlacedCache) -> Tensor:
        """x (at most as many rows as the first x, 1, dim) -> their hidden states until the next call."""
        self.x[: len(x)] = x
        if padding is not None:
            self.padding[: len(x)] = padding
        self.place.fill_(cache.length)
        if self.hidden is None or not x.is_cuda:
            self.hidden = self.run(llama, cache)
        else:
            if self.graph is None:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):  # runs nothing
                    self.hidden = self.run(llama, cache)
            self.graph.replay()
        cache.length += 1
        return self.hidden[: len(x)]

    def run(self, llama: MergedLlama, cache: PlacedCache) -> Tensor:
        frequencies = rope_frequencies(llama.config, self.x.device)
        angles = (self.place - self.padding)[:, None, None, None] * frequencies
        rope = angles.cos(), angles.sin()  # (rows, 1, 1, head_dim / 2)
        n_places = cache.layers[0][0].shape[2]
        # Added to the scores, as CUDA's kernels want it, from aligned memory: else each layer would copy it.
        visible = attention_mask(self.place, -(-n_places // 16) * 16, self.padding)  # (rows, 1, 1, n_places)
        mask = self.x.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)[..., :n_places]
        x = self.x
        for block in llama.layers:
            x = block(x, rope, mask, cache)
        return llama.norm(x)


class ReplayedLlama(MergedLlama):
    """MergedLlama that replays its decoding step."""

    def hidden(self, x: Tensor, padding: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """As MergedLlama.hidden. After the prompts the cache is a PlacedCache."""
        if cache is None or cache.length == 0:
            return super().hidden(x, padding, cache)
        cache.__class__ = PlacedCache
        if cache.step is None or 2 * len(x) <= len(cache.step.x):  # recording anew costs about three steps
            cache.step = DecodingStep(x)
        return cache.step(self, x, padding, cache)

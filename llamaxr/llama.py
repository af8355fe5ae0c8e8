"""LLaMA 3.1, written out: embeddings in, hidden states and logits out.

A decoder-only transformer (Touvron et al. 2023; Dubey et al. 2024, section 3.2). Each block adds two things
to a residual stream: attention over the past (grouped-query, rotary positions) and a gated feed-forward
(SwiGLU), each behind an RMSNorm. LLaMA 3.1 differs from LLaMA 3 by its rotary frequencies alone: the slow
ones are slowed further so that 8,192 trained positions stretch to 131,072.

Module names are those of Hugging Face checkpoints (`layers.0.self_attn.q_proj`), so weights.py maps by name.

Shapes: batch, time (new positions), past + time = n_keys, dim = n_heads * head_dim.
"""

import copy
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .fast import training as by_hand

HEAD_NUMBERS = 2**20  # of the vocabulary projection, held in 16 bits: so many exist in fp32 at once
SHORT = 512  # positions of a row whose attention scores are kept whole when training on a CPU


@dataclass(frozen=True)
class RopeScaling:
    """LLaMA 3.1's stretch of the rotary frequencies (`rope_type: llama3` in a checkpoint's config.json)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of one LLaMA. The defaults are LLaMA 3.1 8B's."""

    vocab_size: int = 128256
    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int = 8
    head_dim: int = 128
    ffn_dim: int = 14336
    norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = RopeScaling()
    max_positions: int = 131072
    tie_embeddings: bool = False


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, computed in fp32 whatever x is (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if by_hand.wanted(x):
            return by_hand.rms_norm(x, self.weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


@functools.lru_cache(maxsize=8)
def rope_frequencies(config: LlamaConfig, device: torch.device) -> Tensor:
    """Radians a position for each pair of a head's dimensions, fp32, shape (head_dim / 2,).

    Plain RoPE (Su et al. 2021): theta ** (-2i / head_dim). LLaMA 3.1 leaves waves shorter than
    original_max_positions / high_freq_factor alone, divides the frequency of those longer than
    original_max_positions / low_freq_factor by `factor`, and blends in between.
    """
    exponents = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
    # Rounded as transformers rounds: the last bit of a frequency near 1 is 0.006 radian at position 100,000.
    frequencies = 1.0 / config.rope_theta**exponents
    s = config.rope_scaling
    if s is None:
        return frequencies
    waves = s.original_max_positions / (2 * math.pi / frequencies)  # whole turns within the trained length
    keep = ((waves - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)
    return keep * frequencies + (1 - keep) * frequencies / s.factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + head_dim / 2) of x by its position's angle: the half-split convention.

    Hugging Face checkpoints have their q and k rows permuted for this one; Meta's own files pair (2i, 2i + 1)
    and must not be fed here. x (batch, heads, time, head_dim); cos, sin (batch or 1, 1, time, head_dim / 2).
    """
    if by_hand.wanted(x):
        return by_hand.rotate(x, cos, sin)
    a, b = x.float().chunk(2, dim=-1)  # fp32: at position 100,000 a bf16 angle is off by hundreds of radians
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class KVCache:
    """Keys and values of the positions already read: for each layer one buffer of a fixed size, (batch,
    2 * n_kv_heads, n_positions, head_dim), the keys' heads before the values'."""

    def __init__(self, config: LlamaConfig, batch: int, n_positions: int, device, dtype):
        shape = (batch, 2 * config.n_kv_heads, n_positions, config.head_dim)
        self.buffers = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]
        self.length = 0  # positions filled; Llama.hidden moves it once all layers have written

    def extend(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values kv (batch, 2 * n_kv_heads, time, head_dim); give the keys and the values of
        all so far, (batch, n_kv_heads, n_keys, head_dim) each."""
        buffer, end = self.buffers[layer], self.length + kv.shape[2]
        assert end <= buffer.shape[2], "the cache is full"
        buffer[:, :, self.length : end] = kv
        return buffer[:, :, :end].chunk(2, dim=1)

    def rows(self, rows: slice, length: int) -> "KVCache":
        """A cache of some of the rows, in the same memory, of which `length` positions are filled."""
        part = copy.copy(self)
        part.buffers = [buffer[rows] for buffer in self.buffers]
        part.length = length
        return part

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order, repeats allowed (beam search, finished reports)."""
        for layer, buffer in enumerate(self.buffers):  # one after the other: no two whole caches at once
            self.buffers[layer] = buffer[rows]


@dataclass(frozen=True)
class Packing:
    """Rows of unequal length that begin alike, laid end to end as one: their common beginning once, then what
    each row has of its own. Linears and norms then see each position once and no filler; attention alone must
    know who belongs together.

    positions (n,): of each place of the packed row, its position in its own row. rows (batch, time): the
    places that each row reads, from the common beginning on, filled up to the longest at the right, where
    no other position looks. back (n,): where in rows, read one after the other, each place stands. sizes: how
    many places the beginning has, then each row of its own.
    """

    positions: Tensor
    rows: Tensor
    back: Tensor
    sizes: list[int]

    @classmethod
    def of(cls, lengths: list[int], shared: int) -> "Packing":
        """For rows of these lengths, all longer than `shared`, their common beginning."""
        assert 0 <= shared < min(lengths)
        own = torch.tensor(lengths) - shared
        places = torch.arange(int(own.max()))[None]  # (1, time)
        valid = places < own[:, None]  # (batch, time)
        own_places = shared + (own.cumsum(0) - own)[:, None] + places.where(valid, 0)
        beginning = torch.arange(shared)
        positions = torch.cat([beginning, shared + places.expand_as(valid)[valid]])
        rows = torch.cat([beginning.expand(len(own), -1), own_places], dim=1)
        last = torch.cat([torch.zeros(len(own), shared, dtype=torch.bool), valid], dim=1)
        back = torch.cat([beginning, last.flatten().nonzero()[:, 0]])
        return cls(positions, rows, back, [shared, *own.tolist()])

    def to(self, device) -> "Packing":
        places = (t.to(device, non_blocking=True) for t in (self.positions, self.rows, self.back))
        return Packing(*places, self.sizes)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention in the packed row, (1, heads, n, head_dim) as q."""
        plain = q.device.type == "cpu" and q.dtype == torch.float32 and not torch.compiler.is_compiling()
        if plain and self.rows.shape[1] <= SHORT:
            return self.attend_row_by_row(q, k, v)

        def rows(x: Tensor) -> Tensor:
            """(1, heads, n, head_dim) -> (batch, heads, time, head_dim)"""
            at = x[0].transpose(0, 1).index_select(0, self.rows.flatten())  # a position's heads lie together
            return at.unflatten(0, self.rows.shape).transpose(1, 2)

        # The beginning is attended from in each row again: less work than a mask in place of plain causality.
        gqa = q.shape[1] != k.shape[1]
        y = F.scaled_dot_product_attention(rows(q), rows(k), rows(v), is_causal=True, enable_gqa=gqa)
        return y.transpose(1, 2).flatten(0, 1).index_select(0, self.back).transpose(0, 1)[None]

    def attend_row_by_row(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same, written out: softmax(q k^T / sqrt(head_dim) + mask) v of one row after the other, without
        filler. On a CPU whole matrix products are faster than the fused kernel's, of 32 queries each; but all
        scores are kept for the backward pass, so the rows must be short."""
        time, group, scale = self.rows.shape[1], q.shape[1] // k.shape[1], q.shape[-1] ** -0.5
        future = torch.full((time, time), -torch.inf).triu_(1)  # no position sees those after it
        queries, keys, values = (x[0].split(self.sizes, dim=1) for x in (q, k, v))
        out = []
        for i, (q, k, v) in enumerate(zip(queries, keys, values, strict=True)):
            if i > 0:  # a row's own places see the common beginning too
                k, v = torch.cat((keys[0], k), dim=1), torch.cat((values[0], v), dim=1)
            k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)  # (n_heads, n_keys, head_dim)
            n_keys = k.shape[1]
            mask = future[n_keys - q.shape[1] : n_keys, :n_keys]  # (time, n_keys)
            scores = torch.baddbmm(mask, q, k.mT, alpha=scale)  # (n_heads, time, n_keys)
            out.append((scores.softmax(-1) @ v).transpose(0, 1))  # (time, n_heads, head_dim)
        return torch.cat(out).transpose(0, 1)[None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, packing: Packing | None) -> Tensor:
    """Attention of queries (batch, n_heads, time, head_dim) to keys and values (batch, n_kv_heads, n_keys,
    head_dim): (batch, time, n_heads * head_dim)."""
    if packing is not None:
        y = packing.attend(q, k, v)
    else:  # Without a mask, either the past is empty (plain causal) or one new token may see all of it.
        causal, gqa = mask is None and q.shape[2] > 1, q.shape[1] != k.shape[1]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=gqa)
    return y.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023): n_heads queries share n_kv_heads keys and values."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        c = config
        self.q_proj = nn.Linear(c.dim, c.n_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.dim, c.n_kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.dim, c.n_kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.n_heads * c.head_dim, c.dim, bias=False)

    def forward(self, x: Tensor, rope, mask: Tensor | None, cache: KVCache | None, packing: Packing | None):
        batch, time, _ = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, time, -1, self.config.head_dim).transpose(1, 2)

        q = rotate(heads(self.q_proj(x)), *rope)  # (batch, n_heads, time, head_dim)
        k = rotate(heads(self.k_proj(x)), *rope)  # (batch, n_kv_heads, time, head_dim)
        v = heads(self.v_proj(x))
        if cache is not None:
            k, v = cache.extend(self.layer, torch.cat((k, v), dim=1))  # (batch, n_kv_heads, n_keys, head_dim)
        return self.o_proj(attend(q, k, v, mask, packing))  # (batch, time, dim)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)  # (batch, time, ffn_dim)
        return self.down_proj(by_hand.swiglu(gate, up) if by_hand.wanted(x) else F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, rope, mask, cache, packing, asked: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache, packing)
        if asked is not None:
            x = x.index_select(1, asked)  # (batch, n, dim)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The language model. `model(ids)` gives logits; `hidden` and `logits` are its two halves, apart because
    the vocabulary projection is the dearest layer and training wants it at the report's positions only."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        # Of training alone: keep each block's input only, and compute the block again in the backward pass;
        # run the blocks by this compiled Block.forward.
        self.recompute, self.compiled = False, None
        words = torch.empty(config.vocab_size, config.dim)
        if not words.is_meta:  # there, where no numbers are, normal_ would import torch's compiler (a second)
            words.normal_()
        self.embed_tokens = nn.Embedding.from_pretrained(words, freeze=False)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        # Of writing alone: the vocabulary projection in a form to write with (writing.py), and the beginning
        # that was read last, with its cache (decoding.py).
        self.head: nn.Module | None = None
        self.beginning: tuple[Tensor, KVCache] | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (batch, time) -> logits (batch, time, vocab_size)."""
        return self.logits(self.hidden(self.embed(ids)))

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (batch, time) -> embeddings (batch, time, dim), in the dtype the model computes in."""
        return self.embed_tokens(ids).to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in: the norms' dtype. The embedding and the head may be held in less."""
        return self.norm.weight.dtype

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., dim) -> logits (..., vocab_size)."""
        if self.head is not None:
            return self.head(hidden)
        weight = self.head_weight
        if weight.dtype == hidden.dtype:
            return F.linear(hidden, weight)
        logits = hidden.new_empty(*hidden.shape[:-1], len(weight))
        for rows, w in self.widened_head(hidden.dtype):
            logits[..., rows] = F.linear(hidden, w)
        return logits

    def logits_backward(self, grad: Tensor) -> Tensor:
        """Gradient of logits (n, vocab_size) -> of the hidden states that gave them (n, dim)."""
        if self.head_weight.dtype == grad.dtype:
            return grad @ self.head_weight
        dx = grad.new_zeros(len(grad), self.config.dim)
        for rows, w in self.widened_head(grad.dtype):
            dx.addmm_(grad[:, rows], w)
        return dx

    def widened_head(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """The vocabulary projection's weight, held in 16 bits, in what the model computes in: some rows at a
        time, exact, and without a second copy of it. They lie in one buffer, which the next ones overwrite:
        memory that is new each time costs more than the widening."""
        weight, n_rows = self.head_weight, max(1, HEAD_NUMBERS // self.config.dim)
        buffer = weight.new_empty(n_rows, weight.shape[1], dtype=dtype)
        for top in range(0, len(weight), n_rows):
            part = weight[top : top + n_rows]
            yield slice(top, top + len(part)), buffer[: len(part)].copy_(part)

    @property
    def head_weight(self) -> Tensor:
        """The vocabulary projection's weight (vocab_size, dim)."""
        return (self.embed_tokens if self.config.tie_embeddings else self.lm_head).weight

    def compile_blocks(self) -> None:
        """Train by one compiled function for all blocks (torch.compile), for batches of any length. Writing
        stays as it is: with a cache that grows, each token would be another shape."""
        self.compiled = torch.compile(Block.forward, dynamic=True)

    def hidden(
        self,
        x: Tensor,
        padding: Tensor | None = None,
        cache: KVCache | None = None,
        packing: Packing | None = None,
        asked: Tensor | None = None,
    ) -> Tensor:
        """Embeddings (batch, time, dim) -> hidden states after the last norm, same shape.

        padding (batch,): how many positions at the left of each row are filler (0 to time); they are never
        attended to and do not count as positions. None where no row has any. cache: where x continues.
        packing: x is one row, in which several lie end to end. asked (n,): the positions whose hidden states
        are wanted, (batch, n, dim); the last block's feed-forward then does no more than those.
        """
        past = cache.length if cache is not None else 0
        time, device = x.shape[1], x.device
        slots = torch.arange(past, past + time, device=device)  # (time,) places in the row, filler included
        positions = slots[None] if padding is None else (slots[None] - padding[:, None]).clamp(min=0)
        if packing is not None:
            positions = packing.positions[None]
        angles = positions[:, None, :, None].float() * rope_frequencies(self.config, device)
        rope = angles.cos(), angles.sin()  # (batch or 1, 1, time, head_dim / 2)
        if self.head is not None:
            rope = torch.complex(*rope)  # as writing.py's blocks turn with it
        mask = None
        if padding is not None or (past and time > 1):
            mask = attention_mask(slots, past + time, padding)
        for i, block in enumerate(self.layers):
            how = rope, mask, cache, packing, asked if i + 1 == len(self.layers) else None
            if self.compiled and x.requires_grad:
                block = functools.partial(self.compiled, block)
            if self.recompute and x.requires_grad:
                x = checkpoint(block, x, *how, use_reentrant=False)
            else:
                x = block(x, *how)
        if cache is not None:
            cache.length += time
        return self.norm(x)


def attention_mask(slots: Tensor, n_keys: int, padding: Tensor | None) -> Tensor:
    """True where a query may look: (batch or 1, 1, time, n_keys). slots (time,): the queries' places."""
    keys, queries = torch.arange(n_keys, device=slots.device), slots[:, None]
    mask = (keys <= queries)[None, None]  # (1, 1, time, n_keys)
    if padding is not None:
        # A filler sees itself, so that no row of the softmax is empty (an empty one is NaN).
        mask = mask & (keys >= padding[:, None, None, None]) | (keys == queries)
    return mask

"""LLaMA 3.1 (Dubey et al. 2024, section 3.2): a decoder-only transformer. Ids or embeddings in, logits out.

Each block adds two things to a residual stream: attention over the past (grouped-query, rotary positions) and
a gated feed-forward (SwiGLU), each behind an RMSNorm. LLaMA 3.1 differs from LLaMA 3 only in its rotary
frequencies: the slow ones are slowed further, which stretches 8,192 trained positions to 131,072.

Module names are those of Hugging Face checkpoints (`layers.0.self_attn.q_proj`), so weights.py maps by name.

Shapes: batch, time (new positions), n_keys (time + cached positions), dim (in LLaMA n_heads * head_dim).
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class RopeScaling:
    """LLaMA 3.1's stretch of the rotary frequencies (`rope_type: llama3` in a checkpoint's config.json)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of one LLaMA. The defaults are those of LLaMA 3.1 8B."""

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
    tie_embeddings: bool = False


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, normalised in fp32 whatever x is (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


@functools.lru_cache(maxsize=8)
def rope_frequencies(config: LlamaConfig, device: torch.device) -> Tensor:
    """Radians per position for each pair i of a head's dimensions: (head_dim / 2,) in fp32.

    Plain RoPE (Su et al. 2021) is theta ** (-2i / head_dim). LLaMA 3.1 keeps the fast waves, which make over
    high_freq_factor turns in the trained length, slows those under low_freq_factor, and blends in between.
    """
    exponents = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
    # Not theta ** -exponents: rounds as transformers does. The last bit is 0.006 radian at position 100,000.
    frequencies = 1.0 / config.rope_theta**exponents
    s = config.rope_scaling
    if s is None:
        return frequencies
    turns = s.original_max_positions / (2 * math.pi / frequencies)  # full turns within the trained length
    keep = ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)
    return keep * frequencies + (1 - keep) * frequencies / s.factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + head_dim / 2) of x by its position's angle: the half-split convention.

    Hugging Face permutes q and k rows for it; Meta's own files pair (2i, 2i + 1) and must not be loaded here.
    x (batch, heads, time, head_dim); cos, sin (batch or 1, 1, time, head_dim / 2).
    """
    a, b = x.float().chunk(2, dim=-1)  # each (batch, heads, time, head_dim / 2)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class KVCache:
    """Keys and values of the positions read so far: a pair of preallocated tensors per layer."""

    def __init__(self, config: LlamaConfig, batch: int, n_positions: int, device, dtype):
        shape = (batch, config.n_kv_heads, n_positions, config.head_dim)
        new = lambda: torch.zeros(shape, device=device, dtype=dtype)
        self.layers = [(new(), new()) for _ in range(config.n_layers)]
        self.length = 0  # positions filled; Llama.hidden advances it after the last layer

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v (batch, n_kv_heads, time, head_dim); return all keys and values so far."""
        keys, values = self.layers[layer]
        end = self.length + k.shape[2]
        keys[:, :, self.length : end], values[:, :, self.length : end] = k, v
        return keys[:, :, :end], values[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; repeats allowed (beam search, finished reports)."""
        for layer, (keys, values) in enumerate(self.layers):  # layer by layer: no two whole caches in memory
            self.layers[layer] = keys[rows], values[rows]


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023): n_heads queries share n_kv_heads keys and values."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.head_dim, self.layer = config.head_dim, layer
        q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, q_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, kv_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, kv_dim, bias=False)
        self.o_proj = nn.Linear(q_dim, config.dim, bias=False)

    def forward(self, x: Tensor, rope: tuple, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        batch, time, _ = x.shape
        heads = lambda y: y.view(batch, time, -1, self.head_dim).transpose(1, 2)
        q = rotate(heads(self.q_proj(x)), *rope)  # (batch, n_heads, time, head_dim)
        k = rotate(heads(self.k_proj(x)), *rope)  # (batch, n_kv_heads, time, head_dim)
        v = heads(self.v_proj(x))
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (batch, n_kv_heads, n_keys, head_dim)
        # is_causal, not a mask, is what CUDA's flash kernel takes. One new position has no future to hide.
        causal = time > 1 and mask is None
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (batch, time, dim)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # through (batch, time, ffn_dim)


class Block(nn.Module):
    """x + attention(norm(x)), then + feed-forward(norm(...)): (batch, time, dim) in and out."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, rope: tuple, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """`model(ids)` gives logits. `embed`, `hidden` and `logits` are its three steps: LLaMA-XR inserts soft
    tokens after the first, and runs the third, which is expensive, only where a token is predicted."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        # Std 1, as in nn.Embedding. normal_ on the meta device imports torch's compiler: that takes a second.
        words = torch.empty(config.vocab_size, config.dim).uniform_(-(3**0.5), 3**0.5)
        self.embed_tokens = nn.Embedding.from_pretrained(words, freeze=False)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (batch, time) -> logits (batch, time, vocab_size)."""
        return self.logits(self.hidden(self.embed(ids)))

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (batch, time) -> embeddings (batch, time, dim), in the dtype the model computes in."""
        return self.embed_tokens(ids).to(self.dtype)

    def hidden(self, x: Tensor, padding: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Embeddings (batch, time, dim) -> hidden states after the last norm, same shape.

        padding (batch,): how many positions on the left of each row are filler. No token attends to them, and
        RoPE counts from the first token after them. cache: keys and values of the positions before x.
        """
        past, time = (0 if cache is None else cache.length), x.shape[1]
        indices = torch.arange(past, past + time, device=x.device)  # (time,) in the row, filler included
        positions = indices[None] if padding is None else (indices - padding[:, None]).clamp(min=0)
        # In fp32: at position 100,000 a bf16 angle is off by hundreds of radians.
        angles = positions[:, None, :, None] * rope_frequencies(self.config, x.device)
        rope = angles.cos(), angles.sin()  # (batch or 1, 1, time, head_dim / 2)
        # No mask: a row read from its start is plainly causal, and a single new token sees all of the past.
        unmasked = padding is None and (past == 0 or time == 1)
        mask = None if unmasked else attention_mask(indices, past + time, padding)
        for block in self.layers:
            x = block(x, rope, mask, cache)
        if cache is not None:
            cache.length += time
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., dim) -> logits (..., vocab_size)."""
        # A 16-bit head is widened in pieces: LLaMA 3.1 8B's takes 2 GiB in fp32. (Autograd keeps them all.)
        pieces = self.head_weight.split(2**15)
        return torch.cat([F.linear(hidden, rows.to(hidden.dtype)) for rows in pieces], dim=-1)

    @property
    def head_weight(self) -> Tensor:
        """The vocabulary projection's weight: (vocab_size, dim)."""
        return (self.embed_tokens if self.config.tie_embeddings else self.lm_head).weight

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in: the norms' dtype. The embedding and the head may be held in less."""
        return self.norm.weight.dtype


def attention_mask(indices: Tensor, n_keys: int, padding: Tensor | None) -> Tensor:
    """True where a query may look: (batch or 1, 1, time, n_keys). indices (time,): of the queries."""
    keys, queries = torch.arange(n_keys, device=indices.device), indices[:, None]  # (n_keys,), (time, 1)
    first = indices.new_zeros(1) if padding is None else padding
    mask = (keys <= queries) & (keys >= first[:, None, None])  # (batch or 1, time, n_keys)
    return (mask | (keys == queries))[:, None]  # a filler sees itself: an empty softmax row would be NaN

"""The form that generates fastest: the same LLaMA, with fewer bytes and fewer calls per token.

Generating a token reads every weight from memory once and uses it once. So it takes as long as reading the
weights, and on a CPU every call costs more than its arithmetic. Therefore

- each weight is merged with its adapter, once, and held in 16 bits: nothing is dequantised per token. On CUDA
  that is bf16. On a CPU that computes in fp32 it is fp16: FBGEMM's kernel widens each weight in a register on
  its way into an fp32 product, which costs a rounding of 2^-11 of each weight;
- q, k and v, which read the same x, are one product; gate and up likewise;
- a norm's weight, which scales the columns of x, scales the columns of the weights that read x instead;
- the rows of q and k are in the order of Meta's own checkpoints, in which the two numbers of a pair that RoPE
  rotates are adjacent: to rotate them is to multiply by a complex number;
- the prefix that prompts share is read once, and its keys and values are copied (`prefix_cache`).

Measured: 2.9 times the tokens per second of transformers + PEFT + bitsandbytes for one report on a CPU
(`python benchmarks/decode_peer.py BASE annotation.json --work one`). Nothing here can be trained.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..llama import Block, KVCache, Llama
from ..lora import LoRALinear
from ..model import LlamaXR

READ_AT_ONCE = 2**10  # positions of prompts that go through the layers together on a CPU


def packs_in_16_bits(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights are held in fp16 while fp32 is computed: where FBGEMM exists (x86 with AVX2)."""
    has_kernel = "fbgemm" in torch.backends.quantized.supported_engines
    return device.type == "cpu" and dtype == torch.float32 and has_kernel


class Fp16Linear(nn.Module):
    """y = x W^T in fp32, with W (out_features, in_features) held in fp16, in FBGEMM's memory layout."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.nbytes = 2 * weight.numel()
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


def linear_of(*weights: Tensor, dtype: torch.dtype, norm: nn.Module | None = None) -> nn.Module:
    """The fastest layer y = x W^T on the weights' device, for an x of that dtype. Several weights that read
    the same x become one layer, outputs end to end. norm: the RMSNorm whose weight scales their x."""
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]  # (all out_features, in_features)
    if norm is not None:
        weight = weight.float() * norm.weight.float()
    if packs_in_16_bits(weight.device, dtype):
        return Fp16Linear(weight)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    return linear


def weight_of(layer: nn.Module) -> Tensor:
    """A layer's weight, merged with its adapter. That of an NF4 base is the dequantised one."""
    return layer.merged() if isinstance(layer, LoRALinear) else layer.weight


def interleave(weight: Tensor, head_dim: int) -> Tensor:
    """The weight of q or k with each head's rows in Meta's order: row i next to row i + head_dim / 2."""
    heads = weight.view(-1, 2, head_dim // 2, weight.shape[1])  # (heads, 2, head_dim / 2, in_features)
    return heads.transpose(1, 2).reshape(weight.shape)


def rotate_interleaved(x: Tensor, rope: Tensor) -> None:
    """llama.rotate for adjacent pairs, in place. x (batch, heads, time, head_dim); rope complex, (batch or 1,
    1, time, head_dim / 2)."""
    wide = x.float()  # x itself where it is fp32
    torch.view_as_complex(wide.unflatten(-1, (-1, 2))).mul_(rope)
    if wide is not x:
        x.copy_(wide)


class MergedBlock(nn.Module):
    """llama.Block, merged."""

    def __init__(self, block: Block, dtype: torch.dtype):
        super().__init__()
        attention, mlp = block.self_attn, block.mlp
        norm, mlp_norm = block.input_layernorm, block.post_attention_layernorm
        self.layer, self.head_dim = attention.layer, attention.head_dim
        self.eps = norm.eps
        q, k, v = map(weight_of, (attention.q_proj, attention.k_proj, attention.v_proj))
        q, k = (interleave(weight, self.head_dim) for weight in (q, k))
        self.n_heads, self.n_kv_heads = (len(weight) // self.head_dim for weight in (q, k))
        self.qkv_proj = linear_of(q, k, v, dtype=dtype, norm=norm)
        self.o_proj = linear_of(weight_of(attention.o_proj), dtype=dtype)
        gate, up = weight_of(mlp.gate_proj), weight_of(mlp.up_proj)
        self.gate_up_proj = linear_of(gate, up, dtype=dtype, norm=mlp_norm)
        self.down_proj = linear_of(weight_of(mlp.down_proj), dtype=dtype)

    def forward(self, x: Tensor, rope, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        batch, time, _ = x.shape
        qkv = self.qkv_proj(self.normalise(x)).view(batch, time, -1, self.head_dim).transpose(1, 2)
        rotate_interleaved(qkv[:, : self.n_heads + self.n_kv_heads], torch.complex(*rope))
        q, k, v = qkv.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=1)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (batch, n_kv_heads, n_keys, head_dim)
        if time == 1:  # queries that share a key head take the time axis, so no kernel repeats the keys
            q = q.view(batch, self.n_kv_heads, -1, self.head_dim)  # (batch, n_kv_heads, group, head_dim)
        causal = mask is None and time > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=time > 1)
        y = y.reshape(batch, self.n_heads, time, self.head_dim)
        x = self.o_proj(y.transpose(1, 2).flatten(2)).add_(x)  # (batch, time, dim)
        gate, up = self.gate_up_proj(self.normalise(x)).chunk(2, dim=-1)  # (batch, time, ffn_dim) each
        return self.down_proj(F.silu(gate).mul_(up)).add_(x)

    def normalise(self, x: Tensor) -> Tensor:
        """llama.RMSNorm without its weight, which the next linear has."""
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)


class MergedLlama(Llama):
    """llama.Llama with merged blocks, a merged head and a prefix cache."""

    head: nn.Module
    prefix_cache: tuple[Tensor, KVCache] | None  # the first prompt that was read, (1, time, dim); its cache

    def hidden(self, x: Tensor, padding: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """As Llama.hidden, except where prompts without filler are read into an empty cache. There only the
        last position is returned, which decoding continues from: (batch, 1, dim)."""
        if cache is None or cache.length > 0 or padding is not None:
            return super().hidden(x, padding, cache)
        shared = self.copy_prefix(x, cache)
        x, last = x[:, shared:], []
        n_rows = max(1, READ_AT_ONCE // x.shape[1]) if x.device.type == "cpu" else len(x)
        for top in range(0, len(x), n_rows):
            rows = slice(top, top + n_rows)
            part = copy.copy(cache)  # these rows of the cache, in the same memory
            part.layers = [(keys[rows], values[rows]) for keys, values in cache.layers]
            part.length = shared
            last.append(super().hidden(x[rows], None, part)[:, -1:])
        cache.length = part.length
        return torch.cat(last)

    def copy_prefix(self, x: Tensor, cache: KVCache) -> int:
        """Fill the empty cache with the positions that all rows of x (batch, time, dim) share with the first
        prompt ever read. Returns their number, at most time - 1: the last hidden state is needed."""
        if self.prefix_cache is None:
            prefix = KVCache(self.config, 1, x.shape[1], x.device, x.dtype)
            super().hidden(x[:1], None, prefix)
            self.prefix_cache = x[:1].clone(), prefix
        known, prefix = self.prefix_cache
        n = min(x.shape[1] - 1, known.shape[1])
        same = (x[:, :n] == known[:, :n]).all(-1).all(0)  # (n,)
        shared = int(same.cumprod(0).sum())
        for (keys, values), (k, v) in zip(cache.layers, prefix.layers, strict=True):
            keys[:, :, :shared], values[:, :, :shared] = k[:, :, :shared], v[:, :, :shared]
        return shared

    def logits(self, hidden: Tensor) -> Tensor:
        """As Llama.logits."""
        return self.head(hidden)


def for_generation(model: LlamaXR) -> None:
    """Make the language model the merged one, in place; on CUDA the one that replays its steps (graph.py).
    Nothing can be trained afterwards."""
    from .graph import ReplayedLlama  # which is a MergedLlama

    merge(model.llama)
    if model.llama.norm.weight.is_cuda:
        model.llama.__class__ = ReplayedLlama


@torch.no_grad()
def merge(llama: Llama) -> None:
    """Replace block after block, so that no two exist in both forms; then the head, beside the embedding if
    they are tied."""
    for i, block in enumerate(llama.layers):
        llama.layers[i] = MergedBlock(block, llama.dtype)
        del block  # before the head is made
    llama.head, llama.prefix_cache = linear_of(llama.head_weight, dtype=llama.dtype), None
    if not llama.config.tie_embeddings:
        del llama.lm_head
    llama.__class__ = MergedLlama

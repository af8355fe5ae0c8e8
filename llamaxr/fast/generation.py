"""A trained model in the form that writes fastest: the same LLaMA, with fewer bytes and fewer calls a token.

To write one token, every weight is read once from memory and used once, so a token takes as long as reading
the weights does. Here, therefore, nothing is dequantised again for each token and no adapter stands beside
its layer: each weight is merged with its adapter, once, and held in 16 bits. On CUDA that is bf16. On a CPU
that computes in fp32 it is fp16: FBGEMM's kernel widens each weight in a register on its way into an fp32
product, half the bytes of fp32 for a rounding of 2^-11 of each weight, and activations as exact as before.
And q, k and v, which read the same x, are one product; gate and up likewise. A norm's weight, which scales
the columns of x, scales instead the columns of the weights that read it. The rows of q and k are put in the
order of Meta's own checkpoints, in which the two numbers of a pair that RoPE turns lie side by side: to turn
them is then to multiply a complex number.

Nothing here learns. llama.py's Block is the form to read first; MergedBlock does the same, test by test.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..llama import Block, KVCache, Llama, attend
from ..lora import LoRALinear


def packs_in_16_bits(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights are held in fp16 under fp32 arithmetic: where FBGEMM is, which is x86 with AVX2."""
    has_kernel = "fbgemm" in torch.backends.quantized.supported_engines
    return device.type == "cpu" and dtype == torch.float32 and has_kernel


class Fp16Linear(nn.Module):
    """y = x W^T in fp32, with W (out_features, in_features) held in fp16, in FBGEMM's order of memory."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.nbytes = 2 * weight.numel()
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


def linear_of(*weights: Tensor, dtype: torch.dtype, norm: nn.Module | None = None) -> nn.Module:
    """The layer y = x W^T that writes fastest where the weights lie, for an x of that dtype: one in place of
    several that read the same x, their outputs end to end. norm: whose weight scales their x."""
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]  # (all out_features, in_features)
    if norm is not None:
        weight = weight.float() * norm.weight.float()
    if packs_in_16_bits(weight.device, dtype):
        return Fp16Linear(weight)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    return linear


def weight_of(layer: nn.Module) -> Tensor:
    """A layer's weight, with its adapter. An NF4 base acts as it did: it is merged as it dequantises."""
    return layer.merged() if isinstance(layer, LoRALinear) else layer.weight


def side_by_side(weight: Tensor, head_dim: int) -> Tensor:
    """Of q or k, the rows of each head in Meta's order: row i beside its pair's other, i + head_dim / 2."""
    heads = weight.view(-1, 2, head_dim // 2, weight.shape[1])  # (heads, 2, head_dim / 2, in_features)
    return heads.transpose(1, 2).reshape(weight.shape)


def turn(x: Tensor, rope: Tensor) -> None:
    """llama.py's `rotate` for pairs that lie side by side, in place. x (batch, heads, time, head_dim); rope
    complex, (batch or 1, 1, time, head_dim / 2)."""
    wide = x.float()  # x itself where it is fp32
    torch.view_as_complex(wide.unflatten(-1, (-1, 2))).mul_(rope)
    if wide is not x:
        x.copy_(wide)


def rms_norm(x: Tensor, eps: Tensor) -> Tensor:
    """llama.py's RMSNorm without its weight, in the fewest calls: on a CPU a call costs more than its
    arithmetic on one token."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    inverse = torch.addcmul(eps, length, length, value=1 / x.shape[-1]).rsqrt_()  # (batch, time, 1)
    return (x * inverse).to(x.dtype)


class MergedBlock(nn.Module):
    """A Block of llama.py, to read prompts and write with."""

    def __init__(self, block: Block, dtype: torch.dtype):
        super().__init__()
        attention, mlp = block.self_attn, block.mlp
        self.config, self.layer = attention.config, attention.layer
        norm, mlp_norm = block.input_layernorm, block.post_attention_layernorm
        self.eps = norm.weight.new_full((1,), self.config.norm_eps, dtype=torch.float32)
        q, k, v = map(weight_of, (attention.q_proj, attention.k_proj, attention.v_proj))
        q, k = (side_by_side(weight, self.config.head_dim) for weight in (q, k))
        self.qkv_proj = linear_of(q, k, v, dtype=dtype, norm=norm)
        self.o_proj = linear_of(weight_of(attention.o_proj), dtype=dtype)
        gate, up = weight_of(mlp.gate_proj), weight_of(mlp.up_proj)
        self.gate_up_proj = linear_of(gate, up, dtype=dtype, norm=mlp_norm)
        self.down_proj = linear_of(weight_of(mlp.down_proj), dtype=dtype)

    def forward(self, x: Tensor, rope: Tensor, mask, cache: KVCache | None, packing, asked=None) -> Tensor:
        batch, time, _ = x.shape
        c = self.config
        qkv = self.qkv_proj(rms_norm(x, self.eps))
        qkv = qkv.view(batch, time, -1, c.head_dim).transpose(1, 2)  # (batch, all heads, time, head_dim)
        turn(qkv[:, : c.n_heads + c.n_kv_heads], rope)
        q, kv = qkv.split((c.n_heads, 2 * c.n_kv_heads), dim=1)
        k, v = cache.extend(self.layer, kv) if cache is not None else kv.chunk(2, dim=1)
        x = self.o_proj(attend(q, k, v, mask, packing)).add_(x)  # (batch, time, dim)
        if asked is not None:
            x = x.index_select(1, asked)  # (batch, n, dim)
        gate_up = self.gate_up_proj(rms_norm(x, self.eps))
        gate, up = gate_up.chunk(2, dim=-1)  # (batch, time or n, ffn_dim) each
        return self.down_proj(F.silu(gate).mul_(up)).add_(x)


@torch.no_grad()
def merge_for_writing(llama: Llama) -> None:
    """Put a MergedBlock in the place of each block, one after the other, so that no two exist in both forms;
    then the head, beside the embedding if they are tied. Nothing can learn afterwards."""
    for i, block in enumerate(llama.layers):
        llama.layers[i] = MergedBlock(block, llama.dtype)
        del block  # before the next is made
    llama.head = linear_of(llama.head_weight, dtype=llama.dtype)
    if not llama.config.tie_embeddings:
        del llama.lm_head

"""What training and generating will need in memory, before gigabytes are read, and what the machine has.

The counts of weights are exact: the model is laid out on the meta device, shapes without memory. What the
backward pass keeps ("activations") is counted from the blocks' own tensors.
"""

from pathlib import Path

import torch

from ..fast.gradients import CHUNK
from ..fast.packing import SHORT
from ..llama import Llama, LlamaConfig
from ..lora import TARGETS, add_lora
from ..projector import Projector

GIB = 2**30
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # per weight: 4 bits, a share of an 8-bit absmax and an fp32 scale
PROGRAM = int(0.6 * GIB)  # torch, the vision network and its buffers, as measured on a CPU


def training_needs(
    config: LlamaConfig,
    *,
    in_4_bits: bool,
    dtype: torch.dtype,
    rank: int,
    projector: tuple[int, int],
    rows: int,
    time: int,
    report_tokens: int,
    recompute: bool,
    plain: bool,
) -> dict[str, int]:
    """Bytes by purpose. projector: (channels, grid). rows, time: the largest batch of a forward pass, padded.
    report_tokens: how many positions of a row carry loss. plain: without fast/."""
    with torch.device("meta"):
        llama = Llama(config)
        linears = sum(p.numel() for n, p in llama.named_parameters() if n.split(".")[-2] in TARGETS)
        others = sum(p.numel() for p in llama.parameters()) - linears
        add_lora(llama, rank, 1.0)
        learned = sum(p.numel() for p in llama.parameters() if p.requires_grad)
        learned += sum(p.numel() for p in Projector(projector[0], config.dim, projector[1]).parameters())
    held = 2 if in_4_bits else dtype.itemsize  # the embedding and the head stay as they are stored: 16 bits
    n_logits = rows * report_tokens if plain else min(rows * report_tokens, CHUNK)
    return {
        "weights": round(linears * (NF4_BYTES if in_4_bits else dtype.itemsize) + others * held),
        "adapters and projector": learned * 4,
        "gradients and AdamW": learned * 4 * 3,
        # beside the blocks: logits, their softmax and its gradient, in fp32
        "activations": activations(config, rows, time, dtype, recompute, plain)
        + n_logits * config.vocab_size * 4 * 3,
        "program": PROGRAM,
    }


def activations(
    config: LlamaConfig, rows: int, time: int, dtype: torch.dtype, recompute: bool, plain: bool
) -> int:
    """Bytes that the blocks keep for the backward pass of this many rows and positions.

    Per position a block keeps the inputs and outputs of both norms (4 dim), q, k and v as attention reads
    them and its output, once more for o_proj (3 q + 2 kv), and gate, up and silu(gate) * up (3 ffn). In the
    plain form also silu(gate), and the norms' inputs in fp32. In the fast form short fp32 rows keep
    attention's scores, and k and v for each query head. With recompute only each block's input stays, and one
    whole block.
    """
    dim, itemsize = config.dim, dtype.itemsize
    if plain:
        norms, ffn = 2 * dim * (4 + itemsize), 4 * config.ffn_dim * itemsize
    else:
        norms, ffn = 4 * dim * itemsize, 3 * config.ffn_dim * itemsize
    if not plain and dtype == torch.float32 and time <= SHORT:
        heads = config.n_heads * (4 * config.head_dim + time)
    else:
        heads = (3 * config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    block = norms + ffn + heads * itemsize  # bytes per position
    return rows * time * (config.n_layers * dim * itemsize + block if recompute else config.n_layers * block)


def generation_needs(config: LlamaConfig, dtype: torch.dtype, itemsize: int, rows: int, time: int) -> int:
    """Bytes that fast.for_generation adds to a loaded model, and that generating then takes: merged weights
    and
    a head of `itemsize` bytes per number, the fp32 pieces of the largest merge, and the KV cache of this many
    rows and positions. What a 4-bit base frees is not counted."""
    heads = config.head_dim * (2 * config.n_heads + 2 * config.n_kv_heads)
    block = config.dim * (heads + 3 * config.ffn_dim)
    weights = (config.n_layers * block + config.vocab_size * config.dim) * itemsize
    largest = max(3 * 2 * config.ffn_dim, config.vocab_size) * config.dim * 4
    cache = rows * time * config.n_layers * 2 * config.n_kv_heads * config.head_dim * dtype.itemsize
    return weights + largest + cache


def free_memory(device: torch.device) -> int:
    """Bytes that this program may still allocate: on the GPU, or on the machine and in its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [_read("/proc/meminfo", "MemAvailable:", 1024)]
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        limits.append(limit - used)
    return min((n for n in limits if n is not None), default=2**63)


def _read(path: str, key: str = "", unit: int = 1) -> int | None:
    """The number after `key` in a system file. None where there is none ("max", or another system)."""
    try:
        words = Path(path).read_text().split()
        return int(words[words.index(key) + 1 if key else 0]) * unit
    except (OSError, ValueError, IndexError):
        return None


def table(needs: dict[str, int], free: int) -> str:
    """One line in GiB: each part, the sum, and what is free."""
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in needs.items())
    return f"memory in GiB: {parts}; in all {sum(needs.values()) / GIB:.2f} of {free / GIB:.2f} available"


def advice(needs: dict[str, int], free: int, rows: int, recompute: bool, in_4_bits: bool) -> str | None:
    """What to do where it does not fit; None where it does."""
    if sum(needs.values()) <= free:
        return None
    fixed = sum(size for name, size in needs.items() if name != "activations")
    if fixed > free:
        return "take --quantize nf4" if not in_4_bits else "take a smaller --base, or a larger machine"
    if not recompute:
        return "take --recompute, or a smaller --batch with --accumulate"
    fitting_rows = int((free - fixed) * rows / needs["activations"])
    if fitting_rows:
        return f"take --batch {fitting_rows} and more --accumulate"
    return "take a smaller --grid or a shorter report"

"""What training and writing will need in memory, told before gigabytes are read, and what the machine has.

The counts of weights are exact: the model is laid out on the meta device, shapes without memory. What the
backward pass keeps ("activations") is counted from the blocks' own tensors.
"""

from pathlib import Path

import torch

from ..fast.training import CHUNK
from ..llama import SHORT, Llama, LlamaConfig
from ..lora import TARGETS, add_lora
from ..projector import Projector

GIB = 2**30
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight's share: its 4 bits, an 8-bit absmax, an fp32 scale
PROGRAM = int(0.6 * GIB)  # torch, the vision network and its buffers, as they were measured on a CPU


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
) -> dict[str, int]:
    """Bytes by what they are for. projector: (channels, grid). rows, time: the largest batch that a forward
    pass sees, padded; report_tokens: how many of a row's positions carry loss."""
    with torch.device("meta"):
        llama = Llama(config)
        linears = sum(p.numel() for n, p in llama.named_parameters() if n.split(".")[-2] in TARGETS)
        others = sum(p.numel() for p in llama.parameters()) - linears
        add_lora(llama, rank, 1.0)
        learned = sum(p.numel() for p in llama.parameters() if p.requires_grad)
        learned += sum(p.numel() for p in Projector(projector[0], config.dim, projector[1]).parameters())
    held = 2 if in_4_bits else dtype.itemsize  # the embedding and the head stay as they are stored: 16 bits
    return {
        "weights": round(linears * (NF4_BYTES if in_4_bits else dtype.itemsize) + others * held),
        "adapters and projector": learned * 4,
        "gradients and AdamW": learned * 4 * 3,
        "activations": activations(config, rows, time, dtype, recompute)
        # a chunk's logits, their softmax and what computing it takes, in fp32
        + min(rows * report_tokens, CHUNK) * config.vocab_size * 4 * 3,
        "program": PROGRAM,
    }


def activations(config: LlamaConfig, rows: int, time: int, dtype: torch.dtype, recompute: bool) -> int:
    """Bytes that the blocks keep for the backward pass of so many rows and positions.

    A block keeps, in numbers a position: both norms' inputs and outputs (4 dim), q, k and v as attention
    reads them and what it gives, once more for o_proj (3 q + 2 kv), and the feed-forward's gate, up, and
    silu(gate) * up (3 ffn): by_hand.py sees to it that it is no more. In fp32 short rows keep attention's
    scores instead, and k and v for each of the queries' heads. With recompute only its input, and one block's
    whole at a time.
    """
    if dtype == torch.float32 and time <= SHORT:
        heads = config.n_heads * (4 * config.head_dim + time)
    else:
        heads = (3 * config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    tokens, block = rows * time, 4 * config.dim + heads + 3 * config.ffn_dim
    numbers = config.n_layers * config.dim + block if recompute else config.n_layers * block
    return tokens * numbers * dtype.itemsize


def writing_needs(config: LlamaConfig, dtype: torch.dtype, itemsize: int, rows: int, time: int) -> int:
    """Bytes that merge_for_writing adds to a loaded model, and that writing then takes: merged weights and a
    head of itemsize bytes a number, the fp32 pieces of the largest merge, and the cache of keys and values of
    so many rows and positions. What a 4-bit base gives back is not counted."""
    heads = config.head_dim * (2 * config.n_heads + 2 * config.n_kv_heads)
    block = config.dim * (heads + 3 * config.ffn_dim)
    weights = (config.n_layers * block + config.vocab_size * config.dim) * itemsize
    largest = max(3 * 2 * config.ffn_dim, config.vocab_size) * config.dim * 4
    cache = rows * time * config.n_layers * 2 * config.n_kv_heads * config.head_dim * dtype.itemsize
    return weights + largest + cache


def available(device: torch.device) -> int:
    """Bytes that a program may still take: of the GPU's memory, or of the machine's and its container's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [_read("/proc/meminfo", "MemAvailable:", 1024)]
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        free.append(limit - used)
    return min((f for f in free if f is not None), default=2**63)


def _read(path: str, key: str = "", unit: int = 1) -> int | None:
    """The number after `key` in a system file; None where there is none ("max", or another system)."""
    try:
        words = Path(path).read_text().split()
        return int(words[words.index(key) + 1 if key else 0]) * unit
    except (OSError, ValueError, IndexError):
        return None


def table(needs: dict[str, int], has: int) -> str:
    """One line: each part, the sum, and what there is, in GiB."""
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in needs.items())
    return f"memory in GiB: {parts}; in all {sum(needs.values()) / GIB:.2f} of {has / GIB:.2f} available"


def advice(needs: dict[str, int], has: int, rows: int, recompute: bool, in_4_bits: bool) -> str | None:
    """What to do where it cannot fit; None where it can."""
    lacking = sum(needs.values()) - has
    if lacking <= 0:
        return None
    fixed = sum(size for name, size in needs.items() if name != "activations")
    if fixed > has:
        return "take --quantize nf4" if not in_4_bits else "take a smaller --base, or a larger machine"
    if not recompute:
        return "take --recompute, or a smaller --batch with --accumulate"
    fits = int((has - fixed) * rows / needs["activations"])
    return (
        f"take --batch {fits} and more --accumulate" if fits else "take a smaller --grid or a shorter report"
    )

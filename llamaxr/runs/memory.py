"""What training and generating will need in memory, before gigabytes are read, and what the machine has.

The counts of weights are exact, but for the projector's, which are DenseNet-121's: the model is laid out on
the meta device, shapes without memory. What the backward pass keeps ("activations") is counted from the
blocks' own tensors. A batch that does not fit all the same ends in one line (`out_of_memory_in_one_line`).
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend

from ..errors import UserError
from ..fast.gradients import CHUNK, CUDA_HEAD_NUMBERS
from ..fast.packing import SHORT
from ..llama import Llama, LlamaConfig
from ..lora import TARGETS, LoRALinear, add_lora
from ..nf4 import NF4Linear
from ..projector import Projector
from . import checkpoint
from .distributed import world_size
from .recipes import TrainOptions
from .terminal import first_sentences, lacks_memory

GIB = 2**30
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # per weight: 4 bits, a share of an 8-bit absmax and an fp32 scale
UNPACKED = 4 / 64 - 1 / 64 - 4 / (64 * 256)  # more, where fast/nf4.py holds each absmax in fp32
MOMENTS = {"adamw": 8, "adamw8bit": 2 + 8 / 256}  # bytes per weight; 8 bits have an fp32 scale per 256
PROGRAM = int(0.6 * GIB)  # torch, the vision network and its buffers, as measured on a CPU


def training_needs(
    config: LlamaConfig,
    *,
    in_4_bits: bool,
    dtype: torch.dtype,
    rank: int,
    projector: tuple[int, int],
    prompt: int,
    shared: int,
    reports: list[int],
    recompute: bool,
    plain: bool,
    cuda: bool,
    projector_learns: bool = True,
    moments: float = 8,
) -> dict[str, int]:
    """Bytes by purpose. projector: (channels, grid). prompt: how many tokens are before each report, of which
    the first `shared` are the same for all studies. reports: how many tokens each report of the largest batch
    has. plain: without fast/. cuda: on a GPU. moments: the optimiser's bytes per weight that learns."""
    with torch.device("meta"):
        llama = Llama(config)
        linears = sum(p.numel() for n, p in llama.named_parameters() if n.split(".")[-2] in TARGETS)
        others = sum(p.numel() for p in llama.parameters()) - linears
        add_lora(llama, rank, 1.0)
        lora = sum(p.numel() for p in llama.parameters() if p.requires_grad)
        bridge = sum(p.numel() for p in Projector(projector[0], config.dim, projector[1]).parameters())
    held = 2 if in_4_bits else dtype.itemsize  # the embedding and the head stay as they are stored: 16 bits
    rows, time, n_targets = len(reports), prompt + max(reports), sum(reports)
    places = rows * time  # where a query is
    if plain:
        positions = places
    else:  # packed rows have no filler, and what all prompts begin with once
        positions = shared + rows * (prompt - shared) + n_targets
    wide_head = 4 * config.vocab_size * config.dim if held < dtype.itemsize else 0
    wide_head = wide_head if plain else min(wide_head, 4 * CUDA_HEAD_NUMBERS if cuda else 0)
    nf4_bytes = NF4_BYTES + (UNPACKED if cuda and not plain else 0)
    wide_weight = config.ffn_dim * config.dim * dtype.itemsize if in_4_bits else 0
    block = block_bytes(config, positions, places, time, dtype, plain, cuda)
    inputs = positions * config.dim * dtype.itemsize
    # These two never coexist: the logits, their softmax and its gradient in fp32, before the backward pass of
    # the blocks; and then one block's gradients, with the weight that they go through.
    logits = (n_targets if plain else min(n_targets, CHUNK)) * config.vocab_size * 4 * 3 + wide_head
    # Four gradients of the feed-forward's width, in the plain form seven, as LoRA's and the base's are added
    # out of place; or, where attention is not fused, three of its scores.
    whole = _attention(config, time, dtype, plain, cuda) == "whole"
    scores = 3 * config.n_heads * time * places * 4 if whole else 0
    gradients = max((7 if plain else 4) * config.ffn_dim * positions * dtype.itemsize, scores) + wide_weight
    kept = config.n_layers * (inputs if recompute else block)
    again = block if recompute else 0
    logits += 0 if plain else again  # the fast form does not recompute its last block
    copies = lora * dtype.itemsize if dtype.itemsize < 4 else 0  # LoRA's matrices, as they are multiplied
    return {
        "weights": round(linears * (nf4_bytes if in_4_bits else dtype.itemsize) + others * held),
        "adapters and projector": (lora + bridge) * 4,
        "gradients and AdamW": round((lora + (bridge if projector_learns else 0)) * (4 + moments)),
        "activations": kept + max(logits, gradients + again) + copies,
        "program": PROGRAM,
    }


def block_bytes(
    config: LlamaConfig, positions: int, places: int, time: int, dtype: torch.dtype, plain: bool, cuda: bool
) -> int:
    """Bytes that one block keeps for the backward pass. positions: how many its linears and norms see;
    places: how many attention sees, in rows of `time`. The fast form's shared prefix is there once per row.

    The inputs and outputs of both norms (4 dim), o_proj's input (q), and gate, up and silu(gate) * up (3 ffn)
    per position. In the plain form also silu(gate), and the norms' inputs in fp32. Per place q, k, v as
    attention reads them, and its output (2 q + 2 kv). Where attention is not fused it keeps its scores, and k
    and v for each query head, all in fp32.
    """
    dim, itemsize, q = config.dim, dtype.itemsize, config.n_heads * config.head_dim
    if plain:
        norms, ffn = 2 * dim * (4 + itemsize), 4 * config.ffn_dim * itemsize
    else:
        norms, ffn = 4 * dim * itemsize, 3 * config.ffn_dim * itemsize
    if _attention(config, time, dtype, plain, cuda) == "fused":
        heads = (2 * q + 2 * config.n_kv_heads * config.head_dim) * itemsize
    else:
        heads = ((4 if cuda else 3) * q + config.n_heads * time) * 4
    return positions * (norms + ffn + q * itemsize) + places * heads


def _attention(config: LlamaConfig, time: int, dtype: torch.dtype, plain: bool, cuda: bool) -> str:
    """How attention is computed: fused, without keeping scores; in rows, as Packing.attend does; or whole.
    CUDA's fused kernels take grouped queries in 16 bits only, and a CPU's, in torch 2.8, none at all."""
    if cuda:
        return "whole" if dtype == torch.float32 else "fused"
    if not plain and time <= SHORT:
        return "rows"
    q, kv = (torch.empty(1, heads, 1, config.head_dim) for heads in (config.n_heads, config.n_kv_heads))
    choice = torch._fused_sdp_choice(q, kv, kv, enable_gqa=True)
    return "whole" if choice == SDPBackend.MATH.value else "fused"


def generation_needs(config: LlamaConfig, dtype: torch.dtype, itemsize: int, rows: int, time: int) -> int:
    """Bytes that fast.for_generation makes, and that generating then takes: merged weights and a head of
    `itemsize` bytes per number, the KV cache of this many rows and positions, and the fp32 pieces of the
    largest merge or, if that is more, the layers' values while the prompts are read."""
    heads = config.head_dim * (2 * config.n_heads + 2 * config.n_kv_heads)
    block = config.dim * (heads + 3 * config.ffn_dim)
    weights = (config.n_layers * block + config.vocab_size * config.dim) * itemsize
    largest = max(3 * 2 * config.ffn_dim, config.vocab_size) * config.dim * 4
    reading = rows * time * (3 * config.ffn_dim + 4 * config.dim) * dtype.itemsize
    cache = rows * time * config.n_layers * 2 * config.n_kv_heads * config.head_dim * dtype.itemsize
    return weights + max(largest, reading) + cache


def freed_by_merging(llama: Llama) -> int:
    """Bytes that fast.for_generation frees, block by block: the linears, their adapters, and the head."""
    total = 0 if llama.config.tie_embeddings else llama.head_weight.nbytes
    for layer in llama.modules():
        if isinstance(layer, LoRALinear):
            n = layer.base.out_features * layer.base.in_features
            total += round(n * NF4_BYTES) if isinstance(layer.base, NF4Linear) else layer.base.weight.nbytes
            total += layer.lora_A.nbytes + layer.lora_B.nbytes
    return total


def free_memory(device: torch.device) -> int:
    """Bytes that this program may still allocate: on the GPU, or on the machine and in its container."""
    if device.type == "cuda":  # what torch has reserved and does not use, it reuses or gives back
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    limits = [_read("/proc/meminfo", "MemAvailable:", 1024)]
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        cached = (_read("/sys/fs/cgroup/memory.stat", f"{kind}active_file") or 0 for kind in ("", "in"))
        limits.append(limit - used + sum(cached))  # of files that were read: the kernel gives it back
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
        return "use --quantize nf4" if not in_4_bits else "use a smaller --base, or a larger machine"
    if not recompute:
        return "use --recompute auto, or a smaller --batch with --accumulate"
    fitting_rows = int((free - fixed) * rows / needs["activations"])
    if fitting_rows:
        return f"use --batch {fitting_rows} and more --accumulate"
    return "lower --grid or --max-report-tokens"


@contextlib.contextmanager
def out_of_memory_in_one_line(run: Path, options: TrainOptions) -> Iterator[None]:
    """Turns a training's lack of memory into a UserError with advice and the run's last checkpoint."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # a RuntimeError: CUDA's, cuBLAS's, bitsandbytes', the CPU's
        if not lacks_memory(error):
            raise
        changes = {} if options.recompute == "on" else {"recompute": "on"}
        # A smaller batch of which the same studies make a step, and which has one for each process.
        if smaller := [n for n in range(world_size(), options.batch) if options.batch % n == 0]:
            n_parts = options.batch // smaller[-1]
            changes |= {"batch": smaller[-1], "accumulate": n_parts * options.accumulate}
        changes = changes or {"max_report_tokens": options.max_report_tokens // 2}
        if checkpoint.has_checkpoint(run):
            remedy = f"set {json.dumps(changes)[1:-1]} in {run}/config.json, then go on from "
            remedy += f"{checkpoint.last(run).name} with: python train.py --resume {run}"
        else:
            flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in changes.items())
            remedy = f"there is no checkpoint yet; start again with {flags}"
        raise UserError(f"{first_sentences(error)}: {remedy}") from None

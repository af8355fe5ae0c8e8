"""The stages of gpu.py on Llama 3.1 8B's shapes: training, decoding, and the peer's on the same tensors.

The weights are random. They are made on the card, one after the other, and quantised there by bitsandbytes:
none is read from disk. The prompts are real, the grids are random numbers, and the reports are sentences of
chest radiology, about as long as IU X-ray's.
"""

import gc
import json
import random
import re
import signal
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import measure  # noqa: F401  so that llamaxr is found
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamaxr import fast
from llamaxr.decoding import generate
from llamaxr.fast.generation import merge
from llamaxr.fast.nf4 import TiledNF4Linear
from llamaxr.llama import Llama, LlamaConfig
from llamaxr.lora import TARGETS, add_lora
from llamaxr.model import Batch, LlamaXR
from llamaxr.nf4 import NF4Linear
from llamaxr.projector import Projector
from llamaxr.prompt import IGNORE, SLOT
from llamaxr.runs.run import TINY_BASE
from llamaxr.tokenizer import load_tokenizer
from llamaxr.vision import StudyFeatures
from llamaxr.weights import stored_name

GIB = 2**30
BATCH, GRID, RANK, SEED = 8, 7, 16, 0
SENTENCES = (
    "The heart is normal in size.",
    "The lungs are clear.",
    "There is no pleural effusion or pneumothorax.",
    "The cardiomediastinal silhouette is within normal limits.",
    "There is a calcified granuloma in the right mid lung.",
    "No focal airspace opacity.",
    "There is scoliosis of the thoracic spine.",
    "The bony structures are intact.",
)
Studies = tuple[list[StudyFeatures], list[str]]  # a batch: studies and their reports


@dataclass(frozen=True)
class Sizes:
    config: LlamaConfig
    form_s: int  # seconds that one form may take
    steps: int  # of training that are measured
    tokens: int  # per generated report
    sample_steps: int
    studies: int  # of the sample that are evaluated


FULL = Sizes(LlamaConfig(), form_s=60, steps=12, tokens=64, sample_steps=150, studies=100)
TINY = Sizes(LlamaConfig(1024, 256, 2, 8, 2, 32, 512), 20, steps=2, tokens=8, sample_steps=6, studies=2)


def note(**figures) -> None:
    """Print figures of this stage as a line of JSON. The main process adds them to FILE at once."""
    print(json.dumps(figures), flush=True)


def attempt(name: str, seconds: int, work: Callable[[], dict]) -> None:
    """Note what work() returns, or its error: a form that fails, or takes too long, does not stop the
    next."""

    def stop(*_):
        raise TimeoutError(f"over {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        note(**{name: work()})
    except Exception as error:
        traceback.print_exc()
        note(**{name: {"error": one_line(f"{type(error).__name__}: {error}")}})
    finally:
        signal.alarm(0)
    gc.collect()
    torch.cuda.empty_cache()


def one_line(text: str) -> str:
    """The first line, short, without the brackets that write_results looks for."""
    return re.sub(r"[][{}]", "", (text.strip().splitlines() or [""])[0])[:140]


def seconds_of(work: Callable[[], object], repeats: int = 20) -> float:
    """The median by the GPU's own clock."""
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[3:])


def bandwidth() -> float:
    """Bytes per second: the faster of copying 1 GiB, which reads and writes, and summing it."""
    a = torch.randn(GIB // 4, device="cuda")
    b = torch.empty_like(a)
    return max(2 * a.nbytes / seconds_of(lambda: b.copy_(a)), a.nbytes / seconds_of(a.sum))


def product_rate(n: int = 2048, n_in: int = 4096, n_out: int = 14336) -> float:
    """Floating-point operations per second of a bf16 product: by default of the shape of a training step."""
    x, w = (torch.randn(rows, n_in, device="cuda", dtype=torch.bfloat16) for rows in (n, n_out))
    return 2 * n * n_in * n_out / seconds_of(lambda: F.linear(x, w))


def difference(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|"""
    a, b = a.double().cpu(), b.double().cpu()
    return ((a - b).norm() / b.norm()).item()


def training(sizes: Sizes) -> None:
    recompute = lambda model: fast.recompute_blocks(model.llama)
    compiled = lambda model: fast.compile_blocks(model.llama)
    forms = {
        "plain": (BATCH, NF4Linear),
        "fast": (BATCH, TiledNF4Linear, fast.for_training),
        "fast_of_32": (32, TiledNF4Linear, fast.for_training),
        "plain_recomputed": (BATCH, NF4Linear, recompute),
        "fast_recomputed": (BATCH, TiledNF4Linear, fast.for_training, recompute),
        "plain_compiled": (BATCH, NF4Linear, compiled),
        "fast_compiled": (BATCH, TiledNF4Linear, fast.for_training, compiled),
    }
    rate = product_rate()
    note(limit_TFLOP_per_s=rate / 1e12)
    for name, (n_studies, nf4, *attach) in forms.items():
        attempt(name, sizes.form_s, partial(train_ours, sizes, rate, n_studies, nf4, attach))


def train_ours(
    sizes: Sizes, rate: float, n_studies: int, nf4: type[NF4Linear], attach: list[Callable]
) -> dict:
    model = build_ours(sizes.config, nf4).train()
    for form in attach:
        form(model)

    def mean_loss(batch: Studies) -> Tensor:
        batch = model.collate(*batch, 300).to("cuda")
        return model.loss(batch) / len(batch.target_positions)

    trainable = [p for p in model.parameters() if p.requires_grad]
    return train(sizes, rate, mean_loss, trainable, model, n_studies)


def train(
    sizes: Sizes, rate: float, mean_loss: Callable, trainable: list, model: LlamaXR, n_studies: int = BATCH
) -> dict:
    """train.py's step, for ours and for the peer. mean_loss(batch): the mean over its report tokens."""
    loaded = torch.cuda.memory_allocated()
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)
    losses, seconds, issued, positions, flops = [], [], [], [], []
    for i, batch in enumerate(
        make_batches(sizes.steps + 2, n_studies)
    ):  # two warm up; then each has new lengths
        start = time.perf_counter()
        loss = mean_loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        issued.append(time.perf_counter() - start)  # the GPU may still be at work
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
        n, work = work_of_step(model, batch)
        positions.append(n / seconds[i])
        flops.append(work / seconds[i])
        if i == 1:
            torch.cuda.reset_peak_memory_stats()
    return {"positions_per_s": statistics.median(positions[2:]),
            "studies_per_s": n_studies / statistics.median(seconds[2:]),
            "share_of_limit": statistics.median(flops[2:]) / rate,
            "first_step_s": seconds[0], "slowest_step_s": max(seconds[2:]),
            "share_of_time_to_issue": sum(issued[2:]) / sum(seconds[2:]),
            "loaded_GiB": loaded / GIB, "peak_GiB": torch.cuda.max_memory_allocated() / GIB,
            "reserved_GiB": torch.cuda.max_memory_reserved() / GIB,
            "first_loss": losses[0], "last_loss": losses[-1]}  # fmt: skip


def decoding(sizes: Sizes) -> None:
    bytes_per_s = bandwidth()
    note(limit_TB_per_s=bytes_per_s / 1e12)
    for form in ("plain", "fast", "graph"):
        for n_rows in (1, 64):
            decode_form = partial(decode_ours, sizes, bytes_per_s, form, n_rows)
            attempt(f"{form}_{n_rows}", sizes.form_s, decode_form)


def decode_ours(sizes: Sizes, bytes_per_s: float, form: str, n_rows: int) -> dict:
    before, c = torch.cuda.memory_allocated(), sizes.config
    model = build_ours(c).eval()
    if form == "fast":
        merge(model.llama)
    elif form == "graph":  # what generate.py takes: the merged form, its steps replayed
        fast.for_generation(model)
    gc.collect()
    unread = [*model.projector.parameters(), *model.projector.buffers(), model.llama.embed_tokens.weight]
    weights = torch.cuda.memory_allocated() - before - sum(t.nbytes for t in unread)
    with torch.inference_mode():
        x = model.embed(prompt_batch(model, n_rows + 1))
    figures = decode(lambda n: generate(model.llama, x[:-1], None, (), n), n_rows, sizes.tokens)
    cache = 2 * c.n_layers * c.n_kv_heads * c.head_dim * 2 * (x.shape[1] + sizes.tokens / 2) * n_rows
    limit = n_rows * bytes_per_s / (weights + cache)
    return {**figures, "limit": limit, "share_of_limit": figures["tokens_per_s"] / limit,
            "weights_GB": weights / 1e9, "prompt": x.shape[1]}  # fmt: skip


def decode(run: Callable[[int], object], n_rows: int, tokens: int) -> dict:
    """Greedy, no row ends. The rate is without the prompt and the first four tokens."""
    run(4)  # warm up
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for n in (4, tokens):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run(n)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"tokens_per_s": n_rows * (tokens - 4) / (seconds[1] - seconds[0]), "seconds": seconds[1],
            "peak_GiB": torch.cuda.max_memory_allocated() / GIB}  # fmt: skip


def peer(sizes: Sizes) -> None:
    if missing := [name for name in ("transformers", "peft") if find_spec(name) is None]:
        return note(skipped=f"not installed: {', '.join(missing)}")
    model, rate = build_ours(sizes.config, lora=False), product_rate()
    theirs = build_peer(model.llama).train()
    ids = torch.randint(3, 800, (2, 150), device="cuda")
    with torch.inference_mode():
        note(logits_difference=difference(theirs(input_ids=ids).logits, model.llama(ids)))
    trainable = [*model.projector.parameters(), *(p for p in theirs.parameters() if p.requires_grad)]

    def mean_loss(studies: Studies) -> Tensor:
        batch = model.collate(*studies, 300)
        labels = F.pad(batch.targets[:, :-1], (1, 0), value=IGNORE)  # transformers shifts them back
        lengths = torch.tensor([sum(row) for row in row_lengths(model, studies)])
        attention = (torch.arange(labels.shape[1]) < lengths[:, None]).long().to("cuda")
        inputs = {"inputs_embeds": model.embed(batch.to("cuda")), "labels": labels.to("cuda")}
        return theirs(**inputs, attention_mask=attention, use_cache=False).loss

    attempt("training", sizes.form_s, lambda: train(sizes, rate, mean_loss, trainable, model))
    theirs.eval()
    for n_rows in (1, 64):
        decode_form = partial(decode_peer, theirs, model, n_rows, sizes.tokens)
        attempt(f"decoding_{n_rows}", sizes.form_s, decode_form)


def decode_peer(theirs: nn.Module, model: LlamaXR, n_rows: int, tokens: int) -> dict:
    ids = prompt_batch(model, n_rows).ids.clamp(min=0)  # the slots read as a word: the same work
    run = lambda n: theirs.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n,
        do_sample=False, pad_token_id=0,
    )  # fmt: skip
    with torch.inference_mode():
        return decode(run, n_rows, tokens)


def build_ours(
    config: LlamaConfig,
    nf4: type[NF4Linear] = NF4Linear,
    lora: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    grid: int = GRID,
) -> LlamaXR:
    """The same weights for every form, held by the class nf4. dtype: what it computes in."""
    with torch.device("meta"):
        llama = Llama(config)
    torch.manual_seed(SEED)
    for name, meta in list(llama.named_parameters()):
        module = name.removesuffix(".weight")
        parent, _, child = module.rpartition(".")
        weight = torch.randn(meta.shape, device="cuda", dtype=torch.bfloat16).mul_(0.02)
        if child in TARGETS:
            setattr(llama.get_submodule(parent), child, nf4.quantise(weight))
        else:
            weight = torch.ones_like(weight, dtype=dtype) if "norm" in child else weight
            llama.get_submodule(module).weight = nn.Parameter(weight, requires_grad=False)
    if lora:
        add_lora(llama, RANK, RANK, device="cuda")
    torch.manual_seed(SEED)
    projector = Projector(1024, config.dim, grid, token_std=0.02).to("cuda")
    return LlamaXR(projector, llama, load_tokenizer(TINY_BASE), "tokens")


def build_peer(llama: Llama) -> nn.Module:
    """transformers' Llama with PEFT's LoRA, on the tensors of ours (which has no LoRA)."""
    import bitsandbytes as bnb
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig as PeerConfig
    from transformers import LlamaForCausalLM

    c, s = llama.config, llama.config.rope_scaling
    rope = {"rope_type": "llama3", "rope_theta": c.rope_theta, "factor": s.factor,
            "low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_max_positions}  # fmt: skip
    config = PeerConfig(vocab_size=c.vocab_size, hidden_size=c.dim, intermediate_size=c.ffn_dim,
                        num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads, head_dim=c.head_dim,
                        num_key_value_heads=c.n_kv_heads, rms_norm_eps=c.norm_eps, rope_parameters=rope,
                        max_position_embeddings=131072, tie_word_embeddings=False)  # fmt: skip
    with torch.device("meta"):
        peer = LlamaForCausalLM(config)
    for name, layer in llama.named_modules():
        if isinstance(layer, NF4Linear):
            layer.state.dtype = torch.bfloat16  # what the weights were before they were quantised
            codes = layer.state.as_dict(packed=True)
            shape, dtypes = (layer.in_features, layer.out_features), {"compute_dtype": torch.bfloat16}
            linear = bnb.nn.Linear4bit(*shape, bias=False, quant_type="nf4", device="meta", **dtypes)
            linear.weight = bnb.nn.Params4bit.from_prequantized(layer.packed, codes, False, "cuda", linear)
            parent, _, child = stored_name(name).rpartition(".")
            setattr(peer.get_submodule(parent), child, linear)
    for name, weight in llama.named_parameters():
        module = peer.get_submodule(stored_name(name).removesuffix(".weight"))
        module.weight = nn.Parameter(weight.data, requires_grad=False)
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config).to("cuda")  # computed: not left on meta
    peer.is_loaded_in_4bit = True  # so that PEFT takes its own layer for bitsandbytes' linears
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    return get_peft_model(peer, lora)


def make_batches(n: int, n_studies: int = BATCH) -> list[Studies]:
    """Batches of n_studies with both views, and reports of 2 to 9 sentences."""
    choose, numbers = random.Random(SEED), torch.Generator().manual_seed(SEED)
    study = lambda: StudyFeatures([0, 1], torch.rand(2, 1024, 7, 7, generator=numbers), torch.zeros(2, 18))
    report = lambda: " ".join(choose.choices(SENTENCES, k=choose.randint(2, 9)))
    return [([study() for _ in range(n_studies)], [report() for _ in range(n_studies)]) for _ in range(n)]


def prompt_batch(model: LlamaXR, n_rows: int) -> Batch:
    """The prompts of n_rows studies, to generate from."""
    ((studies, _),) = make_batches(1)
    return model.collate([studies[i % BATCH] for i in range(n_rows)]).to("cuda")


def row_lengths(model: LlamaXR, batch: Studies) -> list[tuple[int, int]]:
    """For each study the positions of its prompt, and those of its report with EOS."""
    studies, texts = batch
    n_prompt = len(model.prompt(studies[0]))  # all have two views
    return [(n_prompt, len(model.tokenizer.encode(text)) + 1) for text in texts]


def work_of_step(model: LlamaXR, batch: Studies) -> tuple[int, float]:
    """The positions that a batch needs, and the floating-point operations of a training step on them.

    The prompts' common prefix counts once and filler never. A frozen linear is computed forward, and backward
    to its input; LoRA also to A and B; the head where a token is predicted. Attention, about one hundredth,
    and the projector are left out.
    """
    c, lengths = model.llama.config, row_lengths(model, batch)
    shared = model.prompt(batch[0][0]).index(SLOT)  # the words before the first image
    positions = shared + sum(prompt - shared + report for prompt, report in lengths)
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    linears = c.dim * (2 * q + 2 * kv + 3 * c.ffn_dim)
    lora = RANK * (2 * (c.dim + q) + 2 * (c.dim + kv) + 3 * (c.dim + c.ffn_dim))
    n_targets = sum(report for _, report in lengths)
    head = c.vocab_size * c.dim * n_targets
    return positions, c.n_layers * positions * (4 * linears + 6 * lora) + 4 * head

"""Generate beside transformers + PEFT + bitsandbytes: one report, or a batch of 64; greedy, the same text.

    python benchmarks/decode_peer.py SMOLLM2 ANNOTATION.json --work one|batch [--repeats 3]

Both sides hold the base as NF4 with double quantisation, and the same LoRA adapter (rank 16, all seven
linears) whose B is random, small and seeded. The prompt is ours with 49 slots per view. The slots hold the
words of a real report, a stand-in for vision that both sides can read as ids. Each report ends at its EOS or
after 64 tokens. Ours merges the adapter, as generate.py does. The peer does not, as PEFT's users do not:
merging into 4 bits would round the weights again and change the text. `peer` computes in fp32, as we do;
`peer_bf16` in bfloat16, if the CPU has instructions for it, and its text may differ.

The limit for one report is the bytes of weights that ours reads per token, over the machine's read bandwidth.
For 64 it is the arithmetic of the linears, with the prompts' common prefix read once, over the machine's
sgemm rate; "limit_over_peer" is that limit over the peer's rate. The results go to
benchmarks/results/decode_*.json.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from measure import (
    HOME,
    Peak,
    peer_nf4,
    ratio,
    read_bandwidth,
    run_alternately,
    sgemm_rate,
    summary,
    write_results,
)

from llamaxr import fast
from llamaxr.decoding import generate, stream
from llamaxr.fast.generation import Fp16Linear
from llamaxr.fast.nf4 import TiledNF4Linear
from llamaxr.lora import LoRALinear, add_lora
from llamaxr.model import FILLER, LlamaXR
from llamaxr.projector import Projector
from llamaxr.prompt import SLOT, study_prompt
from llamaxr.runs import checkpoint
from llamaxr.weights import load_llama

RANK, ALPHA, MAX_TOKENS = 16, 16.0, 64
SAMPLE_SECONDS = 0.1  # between two samples of the memory
ADAPTER = HOME / "cache" / "decode-adapter" / "step-000000"


def empty_prompt(tokenizer) -> list[int]:
    return study_prompt(tokenizer, [0, 1], n_tokens=49)


def fill_prompts(tokenizer, reports: list[str]) -> list[list[int]]:
    """A prompt per report, all of one length, its slots filled with the report's words, repeated."""
    rows = []
    for report in reports:
        prompt, words = empty_prompt(tokenizer), tokenizer.encode(report)
        filler = iter(words * 98)
        rows.append([next(filler) if i == SLOT else i for i in prompt])
    return rows


def build_ours(base: Path, adapter: Path | None) -> LlamaXR:
    torch.manual_seed(0)
    llama, tokenizer = load_llama(base, "nf4", nf4=TiledNF4Linear)
    add_lora(llama, RANK, ALPHA)
    model = LlamaXR(Projector(8, llama.config.dim, grid=1), llama, tokenizer, "tokens")
    if adapter:
        checkpoint.load_adapter(adapter, model, RANK, ALPHA)
    return model.eval()


def make_adapter(base: Path) -> None:
    """Save a LoRA with a B that is seeded and not zero, but so small that the base still writes English."""
    model = build_ours(base, None)
    torch.manual_seed(1)
    for layer in model.llama.modules():
        if isinstance(layer, LoRALinear):
            torch.nn.init.normal_(layer.lora_B, std=0.002)
    ADAPTER.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(ADAPTER.parent, model, {"base": str(base), "rank": RANK, "lora_alpha": ALPHA}, 0, None)


class TokenClock:
    """A streamer for transformers that records when it is called: with the prompt, then with each token."""

    def __init__(self):
        self.times = []

    def put(self, _tokens) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def ours(base: Path, reports: list[str]) -> dict:
    model = build_ours(base, ADAPTER)
    llama, eos_ids = model.llama, model.tokenizer.eos_ids
    fast.for_generation(model)
    rows = fill_prompts(model.tokenizer, reports)
    n_shared = empty_prompt(model.tokenizer).index(SLOT)  # the words before the first image
    with torch.inference_mode():
        x = llama.embed(torch.tensor(rows))
        generate(llama, x[:1], None, eos_ids, 4)  # warm up
        with Peak(every=SAMPLE_SECONDS) as peak:
            if len(rows) == 1:
                times, outputs = [peak.start], [[]]
                for (token,) in stream(llama, x, None, eos_ids, MAX_TOKENS):
                    outputs[0].append(token)
                    times.append(time.perf_counter())
            else:
                outputs = generate(llama, x, None, eos_ids, MAX_TOKENS)
        figures = decoding_figures(peak, outputs, times if len(rows) == 1 else None)
        if len(rows) == 1:
            figures["profile"] = profile(lambda: generate(llama, x, None, eos_ids, 40))
    figures["MB_per_token"] = weight_bytes(llama) / 1e6
    n_read = n_shared + len(rows) * (len(rows[0]) - n_shared)
    figures["GFLOP"] = count_flops(llama, n_read, len(rows), figures["tokens"]) / 1e9
    return figures


def count_flops(llama, n_read: int, n_prompts: int, n_generated: int) -> float:
    """Floating-point operations of the linears: n_read positions of n_prompts prompts, n_generated tokens.
    The head counts for generated tokens only, the last feed-forward for those and for the last position of
    each prompt. Attention, one hundredth of the total, is left out."""
    c, n_weights = llama.config, weight_bytes(llama) / 2  # two bytes per weight
    head, last = c.vocab_size * c.dim, 3 * c.dim * c.ffn_dim
    blocks = (n_weights - head) * (n_read + n_generated) - last * (n_read - n_prompts)
    return 2 * (blocks + head * n_generated)


def weight_bytes(llama) -> int:
    """Bytes of weights read per token: all but the embedding, which is read one row at a time."""
    plain = sum(p.nbytes for name, p in llama.named_parameters() if not name.startswith("embed_tokens"))
    return plain + sum(m.nbytes for m in llama.modules() if isinstance(m, Fp16Linear))


def profile(work) -> dict:
    """Each operator's own share of the wall time, without its children's; the rest is Python and dispatch."""
    from torch.profiler import ProfilerActivity, profile

    work()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)
    products = ("aten::mm", "aten::addmm", "quantized::linear_dynamic_fp16")
    matmuls = sum(e.self_cpu_time_total for e in events if e.key in products)
    top = {e.key: round(e.self_cpu_time_total / 1e6 / seconds, 3) for e in events[:8]}
    return {"seconds": seconds, "matmuls": round(matmuls / 1e6 / seconds, 3), "operators": top}


def peer(base: Path, reports: list[str], dtype: torch.dtype) -> dict:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    from llamaxr.tokenizer import load_tokenizer

    nf4 = peer_nf4(dtype)
    model = LlamaForCausalLM.from_pretrained(base, quantization_config=nf4, dtype=dtype, device_map="cpu")
    model = PeftModel.from_pretrained(model, ADAPTER).eval()
    tokenizer = load_tokenizer(base)
    ids = torch.tensor(fill_prompts(tokenizer, reports))
    greedy = {"do_sample": False, "pad_token_id": FILLER, "eos_token_id": list(tokenizer.eos_ids)}
    with torch.inference_mode():
        model.generate(input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1]), max_new_tokens=4, **greedy)
        clock = TokenClock() if len(ids) == 1 else None
        with Peak(every=SAMPLE_SECONDS) as peak:
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids),
                                 max_new_tokens=MAX_TOKENS, streamer=clock, **greedy)  # fmt: skip
    outputs = []
    for row in out[:, ids.shape[1] :].tolist():
        ends = [i for i, token in enumerate(row) if token in tokenizer.eos_ids]
        outputs.append(row[: ends[0]] if ends else row)
    return decoding_figures(peak, outputs, clock.times if clock else None)


def decoding_figures(peak: Peak, outputs: list[list[int]], times: list[float] | None) -> dict:
    """With times (the start, then each token): tokens per second, over the whole call and after the first
    token. Without: reports per second."""
    tokens = sum(map(len, outputs))
    figures = {**peak.figures(), "tokens": tokens, "outputs": outputs}
    if times:
        figures["tokens_per_second"] = tokens / peak.seconds
        figures["after_the_first_token"] = (len(times) - 2) / (times[-1] - times[1])
    else:
        figures["reports_per_second"] = len(outputs) / peak.seconds
    return figures


def limit_of_one(runs: list[dict]) -> dict:
    """Tokens per second that the read bandwidth allows, and the share that our runs reach after the first
    token."""
    bandwidth, megabytes = read_bandwidth(), runs[0]["MB_per_token"]
    limit = bandwidth / megabytes / 1e6
    reached = summary([run["after_the_first_token"] for run in runs])
    return {"GB_per_second": bandwidth / 1e9, "MB_per_token": megabytes, "tokens_per_second": limit,
            "reached": reached, "share": reached["median"] / limit}  # fmt: skip


def limit_of_batch(n_reports: int, gflop: float, medians: dict[str, float]) -> dict:
    """Reports per second that the sgemm rate allows; medians: the rates of each side."""
    flops_per_s = sgemm_rate()
    limit = n_reports * flops_per_s / (gflop * 1e9)
    ratios = {side: limit / rate for side, rate in medians.items() if side != "ours"}
    return {"GFLOP": gflop, "sgemm_GFLOP_per_second": flops_per_s / 1e9, "reports_per_second": limit,
            "share": medians["ours"] / limit, "limit_over_peer": ratios}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    dtypes = {"peer": torch.float32, "peer_bf16": torch.bfloat16}
    parser.add_argument("base", type=Path, help="folder of SmolLM2-135M, or of another Llama")
    parser.add_argument("annotation", type=Path, help="R2Gen's annotation.json of IU X-ray")
    parser.add_argument("--work", choices=("one", "batch"), required=True, help="one report, or 64 at once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=["ours", *dtypes], help="sides to run, ours first")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    reports = [study["report"] for study in json.loads(args.annotation.read_text())["train"]]
    reports = reports[: 1 if args.work == "one" else 64]
    if args.step:
        dtype = dtypes.get(args.step)
        print(json.dumps(peer(args.base, reports, dtype) if dtype else ours(args.base, reports)))
        return
    make_adapter(args.base)
    arguments = (args.base, args.annotation, "--work", args.work)
    runs = run_alternately(__file__, tuple(args.sides), args.repeats, *arguments)
    unit = "tokens_per_second" if args.work == "one" else "reports_per_second"
    rates = {side: [run[unit] for run in figures] for side, figures in runs.items()}
    results = {"configuration": {"base": f"{args.base.resolve().name}, NF4", "repeats": args.repeats,
                                 "sides": " ".join(args.sides)},
               unit: {side: summary(values) for side, values in rates.items()},
               "ratio": {}, "same_text": {}}  # fmt: skip
    for side in args.sides[1:]:
        results["ratio"][side] = ratio(rates["ours"], rates[side])
        pairs = zip(runs["ours"][0]["outputs"], runs[side][0]["outputs"], strict=True)
        results["same_text"][side] = f"{sum(a == b for a, b in pairs)} of {len(reports)} reports"
    results["peak_anonymous_GiB"] = {side: max(run["peak_anonymous_GiB"] for run in figures)
                                     for side, figures in runs.items()}  # fmt: skip
    results["tokens"] = runs["ours"][0]["tokens"]
    if args.work == "one":
        results["limit"] = limit_of_one(runs["ours"])
        results["profile"] = runs["ours"][-1]["profile"]
    else:
        medians = {side: results[unit][side]["median"] for side in args.sides}
        results["limit"] = limit_of_batch(len(reports), runs["ours"][0]["GFLOP"], medians)
    print(json.dumps(results, indent=2))
    write_results(f"decode_{args.work}", results)


if __name__ == "__main__":
    main()

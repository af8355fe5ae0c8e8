"""Decode beside transformers + PEFT + bitsandbytes: one report, or 64 together; greedy, the same text.

    python benchmarks/decode_peer.py SMOLLM2 ANNOTATION.JSON --work one|batch [--repeats 3]

Both hold the base as NF4 with double quantisation and the same LoRA adapter (rank 16, all seven linears), in
PEFT's form; its B is random, small and seeded. The prompt is ours with 49 places a view. The places hold the
words of a real report, a stand-in for vision that both sides can read as ids; each writes until its end or 64
tokens. Ours writes as generate.py does: adapters merged. The peer keeps its adapter unmerged, as PEFT's users
do: merging into 4 bits would round the weights anew and change the text. `peer` computes in fp32, as we do;
`peer_bf16` in bfloat16, which this CPU may have instructions for, with whatever text comes.

The limit for one report: the bytes of the weights in the form that ours reads for each token, over the
machine's read bandwidth. For 64 together: the arithmetic of the linears, the common beginning of the prompts
read once, over the machine's measured sgemm rate; and how far ahead of the peer that limit is.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from measure import HOME, Peak, alternately, ratio, read_bandwidth, sgemm_rate, summary, write_results

from llamaxr.runs import checkpoint
from llamaxr.decoding import generate, stream
from llamaxr.lora import LoRALinear, add_lora
from llamaxr.model import LlamaXR, shared_length
from llamaxr.projector import Projector
from llamaxr.prompt import SLOT, study_prompt
from llamaxr.runs.run import ready_to_write
from llamaxr.weights import load_llama
from llamaxr.fast.generation import Fp16Linear

RANK, ALPHA, TOKENS = 16, 16.0, 64
LOOK = 0.1  # seconds between two looks at the memory
ADAPTER = HOME / "cache" / "decode-adapter" / "step-000000"


def prompts(tokenizer, reports: list[str]) -> list[list[int]]:
    """A prompt a report, all of one length, its image places filled with the report's words over and over."""
    rows = []
    for report in reports:
        prompt, words = study_prompt(tokenizer, [0, 1], n_tokens=49), tokenizer.encode(report)
        filler = iter(words * 98)
        rows.append([next(filler) if i == SLOT else i for i in prompt])
    return rows


def ours(base: Path, adapter: Path | None) -> LlamaXR:
    torch.manual_seed(0)
    llama, tokenizer = load_llama(base, "nf4")
    add_lora(llama, RANK, ALPHA)
    model = LlamaXR(Projector(8, llama.config.dim, grid=1), llama, tokenizer, "tokens")
    if adapter:
        checkpoint.load_adapter(adapter, model, RANK, ALPHA)
    return model.eval()


def make_adapter(base: Path) -> None:
    """A LoRA whose B is not zero: seeded, small enough that the base still writes English."""
    model = ours(base, None)
    torch.manual_seed(1)
    for layer in model.llama.modules():
        if isinstance(layer, LoRALinear):
            torch.nn.init.normal_(layer.lora_B, std=0.002)
    checkpoint.save(ADAPTER.parent, model, {"base": str(base), "rank": RANK, "lora_alpha": ALPHA}, 0, None)


class Clock:
    """A streamer of transformers that keeps when each token came."""

    def __init__(self):
        self.times = []

    def put(self, _tokens) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def write_ours(base: Path, reports: list[str]) -> dict:
    model = ours(base, ADAPTER)
    llama, eos = model.llama, model.tokenizer.eos_ids
    ready_to_write(model, torch.device("cpu"), len(reports), TOKENS)
    rows = prompts(model.tokenizer, reports)
    shared = shared_length([study_prompt(model.tokenizer, [0, 1], n_tokens=49)] * len(rows))
    with torch.inference_mode():
        x = llama.embed(torch.tensor(rows))
        generate(llama, x[:1], None, eos, 4, shared=shared)  # what is done once is done
        with Peak(every=LOOK) as peak:
            if len(rows) == 1:
                times, written = [peak.began], [[]]
                for (token,) in stream(llama, x, None, eos, TOKENS, shared=shared):
                    written[0].append(token)
                    times.append(time.perf_counter())
            else:
                written = generate(llama, x, None, eos, TOKENS, shared=shared)
        figures = measured(peak, written, times if len(rows) == 1 else None)
        if len(rows) == 1:
            figures["profile"] = profile(lambda: generate(llama, x, None, eos, 40, shared=shared))
    figures["MB_a_token"] = read_bytes(llama) / 1e6
    read = shared + len(rows) * (len(rows[0]) - shared)
    figures["GFLOP"] = arithmetic(llama, read, len(rows), figures["tokens"]) / 1e9
    return figures


def arithmetic(llama, read: int, prompts: int, written: int) -> float:
    """Floating-point operations of the linears for so many positions of so many prompts read, and tokens
    written; the head's for what is written alone, the last feed-forward's for that and each prompt's end.
    Attention's, a hundredth of it, left out."""
    c, all_of_it = llama.config, read_bytes(llama) / 2  # two bytes a number
    head, last = c.vocab_size * c.dim, 3 * c.dim * c.ffn_dim
    return 2 * ((all_of_it - head) * (read + written) - last * (read - prompts) + head * written)


def read_bytes(llama) -> int:
    """Of the weights that each token reads: all but the embedding, of which it reads a row."""
    plain = sum(p.nbytes for name, p in llama.named_parameters() if not name.startswith("embed_tokens"))
    return plain + sum(m.nbytes for m in llama.modules() if isinstance(m, Fp16Linear))


def profile(work) -> dict:
    """Shares of the wall time by operator (its own time, children apart); the rest is Python and dispatch."""
    from torch.profiler import ProfilerActivity, profile

    work()
    began = time.perf_counter()
    work()
    plain = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        work()
    events = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
    products = ("aten::mm", "aten::addmm", "quantized::linear_dynamic_fp16")
    matmuls = sum(e.self_cpu_time_total for e in events if e.key in products)
    top = {e.key: round(e.self_cpu_time_total / 1e6 / plain, 3) for e in events[:8]}
    return {"seconds": plain, "matmuls": round(matmuls / 1e6 / plain, 3), "operators": top}


def write_peer(base: Path, reports: list[str], dtype: torch.dtype) -> dict:
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    from llamaxr.tokenizer import load_tokenizer

    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                             bnb_4bit_compute_dtype=dtype)  # fmt: skip
    model = LlamaForCausalLM.from_pretrained(base, quantization_config=nf4, dtype=dtype, device_map="cpu")
    model = PeftModel.from_pretrained(model, ADAPTER).eval()
    tokenizer = load_tokenizer(base)
    ids = torch.tensor(prompts(tokenizer, reports))
    how = {"do_sample": False, "pad_token_id": tokenizer.pad_id, "eos_token_id": list(tokenizer.eos_ids)}
    with torch.inference_mode():
        model.generate(input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1]), max_new_tokens=4, **how)
        clock = Clock() if len(ids) == 1 else None
        with Peak(every=LOOK) as peak:
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS,
                                 streamer=clock, **how)  # fmt: skip
    written = []
    for row in out[:, ids.shape[1] :].tolist():
        ends = [i for i, token in enumerate(row) if token in tokenizer.eos_ids]
        written.append(row[: ends[0]] if ends else row)
    return measured(peak, written, clock.times if clock else None)


def measured(peak: Peak, written: list[list[int]], times: list[float] | None) -> dict:
    """Tokens a second of the whole report, its prompt included, and after the first; or reports a second."""
    tokens = sum(map(len, written))
    figures = {**peak.figures(), "tokens": tokens, "written": written}
    if times:
        figures["tokens_a_second"] = tokens / peak.seconds
        figures["after_the_first"] = (len(times) - 2) / (times[-1] - times[1])
    else:
        figures["reports_a_second"] = len(written) / peak.seconds
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path, help="folder of SmolLM2-135M, or of another Llama")
    parser.add_argument("annotation", type=Path, help="R2Gen's annotation.json of IU X-ray")
    parser.add_argument("--work", choices=("one", "batch"), required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=("ours", "peer", "peer_bf16"), help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    reports = [study["report"] for study in json.loads(given.annotation.read_text())["train"]]
    part = reports[: 1 if given.work == "one" else 64]
    if given.step:
        dtypes = {"peer": torch.float32, "peer_bf16": torch.bfloat16}
        dtype = dtypes.get(given.step)
        print(json.dumps(write_peer(given.base, part, dtype) if dtype else write_ours(given.base, part)))
        return
    make_adapter(given.base)
    runs = alternately(__file__, tuple(given.sides), given.repeats, given.base, given.annotation, "--work",
                       given.work)  # fmt: skip
    rate = "tokens_a_second" if given.work == "one" else "reports_a_second"
    rates = {side: [run[rate] for run in figures] for side, figures in runs.items()}
    results = {"command": f"python benchmarks/decode_peer.py SMOLLM2 ANNOTATION.JSON --work {given.work}",
               "repeats": given.repeats,
               rate: {side: summary(values) for side, values in rates.items()},
               "ratio": {}, "same_text": {}}  # fmt: skip
    for side in given.sides[1:]:
        results["ratio"][side] = ratio(rates["ours"], rates[side])
        same = zip(runs["ours"][0]["written"], runs[side][0]["written"], strict=True)
        results["same_text"][side] = f"{sum(a == b for a, b in same)} of {len(part)} reports"
    results["peak_anonymous_GiB"] = {side: max(r["peak_anonymous_GiB"] for r in figures)
                                     for side, figures in runs.items()}  # fmt: skip
    results["tokens"] = runs["ours"][0]["tokens"]
    if given.work == "one":
        bandwidth, size = read_bandwidth(), runs["ours"][0]["MB_a_token"]
        reached = summary([run["after_the_first"] for run in runs["ours"]])
        limit = bandwidth / size / 1e6
        results["limit"] = {"GB_a_second": bandwidth / 1e9, "MB_a_token": size, "tokens_a_second": limit,
                            "reached": reached, "share": reached["median"] / limit}  # fmt: skip
        results["profile"] = runs["ours"][-1]["profile"]
    else:
        rate_of_sgemm, work = sgemm_rate(), runs["ours"][0]["GFLOP"] * 1e9
        limit, reached = len(part) * rate_of_sgemm / work, results[rate]["ours"]["median"]
        results["limit"] = {"GFLOP": work / 1e9, "sgemm_GFLOP_a_second": rate_of_sgemm / 1e9,
                            "reports_a_second": limit, "share": reached / limit,
                            "ratio_of_the_limit": {side: limit / results[rate][side]["median"]
                                                   for side in given.sides[1:]}}  # fmt: skip
    print(json.dumps(results, indent=2))
    write_results(f"decode_{given.work}", results)


if __name__ == "__main__":
    main()

"""Load a base as NF4 with double quantisation, beside transformers + bitsandbytes.

    python benchmarks/load_peer.py SMOLLM2 [--repeats 5]

Each load is a process of its own; the files lie in the page cache (a plain read comes first). Seconds are
those of the call, the libraries being imported; memory is the process's anonymous memory at its peak, the
libraries included, and beside it what the call added. The peer keeps what stays unquantised in bf16, as it is
stored: its leaner way.
"""

import argparse
import json
from pathlib import Path

from measure import Peak, alternately, anonymous_bytes, ratio, summary, write_results


def ours(base: Path) -> Peak:
    from llamaxr.weights import load_llama

    with Peak() as peak:
        load_llama(base, "nf4")
    return peak


def peer(base: Path) -> Peak:
    import bitsandbytes  # noqa: F401 (imported here, so that the call does not pay for it)
    import torch
    from transformers import AutoTokenizer, BitsAndBytesConfig, LlamaForCausalLM

    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                             bnb_4bit_compute_dtype=torch.float32)  # fmt: skip
    with Peak() as peak:
        LlamaForCausalLM.from_pretrained(base, quantization_config=nf4, dtype=torch.bfloat16)
        AutoTokenizer.from_pretrained(base)  # load_llama gives one too
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path, help="folder of SmolLM2-135M, or of another Llama")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step", choices=("ours", "peer"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        peak = {"ours": ours, "peer": peer}[given.step](given.base)
        print(json.dumps({"seconds": peak.seconds, "peak_anonymous_MiB": peak.bytes / 2**20,
                          "added_MiB": (peak.bytes - peak.at_first) / 2**20,
                          "kept_MiB": (anonymous_bytes() - peak.at_first) / 2**20}))  # fmt: skip
        return
    for path in given.base.glob("*.safetensors"):
        path.read_bytes()
    runs = alternately(__file__, ("ours", "peer"), given.repeats, given.base)
    results = {"command": "python benchmarks/load_peer.py SMOLLM2", "repeats": given.repeats}
    for figure in runs["ours"][0]:
        of = {side: [run[figure] for run in figures] for side, figures in runs.items()}
        results[figure] = {side: summary(values) for side, values in of.items()}
        results[figure]["ratio"] = ratio(of["ours"], of["peer"])
    print(json.dumps(results, indent=2))
    write_results("load_peer", results)


if __name__ == "__main__":
    main()

"""Load a base as NF4 with double quantisation, beside transformers + bitsandbytes.

    python benchmarks/load_peer.py SMOLLM2 [--repeats 5]

Each load runs in its own process, with the files in the page cache and the libraries imported. Seconds are
those of the call. Memory is the peak of the process's anonymous memory, libraries included; beside it, what
the call added and what it kept. The peer keeps unquantised weights in bf16, as they are stored, which takes
less memory. The results go to benchmarks/results/load_peer.json.
"""

import argparse
import json
from pathlib import Path

from measure import Peak, anonymous_bytes, compare, peer_nf4, run_alternately, write_results


def ours(base: Path) -> Peak:
    from llamaxr.fast.nf4 import TiledNF4Linear
    from llamaxr.weights import load_llama

    with Peak() as peak:
        load_llama(base, "nf4", nf4=TiledNF4Linear)
    return peak


def peer(base: Path) -> Peak:
    import bitsandbytes  # noqa: F401 (imported here so that the call does not import it)
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    nf4 = peer_nf4(torch.float32)
    with Peak() as peak:
        LlamaForCausalLM.from_pretrained(base, quantization_config=nf4, dtype=torch.bfloat16)
        AutoTokenizer.from_pretrained(base)  # load_llama loads one too
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path, help="folder of SmolLM2-135M, or of another Llama")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step", choices=("ours", "peer"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        peak = {"ours": ours, "peer": peer}[args.step](args.base)
        print(json.dumps({"seconds": peak.seconds, "peak_anonymous_MiB": peak.bytes / 2**20,
                          "added_MiB": (peak.bytes - peak.start_bytes) / 2**20,
                          "kept_MiB": (anonymous_bytes() - peak.start_bytes) / 2**20}))  # fmt: skip
        return
    for path in args.base.glob("*.safetensors"):  # fill the page cache
        path.read_bytes()
    runs = run_alternately(__file__, ("ours", "peer"), args.repeats, args.base)
    results = {"configuration": {"base": f"{args.base.resolve().name}, NF4", "repeats": args.repeats}}
    results |= {figure: compare(runs, figure) for figure in runs["ours"][0]}
    print(json.dumps(results, indent=2))
    write_results("load_peer", results)


if __name__ == "__main__":
    main()

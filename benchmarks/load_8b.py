"""Load a checkpoint of Llama 3.1 8B's exact shapes as NF4, train one step with it, generate 16 tokens.

    python benchmarks/load_8b.py FOLDER [--no-peer]

16 GB of random bf16 weights are written to FOLDER, unless they are already there; delete it afterwards. Each
step runs in its own process, with the files dropped from the page cache first. The floor of loading is the
sum of a plain read of all bytes and the bare 4-bit quantisation of all the blocks' weights. The peer is
transformers + PEFT + bitsandbytes, on a prompt of the same length. The results go to
benchmarks/results/load_8b.json.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from measure import Peak, drop_from_cache, peer_nf4, run_script, write_results

REPORT = "The heart is normal in size. The lungs are clear. No pneumothorax or pleural effusion is seen."
N_TOKENS = 16
N_QUANTISED = 6_979_321_856  # weights of the blocks' linears
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 128256,
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192},
}  # fmt: skip


def write_checkpoint(folder: Path) -> None:
    """Write random weights of the right shapes and about the right spread, one file per block."""
    from safetensors.torch import save_file

    from llamaxr.llama import Llama, LlamaConfig
    from llamaxr.runs.run import TINY_BASE

    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = {f"model.{n}".replace("model.lm_head", "lm_head"): p.shape
                  for n, p in Llama(LlamaConfig()).named_parameters()}  # fmt: skip
    files: dict[str, list[str]] = {}
    for name in shapes:
        block = name.split(".layers.")[1].split(".")[0] if ".layers." in name else name
        files.setdefault(block, []).append(name)
    weight_map = {}
    for i, names in enumerate(files.values()):
        torch.manual_seed(i)
        tensors = {n: (torch.randn(shapes[n]) * 0.02).bfloat16() if len(shapes[n]) > 1
                   else torch.ones(shapes[n]).bfloat16() for n in names}  # fmt: skip
        save_file(tensors, folder / f"model-{i:05d}.safetensors", metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, f"model-{i:05d}.safetensors"))
        print(f"\rwriting {i + 1}/{len(files)}", end="", flush=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY_BASE / name, folder / name)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    print()


def measure_floor(folder: Path) -> dict:
    """Seconds of a plain read of the files, and of bitsandbytes' quantisation of N_QUANTISED weights."""
    import bitsandbytes.functional as bnb

    drop_from_cache(folder)
    buffer = bytearray(2**23)
    with Peak() as read:
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    tile = torch.randn(256, 4096) * 0.02
    with Peak() as quantise:
        for _ in range(N_QUANTISED // tile.numel()):
            bnb.quantize_4bit(tile, blocksize=64, quant_type="nf4")
    return {"read_s": round(read.seconds, 2), "quantise_s": round(quantise.seconds, 2)}


def ours(folder: Path) -> dict:
    from llamaxr import fast
    from llamaxr.decoding import generate
    from llamaxr.fast.nf4 import TiledNF4Linear
    from llamaxr.lora import add_lora
    from llamaxr.model import LlamaXR
    from llamaxr.projector import Projector
    from llamaxr.vision import StudyFeatures
    from llamaxr.weights import load_llama

    drop_from_cache(folder)
    with Peak() as load:
        llama, tokenizer = load_llama(folder, "nf4", nf4=TiledNF4Linear)
    torch.manual_seed(0)
    add_lora(llama, 16, 16.0)
    model = LlamaXR(Projector(1024, 4096, token_std=0.02), llama, tokenizer, "tokens")
    fast.for_training(model)
    fast.recompute_blocks(llama)
    study = StudyFeatures([0, 1], torch.rand(2, 1024, 7, 7), torch.rand(2, 18))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    batch = model.collate([study], [REPORT], 300)
    with Peak() as step:
        loss = model.loss(batch) / len(batch.target_positions)
        loss.backward()
        optimizer.step()
    del optimizer
    model.requires_grad_(False)
    for p in model.parameters():
        p.grad = None
    prompt = model.collate([study])
    with Peak() as generation, torch.inference_mode():
        rows = generate(llama, model.embed(prompt), prompt.padding, [-1], N_TOKENS)
    assert len(rows[0]) == N_TOKENS
    return {
        "load": load.figures(),
        "step": step.figures(),
        "prompt": prompt.ids.shape[1],
        "report": len(batch.target_positions),
        "loss": round(loss.item(), 4),
        "generate_16": generation.figures(),
    }


def peer(folder: Path, n_prompt: int, n_report: int) -> dict:
    """The same with transformers, PEFT and bitsandbytes, on the same number of positions."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import LlamaForCausalLM

    from llamaxr.lora import TARGETS

    drop_from_cache(folder)
    nf4 = peer_nf4(torch.float32)
    with Peak() as load:
        # Unquantised weights stay in bf16, as stored: in fp32 they would take twice the memory.
        model = LlamaForCausalLM.from_pretrained(folder, quantization_config=nf4, dtype=torch.bfloat16)
    # As PEFT recommends: unquantised weights in fp32, blocks recomputed.
    model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=list(TARGETS)))
    model.train()
    ids = torch.randint(3, 1000, (1, n_prompt + n_report), generator=torch.Generator().manual_seed(0))
    labels = torch.cat([torch.full((1, n_prompt), -100), ids[:, n_prompt:]], dim=1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    with Peak() as step:
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
    del optimizer
    model.zero_grad()
    model.eval()
    model.gradient_checkpointing_disable()
    with Peak() as generation, torch.inference_mode():
        out = model.generate(input_ids=ids[:, :n_prompt], max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS,
                             do_sample=False, pad_token_id=2)  # fmt: skip
    assert out.shape[1] == n_prompt + N_TOKENS
    return {"load": load.figures(), "step": step.figures(), "generate_16": generation.figures()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of the 16 GB; written if it has none")
    parser.add_argument("--no-peer", action="store_true", help="skip transformers + PEFT + bitsandbytes")
    parser.add_argument("--step", choices=("floor", "ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--lengths", type=int, nargs=2, default=(0, 0), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        steps = {"floor": measure_floor, "ours": ours, "peer": lambda folder: peer(folder, *args.lengths)}
        print(json.dumps(steps[args.step](args.folder)))
        return
    if not (args.folder / "model.safetensors.index.json").is_file():
        write_checkpoint(args.folder)
    results = {"configuration": {"base": "random bf16 weights of Llama 3.1 8B's shapes"}}
    for step in ("floor", "ours") if args.no_peer else ("floor", "ours", "peer"):
        lengths = [results["ours"]["prompt"], results["ours"]["report"]] if step == "peer" else [0, 0]
        results[step] = run_script(__file__, args.folder, "--step", step, "--lengths", *lengths)
        print(step, results[step], flush=True)
        write_results("load_8b", results)  # after each step, because the next may take long
    floor = results["floor"]["read_s"] + results["floor"]["quantise_s"]
    results["load_over_floor"] = round(results["ours"]["load"]["seconds"] / floor, 3)
    print(f"loading took {results['load_over_floor']} times the floor of {floor:.1f} s")
    write_results("load_8b", results)


if __name__ == "__main__":
    main()

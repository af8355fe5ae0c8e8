"""Load a checkpoint of Llama 3.1 8B's exact shapes as NF4, train one step with it, write 16 tokens.

    python benchmarks/load_8b.py FOLDER [--no-peer]

FOLDER gets 16 GB of random bf16 weights, unless they lie there already; delete it afterwards. Each step runs
in a process of its own, with the files dropped from the page cache before it. The floor of loading is a plain
read of all the bytes plus the bare 4-bit quantisation of as many weights, one after the other. The peer is
transformers + PEFT + bitsandbytes, on a prompt of the same length. Figures: benchmarks/results/load_8b.json.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from measure import Peak, drop_from_cache, in_a_process, write_results

REPORT = "The heart is normal in size. The lungs are clear. No pneumothorax or pleural effusion is seen."
N_TOKENS = 16
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 128256,
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192},
}  # fmt: skip


def make(folder: Path) -> None:
    """Random weights of the right shapes and about the right spread, a block a file."""
    from safetensors.torch import save_file

    from llamaxr.llama import Llama, LlamaConfig
    from llamaxr.runs.run import TINY_BASE

    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = {f"model.{n}".replace("model.lm_head", "lm_head"): p.shape
                  for n, p in Llama(LlamaConfig()).named_parameters()}  # fmt: skip
    files: dict[str, list[str]] = {}
    for name in shapes:
        files.setdefault(name.split(".layers.")[-1].split(".")[0] if ".layers." in name else name, []).append(
            name
        )
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


def floor(folder: Path) -> dict:
    """Seconds of a plain read of the files, and of the quantisation of as many weights alone."""
    import bitsandbytes.functional as bnb

    drop_from_cache(folder)
    buffer = bytearray(2**23)
    with Peak() as read:
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    tile = torch.randn(256, 4096) * 0.02
    n = 6_979_321_856 // tile.numel()
    with Peak() as arithmetic:
        for _ in range(n):
            bnb.quantize_4bit(tile, blocksize=64, quant_type="nf4")
    return {"read_s": round(read.seconds, 2), "quantise_s": round(arithmetic.seconds, 2)}


def ours(folder: Path) -> dict:
    from llamaxr.decoding import generate
    from llamaxr.runs.features import StudyFeatures
    from llamaxr.lora import add_lora
    from llamaxr.model import LlamaXR
    from llamaxr.projector import Projector
    from llamaxr.weights import load_llama

    drop_from_cache(folder)
    with Peak() as loading:
        llama, tokenizer = load_llama(folder, "nf4")
    torch.manual_seed(0)
    add_lora(llama, 16, 16.0)
    llama.recompute = True
    model = LlamaXR(Projector(1024, 4096, token_std=0.02), llama, tokenizer, "tokens")
    study = StudyFeatures([0, 1], torch.rand(2, 1024, 7, 7), torch.rand(2, 18))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    batch = model.collate([study], [REPORT], 300)
    with Peak() as step:
        loss, n = model.loss(batch)
        (loss / n).backward()
        optimizer.step()
    del optimizer
    model.requires_grad_(False)
    for p in model.parameters():
        p.grad = None
    prompt = model.collate([study])
    with Peak() as writing, torch.inference_mode():
        rows = generate(llama, model.embed(prompt), prompt.padding, [-1], N_TOKENS)
    assert len(rows[0]) == N_TOKENS
    return {
        "load": loading.figures(),
        "step": step.figures(),
        "prompt": prompt.ids.shape[1],
        "report": int(n),
        "loss": round((loss / n).item(), 4),
        "generate_16": writing.figures(),
    }


def peer(folder: Path, n_prompt: int, n_report: int) -> dict:
    """The same with transformers, PEFT and bitsandbytes, on as many positions as ours read."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    from llamaxr.lora import TARGETS

    drop_from_cache(folder)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    with Peak() as loading:
        # bf16 for what stays unquantised, as it is stored: in fp32 that part alone would be twice as large
        model = LlamaForCausalLM.from_pretrained(folder, quantization_config=nf4, dtype=torch.bfloat16)
    # PEFT's recommended way: the rest in fp32 (bf16 arithmetic is emulated on this CPU), blocks recomputed
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
    with Peak() as writing, torch.inference_mode():
        out = model.generate(input_ids=ids[:, :n_prompt], max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS,
                             do_sample=False, pad_token_id=2)  # fmt: skip
    assert out.shape[1] == n_prompt + N_TOKENS
    return {"load": loading.figures(), "step": step.figures(), "generate_16": writing.figures()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the 16 GB lie or are written")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers + PEFT + bitsandbytes out")
    parser.add_argument("--step", choices=("floor", "ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--lengths", type=int, nargs=2, default=(0, 0), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        steps = {"floor": floor, "ours": ours, "peer": lambda folder: peer(folder, *given.lengths)}
        print(json.dumps(steps[given.step](given.folder)))
        return
    if not (given.folder / "model.safetensors.index.json").is_file():
        make(given.folder)
    results = {"command": f"python benchmarks/load_8b.py {given.folder}"}
    for step in ("floor", "ours") if given.no_peer else ("floor", "ours", "peer"):
        lengths = [results["ours"]["prompt"], results["ours"]["report"]] if step == "peer" else [0, 0]
        results[step] = in_a_process(__file__, given.folder, "--step", step, "--lengths", *lengths)
        print(step, results[step], flush=True)
        write_results("load_8b", results)  # at once: the next step may take long
    least = results["floor"]["read_s"] + results["floor"]["quantise_s"]
    results["load_over_floor"] = round(results["ours"]["load"]["seconds"] / least, 3)
    print(f"loading took {results['load_over_floor']} of the floor of {least:.1f} s")
    write_results("load_8b", results)


if __name__ == "__main__":
    main()

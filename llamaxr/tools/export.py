"""A trained run for other people's programs: a PEFT adapter, or the whole model merged.

    python -m llamaxr.tools.export runs/NAME OUT            PEFT's adapter_config.json, adapter_model.safetensors,
                                                      and projector.safetensors beside them
    python -m llamaxr.tools.export runs/NAME OUT --merge    a Hugging Face checkpoint folder, adapter merged, bf16

Merging writes W + (alpha / r) B A in the place of W. What the adapter has learned to correct is the base as
it acted, so W is the dequantised one, not that of the original file. Rounding the sum to bf16 costs a
little: how much is measured, on a prompt and a report, and said.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ..runs import checkpoint
from ..errors import UserError, one_line_errors
from ..llama import Llama
from ..lora import LoRALinear
from ..prompt import prompt_text
from ..runs.run import base_folder, open_run
from ..weights import Stored

SHARD = 2**30  # bytes of a weight file, about: what is held in memory at once
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "generation_config.json")
PROBE = "frontal view: lateral view:", "The heart is normal in size. The lungs are clear."


def export_adapter(checkpoint_folder: Path, base: Path, out: Path) -> None:
    """Copy a checkpoint's adapter and projector to `out`, for peft.PeftModel.from_pretrained(base, out)."""
    for name in ("adapter_model.safetensors", "projector.safetensors"):
        shutil.copyfile(checkpoint_folder / name, out / name)
    config = json.loads((checkpoint_folder / "adapter_config.json").read_text(encoding="utf-8"))
    checkpoint.write_json(out / "adapter_config.json", {**config, "base_model_name_or_path": str(base)})


def merged(llama: Llama) -> Iterator[tuple[str, Tensor]]:
    """The weights by their names in a Hugging Face checkpoint, adapters merged, in bf16, one at a time."""
    inside = ""
    for name, module in llama.named_modules():
        if inside and name.startswith(inside):
            continue  # a LoRALinear's own parts
        if isinstance(module, LoRALinear):
            inside = f"{name}."
            yield f"model.{name}.weight", module.merged().to("cpu", torch.bfloat16)
            continue
        for kind, weight in module.named_parameters(recurse=False):
            full = f"{name}.{kind}" if name == "lm_head" else f"model.{name}.{kind}"
            yield full, weight.detach().to("cpu", torch.bfloat16)


def export_merged(llama: Llama, base: Path, out: Path) -> None:
    """Write a Hugging Face checkpoint folder: weights in shards with an index, config.json, tokenizer."""
    names, shard, size, files = {}, {}, 0, 0

    def flush() -> None:
        nonlocal shard, size, files
        files += 1
        save_file(shard, out / f"model-{files:05d}.safetensors", metadata={"format": "pt"})
        names.update(dict.fromkeys(shard, f"model-{files:05d}.safetensors"))
        shard, size = {}, 0

    total = 0
    for name, weight in merged(llama):
        shard[name] = weight.contiguous()
        size, total = size + weight.nbytes, total + weight.nbytes
        if size >= SHARD:
            flush()
    if shard:
        flush()
    checkpoint.write_json(
        out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": names}
    )
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config = {k: v for k, v in config.items() if k not in ("quantization_config", "torch_dtype", "dtype")}
    checkpoint.write_json(out / "config.json", {**config, "torch_dtype": "bfloat16"})
    for pattern in TOKENIZER_FILES:
        for path in base.glob(pattern):
            shutil.copyfile(path, out / path.name)


class FiledLinear(nn.Module):
    """y = x W^T with a 16-bit W that stays in its memory-mapped file and is widened as it is used."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.device, x.dtype))


@torch.inference_mode()
def difference(llama: Llama, tokenizer, folder: Path) -> tuple[float, float, int, int]:
    """What merging changed: the largest |difference| of a logit over a prompt and a report, the spread (max
    - min) of the logits, at how many positions the likeliest token is the same, and of how many. The merged
    weights are read from `folder` and put into llama, which is the merged model afterwards."""
    ids = torch.tensor([tokenizer.encode(prompt_text(PROBE[0]) + PROBE[1])], device=llama.norm.weight.device)
    before = llama(ids)
    with ExitStack() as stack:
        stored = Stored(folder, stack)
        for name, module in list(llama.named_modules()):
            if isinstance(module, LoRALinear):
                parent, _, child = name.rpartition(".")
                linear = FiledLinear(stored.read(f"model.{name}.weight"))
                setattr(llama.get_submodule(parent), child, linear)
        after = llama(ids)
    same = int((before.argmax(-1) == after.argmax(-1)).sum())
    worst, spread = (before - after).abs().max().item(), (before.max() - before.min()).item()
    return worst, spread, same, ids.numel()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m llamaxr.tools.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, whose best checkpoint is taken")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist yet")
    parser.add_argument("--merge", action="store_true", help="write the whole model, adapter merged, in bf16")
    given = parser.parse_args(argv)
    if given.out.exists():
        raise UserError(f"{given.out} exists already; name another folder")
    options, _, model, step = open_run(given.run, "cpu")
    base = base_folder(options)
    temporary = given.out.with_name(given.out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if given.merge:
            export_merged(model.llama, base, temporary)
            shutil.copyfile(step / "projector.safetensors", temporary / "projector.safetensors")
            worst, spread, same, n = difference(model.llama, model.tokenizer, temporary)
            print(f"merged in bf16: logits differ by at most {worst:.3g} of a spread of {spread:.3g}; "
                  f"the likeliest token is the same at {same} of {n} positions", file=sys.stderr)  # fmt: skip
        else:
            export_adapter(step, base, temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    temporary.rename(given.out)
    print(given.out)


if __name__ == "__main__":
    with one_line_errors():
        main()

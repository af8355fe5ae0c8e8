"""Export a trained run for other programs: a PEFT adapter, or the whole model with the adapter merged.

    python -m llamaxr.tools.export runs/NAME OUT            a PEFT adapter folder, and projector.safetensors
    python -m llamaxr.tools.export runs/NAME OUT --merge    a Hugging Face checkpoint folder, in bf16

Merging replaces W by W + (lora_alpha / rank) B A. The adapter learned to correct the quantised base, so W is
the dequantised weight, not the original checkpoint's. Rounding the sum to bf16 costs some precision: the
command measures how much, on a prompt with a report, and prints it.
"""

import llamaxr.runs.interrupt  # noqa: F401  # isort: skip  (Ctrl-C while torch loads ends in one line)
import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..files.checkpoint_tensors import CheckpointTensors
from ..files.text import read_json
from ..llama import Llama
from ..lora import LoRALinear
from ..model import LlamaXR
from ..prompt import prompt_text
from ..runs import checkpoint
from ..runs.options import Parser, to_json
from ..runs.recipes import TrainOptions
from ..runs.run import base_folder, open_run
from ..runs.terminal import one_line_errors
from ..tokenizer import Tokenizer

SHARD_BYTES = 2**30  # size of a weight file, about: this much is in memory at a time
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "generation_config.json")
REPORT = "The heart is normal in size. The lungs are clear."
COMPARED_TEXT = prompt_text("frontal view: lateral view:") + REPORT


def export_adapter(model: LlamaXR, options: TrainOptions, base: Path, out: Path) -> None:
    """Write the adapter for peft.PeftModel.from_pretrained(base, out). base: the folder of the weights. The
    adapter names it only for the embedded base, and else --base: a hub id works on any machine."""
    checkpoint.write_tensors(out / "adapter_model.safetensors", checkpoint.adapter_tensors(model))
    name = str(base) if options.base == "tiny" else options.base
    config = checkpoint.peft_config({**to_json(options), "base": name})
    checkpoint.write_json(out / "adapter_config.json", config)


def export_merged(llama: Llama, base: Path, out: Path) -> None:
    """Write a Hugging Face checkpoint folder: weights in shards with an index, config.json, tokenizer."""
    weight_map, total = {}, 0
    for number, shard in enumerate(shards(merged_weights(llama)), 1):
        file = f"model-{number:05d}.safetensors"
        checkpoint.write_tensors(out / file, shard, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
        total += sum(weight.nbytes for weight in shard.values())
    checkpoint.write_json(
        out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )
    config = read_json(base / "config.json")
    config = {k: v for k, v in config.items() if k not in ("quantization_config", "torch_dtype", "dtype")}
    checkpoint.write_json(out / "config.json", {**config, "torch_dtype": "bfloat16"})
    for pattern in TOKENIZER_FILES:
        for path in base.glob(pattern):
            shutil.copyfile(path, out / path.name)


def merged_weights(llama: Llama) -> Iterator[tuple[str, Tensor]]:
    """Each weight by its name in a Hugging Face checkpoint, adapter merged, in bf16, one at a time."""
    lora_prefix = ""
    for name, module in llama.named_modules():
        if lora_prefix and name.startswith(lora_prefix):
            continue  # the parts of a LoRALinear
        if isinstance(module, LoRALinear):
            lora_prefix = f"{name}."
            yield f"model.{name}.weight", module.merged().to("cpu", torch.bfloat16)
            continue
        for kind, weight in module.named_parameters(recurse=False):
            key = f"{name}.{kind}" if name == "lm_head" else f"model.{name}.{kind}"
            yield key, weight.detach().to("cpu", torch.bfloat16)


def shards(weights: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The weights in groups; a group ends with the weight that brings it to SHARD_BYTES."""
    shard, size = {}, 0
    for name, weight in weights:
        shard[name] = weight.contiguous()
        size += weight.nbytes
        if size >= SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


class MappedLinear(nn.Module):
    """y = x W^T, with a 16-bit W that stays in its memory-mapped file and is widened for each call."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.device, x.dtype))


@torch.inference_mode()
def difference(llama: Llama, tokenizer: Tokenizer, folder: Path) -> tuple[float, float, int, int]:
    """What merging changed on COMPARED_TEXT: the largest |difference| of a logit, the spread (max - min) of
    the logits, the number of positions with the same likeliest token, and the number of positions.

    The merged weights are read from `folder` into llama, which is the merged model afterwards.
    """
    ids = torch.tensor([tokenizer.encode(COMPARED_TEXT)], device=llama.norm.weight.device)
    before = llama(ids)  # (1, time, vocab)
    with ExitStack() as stack:
        tensors = CheckpointTensors(folder, stack)
        for name, module in list(llama.named_modules()):
            if isinstance(module, LoRALinear):
                parent, _, child = name.rpartition(".")
                linear = MappedLinear(tensors.read(f"model.{name}.weight"))
                setattr(llama.get_submodule(parent), child, linear)
        after = llama(ids)
    same = int((before.argmax(-1) == after.argmax(-1)).sum())
    worst, spread = (before - after).abs().max().item(), (before.max() - before.min()).item()
    return worst, spread, same, ids.numel()


def main(argv: list[str] | None = None) -> None:
    how = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = Parser("python -m llamaxr.tools.export", **how)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder; its last checkpoint is exported")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist yet")
    parser.add_argument("--merge", action="store_true", help="write the whole model, adapter merged, in bf16")
    arguments = parser.parse_args(argv)
    out = arguments.out
    if out.exists():
        raise UserError(f"{out} exists already; name another folder")
    temporary = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)  # before minutes of loading: an unwritable place is reported now
    try:
        options, _, model, _ = open_run(arguments.run, "cpu", plain=True)
        base, projector = base_folder(options), model.projector.state_dict()
        checkpoint.write_tensors(temporary / "projector.safetensors", projector)
        if arguments.merge:
            export_merged(model.llama, base, temporary)
            worst, spread, same, n = difference(model.llama, model.tokenizer, temporary)
            print(f"merged in bf16: logits differ by at most {worst:.3g}, of a spread of {spread:.3g}; "
                  f"the likeliest token is the same at {same} of {n} positions", file=sys.stderr)  # fmt: skip
        else:
            export_adapter(model, options, base, temporary)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(out)


if __name__ == "__main__":
    with one_line_errors():
        main()

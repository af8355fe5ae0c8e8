"""The script that a user would write instead of generate.py, with transformers + PEFT + bitsandbytes.

    python benchmarks/first_token_peer.py image.png RUN BASE DENSENET.safetensors

It does the same work on the same files: a DenseNet extracts the image's features, the projector turns them
into soft tokens, and a base in NF4 with the run's LoRA generates the report greedily and streams it. The
streamer prints whole words, so the first word counts as its first token.
"""

import json
import sys
from pathlib import Path

import bitsandbytes  # noqa: F401
import torch
import torch.nn.functional as F
import torchxrayvision as xrv
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from skimage.io import imread
from torchvision.models.densenet import DenseNet
from torchvision.transforms import Compose
from transformers import AutoTokenizer, BitsAndBytesConfig, LlamaForCausalLM, TextStreamer

HEAD = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\nWrite the findings "
    "section of the radiology report for this chest radiograph study.\n\n### Input:\nfrontal view:"
)
image, run, base, densenet_file = sys.argv[1:]
step = next(Path(run).glob("step-*"))

with safe_open(densenet_file, "pt") as file:
    densenet = DenseNet(**json.loads(file.metadata()["densenet"]), num_classes=18)
stem = densenet.features.conv0.out_channels
densenet.features.conv0 = torch.nn.Conv2d(1, stem, 7, 2, 3, bias=False)
densenet.load_state_dict(load_file(densenet_file))
densenet.eval()

weights = load_file(step / "projector.safetensors")
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                         bnb_4bit_compute_dtype=torch.float32)  # fmt: skip
model = LlamaForCausalLM.from_pretrained(base, quantization_config=nf4, dtype=torch.float32, device_map="cpu")
model = PeftModel.from_pretrained(model, step).eval()
tokenizer = AutoTokenizer.from_pretrained(base)


def project(grid: torch.Tensor) -> torch.Tensor:
    """Feature grid (1, channels, 7, 7) -> soft tokens (1, 49, dim)."""
    x, w = grid.flatten(2).transpose(1, 2), weights
    x = (x - w["mean"]) / w["std"]
    x = F.gelu(F.linear(x, w["fc1.weight"], w["fc1.bias"]))
    return F.linear(x, w["fc2.weight"], w["fc2.bias"]) + w["place"][:1]


with torch.inference_mode():
    pixels = xrv.utils.normalize(imread(image), 255)
    pixels = pixels.mean(2) if pixels.ndim == 3 else pixels
    pixels = Compose([xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(224)])(pixels[None])
    grid = torch.relu(densenet.features(torch.from_numpy(pixels)[None].float()))
    embed = model.get_input_embeddings()
    ids = [tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
           for text in (HEAD, "\n\n### Response:\n")]  # fmt: skip
    x = torch.cat([embed(ids[0]), project(grid), embed(ids[1])], dim=1)
    model.generate(inputs_embeds=x, attention_mask=torch.ones(x.shape[:2]), max_new_tokens=300,
                   do_sample=False, streamer=TextStreamer(tokenizer, skip_special_tokens=True))  # fmt: skip

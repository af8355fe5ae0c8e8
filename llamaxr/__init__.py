"""llamaxr: radiology reports from chest radiographs, a from-scratch reference of LLaMA-XR (arXiv 2506.03178).

Read the files in the order in which data goes: radiograph, vision, features, projector, llama, nf4, lora,
weights, tokenizer, prompt, model, decoding, checkpoint, run; then train.py. Beside that way stand
vision_weights, pickled, vision_train, llama_config, byte_level, memory and export.
"""

import logging

__all__ = ["load_llama"]

# bitsandbytes else complains at each start on a CPU that an optional kernel package is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str):
    """`from llamaxr import load_llama`, without making those wait for torch who want something else."""
    if name == "load_llama":
        from .weights import load_llama

        return load_llama
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""llamaxr: radiology reports from chest radiographs, a from-scratch reference of LLaMA-XR (arXiv 2506.03178).

Read the files in the order in which data goes: radiograph, vision, features, projector, llama, nf4, lora,
weights, tokenizer, prompt, model, decoding, checkpoint, run; then train.py.
"""

import logging

# bitsandbytes else complains at each start on a CPU that an optional kernel package is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

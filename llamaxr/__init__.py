"""llamaxr: radiology reports from chest radiographs, a from-scratch reference of LLaMA-XR (arXiv 2506.03178).

The files of this folder are the model. Read them in the order of the data: radiograph, densenet, vision,
projector, llama, nf4, lora, weights, tokenizer, prompt, model, decoding; errors beside them; then train.py.
The folders are wings: fast (the same, faster), files (what other people wrote), data, metrics, runs,
report_page, tools and assets.
"""

import logging

# On a CPU bitsandbytes would warn at every start that an optional package of kernels is missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

"""Emphasis: the sentences of a report that assert a finding weigh more in the loss.

    The heart is normal in size. There is a small left effusion. No pneumothorax.
    1                            3                               1

A normal lung is "clear" in most reports, and a finding is worded in a hundred ways. Greedy decoding takes the
likeliest next sentence. So it leaves out a finding that the outline has named, because no single wording of
it is as likely as "The lungs are clear". A target of weight 3 is learned as if it occurred three times as
often as one of weight 1 (cost-sensitive learning, Elkan 2001). The report itself is not changed.
"""

import functools
import re

import torch
from torch import Tensor

from ..metrics.findings import FINDINGS, mentions
from ..tokenizer import Tokenizer
from .outline import OUTLINE, outline_line


def batch_weights(
    tokenizer: Tokenizer, texts: list[str], weight: float, max_tokens: int, append_eos: bool
) -> Tensor:
    """The weights of all targets of LlamaXR.collate(studies, texts, max_tokens, append_eos): (n_targets,)."""
    rows = [token_weights(tokenizer, text, weight) + (1.0,) * append_eos for text in texts]
    return torch.tensor([w for row in rows for w in row[: max_tokens or None]])


@functools.lru_cache(2**14)  # each epoch asks again
def token_weights(tokenizer: Tokenizer, text: str, weight: float) -> tuple[float, ...]:
    """One weight per token of a report, with its outline or without: `weight` in a sentence that asserts one
    of FINDINGS, 1 in the others and in the outline."""
    outline = outline_line(text) if text.startswith(OUTLINE) else ""
    report, weights = text[len(outline) :], [1.0] * len(tokenizer.encode(outline))
    starts = [m.start for m in mentions(report) if m.state == "asserted" and m.finding in FINDINGS]
    for sentence in re.finditer(r"[^.]*\.*", report):
        n = len(tokenizer.encode(outline + report[: sentence.end()]))  # tokens up to here
        asserts = any(sentence.start() <= start < sentence.end() for start in starts)
        weights = weights[:n] + [weight if asserts else 1.0] * (n - len(weights))
    return tuple(weights)

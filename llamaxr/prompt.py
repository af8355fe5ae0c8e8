"""The text around the images: an Alpaca prompt with slots for soft tokens, and which tokens carry loss.

    Below is an instruction ... Write a response that appropriately completes the request.

    ### Instruction:
    Write the findings section of the radiology report for this chest radiograph study.

    ### Input:
    frontal view: <grid x grid soft tokens>   bridge "tokens", ours: 4 x 4 with grid 4
    frontal view: 0.512, 0.034, ...           bridge "scores", the paper's (section 3): 18 numbers per view
                                              "both": the one, then the other
    ### Response:
    The heart is enlarged. ... <EOS>          only this carries loss, its EOS included

A slot for a soft token is the id SLOT. It is negative, so that no vocabulary has it.
"""

from dataclasses import dataclass

from .radiograph import VIEWS
from .tokenizer import Tokenizer

SLOT = -1
IGNORE = -100  # the target of a position without loss; F.cross_entropy's own default
BRIDGES = ("tokens", "scores", "both")  # how an image enters the prompt: see above

HEAD = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n"
)
INSTRUCTION = "Write the findings section of the radiology report for this chest radiograph study."
SCORES_INSTRUCTION = " Each view is given as {n} scores between 0 and 1, in the order: {names}."


@dataclass(frozen=True)
class Example:
    """One study as the language model reads it: two lists of the same length. ids: tokens and SLOTs;
    targets: what each position is to predict (the id after it), or IGNORE."""

    ids: list[int]
    targets: list[int]


def prompt_text(inputs: str, instruction: str = INSTRUCTION) -> str:
    """Alpaca's form (Taori et al. 2023) around the given input, up to where the report begins."""
    return f"{HEAD}{instruction}\n\n### Input:\n{inputs}\n\n### Response:\n"


def study_prompt(
    tokenizer: Tokenizer,
    views: list[int],
    n_tokens: int = 0,
    scores: list[list[float]] | None = None,
    pathologies: tuple[str, ...] = (),
) -> list[int]:
    """The ids before the report. views: the indices (into VIEWS) of the study's views, in order.

    n_tokens: soft tokens per view (0 for bridge "scores"). scores: the numbers of each view (None for bridge
    "tokens"); those of a single view are given twice, as in the paper.
    """
    instruction, segments = INSTRUCTION, []
    if n_tokens:
        segments += [(f"{VIEWS[view]} view:", n_tokens) for view in views]
    if scores is not None:
        instruction += SCORES_INSTRUCTION.format(n=len(pathologies), names=", ".join(pathologies))
        rows = zip(VIEWS, scores * 2 if len(scores) == 1 else scores, strict=True)
        segments += [(f"{name} view: " + ", ".join(f"{s:.3f}" for s in row), 0) for name, row in rows]
    # The text is cut at the slots; what is between two views' slots is encoded as one text.
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    text, after = prompt_text("\0", instruction).split("\0")  # before and after the input
    for i, (words, n_slots) in enumerate(segments):
        text += ("\n" if i else "") + words
        if n_slots:
            ids += tokenizer.encode(text) + [SLOT] * n_slots
            text = ""
    return ids + tokenizer.encode(text + after)


def with_report(
    tokenizer: Tokenizer,
    prompt: list[int],
    report: str,
    max_report_tokens: int = 0,
    append_eos: bool = True,
) -> Example:
    """Prompt, report and EOS, with loss on report and EOS only.

    max_report_tokens > 0 limits report and EOS together. A truncated report has no EOS, since it does not end
    there. append_eos=False is for a text that is only the start of a report.
    """
    report_ids = tokenizer.encode(report) + ([tokenizer.eos_ids[0]] if append_eos else [])
    if max_report_tokens:
        report_ids = report_ids[:max_report_tokens]
    ids = prompt + report_ids
    # Position i predicts id i + 1, so the prompt's last position has the first target.
    targets = [IGNORE] * (len(prompt) - 1) + report_ids + [IGNORE]
    return Example(ids, targets)

"""The text around the images: an Alpaca prompt with places for soft tokens, and what carries loss.

    Below is an instruction ... Write a response that appropriately completes the request.

    ### Instruction:
    Write the findings section of the radiology report for this chest radiograph study.

    ### Input:
    frontal view: <49 soft tokens>            bridge "tokens", ours
    frontal view: 0.512, 0.034, ...           bridge "scores", the paper's (section 3): 18 numbers a view
                                              "both": the one, then the other
    ### Response:
    The heart is enlarged. ... <EOS>          only this carries loss, its EOS included

With an outline the response begins with a line of what the report asserts, `Findings: effusion left, nodule.`
and the report follows on the next. Most words of a report are the same for everybody: a model lowers its loss
by learning those, long before it looks at the image. A word of the outline is known from the image alone.

A place for a soft token is the id SLOT. It is negative, so that it can be no word of any vocabulary.
"""

from dataclasses import dataclass

from .data.study import VIEWS
from .metrics.findings import FINDINGS, locate
from .tokenizer import Tokenizer

SLOT = -1
IGNORE = -100  # the target of a position without loss; F.cross_entropy's own default
BRIDGES = ("tokens", "scores", "both")
OUTLINE = "Findings: "

HEAD = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n"
)
INSTRUCTION = "Write the findings section of the radiology report for this chest radiograph study."
SCORES_INSTRUCTION = " Each view is given as {n} scores between 0 and 1, in the order: {names}."


@dataclass(frozen=True)
class Example:
    """One study as the language model reads it. ids: tokens and SLOTs; targets: what each position is to
    predict (the id that follows it), or IGNORE. Both are lists of the same length."""

    ids: list[int]
    targets: list[int]


def prompt_text(inputs: str, instruction: str = INSTRUCTION) -> str:
    """Alpaca's form (Taori et al. 2023) with the given input, up to where the report begins."""
    return f"{HEAD}{instruction}\n\n### Input:\n{inputs}\n\n### Response:\n"


def study_prompt(
    tokenizer: Tokenizer,
    views: list[int],
    n_tokens: int = 0,
    scores: list[list[float]] | None = None,
    pathologies: tuple[str, ...] = (),
) -> list[int]:
    """The ids before the report. views: the indices (into VIEWS) of the study's views, in order.

    n_tokens: soft tokens a view (0 for bridge "scores"). scores: for each view its numbers (None for bridge
    "tokens"); a study with one view gives them twice, as the paper does.
    """
    instruction, segments = INSTRUCTION, []
    if n_tokens:
        segments += [(f"{VIEWS[view]} view:", n_tokens) for view in views]
    if scores is not None:
        instruction += SCORES_INSTRUCTION.format(n=len(pathologies), names=", ".join(pathologies))
        rows = zip(VIEWS, scores * 2 if len(scores) == 1 else scores, strict=True)
        segments += [(f"{name} view: " + ", ".join(f"{s:.3f}" for s in row), 0) for name, row in rows]
    # Cut where the slots are; the text between two slots is tokenised as one piece.
    ids, text = [] if tokenizer.bos_id is None else [tokenizer.bos_id], ""
    before, after = prompt_text("\0", instruction).split("\0")
    text = before
    for i, (words, n_slots) in enumerate(segments):
        text += ("\n" if i else "") + words
        if n_slots:
            ids += tokenizer.encode(text) + [SLOT] * n_slots
            text = ""
    return ids + tokenizer.encode(text + after)


def with_outline(report: str) -> str:
    """The report behind a line of the findings that it asserts, each with its sides, in one fixed order."""
    found = locate(report)
    said = [" ".join([name, *sorted(found[name])]) for name in FINDINGS if name in found]
    return f"{OUTLINE}{', '.join(said) or 'none'}.\n{report}"


def split_outline(text: str) -> tuple[str, str]:
    """What was written -> the line of findings, "" where there is none, and the report without it."""
    if not text.lstrip().startswith(OUTLINE):
        return "", text.strip()
    line, _, report = text.strip().partition("\n")
    return line.removeprefix(OUTLINE), report.strip()


def read_outline(line: str) -> dict[str, frozenset[str]]:
    """What such a line names, with its sides; words that with_outline never writes name nothing."""
    named = {}
    for words in line.strip().rstrip(".").split(", "):
        name, sides = words, set()
        while name.endswith((" left", " right")):
            name, _, side = name.rpartition(" ")
            sides.add(side)
        if name in FINDINGS:
            named[name] = frozenset(sides)
    return named


def with_report(
    tokenizer: Tokenizer, prompt: list[int], report: str, max_report_tokens: int = 0, ends: bool = True
) -> Example:
    """Prompt, report and EOS, with loss on report and EOS only.

    max_report_tokens > 0 cuts longer reports; a cut one has no EOS, since the report does not end there, nor
    has one that is but a beginning (`ends` False).
    """
    answer = tokenizer.encode(report) + ([tokenizer.eos_ids[0]] if ends else [])
    if max_report_tokens:
        answer = answer[:max_report_tokens]
    ids = prompt + answer
    # Position i predicts id i + 1, so the last token of the prompt is the first that carries loss.
    targets = [IGNORE] * (len(prompt) - 1) + answer + [IGNORE]
    return Example(ids, targets)

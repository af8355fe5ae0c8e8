"""LlamaXR: the assembly, and the one place where vision meets language.

What the model reads of a study is its `StudyFeatures` (features.py): DenseNet's grid and scores for each view
that the study has. They are computed once (vision is frozen) and kept, so training starts here:

    features ─ projector ─> soft tokens ┐
    prompt ids ─ embedding ────────────┴─> one row of vectors ─ Llama ─> loss, or a report (decoding.py)
"""

import itertools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fast import training as by_hand
from .runs.features import StudyFeatures
from .llama import Llama, Packing
from .projector import Projector
from .prompt import IGNORE, SLOT, split_outline, study_prompt, with_outline, with_report
from .tokenizer import Tokenizer
from .vision import PATHOLOGIES


@dataclass(frozen=True)
class Batch:
    """Several studies as one tensor, in one of two forms.

    To learn from: packed as one row. ids, targets (1, n); packing says which position belongs to whom;
    answers (n_targets,): the positions with a target, found here because a GPU would have to be waited for.
    To write from: ids, targets (batch, time); padding (batch,): filler at the left of each row, so that all
    reports begin together, None where there is none; shared: leading positions that are the same in all rows.

    grids (n, channels, 7, 7) and views (n,): all views of the batch, in order.
    """

    ids: Tensor
    targets: Tensor
    grids: Tensor
    views: Tensor
    padding: Tensor | None = None
    shared: int = 0
    packing: Packing | None = None
    answers: Tensor | None = None

    def to(self, device) -> "Batch":
        movable = {k: v for k, v in vars(self).items() if isinstance(v, Tensor | Packing)}
        return replace(self, **{k: v.to(device) for k, v in movable.items()})


class LlamaXR(nn.Module):
    """projector and llama (its LoRA inside), and what says how to read a study and how to write of it: the
    tokenizer, the bridge, and whether a report follows its outline (prompt.py)."""

    def __init__(
        self, projector: Projector, llama: Llama, tokenizer: Tokenizer, bridge: str, outline: bool = False
    ):
        super().__init__()
        self.projector, self.llama = projector, llama
        self.tokenizer, self.bridge, self.outline = tokenizer, bridge, outline

    def prompt(self, study: StudyFeatures) -> list[int]:
        """The ids that stand before this study's report."""
        return study_prompt(
            self.tokenizer,
            study.views,
            n_tokens=self.projector.n_tokens if self.bridge != "scores" else 0,
            scores=study.scores.tolist() if self.bridge != "tokens" else None,
            pathologies=PATHOLOGIES,
        )

    def collate(
        self,
        studies: list[StudyFeatures],
        reports: list[str] | None = None,
        max_report_tokens: int = 0,
        outline_alone: bool = False,
    ) -> Batch:
        """Studies (and, to train, their reports, or of each the outline alone) -> Batch."""
        grids = torch.cat([study.grids for study in studies])  # (n, channels, 7, 7)
        views = torch.tensor([view for study in studies for view in study.views], dtype=torch.long)
        prompts = [self.prompt(study) for study in studies]
        if reports is not None:
            reports = [with_outline(report) if self.outline else report for report in reports]
            if outline_alone:
                reports = [report[: report.index("\n") + 1] for report in reports]
            rows = [
                with_report(self.tokenizer, ids, report, max_report_tokens, ends=not outline_alone)
                for ids, report in zip(prompts, reports, strict=True)
            ]
            shared = shared_length(prompts)
            ids, targets = ([*getattr(rows[0], name)[:shared]] for name in ("ids", "targets"))
            for row in rows:
                ids += row.ids[shared:]
                targets += row.targets[shared:]
            packing = Packing.of([len(row.ids) for row in rows], shared)
            ids, targets = torch.tensor([ids]), torch.tensor([targets])  # (1, n)
            answers = (targets[0] != IGNORE).nonzero()[:, 0]
            return Batch(ids, targets, grids, views, packing=packing, answers=answers)
        time = max(map(len, prompts))
        ids = torch.full((len(prompts), time), self.tokenizer.pad_id)
        for row, prompt in zip(ids, prompts, strict=True):
            row[time - len(prompt) :] = torch.tensor(prompt)
        padding = torch.tensor([time - len(prompt) for prompt in prompts])
        if padding.any():
            return Batch(ids, torch.full_like(ids, IGNORE), grids, views, padding)
        return Batch(ids, torch.full_like(ids, IGNORE), grids, views, shared=shared_length(prompts))

    def said(self, tokens: list[int]) -> tuple[str, str]:
        """What was written after a prompt -> its outline, "" where there is none, and the report."""
        return split_outline(self.tokenizer.decode(tokens))

    def embed(self, batch: Batch) -> Tensor:
        """Word embeddings, with the soft tokens in their slots: (batch, time, dim)."""
        x = self.llama.embed(batch.ids.clamp(min=0))  # (batch, time, dim)
        if self.bridge == "scores":
            return x
        soft = self.projector(batch.grids.float(), batch.views)  # (n, n_tokens, dim)
        slots = (batch.ids == SLOT)[..., None]  # in reading order, as soft is
        return x.masked_scatter(slots, soft.to(x.dtype))

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over the report tokens of the batch, and how many those are.

        The sum, not the mean: a caller that gathers several batches must divide by the tokens of all, or a
        short report would weigh more than a long one. Logits exist at the report's positions only.
        """
        hidden = self.llama.hidden(self.embed(batch), packing=batch.packing, asked=batch.answers)
        hidden, targets = hidden[0], batch.targets[0, batch.answers]  # (n_targets, dim), (n_targets,)
        n_targets = torch.tensor(len(targets))
        if self.llama.head_weight.requires_grad:  # the whole model learns, its head too
            logits = self.llama.logits(hidden).float()  # (n_targets, vocab)
            return F.cross_entropy(logits, targets, reduction="sum"), n_targets
        llama = self.llama
        return by_hand.cross_entropy(hidden, targets, llama.logits, llama.logits_backward), n_targets


def shared_length(prompts: list[list[int]]) -> int:
    """How many leading words all prompts share, up to the first image, and always less than the whole of one,
    so that each keeps a position of its own. One prompt shares them with all that come after it; 0 where its
    images are words."""
    if len(prompts) == 1 and SLOT not in prompts[0]:
        return 0
    columns = zip(*prompts, strict=False)  # as many as the shortest has words
    same = itertools.takewhile(lambda words: len(set(words)) == 1 and words[0] != SLOT, columns)
    return min(sum(1 for _ in same), min(map(len, prompts)) - 1)

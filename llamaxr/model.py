"""LlamaXR: the assembly, and the one place where vision meets language.

What the model reads of a study is its `StudyFeatures` (features.py): DenseNet's grid and scores for each view
that the study has. They are computed once (vision is frozen) and kept, so training starts here:

    features ─ projector ─> soft tokens ┐
    prompt ids ─ embedding ────────────┴─> one row of vectors ─ Llama ─> loss, or a report (decoding.py)
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import StudyFeatures
from .llama import Llama
from .projector import Projector
from .prompt import IGNORE, SLOT, Example, study_prompt, with_report
from .tokenizer import Tokenizer
from .vision import PATHOLOGIES


@dataclass(frozen=True)
class Batch:
    """Several studies as one tensor. ids, targets (batch, time); padding (batch,): filler at the left of each
    row, None where there is none; grids (n, channels, 7, 7) and views (n,): all its views, in order."""

    ids: Tensor
    targets: Tensor
    padding: Tensor | None
    grids: Tensor
    views: Tensor

    def to(self, device) -> "Batch":
        moved = (getattr(self, name) for name in self.__dataclass_fields__)
        return Batch(*(None if t is None else t.to(device, non_blocking=True) for t in moved))


class LlamaXR(nn.Module):
    """projector and llama (its LoRA inside), and the tokenizer and bridge that say how to read a study."""

    def __init__(self, projector: Projector, llama: Llama, tokenizer: Tokenizer, bridge: str):
        super().__init__()
        self.projector, self.llama = projector, llama
        self.tokenizer, self.bridge = tokenizer, bridge

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
        self, studies: list[StudyFeatures], reports: list[str] | None = None, max_report_tokens: int = 0
    ):
        """Studies (and, to train, their reports) -> Batch. Filler stands right of training rows, where no
        token can see it and no mask is needed, and left of prompts, so that all reports begin together."""
        prompts = [self.prompt(study) for study in studies]
        if reports is None:
            rows = [Example(ids, [IGNORE] * len(ids)) for ids in prompts]
        else:
            rows = [
                with_report(self.tokenizer, ids, report, max_report_tokens)
                for ids, report in zip(prompts, reports, strict=True)
            ]
        time = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), time), self.tokenizer.pad_id)
        targets = torch.full((len(rows), time), IGNORE)
        for i, row in enumerate(rows):
            n = len(row.ids)
            place = slice(time - n, time) if reports is None else slice(0, n)
            ids[i, place], targets[i, place] = torch.tensor(row.ids), torch.tensor(row.targets)
        padding = None
        if reports is None and any(len(row.ids) < time for row in rows):
            padding = torch.tensor([time - len(row.ids) for row in rows])
        grids = torch.cat([study.grids for study in studies])  # (n, channels, 7, 7)
        views = torch.tensor([view for study in studies for view in study.views])
        return Batch(ids, targets, padding, grids, views)

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
        hidden = self.llama.hidden(self.embed(batch), batch.padding)  # (batch, time, dim)
        where = batch.targets != IGNORE
        logits = self.llama.logits(hidden[where]).float()  # (n_targets, vocab)
        return F.cross_entropy(logits, batch.targets[where], reduction="sum"), where.sum()

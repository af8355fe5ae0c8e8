"""LlamaXR: the assembly, and the one place where vision meets language (the paper's figure 1).

The model's input is a study's `StudyFeatures` (vision.py): DenseNet's grid and scores for each view.
DenseNet is frozen, so they are computed once and cached, and training starts here:

    features ─ projector ─> soft tokens ┐
    prompt ids ─ embedding ─────────────┴─> rows of vectors ─ Llama ─> loss, or a report (decoding.py)
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .llama import Llama
from .projector import Projector
from .prompt import IGNORE, SLOT, Example, study_prompt, with_report
from .tokenizer import Tokenizer
from .vision import PATHOLOGIES, StudyFeatures

FILLER = 0  # any id does: filler has no target, and only filler attends to it


@dataclass(frozen=True)
class Batch:
    """Several studies as tensors.

    ids, targets (batch, time): as in prompt.Example. Short rows are filled up: on the right for training
    (causal attention never reaches it), on the left for generation (so all reports begin at one position).
    grids (n, channels, 7, 7), views (n,): all views of the batch, in order.
    target_positions (n_targets,), slots (n_slots,): where there is a target, and where a soft token belongs,
    as indices into ids.flatten(), in order. Computed in join, since nonzero() on a GPU makes the CPU wait.
    padding (batch,): how much filler is on the left of each row; None if there is none.
    weights (n_targets,): the weight of each target in the loss; None if all are 1.
    """

    ids: Tensor
    targets: Tensor
    grids: Tensor
    views: Tensor
    target_positions: Tensor
    slots: Tensor
    padding: Tensor | None = None
    weights: Tensor | None = None

    def to(self, device) -> "Batch":
        """This batch, copied to a device. The CPU does not wait until the copy has arrived."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: t.to(device, non_blocking=True) for name, t in tensors.items()})


class LlamaXR(nn.Module):
    """projector and llama (with LoRA inside), and what turns a study into a prompt: tokenizer and bridge."""

    def __init__(self, projector: Projector, llama: Llama, tokenizer: Tokenizer, bridge: str):
        super().__init__()
        self.projector, self.llama = projector, llama
        self.tokenizer, self.bridge = tokenizer, bridge

    def prompt(self, study: StudyFeatures) -> list[int]:
        """The ids that precede this study's report."""
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
        texts: list[str] | None = None,
        max_report_tokens: int = 0,
        append_eos: bool = True,
    ) -> Batch:
        """Studies -> Batch. texts: the reports to train on; None for generation."""
        grids = torch.cat([study.grids for study in studies])  # (n, channels, 7, 7)
        views = torch.tensor([view for study in studies for view in study.views], dtype=torch.long)
        prompts = [self.prompt(study) for study in studies]
        if texts is None:
            rows = [Example(prompt, [IGNORE] * len(prompt)) for prompt in prompts]
        else:
            rows = [
                with_report(self.tokenizer, prompt, text, max_report_tokens, append_eos)
                for prompt, text in zip(prompts, texts, strict=True)
            ]
        return self.join(rows, grids, views, pad_left=texts is None)

    def join(self, rows: list[Example], grids: Tensor, views: Tensor, pad_left: bool) -> Batch:
        """Rows of unequal length -> Batch."""
        time = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), time), FILLER)  # (batch, time)
        targets = torch.full((len(rows), time), IGNORE)  # (batch, time)
        padding = torch.tensor([time - len(row.ids) for row in rows])  # (batch,)
        for i, row in enumerate(rows):
            start = padding[i] if pad_left else 0
            ids[i, start : start + len(row.ids)] = torch.tensor(row.ids)
            targets[i, start : start + len(row.ids)] = torch.tensor(row.targets)
        target_positions = (targets.flatten() != IGNORE).nonzero()[:, 0]  # (n_targets,)
        slots = (ids.flatten() == SLOT).nonzero()[:, 0]  # (n_slots,)
        padding = padding if pad_left and padding.any() else None
        return Batch(ids, targets, grids, views, target_positions, slots, padding)

    def embed(self, batch: Batch) -> Tensor:
        """Word embeddings, with the soft tokens in their slots: (batch, time, dim)."""
        x = self.llama.embed(batch.ids.clamp(min=0))  # (batch, time, dim); a SLOT gets id 0's vector for now
        if self.bridge == "scores":
            return x
        soft_tokens = self.projector(batch.grids.float(), batch.views)  # (n, n_tokens, dim)
        soft_tokens = soft_tokens.flatten(0, 1).to(x.dtype)  # in reading order, as the slots are
        return x.flatten(0, 1).index_copy(0, batch.slots, soft_tokens).view(x.shape)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy in nats, weighted and summed over the report tokens of the batch: ().

        The sum, not the mean: a caller that accumulates batches must divide by the tokens of all of them,
        or a token of a short batch would weigh more.
        """
        hidden = self.llama.hidden(self.embed(batch), batch.padding)  # (batch, time, dim)
        at = batch.target_positions  # logits exist only where a report token is predicted
        logits = self.llama.logits(hidden.flatten(0, 1).index_select(0, at))  # (n_targets, vocab)
        targets = batch.targets.flatten()[at]  # (n_targets,)
        losses = F.cross_entropy(logits.float(), targets, reduction="none")  # (n_targets,)
        if batch.weights is not None:
            losses = losses * batch.weights
        return losses.sum()

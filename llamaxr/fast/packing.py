"""Packed rows: a training batch as one row without filler, in which the prompts' common prefix occurs once.

The studies' rows are laid end to end behind their common prefix (the instruction). Linears and norms then see
each position once and no filler; attention alone must know which positions belong together. In the last block
only positions with a target go through the feed-forward, and the loss is the chunked one of gradients.py.

Measured: 1.6 times the plain form's studies per second on a CPU,
SmolLM2-135M on IU X-ray (`python benchmarks/train_peer.py BASE annotation.json --plain`).
"""

import itertools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..llama import Attention, Llama, rope_frequencies
from ..model import Batch, LlamaXR
from ..prompt import IGNORE, SLOT, Example
from .gradients import adapters_in, cross_entropy, rotate

SHORT = 512  # positions; rows up to this length keep their attention scores for the backward pass on a CPU


@dataclass(frozen=True)
class Packing:
    """Where the positions of several rows are in the packed row.

    A place is an index into the packed row. positions (n,): each place's position in its original row. own
    (batch, own_time): each row's places after the prefix, filled up on the right, where no other place
    attends. inverse (n,): each place's index in the flattened (batch, time) rows, prefix included. shared:
    the length of the prefix. sizes: the length of each row without it.
    """

    positions: Tensor
    own: Tensor
    inverse: Tensor
    shared: int
    sizes: list[int]

    @classmethod
    def of(cls, lengths: list[int], shared: int) -> "Packing":
        """For rows of these lengths, all longer than `shared`, the length of their common prefix."""
        assert 0 <= shared < min(lengths)
        sizes = torch.tensor(lengths) - shared
        places = torch.arange(int(sizes.max()))[None]  # (1, own_time)
        valid = places < sizes[:, None]  # (batch, own_time)
        own = shared + (sizes.cumsum(0) - sizes)[:, None] + places.where(valid, 0)
        prefix = torch.arange(shared)
        positions = torch.cat([prefix, shared + places.expand_as(valid)[valid]])
        last = torch.cat([torch.zeros(len(sizes), shared, dtype=torch.bool), valid], dim=1)
        inverse = torch.cat([prefix, last.flatten().nonzero()[:, 0]])
        return cls(positions, own, inverse, shared, sizes.tolist())

    @property
    def time(self) -> int:
        """Positions of the longest row."""
        return self.shared + self.own.shape[1]

    def to(self, device) -> "Packing":
        places = (t.to(device, non_blocking=True) for t in (self.positions, self.own, self.inverse))
        return Packing(*places, self.shared, self.sizes)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of each row to itself: (1, n_heads, n, head_dim), as q. k and v have
        n_kv_heads."""
        on_cpu = q.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_cpu and self.time <= SHORT:
            return self.attend_row_by_row(q.float(), k.float(), v.float()).to(q.dtype)

        def rows(x: Tensor) -> Tensor:
            """(1, heads, n, head_dim) -> (batch, heads, time, head_dim)"""
            places = x[0].transpose(0, 1)  # (n, heads, head_dim): a position's heads are adjacent in memory
            own = places.index_select(0, self.own.flatten()).unflatten(0, self.own.shape)
            # Expanded, not selected again for each row: then the prefix's gradient is a sum in a fixed order,
            # and not one that CUDA adds up atomically, in 16 bits.
            prefix = places[: self.shared].expand(len(own), -1, -1, -1)
            return torch.cat((prefix, own), dim=1).transpose(1, 2)

        # Each row computes the prefix's attention again: less work than a mask in place of plain causality.
        y = F.scaled_dot_product_attention(rows(q), rows(k), rows(v), is_causal=True, enable_gqa=True)
        return y.transpose(1, 2).flatten(0, 1).index_select(0, self.inverse).transpose(0, 1)[None]

    def attend_row_by_row(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same written out, softmax(q k^T / sqrt(head_dim) + mask) v in fp32, one row after the other. On
        a CPU these whole matrix products are faster than the fused kernel's, which take 32 queries each, also
        where the model computes in bf16. But all scores are kept for the backward pass, so the rows must be
        short."""
        time, group, scale = self.time, q.shape[1] // k.shape[1], q.shape[-1] ** -0.5
        future = torch.full((time, time), -torch.inf).triu_(1)  # (time, time): no position sees a later one
        queries, keys, values = (x[0].split([self.shared, *self.sizes], dim=1) for x in (q, k, v))
        out = []
        for i, (q, k, v) in enumerate(zip(queries, keys, values, strict=True)):
            if i > 0:  # a row's own places see the prefix too
                k, v = torch.cat((keys[0], k), dim=1), torch.cat((values[0], v), dim=1)
            k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)  # (n_heads, n_keys, head_dim)
            n_keys = k.shape[1]
            mask = future[n_keys - q.shape[1] : n_keys, :n_keys]  # (time, n_keys)
            scores = torch.baddbmm(mask, q, k.mT, alpha=scale)  # (n_heads, time, n_keys)
            out.append((scores.softmax(-1) @ v).transpose(0, 1))  # (time, n_heads, head_dim)
        return torch.cat(out).transpose(0, 1)[None]


@dataclass(frozen=True)
class PackedBatch(Batch):
    """A Batch whose ids and targets are one packed row, (1, n)."""

    packing: Packing | None = None

    def to(self, device) -> "PackedBatch":
        return replace(super().to(device), packing=self.packing.to(device))


def shared_length(rows: list[Example]) -> int:
    """How many leading positions are the same in all rows, without loss, and before the first image. Always
    less than the length of the shortest row, which has a position with loss."""
    ids, targets = (zip(*(getattr(row, name) for row in rows), strict=False) for name in ("ids", "targets"))
    same = itertools.takewhile(
        lambda column: len({*column[0]}) == 1 and column[0][0] != SLOT and {*column[1]} == {IGNORE},
        zip(ids, targets, strict=True),
    )
    return sum(1 for _ in same)


class PackedAttention(Attention):
    """Attention that takes a Packing for its mask."""

    def forward(self, x: Tensor, rope, mask, cache) -> Tensor:
        if not isinstance(mask, Packing):
            return super().forward(x, rope, mask, cache)
        heads = lambda y: y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q = rotate(heads(self.q_proj(x)), *rope)  # (1, n_heads, n, head_dim)
        k = rotate(heads(self.k_proj(x)), *rope)  # (1, n_kv_heads, n, head_dim)
        y = mask.attend(q, k, heads(self.v_proj(x)))  # (1, n_heads, n, head_dim)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (1, n, dim)


class PackedLlama(Llama):
    """Llama that also reads packed rows."""

    def packed_hidden(self, x: Tensor, packing: Packing, target_positions: Tensor) -> Tensor:
        """Embeddings of a packed row (1, n, dim) -> hidden states at target_positions: (n_targets, dim)."""
        angles = packing.positions[None, None, :, None] * rope_frequencies(self.config, x.device)
        rope = angles.cos(), angles.sin()  # (1, 1, n, head_dim / 2)
        *blocks, last = self.layers
        with adapters_in(x.dtype, self):
            for block in blocks:
                x = block(x, rope, packing, None)
            x = x + last.self_attn(last.input_layernorm(x), rope, packing, None)
            x = x.index_select(1, target_positions)  # (1, n_targets, dim)
            x = x + last.mlp(last.post_attention_layernorm(x))
        return self.norm(x)[0]


class PackedLlamaXR(LlamaXR):
    """LlamaXR that trains on packed rows."""

    def join(self, rows: list[Example], grids: Tensor, views: Tensor, pad_left: bool) -> Batch:
        if pad_left:  # to generate
            return super().join(rows, grids, views, pad_left)
        shared = shared_length(rows)
        ids, targets = (
            rows_of[0][:shared] + [number for row in rows_of for number in row[shared:]]
            for rows_of in ([row.ids for row in rows], [row.targets for row in rows])
        )
        packing = Packing.of([len(row.ids) for row in rows], shared)
        ids, targets = torch.tensor([ids]), torch.tensor([targets])  # (1, n)
        target_positions, slots = (targets[0] != IGNORE).nonzero()[:, 0], (ids[0] == SLOT).nonzero()[:, 0]
        return PackedBatch(ids, targets, grids, views, target_positions, slots, packing=packing)

    def loss(self, batch: PackedBatch) -> Tensor:
        at = batch.target_positions
        hidden = self.llama.packed_hidden(self.embed(batch), batch.packing, at)  # (n_targets, dim)
        targets = batch.targets[0, at]  # (n_targets,)
        return cross_entropy(hidden, targets, self.llama.head_weight, batch.weights)

"""The reports that a model generates for a split, written to a JSONL file batch by batch.

An evaluation that was interrupted goes on after its last batch. If there are several processes, each
generates a shard of the batches and writes a file of its own; at the end all rows are in one file.

    generated.jsonl     a line of settings, then per study {"id", "outline", "generated"}
    generated.1.jsonl   the same by rank 1, until it is merged into generated.jsonl
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from ..data.outline import split_outline
from ..data.study import Study
from ..decoding import generate
from ..model import LlamaXR
from ..tokenizer import Tokenizer
from ..vision import StudyFeatures
from . import distributed
from .log import write_line, write_lines


@torch.inference_mode()
def generate_reports(
    model: LlamaXR,
    pairs: list[tuple[StudyFeatures, Study]],
    batch: int,
    max_tokens: int,
    path: Path,
    settings: dict,
) -> list[tuple[str, str]]:
    """The (outline, report) that greedy decoding gives for each (features, study), in order.

    path: generated.jsonl. Rows that are there already are used if its first line equals `settings`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rank = distributed.rank()
    finished = distributed.broadcast(lambda: _read_finished(path, settings))
    unfinished = [(features, study.id) for features, study in pairs if study.id not in finished]
    unfinished.sort(key=lambda pair: len(pair[0].views))  # prompts of equal length together
    batches = [unfinished[i : i + batch] for i in range(0, len(unfinished), batch)]
    own_path = path if rank == 0 else path.with_name(f"{path.stem}.{rank}.jsonl")
    with own_path.open("a", encoding="utf-8") as file:
        if rank:
            write_line(file, settings)
        for part in tqdm(
            distributed.shard(batches), desc="reports", unit="batch", leave=False, disable=rank > 0
        ):
            texts = _generate(model, [features for features, _ in part], max_tokens)
            for (_, name), text in zip(part, texts, strict=True):
                outline, report = split_outline(text)
                write_line(file, {"id": name, "outline": outline, "generated": report})
    distributed.barrier()
    finished = distributed.broadcast(lambda: _read_finished(path, settings))
    return [finished[study.id] for _, study in pairs]


@torch.inference_mode()
def write_samples(run: Path, line: dict, model: LlamaXR, val: list, n_samples: int, max_tokens: int) -> None:
    """Print the validation loss and some reports beside the true ones, and add the reports to samples.jsonl.

    line: metrics.jsonl's line of this validation. The reports, outline included, are for the n_samples
    (features, study) pairs of `val` with the longest true reports: those have findings to be wrong about.
    """
    tqdm.write(f"step {line['step']}: validation loss {line['val_loss']:.4f}")
    pairs = sorted(val, key=lambda pair: -len(pair[1].report))[:n_samples]
    if not pairs:
        return
    texts = _generate(model, [features for features, _ in pairs], max_tokens)
    with (run / "samples.jsonl").open("a", encoding="utf-8") as file:
        for (_, study), text in zip(pairs, texts, strict=True):
            sample = {"step": line["step"], "id": study.id, "reference": study.report, "generated": text}
            write_line(file, sample)
            tqdm.write(f"  true:      {study.report}\n  generated: {text}\n")


def decode_stream(tokenizer: Tokenizer, steps: Iterator[list[int]]) -> Iterator[str]:
    """The tokens of decoding.stream for one study -> pieces of text. A character of several bytes is yielded
    when it is complete."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for (token,) in steps:
        yield decoder.decode(tokenizer.bytes_of(token))
    yield decoder.decode(b"", final=True)


def _generate(model: LlamaXR, studies: list[StudyFeatures], max_tokens: int) -> list[str]:
    """The text that greedy decoding gives for each study."""
    batch = model.collate(studies).to(model.projector.place.device)
    x, eos_ids = model.embed(batch), model.tokenizer.eos_ids
    rows = generate(model.llama, x, batch.padding, eos_ids, max_tokens)
    return [model.tokenizer.decode(row) for row in rows]


def _read_finished(path: Path, settings: dict) -> dict[str, tuple[str, str]]:
    """id -> (outline, report) of what these settings generated so far. Merges the files of all processes into
    `path`, so that any number of processes can go on."""
    finished, others = {}, sorted(path.parent.glob(f"{path.stem}.*.jsonl"))
    for file in (path, *others):
        try:
            first, *lines = file.read_text(encoding="utf-8").splitlines()
            for line in lines if json.loads(first) == settings else ():
                row = json.loads(line)
                finished[row["id"]] = row["outline"], row["generated"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no file, or its last line was cut off: what cannot be read is generated again
    rows = [{"id": name, "outline": o, "generated": text} for name, (o, text) in finished.items()]
    write_lines(path, [settings, *rows])
    for file in others:
        file.unlink()
    return finished

"""The reports that a model generates for a split, written to a JSONL file batch by batch.

An evaluation that was interrupted goes on after its last batch. If there are several processes, each
generates a shard of the batches and writes a file of its own; at the end all rows are in one file.

    generated.jsonl            a line that says what made them, then per study {"id", "features": their hash,
                               "outline", "generated"}
    generated.1.jsonl          the same by rank 1, until it is merged into generated.jsonl
    generated-0123abcd.jsonl   those that were made otherwise, by the hash of their first line
"""

import codecs
import contextlib
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from ..data.outline import OUTLINE, split_outline
from ..data.study import Study
from ..decoding import generate
from ..errors import UserError
from ..files.text import parse_json, printable, read_bytes
from ..model import LlamaXR
from ..tokenizer import Tokenizer
from ..vision import StudyFeatures
from . import distributed, samples
from .log import MAX_LOG, read_log, write_line, write_lines
from .run_folder import locked


@torch.inference_mode()
def generate_reports(
    model: LlamaXR,
    pairs: list[tuple[StudyFeatures, Study]],
    batch: int,
    max_tokens: int,
    folder: Path,
    made_of: dict,
) -> list[tuple[str, str]]:
    """The (outline, report) that greedy decoding gives for each (features, study), in order.

    folder: of generated.jsonl. made_of: everything that determines a report, weights included, except
    max_tokens and the features. Existing rows are reused if all of these are the same.
    """
    path, settings = folder / "generated.jsonl", {**made_of, "max_tokens": max_tokens}
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):  # two evaluations into one folder would mix their reports
        rank = distributed.rank()
        hashes = {study.id: _hash(features) for features, study in pairs}
        finished = distributed.broadcast(lambda: _read_finished(path, settings, hashes))
        unfinished = [(features, study.id) for features, study in pairs if study.id not in finished]
        unfinished.sort(key=lambda pair: len(pair[0].views))  # prompts of equal length together
        batches = distributed.shard([unfinished[i : i + batch] for i in range(0, len(unfinished), batch)])
        own_path = path if rank == 0 else path.with_name(f"{path.stem}.{rank}.jsonl")
        with own_path.open("a", encoding="utf-8") as file:
            if rank:
                write_line(file, settings)
            for part in tqdm(batches, desc="reports", unit="batch", leave=False, disable=rank > 0):
                texts = _generate(model, [features for features, _ in part], max_tokens)
                for (_, name), text in zip(part, texts, strict=True):
                    outline, report = split_outline(text)
                    write_line(file, _row(name, hashes[name], outline, report))
        distributed.barrier()
        finished = distributed.broadcast(lambda: _read_finished(path, settings, hashes))
    return [finished[study.id] for _, study in pairs]


@torch.inference_mode()
def write_samples(run: Path, line: dict, model: LlamaXR, val: list, n_samples: int, max_tokens: int) -> None:
    """Print the validation loss and some reports beside the true ones, with what changed in them since the
    last validation, and add the reports to samples.jsonl.

    line: metrics.jsonl's line of this validation. The reports, outline included, are for the n_samples
    (features, study) pairs of `val` with the longest true reports: those have findings to be wrong about.
    """
    tqdm.write(f"step {line['step']}: validation loss {line['val_loss']:.4f}")
    pairs = sorted(val, key=lambda pair: -len(pair[1].report))[:n_samples]
    if not pairs:
        return
    texts, path = _generate(model, [features for features, _ in pairs], max_tokens), run / "samples.jsonl"
    # A model that has learned outlines alone so far writes one after the other: the first is enough.
    texts = [text.partition(f"\n{OUTLINE}")[0] for text in texts]
    before = {row.get("id"): row.get("generated") for row in read_log(path)} if path.is_file() else {}
    with path.open("a", encoding="utf-8") as file:
        for (_, study), text in zip(pairs, texts, strict=True):
            sample = {"step": line["step"], "id": study.id, "reference": study.report, "generated": text}
            write_line(file, sample)
            tqdm.write(samples.as_text(study.id, study.report, text, before.get(study.id)) + "\n")


def studies_of(images: list[Path], each: bool) -> list[Study]:
    """Image files -> one study of one or two views; with `each`, a study per image. UserError for more than
    two, or a missing file; with `each`, only if all are missing, as the rest can be read."""
    if not each and len(images) > 2:
        raise UserError(f"{len(images)} images for one study; use --each to make each image a study")
    if folders := [str(image) for image in images if os.path.isdir(image)]:
        raise UserError(f"{folders[0]} is a folder; give its images, with --each")
    missing = [str(image) for image in images if not os.path.exists(image)]
    if missing and not (each and len(missing) < len(images)):
        raise UserError(f"no radiograph at {', '.join(missing[:3])}: check the path")
    groups = [[image, None] for image in images] if each else [[*images, None][:2]]
    return [Study(str(i), *group, report="", split="test") for i, group in enumerate(groups)]


def print_stream(tokenizer: Tokenizer, steps: Iterator[list[int]], has_outline: bool) -> None:
    """Print one report as it comes from decoding.stream. The outline is no part of it and goes to stderr."""
    head, in_outline, pieces = "", False, decode_stream(tokenizer, steps)
    for piece in pieces:  # until the report begins
        head = (head + piece).lstrip()  # sentencepiece's first word starts with a space
        in_outline = has_outline and OUTLINE.startswith(head[: len(OUTLINE)])
        if not in_outline or "." in head or "\n" in head:
            break
    if in_outline and head.startswith(OUTLINE):
        outline, head = split_outline(head)
        print(printable(OUTLINE + outline), file=sys.stderr)
    started = False
    for piece in itertools.chain([head], pieces):
        piece = piece if started else piece.lstrip()  # the end of the outline's line
        started = started or piece != ""
        print(printable(piece), end="", flush=True)
    print()


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


def _row(name: str, features: str, outline: str, report: str) -> dict[str, str]:
    return {"id": name, "features": features, "outline": outline, "generated": report}


def _hash(features: StudyFeatures) -> str:
    """Of all that a report is made of, but the model: 16 hex digits. Other films or other vision weights give
    others, whatever their files are called."""
    digest = hashlib.sha256(json.dumps(features.views).encode())
    for tensor in (features.grids, features.scores):
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()[:16]


def _read_finished(path: Path, settings: dict, hashes: dict[str, str]) -> dict[str, tuple[str, str]]:
    """id -> (outline, report) of what these settings generated so far from features with these hashes. Merges
    the files of all processes into `path`, so that any number of processes can go on."""
    _set_aside(path, settings)
    finished, rows, others = {}, [], sorted(path.parent.glob(f"{path.stem}.*.jsonl"))
    for file in (path, *others):
        try:
            first, *lines = read_bytes(file, MAX_LOG).splitlines()
            for line in lines if parse_json(first) == settings else ():
                row = _row(*(parse_json(line)[key] for key in ("id", "features", "outline", "generated")))
                if not all(isinstance(text, str) for text in row.values()):
                    raise ValueError("no texts")
                rows.append(row)
                if hashes.get(row["id"]) == row["features"]:
                    finished[row["id"]] = row["outline"], row["generated"]
        except (UserError, ValueError, KeyError, TypeError):
            pass  # no file, or its last line was cut off: what cannot be read is generated again
    write_lines(path, [settings, *rows])
    for file in others:
        file.unlink()
    return finished


def _set_aside(path: Path, settings: dict) -> None:
    """Rename reports of other settings, which may have taken hours, and restore those of these settings."""
    named = lambda first: path.with_name(f"{path.stem}-{hashlib.sha256(first).hexdigest()[:8]}.jsonl")
    own = json.dumps(settings).encode()
    with contextlib.suppress(UserError, IndexError):  # no file, or an empty one
        if (first := read_bytes(path, MAX_LOG).splitlines()[0]) != own:
            os.replace(path, named(first))
    if not path.exists() and named(own).exists():
        os.replace(named(own), path)

"""Generate the report of a radiograph study.

    python generate.py image.png                          the newest run; the embedded demo if there is none
    python generate.py frontal.png lateral.png --run runs/NAME
    python generate.py *.png --each --json                each image is a study; one JSON object per line

Only the report goes to stdout; the run and warnings go to stderr. Reads PNG, JPEG and DICOM.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from llamaxr.data.outline import OUTLINE, split_outline  # the line of findings before a report
from llamaxr.data.study import Study  # image files, and a report if there is one
from llamaxr.decoding import beam_search, generate, stream
from llamaxr.errors import UserError, one_line_errors
from llamaxr.runs.features import study_features  # DenseNet's output for each study
from llamaxr.runs.options import DEVICE_HELP, DEVICES, PLAIN_HELP, RUN_HELP, option, parse  # flags
from llamaxr.runs.reports import decode_stream  # tokens to text as they come
from llamaxr.runs.run import default_run, open_run, prepare_for_generation  # a trained run, loaded


@dataclass(frozen=True)
class GenerateOptions:
    run: Path | None = option(None, RUN_HELP)
    each: bool = option(False, "each image is a study of its own, not one frontal and one lateral")
    json: bool = option(False, "print one JSON object per study: images, report, run")
    temperature: float = option(0.0, "0 is greedy decoding; above 0, sample", at_least=0, at_most=10)
    top_p: float = option(1.0, "sample from the top tokens of this probability", above=0, at_most=1)
    beams: int = option(1, "beams of beam search; 1 means none", at_least=1, at_most=64)
    max_tokens: int = option(300, "longest report in tokens", at_least=1, at_most=4096)
    batch: int = option(16, "studies generated together", at_least=1)
    seed: int = option(0, "seed of sampling", at_least=0)
    device: str = option("auto", DEVICE_HELP, choices=DEVICES)
    plain: bool | None = option(None, PLAIN_HELP)


def main(argv: list[str] | None = None) -> None:
    images = {"nargs": "+", "type": Path, "metavar": "IMAGE", "help": "frontal [lateral]; any with --each"}
    options, extra = parse(GenerateOptions, __doc__, argv, {"images": images})
    if not options.each and len(extra.images) > 2:
        raise UserError(f"{len(extra.images)} images for one study; use --each to make each image a study")
    if options.beams > 1 and options.temperature > 0:
        raise UserError("--beams and --temperature exclude each other; leave one out")
    if missing := [str(image) for image in extra.images if not image.exists()]:
        raise UserError(f"no radiograph at {', '.join(missing)}: check the path")
    groups = [[image, None] for image in extra.images] if options.each else [[*extra.images, None][:2]]
    studies = [Study(str(i), *group, report="", split="test") for i, group in enumerate(groups)]

    run = options.run or default_run()
    trained, vision, model, checkpoint = open_run(run, options.device, options.plain)
    device = model.projector.place.device
    if not trained.plain:
        rows = min(options.batch, len(studies)) * options.beams
        prepare_for_generation(model, device, rows, options.max_tokens)
    about = f"{run} ({checkpoint.name}), base {trained.base}, vision {trained.vision}, {device}"
    drawn = "model" if trained.data == "sample" else "vision network" if trained.vision == "tiny" else ""
    note = f"This {drawn} was trained on drawn images only. " if drawn else ""
    print(f"{about}\n{note}No output of this program is for clinical use.", file=sys.stderr)
    features = study_features(vision, studies, device)
    generator = torch.Generator(device).manual_seed(options.seed)
    sampling = {"temperature": options.temperature, "top_p": options.top_p, "generator": generator}
    with torch.inference_mode():
        for i in range(0, len(studies), options.batch):
            batch = model.collate(features[i : i + options.batch]).to(device)
            prompts = model.embed(batch), batch.padding, model.tokenizer.eos_ids, options.max_tokens
            if len(studies) == 1 and not options.json and options.beams == 1:
                steps = stream(model.llama, *prompts, **sampling)
                return print_stream(decode_stream(model.tokenizer, steps), trained.outline)
            if options.beams > 1:
                rows = beam_search(model.llama, *prompts, options.beams)
            else:
                rows = generate(model.llama, *prompts, **sampling)
            for study, row in zip(studies[i : i + options.batch], rows, strict=True):
                outline, report = split_outline(model.tokenizer.decode(row))
                if options.json:
                    findings = {"findings": outline} if trained.outline else {}
                    images = [str(path) for _, path in study.views]
                    report = json.dumps({**findings, "images": images, "report": report, "run": str(run)})
                elif len(studies) > 1:
                    report = f"{study.frontal}: {report}"
                print(report, flush=True)


def print_stream(pieces: Iterator[str], has_outline: bool) -> None:
    """Print one report as it comes. The outline is not part of the report and goes to stderr."""
    head, in_outline = "", False
    for piece in pieces:  # until the report begins
        head = (head + piece).lstrip()  # sentencepiece's first word starts with a space
        in_outline = has_outline and OUTLINE.startswith(head[: len(OUTLINE)])
        if not in_outline or "\n" in head:
            break
    if in_outline:
        outline, _, head = head.partition("\n")
        print(outline, file=sys.stderr)
    print(head, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    with one_line_errors():
        main()

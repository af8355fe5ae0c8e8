"""Write the report of a radiograph study.

    python generate.py image.png                          the newest run, or the demo where there is none
    python generate.py frontal.png lateral.png --run runs/NAME
    python generate.py *.png --each --json                each image a study of its own, one object a line

The report alone goes to stdout; what it runs on, and warnings, go to stderr. PNG, JPEG and DICOM are read.
"""

import codecs
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from llamaxr.data.study import Study
from llamaxr.decoding import beam_search, generate, stream
from llamaxr.errors import UserError, one_line_errors
from llamaxr.runs.features import study_features
from llamaxr.runs.options import option, parse
from llamaxr.prompt import OUTLINE
from llamaxr.runs.run import DEMO, newest_run, open_run, ready_to_write

WARNING = "No output of this program is for clinical use."
DEMO_WARNING = (
    "The embedded demo learned from drawn phantoms: what it writes of a patient's image is a demonstration."
)


@dataclass(frozen=True)
class GenerateOptions:
    run: Path | None = option(None, "run folder; the newest under runs/, or the embedded demo, if not given")
    each: bool = option(
        False, "treat each image as a study of its own (else: one frontal, or frontal and lateral)"
    )
    json: bool = option(False, "print one JSON object a study: images, report, run")
    temperature: float = option(
        0.0, "0 takes the likeliest token; above, tokens are drawn", at_least=0, at_most=10
    )
    top_p: float = option(1.0, "when drawing: share of probability to draw from", above=0, at_most=1)
    beams: int = option(1, "beams of the search; above 1, temperature must be 0", at_least=1, at_most=64)
    max_tokens: int = option(300, "longest report in tokens", at_least=1, at_most=4096)
    batch: int = option(16, "studies written together", at_least=1)
    seed: int = option(0, "seed of drawn tokens", at_least=0)
    device: str = option("auto", "auto takes CUDA where there is one", choices=("auto", "cuda", "cpu"))


def main(argv: list[str] | None = None) -> None:
    options, extra, _ = parse(GenerateOptions, __doc__, argv, {"images": {
        "nargs": "+", "type": Path, "metavar": "IMAGE", 
        "help": "frontal [lateral]; with --each any number"}})  # fmt: skip
    if not options.each and len(extra.images) > 2:
        raise UserError(
            f"{len(extra.images)} images: a study has a frontal and a lateral; use --each for one study each"
        )
    if options.beams > 1 and options.temperature > 0:
        raise UserError("--beams and --temperature exclude each other; leave one out")
    for image in extra.images:  # before a model is loaded for it
        if not image.exists():
            raise UserError(f"no radiograph at {image}: check the path")
    groups = [[image] for image in extra.images] if options.each else [extra.images]
    studies = [Study(str(i), g[0], g[1] if len(g) > 1 else None, "", "test") for i, g in enumerate(groups)]

    run = options.run or newest_run() or DEMO
    trained, vision, model, step = open_run(run, options.device)
    device = model.projector.place.device
    ready_to_write(model, device, min(options.batch, len(groups)) * options.beams, options.max_tokens)
    print(f"{run} ({step.name}, base {trained.base}, vision {trained.vision}) on {device}. {WARNING}",
          file=sys.stderr)  # fmt: skip
    if trained.data == "sample":
        print(DEMO_WARNING, file=sys.stderr)
    seen = study_features(vision, studies, device)
    generator = torch.Generator(device).manual_seed(options.seed)
    how = {"temperature": options.temperature, "top_p": options.top_p, "generator": generator}
    eos = model.tokenizer.eos_ids
    with torch.inference_mode():
        for at in range(0, len(groups), options.batch):
            batch = model.collate(seen[at : at + options.batch]).to(device)
            prompts = model.embed(batch), batch.padding, eos, options.max_tokens
            if len(groups) == 1 and not options.json and options.beams == 1:
                write_as_it_comes(model, stream(model.llama, *prompts, **how))
                return
            if options.beams > 1:
                rows = beam_search(model.llama, *prompts, n_beams=options.beams, shared=batch.shared)
            else:
                rows = generate(model.llama, *prompts, **how, shared=batch.shared)
            for images, row in zip(groups[at : at + options.batch], rows, strict=True):
                outline, report = model.said(row)
                if options.json:
                    said = {"findings": outline} if model.outline else {}
                    said |= {"images": [str(i) for i in images], "report": report, "run": str(run)}
                    report = json.dumps(said)
                elif len(groups) > 1:
                    report = f"{images[0]}: {report}"
                print(report, flush=True)


def write_as_it_comes(model, steps) -> None:
    """Print the one report token by token; a letter of several bytes waits until it is whole. An outline is
    not the report: it goes to stderr."""
    decoder, held = codecs.getincrementaldecoder("utf-8")(errors="replace"), ""  # held: None once begun
    for (token,) in steps:
        text = decoder.decode(model.tokenizer.bytes_of(token))
        if held is not None:
            held = (held + text).lstrip()  # sentencepiece's first word brings a space
            outlined = model.outline and OUTLINE.startswith(held[: len(OUTLINE)])
            if not held or (outlined and "\n" not in held):
                continue
            seen, _, text = held.partition("\n") if outlined else ("", "", held)
            held = None
            if seen:
                print(seen, file=sys.stderr)
        print(text, end="", flush=True)
    print(decoder.decode(b"", final=True), flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main()

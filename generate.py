"""Generate the report of a radiograph study.

    python generate.py image.png                          the newest run; the embedded demo if there is none
    python generate.py frontal.png lateral.png --run runs/NAME
    python generate.py *.png --each --json                each image is a study; one JSON object per line

Only the report goes to stdout; the run and warnings go to stderr. Reads PNG, JPEG and DICOM.
"""

import llamaxr.runs.interrupt  # noqa: F401  # isort: skip  (Ctrl-C while torch loads ends in one line)
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from llamaxr.data.outline import split_outline  # the line of findings before a report
from llamaxr.decoding import beam_search, generate, stream
from llamaxr.errors import UserError
from llamaxr.files.text import printable  # without what moves a terminal's cursor
from llamaxr.radiograph import load_radiograph
from llamaxr.runs import unlike  # is an image unlike the training images?
from llamaxr.runs.distributed import warn  # a line on stderr
from llamaxr.runs.features import study_features  # DenseNet's output for each study
from llamaxr.runs.options import DEVICE_HELP, DEVICES, MAX_SEED, PLAIN_HELP, RUN_HELP, option, parse
from llamaxr.runs.options import refuse_without_effect as refuse  # options that would do nothing
from llamaxr.runs.reports import print_stream, studies_of  # a report as it comes; images to studies
from llamaxr.runs.run import default_run, open_run, prepare_for_generation  # a trained run, loaded
from llamaxr.runs.terminal import one_line_errors


@dataclass(frozen=True)
class GenerateOptions:
    run: Path | None = option(None, RUN_HELP)
    each: bool = option(False, "each image is a study of its own, not one frontal and one lateral")
    json: bool = option(False, "print one JSON object per study: report, findings, how unlike training it is")
    temperature: float = option(0.0, "0 is greedy decoding; above 0, sample", at_least=0, at_most=10)
    top_p: float = option(1.0, "sample from the fewest tokens of this total probability", above=0, at_most=1)
    beams: int = option(1, "beams of beam search; 1 means none", at_least=1, at_most=64)
    max_tokens: int = option(300, "longest report in tokens", at_least=1, at_most=4096)
    batch: int = option(16, "studies generated together", at_least=1, at_most=1024)
    seed: int = option(0, "seed of sampling", at_least=0, at_most=MAX_SEED)
    device: str = option("auto", DEVICE_HELP, choices=DEVICES)
    plain: bool = option(False, PLAIN_HELP)


def main(argv: list[str] | None = None) -> None:
    images = {"nargs": "+", "type": Path, "metavar": "IMAGE", "help": "frontal [lateral]; any with --each"}
    options, extra = parse(GenerateOptions, __doc__, argv, {"images": images})
    studies = studies_of(extra.images, options.each)
    refuse(extra.given, [
        (("temperature",), options.beams == 1, "--beams 1"), (("batch",), options.each, "--each"),
        (("top_p", "seed"), options.temperature > 0, "--temperature above 0"),
    ])  # fmt: skip

    if not options.each:  # one study: refuse unreadable images now, not after the model is loaded
        for _, path in studies[0].views:
            load_radiograph(path)
    run = options.run or default_run()
    trained, vision, model, checkpoint = open_run(run, options.device, options.plain)
    device = model.projector.place.device
    if not trained.plain:
        rows = min(options.batch, len(studies)) * options.beams
        prepare_for_generation(model, device, rows, options.max_tokens)
    about = f"{run} ({checkpoint.folder.name}), base {trained.base}, vision {trained.vision}, {device}"
    drawn = "model" if trained.data == "sample" else "vision network" if trained.vision == "tiny" else ""
    note = f"This {drawn} was trained on drawn images only. " if drawn else ""
    print(f"{about}\n{note}No output of this program is for clinical use.", file=sys.stderr)
    unreadable = [] if options.each else None  # --each: these get a warning, the others a report
    features = study_features(vision, studies, device, unreadable=unreadable)
    pairs = [(f, study) for f, study in zip(features, studies, strict=True) if f.views]
    likeness = unlike.judge(checkpoint.known, pairs, warn)  # warns of images of another kind
    generator = torch.Generator(device).manual_seed(options.seed)
    sampling = {"temperature": options.temperature, "top_p": options.top_p, "generator": generator}
    with torch.inference_mode():
        for i in range(0, len(pairs), options.batch):
            batch = model.collate([f for f, _ in pairs[i : i + options.batch]]).to(device)
            inputs = model.embed(batch), batch.padding, model.tokenizer.eos_ids, options.max_tokens
            if len(studies) == 1 and not options.json and options.beams == 1:
                steps = stream(model.llama, *inputs, **sampling)
                return print_stream(model.tokenizer, steps, trained.outline)
            if options.beams > 1:
                rows = beam_search(model.llama, *inputs, options.beams)
            else:
                rows = generate(model.llama, *inputs, **sampling)
            for j, row in enumerate(rows, start=i):
                _, study = pairs[j]
                outline, report = split_outline(model.tokenizer.decode(row))
                if options.json:
                    findings = {"findings": outline} if trained.outline else {}
                    images = [str(path) for _, path in study.views]
                    fields = {"images": images, "report": report, "run": str(run)}
                    report = json.dumps({**findings, **fields, **likeness[j]})
                elif len(studies) > 1:
                    report = f"{study.frontal}: {report}"
                print(printable(report))
    if unreadable:
        for line in unreadable:
            warn(line)
        raise UserError(f"{len(unreadable)} of {len(studies)} images cannot be read: replace them, see above")


if __name__ == "__main__":
    with one_line_errors():
        main()

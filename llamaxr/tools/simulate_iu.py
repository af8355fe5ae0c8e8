"""Simulate IU X-ray's images: draw what each study is indexed with, and keep its real report.

    python -m llamaxr.tools.simulate_iu --reports NLMCXR_reports.tgz OUT
    python train.py --data iu_xray --root OUT

In: Open-i's reports (https://openi.nlm.nih.gov/imgs/collections/NLMCXR_reports.tgz). Out: R2Gen's split in
R2Gen's form, a frontal and a lateral film of 224 x 224 pixels for each study. The reports are real. The films
are a simulation: drawings of what Open-i's indexers recorded, with side, zone and severity. Where the index
does not say, side and zone are random and the severity is moderate. A few terms are not drawn; a study that
was not indexed is drawn as a normal one. Results on these films say nothing about patients.

An interrupted call goes on when it is repeated. OUT/simulation.json says what is drawn on each film.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data import iu_layouts
from ..data.drawing import SIGN, ZONE_Y, Finding, draw
from ..data.drawing_iu import EXTRA
from ..data.iu_xray import OPENI, select_r2gen
from ..data.study import SPLITS
from ..data.workers import process_pool
from ..errors import UserError
from ..files.text import complete_or_absent, read_json
from ..metrics.mesh import IndexedFinding, read_terms
from ..runs.options import MAX_SEED, option, parse
from ..runs.terminal import one_line_errors

VERSION = 2  # raise it whenever a film changes
PLAN = iu_layouts.SIMULATION
README = """\
This is a simulation of IU X-ray, made by python -m llamaxr.tools.simulate_iu.

The reports are Open-i's, with their own licence. The images are drawings, not radiographs: each shows what
its report is indexed with (simulation.json). Results on them say nothing about patients.
"""
# For a finding of the index, its drawings: the first whose words are in the term, "" for none. A finding that
# is not here is drawn under its own name.
DRAWINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "lung opacity": (("interstitial", "interstitial opacity"), ("streaky", "streaky opacity"),
                     ("", "lung opacity")),
    "calcification": (("aort", "aortic calcification"), ("atherosclerosis", "aortic calcification"),
                      ("blood vessels", "aortic calcification"), ("lymph nodes", "calcified nodes"),
                      ("hilum", "calcified nodes"), ("mediastinum", "calcified nodes"),
                      ("lung", "lung calcification"), ("", "calcified nodes")),
    "fracture": (("vertebrae", "vertebral fracture"), ("clavicle", "clavicle fracture"),
                 ("humerus", "screws"), ("", "rib fracture")),
    "device": (("catheters", "catheter"), ("humerus", "screws"), ("shoulder", "screws"), ("heart", "valve"),
               ("valve", "valve"), ("implanted", "pacemaker"), ("medical device", "skin leads"),
               ("trachea", "airway tube"), ("tube", "feeding tube"), ("stents", "stent"),
               ("mediastinum", "midline clips"), ("sternum", "wires"), ("instruments/", "clips"),
               ("instruments", "wires"), ("", "clips")),
    "other": (("hypoinflation", "low volume"), ("tortuous", "tortuous aorta"), ("subcutaneous", ""),
              ("elevated", "raised diaphragm"), ("eventration", "raised diaphragm"),
              ("hernia, hiatal", "hiatal hernia"),
              ("emphysema", "emphysema"), ("chronic obstructive", "emphysema"), ("spinal fusion", "screws")),
}  # fmt: skip
SIDED = {"effusion", "pneumothorax", "consolidation", "nodule", "granuloma", "atelectasis", "lung opacity",
         "streaky opacity", "pneumonia", "scar", "pleural other", "raised diaphragm", "lung calcification",
         "rib fracture", "clavicle fracture", "catheter", "clips"}  # fmt: skip
ZONED = {"consolidation", "nodule", "granuloma", "lung opacity", "streaky opacity", "pneumonia", "scar",
         "lung calcification", "rib fracture"}  # fmt: skip
AT_THE_BASE = {"atelectasis", "pleural other"}  # where nothing else is said


@dataclass(frozen=True)
class SimulateOptions:
    reports: Path = option(Path("NLMCXR_reports.tgz"), "Open-i's archive of reports, as it was downloaded")
    seed: int = option(0, "seed of the drawings", at_least=0, at_most=MAX_SEED)


def drawing_of(indexed: IndexedFinding) -> str:
    """The name under which a finding is drawn; "" if it cannot be."""
    term = indexed.term.lower()
    if indexed.name not in DRAWINGS:
        return indexed.name
    return next((drawing for words, drawing in DRAWINGS[indexed.name] if words in term), "")


def films_findings(terms: Iterable[str], rng: np.random.Generator) -> tuple[Finding, ...]:
    """What is drawn for the terms of a study, each thing once. A side or zone that a finding needs and that
    the term does not tell is chosen at random."""
    findings = {}
    for indexed in read_terms(terms):
        name, term = drawing_of(indexed), indexed.term.lower()
        any_side, any_zone = list(SIGN)[rng.integers(2)], list(ZONE_Y)[rng.integers(3)]
        side = "bilateral" if len(indexed.sides) == 2 else next(iter(indexed.sides), None)
        if side is None and name in SIDED:  # the middle lobe is in the right lung, the lingula in the left
            side = "right" if "middle lobe" in term else "left" if "lingula" in term else any_side
        zone = indexed.zone
        if zone is None:
            zone = any_zone if name in ZONED else "lower" if name in AT_THE_BASE else None
        if name:
            # on both sides, these are drawn as two
            is_two = side == "bilateral" and name in ("pneumothorax", "pacemaker")
            for one in SIGN if is_two else (side,):
                findings[Finding(name, one, zone, indexed.severity or "moderate")] = None
    return tuple(findings)


def simulate(reports: Path, out: Path, seed: int = 0, workers: int = 2,
             progress: Callable[[int], None] | None = None) -> None:  # fmt: skip
    """Draw the studies of R2Gen's split into the folder `out`. annotation.json is written last, so an
    unfinished folder is no data set; a second call draws what the first did not.

    Raises UserError for an archive that is damaged or lacks a study of the split, and for a folder that holds
    anything else.
    """
    studies, absent = select_r2gen(iu_layouts.read_openi(out, reports)[0])
    absent += [r.id for r in studies if not r.sections.get("findings")]
    if absent:
        raise UserError(
            f"{reports} lacks {len(absent)} of R2Gen's studies (first {absent[0]}); fetch it again from "
            f"{OPENI}/{iu_layouts.XML_ARCHIVE}"
        )
    plan = {"what": "a simulation: drawn images, real reports", "version": VERSION, "seed": seed, "drawn": {}}
    jobs = []
    for study in studies:
        number = iu_layouts.report_number(study.uid)
        findings = films_findings(study.terms, np.random.default_rng((seed, number)))
        plan["drawn"][study.id] = [{k: v for k, v in asdict(f).items() if v} for f in findings]
        jobs.append((out / "images" / study.id, findings, (seed, number, 1)))
    _begin(out, plan)
    with process_pool(workers) as pool:
        for done, _ in enumerate(pool.map(_draw_study, jobs, chunksize=8), 1):
            if progress:
                progress(done)
    annotation = {split: [] for split in SPLITS}
    for study in studies:
        annotation[study.split].append({
            "id": study.id, "report": study.sections["findings"], "split": study.split,
            "image_path": [f"{study.id}/0.png", f"{study.id}/1.png"]})  # fmt: skip
    _write(out / iu_layouts.ANNOTATION, json.dumps(annotation))


def _begin(out: Path, plan: dict) -> None:
    """Make the folder with its plan and README, or go on in one that has the same plan."""
    if (out / PLAN).is_file():
        if read_json(out / PLAN, remedy="give a new folder") != plan:
            raise UserError(f"{out} holds another simulation (its {PLAN} differs); give a new folder")
        return
    out.mkdir(parents=True, exist_ok=True)
    if others := sorted({path.name for path in out.iterdir() if path.suffix != ".tmp"} - {"README"}):
        raise UserError(f"{out} holds {others[0]}, which is not of a simulation; give a new folder")
    _write(out / "README", README)
    _write(out / PLAN, json.dumps(plan))


def _draw_study(job: tuple[Path, tuple[Finding, ...], tuple[int, ...]]) -> None:
    """Draw the two films of a study, unless they are there."""
    folder, findings, seed = job
    paths = folder / "0.png", folder / "1.png"
    if all(path.is_file() for path in paths):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for path, film in zip(paths, draw(findings, np.random.default_rng(seed), extra=EXTRA), strict=True):
        with complete_or_absent(path) as temporary:
            Image.fromarray(film).save(temporary, format="PNG", compress_level=1)


def _write(path: Path, text: str) -> None:
    with complete_or_absent(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    out = {"out": {"type": Path, "metavar": "OUT", "help": "folder to make, or to go on with"}}
    options, extra = parse(SimulateOptions, __doc__, argv, out, prog="python -m llamaxr.tools.simulate_iu")
    with tqdm(desc="simulated studies", unit="", leave=False) as bar:
        simulate(options.reports, extra.out, options.seed, progress=lambda done: bar.update(done - bar.n))
    print(
        f"{extra.out}: R2Gen's split with real reports and simulated films; train.py --data iu_xray --root "
        f"{extra.out}"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()

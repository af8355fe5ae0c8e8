"""Phantoms: drawn chest radiographs whose findings are known, with reports in the style of IU X-ray.

In: a seed. Out: studies (a frontal and a lateral film, a report, the true findings) for training and tests
without any patient's images. `sample_findings` chooses the findings of a study, drawing.py draws its films,
`write_report` writes its report. `make_studies` does this once for a data set and stores it in a folder.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files.text import complete_or_absent, read_json
from ..radiograph import VIEWS
from .drawing import DRAWN, SIGN, ZONE_Y, Finding, draw
from .study import SPLITS, Study, path_inside
from .workers import process_pool

DRAWING_VERSION = 4  # raise it whenever a drawing or a sentence changes: stored folders are then redrawn
ONE_VIEW = 0.06  # share of studies without a lateral, so that the model learns those too


def sample_findings(rng: np.random.Generator) -> tuple[Finding, ...]:
    """The findings of one study: none in 40% of the studies, else one to four different ones. All findings
    are equally likely."""
    if rng.random() < 0.4:
        return ()
    n_findings = 1 + int(rng.choice(4, p=(0.5, 0.28, 0.15, 0.07)))
    names = rng.choice(DRAWN, n_findings, replace=False).tolist()
    # focal findings get different places, so that none hides another
    places = [(side, zone) for side in SIGN for zone in ZONE_Y]
    places = iter([places[i] for i in rng.permutation(len(places))])
    findings = []
    for name in sorted(names, key=DRAWN.index):
        side = ("left", "right")[rng.integers(2)]
        if name in ("consolidation", "nodule", "granuloma"):
            findings.append(Finding(name, *next(places)))
        elif name == "effusion":
            findings.append(Finding(name, "bilateral" if rng.random() < 0.3 else side))
        elif name == "pneumothorax":
            findings.append(Finding(name, side))
        elif name == "atelectasis":
            findings.append(Finding(name, side, "lower"))
        elif name == "device":
            findings.append(Finding(name, ("left", "right", None)[rng.integers(3)]))
        else:
            findings.append(Finding(name))
    return tuple(findings)


# Each topic of a report and its sentences, one of which is drawn; {where} is the place of a finding.
SENTENCES = {
    "cardiomegaly": ("The heart is enlarged.", "There is cardiomegaly.",
                     "The cardiac silhouette is enlarged."),
    "effusion": ("There is a {where} pleural effusion.", "{Where} pleural effusion is present.",
                 "A {where} pleural effusion is seen."),
    "pneumothorax": ("There is a {where} pneumothorax.", "{Where} pneumothorax is present.",
                     "A {where} apical pneumothorax is seen."),
    "consolidation": ("There is consolidation in the {where}.", "Airspace disease is seen in the {where}.",
                      "{Where} consolidation is noted."),
    "nodule": ("There is a nodule in the {where}.", "A pulmonary nodule is seen in the {where}.",
               "{Where} nodule is noted."),
    "granuloma": ("There is a calcified granuloma in the {where}.", "{Where} calcified granuloma is noted.",
                  "A calcified granuloma is seen in the {where}."),
    "atelectasis": ("There is atelectasis in the {where}.", "{Where} atelectasis is noted.",
                    "Atelectasis is seen in the {where}."),
    "hyperinflation": ("The lungs are hyperinflated.", "The lungs are hyperexpanded.",
                       "There is hyperinflation with flattened diaphragms."),
    "scoliosis": ("There is scoliosis of the thoracic spine.", "Thoracic scoliosis is noted.",
                  "Scoliosis is present."),
    "left device": ("A left chest pacemaker is in place.", "There is a left pacemaker.",
                    "Left pacemaker is noted."),
    "right device": ("A right central venous catheter is in place.",
                     "There is a right central venous catheter.",
                     "Right central venous catheter is noted."),
    "device": ("Sternotomy wires are intact.", "Median sternotomy wires are present.",
               "There are sternotomy wires."),
    "normal heart": ("The heart is normal in size.", "Heart size is normal.",
                     "The cardiomediastinal silhouette is within normal limits."),
    "clear lungs": ("The lungs are clear.", "There is no focal consolidation.",
                    "Lungs are clear bilaterally."),
    "clear but hyperinflated": ("The lungs are otherwise clear.", "No focal airspace opacity."),
    "otherwise clear": ("The lungs are otherwise clear.", "No other focal airspace opacity."),
    "no pleural finding": ("No pneumothorax or pleural effusion.",
                           "There is no pleural effusion or pneumothorax.",
                           "No pleural effusion. No pneumothorax."),
    "no effusion": ("No pleural effusion.", "There is no pleural effusion."),
    "no pneumothorax": ("No pneumothorax.", "There is no pneumothorax."),
    "normal bones": ("The bony structures are intact.", "No acute bony abnormality.",
                     "Visualized osseous structures are unremarkable."),
}  # fmt: skip
ZONE_WORDS = {"upper": "{side} upper lobe", "mid": "{side} mid lung", "lower": "{side} lower lobe"}


def place(finding: Finding) -> str:
    """Side and zone in words: "left", "right upper lobe", "left lung base"; "" for a finding without them."""
    if finding.name == "atelectasis":
        return f"{finding.side} lung base"
    return ZONE_WORDS[finding.zone].format(side=finding.side) if finding.zone else finding.side or ""


def write_report(findings: tuple[Finding, ...], rng: np.random.Generator) -> str:
    """The report of a study, one paragraph: heart, lungs, pleura, bones, devices. It names every finding with
    its place and makes the usual statements about what is absent."""

    def sentence(topic: str, where: str = "") -> str:
        text = SENTENCES[topic][rng.integers(len(SENTENCES[topic]))]
        return text.format(where=where, Where=where.capitalize())

    by_name = {f.name: f for f in findings}
    sentences = [sentence("cardiomegaly" if "cardiomegaly" in by_name else "normal heart")]
    focal = [n for n in ("consolidation", "nodule", "granuloma", "atelectasis") if n in by_name]
    lungs = [sentence("hyperinflation")] if "hyperinflation" in by_name else []
    lungs += [sentence(n, place(by_name[n])) for n in focal]
    if not focal:
        lungs += [sentence("clear but hyperinflated" if lungs else "clear lungs")]
    elif "consolidation" not in focal and rng.random() < 0.5:
        lungs += [sentence("otherwise clear")]
    pleura = [sentence(n, place(by_name[n])) for n in ("effusion", "pneumothorax") if n in by_name]
    if not pleura:
        pleura = [sentence("no pleural finding")]
    elif len(pleura) == 1:
        pleura += [sentence("no pneumothorax" if "effusion" in by_name else "no effusion")]
    bones = [sentence("scoliosis" if "scoliosis" in by_name else "normal bones")]
    devices = []
    if "device" in by_name:
        devices = [sentence(f"{by_name['device'].side or ''} device".lstrip())]
    return " ".join(sentences + lungs + pleura + bones + devices).replace("A bilateral", "Bilateral")


def list_findings(findings: tuple[Finding, ...]) -> str:
    """The findings as a short list ("cardiomegaly; nodule, right upper lobe"), or "normal". The tiny base is
    trained on text alone to write a report from such a list, before it is given any image."""
    return "; ".join(", ".join(filter(None, (f.name, place(f)))) for f in findings) or "normal"


def make_studies(
    folder: Path,
    n_train: int = 3200,
    n_val: int = 200,
    n_test: int = 300,
    seed: int = 0,
    size: int = 224,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> list[Study]:
    """The sample data set in `folder`: drawn by the first call, read by later ones.

    Study i depends on (seed, i) only, so any number of workers draws the same bytes. studies.json is written
    last and renamed into place. If it is absent or has other settings, or an image is missing, everything is
    drawn again.
    size: pixels per side. progress, if given, is called with the number of studies drawn so far.
    """
    settings = {"version": DRAWING_VERSION, "counts": [n_train, n_val, n_test], "seed": seed, "size": size}
    index, images = folder / "studies.json", folder / "images"
    is_current = True
    try:
        stored = read_json(index)
        rows, counts = stored["studies"], [0, 0, 0]
        for study in (_study(row, images) for row in rows):
            counts[SPLITS.index(study.split)] += 1
            is_current = is_current and all(os.path.isfile(path) for _, path in study.views)
        is_current = is_current and stored["settings"] == settings and counts == settings["counts"]
    except (UserError, ValueError, KeyError, TypeError, AttributeError):
        is_current = False
    if not is_current:
        images.mkdir(parents=True, exist_ok=True)
        index.unlink(missing_ok=True)  # from here on the images may be a mixture of old and new
        splits = [split for split, n in zip(SPLITS, settings["counts"], strict=True) for _ in range(n)]
        jobs = [(images, seed, i, split, size) for i, split in enumerate(splits)]
        rows = []
        with process_pool(workers) as pool:
            for row in pool.map(_make_study, jobs, chunksize=16):
                rows.append(row)
                if progress:
                    progress(len(rows))
        with complete_or_absent(index) as temporary:
            temporary.write_text(json.dumps({"settings": settings, "studies": rows}), encoding="utf-8")
    return [_study(row, images) for row in rows]


def _study(row: dict, images: Path) -> Study:
    """A row of studies.json as a study. UserError, KeyError, TypeError or ValueError for another row."""
    frontal, lateral = (*(path_inside(images, name, "studies.json") for name in row["views"]), None)[:2]
    texts = row["id"], row["report"], row["split"], *row["findings"]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text is none")
    return Study(row["id"], frontal, lateral, row["report"], row["split"], frozenset(row["findings"]))


def phantom(seed: int, i: int, size: int = 224) -> tuple[tuple[Finding, ...], list[np.ndarray], str]:
    """Study i of a seed: its findings, its one or two films (frontal first), its report."""
    rng = np.random.default_rng((seed, i))
    findings = sample_findings(rng)
    films = list(draw(findings, rng, size))
    if rng.random() < ONE_VIEW:
        films = films[:1]
    return findings, films, write_report(findings, rng)


def _make_study(job: tuple[Path, int, int, str, int]) -> dict:
    """Draw one study and save its films; returns its row of studies.json."""
    images, seed, i, split, size = job
    findings, films, report = phantom(seed, i, size)
    name = f"phantom-{seed}-{i:05d}"
    views = [f"{name}_{view}.png" for view in VIEWS[: len(films)]]
    for file, film in zip(views, films, strict=True):
        with complete_or_absent(images / file) as temporary:
            Image.fromarray(film).save(temporary, format="PNG", compress_level=1)
    names = [f.name for f in findings]
    return {"id": name, "split": split, "views": views, "report": report, "findings": names}

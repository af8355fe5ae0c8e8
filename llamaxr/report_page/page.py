"""report.html: an evaluation to look at, in one file that needs no server, no network and no other file.

In: the results that eval.py keeps, the split as it was judged, and, where there are images, what vision saw
of them. Out: the tables, and a gallery of the studies with each finding marked in both texts and a heat map
of where vision saw it; and the same studies for a blind review. report_page.html is the page,
report_page.js what it does, and one JSON object carries all that differs from page to page.

A report may hold anything, so nothing of it is ever read as HTML: the JSON stands in the page with its "<",
">" and "&" written as \\u003c and so on, the script turns it into text nodes alone, and the page's own
security policy runs that one script, known by its hash, and loads nothing from anywhere.

In blind review the two texts of a study are A and B, in an order drawn for each study, and so is the order of
the studies: worst first would tell how the system did. Tables, marks, scores and heat maps are not there.
"""

import base64
import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.study import VIEWS, Study
from ..errors import UserError
from ..runs.features import StudyFeatures
from ..metrics.agreement import INVENTED, MISSED, OUTCOMES, RIGHT, outcomes
from ..metrics.findings import ASSERTED, locate, mentions
from ..metrics.table import BLOCKS, SYSTEM, Judged
from ..radiograph import load_radiograph
from ..vision import PATHOLOGIES, Vision
from ..tools.vision_train import PATHOLOGIES_OF

PAGE, SCRIPT = (Path(__file__).with_suffix(end) for end in (".html", ".js"))
MOST = 1000  # studies in a page, some 20 MB with their images; of more, so many are drawn
QUALITY = 80  # of a JPEG of 224 x 224, some 7 kB

# Views of a study as the page takes them, or none where an image is not to be had.
Look = Callable[[int], list[dict]]


def write(
    path: Path,
    results: Mapping,
    rows: Sequence[Mapping[str, str]],
    judged: Judged,
    titles: Mapping[str, str],
    look: Look | None = None,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> None:
    """Write the page. results: as eval.py keeps them; rows: id, reference and generated of each study, in
    judged's order; titles: of table.BLOCKS; look(i): `views` of study i; None where there are no images;
    progress: called after each study."""
    drawn = [hashlib.sha256(f"{seed} {row['id']}".encode(errors="replace")).digest() for row in rows]
    chosen = sorted(range(len(rows)), key=drawn.__getitem__)[:MOST]

    def study(place: int) -> dict:
        i = chosen[place]
        said = {f: sides for f, sides in locate(rows[i]["generated"]).items() if f in judged.names}
        found = outcomes(judged.findings[i], said, judged.names)
        sides = lambda of, f: sorted(of.get(f, ()))
        return {
            "id": rows[i]["id"],
            "reference": marked(rows[i]["reference"], found, silent=INVENTED),
            "generated": marked(rows[i]["generated"], found, silent=MISSED),
            "findings": {f: [o, sides(judged.findings[i], f), sides(said, f)] for f, o in found.items()},
            "blind": [place, drawn[i][-1] % 2],  # its place, and which text is A: 0 the reference
            "views": look(i) if look else [],
            "order": [sum(o != RIGHT for o in found.values()), -len(found), -i],
        }

    # load_radiograph silences its decoders' warnings; threads may undo that in a wrong order, so: all at once
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        studies = []
        for done in pool.map(study, range(len(chosen))):
            studies.append(done)
            if progress:
                progress()
    studies.sort(key=lambda s: s.pop("order"), reverse=True)
    writers = {
        name: {w: {b: blocks[b] for b in BLOCKS if b in blocks} for w, blocks in group["writers"].items()}
        for name, group in results["groups"].items()
    }
    heated = to_bytes([view["heat"] for s in studies for view in s["views"]])
    data = {
        "settings": results["settings"],
        "in_words": results["in_words"],
        "constant": results["constant_report"],
        "sizes": {name: group["studies"] for name, group in results["groups"].items()},
        "writers": writers,
        "blocks": {b: [titles[b], names] for b, names in BLOCKS.items()},
        "per_class": results["groups"]["all"]["writers"][SYSTEM]["per_class"],
        "names": list(judged.names),
        "outcomes": OUTCOMES,
        "heated": [f for f in judged.names if f in heated],
        "of": len(rows),
        "studies": studies,
    }
    data["key"] = hashlib.sha256(json.dumps(data).encode()).hexdigest()  # the reader's answers are kept by it
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(filled(data), encoding="utf-8")
    os.replace(temporary, path)


def filled(data: object) -> str:
    """The whole page around its data; plain ASCII where data is, so that no decoder can misread it."""
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":  # all that can end or open anything in HTML; in JSON they stand in strings only
        text = text.replace(character, f"\\u{ord(character):04x}")
    script = SCRIPT.read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = PAGE.read_text(encoding="utf-8")
    for place, content in (("@SCRIPT_HASH@", allowed), ("@SCRIPT@", script), ("@DATA@", text)):
        assert page.count(place) == 1, place
        page = page.replace(place, content)  # the data last: what it holds is not looked at again
    return page


def marked(report: str, found: Mapping[str, str], silent: str) -> list:
    """The report cut where findings begin and end: [text, [[finding, outcome, state], ...]] a piece.

    Marked is what it asserts, and the place where it denies or doubts what `silent` says of it: missed in a
    generated report, invented against a reference.
    """
    kept = [
        m for m in mentions(report)
        if m.finding in found and (m.state == ASSERTED or found[m.finding] == silent)
    ]  # fmt: skip
    edges = sorted({0, len(report), *(edge for m in kept for edge in (m.start, m.end))})
    return [
        [report[a:b], [[m.finding, found[m.finding], m.state] for m in kept if m.start <= a and b <= m.end]]
        for a, b in pairwise(edges)
    ]


def views(vision: Vision, study: Study, features: StudyFeatures) -> list[dict]:
    """What the page shows of each view that vision saw: its name, its JPEG as a data URI, and by finding the
    heat map (49,) and the score of the whole view, where vision has one."""
    files, shown, learned = dict(study.views), [], learned_by(vision)
    maps = evidence(vision, features.grids) if learned else None
    for at, view in enumerate(features.views):
        try:
            image = jpeg(load_radiograph(files[view]))
        except UserError:  # looked at once, and gone since
            continue
        shown.append({
            "name": VIEWS[view],
            "image": "data:image/jpeg;base64," + _base64(image),
            "heat": {f: maps[at, column].numpy() for f, column in learned.items()},
            "score": {f: round(features.scores[at, column].item(), 2) for f, column in learned.items()},
        })  # fmt: skip
    return shown


@torch.inference_mode()
def evidence(vision: Vision, grids: Tensor) -> Tensor:
    """(n, channels, 7, 7) -> (n, 18, 49): how much each place speaks for each pathology, row by row.

    This is a class activation map (Zhou et al. 2016): the classifier is linear and reads the mean of all
    places, so the mean of a place's own weighted sums is the whole view's. Zero is where the score is 0.5.
    """
    last, points = vision.net.classifier, vision.op_threshs
    own = torch.einsum("pc,ncs->nps", last.weight.cpu().float(), grids.flatten(2).float())
    own += last.bias.cpu().float()[:, None]
    return own if points is None else own - points.cpu().logit()[:, None]


def to_bytes(heats: list[dict]) -> set[str]:
    """Each map of each view, in place, to 49 bytes in base64, 0 where nothing speaks for the finding and 255
    where most does in any of the views: one scale a finding, so that an image without it stays cold. Gives
    the findings that have maps."""
    findings = {f for heat in heats for f in heat}
    for f in findings:
        top = max(1e-6, *(heat[f].max() for heat in heats))
        for heat in heats:
            heat[f] = _base64((heat[f].clip(0) / top * 255).round().astype(np.uint8).tobytes())
    return findings


def learned_by(vision: Vision) -> dict[str, int]:
    """Finding -> the column of its pathology among vision's scores, where it was trained on that."""
    if not vision.has_scores:
        return {}
    columns = {f: PATHOLOGIES.index(pathologies[0]) for f, pathologies in PATHOLOGIES_OF.items()}
    known = vision.op_threshs
    return {f: column for f, column in columns.items() if known is None or not known[column].isnan()}


def jpeg(radiograph: Tensor) -> bytes:
    """(1, height, width) in [-1024, 1024] -> a grey JPEG: the crop that vision saw, so that maps fit it."""
    pixels = ((radiograph[0].numpy() + 1024) / 2048 * 255).round().astype(np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=QUALITY)
    return written.getvalue()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()

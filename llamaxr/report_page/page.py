"""report.html: an evaluation as one page, in one file that needs no server, no network and no other file.

In: eval.py's results, the evaluated split and, where there are images, vision's features of them. Out: the
tables; a gallery of the studies, with each finding marked in both texts and a heat map of vision's evidence
for it; and the same studies for a blind review. page.html is the markup, page.js the script, and one JSON
object carries everything that differs from page to page.

A report may contain anything, so no report is ever parsed as HTML. In the JSON "<", ">" and "&" are written
as \\u003c and so on, the script puts the texts into text nodes only, and the page's content security policy
allows that one script, by its hash, and loads nothing from anywhere.

In the blind review the two texts of a study are A and B, in an order drawn for each study. The order of the
studies is drawn too: worst first would show how the system did. The review has no tables, marks, scores or
heat maps.
"""

import base64
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.study import Study
from ..errors import UserError
from ..files.text import complete_or_absent
from ..metrics.agreement import INVENTED, MISSED, OUTCOMES, RIGHT, outcomes
from ..metrics.findings import ASSERTED, PATHOLOGIES_OF, mentions
from ..metrics.table import SYSTEM, Evaluation
from ..metrics.verdicts import told
from ..radiograph import VIEWS, load_radiograph
from ..vision import PATHOLOGIES, StudyFeatures, Vision

PAGE, SCRIPT = (Path(__file__).with_suffix(suffix) for suffix in (".html", ".js"))
MAX_STUDIES = 1000  # per page, some 20 MB with their images; from a larger split this many are drawn
TRUE = "true reports"  # a row of the table about the reports themselves
JPEG_QUALITY = 80  # some 7 kB for 224 x 224 pixels


def write(
    path: Path,
    results: Mapping,
    rows: Sequence[Mapping[str, str]],
    evaluation: Evaluation,
    titles: Mapping[str, str],
    views_of: Callable[[int], list[dict]] | None = None,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> None:
    """Write the page.

    results: the content of eval.py's results.json. rows: id, reference and generated of each study, in
    evaluation's order. titles: table.titles. views_of(i): `views` of study i; None without images.
    seed: of the blind review's order. progress: called after each study.
    """
    digests = [hashlib.sha256(f"{seed} {row['id']}".encode(errors="replace")).digest() for row in rows]
    review_order = sorted(range(len(rows)), key=digests.__getitem__)[:MAX_STUDIES]

    def study(position: int) -> dict:
        i = review_order[position]
        true = evaluation.findings[i]
        generated = evaluation.label(rows[i]["generated"])
        generated = {f: s for f, s in generated.items() if f in evaluation.classes}
        outcome_of = outcomes(true, generated, evaluation.classes)
        sides = lambda findings, f: sorted(findings.get(f, ()))
        return {
            "id": rows[i]["id"],
            "reference": marked_pieces(rows[i]["reference"], outcome_of, INVENTED),
            "generated": marked_pieces(rows[i]["generated"], outcome_of, MISSED),
            "findings": {f: [o, sides(true, f), sides(generated, f)] for f, o in outcome_of.items()},
            "review_position": position,
            "a_is_generated": digests[i][-1] % 2,
            "views": views_of(i) if views_of else [],
            "rank": [sum(o != RIGHT for o in outcome_of.values()), -len(outcome_of), -i],
        }

    # load_radiograph silences its decoders' warnings; threads could undo that in the wrong order
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        studies = []
        for finished in pool.map(study, range(len(review_order))):
            studies.append(finished)
            if progress:
                progress()
    studies.sort(key=lambda s: s.pop("rank"), reverse=True)  # worst first
    of_blocks = lambda systems: {w: {b: s[b] for b in titles if b in s} for w, s in systems.items()}
    groups, writers, leads = results["groups"], {}, {}
    for name, group in groups.items():
        writers[name] = of_blocks(group["writers"] | {TRUE: {"reports": group["references"]}})
        leads[name] = {
            w: {b: {score: told(gap) for score, gap in gaps.items()} for b, gaps in blocks.items()}
            for w, blocks in of_blocks(group["differences"]).items()
        }
    blocks = {b: [s for w in writers["all"].values() for s in w.get(b, ())] for b in titles}
    with_heat_map = encode_heat_maps([view["heat"] for s in studies for view in s["views"]])
    data = {
        "settings": results["settings"],
        "in_words": results["in_words"],
        "constant_report": results["constant_report"],
        "group_sizes": {name: group["studies"] for name, group in groups.items()},
        "writers": writers,
        "leads": leads,
        "blocks": {b: [titles[b], list(dict.fromkeys(names))] for b, names in blocks.items() if names},
        "per_class": groups["all"]["writers"][SYSTEM]["per_class"],
        "classes": list(evaluation.classes),
        "outcomes": OUTCOMES,
        "with_heat_map": [f for f in evaluation.classes if f in with_heat_map],
        "n_evaluated": len(rows),
        "studies": studies,
    }
    data["key"] = hashlib.sha256(json.dumps(data).encode()).hexdigest()  # the browser stores answers under it
    with complete_or_absent(path) as temporary:
        temporary.write_text(render(data), encoding="utf-8")


def render(data: object) -> str:
    """The page around its data. The data is plain ASCII, so no decoder can misread it."""
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":  # whatever opens or ends anything in HTML; JSON has these in strings only
        text = text.replace(character, f"\\u{ord(character):04x}")
    script = SCRIPT.read_text(encoding="utf-8")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = PAGE.read_text(encoding="utf-8")
    for placeholder, content in (("@SCRIPT_HASH@", script_hash), ("@SCRIPT@", script), ("@DATA@", text)):
        assert page.count(placeholder) == 1, placeholder
        page = page.replace(placeholder, content)  # data last: placeholders within it are not replaced
    return page


def marked_pieces(report: str, outcome_of: Mapping[str, str], absent: str) -> list:
    """The report cut where mentions of findings begin and end: [text, [[finding, outcome, state], ...]] each.

    The findings that the report asserts are marked. Those with the outcome `absent`, which only the other
    text asserts, are marked where this one denies or doubts them: MISSED in a generated report, INVENTED in a
    reference.
    """
    marks = [
        m for m in mentions(report)
        if m.finding in outcome_of and (m.state == ASSERTED or outcome_of[m.finding] == absent)
    ]  # fmt: skip
    edges = sorted({0, len(report), *(edge for m in marks for edge in (m.start, m.end))})
    begin: dict[int, list[int]] = {}  # edge -> the marks that begin there
    for i, mark in enumerate(marks):
        begin.setdefault(mark.start, []).append(i)
    pieces, covering = [], []  # one pass: the time is linear in the report's length
    for a, b in pairwise(edges):
        covering = sorted([i for i in covering if marks[i].end > a] + begin.get(a, []))
        own = [[marks[i].finding, outcome_of[marks[i].finding], marks[i].state] for i in covering]
        pieces.append([report[a:b], own])
    return pieces


def views(vision: Vision, study: Study, features: StudyFeatures) -> list[dict]:
    """What the page shows of each view: its name, its JPEG as a data URI and, where vision scores a finding,
    the finding's heat map (49,) and the view's score. A view whose file is gone is left out."""
    files, shown, columns = dict(study.views), [], score_columns(vision)
    maps = activation_maps(vision, features.grids) if columns else None
    for row, view in enumerate(features.views):
        try:
            image = jpeg(load_radiograph(files[view]))
        except UserError:  # readable when its features were computed, and gone since
            continue
        shown.append({
            "name": VIEWS[view],
            "image": "data:image/jpeg;base64," + _base64(image),
            "heat": {f: maps[row, column].numpy() for f, column in columns.items()},
            "score": {f: round(features.scores[row, column].item(), 2) for f, column in columns.items()},
        })  # fmt: skip
    return shown


@torch.inference_mode()
def activation_maps(vision: Vision, grids: Tensor) -> Tensor:
    """(n, channels, 7, 7) -> (n, 18, 49): the evidence for each pathology at each place, row by row.

    A class activation map (Zhou et al. 2016): the classifier is linear and reads the mean over places, so the
    mean of a map is the view's logit, here minus the operating point's. Zero corresponds to a score of 0.5.
    """
    last, points = vision.net.classifier, vision.op_threshs
    maps = torch.einsum("pc,ncs->nps", last.weight.cpu().float(), grids.flatten(2).float())
    maps += last.bias.cpu().float()[:, None]
    return maps if points is None else maps - points.cpu().logit()[:, None]


def encode_heat_maps(heats: list[dict]) -> set[str]:
    """Replace each map in place by 49 bytes in base64, and return the findings that have maps.

    0 is no evidence, 255 the most in any view. All views share a finding's scale, so that an image without
    the finding stays cold.
    """
    findings = {f for heat in heats for f in heat}
    for f in findings:
        top = max(1e-6, *(heat[f].max() for heat in heats))
        for heat in heats:
            heat[f] = _base64((heat[f].clip(0) / top * 255).round().astype(np.uint8).tobytes())
    return findings


def score_columns(vision: Vision) -> dict[str, int]:
    """Finding -> the column of its first pathology among vision's scores, where vision had labels for it."""
    if not vision.has_scores:
        return {}
    columns = {f: PATHOLOGIES.index(pathologies[0]) for f, pathologies in PATHOLOGIES_OF.items()}
    points = vision.op_threshs
    return {f: column for f, column in columns.items() if points is None or not points[column].isnan()}


def jpeg(radiograph: Tensor) -> bytes:
    """(1, height, width) in [-1024, 1024] -> a grey JPEG. It shows vision's crop, so heat maps fit it."""
    pixels = ((radiograph[0].numpy() + 1024) / 2048 * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()

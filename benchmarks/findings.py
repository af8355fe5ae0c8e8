"""Measure the findings labeller (metrics/findings.py) against the people who indexed IU X-ray.

    python benchmarks/findings.py --reports NLMCXR_reports.tgz --annotation annotation.json

The truth is the MeSH terms that Open-i's indexers gave each study, as findings by metrics/mesh.py. The
indexers read FINDINGS and IMPRESSION, so both are labelled; FINDINGS alone, the report of R2Gen's split, is
beside it. The rules were tuned on R2Gen's train studies; in the last rounds, their effect on the other splits
was read too. `rest` are Open-i's studies outside the split.
Studies that were not indexed and reports without a text are counted as left out. Micro and macro are over the
nineteen findings, without "no finding" (with it: the last line); macro is also over the classes with ten
studies or more. The results, without any text of a report, are in benchmarks/results/findings.json.

Two more measures, each if its file is given:

    pip download --no-deps radlabels==0.2.0
    ... --radlabels radlabels-0.2.0-py3-none-any.whl --sentences tests/metrics/sentences.txt

radlabels' 1,000 sample reports have RadGraph-XL's labels, of which "definitely present" counts as asserted.
They cover whole reports, including questions in the indication ("rule out pneumonia"). So the body, from the
first heading after the indication, is scored beside the whole. A line of sentences is
`kind | sentence | +effusion:left -pneumothorax`: what it asserts, the sides (left, right, both) where they
matter, and what it does not assert. The rules were tuned on the sentences in tests/metrics too.
"""

import argparse
import json
import re
import tarfile
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

from measure import write_results

from llamaxr.errors import UserError
from llamaxr.metrics import agreement, mesh
from llamaxr.metrics.findings import CLASSES, FINDINGS, NO_FINDING, locate
from llamaxr.runs.terminal import one_line_errors

SPLITS = ("train", "val", "test", "rest")
MAX_BYTES = 1 << 20  # of one report: they have about 10 KiB
MAX_FILES = 20_000  # in the archive: it has 3,955
# radlabels' names of our classes; what it has no name for is left out.
RADLABELS = {
    "cardiomegaly": {"cardiomegaly"},
    "enlarged cardiomediastinum": {"enlarged_cardiomediastinum"},
    "effusion": {"pleural_effusion"},
    "pleural other": {"pleural_thickening", "pleural_other"},
    "pneumothorax": {"pneumothorax"},
    "lung opacity": {"lung_opacity", "air_space_opacity", "infiltration", "interstitial_thickening",
                     "ground_glass_opacity"},
    "consolidation": {"consolidation"},
    "pneumonia": {"pneumonia"},
    "edema": {"pulmonary_edema", "pulmonary_congestion_pulmonary_venous_congestion"},
    "nodule": {"lung_nodule_or_mass", "lung_lesion"},
    "calcification": {"calcification_of_the_aorta"},
    "atelectasis": {"atelectasis", "lobar_segmental_collapse", "whole_lung_or_majority_collapse"},
    "hyperinflation": {"hyperinflation"},
    "fracture": {"fracture_generic", "acute_rib_fracture", "non_acute_rib_fracture"},
    "device": {"endotracheal_tube", "enteric_tube", "central_venous_catheter", "intercostal_drain",
               "pacemaker_electronic_cardiac_device_or_wires", "tracheostomy_tube", "support_devices_generic",
               "implantable_electronic_device"},
}  # fmt: skip
BODY = re.compile(r"FINDINGS|IMPRESSION|(?:CHEST|PA AND LATERAL|FRONTAL)[^\n]*:")
SIDES = {"": None, "left": frozenset({"left"}), "right": frozenset({"right"}),
         "both": frozenset({"left", "right"})}  # fmt: skip
MIN_STUDIES = 10  # for a class to be `frequent`: with fewer its F1 means little


def read_reports(path: Path) -> dict[str, tuple[str, str, list[str]]]:
    """Open-i's archive, read without unpacking: id -> FINDINGS, IMPRESSION, MeSH terms."""
    studies = {}
    try:
        with tarfile.open(path, "r|gz") as archive:  # a stream: no size or offset in it is trusted
            for i, member in enumerate(archive):
                if i >= MAX_FILES or member.size > MAX_BYTES:
                    raise UserError(f"{path} holds more than Open-i's reports, at {member.name!r}; fetch it")
                if not member.isfile() or not member.name.endswith(".xml"):
                    continue
                text = archive.extractfile(member).read()
                if b"<!" in text:  # no report declares entities or a document type
                    raise UserError(f"{path}: {member.name!r} holds a declaration; fetch Open-i's archive")
                root = ElementTree.fromstring(text)
                parts = {p.get("Label"): " ".join((p.text or "").split()) for p in root.iter("AbstractText")}
                terms = [(m.text or "").strip() for m in root.iter("major")]
                name = root.find("uId").get("id")
                studies[name] = parts.get("FINDINGS", ""), parts.get("IMPRESSION", ""), terms
    except (OSError, EOFError, tarfile.TarError, ElementTree.ParseError, AttributeError) as error:
        raise UserError(f"{path} is not Open-i's NLMCXR_reports.tgz ({error}); fetch it again") from None
    return studies


def read_split(path: Path) -> dict[str, str]:
    """R2Gen's annotation.json: Open-i's id ("CXR2384" of "CXR2384_IM-0942") -> train, val or test."""
    try:
        groups = json.loads(path.read_text(encoding="utf-8")).values()
        return {study["id"].split("_")[0]: study["split"] for group in groups for study in group}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not R2Gen's annotation.json ({error!r}); fetch it again") from None


def compare(studies: list[tuple[str, str, list[str]]], impression: bool) -> dict:
    """Score the labeller on the indexed studies that have a text, and count them and their sides."""
    pairs = []
    for findings, conclusion, terms in studies:
        text = findings + "\n\n" + conclusion if impression else findings
        if mesh.is_indexed(terms) and text.strip(" .\n"):
            pairs.append((mesh.mesh_locate(terms), text))
    truths = [truth for truth, _ in pairs]
    began = time.perf_counter()
    labels = [locate(text) for _, text in pairs]
    seconds = time.perf_counter() - began
    frequent = [n for n in FINDINGS if sum(n in t for t in truths) >= MIN_STUDIES]
    sided = [(t[n], f[n]) for t, f in zip(truths, labels, strict=True)
             for n in FINDINGS if t.get(n) and f.get(n)]  # fmt: skip
    return {
        "studies": len(pairs),
        "left_out": len(studies) - len(pairs),
        "seconds": round(seconds, 2),
        "sides": {"right": sum(a == b for a, b in sided), "asserted": len(sided)},
        "findings": agreement.score(truths, labels, FINDINGS),
        "frequent": {"classes": frequent, **agreement.score(truths, labels, frequent)},
        "with_no_finding": agreement.score(truths, labels, CLASSES),
    }


def read_radlabels(path: Path) -> list[tuple[str, set[str]]]:
    """radlabels' wheel, read without unpacking: each sample report and the names that it is labelled with."""
    try:
        with zipfile.ZipFile(path) as wheel:

            def read(name: str) -> str:
                if wheel.getinfo(name).file_size > MAX_BYTES:
                    raise UserError(f"{path} holds more than radlabels' reports, at {name!r}; fetch it")
                return wheel.read(name).decode()

            labels = json.loads(read("radlabels/samples/synthetic_labels.json"))
            return [
                (
                    read(f"radlabels/samples/synthetic_reports/{name}.txt"),
                    {label for label, state in states.items() if state == "definitely present"},
                )
                for name, states in labels.items()
            ]
    except (OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not radlabels' wheel ({error!r}); fetch it again") from None


def compare_radlabels(reports: list[tuple[str, set[str]]]) -> dict:
    """The micro scores over the classes of RADLABELS, of whole reports and of their bodies."""
    truths = [{name: frozenset() for name, labels in RADLABELS.items() if labels & present}
              for _, present in reports]  # fmt: skip
    result = {"reports": len(reports)}
    for part in ("whole", "body"):
        texts = [text if part == "whole" else text[m.start():] if (m := BODY.search(text)) else text
                 for text, _ in reports]  # fmt: skip
        scores = agreement.score(truths, [locate(text) for text in texts], list(RADLABELS))
        result[part] = {name: [scores[name], *scores["intervals"][name]]
                        for name in ("micro_precision", "micro_recall", "micro_f1")}  # fmt: skip
    return result


def read_sentences(path: Path) -> list[tuple[str, str, list[tuple[bool, str, frozenset[str] | None]]]]:
    """A file of sentences, each with its kind and decisions (asserted, finding, sides or None for any)."""
    sentences = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            kind, sentence, words = (part.strip() for part in line.split(" | "))
            decisions = []
            for word in words.split():
                name, _, sides = word[1:].replace("_", " ").partition(":")
                if word[0] not in "+-" or name not in FINDINGS or sides not in SIDES:
                    raise ValueError(f"{word!r} in line {number}")
                decisions.append((word[0] == "+", name, SIDES[sides]))
            sentences.append((kind, sentence, decisions))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no file of sentences ({error}); see benchmarks/findings.py") from None
    return sentences


def compare_sentences(sentences: list) -> dict:
    """Over all and by kind: [sentences with no wrong decision, sentences, right decisions, decisions]."""
    counts: dict[str, list[int]] = {}
    for kind, sentence, decisions in sentences:
        found = locate(sentence)
        right = [asserted == (name in found) and (not asserted or sides in (None, found[name]))
                 for asserted, name, sides in decisions]  # fmt: skip
        for key in (kind, "all"):
            new = all(right), 1, sum(right), len(right)
            counts[key] = [a + b for a, b in zip(counts.get(key, [0] * 4), new, strict=True)]
    return {"all": counts.pop("all", [0] * 4), **counts}


def summary(result: dict) -> dict:
    """What the results file keeps of `compare`; each score as [value, low, high]."""

    def rates(scores: dict, *names: str) -> dict:
        return {name: [scores[name], *scores["intervals"][name]] for name in names}

    return {
        **{key: result[key] for key in ("studies", "left_out", "sides")},
        **rates(result["findings"], "micro_precision", "micro_recall", "micro_f1", "macro_f1"),
        "macro_f1_of_frequent": rates(result["frequent"], "macro_f1")["macro_f1"],
    }


def write(scores: dict[str, dict[str, dict]], more: dict[str, dict]) -> None:
    """benchmarks/results/findings.json, from split -> text -> `compare`, and the two further measures."""
    command = "python benchmarks/findings.py --reports NLMCXR_reports.tgz --annotation annotation.json"
    command += " --radlabels radlabels-0.2.0-py3-none-any.whl" * ("radlabels" in more)
    command += " --sentences tests/metrics/sentences.txt" * ("sentences" in more)
    value = {
        "command": command,
        "configuration": {"findings": len(FINDINGS)},
        "scores": {split: {text: summary(r) for text, r in texts.items()} for split, texts in scores.items()},
    }
    if "test" in scores:
        result = scores["test"]["findings_and_impression"]
        value["configuration"]["frequent"] = result["frequent"]["classes"]
        value["test_classes"] = {
            name: {**{c: int(row[c]) for c in agreement.COLUMNS[:4]}, "f1": row["f1"],
                   **dict(zip(("low", "high"), row["intervals"]["f1"], strict=True))}
            for name, row in result["findings"]["per_class"].items()
        }  # fmt: skip
    write_results("findings", {**value, **more})


def show(split: str, label: str, result: dict) -> None:
    def number(scores: dict, key: str) -> str:
        if scores[key] is None:  # undefined
            return ""
        low, high = scores["intervals"][key]
        return f"{scores[key]:.3f} [{low:.3f}, {high:.3f}]"

    sides = "{right} of {asserted}".format(**result["sides"])
    print(f"\n{split}, {label}: {result['studies']} studies ({result['left_out']} left out), "
          f"{result['seconds']} s, sides {sides}")  # fmt: skip
    print(f"{'':28s}{'n':>5s}{'found':>7s}{'missed':>8s}{'invented':>10s}  "
          f"{'precision':22s}{'recall':22s}F1")  # fmt: skip
    rows = result["findings"]["per_class"]
    for name in CLASSES:
        row = rows[name]
        found, missed = row["right"] + row["wrong_side"], row["missed"]
        print(f"{name:28s}{found + missed:5.0f}{found:7.0f}{missed:8.0f}{row['invented']:10.0f}  "
              + "".join(f"{number(row, x):22s}" for x in ("precision", "recall", "f1")))  # fmt: skip
    few = f"the {len(result['frequent']['classes'])} of {MIN_STUDIES} studies or more"
    for title, scores in (("nineteen findings", result["findings"]), (few, result["frequent"]),
                          (f"and {NO_FINDING}", result["with_no_finding"])):  # fmt: skip
        print(f"{title:30s}" + "  ".join(f"{m} F1 {number(scores, f'{m}_f1')}" for m in
                                         ("micro", "macro", "example")))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reports", type=Path, required=True, help="Open-i's NLMCXR_reports.tgz")
    parser.add_argument("--annotation", type=Path, required=True, help="R2Gen's annotation.json (IU X-ray)")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS)
    parser.add_argument("--radlabels", type=Path, help="radlabels' wheel, with its 1,000 sample reports")
    parser.add_argument("--sentences", type=Path, help="sentences with what each asserts and does not")
    options = parser.parse_args()
    reports_of = read_radlabels(options.radlabels) if options.radlabels else []
    sentences = read_sentences(options.sentences) if options.sentences else []
    reports, split_of = read_reports(options.reports), read_split(options.annotation)
    results = {}
    for split in options.splits:
        studies = [study for name, study in reports.items() if split_of.get(name, "rest") == split]
        results[split] = {"findings_and_impression": compare(studies, impression=True),
                          "findings_alone": compare(studies, impression=False)}  # fmt: skip
        show(split, "FINDINGS and IMPRESSION", results[split]["findings_and_impression"])
        alone = results[split]["findings_alone"]
        print(f"FINDINGS alone ({alone['studies']} studies): micro F1 {alone['findings']['micro_f1']:.3f}, "
              f"macro F1 {alone['findings']['macro_f1']:.3f}")  # fmt: skip
    more = {}
    if reports_of:
        more["radlabels"] = result = compare_radlabels(reports_of)
        for part in ("whole", "body"):
            value, low, high = result[part]["micro_f1"]
            print(f"radlabels, {part} reports: micro F1 {value:.3f} [{low:.3f}, {high:.3f}]")
    if sentences:
        more["sentences"] = compare_sentences(sentences)
        print(f"\n{'kind':14s}{'sentences':>14s}{'decisions':>14s}")
        for kind, (whole, n, right, decisions) in more["sentences"].items():
            print(f"{kind:14s}{whole:7d} of {n:3d}{right:7d} of {decisions:3d}")
    write(results, more)


if __name__ == "__main__":
    with one_line_errors():
        main()

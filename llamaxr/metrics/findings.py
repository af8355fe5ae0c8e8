"""Findings read out of a report by rules, and counted: right, missed, invented.

In: the text of a report. Out: the set of findings that it asserts. Overlap scores reward a report for
sounding like a report; this counts whether it says what is there. The idea is NegEx's and CheXpert's
labeller's, kept small: look for a finding's words in each clause, and drop it where the clause denies it.

What is asserted with doubt ("possible", "may represent", "cannot be excluded") counts as asserted: a
report that says it has put it before its reader. What is denied, resolved or removed does not count.
"""

import re
from collections.abc import Sequence

# What a radiologist may write for each finding. Patterns are tried on one lower-case clause; "..." is a
# gap of up to five words within the clause, and a word stands for all that it begins.
RULES: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("cardiomegal", "enlarge ... heart", "enlarge ... cardiac", "enlarge ... cardio",
                     "heart ... enlarge", "cardiac ... enlarge", "cardiomediastinal ... enlarge"),
    "effusion": ("(?<!pericardial )effusion", "pleural fluid", "hydrothora", "hydropneumothora",
                 "blunting ... costophrenic", "costophrenic ... blunt", "blunted ... costophrenic"),
    "pneumothorax": ("pneumothora", "hydropneumothora"),
    "consolidation": ("consolidat", "air ?space disease", "air ?space opaci", "air ?space process",
                      "infiltrat", "pneumonia"),
    "nodule": ("(?<!calcified )(?<!calcified pulmonary )(?<!calcified lung )nodul", "mass(?:es)?\\b(?! effect)"),
    "granuloma": ("granuloma", "calcified nodul", "calcified pulmonary nodul", "calcified lung nodul"),
    "atelectasis": ("atelecta", "lobar collapse"),
    "hyperinflation": ("hyperinflat", "hyperexpan", "hyperdisten", "hyperaerat",
                       "flatten ... diaphragm", "flatten ... hemidiaphragm", "diaphragm ... flatten",
                       "hemidiaphragm ... flatten"),
    "scoliosis": ("scolio", "dextroscolio", "levoscolio", "dextrocurv", "levocurv", "curvature ... spine"),
    "device": ("pacemaker", "pacer", "pacing", "aicd", "defibrillator", "catheter", "picc", "port-?a-?cath",
               "mediport", "port\\b", "central line", "central venous line", "tube\\b", "tubes\\b",
               "sternotomy", "sternal wire", "cabg", "stent", "prosthetic valve", "valve replacement"),
}
FINDINGS: tuple[str, ...] = tuple(RULES)

# A denial rules from its word to the end of its clause: "no pneumothorax or pleural effusion".
DENIALS = ("no", "not", "non", "nor", "neither", "never", "without", "absent", "absence of", "negative for",
           "free of", "clear of", "resolved", "resolution of", "removal of", "interval removal",
           "rather than", "ruled out", "evaluate for", "no longer")
# Some deny afterwards: "the effusion has resolved", "nodules are not seen".
DENIALS_AFTER = ("not", "no longer", "resolved", "cleared", "absent", "excluded", "removed", "ruled out")
# These hold a word of denial and deny nothing.
NOT_DENIALS = (r"no (?:\w+ ){0,2}changes? (?:in|of|to|from)", r"(?:without|no) (?:\w+ ){0,2}changes?\b",
               r"not (?:\w+ ){0,1}changed", r"(?:can ?not|not|can't) (?:be )?(?:\w+ )?(?:excluded?|ruled? out)",
               r"not only", r"no (?:\w+ )?(?:increase|decrease) in")
# Where the reach of a denial ends though the sentence goes on: "no effusion, but the heart is enlarged".
BREAKS = (r"\bbut\b", r"\bhowever\b", r"\balthough\b", r"\bthough\b", r"\bexcept\b", r"\baside from\b",
          r"\bapart from\b", r"\bother than\b", r"\bwhile\b", r"\bwhich\b",
          r"(?:,|\band) (?=there (?:is|are)\b)", r"(?:,| and) (?=the \w+ (?:is|are)\b)", r", (?=with\b)")


def _compile(phrase: str) -> re.Pattern[str]:
    return re.compile(r"\b" + phrase.replace(" ... ", r"\w*\b(?:\W+\w+){0,5}?\W+"))


def _any_of(phrases: Sequence[str]) -> str:
    return r"\b(?:" + "|".join(phrases) + r")\b"


_RULES = {name: [_compile(p if p.startswith("(?<!") else rf"(?:{p})") for p in phrases]
          for name, phrases in RULES.items()}
_DENIAL, _NOT_DENIAL = re.compile(_any_of(DENIALS)), re.compile("|".join(NOT_DENIALS))
_DENIED_AFTER = re.compile(r"[^,]{0,12}?\b(?:is|are|was|were|has|have)\b(?: \w+){0,2}? " + _any_of(DENIALS_AFTER))
_SIDE, _BOTH = re.compile(r"\b(?:left|right)\b"), frozenset({"left", "right"})
_BREAK = re.compile("|".join(BREAKS))


def clauses(report: str) -> list[str]:
    """The report in lower case, cut where the reach of a denial ends: at sentences and at BREAKS."""
    text = " ".join(report.lower().split())
    text = re.sub(r"\bnon[- ]?(?=calcified)", "un", text).replace("uncalcified", "soft")
    text = _NOT_DENIAL.sub("with", text)
    sentences = re.split(r"[;:!?]|\.(?!\d)", text)          # a full stop, but not that of "1.2 cm"
    return [clause.strip() for s in sentences for clause in _BREAK.split(s) if clause.strip(" ,")]


def locate(report: str) -> dict[str, frozenset[str]]:
    """The findings that the report asserts, each with the sides ("left", "right") its clauses name."""
    found: dict[str, frozenset[str]] = {}
    for clause in clauses(report):
        denial = _DENIAL.search(clause)
        reach = denial.start() if denial else len(clause)
        sides = frozenset(_SIDE.findall(clause)) | (_BOTH if "bilateral" in clause else frozenset())
        for name, patterns in _RULES.items():
            matches = (match for pattern in patterns for match in pattern.finditer(clause))
            # by its end: "the heart is not enlarged" begins before its denial
            if any(match.end() <= reach and not _DENIED_AFTER.match(clause, match.end()) for match in matches):
                found[name] = found.get(name, frozenset()) | sides
    return found


def find(report: str) -> frozenset[str]:
    """The findings (names of FINDINGS) that the report asserts."""
    return frozenset(locate(report))


def right_sides(references: Sequence[str], generated: Sequence[str]) -> tuple[int, int]:
    """Of the findings that both reports of a study assert and to which the reference gives a side: to how
    many the generated report gives the same, and how many there are."""
    right = total = 0
    for reference, report in zip(references, generated, strict=True):
        truth, said = locate(reference), locate(report)
        sided = [name for name in truth.keys() & said.keys() if truth[name]]
        right, total = right + sum(truth[n] == said[n] for n in sided), total + len(sided)
    return right, total


def score(references: Sequence[frozenset[str]], generated: Sequence[frozenset[str]],
          names: Sequence[str] = FINDINGS) -> dict:
    """Compare the findings of generated reports with those of their references, study by study.

    Returns micro_precision, micro_recall, micro_f1 (all decisions pooled), macro_f1 (the mean over
    classes), and per_class: name -> tp (right), fn (missed), fp (invented), f1.

    Where a ratio is 0/0 it is 0: silence earns nothing, so a writer of normal reports alone has precision
    0. A class that is neither in a reference nor invented says nothing, and macro_f1 leaves it out.
    """
    if len(references) != len(generated):
        raise ValueError(f"{len(references)} references for {len(generated)} generated reports")
    pairs = list(zip(references, generated, strict=True))
    per_class = {}
    for name in names:
        tp = sum(name in truth and name in said for truth, said in pairs)
        fn = sum(name in truth and name not in said for truth, said in pairs)
        fp = sum(name not in truth and name in said for truth, said in pairs)
        per_class[name] = {"tp": tp, "fn": fn, "fp": fp, "f1": _f1(tp, fn, fp)}
    tp, fn, fp = (sum(c[count] for c in per_class.values()) for count in ("tp", "fn", "fp"))
    met = [c["f1"] for c in per_class.values() if c["tp"] + c["fn"] + c["fp"]]
    return {"micro_precision": _ratio(tp, tp + fp), "micro_recall": _ratio(tp, tp + fn),
            "micro_f1": _f1(tp, fn, fp), "macro_f1": _ratio(sum(met), len(met)), "per_class": per_class}


def _f1(tp: int, fn: int, fp: int) -> float:
    return _ratio(2 * tp, 2 * tp + fn + fp)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0

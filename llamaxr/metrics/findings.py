"""A rule-based labeller: which findings a report asserts, doubts or denies, where and on which side.

In: the text of a report. Out: its findings. The method is that of NegEx (Chapman et al. 2001) and of
CheXpert's labeller (Irvin et al. 2019), kept small: search each clause for the words of a finding, and drop
the finding if the clause denies or doubts it. agreement.py compares two reports by it.

The classes are CheXpert's fourteen (nodule is its lung lesion, device its support devices, effusion its
pleural effusion) and six more that are frequent in IU X-ray: one vocabulary for drawn and real reports. A
doubted finding ("possible", "may represent", "cannot be excluded") is not counted, because human readers do
not count it: of 123 findings that IU X-ray's train reports only doubt, its indexers recorded 9.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

# What a radiologist may write for each finding. A word matches every word that begins with it ("cardiomegal":
# cardiomegaly, cardiomegalic); with a full stop it matches only itself ("mass."). "..." is a gap of up to
# five words within a clause. A space also matches a hyphen. "xxxx" is Open-i's mark for a word that it
# removed.
RULES: dict[str, tuple[str, ...]] = {
    "cardiomegaly": (
        "cardiomegal", "enlarge ... heart", "enlarge ... cardiac", "enlarge ... cardio", "heart ... enlarge",
        "cardiac ... enlarge", "cardiomediastin ... enlarge", "heart ... large.", "large heart",
        "heart ... borderline", "borderline heart", "borderline cardiac", "increase ... heart size"),
    "enlarged cardiomediastinum": (
        "mediastin ... wide", "wide ... mediastin", "mediastin ... enlarge", "mediastin ... prominen",
        "prominen ... mediastin", "paratracheal ... prominen"),
    "effusion": (
        "effusion", "pleural fluid", "hydrothora", "hemothora", "hydropneumothora", "hemopneumothora",
        "costophrenic ... blunt", "blunt ... costophrenic"),
    "pleural other": (
        "pleural ... thicken", "thicken ... pleura", "pleural scar", "pleural parenchymal scar",
        "scar ... pleura", "pleural plaque", "fissur ... thicken", "thicken ... fissure"),
    "pneumothorax": ("pneumothora", "hydropneumothora", "hemopneumothora"),
    "lung opacity": ("opacit", "opacif", "densit", "infiltrat", "interstitial"),
    "consolidation": ("consolidat", "airspace disease", "air space disease"),
    "pneumonia": ("pneumonia", "pneumonitis"),
    "edema": (
        "edema", "congestion", "congestive", "heart failure", "chf.", "vascular ... engorge",
        "venous engorge", "vessel ... engorge", "pulmonary xxxx ... engorge", "venous hypertension",
        "vascular ... prominen", "prominen ... vascul"),
    "nodule": ("nodul", "mass.", "masses.", "masslike", "mass like"),
    "granuloma": (
        "granuloma.", "granulomas.", "granulomata", "granulomatous disease", "granulomatous infection",
        "granulomatous sequela", "granulomatous change", "granulomatous ... calcif"),
    "calcification": ("calcif", "atherosclero"),  # atherosclerosis shows on a film by its calcium
    "atelectasis": ("atelecta", "collapse"),
    "scar": ("scar",),
    "hyperinflation": (
        "hyperinflat", "hyperexpan", "hyperdisten", "hyperaerat", "increased lung volume",
        "flatten ... diaphragm", "flatten ... hemidiaphragm", "diaphragm ... flatten",
        "hemidiaphragm ... flatten"),
    "scoliosis": (
        "scolio", "dextroscolio", "levoscolio", "dextrocurv", "levocurv", "curvature ... spine",
        "spin ... curvature", "thoracolumbar curvature", "curvature ... thoracolumbar"),
    "degenerative spine": (
        "degenerative ... spine", "spin ... degenerative", "degenerative change", "degenerative ... dis",
        "endplate ... change", "spondylo", "osteophyt", "spurring", "syndesmophyt", "hyperostosis", "dish.",
        "arthriti ... spine"),
    "fracture": ("fractur",),
    "device": (
        "pacemaker", "pacer", "pacing", "aicd", "icd.", "defibrillator", "generator", "stimulator",
        "neurostimulat", "leads.", "lead.", "device", "catheter", "picc", "port a cath", "xxxx a xxxx",
        "mediport", "port.", "central line", "central venous line", "xxxx tip", "tip ... svc.",
        "tip ... cava", "tip ... atri", "tip ... vena", "tube.", "tubes.", "tubing", "tracheostomy", "shunt",
        "stent", "valve replacement", "prosthe", "occluder", "sternotomy wire", "sternal wire", "clip",
        "suture", "hardware", "fixation", "anchor", "screw", "rods."),
    # Findings of no class. A report that asserts one is still not a report of "no finding".
    "other": (
        "hernia", "tortuo", "ectatic", "ectasia", "unfold", "aneurysm", "hypoinflat", "hypoventilat",
        "low lung volume", "low volume", "volume ... low.", "volume loss", "crowding", "emphysema", "copd",
        "chronic obstructive", "bulla", "bleb", "elevat ... diaphragm", "elevat ... hemidiaphragm",
        "diaphragm ... elevat", "hemidiaphragm ... elevat", "eventration", "pectus", "kypho", "osteopeni",
        "demineral", "arthriti", "deformit", "lucency", "foreign body", "foreign bodies", "bullet",
        "shrapnel", "epicardial fat", "epipericardial fat", "hil ... prominen", "prominen ... hil", "bihilar",
        "adenopathy", "implant", "pulmonary arter ... prominen", "prominen ... pulmonary arter", "mastectomy",
        "pneumoperitoneum", "breast prosthe"),
}
# Where these words mean something else.
UNLESS: dict[str, tuple[str, ...]] = {
    "effusion": ("pericardial effusion", "joint effusion"),
    "lung opacity": ("interstitial edema", "interstitial pulmonary edema", "interstitial pneumon"),
    "edema": ("soft tissue edema",),
    "nodule": ("nodular opacit", "nodular densit", "mass effect", "mediastinal mass", "thyroid mass"),
    "calcification": ("calcif ... granuloma.", "calcif ... granulomas.", "granulomatous ... calcif"),
    "degenerative spine": (
        "degenerative ... shoulder", "degenerative ... knee", "degenerative ... hip.",
        "degenerative ... acromio", "degenerative ... costochondral"),
    "fracture": ("catheter fracture",),
    "device": ("breast prosthe",),
}
NO_FINDING, OTHER = "no finding", "other"
FINDINGS: tuple[str, ...] = tuple(name for name in RULES if name != OTHER)  # nineteen
CLASSES: tuple[str, ...] = (NO_FINDING, *FINDINGS)

# For each finding, the torchxrayvision pathologies that it counts as.
PATHOLOGIES_OF: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("Cardiomegaly", "Enlarged Cardiomediastinum"),
    "enlarged cardiomediastinum": ("Enlarged Cardiomediastinum",),
    "effusion": ("Effusion",),
    "pleural other": ("Pleural_Thickening",),
    "pneumothorax": ("Pneumothorax",),
    "lung opacity": ("Lung Opacity",),
    "consolidation": ("Consolidation", "Lung Opacity"),
    "pneumonia": ("Pneumonia", "Lung Opacity"),
    "edema": ("Edema", "Lung Opacity"),
    "nodule": ("Nodule", "Lung Lesion"),
    "granuloma": ("Nodule",),
    "atelectasis": ("Atelectasis", "Lung Opacity"),
    "scar": ("Fibrosis",),
    "hyperinflation": ("Emphysema",),
    "fracture": ("Fracture",),
}

# A denial holds from its word to the end of the clause: "no pneumothorax or pleural effusion".
DENIALS = ("no", "not", "non", "nor", "neither", "never", "without", "absent", "absence of", "negative for",
           "free of", "clear of", "clearing of", "resolved", "resolution of", "removal of",
           "interval removal", "rather than", "ruled out", "rule out", "exclude", "evaluate for",
           "evaluation for", "no longer")
# Some denials follow the finding: "the effusion has resolved", "nodules are not seen".
DENIALS_AFTER = ("not", "no longer", "resolved", "cleared", "absent", "excluded", "removed", "ruled out",
                 "within normal limits", "within limits of normal")
# These contain a word of denial but deny nothing.
NOT_DENIALS = (r"no (?:\w+ ){0,2}changes? (?:in|of|to|from)", r"(?:without|no) (?:\w+ ){0,2}changes?\b",
               r"not (?:\w+ )?changed", r"not only", r"no (?:\w+ )?(?:increase|decrease) in")
# Doubt holds as far as a denial does. "Probable", "likely" and "suggest" assert.
DOUBTS = ("possible", "possibly", "possibility", "may", "might", "could", "can", "cannot", "versus", "vs",
          "if", "consider", "suspicious", "suspected", "suspicion", "questionable", "questionably",
          "question", "concern", "concerning", "correlate", "differential", "clinical setting")
DOUBTS_AFTER = ("possible", "considered", "a consideration", "another consideration", "in the differential")
# These contain a word of denial but express doubt.
NOT_EXCLUDED = r"(?:is |are )?(?:can ?not|not|can't) (?:be )?(?:\w+ )?(?:excluded?|ruled? out)"
# Where denial and doubt end before the sentence does: "no effusion, but the heart is enlarged".
BREAKS = (r"\bbut\b", r"\bhowever\b", r"\balthough\b", r"\bthough\b", r"\bexcept\b", r"\baside from\b",
          r"\bapart from\b", r"\bother than\b", r"\bwhile\b", r"\bwhich\b",
          r"(?:,|\band) (?=there (?:is|are)\b)", r"(?:,| and) (?=the \w+ (?:is|are)\b)", r", (?=with\b)",
          r" (?=the (?:lungs|heart) (?:is|are)\b)")

ASSERTED, DOUBTED, DENIED = "asserted", "doubted", "denied"


@dataclass(frozen=True)
class Mention:
    """One finding named in a report, at report[start:end]. state: asserted, doubted or denied. sides: "left",
    "right", both or neither, as the report names them."""

    finding: str
    start: int
    end: int
    state: str
    sides: frozenset[str]


def _phrases(phrases: Sequence[str]) -> re.Pattern[str]:
    def word(w: str) -> str:
        return re.escape(w[:-1]) + r"\b" if w.endswith(".") else re.escape(w) + r"\w*"

    def run(words: str) -> str:
        return r"[\s-]+".join(word(w) for w in words.split())

    gap = r"(?:[\s-]+\w+){0,5}?[\s-]+"
    return re.compile(r"\b(?:" + "|".join(gap.join(run(r) for r in p.split(" ... ")) for p in phrases) + ")")


def _any_of(phrases: Sequence[str]) -> str:
    return r"\b(?:" + "|".join(phrases) + r")\b"


_RULES = {name: _phrases(phrases) for name, phrases in RULES.items()}
_UNLESS = {name: _phrases(phrases) for name, phrases in UNLESS.items()}
_DENIAL, _DOUBT = re.compile(_any_of(DENIALS)), re.compile(_any_of(DOUBTS))
_BREAK = re.compile("|".join(BREAKS))
_DENIED_AFTER = re.compile(
    r"[^,]{0,40}?\b(?:is|are|was|were|has|have|appears?)\b(?: \w+){0,2}? " + _any_of(DENIALS_AFTER))
_DOUBTED_AFTER = re.compile(r"\W*(?:(?:is|are) )?" + _any_of(DOUBTS_AFTER))
# Replaced before matching, each by a word of the same meaning, padded so that positions in the text hold.
_REPLACED = ((re.compile("|".join(NOT_DENIALS)), "with"), (re.compile(NOT_EXCLUDED), "possible"),
             (re.compile(r"\bnon[- ]?calcified|\buncalcified"), "soft"))
# "1.2 cm" does not end a sentence, a blank line does
_SENTENCE = re.compile(r"(?:[^;:!?.\n]|(?<=\d)\.(?=\d)|\n(?!\s*\n))+")
# one character to one, which str.lower does not guarantee
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ\n\t\r", "abcdefghijklmnopqrstuvwxyz   ")
# the right atrium is not a side
_SIDE = re.compile(r"\b(left|right|bilateral|bibasilar|biapical)(?! ?(?:atri|ventric|heart))")
_SIDES = {"left": frozenset({"left"}), "right": frozenset({"right"})}  # every other word means both
_BOTH = frozenset({"left", "right"})
_SETS = {sides: sides for sides in (frozenset(), *_SIDES.values(), _BOTH)}  # shared: saves memory
_LIST = re.compile(r",|\band\b|\bor\b|\bwith\b|/")


def mentions(report: str) -> list[Mention]:
    """Every mention of a finding (of FINDINGS, and OTHER) in the report, sentence by sentence."""
    return [Mention(name, match.start() + start, match.start() + end, state, sides)
            for match in _SENTENCE.finditer(report)
            for name, start, end, state, sides in _label(match[0].translate(_LOWER))]


@lru_cache(maxsize=10_000)  # sentences repeat, and each is labelled on its own
def _label(sentence: str) -> tuple[tuple[str, int, int, str, frozenset[str]], ...]:
    for pattern, word in _REPLACED:
        sentence = pattern.sub(lambda m, word=word: word.ljust(len(m[0])), sentence)
    found, breaks = [], [0, *(m.start() for m in _BREAK.finditer(sentence)), len(sentence)]
    for begin, stop in zip(breaks, breaks[1:], strict=False):
        clause = sentence[begin:stop]
        denial, doubt = _DENIAL.search(clause), _DOUBT.search(clause)
        in_clause = []
        for name, pattern in _RULES.items():
            if not (matches := list(pattern.finditer(clause))):
                continue
            excepted = [m.span() for m in _UNLESS[name].finditer(clause)] if name in _UNLESS else []
            for start, end in (m.span() for m in matches):
                if any(a <= start and end <= b for a, b in excepted):
                    continue
                # compared with the end: "the heart is not enlarged" starts before its denial
                if (denial and denial.start() < end) or _DENIED_AFTER.match(clause, end):
                    state = DENIED
                elif (doubt and doubt.start() < start) or _DOUBTED_AFTER.match(clause, end):
                    state = DOUBTED
                else:
                    state = ASSERTED
                in_clause.append((name, start, end, state))
        sides = _sides(clause, [(start, end) for _, start, end, _ in in_clause])
        found += [(name, begin + start, begin + end, state, side)
                  for (name, start, end, state), side in zip(in_clause, sides, strict=True)]
    return tuple(found)


def _sides(clause: str, spans: list[tuple[int, int]]) -> list[frozenset[str]]:
    """The sides of each span: those named in its own part of a list ("right effusion and left atelectasis")
    or, if that part names none, in the clause. A list is cut only where both parts name a finding."""
    def named(text: str) -> frozenset[str]:
        return _SETS[frozenset().union(*(_SIDES.get(word, _BOTH) for word in _SIDE.findall(text)))]

    clause_sides = named(clause)
    if len(clause_sides) < 2 or len(spans) < 2:
        return [clause_sides] * len(spans)
    cuts, marks = [0], [m.start() for m in _LIST.finditer(clause)] + [len(clause)]
    for mark, after in zip(marks, marks[1:], strict=False):
        if all(any(a <= start < b for start, _ in spans) for a, b in ((cuts[-1], mark), (mark, after))):
            cuts.append(mark)
    parts = [(a, b, named(clause[a:b])) for a, b in zip(cuts, [*cuts[1:], len(clause)], strict=True)]
    return [next(sides for a, b, sides in parts if a <= start < b) or clause_sides for start, _ in spans]


def locate(report: str) -> dict[str, frozenset[str]]:
    """The findings (of FINDINGS, and OTHER) that the report asserts, each with its sides."""
    found: dict[str, frozenset[str]] = {}
    for m in mentions(report):
        if m.state == ASSERTED:
            found[m.finding] = _SETS[found.get(m.finding, frozenset()) | m.sides]
    return found


def find(report: str) -> frozenset[str]:
    """The findings (of FINDINGS, and OTHER) that the report asserts; the empty set is "no finding"."""
    return frozenset(locate(report))

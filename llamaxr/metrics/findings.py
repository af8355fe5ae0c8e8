"""A rule-based labeller: which findings a report asserts, doubts or denies, where and on which side.

In: the text of a report. Out: its findings. The method is that of NegEx (Chapman et al. 2001) and of
CheXpert's labeller (Irvin et al. 2019), kept small: search each clause for the words of a finding, and drop
the finding if the clause denies or doubts it, before the finding or after it. What ended, or is only a
question or a history, is dropped too. agreement.py compares two reports by it.

The classes are CheXpert's fourteen (nodule is its lung lesion, device its support devices, effusion its
pleural effusion) and six more that are frequent in IU X-ray: one vocabulary for drawn and real reports. A
doubted finding ("possible", "may represent", "cannot be excluded") is not counted, because human readers do
not count it: of 126 findings that IU X-ray's train reports only doubt, its indexers recorded 10.
"""

import re
from bisect import bisect_left, bisect_right
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
        "effusion", "effs.", "pleural fluid", "hydrothora", "hemothora", "hydropneumothora", "hemopneumothora",
        "costophrenic ... blunt", "blunt ... costophrenic", "cp angle ... blunt", "blunt ... cp angle",
        "fluid ... fissure"),
    "pleural other": (
        "pleural ... thicken", "thicken ... pleura", "pleural scar", "pleural parenchymal scar",
        "scar ... pleura", "pleural plaque", "apical cap", "pleural cap", "fissur ... thicken",
        "thicken ... fissure"),
    "pneumothorax": ("pneumothora", "hydropneumothora", "hemopneumothora", "ptx."),
    "lung opacity": (
        "opacit", "opacif", "densit", "infiltrat", "interstitial", "reticul", "ground glass", "ggo", "ild."),
    "consolidation": ("consolidat", "airspace disease", "air space disease"),
    "pneumonia": ("pneumonia", "pneumonitis", "pna."),
    "edema": (
        "edema", "congestion", "congestive", "heart failure", "chf.", "vascular ... engorge",
        "venous engorge", "vessel ... engorge", "pulmonary xxxx ... engorge", "venous hypertension", "fluid overload", "volume overload",
        "vascular ... prominen", "prominen ... vascul", "kerley", "cephali",
        "vascular redistribut"),
    "nodule": ("nodul", "mass.", "masses.", "masslike", "mass like"),
    "granuloma": (
        "granuloma.", "granulomas.", "granulomata", "granulomatous disease", "granulomatous infection",
        "granulomatous sequela", "granulomatous nod", "granulomatous change", "granulomatous ... calcif"),
    "calcification": ("calcif", "atherosclero"),  # atherosclerosis shows on a film by its calcium
    "atelectasis": ("atelecta", "collapse", "atx."),
    "scar": ("scar",),
    "hyperinflation": (
        "hyperinflat", "overinflat", "hyperexpan", "hyperdisten", "hyperaerat", "increased lung volume",
        "flatten ... diaphragm", "flatten ... hemidiaphragm", "diaphragm ... flatten",
        "hemidiaphragm ... flatten"),
    "scoliosis": (
        "scolio", "dextroscolio", "levoscolio", "dextrocurv", "levocurv", "curvature ... spine",
        "spin ... curvature", "thoracolumbar curvature", "curvature ... thoracolumbar"),
    "degenerative spine": (
        "degenerative ... spine", "spin ... degenerative", "degenerative change", "degenerative ... dis",
        "endplate ... change", "spondylo", "osteophyt", "spurring", "syndesmophyt", "hyperostosis", "dish.",
        "arthriti ... spine", "djd.", "ddd."),
    "fracture": ("fractur",),
    "device": (
        "pacemaker", "pacer", "pacing", "aicd", "icd.", "defibrillator", "generator", "stimulator",
        "neurostimulat", "leads.", "lead.", "device", "catheter", "picc", "port a cath", "xxxx a xxxx",
        "mediport", "port.", "central line", "central venous line", "xxxx tip", "tip ... svc.",
        "tip ... cava", "tip ... atri", "tip ... vena", "tube.", "tubes.", "tubing", "tracheostomy", "shunt",
        "stent", "valve replacement", "prosthe", "occluder", "sternotomy wire", "sternal wire", "clip",
        "suture", "ett.", "ngt.", "ppm.", "ogt.", "cvc.", "cvl.", "jugular ... line", "ij line",
        "subclavian ... line", "swan", "dobb", "hardware", "fixation", "anchor", "screw", "rods."),
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
    "scoliosis": ("kyphotic curvature",),
    "nodule": (
        "nodular opacit", "nodular like opacit", "nodular densit", "mass effect", "mediastinal mass",
        "thyroid mass"),
    "calcification": (
        "calcif ... granuloma.", "calcif ... granulomas.", "calcif ... granulomata", "calcif granulomatous",
        "granulomatous ... calcif"),
    "degenerative spine": (
        "degenerative ... shoulder", "shoulder ... degenerative", "djd ... shoulder",
        "degenerative ... knee", "degenerative ... hip.", "degenerative ... acromio",
        "acromioclavicular joint degenerative", "degenerative ... costochondral"),
    "fracture": ("catheter fracture",),
    "device": (  # wires on the skin are none, but Open-i's indexers count "monitor leads"
        "breast prosthe", "ekg ... lead", "ecg ... lead", "telemetry ... lead", "monitoring ... lead"),
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

# Below, a phrase is a regular expression between two ends of words.
# A denial holds from its word to where ENDS ends it: "no pneumothorax or pleural effusion".
DENIALS = (
    "no", "not", "nor", "neither", "never", "without", "w/o", "absent", "absence of", "negative for",
    "(?:free|clear|devoid) of", "(?:clearing|resolution|removal|disappearance) of", "interval removal",
    "resolved", "unlikely", "less likely", "rather than", "instead of", "as opposed to",
    r"favor\w*(?: \w+){0,4} over", "more likely than", "exclude",
    r"more (?:likely|consistent with|compatible with|suggestive of|typical of)(?: \w+){1,4} than")
# What was, and what is asked, is not told of this image. It is doubted, as far as a denial holds.
HISTORY = (
    "history of", "history(?=:)", "hx", "h/o", "indication(?=:)", "reason for", "rule[ -]out", "r/o",
    "evaluate", "evaluation for", "for evaluation of", "assess for", "treated for", "follow[ -]up of",
    r"year[ -]old \w* ?with", "(?:recent|previous|prior) (?=pneumonia)")
# Doubt holds as far as a denial does. "Probable", "likely" and "suggest" assert.
DOUBTS = (
    "possible", "possibly", "possibility", "potential", "potentially", "perhaps", "maybe", "may", "might",
    "could", "can", "cannot", "versus", "vs", "either", "if", "consider", "suspicious", "suspect",
    "suspected", "suspicion", "questionable", "questionably", "question", "equivocal", "concern",
    "concerning", "worrisome", "suggestion of", "correlate", "differential", "clinical setting")
VERBS = "is|are|was|were|has|have|do|does|did|appears?|would|should"
SEEN = ("seen|identified|noted|present|evident|visible|visuali[sz]ed|detected|demonstrated|appreciated|found|"
        "observed|apparent|shown|available|resolved|cleared")
# Denials and doubts that follow a finding, or a list of them: "nodules or masses are not seen".
DENIALS_AFTER = (
    rf"(?:{VERBS})(?: \w+){{0,3}}? (?:not|no longer|nowhere|resolved|cleared|disappeared|gone|absent|excluded|"
    "lacking|negative|removed|pulled(?! back)|ruled out|unlikely|doubt(?:ed|ful)|improbable|less likely|"
    "within normal limits|within limits of normal)",
    rf"(?:can ?)?(?:not|no longer) (?:be )?(?:\w+ )?(?:{SEEN})", "none", r"absent(?! \w)", "unlikely", "removed",
    "removal(?! of)", "(?:no|negative|out)$", "(?:now|since) (?:resolved|cleared|gone)",
    rf"(?:and|but) (?:is|are) (?:not|no longer) (?:{SEEN})",
    "(?:and|but|which) (?:has|have) (?:now |since )?(?:resolved|cleared)")
DOUBTS_AFTER = (
    "(?:may|might|could) (?:be (?:present|there)|have)",
    rf"(?:{VERBS})(?: \w+){{0,2}}? (?:possible|suspected|questioned|considered|uncertain|not certain)",
    r"(?:possible|suspected)(?! *(?!(?:on|in|at|by|with|without|given|due|from)\b)\w)", rf"(?:{VERBS}) (?:possible|suspected)",
    rf"(?:(?:{VERBS}) )?(?:(?:a|another) consideration|in the differential)")
# These contain a word of denial but deny no finding: what has not changed or cleared is still there.
NOT_DENIALS = (
    r"(?:no|not|without) (?:\w+ ){0,3}(?:chang|improv|increas|decreas|wors|progress|growth|resolution|"
    r"resolv|clear(?:ed|ing))\w*(?: (?:in|of|to|from|since))?",
    r"(?:no|not|no longer) (?:\w+ )?(?:larger|smaller|bigger|(?:as|so) \w+)(?: as| than)?",
    "no (?:further|interval) enlargement of", "not (?:free|clear) of",
    "(?:incompletely|partially|partly|partial|incomplete|not yet|(?:almost|near|nearly|mostly|largely)"
    "(?: completely| complete)?) (?:resolved|cleared|resolution|clearing|removal)(?: of)?",
    "(?:not|never) (?:seen|present|visible|noted|identified) (?:previously|before|(?:on|in) (?:the |a )?"
    "(?:prior|previous|earlier))", rf"not (?:{SEEN}) (?:on|in) (?:the )?(?:lateral|frontal|pa|ap)",
    "not only", "not without", "no (?:lack|absence) of", "no mistaking", "no (?:doubt|question)(?: that)?", r"not \w+ since",
    r"not well \w+", "not (?:un)?(?:surprising|expected)ly")
# These contain a word of denial but express doubt.
NOT_EXCLUDED = (
    r"(?:(?:is|are|would be|does) )?(?:can ?not|not|can't|difficult to|hard to|impossible to) (?:be )?(?:\w+ )?"
    "(?:excluded?|ruled? out|eliminated)",)
# Where a sentence goes on to something else: "no effusion, but the heart is enlarged".
BREAKS = (
    r"\bbut\b(?! (?:is|are|has|have) (?:not|no longer|now|since))", r"\bhowever\b", r"\balthough\b",
    r"\bthough\b", r"\bexcept\b", r"\baside from\b", r"\bapart from\b", r"\bother than\b", r"\bwhile\b",
    r"\bwhich\b(?! (?:has|have) (?:now |since )?(?:resolved|cleared))", r"\byet\b", r"\bdespite\b", r"\bonly\b", r"(?:,|\band) (?=there (?:is|are)\b)",
    r"(?:,| and) (?=the \w+ (?:is|are)\b)", r", (?=with\b)", r" (?=the (?:lungs|heart) (?:is|are)\b)",
    r"\b\d[).] ", r" - (?!none|no\b|not\b|absent)",
    r"(?<!indication)(?<!history)(?<!exam):(?! ?(?:none|no|not|absent|negative)\b)")
# Where a denial ends before that; doubt does after a comma. Words of PRESENT tell that what follows is there:
# "no pneumothorax, mild scoliosis". Those of PRESENT_UNLESS_OR do, unless the list goes on to its "or": "no
# pneumothorax, large effusion, or edema" denies all three.
PRESENT = ("mild|minimal|moderate|severe|stable|unchanged|persistent|chronic|old|remote|residual|again|known|"
           "improv|increas|decreas|worsen")
PRESENT_UNLESS_OR = (
    "small|tiny|trace|large|new|multiple|several|scattered|diffuse|prominent|interval|heal(?:ed|ing)|left|right|"
    "bilat|bilateral|bibasilar|biapical|[rl]|[rl]t|[rl][uml]l|degenerative|calcified|a|an|the|"
    r"(?:\w+ ){0,2}(?:tube|line|catheter|picc|port|pacemaker)|"
    r"(?:hyper|aort|athero|cardiac|spondyl|scar|scolio|dextro|levo|granulom|osteophyt|surgical)\w*")
ENDS = (
    rf"(?:,|,? and|,? with)(?: an?)? (?=(?:{PRESENT})\w*\b)", rf"\b(?:{SEEN})(?:,|,? and\b|,? with\b)",
    r",? ?\bnow\b", r"\band (?=(?:shows?|demonstrates?|reveals?|is|are|has|have)\b)",
    r"\b(?:following|after|status post|in the setting of|given|explanation for|cause (?:of|for))\b")
ENDS_UNLESS_OR = (
    rf"(?:,|,? and|,? with) (?=(?:{PRESENT_UNLESS_OR})\b)",
    rf"(?:,|,? and) (?=(?:[a-z-]+ ){{1,4}}(?:is|are|has|have|remains?) "
    rf"(?!not\b|no\b|\w*ly\b|{SEEN}))",
    r"\b(?:findings?|abnormalit\w+|process),")

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
    words = "|".join(gap.join(run(r) for r in p.split(" ... ")) for p in phrases)
    return re.compile(rf"(?<!\bnon[ -])\b(?:{words})")  # "non-enlarged", "non-calcified"


def _any_of(phrases: Sequence[str]) -> str:
    return r"\b(?:" + "|".join(phrases) + r")\b"


_RULES = {name: _phrases(phrases) for name, phrases in RULES.items()}
_UNLESS = {name: _phrases(phrases) for name, phrases in UNLESS.items()}
_BREAK = re.compile("|".join(BREAKS))
# What comes first in the alternation wins where two begin at one place.
_BEFORE = re.compile(
    rf"(?P<ends>{'|'.join(ENDS)})|(?P<ends_unless_or>{'|'.join(ENDS_UNLESS_OR)})|"
    rf"(?P<denied>{_any_of(DENIALS)})|(?P<doubted>{_any_of((*HISTORY, *DOUBTS))})")
_AFTER = re.compile(rf"(?P<denied>{_any_of(DENIALS_AFTER)})|(?P<doubted>{_any_of(DOUBTS_AFTER)})")
# A denial or doubt after a finding does not reach it across these words, nor farther than _REACH characters,
# or _LIST_REACH in a list.
_OTHER_THING = re.compile(rf"\b(?:{VERBS}|with|without|no|there|by|from|for|after|following|since|"
                          r"represents?)\b")
_REACH, _LIST_REACH = 40, 150
_AND_OR = re.compile(r"\b(?:and|or)\b")
_ASIDE = re.compile(rf"^, (?:previously )?(?:{SEEN})[^,]*, ?$")  # "the effusion, seen previously, is no longer"
_VERSUS = re.compile(r"\b(?:versus|vs)\b")
_OR = re.compile(r"\bor\b")
# Replaced before matching, each by a word of the same meaning, padded so that positions in the text hold.
_REPLACED = ((re.compile(_any_of(NOT_DENIALS)), "of"), (re.compile(_any_of(NOT_EXCLUDED)), "possible"))
# "1.2 cm" does not end a sentence, a blank line does
_SENTENCE = re.compile(r"(?:[^;!?.\n]|(?<=\d)\.(?=\d)|\n(?!\s*\n))+")
# one character to one, which str.lower does not guarantee
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ\n\t\r", "abcdefghijklmnopqrstuvwxyz   ")
# the right atrium is not a side
_SIDE = re.compile(r"\b(left|right|bilat|bibas|biapical|both (?=lung|base|costo|lobe|side|apic|lower|upper|hemi)|"
                   r"[rl](?:ul|ll|ml|t)\b|[rl](?= \w| ?>)|(?<=>)[rl]\b|(?<=> )[rl]\b)(?! ?(?:atri|ventric|heart|spine))")
# nor is one where there is nothing
_CLEAR_SIDE = re.compile(
    r"\b(?:not (?:on|in) the (?:left|right)|"
    r"(?:left|right|[lr]t)(?: \w+){1,2}(?: is| are| remains?)? (?:clear|normal|intact)\b)")
_LEFT, _RIGHT = frozenset({"left"}), frozenset({"right"})
_BOTH = _LEFT | _RIGHT
_SETS = {sides: sides for sides in (frozenset(), _LEFT, _RIGHT, _BOTH)}  # shared: saves memory
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
        named = _named(clause)
        states = _states(clause, [(start, end) for _, start, end in named])
        sides = _sides(clause, [start for _, start, _ in named])
        found += [(name, begin + start, begin + end, state, side)
                  for (name, start, end), state, side in zip(named, states, sides, strict=True)]
    return tuple(found)


def _named(clause: str) -> list[tuple[str, int, int]]:
    """The findings that the clause names, whatever it says of them, each with its start and end."""
    named = []
    for name, pattern in _RULES.items():
        if spans := [m.span() for m in pattern.finditer(clause)]:
            excepted = [m.span() for m in _UNLESS[name].finditer(clause)] if name in _UNLESS else []
            last = [-1, *(end for _, end in excepted)]
            starts = [start for start, _ in excepted]
            named += [(name, start, end) for start, end in spans if end > last[bisect_right(starts, start)]]
    return named


def _states(clause: str, spans: list[tuple[int, int]]) -> list[str]:
    """Whether the clause asserts, doubts or denies what it names at each span."""
    if not spans:
        return []
    positions, before, state = [0], [ASSERTED], ASSERTED
    last_or = max((m.start() for m in _OR.finditer(clause)), default=-1)
    for m in _BEFORE.finditer(clause):
        if m.lastgroup == "ends":
            if state == DENIED or m[0][0] == ",":
                state = ASSERTED
        elif m.lastgroup == "ends_unless_or":
            if state == DENIED and m.start() > last_or:
                state = ASSERTED
        elif m.lastgroup == DENIED or (m.lastgroup == DOUBTED and state == ASSERTED):
            state = m.lastgroup
        positions.append(m.end())
        before.append(state)
    after = list(_AFTER.finditer(clause))
    after_starts = [m.start() for m in after]
    states = []
    for start, end in spans:
        # compared with the end: "the heart is not enlarged" starts before its denial
        state = before[bisect_right(positions, end) - 1]
        if state == DOUBTED and _VERSUS.search(clause, start, end):  # "pleural fluid versus thickening"
            state = before[bisect_right(positions, start) - 1]
        i = bisect_left(after_starts, end)
        if state != DENIED and i < len(after):
            between = clause[end : min(after_starts[i], end + _LIST_REACH + 9)]
            state = after[i].lastgroup if _reaches(between, after[i][0]) else state
        states.append(state)
    return states


def _reaches(between: str, words: str) -> bool:
    """Whether the words of denial or doubt are said of a finding before them. "Is" and a comma part them: "left
    effusion, a nodule is not seen"; "are" does not, nor does an "or": "effusion, or a nodule, is not seen"."""
    between = _ASIDE.sub("", between).rstrip(" ,:-(")
    if words.startswith(("and ", "but ", "which ")):  # "was seen before but is not seen today"
        return len(between) <= _LIST_REACH
    listed = _AND_OR.search(between)
    if len(between) > (_LIST_REACH if listed else _REACH) or _OTHER_THING.search(between):
        return False
    if words.startswith(("is ", "was ", "has ", "appears ", "does ")):
        return "," not in between and " and " not in between
    return "," not in between or bool(_AND_OR.search(between, between.rfind(",")))


def _sides(clause: str, starts: list[int]) -> list[frozenset[str]]:
    """The sides of each finding: those named in its own part of a list ("right effusion and left atelectasis")
    or, if that part names none, in the clause. A list is cut only where both parts name a finding."""
    clause = _CLEAR_SIDE.sub(lambda m: " " * len(m[0]), clause)
    side_at = [(m.start(), _LEFT if m[1][0] == "l" else _RIGHT if m[1][0] == "r" else _BOTH)
               for m in _SIDE.finditer(clause)]
    clause_sides = _SETS[frozenset().union(*(side for _, side in side_at))]
    if len(clause_sides) < 2 or len(starts) < 2:
        return [clause_sides] * len(starts)
    ordered = sorted(starts)
    cuts, marks = [0], [m.start() for m in _LIST.finditer(clause)] + [len(clause)]
    for mark, after in zip(marks, marks[1:], strict=False):
        if bisect_left(ordered, cuts[-1]) < bisect_left(ordered, mark) < bisect_left(ordered, after):
            cuts.append(mark)
    parts = [frozenset()] * len(cuts)
    for at, side in side_at:
        parts[bisect_right(cuts, at) - 1] |= side
    return [_SETS[parts[bisect_right(cuts, start) - 1]] or clause_sides for start in starts]


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

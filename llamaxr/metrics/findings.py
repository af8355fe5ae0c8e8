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

# What a radiologist may write for each finding. A word matches every word that begins with it ("cardiomeg":
# cardiomegaly, cardiomegalic); with a full stop it matches only itself ("mass."). "..." is a gap of up to
# five words, "&" such a gap in either order. A space also matches a hyphen. "xxxx" is Open-i's mark for a word
# that it removed.
RULES: dict[str, str] = {
    "cardiomegaly":
        "cardiomeg, enlarge & heart, enlarge & cardiac, enlarge ... cardio, cardiomediastin ... enlarge, "
        "large. & heart, big & heart, dilat & heart, borderline & heart, borderline cardiac, "
        "increase ... heart size, heart size ... increase, cardiothoracic ratio & increase, "
        "prominent & cardiac silhouette, cardiac silhouette ... increase",
    "enlarged cardiomediastinum":
        "mediastin & wide, mediastin & enlarge, mediastin & prominen, paratracheal ... prominen",
    "effusion":
        "effusion, eff., effs., pleural fluid, hydrothora, hemothora, hydropneumothora, hemopneumothora, "
        "haemothora, costophrenic & blunt, cp angle & blunt, costophrenic & obliterat, meniscus, "
        "fluid & costophrenic, fluid & pleural, loculated fluid",
    "pleural other":
        "pleural & thicken, scar ... pleura, pleural scar, pleural parenchymal scar, pleural plaque, "
        "apical cap, pleural cap, fissur & thicken",
    "pneumothorax": "pneumothora, hydropneumothora, hemopneumothora, ptx., pleural air, air & pleural space",
    "lung opacity":
        "opac, haz, densit, infilt, interstitial, reticul, ground glass, ggo, ild., honeycomb, "
        "airspace process, air space process",
    "consolidation":
        "consolidat, consol., airspace disease, air space disease, air bronchogram, airspace filling",
    "pneumonia": "pneumonia, pneumonic, bronchopneumonia, pneumonitis, pna.",
    "edema":
        "edema, oedema, congestion, congestive, heart failure, cardiac failure, chf., "
        "vascul & indistinct, vascular ... engorge, venous engorge, vessel ... engorge, "
        "pulmonary xxxx ... engorge, venous hypertension, fluid overload, volume overload, "
        "vascular ... prominen, prominen ... vascul, kerley, cephali, vascular redistribut",
    "nodule": "nodul, mass., masses., masslike, mass like, lung lesion, pulmonary lesion, coin lesion",
    "granuloma":
        "granuloma., granulomas., granulomata, granulomatous disease, granulomatous infection, "
        "granulomatous sequela, granulomatous nod, granulomatous change, granulomatous ... calcif",
    "calcification": "calcif, atherosclero",  # atherosclerosis shows on a film by its calcium
    "atelectasis": "atelecta, collapse, atx.",
    "scar": "scar",
    "hyperinflation":
        "hyperinflat, overinflat, hyperexpan, hyperdisten, hyperaerat, increased lung volume, "
        "flat & diaphragm, flat & hemidiaphragm, large lung volume, air trapping, barrel chest",
    "scoliosis":
        "scolio, kyphoscolio, dextroscolio, levoscolio, rotoscolio, dextroconvex, levoconvex, dextrocurv, "
        "levocurv, curvature & spin, curvature & thoracolumbar",
    "degenerative spine":
        "degenerative & spin, degenerative change, degenerative ... dis, endplate ... change, spondyl, "
        "osteophyt, spur., spurs., spurring, disc space narrow, disk space narrow, syndesmophyt, "
        "hyperostosis, dish., arthriti ... spine, djd., ddd.",
    "fracture": "fractur, fx., fxs., vertebra & height loss, vertebra & loss of height",
    "device":
        "pacemaker, pacer, pacing, aicd, icd., defibrillator, generator, stimulator, neurostimulat, "
        "leads., lead., device, catheter, picc, port a cath, xxxx a xxxx, mediport, port., central line, "
        "central venous line, xxxx tip, tip ... svc., tip ... cava, tip ... atri, tip ... vena, tube., "
        "tubes., tubing, tracheostomy, shunt, stent, valve replacement, prosthe, occluder, "
        "sternotomy & wire, sternal wire, cerclage wire, balloon pump, iabp, lvad, loop recorder, sheath, "
        "pigtail, staple, coil., coils., clip, suture, ett., ngt., ppm., ogt., cvc., cvl., "
        "jugular ... line, ij line, rij., lij., subclavian ... line, femoral line, swan, dobb, dobhoff, "
        "drain., hardware, fixation, anchor, screw, rods.",
    # Findings of no class. To `find`, a report that asserts one is not a report of "no finding".
    "other":
        "hernia, tortuo, ectatic, ectasia, unfold, aneurysm, hypoinflat, hypoventilat, low lung volume, "
        "low volume, volume ... low., volume loss, crowding, emphysema, copd, chronic obstructive, bulla, "
        "bleb, elevat & diaphragm, elevat & hemidiaphragm, eventration, pectus, kypho, osteopeni, "
        "demineral, arthriti, deformit, lucency, foreign body, foreign bodies, bullet, shrapnel, "
        "epicardial fat, epipericardial fat, hil & prominen, bihilar, adenopathy, implant, "
        "pulmonary arter & prominen, mastectomy, pneumoperitoneum, breast prosthe",
}
# Where these words mean something else.
UNLESS: dict[str, str] = {
    "cardiomegaly": "heart size ... normal ... increase",
    "effusion": "pericardial effusion, joint effusion",
    "lung opacity": "interstitial edema, interstitial pulmonary edema, interstitial pneumon",
    "edema": "soft tissue edema",
    "scoliosis": "kyphotic curvature",
    "nodule":
        "nodular opacit, nodular like opacit, nodular densit, mass effect, mediastinal mass, thyroid mass",
    "calcification":
        "calcif ... granuloma., calcif ... granulomas., calcif ... granulomata, calcif granulomatous, "
        "granulomatous ... calcif",
    "degenerative spine":
        "degenerative & shoulder, djd ... shoulder, degenerative ... knee, degenerative ... hip., "
        "degenerative ... acromio, acromioclavicular joint degenerative, degenerative ... costochondral",
    "fracture": "catheter fracture",
    # wires on the skin are none, but Open-i's indexers count "monitor leads"
    "device": "breast prosthe, ekg ... lead, ecg ... lead, telemetry ... lead, monitoring ... lead",
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
VERBS = "is|are|was|were|has|have|do|does|did|appears?|would|should"
SEEN = ("seen|identified|noted|present|evident|visible|visuali[sz]ed|detected|demonstrated|appreciated|found|"
        "observed|apparent|shown|available|resolved|cleared")
# A denial holds from its word to where ENDS ends it: "no pneumothorax or pleural effusion".
DENIALS = (
    "no", "not", "nor", "neither", "never", "without", "w/o", "absent", "absence of", "neg(?:ative)? for",
    "(?:free|clear|cleared|devoid) of", "(?:clearing|clearance|resolution|removal|disappearance) of",
    "interval removal", "resolved", "unlikely", "less likely", "rather than", "instead of", "as opposed to",
    "exclude", r"favor\w*(?: \w+){0,4} over", "more likely than",
    r"(?:more|better) (?:likely|\w+(?: \w+)? (?:with|of|by))(?: \w+){1,4} than")
# Histories and questions say nothing about this image. What they cover, as far as a denial would, is doubted.
HISTORY = (
    "history of", "(?:history|indication)(?=:)", "hx", "h/o", "reason for", "rule[ -]out", "r/o", "evaluate",
    "eval", "evaluation for", "for evaluation of", "(?:assess|assessment|check|look) for",
    r"(?<!\w )assess", "query", "treat(?:ed|ment) for", "follow[ -]up (?:of|for)",
    r"(?:\w+ectomy|resection|excision) (?:of|for)",
    r"year[ -]old \w* ?with", r"\d+ ?(?:m|f|yo|y/?o)(?: \w+)? (?:with|w/)",
    r"(?:recent|previous|prior|follow[ -]up|treated) (?=(?:\w+ ){0,3}pneumonia)")
# Doubt holds as far as a denial does. "Probable", "likely" and "suggest" assert. Of "atelectasis versus scar"
# the first asserts: Open-i's indexers recorded it.
DOUBTS = (
    "possible", "poss", "possibly", "possibility", "potential", "potentially", "perhaps", "maybe", "may",
    "might", "could", "can", "cannot", "versus", "vs", "either", "if", "consider", "suspicious", "suspect",
    "suspected", "suspicion", "questionable", "questionably", "question", "equivocal", "indeterminate for",
    "concern", "c/f", "concerning", "doubtful", "worrisome", "suggestion of", "correlate", "correlation for",
    "differential", "clinical (?:setting|context)")
# Denials and doubts that follow a finding, or a list of them: "nodules or masses are not seen".
DENIALS_AFTER = (
    # but "the mass does not contain calcium", "the tube was pulled back"
    rf"(?:{VERBS})(?: \w+){{0,4}}? (?:not(?! (?:have|contain|show|cross|reach)\b)|no longer|nowhere|"
    "resolved|cleared|disappeared|gone|absent|excluded|lacking|negative|removed|explanted|taken out|"
    "pulled(?! back)|re-?expanded|ruled out|unlikely|doubt(?:ed|ful)|improbable|less likely|"
    "within normal limits|within limits of normal)",
    rf"(?:can ?)?(?:not|no longer) (?:be )?(?:\w+ )?(?:{SEEN})",
    r"none(?! (?:on|in)\b)", "nil", r"absent(?! \w)", "excluded", "unlikely", r"less likely(?! \w)",
    "removed", "removal(?! of)",
    "(?:(?:is|are) )?(?:no|negative|neither|out|resolved)$", "(?:now|since) (?:resolved|cleared|gone)",
    rf"(?:and|but) (?:is|are) (?:not|no longer) (?:{SEEN})",
    "(?:and|but|which) (?:has|have) (?:now |since )?(?:resolved|cleared)")
DOUBTS_AFTER = (
    r"(?:may|might|could) (?:be (?:present|there)|have(?! (?:\w+ )?\w+ed\b))",  # "may have increased" is there
    rf"(?:(?:{VERBS}) \w+,? )?if (?:present|any)",
    rf"(?:{VERBS})(?: \w+){{0,3}}? (?:possible|conceivable|suspected|questioned|considered|uncertain|"
    "not certain)",
    r"(?:possible|suspected)(?! *(?!(?:on|in|at|by|with|without|given|due|from)\b)\w)",
    "(?:is|are|would be) (?:difficult|hard|impossible) to (?:see|say|tell|detect|identify|confirm|diagnose)",
    rf"(?:(?:{VERBS}|remains?) )?(?:(?:a|another) (?:consideration|possibility|concern)|in the differential)",
    r"in the (?:\w+ )?clinical (?:setting|context)$")
# These contain a word of denial but deny no finding: what has not changed or cleared is still there.
NOT_DENIALS = (
    r"(?:no|not|without) (?:\w+ ){0,3}(?:chang|improv|increas|decreas|reduc|wors|progress|grow|resolution|"
    r"resolv|clear(?:ed|ing)|heal|gone|disappear)\w*(?: (?:in|of|to|from|since))?",
    r"(?:no|not|no longer) (?:\w+ )?(?:larger|smaller|bigger|(?:as|so) \w+)(?: as| than)?",
    r"(?:has|have) not (?:\w+ )?enlarged", "not (?:new|absent)",
    r"no (?:\w+ )?(?:enlargement|expansion) of(?! the (?:heart|cardi|mediast))", "not (?:free|clear) of",
    "(?:incompletely|partially|partly|partial|incomplete|not yet|(?:almost|near|nearly|mostly|largely)"
    "(?:[ -]complete(?:ly)?)?) (?:resolved|cleared|gone|resolution|clearing|clearance|removal)(?: of)?",
    "(?:not|never) (?:seen|present|there|visible|noted|identified) (?:previously|before|"
    "(?:on|in) (?:the |a )?(?:prior|previous|earlier))", r"not (?:previously|before) \w+",
    rf"(?:can)?not (?:be )?(?:{SEEN}) (?:on|in) (?:the )?(?:lateral|frontal|pa|ap)",
    r"not (?:\w+ since|well \w+)", "not (?:only|without)", "no (?:lack|absence) of",
    rf"(?<![\w,] )not (?!{SEEN})(?:[\w-]+ )+?(?:is|are)(?= (?:an?|the)\b)",  # "not on the film is a fracture"
    r"no (?:[\w-]+ ){0,3}?(?:follow[ -]up|imaging|work[ -]?up)(?: (?:is|are))?(?: \w+)? (?:for|of)",
    r"without (?:a |any )?(?:contrast|comparison|lateral|(?:prior|previous|old) (?:stud|film|exam|image))\w*",
    r"no (?:prior|previous|old|comparison) (?:stud|film|exam|image)\w*(?: (?:is|are))?(?: available)?",
    r"(?:does|do|did|can|could) ?not (?:\w+ )?(?:account for|explain)",
    "(?:no|without) (?:mistaking|denying|doubt|question)(?: that)?", "not (?:un)?(?:surprising|expected)(?:ly)?")
# These contain a word of denial but express doubt.
NOT_EXCLUDED = (
    r"(?:(?:is|are|would be|does) )?(?:can ?not|not|can't|difficult to|hard to|impossible to) (?:\w+ )?(?:be )?"
    r"(?:\w+ )?(?:excluded?|ruled? out|eliminated|confirmed|distinguished|differentiated)",)
# Where a sentence goes on to something else: "no effusion, but the heart is enlarged". A colon does not where
# it only parts a finding from what is said of it: "pneumothorax: none", "effusion: small, left".
BREAKS = (
    r"\bbut\b(?! (?:is|are|has|have) (?:not|no longer|now|since))",
    r"\b(?:however|although|though|except|aside from|apart from|other than|beyond|while|yet|despite|only)\b",
    r"\bwhich\b(?! (?:has|have) (?:now |since )?(?:resolved|cleared))",
    r"(?:,|\band) (?=there (?:is|are)\b)", r"(?:,| and) (?=the (?:\w+ ){1,3}(?:is|are)\b)",
    r", (?=(?:with|just)\b)", r" (?=the (?:lungs|heart) (?:is|are)\b)", r"\b\d[).] ",
    r" - (?!none|no\b|not\b|absent)",
    r"(?<!indication)(?<!history)(?<!for exam)(?<!lung):(?! ?(?:(?:both |all |i see )?(?:none|nil|no|not|"
    "neither|absent|negative)|yes|present|possible|cannot|small|mild|moderate|large|severe|trace|tiny|left|right|"
    r"bilateral|stable|unchanged|old|chronic)\b)")
# Where a denial or a doubt ends before that: at words that finish a thought, and where a list goes on to what
# is there ("no pneumothorax, mild scoliosis"), unless an "or" follows: "no pneumothorax, large effusion, or
# edema" denies all three. PRESENT shows this after a comma, "and" or "with", ALSO after a comma or "with".
PRESENT = (
    r"(?:mild|moderate|severe|mark)\w*|slight|subtle|minimal|extensive|massive|patchy|hazy|borderline|stable|"
    r"unchanged|persistent|chronic|old|remote|residual|again|known|"
    r"(?:improv|increas|decreas|worsen)\w*|small|tiny|trace|large|new|multiple|several|scattered|diffuse|"
    r"prominent|heal(?:ed|ing)|bilat|bilateral|bibasilar|biapical|degenerative|calcified|a")
ALSO = (
    r"left|right|[rl]|[rl]t|[rl][uml]l|an|the|interval|"
    r"(?:\w+ ){0,2}(?:tube|line|catheter|picc|port|pacemaker|valve)|(?:\w+ )?(?:heart (?!failure)|hyper|aort|"
    r"athero|cardiac|spondyl|scar|scolio|dextro|levo|granulom|osteophyt|surgical)\w*")
ENDS = (
    rf"\b(?:{SEEN})(?:,|,? and\b|,? with\b)", r",? ?\b(?:now|leaving)\b", ":",
    r"\band (?=(?:shows?|demonstrates?|reveals?|is|are|has|have)\b)",
    r"\b(?:following|after|status post|s/p|in the (?:setting|presence) of|given|because|explanation for|"
    r"cause (?:of|for)|associated with|adjacent to|(?:underlying|accompanying|surrounding) the)\b",
    # "no calcium in the nodule"
    r"\b(?:with)?in (?:the|this) (?=(?:(?!or\b|and\b|nor\b)[\w-]+ ){0,4}(?:nodul|mass|opaci|consolid|effus))")
ENDS_UNLESS_OR = (
    rf"(?:,|,? and|,? with) (?=(?:an? )?(?:{PRESENT})\b)", rf"(?:,|,? with) (?=(?:{ALSO})\b)",
    rf"(?:,|,? and) (?=(?:[a-z-]+ ){{1,4}}(?:(?:is|are|has|have|remains?|shows?|contains?) "
    rf"(?!not\b|no\b|\w*ly\b|{SEEN})|(?:unchanged|stable|persists?)\b))",
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


def _phrases(phrases: str) -> re.Pattern[str]:
    def word(w: str) -> str:
        return re.escape(w[:-1]) + r"\b" if w.endswith(".") else re.escape(w) + r"\w*"

    def run(words: str) -> str:
        return r"[\s-]+".join(word(w) for w in words.split())

    gap = r"(?:[\s-]+\w+){0,5}?[\s-]+"
    words = []
    for phrase in phrases.split(", "):
        runs = re.split(r" (?:\.\.\.|&) ", phrase)
        words += [gap.join(map(run, order)) for order in (runs, runs[::-1])[: 1 + (" & " in phrase)]]
    return re.compile(rf"(?<!\bnon[ -])\b(?:{'|'.join(words)})")  # "non-enlarged", "non-calcified"


def _any_of(phrases: Sequence[str]) -> str:
    return r"\b(?:" + "|".join(phrases) + r")\b"


_RULES = {name: _phrases(phrases) for name, phrases in RULES.items()}
_UNLESS = {name: _phrases(phrases) for name, phrases in UNLESS.items()}
_BREAK = re.compile("|".join(BREAKS))
# What comes first in the alternation wins where two begin at one place.
_BEFORE = re.compile(
    rf"(?P<ends>{'|'.join(ENDS)})|(?P<ends_unless_or>{'|'.join(ENDS_UNLESS_OR)})|"
    rf"(?P<denied>{_any_of(DENIALS)})|(?P<doubted>{_any_of((*HISTORY, *DOUBTS))}|\?)")
_AFTER = re.compile(rf"(?P<denied>{_any_of(DENIALS_AFTER)})|(?P<doubted>{_any_of(DOUBTS_AFTER)}|\?$)")
# A denial or doubt after a finding does not reach it across these words, nor farther than _REACH characters,
# or _LIST_REACH in a list.
_OTHER_THING = re.compile(
    rf"\b(?:{VERBS}|with|without|no|there|by|from|for|after|following|since|represent\w*|tip)\b")
# "the tip of the tube is not seen": what is denied of a part is not denied of the whole
_PART = re.compile(
    r"\b(?:tip|end|part|much|most|some|cause|source|age|extent|course|margins?|borders?) of (?:[\w-]+ ){0,3}$")
_REACH, _LIST_REACH = 40, 150
_AND_OR = re.compile(r"\b(?:and|or)\b")
_ASIDE = re.compile(rf"^, (?:previously )?(?:{SEEN})[^,]*, ?$")  # "the effusion, seen previously, is no longer"
_VERSUS = re.compile(r"\b(?:versus|vs)\b")
_OR = re.compile(r"\bor\b|\w/\w")
# Replaced before matching, each by a word of the same meaning, padded so that positions in the text hold.
_REPLACED = ((re.compile(_any_of(NOT_DENIALS)), "of"), (re.compile(_any_of(NOT_EXCLUDED)), "possible"),
             (re.compile(r"\bnot (?:\w+ )?sharp\b"), "blunt"),
             (re.compile(r"\bnot normal in size\b"), "enlarged"))  # fmt: skip
# "1.2 cm", "vs." and "Lt." do not end a sentence, a blank line does
_SENTENCE = re.compile(
    r"(?:[^;!?.\n]|\?(?!\s+[A-Z])|(?<=\d)\.(?=\d)|(?<=\b(?:vs|[lrLR]t))\.|\n(?![^\S\n]*\n))+\??")
# one character to one, which str.lower does not guarantee
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ\n\t\r", "abcdefghijklmnopqrstuvwxyz   ")
# the right atrium is not a side
_SIDE = re.compile(
    r"\b(left|right|b/l|bilat|bil\b|bi-?bas|bi-?apical|"
    r"both (?=lung|base|costo|lobe|side|apic|lower|upper|hemi)|[rl](?:ul|ll|ml|t|ij|sc|ue)\b|"
    r"[rl](?=[ -]\w| ?>)|(?<=>)[rl]\b|(?<=> )[rl]\b)(?![ -]?(?:atri|ventric|heart(?! border)|spine))")
# nor is one where there is nothing, nor where something is shifted to
_CLEAR_SIDE = re.compile(
    r"\b(?:(?:not|none) (?:on|in) the (?:left|right)|(?:clear|normal|intact) (?:left|right|[lr]t)\b|"
    r"(?:left|right|[lr]t?)(?: (?!with\b|and\b|but\b)\w+){0,2}?(?: is| are| remains?| has| have)? "
    r"(?:clear|free|normal|intact|resolved|cleared|gone)\b|"
    r"(?:shift|deviat|displace|rotat)\w*(?: \w+){0,3} to(?:wards?)? the (?:left|right))")
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
        if m.lastgroup == "ends" or (m.lastgroup == "ends_unless_or" and m.start() > last_or):
            # doubt goes on through "and" and "with"
            if state == DENIED or m[0].startswith((",", "because", "given", "in the", "leaving")):
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
        if state != DENIED and i < len(after) and not _PART.search(clause, max(0, start - 40), start):
            between = clause[end : min(after_starts[i], end + _LIST_REACH + 9)]
            state = after[i].lastgroup if _reaches(between, after[i][0]) else state
        states.append(state)
    return states


def _reaches(between: str, words: str) -> bool:
    """Whether words of denial or doubt apply to a finding before them. With "is", a comma or "and" separates
    them: "effusion, a mass is not seen". With "are", "or" joins them: "effusion, or a mass, are not seen"."""
    heading = between.rstrip().endswith(":")  # "effusion, edema: none"
    between = _ASIDE.sub("", between).rstrip(" ,:-(")
    if words.startswith(("and ", "but ", "which ")):  # "was seen before but is not seen today"
        return len(between) <= _LIST_REACH
    listed = _AND_OR.search(between)
    if len(between) > (_LIST_REACH if listed or heading else _REACH) or _OTHER_THING.search(between):
        return False
    if words.startswith(("is ", "was ", "has ", "appears ", "does ")):
        return "," not in between and " and " not in between
    return heading or "," not in between or bool(_AND_OR.search(between, between.rfind(",")))


def _sides(clause: str, starts: list[int]) -> list[frozenset[str]]:
    """The sides of each finding: those named in its own part of a list ("right effusion and left atelectasis")
    or, if that part names none, in the clause. A list is cut between two parts that name a finding, and at
    the comma before one ("right lobectomy, left effusion")."""
    clause = _CLEAR_SIDE.sub(lambda m: " " * len(m[0]), clause)
    side_at = [(m.start(), _LEFT if m[1][0] == "l" else _RIGHT if m[1][0] == "r" else _BOTH)
               for m in _SIDE.finditer(clause)]
    clause_sides = _SETS[frozenset().union(*(side for _, side in side_at))]
    if len(clause_sides) < 2 or not starts:
        return [clause_sides] * len(starts)
    ordered = sorted(starts)
    cuts, marks = [0], [m.start() for m in _LIST.finditer(clause)] + [len(clause)]
    for mark, after in zip(marks, marks[1:], strict=False):
        first, here, last = (bisect_left(ordered, at) for at in (cuts[-1], mark, after))
        if here < last and (first < here or clause[mark] == ","):
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

"""Does a report compare the image with an earlier one?

In: a report. Out: yes or no. The model is given one study and no prior, so each such comparison is invented,
whoever wrote it first: people had the prior, and a model that learns from their reports repeats their words
(Ramesh et al. 2022). "No prior for comparison" is no comparison.
"""

import re

_STUDY = r"(?:exam\w*|stud(?:y|ies)|films?|radiograph\w*|x-?rays?|images?)"
_SEEN = r"(?:seen|noted|described|demonstrated|identified|visualized)"
COMPARISONS = (
    r"unchanged", r"stable", r"new", r"no longer", r"interval", r"residual", r"persist\w*",
    r"compar(?:ed|ison|ing)", rf"(?:prior|previous|earlier|last|old) (?:\w+ )?{_STUDY}",
    rf"(?:again|previously) {_SEEN}", r"re-?demonstrat\w+", r"(?:no|without) (?:\w+ )?change",
    r"(?:increas|decreas|improv|worsen|chang)\w* (?:since|from)", r"improv(?:ed|ing)", r"worsen(?:ed|ing)",
    r"ha(?:s|ve) (?:\w+ )?(?:resolved|increased|decreased|progressed|cleared|developed)",
)  # fmt: skip
NO_PRIOR = r"no (?:prior|previous|old|comparison)s?\b[^.]{0,80}(?:available|comparison)|comparison:? none"
_COMPARES = re.compile(r"\b(?:" + "|".join(COMPARISONS) + r")\b", re.IGNORECASE)
_NO_PRIOR = re.compile(r"\b(?:" + NO_PRIOR + r")\b", re.IGNORECASE)


def compares(report: str) -> bool:
    """Whether the report compares its study with an earlier one."""
    return _COMPARES.search(_NO_PRIOR.sub("", report)) is not None

"""What a report says in typical words: the content stays, the hand goes."""

import numpy as np
import pytest

from llamaxr.data import phantom
from llamaxr.metrics.findings import locate
from llamaxr.metrics.overlap import rouge_l
from llamaxr.wording import kind_of, typical, typical_once

NORMAL = [
    "The heart is normal. The lungs are clear.",
    "The lungs are clear. No effusion.",
    "Unremarkable mediastinum. Both lungs are well expanded.",
]
ILL = ["Small left pleural effusion. The heart is normal.", "Right pleural effusion. The heart is big."]


@pytest.fixture(scope="module")
def reports():
    drawn = np.random.default_rng(0)
    return [phantom.describe(phantom.imagine(drawn), drawn) for _ in range(60)]


@pytest.fixture(scope="module")
def reworded(reports):
    return typical(reports, reports, n_changes=200)


def test_findings_and_sides_stay(reports, reworded):
    assert [kind_of(text) for text in reworded] == [kind_of(report) for report in reports]
    assert len({kind_of(report) for report in reports}) > 20  # or it would be easy


def test_studies_of_one_content_get_one_text(reports, reworded):
    kinds = {kind_of(report) for report in reports}
    assert len(set(reworded)) == len(kinds) < len(set(reports))


def test_the_text_is_more_like_those_of_the_same_content_than_these_are_like_each_other(reports, reworded):
    normal = [i for i, report in enumerate(reports) if not kind_of(report)]
    own = [reports[i] for i in normal]
    alike = rouge_l(own, [reworded[i] for i in normal])
    each_other = np.mean([rouge_l(own[:i] + own[i + 1 :], [r] * (len(own) - 1)) for i, r in enumerate(own)])
    assert len(normal) >= 4 and alike > each_other + 0.02


def test_it_is_made_of_other_peoples_sentences():
    (text,) = typical(NORMAL[:1], NORMAL + ILL, n_like=3)
    sentences = [s for report in NORMAL for s in report.split(". ")]
    assert all(s.rstrip(".") in {t.rstrip(".") for t in sentences} for s in text.split(". "))
    assert "lungs are clear" in text and not locate(text)


def test_a_finding_that_nobody_else_has_keeps_its_own_sentence():
    (text,) = typical(["Left pneumothorax. Unlike any."], NORMAL)
    assert "Left pneumothorax." in text and kind_of(text) == {("pneumothorax", ""), ("pneumothorax", "left")}


def test_the_other_side_is_another_content():
    left, right = typical(ILL, ILL + NORMAL)
    assert locate(left)["effusion"] == {"left"} and locate(right)["effusion"] == {"right"}


def test_it_depends_on_its_seed_alone_and_tells_how_far_it_is(reports):
    told = []
    show = lambda what, done, total: told.append((done, total))
    first = typical(reports[:20], reports, n_like=10, n_changes=50, seed=1, progress=show)
    assert first == typical(reports[:20], reports, n_like=10, n_changes=50, seed=1)
    assert first == typical(reports[:20], reports, n_like=10, n_changes=50, seed=1, workers=3)
    assert told == [(i, told[0][1]) for i in range(1, len(told) + 1)] and told[-1][0] == told[0][1]


def test_no_report_needs_no_words():
    assert typical([], NORMAL) == []


def test_what_was_found_once_is_kept(tmp_path):
    told = []
    show = lambda *what: told.append(what)
    first = typical_once(ILL, NORMAL + ILL, tmp_path / "cache", progress=show)
    assert first == typical(ILL, NORMAL + ILL) and len(told) == 2
    assert typical_once(ILL, NORMAL + ILL, tmp_path / "cache", progress=show) == first and len(told) == 2
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text("[")
    assert typical_once(ILL, NORMAL + ILL, tmp_path / "cache", progress=show) == first and len(told) == 4
    typical_once(ILL, NORMAL[1:] + ILL, tmp_path / "cache", progress=show)  # other reports to be like
    assert len(told) == 6

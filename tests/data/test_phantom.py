"""What the drawn sample promises: known findings, true reports, the same bytes everywhere."""

from collections import Counter

import numpy as np
import pytest

from llamaxr.data.drawing import DRAWN, Finding, draw
from llamaxr.data.phantom import describe, hints, imagine, make_studies, phantom
from llamaxr.metrics.findings import FINDINGS, find

TINY = {"n_train": 6, "n_val": 2, "n_test": 2, "size": 64}


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


@pytest.fixture(scope="module")
def imagined():
    return [imagine(np.random.default_rng((0, i))) for i in range(2000)]


def test_about_four_studies_in_ten_are_normal(imagined):
    assert 0.35 <= sum(not findings for findings in imagined) / len(imagined) <= 0.45


def test_every_finding_occurs_and_none_is_rare(imagined):
    counts = Counter(f.name for findings in imagined for f in findings)
    assert counts.keys() == set(DRAWN) <= set(FINDINGS)
    assert max(counts.values()) < 1.5 * min(counts.values())


def test_a_report_says_exactly_the_findings_it_was_written_from(imagined):
    for i, findings in enumerate(imagined[:1500]):
        report = describe(findings, np.random.default_rng((1, i)))
        assert find(report) == {f.name for f in findings}, report


def test_hints_list_findings_with_their_places():
    listed = hints(
        (Finding("cardiomegaly"), Finding("nodule", "right", "upper"), Finding("effusion", "left"))
    )
    assert listed == "cardiomegaly; nodule, right upper lobe; effusion, left"
    assert hints(()) == "normal"


@pytest.mark.parametrize(
    "finding, half", [(Finding("effusion", "left"), "right"), (Finding("nodule", "right", "mid"), "left")]
)
def test_a_finding_on_the_patients_one_side_is_drawn_on_the_images_other(finding, half):
    for seed in range(5):
        without, _ = draw((), np.random.default_rng(seed))
        film, _ = draw((finding,), np.random.default_rng(seed))
        change = np.abs(film.astype(int) - without)
        sums = {"left": change[:, :112].sum(), "right": change[:, 112:].sum()}
        assert sums[half] > 0.9 * change.sum() > 0


def test_some_studies_have_a_frontal_view_only():
    counts = Counter(len(phantom(0, i, 32)[1]) for i in range(100))
    assert counts.keys() == {1, 2} and counts[1] < 20


def test_any_number_of_workers_draws_the_same_bytes(tmp_path):
    one = make_studies(tmp_path / "one", **TINY, workers=1)
    three = make_studies(tmp_path / "three", **TINY, workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert [(s.id, s.report, s.findings) for s in one] == [(s.id, s.report, s.findings) for s in three]
    assert Counter(s.split for s in one) == {"train": 6, "val": 2, "test": 2}
    assert len({s.id for s in one}) == 10 and all(find(s.report) == s.findings for s in one)


def test_a_second_call_draws_nothing(tmp_path):
    first = make_studies(tmp_path, **TINY)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    drawn = []
    assert make_studies(tmp_path, **TINY, progress=drawn.append) == first
    assert not drawn and times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_a_missing_image_is_drawn_again_and_identically(tmp_path):
    studies = make_studies(tmp_path, **TINY)
    before, drawn = contents(tmp_path), []
    studies[3].frontal.unlink()
    assert make_studies(tmp_path, **TINY, progress=drawn.append) == studies
    assert drawn and contents(tmp_path) == before


def test_a_redraw_cut_short_is_not_taken_for_the_earlier_drawing(tmp_path):
    studies = make_studies(tmp_path, **TINY)
    before = contents(tmp_path)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_studies(tmp_path, **{**TINY, "size": TINY["size"] * 2}, progress=interrupt)
    assert make_studies(tmp_path, **TINY) == studies and contents(tmp_path) == before


@pytest.mark.parametrize("kept", [None, b"", b'{"settings": {', b"[]"])
def test_an_interrupted_drawing_is_done_again(tmp_path, kept):
    studies = make_studies(tmp_path, **TINY)
    before, index = contents(tmp_path), tmp_path / "studies.json"
    studies[0].frontal.write_bytes(b"half an image")
    index.unlink() if kept is None else index.write_bytes(kept)
    assert make_studies(tmp_path, **TINY) == studies
    assert contents(tmp_path) == before


def test_another_seed_or_size_is_not_mistaken_for_the_kept_one(tmp_path):
    make_studies(tmp_path, **TINY)
    other = make_studies(tmp_path, **TINY, seed=1)
    assert all(s.id.startswith("phantom-1-") for s in other)

"""The drawn sample: known findings, reports that state exactly those, the same bytes on every machine."""

import shutil
from collections import Counter

import numpy as np
import pytest

from llamaxr.data.drawing import DRAWN, Finding, draw
from llamaxr.data.phantom import list_findings, make_studies, phantom, sample_findings, write_report
from llamaxr.metrics.findings import FINDINGS, find

SMALL = {"n_train": 6, "n_val": 2, "n_test": 2, "size": 64}


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


@pytest.fixture(scope="module")
def sampled():
    return [sample_findings(np.random.default_rng((0, i))) for i in range(2000)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with the drawn studies of SMALL, which no test changes."""
    folder = tmp_path_factory.mktemp("drawn")
    make_studies(folder, **SMALL, workers=1)
    return folder


@pytest.fixture
def folder(drawn, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(drawn, tmp_path / "copy")


def test_about_four_studies_in_ten_are_normal(sampled):
    assert 0.35 <= sum(not findings for findings in sampled) / len(sampled) <= 0.45


def test_every_finding_occurs_and_none_is_rare(sampled):
    counts = Counter(f.name for findings in sampled for f in findings)
    assert counts.keys() == set(DRAWN) <= set(FINDINGS)
    assert max(counts.values()) < 1.5 * min(counts.values())


def test_a_report_states_exactly_the_findings_it_was_written_from(sampled):
    for i, findings in enumerate(sampled[:1500]):
        report = write_report(findings, np.random.default_rng((1, i)))
        assert find(report) == {f.name for f in findings}, report


def test_the_list_of_findings_has_their_places():
    findings = Finding("cardiomegaly"), Finding("nodule", "right", "upper"), Finding("effusion", "left")
    assert list_findings(findings) == "cardiomegaly; nodule, right upper lobe; effusion, left"
    assert list_findings(()) == "normal"


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


def test_any_number_of_workers_draws_the_same_bytes(drawn, tmp_path):
    one, three = make_studies(drawn, **SMALL), make_studies(tmp_path, **SMALL, workers=3)
    assert contents(drawn) == contents(tmp_path)
    assert [(s.id, s.report, s.findings) for s in one] == [(s.id, s.report, s.findings) for s in three]
    assert Counter(s.split for s in one) == {"train": 6, "val": 2, "test": 2}
    assert len({s.id for s in one}) == 10 and all(find(s.report) == s.findings for s in one)


def test_a_second_call_draws_nothing(drawn):
    times = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    make_studies(drawn, **SMALL, progress=pytest.fail)
    assert times == {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}


def test_a_missing_image_is_drawn_again_and_identically(drawn, folder):
    studies, progress = make_studies(folder, **SMALL), []
    studies[3].frontal.unlink()
    assert make_studies(folder, **SMALL, progress=progress.append) == studies
    assert progress and contents(folder) == contents(drawn)


def test_an_interrupted_redraw_is_not_taken_for_the_earlier_drawing(drawn, folder):
    def interrupt(_):
        raise KeyboardInterrupt

    studies = make_studies(folder, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        make_studies(folder, **{**SMALL, "size": SMALL["size"] * 2}, progress=interrupt)
    assert make_studies(folder, **SMALL) == studies and contents(folder) == contents(drawn)


@pytest.mark.parametrize("index", [None, b"", b'{"settings": {', b"[]"])
def test_an_interrupted_drawing_is_done_again(drawn, folder, index):
    studies = make_studies(folder, **SMALL)
    studies[0].frontal.write_bytes(b"half an image")
    if index is None:
        (folder / "studies.json").unlink()
    else:
        (folder / "studies.json").write_bytes(index)
    assert make_studies(folder, **SMALL) == studies
    assert contents(folder) == contents(drawn)


def test_another_seed_is_not_mistaken_for_the_stored_one(folder):
    assert all(s.id.startswith("phantom-1-") for s in make_studies(folder, **SMALL, seed=1))

"""The labeller against people: Open-i's indexers, on the studies that its rules were not tuned on."""

import io
import json
import os
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from llamaxr.errors import UserError
from llamaxr.metrics.findings import find

HOME = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("LLAMAXR_SHARED", "/work/shared"))
DATA = next((d / "data" / "iu_xray" for d in (SHARED, HOME.parent / "shared") if d.is_dir()), SHARED)
REPORTS, ANNOTATION = DATA / "NLMCXR_reports.tgz", DATA / "annotation.json"
real = pytest.mark.skipif(
    not (REPORTS.is_file() and ANNOTATION.is_file()),
    reason=f"Open-i's reports and R2Gen's split are not in {DATA}: set LLAMAXR_SHARED",
)

sys.path.append(str(HOME / "benchmarks"))
import findings as benchmark  # noqa: E402


@pytest.fixture(scope="module")
def studies():
    split_of = benchmark.read_split(ANNOTATION)
    groups = {"val": [], "test": []}
    for name, study in benchmark.read_reports(REPORTS).items():
        groups.get(split_of.get(name), []).append(study)
    return groups


@real
@pytest.mark.parametrize("split", ["val", "test"])
def test_the_labeller_agrees_with_the_indexers(studies, split):
    result = benchmark.compare(studies[split], impression=True)
    for scores in (result["findings"], result["frequent"], result["with_no_finding"]):
        assert scores["micro_f1"] >= 0.87 and scores["macro_f1"] >= 0.83
    assert result["sides"]["right"] >= 0.95 * result["sides"]["asserted"] > 100


@real
def test_the_test_split_is_labelled_in_less_than_a_second(studies):
    began = time.process_time()
    for findings, impression, _ in studies["test"]:
        find(f"{findings} {impression}")
    assert time.process_time() - began < 1


def archive(path, name="ecgen-radiology/1.xml", text=b"<x/>"):
    with tarfile.open(path, "w:gz") as file:
        member = tarfile.TarInfo(name)
        member.size = len(text)
        file.addfile(member, io.BytesIO(text))
    return path


@pytest.mark.parametrize(
    "text, message",
    [(b"<x/>", "is not Open-i's"), (b"<x", "is not Open-i's"), (b" " * (2 << 20), "holds more than"),
     (b'<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>', "declaration")],
)  # fmt: skip
def test_an_archive_other_than_open_is_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        benchmark.read_reports(archive(tmp_path / "reports.tgz", text=text))
    assert "\n" not in str(error.value)


def test_radlabels_wheel_is_scored_whole_and_by_body_and_another_file_is_refused(tmp_path):
    path = tmp_path / "radlabels.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("radlabels/samples/synthetic_labels.json", json.dumps(
            {"a": {"pneumothorax": "uncertain", "pleural_effusion": "definitely present"}}))  # fmt: skip
        wheel.writestr("radlabels/samples/synthetic_reports/a.txt",
                       "REASON: cardiomegaly.\nFINDINGS: Left effusion.")  # fmt: skip
    result = benchmark.compare_radlabels(benchmark.read_radlabels(path))
    assert result["whole"]["micro_precision"][0] == 0.5 and result["body"]["micro_f1"][0] == 1
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="is not radlabels' wheel"):
        benchmark.read_radlabels(path)


def test_files_that_are_neither_an_archive_nor_a_split_are_refused(tmp_path):
    (tmp_path / "x").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="fetch it again"):
        benchmark.read_reports(tmp_path / "x")
    with pytest.raises(UserError, match="fetch it again"):
        benchmark.read_split(tmp_path / "x")
    with pytest.raises(UserError, match="fetch it again"):
        benchmark.read_reports(tmp_path / "missing")

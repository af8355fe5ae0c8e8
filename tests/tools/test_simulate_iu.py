"""python -m llamaxr.tools.simulate_iu on a small archive of its own: R2Gen's form, drawn films."""

import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llamaxr.data import iu_xray
from llamaxr.data.drawing import DRAWN, Finding
from llamaxr.data.drawing_iu import EXTRA
from llamaxr.data.phantom import phantom
from llamaxr.errors import UserError
from llamaxr.tools import simulate_iu
from llamaxr.tools.describe import describe
from llamaxr.tools.simulate_iu import films_findings, simulate

TERMS = {
    "Opacity/lung/base/left/mild": "lung opacity left lower mild",
    "Opacity/lung/middle lobe/streaky": "streaky opacity right mid moderate",
    "Markings/lung/bilateral/interstitial/severe": "interstitial opacity bilateral severe",
    "Airspace Disease/lung/lower lobe/right/patchy": "consolidation right lower moderate",
    "Pleural Effusion/bilateral/small": "effusion bilateral mild",
    "Costophrenic Angle/right/blunted": "effusion right lower mild",
    "Pneumothorax/apex/left/large": "pneumothorax left upper severe",
    "Cardiomegaly/borderline": "cardiomegaly mild",
    "Pulmonary Congestion": "edema moderate",
    "Nodule/lung/lingula": "nodule left mid moderate",
    "Calcified Granuloma/lung/upper lobe/right": "granuloma right upper moderate",
    "Calcinosis/aorta": "aortic calcification moderate",
    "Calcinosis/lung/hilum/lymph nodes/left": "calcified nodes left mid moderate",
    "Atherosclerosis/aorta, thoracic": "aortic calcification moderate",
    "Thickening/pleura/apex/bilateral": "pleural other bilateral upper moderate",
    "Fractures, Bone/clavicle/left/healed": "clavicle fracture left moderate",
    "Fractures, Bone/thoracic vertebrae": "vertebral fracture moderate",
    "Catheters, Indwelling/right": "catheter right moderate",
    "Implanted Medical Device/left": "pacemaker left moderate",
    "Surgical Instruments/mediastinum": "midline clips moderate",
    "Lung/hypoinflation": "low volume moderate",
    "Aorta/tortuous": "tortuous aorta moderate",
    "Diaphragm/right/elevated/mild": "raised diaphragm right mild",
    "Hernia, Hiatal/large": "hiatal hernia severe",
    "Thoracic Vertebrae/degenerative/mild": "degenerative spine mild",
    "Subcutaneous Emphysema/neck": "",
    "Technical Quality of Image Unsatisfactory ": "",
    "No Indexing": "",
    "normal": "",
}
STUDIES = {"train": ("CXR1", "CXR2", "CXR3"), "val": ("CXR4",), "test": ("CXR5",)}


def drawn_for(terms, seed=0):
    return films_findings(terms, np.random.default_rng(seed))


@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_drawn_as(term):
    found = [" ".join(filter(None, (f.name, f.side, f.zone, f.severity))) for f in drawn_for([term])]
    assert found == ([TERMS[term]] if TERMS[term] else [])


def test_what_the_index_leaves_open_is_drawn_by_the_seed():
    (first,), (again,) = drawn_for(["Nodule"]), drawn_for(["Nodule"])
    assert first == again and first.side and first.zone
    assert len({drawn_for(["Nodule"], seed) for seed in range(40)}) == 6


def test_a_bilateral_pneumothorax_is_drawn_on_each_side():
    assert {f.side for f in drawn_for(["Pneumothorax/bilateral"])} == {"left", "right"}


def xml(uid, terms, findings="  The heart\nis normal. "):
    majors = "".join(f"<major>{term}</major>" for term in terms)
    return (f'<eCitation><uId id="{uid}"/><AbstractText Label="FINDINGS">{findings}</AbstractText>'
            f"<MeSH>{majors}</MeSH></eCitation>").encode()  # fmt: skip


def pack(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"ecgen-radiology/{name}.xml")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Five studies, which are then all of R2Gen's split."""
    ids = {split: [f"{uid}_IM-0001" for uid in uids] for split, uids in STUDIES.items()}
    (tmp_path / "split.json").write_text(json.dumps(ids))
    monkeypatch.setattr(iu_xray, "R2GEN_SPLIT", tmp_path / "split.json")
    terms = iter((["normal"], ["Pleural Effusion/left"], ["Cardiomegaly"], ["Nodule"], ["No Indexing"]))
    uids = [uid for uids in STUDIES.values() for uid in uids]
    return pack(tmp_path / "NLMCXR_reports.tgz", {uid: xml(uid, next(terms)) for uid in uids})


def contents(folder):
    """All files but those that a killed call left half, which nobody reads."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".tmp")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def test_the_folder_is_r2gens_split_and_says_that_it_is_a_simulation(archive, tmp_path):
    out, warned = tmp_path / "out", []
    simulate(archive, out, workers=1)
    studies = iu_xray.load_studies(out, warned.append)
    counted = {split: d["studies"] for split, d in describe(studies)["splits"].items()}
    assert counted == {split: len(uids) for split, uids in STUDIES.items()}
    assert {s.report for s in studies} == {"The heart is normal."}
    assert all(Image.open(path).size == (224, 224) for s in studies for _, path in s.views)
    assert len(warned) == 1 and "simulation" in warned[0] and "simulation" in (out / "README").read_text()
    drawn = json.loads((out / "simulation.json").read_text())["drawn"]
    assert drawn["CXR2_IM-0001"] == [{"name": "effusion", "side": "left", "severity": "moderate"}]
    assert drawn["CXR1_IM-0001"] == drawn["CXR5_IM-0001"] == []


def test_any_number_of_workers_draws_the_same_bytes_and_another_seed_others(archive, tmp_path):
    for name, seed, workers in (("one", 0, 1), ("two", 0, 2), ("other", 1, 1)):
        simulate(archive, tmp_path / name, seed, workers)
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two and one.keys() == other.keys()
    films = [name for name in one if name.endswith(".png")]
    assert len(films) == 10 == len({one[name] for name in films} ^ {other[name] for name in films}) / 2


def test_an_interrupted_call_goes_on_where_it_stopped(archive, tmp_path):
    def interrupt(done):
        if done == 2:
            raise KeyboardInterrupt

    simulate(archive, tmp_path / "whole", workers=1)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        simulate(archive, out, workers=1, progress=interrupt)
    assert not (out / "annotation.json").exists()
    film = out / "images" / "CXR1_IM-0001" / "0.png"
    (film.parent / "1.png").unlink()
    (film.parent / "1.png.tmp").write_bytes(b"half a film")
    untouched = out / "images" / "CXR2_IM-0001" / "0.png"
    before = untouched.stat().st_mtime_ns
    simulate(archive, out, workers=1)
    assert contents(out) == contents(tmp_path / "whole") and untouched.stat().st_mtime_ns == before


def test_a_killed_call_leaves_no_half_film_and_can_be_repeated(archive, tmp_path):
    call = f"""
from llamaxr.data import iu_xray
from pathlib import Path
iu_xray.R2GEN_SPLIT = Path({str(iu_xray.R2GEN_SPLIT)!r})
from llamaxr.tools import simulate_iu
simulate_iu.main(["--reports", {str(archive)!r}, {str(tmp_path / "out")!r}])
"""
    process = subprocess.Popen([sys.executable, "-c", call], cwd=Path(__file__).parents[2])
    while process.poll() is None and not list((tmp_path / "out").glob("images/*/0.png")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    for film in (tmp_path / "out").glob("images/*/*.png"):
        Image.open(film).load()
    simulate(archive, tmp_path / "out", workers=1)
    simulate(archive, tmp_path / "whole", workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def refused(*arguments):
    with pytest.raises(UserError) as error:
        simulate(*arguments, workers=1)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_not_the_archive_is_refused_in_one_line_before_anything_is_written(archive, tmp_path):
    out, bad = tmp_path / "out", tmp_path / "bad.tgz"
    with pytest.raises(OSError):
        simulate(tmp_path / "none.tgz", out)
    bad.write_bytes(archive.read_bytes()[:-200])
    assert "damaged" in refused(bad, out)
    bad.write_bytes(b"<html>not found</html>" * 40)
    assert "bad.tgz is damaged" in refused(bad, out)
    some = {uid: xml(uid, ["normal"]) for uid in ("CXR1", "CXR2", "CXR3", "CXR4")}
    assert "lacks 1 of R2Gen's studies (first CXR5" in refused(pack(bad, some), out)
    assert "lacks 1" in refused(pack(bad, some | {"CXR5": b"<eCitation>"}), out)
    assert "lacks 1" in refused(pack(bad, some | {"CXR5": xml("CXR5", ["normal"], "")}), out)
    assert not out.exists()


def test_a_folder_that_holds_anything_else_is_refused(archive, tmp_path):
    simulate(archive, tmp_path / "out", workers=1)
    before = contents(tmp_path / "out")
    assert "another simulation" in refused(archive, tmp_path / "out", 1)
    assert contents(tmp_path / "out") == before
    assert "is not of a simulation" in refused(archive, tmp_path)


def test_the_help_calls_it_a_simulation(capsys):
    with pytest.raises(SystemExit):
        simulate_iu.main(["--help"])
    assert "simulation" in " ".join(capsys.readouterr().out.split())


def test_every_drawing_that_a_term_can_have_exists():
    names = {drawing for kinds in simulate_iu.DRAWINGS.values() for _, drawing in kinds if drawing}
    assert names <= EXTRA.keys()
    assert simulate_iu.SIDED | simulate_iu.ZONED | simulate_iu.AT_THE_BASE <= {*DRAWN, *EXTRA}


def test_the_sample_is_drawn_as_before_these_findings():
    """By the mean grey of each film: a version of Pillow may round otherwise."""
    before = [
        (105.5, 84.61),
        (129.99, 85.27),
        (106.02, 139.57),
        (112.68, 175.82),
        (172.51, 103.4),
        (151.69, 114.63),
        (91.65,),
        (126.46, 83.13),
    ]
    for i, means in enumerate(before):
        findings, films, _ = phantom(7, i, 64)
        assert all(f == Finding(f.name, f.side, f.zone) for f in findings)
        assert [film.mean() for film in films] == pytest.approx(means, abs=0.05)

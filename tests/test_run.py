"""Which data set the options name, and what is left of it when images cannot be read."""

import pytest
import torch
from PIL import Image

from llamaxr import run
from llamaxr.data.phantom import phantom
from llamaxr.errors import UserError
from llamaxr.run import TrainOptions, load_studies, see_studies
from llamaxr.vision import load_vision


@pytest.fixture
def table(tmp_path):
    """A CSV data set of three studies with one image each."""
    lines = ["id,frontal,lateral,report,split"]
    for i in range(3):
        Image.fromarray(phantom(0, i)[1][0]).save(tmp_path / f"{i}.png")
        lines.append(f"{i},{i}.png,,Fine.,train")
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    return tmp_path / "mine.csv"


@pytest.mark.parametrize(
    "options",
    [
        TrainOptions(data="csv", sections="both"),
        TrainOptions(data="sample", drop_redacted=True),
        TrainOptions(data="csv", split_by="patient"),
        TrainOptions(data="mimic_cxr", split_by="patient"),
    ],
)
def test_an_option_that_a_data_set_has_no_use_for_is_refused_and_not_ignored(options):
    with pytest.raises(UserError, match="leave out"):
        load_studies(options, pytest.fail)


def test_iu_xray_without_a_root_is_fetched_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(run.iu_xray, "fetch", lambda folder, progress: folder)
    with pytest.raises(UserError, match=f"{tmp_path / 'iu_xray'} holds no IU X-ray"):
        load_studies(TrainOptions(data="iu_xray", cache=tmp_path), pytest.fail)


def test_an_unreadable_image_is_refused_or_told_and_its_study_left_out(table, tmp_path):
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    vision, told = load_vision("tiny"), []
    for on_missing in ("refuse", "skip"):
        options = TrainOptions(data="csv", root=table, cache=tmp_path / "cache", on_missing=on_missing)
        studies = load_studies(options, pytest.fail)
        if on_missing == "refuse":
            with pytest.raises(UserError, match="1 images cannot be read.*1.png.*--on-missing skip"):
                see_studies(options, vision, studies, torch.device("cpu"), told.append)
    pairs = see_studies(options, vision, studies, torch.device("cpu"), told.append)
    assert [study.id for _, study in pairs] == ["0", "2"] and all(seen.views == [0] for seen, _ in pairs)
    (line,) = told
    assert "1 unreadable images and 1 studies" in line and "1.png" in line

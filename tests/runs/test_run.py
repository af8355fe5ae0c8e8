"""Which data a run's options name, whether it fits into memory, and what is left of it."""

import pytest
import torch
from PIL import Image

from llamaxr.data.phantom import phantom
from llamaxr.data.study import Study
from llamaxr.errors import UserError
from llamaxr.lora import LoRALinear
from llamaxr.runs import run
from llamaxr.runs.recipes import apply_recipe
from llamaxr.runs.run import check_memory, load_features, load_studies
from llamaxr.runs.vision_zoo import load_vision


def test_what_cannot_fit_is_refused_before_it_is_loaded_with_advice(monkeypatch):
    monkeypatch.setattr("llamaxr.runs.memory.free_memory", lambda device: 2**30)
    study = Study("a", None, None, "The heart is enlarged.", "train")
    with pytest.raises(UserError, match="does not fit.*1.00 available.*take --recompute") as caught:
        check_memory(apply_recipe("sample", batch=200), [study], torch.device("cpu"))
    assert "\n" not in str(caught.value)
    assert "in all" in check_memory(apply_recipe("sample"), [study], torch.device("cpu"))


def test_a_batch_that_leaves_a_process_without_a_study_is_refused(monkeypatch):
    monkeypatch.setattr(run.distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="--batch 1 has no study for each of 2 processes; raise it"):
        check_memory(apply_recipe("sample", batch=1), [], torch.device("cpu"))


def test_plain_is_the_default_on_cuda_alone():
    assert [run.is_plain(None, torch.device(name)) for name in ("cuda", "cpu")] == [True, False]
    assert run.is_plain(True, torch.device("cpu")) and not run.is_plain(False, torch.device("cuda"))


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
        apply_recipe("ours", data="csv", sections="both"),
        apply_recipe("sample", drop_redacted=True),
        apply_recipe("ours", data="csv", split_by="patient"),
        apply_recipe("ours", data="mimic_cxr", split_by="patient"),
    ],
)
def test_an_option_that_a_data_set_has_no_use_for_is_refused_and_not_ignored(options):
    with pytest.raises(UserError, match="leave out"):
        load_studies(options, pytest.fail)


def test_iu_xray_without_a_root_is_fetched_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(run.iu_xray, "fetch", lambda folder, progress: folder)
    with pytest.raises(UserError, match=f"{tmp_path / 'iu_xray'} holds no IU X-ray"):
        load_studies(apply_recipe("ours", data="iu_xray", cache=tmp_path), pytest.fail)


def test_an_unreadable_image_is_refused_or_its_study_left_out_with_a_warning(table, tmp_path):
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    vision, warnings = load_vision("tiny"), []
    for on_missing in ("refuse", "skip"):
        options = apply_recipe(
            "ours", data="csv", root=table, cache=tmp_path / "cache", on_missing=on_missing
        )
        studies = load_studies(options, pytest.fail)
        if on_missing == "refuse":
            with pytest.raises(UserError, match="1 images cannot be read.*1.png.*--on-missing skip"):
                load_features(options, vision, studies, torch.device("cpu"), warnings.append)
    pairs = load_features(options, vision, studies, torch.device("cpu"), warnings.append)
    assert [study.id for _, study in pairs] == ["0", "2"] and all(
        features.views == [0] for features, _ in pairs
    )
    (line,) = warnings
    assert "1 unreadable images and 1 studies" in line and "1.png" in line


def test_a_prepared_model_is_merged_where_it_fits_and_generates_the_same(monkeypatch):
    _, _, model, _ = run.open_run(run.DEMO, "cpu")
    ids, device = torch.arange(3, 60)[None], torch.device("cpu")
    with torch.inference_mode():
        before = model.llama(ids)
        monkeypatch.setattr("llamaxr.runs.memory.free_memory", lambda device: 2**26)
        run.prepare_for_generation(
            model, device, rows=64, max_tokens=300
        )  # too little for 64 caches beside it
        assert any(isinstance(m, LoRALinear) for m in model.llama.modules())
        run.prepare_for_generation(model, device, rows=1, max_tokens=300)
        assert not any(isinstance(m, LoRALinear) for m in model.llama.modules())
        assert (model.llama(ids) - before).abs().max() < 5e-3 * before.abs().max()  # weights in fp16

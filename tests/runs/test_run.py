"""What a run's options become before it starts, which data they name, and what is left of it."""

import dataclasses

import pytest
import torch
from PIL import Image

from llamaxr.runs import run
from llamaxr.data.phantom import phantom
from llamaxr.data.study import Study
from llamaxr.errors import UserError
from llamaxr.lora import LoRALinear
from llamaxr.runs.run import (
    LLAMA_8B,
    TrainOptions,
    check_memory,
    load_studies,
    n_steps,
    see_studies,
    settle,
)
from llamaxr.vision import load_vision


def options(**given):
    return settle(TrainOptions(**given), set(given))


def test_the_sample_runs_on_the_defaults_and_the_tiny_base():
    assert options() == dataclasses.replace(TrainOptions(), base="tiny")


def test_real_data_means_llama_3_1_8b_in_nf4():
    assert options(data="iu_xray").base == LLAMA_8B
    assert options(data="iu_xray", base="elsewhere").base == "elsewhere"


def test_the_papers_recipe_is_the_papers():
    paper = options(recipe="paper", data="iu_xray")
    assert (paper.bridge, paper.rank, paper.lr, paper.warmup, paper.weight_decay) == (
        "scores",
        16,
        2e-6,
        30,
        0.01,
    )
    assert (paper.optimizer, paper.batch, paper.accumulate, paper.epochs) == ("adamw8bit", 8, 4, 3.0)
    assert n_steps(paper, 2069) == 194  # the paper's 195: the last, smaller step of an epoch is shared here


def test_what_the_command_line_says_stands():
    assert options(recipe="paper", lr=2e-4, batch=4).lr == 2e-4
    assert options(recipe="paper", lr=2e-4, batch=4).batch == 4
    assert n_steps(options(recipe="paper", steps=7), 2069) == 7
    assert n_steps(options(epochs=2.0), 160) == 20


def test_a_run_without_an_end_is_refused():
    with pytest.raises(UserError, match="--steps and --epochs"):
        options(steps=0)


def test_what_cannot_fit_is_refused_before_it_is_loaded_with_advice(monkeypatch):
    monkeypatch.setattr("llamaxr.memory.available", lambda device: 2**30)
    study = Study("a", None, None, "The heart is enlarged.", "train")
    with pytest.raises(UserError, match="does not fit.*1.00 available.*take --recompute") as caught:
        check_memory(options(batch=200), [study], torch.device("cpu"))
    assert "\n" not in str(caught.value)
    assert "in all" in check_memory(options(), [study], torch.device("cpu"))


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


def test_a_model_that_is_ready_to_write_is_merged_where_it_fits_and_writes_the_same(monkeypatch):
    _, _, model, _ = run.open_run(run.DEMO, "cpu")
    ids, device = torch.arange(3, 60)[None], torch.device("cpu")
    with torch.inference_mode():
        before = model.llama(ids)
        monkeypatch.setattr("llamaxr.memory.available", lambda device: 2**26)
        run.ready_to_write(model, device, rows=64, max_tokens=300)  # 64 caches have no room beside it
        assert any(isinstance(m, LoRALinear) for m in model.llama.modules())
        run.ready_to_write(model, device, rows=1, max_tokens=300)
        assert not any(isinstance(m, LoRALinear) for m in model.llama.modules())
        assert (model.llama(ids) - before).abs().max() < 5e-3 * before.abs().max()  # weights in fp16

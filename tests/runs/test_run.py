"""Which data a run's options name, whether it fits into memory, and what is left of it."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from llamaxr.data import iu_layouts
from llamaxr.data.iu_xray import patient_split
from llamaxr.data.phantom import phantom
from llamaxr.data.study import Study
from llamaxr.errors import UserError
from llamaxr.fast.generation import packs_in_16_bits
from llamaxr.lora import LoRALinear, add_lora
from llamaxr.projector import Projector
from llamaxr.runs import run
from llamaxr.runs.options import to_json
from llamaxr.runs.recipes import apply_recipe
from llamaxr.runs.run import check_memory, load_features, load_studies, longest_reports
from llamaxr.runs.vision_zoo import load_vision
from llamaxr.tokenizer import load_tokenizer
from llamaxr.vision import StudyFeatures
from llamaxr.weights import load_llama
from tests.data.test_iu_xray import write_openi
from tests.data.test_mimic_cxr import VISITS
from tests.data.test_mimic_cxr import write as write_mimic

STUDY = Study("a", None, None, "The heart is enlarged.", "train")


def test_what_cannot_fit_is_refused_before_it_is_loaded_with_advice(monkeypatch):
    monkeypatch.setattr("llamaxr.runs.memory.free_memory", lambda device: 2**30)
    options = apply_recipe("sample", batch=2000, recompute="off")
    with pytest.raises(UserError, match="does not fit.*1.00 available.*use --recompute") as caught:
        check_memory(options, [STUDY] * 2000, torch.device("cpu"))
    assert "\n" not in str(caught.value)
    assert "in all" in check_memory(apply_recipe("sample"), [STUDY], torch.device("cpu"))[0]


def test_blocks_are_recomputed_where_the_largest_batch_fits_only_so_or_where_it_is_asked(monkeypatch):
    cpu, studies = torch.device("cpu"), [STUDY] * 64
    options = apply_recipe("sample", batch=64)
    needed = {}
    for recompute in ("on", "off"):
        line, on = check_memory(replace(options, recompute=recompute), studies, cpu)
        assert on == (recompute == "on") and f"(--recompute {recompute})" in line
        needed[recompute] = float(line.split("in all ")[1].split()[0])
    line, on = check_memory(options, studies, cpu)
    assert not on and "blocks are not recomputed (--recompute auto)" in line
    between = (needed["on"] + needed["off"]) / 2 * 2**30
    monkeypatch.setattr("llamaxr.runs.memory.free_memory", lambda device: int(between))
    line, on = check_memory(options, studies, cpu)
    assert on and "blocks are recomputed (--recompute auto): without it" in line
    monkeypatch.setattr("llamaxr.runs.memory.free_memory", lambda device: int(needed["on"] * 2**29))
    with pytest.raises(UserError, match="does not fit"):
        check_memory(options, studies, cpu)


def test_a_run_and_its_adapter_name_the_commit_of_a_base_from_the_hub(tmp_path, monkeypatch):
    commit = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setattr(run, "find_base", lambda base: tmp_path / commit)
    options = run.with_base_commit(apply_recipe("ours"))
    assert options.base == f"{apply_recipe('ours').base}@{commit}"
    config = run.checkpoint.peft_config(to_json(options))
    assert (config["base_model_name_or_path"], config["revision"]) == (apply_recipe("ours").base, commit)
    assert run.with_base_commit(apply_recipe("sample")).base == "tiny"


def test_a_model_is_built_as_its_options_say():
    def build(**changes):
        return run.build(apply_recipe("sample", **changes), torch.device("cpu"))[1]

    model, other = build(rank=4, lora_alpha=8.0, seed=3), build(rank=4, lora_alpha=8.0, seed=4)
    layers = [[m for m in one.llama.modules() if isinstance(m, LoRALinear)] for one in (model, other)]
    assert len(layers[0]) == 7 * model.llama.config.n_layers
    for one, two in zip(*layers, strict=True):
        assert one.scaling == 2.0 and one.lora_A.shape[0] == 4 and not torch.equal(one.lora_A, two.lora_A)
    projector, embedding = model.projector, model.llama.embed_tokens.weight.float()
    spread = embedding[:: -(-len(embedding) // 4096)].std()  # of the words'
    assert abs(projector.fc2.weight.std() / (spread / (0.34 * embedding.shape[1] ** 0.5)) - 1) < 0.02
    torch.manual_seed(3)
    add_lora(load_llama(run.TINY_BASE, "nf4")[0], 4, 8.0)  # draws what the model's own has drawn
    unnamed = Projector(projector.fc1.in_features, embedding.shape[1], 4, token_std=spread.item())
    assert torch.equal(unnamed.fc1.weight, projector.fc1.weight)
    word = lambda w: embedding[model.tokenizer.encode(f" {w}")].mean(0)
    corner = (projector.place - unnamed.place)[0, 0]  # of the frontal film, on the patient's right
    torch.testing.assert_close(corner, 2 * (word("upper") + word("right")), rtol=1e-4, atol=1e-5)


def test_the_largest_batch_has_the_longest_reports_as_they_are_trained_on():
    tokenizer = load_tokenizer(run.TINY_BASE)
    texts = ["Clear.", "There is a small left pleural effusion.", "The heart is enlarged. " * 9]
    studies = [replace(STUDY, report=text) for text in texts]
    studies.append(replace(STUDY, report="Long. " * 99, split="val"))
    count = lambda text: len(tokenizer.encode(text)) + 1
    options = apply_recipe("sample", outline=False)
    assert longest_reports(options, studies, tokenizer, 2) == [count(texts[1]), count(texts[2])]
    assert longest_reports(replace(options, limit=2), studies, tokenizer, 2)[1] == count(texts[1])
    assert longest_reports(replace(options, max_report_tokens=20), studies, tokenizer, 1) == [20]
    outlined = count("Findings: effusion left.\n" + texts[1])
    assert longest_reports(replace(options, outline=True, limit=2), studies, tokenizer, 1) == [outlined]


@pytest.mark.parametrize("bridge", ["tokens", "scores", "both"])
def test_the_prompt_is_counted_as_the_model_makes_it(bridge):
    _, _, model, _ = run.open_run(run.DEMO, "cpu")
    model.bridge = bridge
    study = StudyFeatures([0, 1], torch.zeros(2, 1024, 7, 7), torch.full((2, 18), 0.5))
    n_tokens = model.projector.n_tokens
    assert run.longest_prompt(model.tokenizer, bridge, n_tokens) == len(model.prompt(study))


@pytest.mark.parametrize("capability, dtype", [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_a_gpu_without_bf16_computes_in_fp32_and_never_emulates_it(capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    cuda = torch.device("cuda")
    assert run.compute_dtype(apply_recipe("ours"), cuda) == dtype
    assert run.compute_dtype(apply_recipe("ours", dtype="fp32"), cuda) == torch.float32
    if dtype == torch.float32:
        with pytest.raises(UserError, match="Tesla T4 has no bf16; leave out --dtype bf16"):
            run.compute_dtype(apply_recipe("ours", dtype="bf16"), cuda)


def test_a_batch_that_leaves_a_process_without_a_study_is_refused(monkeypatch):
    monkeypatch.setattr(run.distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="--batch 1 has no study for each of 2 processes; raise it"):
        check_memory(apply_recipe("sample", batch=1), [], torch.device("cpu"))


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


def test_drawn_films_are_the_samples_and_those_of_a_simulation_wherever_it_is(tmp_path):
    (tmp_path / iu_layouts.SIMULATION).touch()
    options = apply_recipe("ours", data="iu_xray", root=tmp_path / "radiographs")
    assert not run.drawn(options) and run.drawn(options, moved=tmp_path)
    assert run.drawn(replace(options, root=tmp_path)) and not run.drawn(replace(options, root=None))
    assert run.drawn(apply_recipe("sample"))


def test_iu_xray_without_a_root_is_fetched_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(run.iu_xray, "fetch", lambda folder, *_: folder)
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
        config, itemsize = model.llama.config, 2 if packs_in_16_bits(device, torch.float32) else 4
        time = run.longest_prompt(model.tokenizer, model.bridge, model.projector.n_tokens) + 300
        needs = run.memory.generation_needs(config, torch.float32, itemsize, 64, time)
        freed = run.memory.freed_by_merging(model.llama)  # counts: what is merged need not be held twice
        assert 2**20 < freed < needs
        monkeypatch.setattr("llamaxr.runs.memory.free_memory", lambda device: needs - freed)
        run.prepare_for_generation(model, device, rows=64, max_tokens=300)  # a byte too little
        assert any(isinstance(m, LoRALinear) for m in model.llama.modules())
        monkeypatch.setattr("llamaxr.runs.memory.free_memory", lambda device: needs - freed + 1)
        run.prepare_for_generation(model, device, rows=64, max_tokens=300)
        assert not any(isinstance(m, LoRALinear) for m in model.llama.modules())
        assert (model.llama(ids) - before).abs().max() < 5e-3 * before.abs().max()  # weights in fp16


def test_deterministic_refuses_what_has_no_fixed_order(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    put = lambda: torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    put()
    try:
        for asked in (False, True):
            options = apply_recipe("sample", plain=True, deterministic=asked)
            run.prepare_for_training(torch.nn.Module(), options, False)
            assert torch.are_deterministic_algorithms_enabled() == asked
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        with pytest.raises(RuntimeError, match="deterministic"):
            put()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True


def test_the_split_that_is_asked_for_is_the_one_that_is_evaluated():
    splits = ["train"] * 2 + ["val"] * 3 + ["test"] * 4
    pairs = [(None, replace(STUDY, id=str(i), split=split)) for i, split in enumerate(splits)]
    for split, ids in (("train", "01"), ("val", "234"), ("test", "5678")):
        assert "".join(s.id for _, s in run.evaluated_split(pairs, split, 0)[2]) == ids
    assert len(run.evaluated_split(pairs, "val", 2)[2]) == 2


def test_iu_xrays_text_and_split_are_those_of_the_options(tmp_path):
    write_openi(tmp_path, [f"CXR{n}" for n in range(1, 9)], findings="Normal chest x-XXXX.")
    of_options = {"split_by": "patient", "split_seed": 7, "sections": "both", "drop_redacted": True}
    studies = load_studies(apply_recipe("ours", data="iu_xray", root=tmp_path, **of_options), pytest.fail)
    assert {s.report for s in studies} == {"Normal chest. Big heart."}
    assert [s.split for s in studies] == [patient_split(f"CXR{n}", 7) for n in range(1, 9)]


def test_mimic_cxrs_text_is_that_of_the_options(tmp_path):
    write_mimic(tmp_path, VISITS)
    options = apply_recipe("ours", data="mimic_cxr", root=tmp_path, sections="impression", on_missing="skip")
    assert "No change." in {s.report for s in load_studies(options, lambda line: None)}


def test_the_run_that_was_written_to_last_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RUNS", tmp_path)
    assert run.default_run() == run.DEMO
    for seconds, name in enumerate(("b", "c", "a")):
        (tmp_path / name / "step-000001").mkdir(parents=True)
        for file in ("config.json", "metrics.jsonl"):
            (tmp_path / name / file).write_text("{}")
        os.utime(tmp_path / name / "metrics.jsonl", (seconds, seconds))
    assert run.default_run() == tmp_path / "a"
    shutil.rmtree(tmp_path / "a" / "step-000001")
    assert run.newest_run() == tmp_path / "c" == run.newest_unfinished_run()  # a has no checkpoint
    (tmp_path / "c" / "loss.png").touch()  # finished
    assert run.newest_run() == tmp_path / "c" and run.newest_unfinished_run() == tmp_path / "b"
    (tmp_path / "b" / "loss.png").touch()
    assert run.newest_unfinished_run() == tmp_path / "a"


def test_only_what_training_needs_has_its_features_computed():
    studies = [replace(STUDY, id=f"{s}{i}", split=s) for s in ("test", "train", "val") for i in range(9)]
    options = apply_recipe("sample", batch=2, limit=3, val_studies=2)
    needed = [study.id for study in run.studies_to_train_on(options, studies)]
    assert needed == [f"train{i}" for i in range(3)] + [f"val{i}" for i in range(9)]
    with pytest.raises(UserError, match="3 train, 2 val studies are too few for --batch 4"):
        run.studies_to_train_on(replace(options, batch=4), studies)


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(run.memory, "free_memory", lambda device: 8 * 2**30)
    monkeypatch.setattr(run.distributed, "processes_of_machine", lambda: 4)
    assert run.free_memory(torch.device("cpu")) == 2 * 2**30
    assert run.free_memory(torch.device("cuda")) == 8 * 2**30  # each has a GPU of its own

"""A recipe is the command line's set of defaults, and each option has its default in one place."""

import dataclasses
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llamaxr.errors import UserError
from llamaxr.files.vision_weights import KNOWN, trained_on
from llamaxr.runs.options import from_json, to_json
from llamaxr.runs.recipes import (
    DATA,
    LLAMA_8B,
    RECIPES,
    SAME_DATA,
    UNSEEN_VISION,
    TrainOptions,
    apply_recipe,
    moved,
    n_steps,
    parse_train_options,
    parts_of_run,
    vision_warning,
    with_absolute_paths,
)
from llamaxr.runs.run import DEMO, build

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
schedule = importlib.import_module("train").schedule


def parse(*argv: str) -> TrainOptions:
    return parse_train_options("", list(argv))[0]


def test_an_option_has_its_default_in_the_dataclass_or_in_every_recipe():
    fields = [f for f in dataclasses.fields(TrainOptions) if f.init]
    open_fields = {f.name for f in fields if f.default is dataclasses.MISSING} - {"recipe"}
    for name, values in RECIPES.items():
        assert values.keys() == open_fields - ({"vision"} if name == "ours" else set())  # by the data set
    assert all(len({values.get(name) for values in RECIPES.values()}) > 1 for name in open_fields)
    assert UNSEEN_VISION.keys() == set(DATA)


def test_the_recipe_follows_from_the_data_unless_it_is_named():
    assert parse() == apply_recipe("sample")
    assert parse("--data", "iu_xray") == apply_recipe("ours", data="iu_xray")
    assert parse("--data=csv", "--recipe=paper") == apply_recipe("paper", data="csv")


def test_real_data_means_a_vision_network_that_never_saw_it_unless_one_is_named():
    for data in DATA:
        options = parse("--data", data)
        assert options.vision == UNSEEN_VISION[data] and not options.leaked and not vision_warning(options)
    assert UNSEEN_VISION["iu_xray"] == UNSEEN_VISION["csv"] == "densenet121-res224-mimic_ch"
    assert UNSEEN_VISION["mimic_cxr"] == "densenet121-res224-chex"
    assert parse("--data", "iu_xray", "--vision", "x.safetensors").vision == "x.safetensors"
    assert apply_recipe("paper", data="iu_xray").vision == "densenet121-res224-all"
    assert apply_recipe("sample", data="iu_xray").vision == "tiny"


def test_help_shows_the_vision_network_of_the_data_set(capsys):
    with pytest.raises(SystemExit):
        parse("--data", "mimic_cxr", "--help")
    assert "(default: densenet121-res224-chex)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("data, leaking", [
    ("sample", []), ("csv", []), ("iu_xray", ["all"]), ("mimic_cxr", ["all", "mimic_nb", "mimic_ch"]),
])  # fmt: skip
def test_a_network_that_was_trained_on_the_data_set_leaks_it_and_says_so(data, leaking):
    found = [name for name in KNOWN if apply_recipe("ours", data=data, vision=name).leaked]
    assert found == [f"densenet121-res224-{name}" for name in leaking]
    for name in found:
        options = apply_recipe("ours", data=data, vision=name)
        line = vision_warning(options)
        assert f"results on {data} are leaked" in line and f"trained on {SAME_DATA[data]}, the same" in line
        assert (
            f"--vision {UNSEEN_VISION[data]} does not" in line
            and SAME_DATA[data] in options.vision_trained_on
        )
        file = KNOWN[name].rpartition("/")[2]  # the same network as a downloaded file
        assert apply_recipe("ours", data=data, vision=f"/home/me/{file}").leaked


def test_the_training_data_of_each_named_network_is_known_and_that_of_a_file_is_not():
    assert all(trained_on(name) for name in [*KNOWN, "tiny"])
    assert trained_on("densenet121-res224-all") == (
        "NIH ChestX-ray14", "PadChest", "CheXpert", "MIMIC-CXR", "Open-i", "RSNA Pneumonia"
    )  # fmt: skip
    assert trained_on("vit_b_16-imagenet") == trained_on("x/vit_b_16-c867db91.pth") == ("ImageNet",)
    unknown = apply_recipe("ours", data="iu_xray", vision="mine.safetensors")
    assert (unknown.vision_trained_on, unknown.leaked) == ("unknown data", False)


def test_the_tiny_network_is_allowed_on_real_data_and_says_what_it_is():
    assert vision_warning(apply_recipe("sample")) is None
    line = vision_warning(parse("--data", "iu_xray", "--vision", "tiny"))
    assert "has seen drawn images only" in line and "\n" not in line


def test_config_json_says_what_the_vision_network_was_trained_on():
    values = json.loads(json.dumps(to_json(apply_recipe("paper", data="iu_xray"))))
    assert values["leaked"] is True and "Open-i" in values["vision_trained_on"]
    values["leaked"] = False  # it follows from the options, whatever the file says
    assert from_json(TrainOptions, values, Path("config.json")) == apply_recipe("paper", data="iu_xray")


def test_the_demos_config_is_the_samples():
    values = json.loads((DEMO / "config.json").read_text())
    assert from_json(TrainOptions, values, DEMO / "config.json") == apply_recipe("sample", steps=1000)


def test_the_first_line_of_a_run_names_every_part():
    options = apply_recipe("sample", data="iu_xray", rank=2, outline=True)
    _, model = build(options, torch.device("cpu"))
    line, warning = parts_of_run(options, model).splitlines()
    assert line.startswith(
        "data iu_xray; base tiny in NF4; vision tiny, trained on drawn images; bridge tokens, grid 4 x 4; "
        "recipe sample; cpu, float32; "
    )
    lora, projector = (
        sum(p.numel() for p in part.parameters() if p.requires_grad)
        for part in (model.llama, model.projector)
    )
    assert line.endswith(
        f"{lora + projector:,} trainable parameters, {lora:,} in LoRA and {projector:,} in the projector"
    )
    assert warning.startswith("warning: vision tiny has seen drawn images only")
    options = apply_recipe("sample", bridge="scores", quantize="none", vision="tiny")
    line = parts_of_run(options, build(options, torch.device("cpu"))[1])
    assert "base tiny in float32;" in line and "bridge scores;" in line and " 0 in the projector" in line


def test_the_sample_takes_1000_steps_on_the_tiny_base():
    assert parse().base == "tiny" and n_steps(parse(), 3200) == 1000


@pytest.mark.parametrize("recipe, steps", [("sample", 300), ("paper", 194), ("paper", 195)])
def test_the_learning_rate_rises_for_30_steps_of_the_sample_and_of_the_paper_and_falls_to_0(recipe, steps):
    options = apply_recipe(recipe, steps=steps)
    rising = [schedule(step, options) for step in range(1, 31)]
    assert rising == [step / 30 for step in range(1, 31)]
    falling = [schedule(step, options) for step in range(31, steps + 1)]
    assert falling == [(steps - step + 1) / (steps - 30) for step in range(31, steps + 1)]


def test_the_warm_up_is_a_share_of_the_steps():
    assert schedule(1, apply_recipe("ours", steps=10)) == 1.0  # 0.03 of ten steps is none
    ours = apply_recipe("ours", steps=1294)
    assert schedule(38, ours) == 38 / 39 and schedule(39, ours) == 1.0
    assert schedule(8, apply_recipe("ours", steps=8, warmup_share=1.0)) == 1.0
    with pytest.raises(UserError, match="--warmup-share is 30.0; it must be at most 1"):
        parse("--warmup-share", "30")


def test_real_data_means_llama_3_1_8b_in_nf4_for_five_epochs():
    options = parse("--data", "iu_xray")
    assert options.base == LLAMA_8B and options.quantize == "nf4" and options.grid == 4
    assert n_steps(options, 2069) == 1294 and options.val_studies == 296
    assert 1e-4 <= options.lr <= 2e-4 and options.projector_lr == 2 * options.lr
    assert parse("--data", "iu_xray", "--base", "tiny").base == "tiny"


def test_the_papers_recipe_is_the_papers():
    paper = apply_recipe("paper")
    assert (paper.bridge, paper.rank, paper.lora_alpha) == ("scores", 16, 16.0)
    assert (paper.lr, paper.weight_decay, paper.optimizer) == (2e-6, 0.01, "adamw8bit")
    assert (paper.batch, paper.accumulate, paper.epochs) == (8, 4, 3.0)
    assert n_steps(paper, 2069) == 194  # the paper's 195: the last, smaller step of an epoch is shared here


def test_the_command_line_overrides_the_recipe():
    options = parse("--recipe", "paper", "--lr", "2e-4", "--batch", "4")
    assert options == apply_recipe("paper", lr=2e-4, batch=4)
    assert n_steps(apply_recipe("paper", steps=7), 2069) == 7
    assert n_steps(apply_recipe("sample", epochs=2.0), 160) == 20


def test_a_run_without_an_end_is_refused():
    with pytest.raises(UserError, match="--epochs is 0.0"):
        parse("--epochs", "0")


def test_help_shows_the_defaults_of_the_recipe(capsys):
    for argv, lr in ((["--help"], "0.002"), (["--recipe", "paper", "--help"], "2e-06")):
        with pytest.raises(SystemExit):
            parse(*argv)
        assert f"learning rate of LoRA (default: {lr})" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "argv",
    [["--split-seed", "1"], ["--root", "x"], ["--sections", "both"],
     ["--no-outline", "--outline-share", "0.1"],
     ["--bridge", "scores", "--grid", "2"], ["--bridge", "scores", "--projector-lr", "0.1"],
     ["--steps", "9", "--epochs", "2"]],
)  # fmt: skip
def test_an_option_without_effect_is_refused(argv):
    with pytest.raises(UserError, match=f"{argv[-2]} has no effect without "):
        parse(*argv)


@pytest.mark.parametrize(
    "argv",
    [["--seed", "99999999999999999999"], ["--epochs", "inf"], ["--epochs", "1e308"], ["--epochs", "nan"],
     ["--max-report-tokens", str(10**18)], ["--accumulate", str(10**9)], ["--lr", "1e30"],
     ["--batch", "99999"]],
)  # fmt: skip
def test_an_absurd_number_is_refused(argv):
    with pytest.raises(UserError, match=f"^{argv[0]} is .*; it must be (at most|above) "):
        parse(*argv)


def test_resume_may_say_where_data_base_and_vision_have_moved():
    own = apply_recipe("ours", data="iu_xray", root=Path("/old"), lr=1e-3)
    given, extra = parse_train_options("", ["--resume", "runs/x", "--root", "/new", "--base", "/b"])
    assert moved(own, given, extra.given) == replace(own, root=Path("/new"), base="/b")
    assert moved(own, *parse_train_options("", ["--resume"])[:1], set()) == own


def test_paths_are_absolute_and_names_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("models", "tiny", "densenet121-res224-chex"):
        (tmp_path / name).mkdir()
    options = apply_recipe(
        "ours", base="models", root=Path("data.csv"), out=Path("../run"), adapter=Path("a")
    )
    absolute = with_absolute_paths(options)
    assert (absolute.base, absolute.root) == (str(tmp_path / "models"), tmp_path / "data.csv")
    assert (
        absolute.out == tmp_path / "../run" and absolute.adapter == tmp_path / "a" and absolute.cache is None
    )
    named = apply_recipe("sample", vision="densenet121-res224-chex")
    assert with_absolute_paths(named) == named
    hub = apply_recipe("ours", base="unsloth/none")
    assert with_absolute_paths(hub) == hub


@pytest.mark.parametrize("argv", [["--resume", "--lr", "1"], ["--lr", "1", "--resume=runs/x"]])
def test_resume_takes_no_other_option(argv):
    with pytest.raises(UserError, match="leave out --lr$"):
        parse(*argv)
    assert parse_train_options("", ["--resume"])[1].resume == ""
    assert parse_train_options("", ["--resume", "runs/x"])[1].resume == "runs/x"

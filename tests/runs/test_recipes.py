"""A recipe is the command line's set of defaults, and each option has its default in one place."""

import dataclasses

import pytest

from llamaxr.errors import UserError
from llamaxr.runs.recipes import LLAMA_8B, RECIPES, TrainOptions, apply_recipe, n_steps, parse_train_options


def parse(*argv: str) -> TrainOptions:
    return parse_train_options("", list(argv))[0]


def test_an_option_has_its_default_in_the_dataclass_or_in_every_recipe():
    open_fields = {f.name for f in dataclasses.fields(TrainOptions) if f.default is dataclasses.MISSING}
    for values in RECIPES.values():
        assert values.keys() == open_fields - {"recipe"}
    assert all(len({values[name] for values in RECIPES.values()}) > 1 for name in open_fields - {"recipe"})


def test_the_recipe_follows_from_the_data_unless_it_is_named():
    assert parse() == apply_recipe("sample")
    assert parse("--data", "iu_xray") == apply_recipe("ours", data="iu_xray")
    assert parse("--data=csv", "--recipe=paper") == apply_recipe("paper", data="csv")


def test_the_sample_takes_300_steps_on_the_tiny_base():
    assert parse().base == "tiny" and n_steps(parse(), 1600) == 300


def test_real_data_means_llama_3_1_8b_in_nf4():
    options = parse("--data", "iu_xray")
    assert options.base == LLAMA_8B and options.quantize == "nf4"
    assert parse("--data", "iu_xray", "--base", "tiny").base == "tiny"


def test_the_papers_recipe_is_the_papers():
    paper = apply_recipe("paper")
    assert (paper.bridge, paper.rank, paper.lora_alpha, paper.warmup) == ("scores", 16, 16.0, 30)
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


@pytest.mark.parametrize("argv", [["--resume", "--lr", "1"], ["--lr", "1", "--resume=runs/x"]])
def test_resume_takes_no_other_option(argv):
    with pytest.raises(UserError, match="leave out --lr 1"):
        parse(*argv)
    assert parse_train_options("", ["--resume"])[1].resume == ""
    assert parse_train_options("", ["--resume", "runs/x"])[1].resume == "runs/x"

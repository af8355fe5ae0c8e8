"""Recipes: what a run's options become before it starts."""

import dataclasses

import pytest
import torch

from llamaxr.data.study import Study
from llamaxr.errors import UserError
from llamaxr.run import LLAMA_8B, TrainOptions, check_memory, n_steps, settle


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

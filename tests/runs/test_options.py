"""A script's options: one dataclass is the command line, its bounds and the run's config.json."""

import importlib
from dataclasses import MISSING, dataclass
from pathlib import Path

import pytest

from llamaxr.errors import UserError
from llamaxr.runs.options import (
    derived,
    fields_of,
    from_json,
    option,
    parse,
    refuse_without_effect,
    to_json,
)
from llamaxr.runs.recipes import apply_recipe


@dataclass(frozen=True)
class Options:
    rate: float = option(0.5, "a share, in %", above=0, at_most=1)
    count: int = option(3, "how many", at_least=1)
    kind: str = option("a", "which", choices=("a", "b"))
    out_dir: Path | None = option(None, "where (default: here)")
    fast: bool = option(False, "hurry")
    sure: bool | None = option(None, "certainly")


@dataclass(frozen=True)
class Required:
    count: int = option(MISSING, "how many")


@dataclass(frozen=True, kw_only=True)
class Derived:
    count: int = option(3, "how many", at_least=1)
    even: bool = derived()

    def __post_init__(self):
        object.__setattr__(self, "even", self.count % 2 == 0)


def test_flags_are_the_fields_and_defaults_stand_where_none_is_given():
    options, _ = parse(Options, "", [])
    assert options == Options()
    argv = ["x", "--rate", "1", "--out-dir", "d", "--fast", "--no-sure"]
    options, extra = parse(Options, "", argv, {"name": {}})
    assert options == Options(rate=1.0, out_dir=Path("d"), fast=True, sure=False) and extra.name == "x"


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--rate", "0"], "--rate is 0.0; it must be above 0"),
        (["--rate", "1.01"], "--rate is 1.01; it must be at most 1"),
        (["--rate", "nan"], "--rate is nan"),
        (["--count", "0"], "--count is 0; it must be at least 1"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_flag_and_bound(argv, says):
    with pytest.raises(UserError, match=says):
        parse(Options, "", argv)


@pytest.mark.parametrize(
    "argv",
    [["--kind", "c"], ["--count", "1.5"], ["--unknown"], ["--fast", "no"], ["--rate"], ["--coun", "1"]],
)
def test_bad_usage_is_refused_and_a_flag_is_given_in_full(argv):
    with pytest.raises(UserError, match="--help lists what there is"):
        parse(Options, "", argv)


def test_the_caller_gives_defaults_that_the_dataclass_leaves_open_and_a_switch_can_be_turned_off():
    assert parse(Required, "", [], defaults={"count": 7})[0] == Required(count=7)
    assert parse(Required, "", ["--count", "1"], defaults={"count": 7})[0] == Required(count=1)
    assert parse(Options, "", ["--no-fast"], defaults={"fast": True})[0] == Options()


def test_what_is_given_is_known_even_where_it_is_the_default():
    _, extra = parse(Options, "", ["--count", "3", "--no-fast"])
    assert extra.given == {"count", "fast"}
    rules = [(("count", "kind"), False, "--kind b"), (("fast",), True, "--kind a")]
    with pytest.raises(UserError, match="--count has no effect without --kind b; leave it out"):
        refuse_without_effect(extra.given, rules)
    refuse_without_effect({"rate"}, rules)


@pytest.mark.parametrize(
    "module, name",
    [
        ("train", "TrainOptions"),
        ("generate", "GenerateOptions"),
        ("eval", "EvalOptions"),
        ("llamaxr.tools.probe", "ProbeOptions"),
        ("llamaxr.tools.vision_train", "VisionTrainOptions"),
    ],
)
def test_every_number_has_a_finite_upper_bound_and_its_default_is_within(module, name):
    kind = getattr(importlib.import_module(module), name)
    for field in fields_of(kind):
        if field.type in (int, float, "int", "float"):
            bound = field.metadata["at_most"]
            assert bound is not None and bound < 2**63, f"{kind.__name__}.{field.name}"
            assert field.metadata["at_least"] is not None or field.metadata["above"] is not None
            if field.default is not MISSING:
                assert field.default <= bound


def test_help_shows_every_default(capsys):
    with pytest.raises(SystemExit):
        parse(Options, "What it does.", ["--help"], defaults={"count": 7})
    text = capsys.readouterr().out
    assert "a share, in % (default: 0.5)" in text and "how many (default: 7)" in text
    assert "where (default: here)\n" in text


@pytest.mark.parametrize(
    "options", [Options(), Options(0.25, 7, "b", Path("x/y"), True, False), apply_recipe("paper")]
)
def test_options_come_back_from_json_as_they_went_in(options):
    assert from_json(type(options), to_json(options), Path("config.json")) == options


@pytest.mark.parametrize(
    "change",
    [{"kind": "a\0"}, {"out_dir": "x" * 5000}, {"rate": "0.5"}, {"rate": True}, {"count": 1.0},
     {"count": True},
     {"count": None}, {"fast": 1},
     {"out_dir": 3}, {"kind": "c"}, {"count": 0}, {"rate": None}, {"sure": 1}],
)  # fmt: skip
def test_a_config_with_a_wrong_type_or_bound_is_refused(change):
    with pytest.raises(UserError, match=next(iter(change)).replace("_", ".")):
        from_json(Options, {**to_json(Options()), **change}, Path("config.json"))


def test_a_derived_field_is_in_the_config_but_is_no_option(capsys):
    options, _ = parse(Derived, "", ["--count", "4"])
    assert options.even and to_json(options) == {"count": 4, "even": True}
    for values in ({"count": 4}, {"count": 4, "even": False}, {"count": 4, "even": "no"}):
        assert from_json(Derived, values, Path("config.json")) == options
    with pytest.raises(SystemExit):
        parse(Derived, "", ["--help"])
    assert "--even" not in capsys.readouterr().out


def test_a_config_from_before_an_option_was_has_its_default():
    values = to_json(Options(count=7))
    del values["rate"]
    assert from_json(Options, values, Path("config.json")) == Options(count=7)


@pytest.mark.parametrize("values", [{}, {"count": 1, "newer": 1}])
def test_a_config_with_a_missing_or_unknown_option_is_refused(values):
    with pytest.raises(UserError, match="config.json does not hold.*(count is missing|newer is unknown)"):
        from_json(Required, values, Path("config.json"))

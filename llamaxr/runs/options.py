"""The options of a script are the fields of a dataclass: flag, help, default and bounds in one place.

    @dataclass(frozen=True)
    class Options:
        lr: float = option(2e-3, "peak learning rate", above=0)

`parse` turns it into `--lr`. The same dataclass is written to a run's config.json and read back from it.
"""

import argparse
import dataclasses
import types
import typing
from pathlib import Path

from ..errors import UserError

DEVICES = ("auto", "cuda", "cpu")
DEVICE_HELP = "auto is CUDA if torch finds a GPU, else the CPU"
RUN_HELP = "run folder (default: the newest under runs/, or the embedded demo if there is none)"
PLAIN_HELP = (
    "run the model as llamaxr/*.py has it, without llamaxr/fast/ (default: plain on CUDA, fast on a CPU)"
)


def option(default, help: str, choices=None, at_least=None, above=None, at_most=None):
    """A dataclass field with what argparse, `check` and a reader need to know about it. default:
    dataclasses.MISSING for a field that must be given."""
    metadata = {"help": help, "choices": choices, "at_least": at_least, "above": above, "at_most": at_most}
    return dataclasses.field(default=default, metadata=metadata)


def derived():
    """A dataclass field that __post_init__ computes from the options: no flag, but written to config.json."""
    return dataclasses.field(init=False)


def fields_of(options) -> list[dataclasses.Field]:
    """The fields that are options."""
    return [field for field in dataclasses.fields(options) if field.init]


def parse(
    options: type,
    description: str,
    argv: list[str] | None = None,
    extra: dict[str, dict] | None = None,
    defaults: dict | None = None,
    prog: str | None = None,
):
    """Read the command line; returns (an instance of `options`, the namespace of the extra arguments).

    extra: name or flag -> keyword arguments of argparse, for arguments that are no field. defaults: values of
    the fields that have no default of their own. prog: the program's name in the help, if not the script's.
    Bad usage exits with code 2 and one line, as in argparse; UserError for a value out of bounds.
    """
    parser = argparse.ArgumentParser(
        prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, arguments in (extra or {}).items():
        parser.add_argument(name, **arguments)
    hints = typing.get_type_hints(options)
    names = [field.name for field in fields_of(options)]
    for field in fields_of(options):
        meta, kind = field.metadata, hints[field.name]
        if isinstance(kind, types.UnionType):  # `Path | None`: the type that is not None
            kind = next(k for k in typing.get_args(kind) if k is not type(None))
        default = (defaults or {}).get(field.name, field.default)
        help = meta["help"].replace("%", "%%")
        if default is not None:  # where it is None, the help says what that means
            help += f" (default: {default})"
        if kind is bool:
            how = {"action": argparse.BooleanOptionalAction}  # --flag and --no-flag
        else:
            metavar = None if meta["choices"] else {Path: "PATH", int: "N", float: "X", str: "NAME"}[kind]
            how = {"type": kind, "choices": meta["choices"], "metavar": metavar}
        parser.add_argument("--" + field.name.replace("_", "-"), default=default, help=help, **how)
    values = vars(parser.parse_args(argv))
    return check(options(**{name: values.pop(name) for name in names})), argparse.Namespace(**values)


def check(options):
    """Returns the options if each is within its bounds; else UserError with the flag and the bound."""
    for field in fields_of(options):
        value, meta = getattr(options, field.name), field.metadata
        if value is None:
            continue
        flag = "--" + field.name.replace("_", "-")
        for key, holds, words in (
            ("at_least", lambda v, b: v >= b, "at least"),
            ("above", lambda v, b: v > b, "above"),
            ("at_most", lambda v, b: v <= b, "at most"),
        ):
            if meta[key] is not None and not holds(value, meta[key]):  # NaN fails every bound
                raise UserError(f"{flag} is {value}; it must be {words} {meta[key]}")
        if meta["choices"] and value not in meta["choices"]:
            raise UserError(f"{flag} is {value!r}; it must be one of {', '.join(meta['choices'])}")
    return options


def to_json(options) -> dict:
    """The options as plain values for config.json."""
    values = dataclasses.asdict(options)
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def from_json(options: type, values: dict, path: Path):
    """Options from the values of a config.json at `path`. A missing option takes the dataclass's default;
    derived fields are computed anew. UserError for an unknown option, a missing one without a default, or a
    value of the wrong type."""
    hints = typing.get_type_hints(options)
    computed = {field.name for field in dataclasses.fields(options)} - {f.name for f in fields_of(options)}
    values = {name: value for name, value in values.items() if name not in computed}
    fields = {}
    try:
        for field in fields_of(options):
            if field.name not in values:
                if field.default is dataclasses.MISSING:
                    raise ValueError(f"{field.name} is missing")
                continue
            value, kind = values[field.name], hints[field.name]
            kinds = typing.get_args(kind) or (kind,)
            if Path in kinds and isinstance(value, str):
                value = Path(value)
            if float in kinds and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if type(value) not in {type(Path()) if k is Path else k for k in kinds}:
                raise ValueError(f"{field.name} is {value!r}")
            fields[field.name] = value
        if unknown := values.keys() - fields.keys():
            raise ValueError(f"{min(unknown)} is unknown")
    except ValueError as error:
        raise UserError(f"{path} does not hold this version's options ({error}); use another run") from None
    return check(options(**fields))

"""A script's options are the fields of a dataclass: flag, default, help and bounds in one place.

    @dataclass(frozen=True)
    class Options:
        lr: float = option(2e-3, "peak learning rate", above=0)

`parse` makes `--lr` of it. The same dataclass goes into a run's config.json, and comes back out of it.
"""

import argparse
import dataclasses
import types
import typing
from pathlib import Path

from ..errors import UserError


def option(default, help: str, choices=None, at_least=None, above=None, at_most=None):
    """A dataclass field with what argparse, `check` and a reader need to know of it."""
    keys = {"help": help, "choices": choices, "at_least": at_least, "above": above, "at_most": at_most}
    return dataclasses.field(default=default, metadata=keys)


def parse(options: type, description: str, argv: list[str] | None = None, positional: dict | None = None):
    """Read the command line; gives (the dataclass, the namespace of positionals, the names given by hand).

    positional: name -> keyword arguments of argparse. Bad usage exits 2 with one line, as argparse does.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, how in (positional or {}).items():
        parser.add_argument(name, **how)
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        flag, meta = "--" + field.name.replace("_", "-"), field.metadata
        help = f"{meta['help']} (default: {'none' if field.default is None else field.default})".replace(
            "%", "%%"
        )
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):  # `Path | None`: the type that is not None
            kind = next(k for k in typing.get_args(kind) if k is not type(None))
        if kind is bool:
            action = argparse.BooleanOptionalAction  # --flag and --no-flag: a recipe may have set it
            parser.add_argument(flag, action=action, default=argparse.SUPPRESS, help=help)
        else:
            metavar = None if meta["choices"] else {Path: "PATH", int: "N", float: "X", str: "NAME"}[kind]
            parser.add_argument(
                flag,
                type=kind,
                default=argparse.SUPPRESS,
                choices=meta["choices"],
                help=help,
                metavar=metavar,
            )
    arguments = vars(parser.parse_args(argv))
    names = {field.name for field in dataclasses.fields(options)}
    given = {name: value for name, value in arguments.items() if name in names}
    rest = argparse.Namespace(**{name: value for name, value in arguments.items() if name not in names})
    return check(options(**given)), rest, set(given)


def check(options):
    """The options themselves, if each is within its bounds; else UserError with the flag and the bound."""
    for field in dataclasses.fields(options):
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


def from_json(options: type, values: dict, where: Path):
    """Options from a config.json, defaults for those it does not know yet. UserError where it holds none, an
    unknown one, or a value of another type."""
    hints = typing.get_type_hints(options)
    fields = {}
    try:
        for field in dataclasses.fields(options):
            if field.name not in values and values:  # written before this option was
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
        if values.keys() - fields.keys():
            raise ValueError(f"{min(values.keys() - fields.keys())} is unknown")
    except (KeyError, ValueError) as error:
        raise UserError(f"{where} does not hold this program's options ({error}); use another run") from None
    return check(options(**fields))

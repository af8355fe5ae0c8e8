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
from ..files.text import short

MAX_SEED = 2**63 - 1  # torch's seeds have 64 bits
DEVICES = ("auto", "cuda", "cpu")
DEVICE_HELP = "auto is CUDA if torch finds a GPU, else the CPU"
RUN_HELP = "run folder (default: the newest under runs/, or the embedded demo if there is none)"
PLAIN_HELP = "run the model as llamaxr/*.py has it, without llamaxr/fast/"


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


class Parser(argparse.ArgumentParser):
    """argparse's, but flags are given in full, and bad usage is a UserError, not a page."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs, allow_abbrev=False)

    def error(self, message: str):
        raise UserError(f"{message}; --help lists what there is")


def parse(
    options: type,
    description: str,
    argv: list[str] | None = None,
    extra: dict[str, dict] | None = None,
    defaults: dict | None = None,
    prog: str | None = None,
):
    """Read the command line; returns (an instance of `options`, the namespace of the extra arguments). The
    namespace also has `given`: the names of the options on the command line, even those given their default.

    extra: name or flag -> keyword arguments of argparse, for arguments that are no field. defaults: values of
    the fields that have no default of their own. prog: the program's name in the help, if not the script's.
    UserError for bad usage and for a value out of bounds.
    """
    parser = Parser(prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, arguments in (extra or {}).items():
        parser.add_argument(name, **arguments)
    hints = typing.get_type_hints(options)
    values = {}  # the defaults, then what is given
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
        values[field.name] = default
        parser.add_argument(flag(field.name), default=argparse.SUPPRESS, help=help, **how)
    parsed = vars(parser.parse_args(argv))
    given = parsed.keys() & values.keys()
    values |= {name: parsed.pop(name) for name in given}
    return check(options(**values)), argparse.Namespace(**parsed, given=given)


def flag(name: str) -> str:
    """The flag of an option."""
    return "--" + name.replace("_", "-")


def refuse_without_effect(given: set[str], rules: list[tuple[tuple[str, ...], bool, str]]) -> None:
    """rules: (names of options, whether they have an effect, when they have one). UserError for an option
    that is given and has none: whoever gives it expects something."""
    for names, has_effect, when in rules:
        if useless := [] if has_effect else sorted(given & {*names}):
            raise UserError(f"{flag(useless[0])} has no effect without {when}; leave it out")


def check(options):
    """Returns the options if each is within its bounds; else UserError with the flag and the bound."""
    for field in fields_of(options):
        value, meta = getattr(options, field.name), field.metadata
        if value is None:
            continue
        for key, holds, words in (
            ("at_least", lambda v, b: v >= b, "at least"),
            ("above", lambda v, b: v > b, "above"),
            ("at_most", lambda v, b: v <= b, "at most"),
        ):
            if meta[key] is not None and not holds(value, meta[key]):  # NaN fails every bound
                raise UserError(f"{flag(field.name)} is {short(value)}; it must be {words} {meta[key]}")
        if meta["choices"] and value not in meta["choices"]:
            raise UserError(
                f"{flag(field.name)} is {short(value)!r}; it must be one of {', '.join(meta['choices'])}"
            )
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
            if isinstance(value, str) and not 0 < len(value.encode(errors="replace")) < 4096:
                raise ValueError(f"{field.name} is {short(value)}")  # no path has more bytes
            if isinstance(value, str) and "\0" in value:
                raise ValueError(f"{field.name} holds a byte of zero")
            if Path in kinds and isinstance(value, str):
                value = Path(value)
            if float in kinds and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)  # of at most 64 bits: the JSON reader sees to that
            if type(value) not in {type(Path()) if k is Path else k for k in kinds}:
                raise ValueError(f"{field.name} is {short(value)}")
            fields[field.name] = value
        if unknown := values.keys() - fields.keys():
            raise ValueError(f"{short(min(unknown))} is unknown")
    except ValueError as error:
        raise UserError(f"{path} does not hold this version's options ({error}); use another run") from None
    return check(options(**fields))

"""Tensors out of other people's pickles, without running anything that a pickle says.

In: a file that `torch.save` wrote, a state dict or a whole network (as torchxrayvision saves), in today's zip
or in the format from before PyTorch 1.6. Out: its tensors by their name in the state dict.

A pickle is a program: its opcodes look up functions by name and call them, which is why opening one from
elsewhere runs what its author wished. Here it is only read. A small stack machine walks the opcodes; where
one would look up a name, the name itself goes on the stack; where one would call it, a record of the call
does. No class is imported, nothing is called, and a name that no network needs has the file refused. Of the
records that remain, those that torch.save makes of tensors are understood, and become views of the bytes in
the file, after their sizes were held against the file's.

`torch.load(weights_only=True)` with stand-in classes reads the zip alone: of a whole network in the older
format, which torchxrayvision's published files have, it refuses the stored classes; and it allocates whatever
size a tensor claims before it looks.
"""

import io
import math
import mmap
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError

MAX_FILE = 2**30  # bytes; the largest known here, a ViT-B/16, has 346 MB
MAX_OPCODES = 1_000_000  # DenseNet-121 takes 60 thousand; each costs at most some hundred bytes
MAX_TENSORS = 10_000
MAX_NAME = 500  # characters of a tensor's name; also ends a network that contains itself
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # first two pickles of the older format

DTYPES = {
    "torch.FloatStorage": torch.float32, "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16, "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
}  # fmt: skip
TENSOR = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
PARAMETER = "torch._utils._rebuild_parameter"
# What a saved network may name besides. All are kept as names; that they are listed is a second lock.
HARMLESS = re.compile(
    r"(?:torch\.nn|torchvision\.models|torchxrayvision|numpy)(?:\.\w+)+|torch\.(?:Size|device|float\d+|int\d+)"
    r"|collections\.OrderedDict|(?:builtins|__builtin__)\.set|_codecs\.encode"
)


class Name(str):
    """What a pickle would look up ("torch.nn.modules.conv.Conv2d"), and here stays a name."""


class Made:
    """What a pickle would make: the call of a name, and the state it would give to the result."""

    __slots__ = ("of", "args", "state")

    def __init__(self, of: object, args: object):
        self.of, self.args, self.state = of, args, None


class Storage(NamedTuple):
    """Numbers in the file, by their key there."""

    dtype: torch.dtype
    key: str
    numel: int


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by torch.save, on the CPU; they are views of its bytes, so copy what you keep.

    Raises UserError for a file that is too large, cut off, damaged, or asks for anything but tensors.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            if size > MAX_FILE:
                raise ValueError(f"{size} bytes are more than any known network's {MAX_FILE}")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # of an empty file: ValueError
            root, read = _open_zip(file, data) if data[:2] == b"PK" else _open_legacy(data)
            flat, tensors = {}, {}  # key of a storage -> all of its numbers; name -> tensor
            for name, made in _named(root):
                if len(tensors) == MAX_TENSORS:
                    raise ValueError(f"more than {MAX_TENSORS} tensors")
                tensors[name] = _tensor(made, flat, read)
            if sum(tensor.nbytes for tensor in tensors.values()) > len(data):  # all views of one storage
                raise ValueError("its tensors are larger than the file")
        if not tensors:
            raise ValueError("no tensor in it")
        return tensors
    except FileNotFoundError:
        raise UserError(f"vision weights {path} do not exist; give the file's path") from None
    except (
        ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OSError,
        RuntimeError, TypeError, ValueError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path} is refused ({why}): it must be a state dict or network by torch.save; fetch it again"
        ) from None


Read = Callable[[Storage], Tensor]


def _open_zip(file: BinaryIO, data: mmap.mmap) -> tuple[object, Read]:
    """Today's format: records ARCHIVE/data.pkl and ARCHIVE/data/KEY, stored without compression."""
    if sum(1 for _ in islice(re.finditer(b"PK\x01\x02", data), 2 * MAX_TENSORS)) == 2 * MAX_TENSORS:
        raise ValueError("a zip of too many records")  # counted before zipfile makes an object of each
    archive = zipfile.ZipFile(file)
    pickled = next((n for n in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", n)), None)
    if pickled is None:
        raise ValueError("a zip without the data.pkl that torch.save writes")
    folder, left = pickled.removesuffix("data.pkl"), len(data)

    def record(name: str) -> bytes:
        nonlocal left
        info = archive.getinfo(name)
        left -= info.file_size  # records may overlap in a zip made for harm: together no more than the file
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > info.compress_size or left < 0:
            raise ValueError(f"record {name} would unpack to more than the file holds")
        return archive.read(info)

    def read(storage: Storage) -> Tensor:
        raw = record(f"{folder}data/{storage.key}")
        if len(raw) != storage.numel * storage.dtype.itemsize:
            raise ValueError(f"{storage.numel} numbers are declared where {len(raw)} bytes are")
        return torch.frombuffer(bytearray(raw), dtype=storage.dtype)

    if f"{folder}byteorder" in archive.namelist() and record(f"{folder}byteorder") != b"little":
        raise ValueError("saved on a big-endian machine")
    return _walk(io.BytesIO(record(pickled)), {}), read


def _open_legacy(data: mmap.mmap) -> tuple[object, Read]:
    """The format before PyTorch 1.6: five pickles (magic number, protocol, machine, the object, the keys of
    its storages), then for each key its number of elements, 8 bytes, and the elements themselves."""
    storages: dict[str, Storage] = {}
    magic, protocol, machine, root, keys = (_walk(data, storages) for _ in range(5))
    if (magic, protocol, machine["little_endian"]) != (LEGACY_MAGIC, LEGACY_PROTOCOL, True):
        raise ValueError("not a file of torch.save")
    places, at = {}, data.tell()
    for key in keys:
        (numel,) = struct.unpack_from("<q", data, at)
        places[key], at = at + 8, at + 8 + numel * storages[key].dtype.itemsize
        if numel != storages[key].numel or at > len(data):
            raise ValueError(f"{storages[key].numel} numbers are declared where the file has {numel} or ends")

    def read(storage: Storage) -> Tensor:
        return torch.frombuffer(data, dtype=storage.dtype, count=storage.numel, offset=places[storage.key])

    return root, read


def _walk(stream: BinaryIO, storages: dict[str, Storage]) -> object:
    """One pickle, up to its STOP, as plain data: dicts, lists, tuples, texts, numbers, Name, Made, Storage.

    Knows the opcodes of protocol 2, which is what torch.save writes. storages: gains those it meets.
    """
    stack, marks, memo, work = [], [], {}, 0

    def since_mark() -> list:
        at = marks.pop()
        values = stack[at:]
        del stack[at:]
        return values

    for opcode, argument, _ in pickletools.genops(stream):
        work += 1
        if work > MAX_OPCODES:
            raise ValueError(f"its pickle has more than {MAX_OPCODES} opcodes")
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "BINSTRING" | "SHORT_BINSTRING":  # Python 2's texts, in ImageNet weights of 2017
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(opcode.name[-1])
                stack[-n:] = [tuple(stack[-n:])]
            case "APPEND" | "APPENDS":
                values = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                stack[-1].extend(values)  # of a list alone: nothing else on the stack has it
            case "SETITEM" | "SETITEMS":
                values = since_mark() if opcode.name == "SETITEMS" else [stack.pop() for _ in "kv"][::-1]
                if type(stack[-1]) is dict:  # else a record's items, which no tensor needs
                    stack[-1].update(_pairs(zip(values[::2], values[1::2], strict=True)))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_name(argument))
            case "REDUCE" | "NEWOBJ":
                arguments, of = stack.pop(), stack.pop()
                if of == "collections.OrderedDict":  # empty, or (Python 2) made of a list of pairs
                    work += sum(map(len, arguments))
                    stack.append(dict(_pairs(*arguments[:1])) if arguments else {})
                else:
                    stack.append(Made(of, arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Made):  # else a state dict's _metadata
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(_stored(stack.pop(), storages))
            case _:
                raise ValueError(f"opcode {opcode.name}, which torch.save never writes")
    raise ValueError("its pickle is cut off")


def _name(argument: str) -> Name:
    """The "module name" of a GLOBAL opcode -> Name; ValueError for one that a network has no use for."""
    name = Name(argument.replace(" ", "."))
    if name not in DTYPES and name not in TENSOR and name != PARAMETER and not HARMLESS.fullmatch(name):
        raise ValueError(f"it names {name[:80]!r}, which no weights need; nothing of it was run")
    return name


def _pairs(pairs: Iterable) -> Iterator[tuple[str | int, object]]:
    """Items of a dict. A key is a text or a number: the hash of a tuple may take for ever to compute."""
    for key, value in pairs:
        if type(key) not in (str, int):
            raise ValueError("a dict whose keys are no texts")
        yield key, value


def _stored(persistent_id: object, storages: dict[str, Storage]) -> object:
    """What torch.save keeps outside of the pickle: storages, and (older format) classes with their source."""
    match persistent_id:
        case ("module", Name() as of, *_):
            return of
        case ("storage", Name() as kind, str(key), _, int(numel), *views) if views in ([], [None]):
            storage = Storage(DTYPES[kind], key, numel)
            if numel < 0 or storages.setdefault(key, storage) != storage:
                raise ValueError(f"storage {key[:40]!r} is declared with {numel} numbers, and otherwise")
            return storage
    raise ValueError("it keeps something outside of the pickle that is no storage")


def _named(root: object) -> Iterator[tuple[str, object]]:
    """(name in the state dict, record of the tensor), of a state dict or a network and all within it."""
    if isinstance(root, dict):
        yield from ((str(name), made) for name, made in root.items())
        return
    todo, layers = [("", root)], 1
    while todo:
        prefix, module = todo.pop()
        if not isinstance(module, Made) or not isinstance(module.state, dict):
            raise ValueError(f"{prefix[:40] or 'what it holds'!r} is no network")
        tensors = module.state["_parameters"] | module.state["_buffers"]
        yield from ((f"{prefix}{name}", made) for name, made in tensors.items() if made is not None)
        for name, inner in module.state["_modules"].items():
            layers += 1
            if len(prefix) + len(name) > MAX_NAME or layers > MAX_TENSORS:
                raise ValueError("a network within itself, or of too many layers")
            todo.append((f"{prefix}{name}.", inner))


def _tensor(made: object, flat: dict[str, Tensor], read: Read) -> Tensor:
    """A record of torch's own call for making a tensor -> the tensor, a view of its storage."""
    if isinstance(made, Made) and made.of == PARAMETER:
        made = made.args[0]
    if not isinstance(made, Made) or made.of not in TENSOR:
        raise ValueError("a weight that is no plain tensor")
    storage, offset, size, stride = made.args[:4]
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    if len(size) > 8 or any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
        raise ValueError("a tensor whose size, stride or offset is none")
    reach = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > storage.numel or math.prod(size) and reach > storage.numel:
        raise ValueError(f"a tensor of size {size} reaches past its {storage.numel} numbers")
    if storage.numel == 0 or 0 in size:
        return torch.empty(size, dtype=storage.dtype)
    if storage.key not in flat:
        flat[storage.key] = read(storage)
    return flat[storage.key].as_strided(size, stride, offset)

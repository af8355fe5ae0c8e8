"""Tensors out of other people's pickles, without running anything that a pickle asks for.

In: a file by `torch.save`, a state dict or a whole network (as torchxrayvision saves), in today's zip or in
the format from before PyTorch 1.6. Out: its tensors by their names in the state dict.

A pickle is a program: its opcodes look up functions by name and call them, which is why opening one from
elsewhere runs whatever its author wished. Here it is only read. A small stack machine walks the opcodes.
Where one would look up a name, the name itself goes on the stack. Where one would call it, a record of the
call goes there. No class is imported, nothing is called, and a file with a name that no network needs is
refused. Only the records that torch.save makes for tensors are interpreted. They become views of the bytes in
the file, after their sizes are checked against the file's.

`torch.load(weights_only=True)` with stand-in classes would read only the zip. It refuses the classes stored
with a whole network in the older format, in which torchxrayvision publishes. And it allocates whatever size a
tensor claims before it checks.
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
from .text import short

MAX_FILE = 2**30  # bytes; the largest known here, a ViT-B/16, has 346 MB
MAX_OPCODES = 1_000_000  # DenseNet-121 takes 60,000; each costs at most a few hundred bytes
MAX_TENSORS = 10_000
MAX_PARTS = 4 * MAX_TENSORS  # of a network: its layers, and their tensors
MAX_NAME = 500  # characters of a tensor's name; also ends a network that contains itself
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # first two pickles of the older format

DTYPES = {
    "torch.FloatStorage": torch.float32, "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16, "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
}  # fmt: skip
TENSOR = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
PARAMETER = "torch._utils._rebuild_parameter"
# Other names that a saved network may hold. All stay names; that they are listed is a second lock.
HARMLESS = re.compile(
    r"(?:torch\.nn|torchvision\.models|torchxrayvision|numpy)(?:\.\w+)+|torch\.(?:Size|device|float\d+|int\d+)"
    r"|collections\.OrderedDict|(?:builtins|__builtin__)\.set|_codecs\.encode"
)


class Name(str):
    """A function or class that a pickle would look up ("torch.nn.modules.conv.Conv2d"). It stays a name."""


class Call:
    """A call that a pickle would make: of `function`, and the state that it would give to the result."""

    __slots__ = ("function", "args", "state")

    def __init__(self, function: object, args: object):
        self.function, self.args, self.state = function, args, None


class Storage(NamedTuple):
    """Numbers in the file, under a key."""

    dtype: torch.dtype
    key: str
    numel: int


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by torch.save, on the CPU. They are views of its bytes, so copy what you keep.

    Raises UserError for a file that is too large, cut off, damaged, or asks for anything but tensors.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            if size > MAX_FILE:
                raise ValueError(f"{size} bytes, more than any known network's {MAX_FILE}")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # of an empty file: ValueError
            root, read = _open_zip(file, data) if data[:2] == b"PK" else _open_legacy(data)
            storages, tensors = {}, {}  # key of a storage -> all of its numbers; name -> tensor
            for name, call in _named_calls(root):
                if len(tensors) == MAX_TENSORS:
                    raise ValueError(f"more than {MAX_TENSORS} tensors")
                tensors[name] = _tensor(call, storages, read)
            if sum(tensor.nbytes for tensor in tensors.values()) > len(data):  # many views of one storage
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
        reason = short(error, 200) or type(error).__name__
        raise UserError(
            f"{path} is refused ({reason}): it must be a state dict or network by torch.save; fetch it again"
        ) from None


Read = Callable[[Storage], Tensor]


def _open_zip(file: BinaryIO, data: mmap.mmap) -> tuple[object, Read]:
    """Today's format: records ARCHIVE/data.pkl and ARCHIVE/data/KEY, stored without compression."""
    if sum(1 for _ in islice(re.finditer(b"PK\x01\x02", data), 2 * MAX_TENSORS)) == 2 * MAX_TENSORS:
        raise ValueError("a zip of too many records")  # counted before zipfile makes an object for each
    archive = zipfile.ZipFile(file)
    pickled = next((n for n in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", n)), None)
    if pickled is None:
        raise ValueError("a zip without the data.pkl that torch.save writes")
    folder, bytes_left = pickled.removesuffix("data.pkl"), len(data)

    def record(name: str) -> bytes:
        nonlocal bytes_left
        info = archive.getinfo(name)
        bytes_left -= info.file_size  # records of a hostile zip may overlap: in all no more than the file
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > info.compress_size or bytes_left < 0:
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
    its storages), then for each key its number of elements, in 8 bytes, and the elements."""
    storages: dict[str, Storage] = {}
    magic, protocol, machine, root, keys = (_walk(data, storages) for _ in range(5))
    if (magic, protocol, machine["little_endian"]) != (LEGACY_MAGIC, LEGACY_PROTOCOL, True):
        raise ValueError("not a file of torch.save")
    offsets, position = {}, data.tell()
    for key in keys:
        if type(key) is not str or key not in storages:
            raise ValueError("it stores numbers that it does not declare")
        (numel,) = struct.unpack_from("<q", data, position)
        offsets[key] = position + 8
        position += 8 + numel * storages[key].dtype.itemsize
        if numel != storages[key].numel or position > len(data):
            raise ValueError(f"{storages[key].numel} numbers are declared where the file has {numel} or ends")

    def read(storage: Storage) -> Tensor:
        return torch.frombuffer(data, dtype=storage.dtype, count=storage.numel, offset=offsets[storage.key])

    return root, read


def _walk(stream: BinaryIO, storages: dict[str, Storage]) -> object:
    """One pickle, up to its STOP, as plain data: dicts, lists, tuples, texts, numbers, Name, Call, Storage.

    Knows the opcodes of protocol 2, which torch.save writes. storages: those in the pickle are added to it.
    """
    stack, marks, memo, n_steps = [], [], {}, 0

    def since_mark() -> list:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    for opcode, argument, _ in pickletools.genops(stream):
        n_steps += 1
        if n_steps > MAX_OPCODES:
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
            case "BINSTRING" | "SHORT_BINSTRING":  # texts of Python 2, in ImageNet weights of 2017
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
                stack[-1].extend(values)  # only a list on the stack has this method
            case "SETITEM" | "SETITEMS":
                values = since_mark() if opcode.name == "SETITEMS" else [stack.pop() for _ in "kv"][::-1]
                if type(stack[-1]) is dict:  # else items of a Call, which no tensor needs
                    stack[-1].update(_pairs(zip(values[::2], values[1::2], strict=True)))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_name(argument))
            case "REDUCE" | "NEWOBJ":
                args, function = stack.pop(), stack.pop()
                if function == "collections.OrderedDict":  # empty, or (Python 2) of a list of pairs
                    n_steps += sum(map(len, args))
                    stack.append(dict(_pairs(*args[:1])) if args else {})
                else:
                    stack.append(Call(function, args))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Call):  # else a state dict's _metadata
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(_persistent(stack.pop(), storages))
            case _:
                raise ValueError(f"opcode {opcode.name}, which torch.save never writes")
    raise ValueError("its pickle is cut off")


def _name(argument: str) -> Name:
    """The "module name" of a GLOBAL opcode -> Name; ValueError for one that a network has no use for."""
    name = Name(argument.replace(" ", "."))
    if name not in DTYPES and name not in TENSOR and name != PARAMETER and not HARMLESS.fullmatch(name):
        raise ValueError(f"it names {name[:80]!r}, which no weights need; nothing in it was run")
    return name


def _pairs(pairs: Iterable) -> Iterator[tuple[str | int, object]]:
    """Items of a dict. A key must be a text or a small number: hashing a nested tuple can take for ever, and
    large numbers can be chosen to have the same hash."""
    for key, value in pairs:
        if not (type(key) is str or type(key) is int and abs(key) < 2**31):
            raise ValueError("a dict whose keys are no texts")
        yield key, value


def _persistent(persistent_id: object, storages: dict[str, Storage]) -> object:
    """What torch.save stores outside of the pickle: storages, and (older format) classes with source code."""
    match persistent_id:
        case ("module", Name() as name, *_):
            return name
        case ("storage", Name() as kind, str(key), _, int(numel), *views) if views in ([], [None]):
            storage = Storage(DTYPES[kind], key, numel)
            if numel < 0 or storages.setdefault(key, storage) != storage:
                raise ValueError(f"storage {key[:40]!r} is declared twice, and otherwise the first time")
            return storage
    raise ValueError("something is stored outside of the pickle that is no storage")


def _named_calls(root: object) -> Iterator[tuple[str, object]]:
    """(name in the state dict, the Call that makes the tensor), for a state dict or a whole network."""
    if isinstance(root, dict):
        yield from ((str(name), call) for name, call in root.items())
        return
    todo, n_parts = [("", root)], 1
    while todo:
        prefix, module = todo.pop()
        if not isinstance(module, Call) or not isinstance(module.state, dict):
            raise ValueError(f"{prefix[:40] or 'what it holds'!r} is no network")
        groups = [module.state[key] for key in ("_parameters", "_buffers", "_modules")]
        n_parts += sum(map(len, groups))  # also those that are None: many layers may share one large dict
        if n_parts > MAX_PARTS:
            raise ValueError("a network with too many layers")
        tensors = groups[0] | groups[1]
        yield from ((f"{prefix}{name}", call) for name, call in tensors.items() if call is not None)
        for name, child in groups[2].items():
            if len(prefix) + len(name) > MAX_NAME:
                raise ValueError("a network within itself, or with too many layers")
            todo.append((f"{prefix}{name}.", child))


def _tensor(call: object, storages: dict[str, Tensor], read: Read) -> Tensor:
    """A Call of torch's own function for making a tensor -> the tensor, a view of its storage."""
    if isinstance(call, Call) and call.function == PARAMETER:
        call = call.args[0]
    if not isinstance(call, Call) or call.function not in TENSOR:
        raise ValueError("a weight that is no plain tensor")
    storage, offset, size, stride = call.args[:4]
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    if len(size) > 8 or any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
        raise ValueError("a tensor with an invalid size, stride or offset")
    end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > storage.numel or math.prod(size) and end > storage.numel:
        raise ValueError(f"a tensor of size {size} reaches past its {storage.numel} numbers")
    if storage.numel == 0 or 0 in size:
        return torch.empty(size, dtype=storage.dtype)
    if storage.key not in storages:
        storages[storage.key] = read(storage)
    return storages[storage.key].as_strided(size, stride, offset)

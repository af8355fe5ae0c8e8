"""Pickles are read, never run: torch.save's files are read to the bit, those made for harm are refused."""

import codecs
import io
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from llamaxr.errors import UserError
from llamaxr.files import pickled
from llamaxr.files.pickled import LEGACY_MAGIC, LEGACY_PROTOCOL, read_pickled

FORMATS = ("zip", "legacy")


class Call:
    """Pickles as the call of a function, which is what a hostile pickle is made of."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


class Outside:
    """Pickles as a persistent id."""

    def __init__(self, *id):
        self.id = id


class Writer(pickle.Pickler):
    def persistent_id(self, thing):
        return thing.id if isinstance(thing, Outside) else None


def pickled_bytes(root):
    out = io.BytesIO()
    Writer(out, protocol=2).dump(root)
    return out.getvalue()


def write(path, root, storages=None, how="zip"):
    """A file as torch.save would write it, of anything. storages: key -> float32 numbers, as bytes."""
    body = root if isinstance(root, bytes) else pickled_bytes(root)
    storages = storages or {}
    if how == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", body)
            for key, raw in storages.items():
                archive.writestr(f"archive/data/{key}", raw)
    else:
        head = [pickle.dumps(x, 2) for x in (LEGACY_MAGIC, LEGACY_PROTOCOL, {"little_endian": True})]
        tail = [struct.pack("<q", len(raw) // 4) + raw for raw in storages.values()]
        path.write_bytes(b"".join([*head, body, pickle.dumps(list(storages), 2), *tail]))
    return path


def storage(key="0", numel=6):
    return Outside("storage", torch.FloatStorage, key, "cpu", numel, *())


def tensor(size, stride, offset=0, numel=6):
    where = Outside("storage", torch.FloatStorage, "0", "cpu", numel)
    return Call(torch._utils._rebuild_tensor_v2, where, offset, size, stride, False, OrderedDict())


SIX = {"0": np.arange(6, dtype=np.float32).tobytes()}


def network():
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(a=nn.Conv2d(1, 3, 3), b=nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())))
    net.b[0].running_mean.normal_()
    net.register_buffer("absent", None)
    return net


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("as_network", [True, False])
def test_a_network_or_its_state_dict_is_read_in_either_format(tmp_path, how, as_network):
    net = network()
    torch.save(net if as_network else net.state_dict(), tmp_path / "w.pt",
               _use_new_zipfile_serialization=how == "zip")  # fmt: skip
    tensors, truth = read_pickled(tmp_path / "w.pt"), net.state_dict()
    assert tensors.keys() == truth.keys()
    assert all(torch.equal(tensors[k], truth[k]) and tensors[k].dtype == truth[k].dtype for k in truth)


def test_views_and_half_precision_are_read(tmp_path):
    matrix = torch.randn(4, 6)
    truth = {"t": matrix.t(), "part": matrix[1:3, 2:], "half": matrix.half(), "bf16": matrix.bfloat16(),
             "empty": torch.empty(0, 3), "one": torch.tensor(7)}  # fmt: skip
    torch.save({k: truth[k] for k in ("t", "half", "bf16", "empty", "one")}, tmp_path / "w.pt")
    tensors = read_pickled(tmp_path / "w.pt")
    assert all(torch.equal(t, truth[k]) for k, t in tensors.items())
    torch.save({"part": truth["part"]}, tmp_path / "p.pt")
    assert torch.equal(read_pickled(tmp_path / "p.pt")["part"], truth["part"])


def test_python_2s_ordered_dict_is_read(tmp_path):  # of pairs, and texts as bytes
    body = (
        b"\x80\x02ccollections\nOrderedDict\n]](U\x01wctorch._utils\n_rebuild_tensor\n((U\x07storagectorch\n"
        b"FloatStorage\nU\x010U\x03cpuK\x06NtQK\x00K\x02K\x03\x86K\x03K\x01\x86tRea\x85R."
    )
    tensors = read_pickled(write(tmp_path / "w.pth", body, SIX, "legacy"))
    assert torch.equal(tensors["w"], torch.arange(6.0).view(2, 3))


def hostile(marker):
    """Name of what is refused -> the pickle. Each would leave the file `marker` behind if it ran."""
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    net = nn.ReLU()
    net.extra = Call(os.system, touch)
    return {
        "posix.system": Call(os.system, touch),
        "builtin__.eval": {"w": Call(eval, code)},
        "builtin__.getattr": (
            b"\x80\x02c__builtin__\ngetattr\nc__builtin__\n__import__\nX\x02\0\0\0os\x85RX\x06\0\0\0system\x86R"
            + b"X"
            + struct.pack("<I", len(touch))
            + touch.encode()
            + b"\x85R."
        ),
        "_codecs.decode": Call(codecs.decode, b"x", "hex"),
        "torch.hub.load": {"w": Call(torch.hub.load, str(marker), "x")},
        "torch.serialization.load": Call(torch.load, str(marker)),
        f"{type(marker).__module__}.PosixPath": Call(type(marker), "a", "b"),  # pathlib's own place for it
        "posix.system ": net,  # in a place that no state dict shows
        "no plain tensor": {"w": Call(np.savetxt, str(marker), [1])},
    }


@pytest.mark.parametrize("how", FORMATS)
def test_what_a_pickle_would_run_is_refused_by_name_and_never_run(tmp_path, how):
    marker = tmp_path / "harm"
    for name, root in hostile(marker).items():
        path = write(tmp_path / "w.pt", root, how=how)
        with pytest.raises(UserError, match=name.strip()) as refusal:
            read_pickled(path)
        assert "w.pt" in str(refusal.value) and "\n" not in str(refusal.value)
        assert not marker.exists()


def test_these_pickles_do_harm_where_they_are_run(tmp_path):  # else the test above would prove nothing
    marker = tmp_path / "harm"
    for name in ("posix.system", "builtin__.eval"):
        pickle.loads(pickled_bytes(hostile(marker)[name]))
        assert marker.exists()
        marker.unlink()


@pytest.mark.parametrize("how", FORMATS)
def test_calls_beside_the_weights_stay_records(tmp_path, how):
    marker = tmp_path / "harm"
    net = nn.Linear(1, 1)
    net.extra = Call(np.savetxt, str(marker), [1])  # a name that networks may hold
    net.state = {"__setstate__": np.savetxt, "__reduce__": np.savetxt, "__class__": nn.Linear}
    torch.save(net, tmp_path / "w.pt", _use_new_zipfile_serialization=how == "zip")
    assert read_pickled(tmp_path / "w.pt").keys() == {"weight", "bias"}
    assert not marker.exists()


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize(
    "size, stride, offset",
    [((2, 3), (3, 1), 1), ((2, 3), (4, 1), 0), ((7,), (1,), 0), ((2**40,), (1,), 0), ((2**62,), (0,), 0),
     ((-2, -3), (3, 1), 0), ((2, 3), (-3, -1), 5), ((6,), (1,), -1), ((2,), (2**63,), 0), ((6,), (1, 1), 0),
     ((1,) * 70, (1,) * 70, 0), ((2.0, 3), (3, 1), 0), ("66", "11", 0), (None, None, 0), ((True,), (1,), 0)],
)  # fmt: skip
def test_a_tensor_never_reaches_past_its_numbers(tmp_path, how, size, stride, offset):
    with pytest.raises(UserError, match="w.pt"):
        read_pickled(write(tmp_path / "w.pt", {"w": tensor(size, stride, offset)}, SIX, how))


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("numel", [5, 7, -6, 2**40, 2**70, "6", None])
def test_a_storage_is_as_large_as_the_file_says(tmp_path, how, numel):
    root = {"w": tensor((1,), (1,), numel=numel)}
    with pytest.raises(UserError, match="w.pt"):
        read_pickled(write(tmp_path / "w.pt", root, SIX, how))
    assert len(read_pickled(write(tmp_path / "w.pt", {"w": tensor((1,), (1,))}, SIX, how))) == 1


def test_a_storage_is_declared_once(tmp_path):
    root = {"a": tensor((1,), (1,)), "b": tensor((1,), (1,), numel=4)}
    with pytest.raises(UserError, match="otherwise"):
        read_pickled(write(tmp_path / "w.pt", root, SIX))


@pytest.mark.parametrize("how", FORMATS)
def test_a_file_cut_off_anywhere_is_refused(tmp_path, how):
    torch.save(network(), tmp_path / "intact.pt", _use_new_zipfile_serialization=how == "zip")
    intact = (tmp_path / "intact.pt").read_bytes()
    for length in [*range(0, len(intact), len(intact) // 60), len(intact) - 1]:
        (tmp_path / "w.pt").write_bytes(intact[:length])
        with pytest.raises(UserError, match="w.pt"):
            read_pickled(tmp_path / "w.pt")


@pytest.mark.parametrize("how", FORMATS)
def test_damaged_bytes_give_a_user_error_or_tensors_and_nothing_else(tmp_path, how):
    torch.save(network(), tmp_path / "intact.pt", _use_new_zipfile_serialization=how == "zip")
    intact, rng = (tmp_path / "intact.pt").read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(intact)
        for _ in range(rng.choice((1, 4, 40))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "w.pt").write_bytes(damaged)
        try:
            assert read_pickled(tmp_path / "w.pt")
        except UserError:
            pass


def test_bombs_are_refused_before_they_go_off(tmp_path, monkeypatch):
    path = tmp_path / "w.pt"

    def refused(why):
        with pytest.raises(UserError, match=why):
            read_pickled(path)

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # a thousandth of what it unpacks to
        archive.writestr("archive/data.pkl", pickled_bytes({"w": tensor((1,), (1,), numel=2**20)}))
        archive.writestr("archive/data/0", bytes(2**22))
    refused("unpack to more")
    views = {f"w{i}": tensor((10_000,), (1,), numel=10_000) for i in range(100)}
    write(path, views, {"0": bytes(40_000)})  # 40 kB, viewed 100 times
    refused("larger than the file")
    inner = nn.Module()
    inner._modules["again"] = inner
    write(path, inner)
    refused("within itself")
    module = nn.Module()
    for _ in range(60):  # 2 ** 60 layers, if each is visited
        inner, module = module, nn.Module()
        module._modules.update(a=inner, b=inner)
    write(path, module)
    refused("too many layers")
    write(path, b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.")  # a key whose hash takes 2 ** 60 steps
    refused("no texts")
    tuples = b")" + b"q\x00h\x00\x86" * 60  # the same as a key of the older format's storages
    head = [pickle.dumps(x, 2) for x in (pickled.LEGACY_MAGIC, 1001, {"little_endian": True}, {})]
    path.write_bytes(b"".join(head) + b"\x80\x02](" + tuples + b"e.")
    refused("does not declare")
    large = (2**61 - 1).to_bytes(9, "little")  # whose multiples all have the hash 0
    write(path, b"\x80\x02}\x8a\x09" + large + b"K\x01s.")
    refused("no texts")
    shared = {f"p{i}": None for i in range(200)}
    layers = nn.Module()
    for i in range(300):  # 60,000 names, of which 500 are in the file
        layer = nn.Module()
        layer.__dict__["_parameters"] = shared
        layers._modules[str(i)] = layer
    write(path, layers)
    refused("too many layers")
    pairs = b"\x80\x02](K\x01K\x01\x86q\x01" + b"h\x01" * 30_000 + b"eq\x02"
    again = b"ccollections\nOrderedDict\nq\x03h\x02\x85R" + b"h\x03h\x02\x85R" * 100
    write(path, pairs + again + b".")  # few opcodes, three million items
    refused("opcodes")
    write(path, b"\x80\x02" + b"]" * (pickled.MAX_OPCODES + 1) + b".")
    refused("opcodes")
    write(path, b"\x80\x02X\xff\xff\xff\x7fshort.")  # a text of two GiB, it says
    refused("w.pt")
    write(path, b"\x80\x02Nr\xff\xff\xff\x7f.")  # a memo of two billion places
    refused("no network")
    monkeypatch.setattr(pickled, "MAX_FILE", 100)
    refused("more than any known")


@pytest.mark.parametrize(
    "opcodes",
    [b"\x80\x04\x8c\x02os\x8c\x06system\x93.", b"(S'x'\nios\nsystem\n.", b"\x80\x02\x82\x01.", b"."],
)
def test_opcodes_that_torch_never_writes_are_refused(tmp_path, opcodes):
    with pytest.raises(UserError, match="w.pt"):
        read_pickled(write(tmp_path / "w.pt", opcodes))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>404</html>", b"\x80\x02}.", bytes(1000)])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UserError, match="w.pt"):
        read_pickled(tmp_path / "w.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="w.pt do not exist"):
        read_pickled(tmp_path / "w.pt")

import errno
import json
import os
import re
import shutil

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llamaxr.errors import UserError
from llamaxr.lora import add_lora
from llamaxr.model import LlamaXR
from llamaxr.projector import Projector
from llamaxr.runs import checkpoint, unlike
from llamaxr.weights import load_llama
from tests.conftest import write_base

OPTIONS = {"base": "tiny", "rank": 4, "lora_alpha": 8.0}


def assemble(base, seed, rank=4, kind=torch.optim.AdamW):
    llama, tokenizer = load_llama(base)
    torch.manual_seed(seed)
    add_lora(llama, rank, 8.0)
    model = LlamaXR(Projector(8, 64, grid=2), llama, tokenizer, "tokens")
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = kind(trainable, lr=1e-2)
    for p in trainable:
        p.grad = torch.randn_like(p)
    return model, optimizer


@pytest.mark.parametrize("kind", [torch.optim.AdamW, AdamW8bit])
def test_what_is_saved_is_what_is_loaded_and_the_next_step_is_the_same(base, tmp_path, kind):
    model, optimizer = assemble(base, 1, kind=kind)
    optimizer.step()
    folder = checkpoint.save(tmp_path, model, OPTIONS, 1, 0.5, optimizer)
    other, other_optimizer = assemble(base, 2, kind=kind)
    assert checkpoint.load(folder, other, other_optimizer)["step"] == 1
    for p, q in zip(other.parameters(), model.parameters(), strict=True):
        q.grad = p.grad
    optimizer.step()
    other_optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("has_projector", [True, False])
def test_an_adapter_brings_the_projector_that_it_has_learned_to_read(base, tmp_path, has_projector):
    (trained, _), (model, _) = assemble(base, 1), assemble(base, 2)
    folder = checkpoint.save(tmp_path, trained, OPTIONS, 1, 0.5)
    if not has_projector:
        (folder / "projector.safetensors").unlink()
    fresh = {name: tensor.clone() for name, tensor in model.projector.state_dict().items()}
    checkpoint.load_adapter(folder, model, 4, 8.0)
    ours, theirs = checkpoint.adapter_tensors(model), checkpoint.adapter_tensors(trained)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    expected = trained.projector.state_dict() if has_projector else fresh
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.projector.state_dict().items())
    assert not torch.equal(fresh["place"], trained.projector.place)


def test_an_adapter_whose_projector_has_another_grid_or_is_damaged_is_refused(base, tmp_path):
    model, _ = assemble(base, 1)
    file = checkpoint.save(tmp_path, model, OPTIONS, 1, 0.5) / "projector.safetensors"
    model.projector = Projector(8, 64, grid=3)
    with pytest.raises(UserError, match="place has shape .* is it of another base, vision network or grid"):
        checkpoint.load_adapter(file.parent, model, 4, 8.0)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="projector.safetensors"):  # before anything is loaded
        checkpoint.read_adapter(file.parent, 4, 8.0)


def test_the_last_is_kept_whatever_its_loss(base, tmp_path):
    model, _ = assemble(base, 1)
    for step, loss in ((1, 0.9), (2, 0.3), (3, 0.5), (4, None)):
        checkpoint.save(tmp_path, model, OPTIONS, step, loss)
        assert [f.name for f in tmp_path.iterdir()] == [f"step-{step:06d}"]
        assert checkpoint.last(tmp_path).name == f"step-{step:06d}"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")],
)
def test_a_full_disk_leaves_the_old_checkpoint_and_no_half_one(base, tmp_path, monkeypatch, error):
    model, _ = assemble(base, 1)
    checkpoint.save(tmp_path, model, OPTIONS, 1, 0.5)

    def full(tensors, path, metadata):
        if path.name.startswith("projector.safetensors"):  # the adapter still had room
            path.write_bytes(b"half")
            raise error
        save_file(tensors, path)

    monkeypatch.setattr("llamaxr.files.tensors.save_file", full)
    with pytest.raises((OSError, UserError), match="No space left"):
        checkpoint.save(tmp_path, model, OPTIONS, 2, 0.4)
    assert [f.name for f in tmp_path.iterdir()] == ["step-000001"]
    checkpoint.load(tmp_path / "step-000001", model)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_before_the_old_one_goes(
    base, tmp_path, monkeypatch
):
    model, optimizer = assemble(base, 1)
    done, fsync, rename = [], os.fsync, os.rename
    name_of = lambda file: os.path.basename(os.readlink(f"/proc/self/fd/{file}"))
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(name_of(file)), fsync(file)))
    monkeypatch.setattr(os, "rename", lambda old, new: (done.append(f"rename {new.name}"), rename(old, new)))
    for step in (1, 2):
        done.clear()
        folder = checkpoint.save(tmp_path, model, OPTIONS, step, 1 / step, optimizer)
    files = len(list(folder.iterdir()))
    assert {*done[:files]} == {path.name for path in folder.iterdir()}
    assert done[files:] == ["rename step-000002", tmp_path.name, "rename step-000001.old.tmp"]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "projector.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_a_damaged_checkpoint_is_named(base, tmp_path, name, damage):
    model, _ = assemble(base, 1)
    file = checkpoint.save(tmp_path, model, OPTIONS, 1, 0.5) / name
    data = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"\xff" * 64)
    with pytest.raises(UserError, match="step-000001"):
        checkpoint.load(tmp_path / "step-000001", model)


def test_a_checkpoint_of_another_shape_or_version_is_refused(base, tmp_path):
    model, _ = assemble(base, 1)
    folder = checkpoint.save(tmp_path, model, OPTIONS, 1, 0.5)
    with pytest.raises(UserError, match="shape"):
        checkpoint.load(folder, assemble(base, 1, rank=2)[0])
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"version": 99}))
    with pytest.raises(UserError, match="99"):
        checkpoint.load(folder, model)


def test_a_checkpoint_of_another_base_is_refused(base, tmp_path):
    model, _ = assemble(base, 1)
    folder = checkpoint.save(tmp_path, model, OPTIONS, 1, 0.5)
    write_base(tmp_path / "wide", head_dim=32)
    with pytest.raises(UserError, match="shape"):
        checkpoint.load(folder, assemble(tmp_path / "wide", 1)[0])


@pytest.mark.parametrize("damage", ["missing", "truncated", "incomplete"])
def test_a_checkpoint_without_a_complete_optimiser_is_not_resumed_but_can_be_used(base, tmp_path, damage):
    model, optimizer = assemble(base, 1)
    folder = checkpoint.save(tmp_path, model, OPTIONS, 1, 0.5, optimizer)
    file = folder / "optimizer.safetensors"
    data = file.read_bytes()
    file.unlink()
    if damage == "truncated":
        file.write_bytes(data[:-9])
    elif damage == "incomplete":
        save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="step-000001"):
        checkpoint.load(folder, model, optimizer)
    assert checkpoint.load(folder, model)["step"] == 1


@pytest.mark.parametrize("values", [{"step": "one"}, {"step": None}, {"step": 2}])
def test_a_state_that_cannot_be_is_refused_by_its_folder(base, tmp_path, values):
    state = checkpoint.save(tmp_path, assemble(base, 1)[0], OPTIONS, 1, 0.5) / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | values))
    with pytest.raises(UserError, match="step-000001"):
        checkpoint.last(tmp_path)


def test_a_half_checkpoint_never_makes_the_others_unreadable(base, tmp_path, capsys):
    model, _ = assemble(base, 1)
    checkpoint.save(tmp_path, model, OPTIONS, 2, 0.5)
    (tmp_path / "step-000003").mkdir()  # as an older version left it, killed as it deleted one
    (tmp_path / "step-000004").mkdir()
    (tmp_path / "step-000004" / "state.json").write_text("{")
    assert checkpoint.last(tmp_path).name == "step-000002"
    err = capsys.readouterr().err
    assert err.count("warning: ") == 2 and "step-000003" in err and "It is left out" in err
    checkpoint.save(tmp_path, model, OPTIONS, 5, 0.1)
    assert checkpoint.last(tmp_path).name == "step-000005"


@pytest.mark.parametrize(
    "file",
    ["state.json", "adapter_model.safetensors", "projector.safetensors", "training_features.safetensors"],
)
def test_a_reader_takes_the_next_checkpoint_where_training_has_deleted_the_one_it_reads(
    base, tmp_path, monkeypatch, file
):
    writer, reader = assemble(base, 1)[0], assemble(base, 2)[0]
    known = {"mean.frontal": torch.ones(2)}
    checkpoint.save(tmp_path, writer, OPTIONS, 1, 0.5, known=known)
    real = "read_json" if "json" in file else "read_tensors"
    read, saved = getattr(checkpoint, real), []

    def read_late(path, *rest):
        if path.name == file and not saved:
            saved.append(True)
            checkpoint.save(tmp_path, writer, OPTIONS, 2, 0.4, known=known)  # deletes step 1
        return read(path, *rest)

    monkeypatch.setattr(unlike if "features" in file else checkpoint, real, read_late)
    loaded = checkpoint.load_last(tmp_path, reader)
    assert saved and loaded.folder.name == "step-000002"
    assert torch.equal(loaded.known.statistics["mean.frontal"], torch.ones(2))
    ours, theirs = checkpoint.adapter_tensors(reader), checkpoint.adapter_tensors(writer)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_deleted_run_folder_does_not_come_back_in_pieces(base, tmp_path):
    with pytest.raises(UserError, match="was deleted"):
        checkpoint.save(tmp_path / "gone", assemble(base, 1)[0], OPTIONS, 1, 0.5)
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, AdamW8bit])
@pytest.mark.parametrize("damage", ["shape", "dtype", "missing", "extra", "nan"])
def test_an_optimisers_state_of_another_shape_type_or_name_is_refused(base, tmp_path, kind, damage):
    model, optimizer = assemble(base, 1, kind=kind)
    optimizer.step()
    file = checkpoint.save(tmp_path, model, OPTIONS, 1, 0.5, optimizer) / "optimizer.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith((".exp_avg", ".state1")))
    change = {
        "shape": lambda t: t.flatten(), "dtype": lambda t: t.to(torch.float64),
        "nan": lambda t: torch.full_like(t, torch.nan, dtype=torch.float32),
    }  # fmt: skip
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        tensors["x.exp_avg"] = tensors[name]
    else:
        tensors[name] = change[damage](tensors[name])
    save_file({n: t.clone() for n, t in tensors.items()}, file)
    with pytest.raises(UserError, match="optimizer.safetensors.*start a new run"):
        checkpoint.load(file.parent, *assemble(base, 2, kind=kind))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float4_e2m1fn_x2, torch.float8_e8m0fnu])
def test_numbers_whose_finiteness_cannot_be_told_are_refused(base, tmp_path, dtype):
    model, _ = assemble(base, 1)
    file = checkpoint.save(tmp_path, model, OPTIONS, 1, 0.5) / "projector.safetensors"
    odd = torch.zeros(8, dtype=torch.uint8).view(dtype) if dtype != torch.complex64 else torch.ones(2) * 1j
    save_file({**load_file(file), "place": odd}, file)
    with pytest.raises(UserError, match=f"place has the type {dtype}, which no model has"):
        checkpoint.load(file.parent, model)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "projector.safetensors"])
def test_a_checkpoint_of_nan_is_refused_by_the_name_of_its_tensor(base, tmp_path, name):
    model, _ = assemble(base, 1)
    file = checkpoint.save(tmp_path, model, OPTIONS, 1, 0.5) / name
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    tensors[max(tensors)].flatten()[0] = torch.nan
    save_file(tensors, file)
    with pytest.raises(UserError, match=f"{name}: {re.escape(max(tensors))} holds NaN"):
        checkpoint.load(file.parent, model)


def test_a_checkpoint_that_a_killed_run_left_incomplete_is_ignored(base, tmp_path):
    model, _ = assemble(base, 1)
    (tmp_path / "step-000002.tmp").mkdir()
    (tmp_path / "step-000002.tmp" / "adapter_model.safetensors").write_bytes(b"half")
    checkpoint.save(tmp_path, model, OPTIONS, 1, 0.5)
    assert checkpoint.last(tmp_path).name == "step-000001"
    checkpoint.save(tmp_path, model, OPTIONS, 2, 0.4)  # the same step again takes its place
    checkpoint.load(checkpoint.last(tmp_path), model)


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    (tmp_path / "step-000001.tmp").mkdir()
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.last(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.read_config(tmp_path)


def test_the_hash_of_the_weights_changes_with_each_of_them(base):
    model, _ = assemble(base, 1)
    hashes = {checkpoint.sha256(model)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    for p in trainable:
        p.data.view(-1)[0] += 1
        hashes.add(checkpoint.sha256(model))
    assert len(hashes) == 1 + len(trainable)

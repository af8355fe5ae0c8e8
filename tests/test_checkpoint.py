import errno
import json
import shutil

import pytest
import torch

from llamaxr import checkpoint
from llamaxr.errors import UserError
from llamaxr.lora import add_lora
from llamaxr.model import LlamaXR
from llamaxr.projector import Projector
from llamaxr.weights import load_llama

OPTIONS = {"base": "tiny", "rank": 4, "lora_alpha": 8.0}


def assemble(base, seed, rank=4):
    llama, tokenizer = load_llama(base)
    torch.manual_seed(seed)
    add_lora(llama, rank, 8.0)
    model = LlamaXR(Projector(8, 64, grid=2), llama, tokenizer, "tokens")
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    for p in trainable:
        p.grad = torch.randn_like(p)
    return model, optimizer


def test_what_is_saved_is_what_is_loaded_and_the_next_step_is_the_same(base, tmp_path):
    model, optimizer = assemble(base, 1)
    optimizer.step()
    folder = checkpoint.save(tmp_path, model, OPTIONS, 1, 0.5, optimizer)
    other, other_optimizer = assemble(base, 2)
    assert checkpoint.load(folder, other, other_optimizer)["step"] == 1
    for p, q in zip(other.parameters(), model.parameters(), strict=True):
        q.grad = p.grad
    optimizer.step()
    other_optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_the_last_and_the_best_are_kept(base, tmp_path):
    model, _ = assemble(base, 1)
    for step, loss in ((1, 0.9), (2, 0.3), (3, 0.5), (4, None)):
        checkpoint.save(tmp_path, model, OPTIONS, step, loss)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["step-000002", "step-000004"]
    assert checkpoint.best(tmp_path).name == "step-000002"
    assert checkpoint.last(tmp_path).name == "step-000004"


def test_a_full_disk_leaves_the_old_checkpoint_and_no_half_one(base, tmp_path, monkeypatch):
    model, _ = assemble(base, 1)
    checkpoint.save(tmp_path, model, OPTIONS, 1, 0.5)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, model, OPTIONS, 2, 0.4)
    assert [f.name for f in tmp_path.iterdir()] == ["step-000001"]
    checkpoint.load(tmp_path / "step-000001", model)


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


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    (tmp_path / "step-000001.tmp").mkdir()
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.best(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.read_config(tmp_path)

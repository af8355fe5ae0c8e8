import bitsandbytes.optim
import torch

from llamaxr.fast.optimizer import adamw8bit


def test_its_steps_and_state_are_bitsandbytes_own():
    ends = []
    for kind in (adamw8bit, bitsandbytes.optim.AdamW8bit):
        torch.manual_seed(0)
        # the first is held in 8 bits, the second is too small for that, the third has no gradient
        parameters = [torch.nn.Parameter(torch.randn(n)) for n in (5000, 70, 5)]
        optimizer = kind([{"params": parameters[:1]}, {"params": parameters[1:]}], lr=1e-2, weight_decay=0.1)
        for step in range(3):
            optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
            for p in parameters[:2]:
                p.grad = torch.randn_like(p)
            optimizer.step()
        ends.append([*parameters, *(v for p in parameters for v in optimizer.state[p].values())])
    for ours, theirs in zip(*ends, strict=True):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


def test_it_does_not_wait_for_the_gpu(monkeypatch):
    waits = []
    monkeypatch.setattr("bitsandbytes.optim.optimizer.sync_gpu", waits.append)
    p = torch.nn.Parameter(torch.randn(5000))
    p.grad = torch.ones_like(p)
    adamw8bit([p]).step()
    assert waits == []

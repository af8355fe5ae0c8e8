"""One process of several: what each needs to know, and the few things that they do together.

    torchrun --nproc-per-node 8 -- train.py ...                 one machine with 8 GPUs
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -- train.py ...
                                                                two such machines; the same on each

torchrun starts the same program n times and tells each copy its number, its rank. All copies hold the whole
model and take the same steps; only the studies of a step are dealt out. Three sums make up for that: of the
target tokens, before the loss is divided by them; of the gradients; and of the loss itself, for the log.
After the second all copies have the same gradient, bit for bit, and so the same weights after the step. That
gradient is one process's but for rounding: the same numbers are added up in another order.

`--` is there because torchrun would take eval.py's --run for its own --run-path. On Ctrl-C all stop at the
same step; to end it and save, torchrun leaves them 30 seconds, or its --shutdown-timeout.

Several machines must see the same run and cache folders. Without torchrun every function here is what it is
for one process alone, which has nobody to wait for.
"""

import atexit
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm import tqdm

from ..errors import UserError

PATIENCE = timedelta(days=1)  # rank 0 may download a data set meanwhile; torchrun sees to those that died


def start(device: torch.device) -> torch.device:
    """Join the others, if torchrun started this process; gives the device, of CUDA each its own. From here on
    only rank 0 speaks on stdout."""
    if not dist.is_torchelastic_launched():
        return device
    local = dist.get_node_local_rank()
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"{torch.cuda.device_count()} CUDA devices here are too few for local rank {local}; "
                "lower torchrun's --nproc-per-node, or take --device cpu"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # gloo for what lies on the CPU, signals and counts, on a CUDA machine too: no kernel has to wait for it
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return device


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes, shows and speaks."""
    return rank() == 0


def warn(line: str) -> None:
    """A warning on stderr, from one process for all."""
    if is_main():
        tqdm.write(f"warning: {line}", file=sys.stderr)


def share(everything: list) -> list:
    """Of a list that all processes have, every n-th: this one's part of the work."""
    return everything[rank() :: size()]


def total(value: Tensor) -> Tensor:
    """The sum of all processes' values."""
    return _reduced(value, dist.ReduceOp.SUM)


def largest(value: int) -> int:
    """The largest of all processes' numbers: what one has seen, all know."""
    return int(_reduced(torch.tensor(value), dist.ReduceOp.MAX))


def sum_gradients(parameters: list[Tensor]) -> None:
    """Each parameter's gradient becomes the sum over all processes. They travel as one flat tensor: of
    hundreds of small ones, each would wait for the network's answer."""
    if size() > 1:
        flat = total(parameters_to_vector(p.grad for p in parameters))  # (n trainable numbers,)
        vector_to_parameters(flat, [p.grad for p in parameters])  # now views into it


def gather(value) -> list:
    """Everybody's value, by rank."""
    values = [value] * size()
    if size() > 1:
        with _others():
            dist.all_gather_object(values, value)
    return values


def from_main(make: Callable):
    """make() as rank 0 alone calls it; the others wait for what it gives."""
    values = [make() if is_main() else None]
    if size() > 1:
        with _others():
            dist.broadcast_object_list(values)
    return values[0]


@contextlib.contextmanager
def in_turns() -> Iterator[None]:
    """For what is made once and then found: rank 0 first, then one process of each machine, which finds it
    where the disk is shared, then all others at once."""
    turn = 0 if is_main() else 1 if dist.get_node_local_rank() == 0 else 2
    for _ in range(turn):
        gather(None)
    yield
    for _ in range(turn, 2):
        gather(None)


def _reduced(value: Tensor, how: dist.ReduceOp) -> Tensor:
    if size() > 1:
        value = value.clone()
        with _others():
            dist.all_reduce(value, how)
    return value


@contextlib.contextmanager
def _others() -> Iterator[None]:
    """Around what all must take part in: if another has ended, it has said why; a traceback would hide it."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"another process of this run ended; see what it said ({error})") from None

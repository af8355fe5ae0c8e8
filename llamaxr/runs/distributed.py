"""Data-parallel training: what each process must know of the others, and the collectives that they share.

    torchrun --nproc-per-node 8 -- train.py ...                 one machine with 8 GPUs
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -- train.py ...
                                                                two such machines; the same command on each

torchrun starts n copies of the program and gives each its rank. Every copy holds the whole model and takes
every step; only the studies of a step are sharded. Three sums per step make up for that: the number of
target tokens, before the loss is divided by it; the gradients; and the loss itself, for the log. After the
second, all copies have the same gradient, bit for bit, and so the same weights after the step. It equals the
gradient of a single process up to rounding, because the same numbers are added in another order.

The `--` keeps torchrun from reading eval.py's --run as its own --run-path. On Ctrl-C all processes stop at
the same step. They have 30 seconds (torchrun's --shutdown-timeout) to finish it and save.

Several machines must share the run folder and the cache folder. Without torchrun, every function here acts
as for a single process.
"""

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm import tqdm

from ..errors import UserError
from .terminal import lacks_memory

TIMEOUT = timedelta(days=1)  # rank 0 may be downloading a data set; torchrun itself notices dead processes
LEAVE_SECONDS = 300  # a process that does not fail takes no time to leave


def init(device: torch.device) -> torch.device:
    """Join the process group if torchrun started this process. Returns the device to use: on CUDA, each
    process has its own. From here on only rank 0 prints to stdout. UserError where there are too few GPUs."""
    if not dist.is_torchelastic_launched():
        return device
    if dist.is_initialized():  # the second call gives the same device
        return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
    local_rank = dist.get_node_local_rank()
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"this machine has {torch.cuda.device_count()} CUDA devices, too few for local rank "
                f"{local_rank}; lower torchrun's --nproc-per-node, or use --device cpu"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    # gloo for tensors on the CPU (signals, counts), even on a CUDA machine: they need not wait for a kernel
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    atexit.register(_leave)
    if not is_main_process():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return device


def _leave() -> None:
    """Leave the process group, or end after LEAVE_SECONDS. NCCL waits here for the machine's other processes.
    If this one has failed, they wait for it, and torchrun stops them only once it has ended."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LEAVE_SECONDS)
    dist.destroy_process_group()
    signal.alarm(0)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def processes_of_machine() -> int:
    """How many processes share this machine's memory."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_initialized() else 1  # torchrun's


def is_main_process() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def warn(line: str) -> None:
    """Print a warning to stderr, once for all processes."""
    if is_main_process():
        tqdm.write(f"warning: {line}", file=sys.stderr)


def shard(values: list) -> list:
    """This process's part of a list that all processes have: every world_size-th value, from rank on."""
    return values[rank() :: world_size()]


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum of the value over all processes."""
    return _all_reduce(value, dist.ReduceOp.SUM)


def all_reduce_max(value: int) -> int:
    """The largest value of all processes."""
    return int(_all_reduce(torch.tensor(value), dist.ReduceOp.MAX))


def all_reduce_gradients(parameters: list[Tensor]) -> None:
    """Replace each parameter's gradient by its sum over all processes. The gradients travel as one flat
    tensor: hundreds of small ones would each wait for the network."""
    if world_size() > 1:
        flat = all_reduce_sum(parameters_to_vector(p.grad for p in parameters))  # (n_trainable,)
        vector_to_parameters(flat, [p.grad for p in parameters])  # the gradients are now views of it


def all_gather(value) -> list:
    """The values of all processes, by rank."""
    values = [value] * world_size()
    if world_size() > 1:
        with _one_line_if_another_died():
            dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every process has come here."""
    all_gather(None)


def broadcast(make: Callable):
    """The value of make(), which only rank 0 calls, on every process."""
    values = [make() if is_main_process() else None]
    if world_size() > 1:
        with _one_line_if_another_died():
            dist.broadcast_object_list(values)
    return values[0]


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """For files that one process makes and the others find: rank 0 runs the body first, then one process per
    machine (which finds the files if the disk is shared), then all others at once."""
    turn = 0 if is_main_process() else 1 if dist.get_node_local_rank() == 0 else 2
    for _ in range(turn):
        barrier()
    yield
    for _ in range(turn, 2):
        barrier()


def _all_reduce(value: Tensor, operation: dist.ReduceOp) -> Tensor:
    if world_size() > 1:
        value = value.clone()
        with _one_line_if_another_died():
            dist.all_reduce(value, operation)
    return value


@contextlib.contextmanager
def _one_line_if_another_died() -> Iterator[None]:
    """A process that died has printed why; a traceback of those that waited for it would hide that."""
    try:
        yield
    except RuntimeError as error:
        if lacks_memory(error):  # NCCL takes its buffers at the first sum
            raise
        raise UserError(f"another process of this run ended; its own message says why ({error})") from None

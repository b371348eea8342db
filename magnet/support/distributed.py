"""Several processes that play one game, on the GPUs of one machine or of several.

    torchrun --nproc-per-node=K train.py ...

Each process has its share of a batch's rows. All draw the same random numbers, for the whole batch, and take those of
their own rows. Gradients and statistics are of the whole batch. So K processes play the game of one, but for rounding,
and each has all that a checkpoint holds; the first alone writes. With one process the functions here change nothing.
"""

import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from magnet.support.errors import UserError

TIMEOUT = timedelta(days=1)  # of processes that wait, e.g. while the first decodes all images or scores the run


def world_size() -> int:
    """Returns K, how many processes play together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns the place of this process among them, from 0. The first writes and prints."""
    return dist.get_rank() if world_size() > 1 else 0


def local_rows(rows: Tensor) -> Tensor:
    """Returns this process's rows (B / K, ...) of the whole batch's (B, ...): every K-th.

    So every process has the same share of each part of a batch (fresh rows, then replayed ones), in the same order, if
    K divides all parts.
    """
    return rows[rank() :: world_size()]


def all_gather_rows(rows: Tensor) -> Tensor:
    """Inverts `local_rows`: (B / K, ...) on each process -> (B, ...). It can be differentiated any number of times.

    Gradients are those of the sum of all processes' objectives.
    """
    return AllGatherRows.apply(rows) if world_size() > 1 else rows


class AllGatherRows(torch.autograd.Function):
    """Computes `all_gather_rows`. Its transpose is AllReduceLocalRows."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        result = rows.new_empty(world_size(), *rows.shape)
        if rows.numel() and not rows.is_meta:  # meta tensors only count memory (summary.py); PyTorch 2.10 refuses them
            dist.all_gather(list(result), rows.contiguous())
        return result.transpose(0, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return AllReduceLocalRows.apply(gradient)


class AllReduceLocalRows(torch.autograd.Function):
    """Sums all processes' tensors (B, ...) and returns this process's rows (B / K, ...). Transposes AllGatherRows."""

    @staticmethod
    def forward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        if not total.is_meta:
            dist.all_reduce(total)
        return local_rows(total)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return AllGatherRows.apply(gradient)


@torch.no_grad()
def all_reduce_mean(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its mean over the processes, all of them in one message."""
    if world_size() == 1:
        return
    tensors = list(tensors)
    message = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(message)
    message /= world_size()
    for tensor, mean in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def all_reduce_max(*numbers: int) -> list[int]:
    """Returns the largest of each number over the processes, which wait here for one another; GPUs do not."""
    if world_size() == 1:
        return list(numbers)
    message = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(message, dist.ReduceOp.MAX)
    return message.tolist()


@contextmanager
def first_on_machine() -> Iterator[None]:
    """Lets the first process of each machine finish the block before the others begin it."""
    is_first = world_size() == 1 or os.environ["LOCAL_RANK"] == "0"
    if not is_first:
        all_reduce_max(0)
    yield
    if is_first:
        all_reduce_max(0)


@contextmanager
def join_group() -> Iterator[None]:
    """Lets the processes that torchrun started play together in the block. All but the first are silent.

    The first one that fails says why. The others mostly fail by the same mistake, or because that one is gone.
    """
    from torch.distributed.rendezvous import rendezvous

    local = int(os.environ["LOCAL_RANK"])
    if local < torch.cuda.device_count():
        torch.cuda.set_device(local)  # what "cuda" means from here on
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    store, number, count = next(rendezvous("env://"))
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=TIMEOUT)
    devnull = open(os.devnull, "w", encoding="utf-8", errors="replace")
    try:
        with redirect_stdout(devnull if number else sys.stdout), redirect_stderr(devnull if number else sys.stderr):
            yield
    except BaseException:
        try:
            is_first_failure = store.add("failures", 1) == 1
        except RuntimeError:  # the store went with its process
            is_first_failure = False
        if not is_first_failure:
            sys.stderr = devnull
        raise
    finally:
        dist.destroy_process_group()


def leave_after(program: Callable[[], int]) -> NoReturn:
    """Ends the process with the status of `program`, without Python's own end: there gloo aborted one in 16 (2.15)."""
    try:
        status = program()
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_uneven(config, batch: int) -> bool:
    """Whether the processes cannot share out `batch` rows, or the replayed ones among them."""
    return any(rows % world_size() for rows in (batch, round(config.replay_fraction * batch)))


def require_even_shares(config) -> None:
    """Raises UserError if the processes cannot share out a batch of `config`, or the GPUs."""
    if world_size() == 1:
        return
    gpus, size = torch.cuda.device_count(), config.batch_size
    if config.device not in ("cpu", "cuda") or config.device == "cuda" and int(os.environ["LOCAL_RANK"]) >= gpus:
        raise UserError(
            f"--device {config.device}: each process needs a GPU of its own, and here are {gpus}; give train.py "
            f"--device cuda, and torchrun at most --nproc-per-node {gpus}; or train.py --device cpu."
        )
    if is_uneven(config, size):
        enough = next(larger for larger in itertools.count(size) if not is_uneven(config, larger))
        raise UserError(
            f"{world_size()} processes cannot share out --batch-size {size}, of which "
            f"{round(config.replay_fraction * size)} rows are replayed: give --batch-size {enough}."
        )


def require_equal(**values) -> None:
    """Raises UserError if `values` are not the same on every process: then they would play different games."""
    if world_size() == 1:
        return
    all_values = [None] * world_size()
    dist.all_gather_object(all_values, values)
    for others in all_values:
        if names := [name for name in values if others[name] != values[name]]:
            raise UserError(
                f"The processes do not have the same {', '.join(names)}: start train.py with the same words on every "
                "machine, and give all of them the same files."
            )

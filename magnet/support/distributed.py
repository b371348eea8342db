"""Several processes that play one game, on the GPUs of one machine or of several.

    torchrun --nproc-per-node=K train.py ...

Each has its share of a batch's rows. All draw the same random numbers, for the whole batch, and take those of their own
rows; gradients are averaged, and statistics over the batch are of the whole batch. So K processes play the game of one,
but for rounding, and each holds all that a checkpoint holds; the first alone writes. With one process the functions
here leave everything as it is.
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

PATIENCE = timedelta(days=1)  # of processes that wait, e.g. while the first decodes all images or scores the run


def world_size() -> int:
    """K, how many processes play together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The place of this process among them, from 0. The first writes and prints."""
    return dist.get_rank() if world_size() > 1 else 0


def local_rows(rows: Tensor) -> Tensor:
    """This process's rows (B / K, ...) of the whole batch's (B, ...): every K-th.

    So of each part of a batch (fresh rows, then replayed ones) every process has the same share, in the same order, as
    long as K divides all parts.
    """
    return rows[rank() :: world_size()]


def all_gather_rows(rows: Tensor) -> Tensor:
    """The inverse of `local_rows`: (B / K, ...) on each process -> (B, ...). Can be differentiated any number of times.

    Gradients are those of the sum of what all processes make of it.
    """
    return AllGatherRows.apply(rows) if world_size() > 1 else rows


class AllGatherRows(torch.autograd.Function):
    """`all_gather_rows`, whose transpose is AllReduceLocalRows."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        """(B / K, ...) -> (B, ...)."""
        gathered = rows.new_empty(world_size(), *rows.shape)
        if rows.numel() and not rows.is_meta:  # those only count memory (summary.py), and PyTorch 2.10 refuses them
            dist.all_gather(list(gathered), rows.contiguous())
        return gathered.transpose(0, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        """Of all processes' gradients at the gathered rows those at the local ones."""
        return AllReduceLocalRows.apply(gradient)


class AllReduceLocalRows(torch.autograd.Function):
    """This process's rows of the sum of all processes' tensors; its transpose is AllGatherRows."""

    @staticmethod
    def forward(ctx, gradient: Tensor) -> Tensor:
        """(B, ...) -> (B / K, ...)."""
        total = gradient.clone(memory_format=torch.contiguous_format)
        if not total.is_meta:
            dist.all_reduce(total)
        return local_rows(total)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        """Each process's gradient reaches all of them."""
        return AllGatherRows.apply(gradient)


@torch.no_grad()
def all_reduce_mean(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its mean over the processes, all of them in one message."""
    if world_size() == 1:
        return
    tensors = list(tensors)
    message = torch.cat([one.flatten() for one in tensors])
    dist.all_reduce(message)
    message /= world_size()
    for one, mean in zip(tensors, message.split([one.numel() for one in tensors]), strict=True):
        one.copy_(mean.view_as(one))


def all_reduce_max(*numbers: int) -> list[int]:
    """The largest of each number over the processes, which wait here for one another; GPUs do not."""
    if world_size() == 1:
        return list(numbers)
    message = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(message, dist.ReduceOp.MAX)
    return message.tolist()


@contextmanager
def first_on_machine() -> Iterator[None]:
    """Within, the first process of each machine is done before the others begin."""
    others = world_size() > 1 and os.environ["LOCAL_RANK"] != "0"
    if others:
        all_reduce_max(0)
    yield
    if not others:
        all_reduce_max(0)


@contextmanager
def group() -> Iterator[None]:
    """Within, the processes that torchrun started play together. All but the first are silent.

    Of those that fail the first tells why: mostly the others fail by the same mistake, or because that one is gone.
    """
    from torch.distributed.rendezvous import rendezvous

    local = int(os.environ["LOCAL_RANK"])
    if local < torch.cuda.device_count():
        torch.cuda.set_device(local)  # what "cuda" means from here on
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    store, number, count = next(rendezvous("env://"))
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)
    nowhere = open(os.devnull, "w", encoding="utf-8", errors="replace")
    try:
        with redirect_stdout(nowhere if number else sys.stdout), redirect_stderr(nowhere if number else sys.stderr):
            yield
    except BaseException:
        try:
            told = store.add("failures", 1) > 1
        except RuntimeError:  # the store went with its process
            told = True
        if told:
            sys.stderr = nowhere
        raise
    finally:
        dist.destroy_process_group()


def leave_after(program: Callable[[], int]) -> NoReturn:
    """Ends the process with `program`'s status, but without Python's own end: there gloo aborted one in 16 (2.15)."""
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


def uneven(config, batch: int) -> bool:
    """Whether the processes cannot share out `batch` rows, the replayed ones among them too."""
    replayed = round(config.replay_fraction * batch)
    return batch % world_size() > 0 or replayed % world_size() > 0


def refuse_uneven(config) -> None:
    """Raises UserError if the processes cannot share out a batch of `config`, or the GPUs."""
    if world_size() == 1:
        return
    gpus = torch.cuda.device_count()
    if config.device not in ("cpu", "cuda") or config.device == "cuda" and int(os.environ["LOCAL_RANK"]) >= gpus:
        raise UserError(
            f"--device {config.device}: each process needs a GPU of its own, and here are {gpus}; give train.py "
            f"--device cuda, and torchrun at most --nproc-per-node {gpus}; or train.py --device cpu."
        )

    if uneven(config, config.batch_size):
        enough = next(batch for batch in itertools.count(config.batch_size) if not uneven(config, batch))
        raise UserError(
            f"{world_size()} processes cannot share out --batch-size {config.batch_size}, of which "
            f"{round(config.replay_fraction * config.batch_size)} rows are replayed: give --batch-size {enough}."
        )


def refuse_differing(**values) -> None:
    """Raises UserError if `values` are not the same on every process: then they would play different games."""
    if world_size() == 1:
        return
    everyones = [None] * world_size()
    dist.all_gather_object(everyones, values)
    for other in everyones:
        differing = [name for name in values if other[name] != values[name]]
        if differing:
            raise UserError(
                f"The processes do not have the same {', '.join(differing)}: start train.py with the same words on "
                f"every machine, and give all of them the same files."
            )

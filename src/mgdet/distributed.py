"""One process or many: joining the others, starting them, and agreeing with them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mgdet.errors import TrainingError, UserError, shortage

USER_ERROR, LOST_PEER = 2, 1
SIGNS_OF_A_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError")
SECONDS_FOR_TORCHRUN = 5
"""How long torchrun may take to notice that a process failed, and to end the others."""
SECONDS_TO_SAVE = 600
"""How long processes that are asked to stop may take to end their step and to save, before torchrun kills them. Older
versions of torch, such as 2.9, always give them 30 seconds."""
LONGEST_WAIT = timedelta(hours=1)
"""How long processes wait for each other, e.g. while the first one downloads a teacher."""

Result = TypeVar("Result")


def usual_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run, seen from one of them.

    rank: number of this process, 0 .. size - 1.
    size: number of processes.
    device: the device of this process.
    local_rank: number of this process on its machine, from 0.
    """

    rank: int
    size: int
    device: torch.device
    local_rank: int = 0

    @classmethod
    def alone(cls) -> World:
        """One process, on a GPU if there is one."""
        return cls(rank=0, size=1, device=usual_device())

    @property
    def main(self) -> bool:
        """Is this the process that writes and speaks?"""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.size > 1:
            dist.barrier()

    def in_turn(self, make: Callable[[], Result]) -> Result:
        """What `make` returns, made by the first process of each machine and then by the others.

        So each machine downloads a file once.
        """
        if self.local_rank > 0:
            self.barrier()
        result = make()
        if self.local_rank == 0:
            self.barrier()
        return result

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all processes, in each of them."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def share_buffers(self, module: nn.Module) -> None:
        """Gives every process the first one's buffers of a module, e.g. the statistics of its batch norms."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes by rank, in each of them; any picklable object."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values


@contextmanager
def join() -> Iterator[World]:
    """Joins the processes that torchrun started, NCCL on GPUs and gloo on CPUs; alone without torchrun.

    Raises:
        UserError: this machine has fewer GPUs than processes.
    """
    rank, size, local_rank = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        if device.index >= torch.cuda.device_count():
            raise UserError(f"process {device.index} of this machine has no GPU: it has {torch.cuda.device_count()}")
        torch.cuda.set_device(device)
    if size == 1:
        yield World(rank=0, size=1, device=device)
        return
    # Tensors of GPUs travel by NCCL; barriers and objects by gloo, which needs no stream of a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield World(rank=rank, size=size, device=device, local_rank=local_rank)
    except (UserError, TrainingError):
        # Of processes that fail alike the first one says why, and torchrun ends the others while they wait here.
        if rank > 0:
            time.sleep(SECONDS_FOR_TORCHRUN)
        raise
    except (RuntimeError, MemoryError) as error:
        if shortage(error):
            if rank > 0:
                time.sleep(SECONDS_FOR_TORCHRUN)
            raise
        if not any(sign in str(error) for sign in SIGNS_OF_A_LOST_PEER):
            raise
        # Another process failed, and has said why; torchrun ends this one while it waits.
        time.sleep(SECONDS_FOR_TORCHRUN)
        raise SystemExit(LOST_PEER) from None
    else:
        # Not after an error: NCCL waits here for the other processes, which may never come.
        dist.destroy_process_group()


def under_torchrun() -> bool:
    """Did torchrun start this process?"""
    return "TORCHELASTIC_RUN_ID" in os.environ


def leave(code: int) -> None:
    """Ends this process at once, if torchrun started it: for one that failed.

    An orderly exit takes down a process group whose peers may be gone; where that aborts, the exit code is lost.
    """
    if under_torchrun():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def launch(devices: int, arguments: Sequence[str]) -> int:
    """Runs `mgdet arguments` in `devices` processes of this machine with torchrun, and waits for them.

    Returns:
        The exit code: 0, or that of the first process that failed.

    Raises:
        UserError: there are not so many devices.
        TrainingError: a process was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        raise UserError(f"--devices is {devices}, but this machine has {torch.cuda.device_count()} GPUs")
    # Its reports of failed and stopped processes are pages long; the processes themselves have said what happened.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_SAVE))
    try:
        with tempfile.TemporaryDirectory(prefix="mgdet-") as scratch:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=devices,
                logs_specs=DefaultLogsSpecs(log_dir=scratch),  # by itself it leaves a folder behind
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                run_id=uuid.uuid4().hex,
                max_restarts=0,
                monitor_interval=0.2,
            )
            elastic_launch(config, sys.executable)("-m", "mgdet", *arguments)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        if USER_ERROR in codes.values():
            return USER_ERROR  # whatever the others then met
        rank, code = next(iter(codes.items()))
        if code < 0:
            ended_by = signal.Signals(-code).name
            raise TrainingError(f"process {rank} of {devices} was ended by {ended_by}, so all had to stop") from None
        return code
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0

"""Runs a function in the ranks of a gloo process group and collects what they return."""

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 120

# One server imports torch and transformers; ranks are forked from it, in well under a second.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch", "torch.distributed.fsdp", "transformers.modeling_utils", "runtime.training.packing"]
)


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any, context: BaseContext = _CONTEXT) -> list[Any]:
    """`function(*arguments)` in each of `size` processes, the default process group being theirs.

    The function is found by name, so it stands at the top of a module; results go through `torch.save`. A `spawn`
    context is for what has to be said before torch is imported. Raises AssertionError with the traceback of the first
    rank that failed, or that was not done in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_rank, args=(rank, size, Path(folder), function, arguments)) for rank in range(size)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + SECONDS
        for process in processes:
            process.join(max(deadline - time.monotonic(), 0))
        stuck = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
            process.join()
        errors = [
            path.read_text() for path in sorted(Path(folder).glob("error*"), key=lambda path: path.stat().st_mtime_ns)
        ]
        assert not errors, errors[0]
        assert not stuck, f"ranks {stuck} were not done after {SECONDS} s"
        return [torch.load(Path(folder) / f"result{rank}", weights_only=False) for rank in range(size)]


def _rank(rank: int, size: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=SECONDS),
        )
        torch.save(function(*arguments), folder / f"result{rank}")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (folder / f"error{rank}").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        raise SystemExit(1) from None

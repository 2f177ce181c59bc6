"""Runs the checks of many model types, each in a process of its own with limits.

A process is forked for each type from one that has imported what all need, so that it starts at
once, and whatever a type does to it, crash, hang or eat memory, is a row of the table.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from lxt.coverage.size import Size

__all__ = ["Limits", "sweep"]


@dataclass(frozen=True)
class Limits:
    """What one type may take.

    Attributes:
        seconds: of wall clock.
        gibibytes: of memory beyond what the process starts with.
    """

    seconds: float = 300.0
    gibibytes: float = 6.0


@dataclass
class _Worker:
    name: str
    process: Any
    pipe: Connection
    started: float


def sweep(
    names: Sequence[str], size: Size, *, jobs: int = 1, limits: Limits | None = None
) -> Iterator[Any]:
    """Check these model types, and yield the row of each as it is done, in any order.

    Args:
        names: of model types.
        size: how large the models are.
        jobs: how many run at once.
        limits: of each; a type that breaks them has a row that says so.

    """
    import torch

    from lxt.coverage.checks import Row

    limits = limits or Limits()
    # A fork has but one thread: one that had started torch's pool would wait for it in its child.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _import_what_all_need()
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    waiting = list(reversed(names))
    running: list[_Worker] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(name, size, limits, theirs))  # pyright: ignore[reportAttributeAccessIssue]
                process.start()
                theirs.close()
                running.append(_Worker(name, process, ours, time.monotonic()))
            wait([worker.pipe for worker in running], timeout=0.5)
            for worker in list(running):
                row = _result(worker, limits)
                if row is not None:
                    running.remove(worker)
                    yield Row(**row)
    finally:
        for worker in running:
            worker.process.kill()
        torch.set_num_threads(threads)


def _import_what_all_need() -> None:
    """Once, and not in each fork: a model's first forward pass imports some thousand modules."""
    import torch

    from lxt.coverage.build import build
    from lxt.coverage.inputs import example

    size = Size()
    model = build("llama", size)
    with torch.no_grad():  # autograd's engine must not have run where forks are made
        model(**example(model, "llama", size).leaves)


def _result(worker: _Worker, limits: Limits) -> dict[str, Any] | None:
    """The row of a worker that is done or was stopped; None for one that is at work."""
    row = None
    seconds = time.monotonic() - worker.started
    if worker.pipe.poll():
        with contextlib.suppress(EOFError):
            row = worker.pipe.recv()
        worker.process.join()
        if row is None:
            code = worker.process.exitcode
            row = _stopped(worker, f"its process ended with code {code} (crash or out of memory)")
    elif seconds > limits.seconds:
        worker.process.kill()
        worker.process.join()
        row = _stopped(worker, f"it took more than {limits.seconds:g} s")
    if row is not None:
        worker.pipe.close()
        row["seconds"] = round(seconds, 2)
    return row


def _stopped(worker: _Worker, reason: str) -> dict[str, Any]:
    return {"name": worker.name, "status": "failed", "reason": reason}


def _work(name: str, size: Size, limits: Limits, pipe: Connection) -> None:
    """In the worker: check one type and send its row."""
    _limit_memory(limits.gibibytes)
    _silence()
    from lxt.coverage.checks import check

    pipe.send(check(name, size).to_dict())
    pipe.close()


def _limit_memory(gibibytes: float) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    statm = Path("/proc/self/statm")  # of Linux; elsewhere the process is taken for empty
    now = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    bound = now + int(gibibytes * 2**30)
    with contextlib.suppress(ValueError, OSError):  # a system may refuse
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def _silence() -> None:
    """Models warn of much that is no concern of a tiny one's."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)

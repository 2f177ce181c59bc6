"""Measuring: time by turns, the bytes kept for the backward pass, and peaks of memory.

Only torch and the standard library are imported, so that this runs in a peer's environment too.

Bytes are counted in two ways that don't know of each other:

- `saved_bytes` asks autograd, and counts each distinct storage that a graph saved, whole and once;
- `allocations` asks the allocator what a piece of code took and hasn't given back. It sees what is
  kept in any other way too: attributes of a context, bases of views, closures, caches.
"""

from __future__ import annotations

import datetime
import gc
import os
import platform
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Spread:
    """A median between its quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The quartiles of some values, one at least."""
        values = list(values)
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


def ratios(seconds: Iterable[float], base: Iterable[float]) -> Spread:
    """The spread of the quotients, round by round: what slows a whole round down cancels."""
    return Spread.of(a / b for a, b in zip(seconds, base, strict=True))


def check_device(name: str) -> torch.device:
    """The device of that name, or an exit that says why not."""
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise SystemExit(f"these benchmarks measure on cpu or cuda, not on {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"{name!r}: torch {torch.__version__} finds no CUDA device here")
    return device


def synchronise(device: torch.device) -> None:
    """Wait until everything asked for so far is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """How long one call takes: between two CUDA events, or by the clock."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        synchronise(device)
        begin.record()
        step()
        end.record()
        synchronise(device)
        return begin.elapsed_time(end) / 1000
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def times_by_turns(
    steps: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each step in each round; every round begins with another one.

    The steps are to be warm: nothing is thrown away here.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds):
        first = turn % len(names)
        gc.collect()
        for name in names[first:] + names[:first]:
            seconds[name].append(seconds_of(steps[name], device))
    return seconds


def storage_bytes(tensors: Iterable[Tensor], constants: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages under some tensors, less those under the constants.

    A view counts with the whole storage that it keeps alive.
    """
    known = {_storage_key(tensor) for tensor in constants}
    sizes = {_storage_key(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(size for key, size in sizes.items() if key not in known)


def _storage_key(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


class _Saved:
    """What the graph holds in place of a saved tensor: it is alive as long as the graph wants it.

    The tensor is held detached. An operation that saves its own result, such as `rsqrt`, would
    otherwise hold a tensor that holds the operation: a cycle which no one frees, so that graphs
    would count that the code under measure has long let go of.
    """

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


def saved_bytes(forward: Callable[[], object], constants: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd holds for the backward pass of what `forward` returns.

    Distinct storages, whole, alive once `forward` has returned; `constants` (a model's parameters
    and buffers) don't count. What a graph saved and then let go of doesn't count either.
    """
    seen: list[weakref.ref[_Saved]] = []

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        seen.append(weakref.ref(saved))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        result = forward()
    gc.collect()  # graphs that only a cycle keeps are no one's
    alive = [saved.tensor for reference in seen if (saved := reference()) is not None]
    size = storage_bytes(alive, constants)
    del result
    return size


@dataclass(frozen=True)
class Allocations:
    """What the allocator gave out during a call, in bytes.

    Attributes:
        alive: taken by the call and not given back when it had returned.
        peak: the most that was taken at a time.

    """

    alive: int
    peak: int


def allocations(call: Callable[[], object], device: torch.device) -> Allocations:
    """What a call takes from torch's allocator, of this process's only running work.

    On CUDA its statistics. On the CPU the profiler's record of each allocation and release, which
    includes the workspaces that kernels take from the same allocator. What was there before counts
    as nothing, also when it goes.
    """
    if device.type == "cuda":
        gc.collect()
        synchronise(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        synchronise(device)
        alive, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        del result
        return Allocations(alive - before, peak - before)

    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events: list[Any] = profiler.profiler.kineto_results.events()
    steps = sorted((e.start_ns(), i, e.nbytes()) for i, e in enumerate(events) if _is_memory(e))
    held = peak = 0
    for _, _, size in steps:
        held += size
        peak = max(peak, held)
    del result
    return Allocations(held, peak)


def _is_memory(event: Any) -> bool:
    return event.name() == "[memory]"


@dataclass(frozen=True)
class Resident:
    """Resident memory of this process around a call, in bytes.

    Attributes:
        before: when it began.
        peak: the most during it.

    """

    before: int
    peak: int


def resident(call: Callable[[], object]) -> Resident | None:
    """Resident memory before a call and its peak during it; None where there is no /proc to ask.

    To be called once in a process: what the C library keeps of an earlier call for the next would
    hide a part of the peak.
    """
    if not (STATUS.exists() and CLEAR.exists()):
        return None
    gc.collect()
    CLEAR.write_text("5")  # the peak begins again at what is resident now
    before = _status("VmRSS")
    call()
    return Resident(before, _status("VmHWM"))


def _status(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} says nothing of {field}")


@dataclass(frozen=True)
class Machine:
    """Where and with what something was measured."""

    date: str
    system: str
    processor: str
    cores: int
    threads: int
    memory_gib: float
    accelerator: str | None
    python: str
    torch: str
    transformers: str

    @classmethod
    def here(cls, device: torch.device) -> Machine:
        """Of the running process, now."""
        import transformers

        cuda = device.type == "cuda"
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(
            date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            processor=_processor(),
            cores=os.cpu_count() or 0,
            threads=torch.get_num_threads(),
            memory_gib=round(pages / 2**30, 1),
            accelerator=torch.cuda.get_device_name(device) if cuda else None,
            python=platform.python_version(),
            torch=torch.__version__,
            transformers=transformers.__version__,
        )

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

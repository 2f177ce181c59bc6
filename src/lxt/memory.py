"""Memory: how much there is, and how much of it may be taken."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from lxt.errors import InvalidInput

__all__ = ["as_bytes", "free_memory"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", re.IGNORECASE)

_UNKNOWN_DEVICE = 2 * 2**30
"""The bytes taken to be free on a device that doesn't tell."""

_CONTROL_GROUPS = Path("/sys/fs/cgroup")

# Where a container sees its limit and what it uses, in both versions of control groups, and what
# of the latter are files that the kernel gives up when memory is short.
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def as_bytes(budget: Any, device: torch.device) -> int:
    """A memory budget in bytes: an integer, a text such as "2GiB" or "500 MB", or None.

    None stands for half of what is free on the device.

    Raises:
        InvalidInput: it is none of these, or not positive.

    """
    if budget is None:
        return free_memory(device) // 2
    size = None
    if isinstance(budget, int) and not isinstance(budget, bool):
        size = budget
    elif isinstance(budget, str) and (match := _SIZE.fullmatch(budget)):
        number, unit, binary = match.groups()
        factor = _UNITS[unit.upper()]
        if binary:
            factor = 2 ** (10 * "KMGT".index(unit.upper()) + 10) if unit else 0
        size = int(float(number) * factor)
    if size is None or size <= 0:
        raise InvalidInput(
            f"memory_budget is {budget!r}: give a positive number of bytes, or a text such as "
            '"2GiB"'
        )
    return size


def free_memory(device: torch.device) -> int:
    """The bytes that are free on a device, as far as it tells, and that this process may take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
            if name in getattr(os, "sysconf_names", ()):
                free = os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
                return min([free, *_left_to_container()])
    return _UNKNOWN_DEVICE


def _left_to_container() -> list[int]:
    """The bytes that a container's limits leave to it."""
    found = []
    for limit, usage, stat, cache in _LIMITS:
        try:
            most, used = (int((_CONTROL_GROUPS / name).read_text()) for name in (limit, usage))
            lines = (_CONTROL_GROUPS / stat).read_text().splitlines()
        except (OSError, ValueError):  # no such file, or "max"
            continue
        given_up = sum(int(line.split()[1]) for line in lines if line.startswith(f"{cache} "))
        found.append(max(0, most - used + given_up))
    return found

"""A progress bar on standard error, for work that takes more than a moment."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lxt.errors import InvalidInput

__all__ = ["as_progress", "progress_of"]

_MOMENT = 1.0
"""Seconds of work before a bar appears."""


def as_progress(wanted: Any) -> bool:
    """Whether to show a bar: as wanted, or by default (None) where somebody may look at it.

    Raises:
        InvalidInput: it is neither True, False nor None.

    """
    if wanted is None:
        return bool(getattr(sys.stderr, "isatty", bool)())
    if not isinstance(wanted, bool):
        raise InvalidInput(f"progress is {wanted!r}: give True, False, or None for the default")
    return wanted


@contextmanager
def progress_of(total: int | None, what: str, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Yield what to call with each number of steps done, out of `total`, if that is known."""
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn as TimeLeft,
    )

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeLeft()
    # Where nothing can be taken back, in a file for instance, only the end of it is written.
    bar = Progress(*columns, console=console, transient=console.is_terminal)
    task = bar.add_task(what, total=total)
    timer = threading.Timer(_MOMENT, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda steps: bar.advance(task, steps)
    finally:
        timer.cancel()
        timer.join()
        if bar.live.is_started:
            bar.stop()

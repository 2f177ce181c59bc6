"""What is in force in a forward pass beside the rules, and is to be so where parts run again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["Enter", "beside"]

Enter = Callable[[], AbstractContextManager[Any]]


class _Beside(threading.local):
    """Of this thread: what puts each of them in force again."""

    entered: tuple[Enter, ...] = ()

    def enters(self, enter: Enter) -> None:
        """One comes into force."""
        self.entered = (*self.entered, enter)

    def leaves(self, enter: Enter) -> None:
        """It is in force no longer."""
        self.entered = tuple(other for other in self.entered if other != enter)


beside = _Beside()

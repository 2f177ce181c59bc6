"""Values of a JSON document that know their place in it, to refuse what is wrong by name."""

import json
import sys
from collections.abc import Iterator
from typing import Any

from lxt.errors import InvalidInput

MOST_QUOTED = 60
"""Characters of a wrong value that a message quotes."""


class Node:
    """A value and its place, ``rows[0].relevance``; empty for the document itself.

    All methods raise `InvalidInput`, with the place and what is there, where it is not what they
    are named after.
    """

    def __init__(self, value: Any, place: str = "") -> None:
        self.value = value
        self.place = place

    def __getitem__(self, key: str) -> "Node":
        return Node(self.value[key], f"{self.place}.{key}" if self.place else key)

    def wrong(self, what: str) -> InvalidInput:
        """Return an error to raise."""
        return InvalidInput(f"{self.place}: {what}" if self.place else what)

    def is_not(self, what: str) -> InvalidInput:
        """Return an error to raise that quotes the value."""
        quoted = json.dumps(self.value)
        if len(quoted) > MOST_QUOTED:
            quoted = quoted[:MOST_QUOTED] + "…"
        return self.wrong(f"{quoted} is not {what}")

    def fields(self, names: tuple[str, ...], *, others: bool = False) -> "Node":
        """Return an object, this one, of these fields; with ``others`` it may have more."""
        if not isinstance(self.value, dict):
            raise self.is_not(f"an object of {', '.join(names)}")
        if lacking := [name for name in names if name not in self.value]:
            raise self.wrong(f"it lacks {', '.join(lacking)}")
        if not others and (unknown := [name for name in self.value if name not in names]):
            quoted = ", ".join(map(json.dumps, unknown))
            raise self.wrong(f"it has {quoted}, and should have only {', '.join(names)}")
        return self

    def items(self) -> Iterator["Node"]:
        """Return what is in a list."""
        return (Node(item, f"{self.place}[{i}]") for i, item in enumerate(self.list()))

    def list(self) -> list[Any]:
        """Return a list as it is."""
        if not isinstance(self.value, list):
            raise self.is_not("a list")
        return self.value

    def strings(self) -> "dict[str, str]":
        """Return an object whose values are strings, whatever its fields."""
        if not isinstance(self.value, dict):
            raise self.is_not("an object of strings")
        for key, text in self.value.items():
            Node(text, f"{self.place}[{json.dumps(key)}]").string()
        return self.value

    def string(self) -> str:
        """Return a string."""
        if not isinstance(self.value, str):
            raise self.is_not("a string")
        return self.value

    def number(self, largest: float = sys.float_info.max) -> float:
        """Return a number of at most this size."""
        # Compared, not converted: an integer may be too large for a float. And a bool is an int.
        if type(self.value) not in (int, float) or not -largest <= self.value <= largest:
            raise self.is_not(f"a number of at most {largest} in size")
        return self.value

    def integer(self, least: int, largest: int | None = None) -> int:
        """Return an integer; ``5.0`` is one too, as JSON has but one kind of numbers."""
        whole = self.value
        if type(whole) is float and whole.is_integer():
            whole = int(whole)
        if type(whole) is not int or whole < least or (largest is not None and whole > largest):
            to = "" if largest is None else f" to {largest}"
            raise self.is_not(f"an integer from {least}{to}")
        return whole

    def one_of(self, choices: "tuple[str, ...] | tuple[list[str], ...]") -> Any:
        """Return one of these."""
        if self.value not in choices:
            raise self.is_not(f"one of {', '.join(map(json.dumps, choices))}")
        return self.value


def document_of(text: str) -> Node:
    """Parse JSON; of the constants that only Python knows, such as NaN, none is a number.

    Raises:
        InvalidInput: it is no JSON.

    """
    try:
        return Node(json.loads(text, parse_constant=_no_number, object_pairs_hook=_object))
    except RecursionError:
        raise InvalidInput("it is nested too deeply") from None
    except ValueError as error:
        raise InvalidInput(f"it is not JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse what programs read differently: some take the first of two, some the last."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidInput(f"an object has {json.dumps(name)} twice")
        found[name] = value
    return found


def _no_number(constant: str) -> None:
    raise InvalidInput(f"{constant} is no number there")

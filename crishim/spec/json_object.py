"""Documents of administrators, read strictly: a field that is not known is refused by its path, never dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from crishim.errors import InvalidSpec


class Fields:
    """An object of a document; each field is asked for once, by the type that it must have.

    InvalidSpec names the path of a field: one of another type, one that is missing, or, by `end`, one nobody asked for.
    """

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise InvalidSpec(f"{path or 'the document'}: it is not an object")
        self._left = dict(value)
        self.path = path

    def place(self, name: str) -> str:
        """Path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def end(self) -> None:
        """No other fields may be left."""
        if self._left:
            raise InvalidSpec(f"{self.place(str(next(iter(self._left))))}: there is no such field")

    def has(self, name: str) -> bool:
        """Whether it is given, and not null."""
        return self._left.get(name) is not None

    def text(self, name: str, default: str | None = None, *, keep: bool = False) -> str:
        """A text without NUL; required without a default. keep: it is asked for once more."""
        given = self._left.get(name)
        value: str = self._take(name, default, lambda value: isinstance(value, str) and "\0" not in value, "a text")
        if keep and given is not None:
            self._left[name] = given
        return value

    def integer(self, name: str, lowest: int, highest: int) -> int | None:
        """A number within bounds, None when it is not given."""
        number: int | None = self._take(
            name,
            None,
            lambda value: type(value) is int and lowest <= value <= highest,
            f"a number within {lowest}..{highest}",
            required=False,
        )
        return number

    def flag(self, name: str) -> bool | None:
        """True or false, None when it is not given."""
        flag: bool | None = self._take(
            name, None, lambda value: isinstance(value, bool), "true or false", required=False
        )
        return flag

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts without NUL, () when it is not given."""
        return tuple(self._take(name, (), lambda value: isinstance(value, list) and _texts(value), "a list of texts"))

    def integers(self, name: str, highest: int) -> tuple[int, ...]:
        """A list of numbers from 0 on, () when it is not given."""

        def check(value: object) -> bool:
            return isinstance(value, list) and all(type(each) is int and 0 <= each <= highest for each in value)

        return tuple(self._take(name, (), check, f"a list of numbers within 0..{highest}"))

    def text_map(self, name: str) -> dict[str, str]:
        """An object of texts, {} when it is not given."""
        texts: dict[str, str] = self._take(
            name, {}, lambda value: isinstance(value, dict) and _texts((*value, *value.values())), "an object of texts"
        )
        return texts

    def objects(self, name: str) -> list[Fields]:
        """A list of objects, [] when it is not given."""
        values: list[Any] = self._take(name, [], lambda value: isinstance(value, list), "a list")
        return [Fields(value, f"{self.place(name)}[{index}]") for index, value in enumerate(values)]

    def inner(self, name: str) -> Fields | None:
        """An object, None when it is not given."""
        value = self._left.pop(name, None)
        return None if value is None else Fields(value, self.place(name))

    def _take(self, name: str, default: Any, check: Callable[[Any], bool], want: str, *, required: bool = True) -> Any:
        value = self._left.pop(name, None)
        if value is None:
            if required and default is None:
                raise InvalidSpec(f"{self.place(name)}: it is missing")
            return default
        if not check(value):
            raise InvalidSpec(f"{self.place(name)}: {repr(value)[:200]} is not {want}")
        return value


def _texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) and "\0" not in value for value in values)

"""Strict reading of JSON: every field has one type, and an error says which field is wrong."""

from __future__ import annotations

import json
import re
import sys
from typing import NoReturn

from sharespace.errors import CorruptStoreError

REMEDY = (
    "`sharespace verify` lists what is damaged; `sharespace rollback` goes back to a whole version"
)

_LARGEST = 2**63 - 1


def corrupt(file: str, why: str) -> CorruptStoreError:
    """The error for a file of a store that is not what was committed."""
    return CorruptStoreError(file, why, REMEDY)


def parse_json(data: bytes, file: str) -> object:
    """The value of a JSON text in UTF-8; refuses duplicate keys, NaN and Infinity.

    Raises:
        CorruptStoreError: it is not such a text.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_not_json)
    except RecursionError:
        raise corrupt(file, "not JSON: nested too deep") from None
    except ValueError as error:
        raise corrupt(file, f"not JSON: {str(error)[:200]}") from None


def dump_json(value: object) -> bytes:
    """JSON in ASCII with sorted keys; the same value always gives the same bytes.

    Raises:
        ValueError, TypeError, RecursionError: the value has no JSON.
    """
    text = json.dumps(value, ensure_ascii=True, sort_keys=True, indent=1, allow_nan=False)
    return text.encode("ascii") + b"\n"


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


class Fields:
    """One JSON object, read field by field. Fields that nobody asks for are ignored."""

    def __init__(self, value: object, file: str, where: str = "") -> None:
        self._file = file
        self._where = where
        if not isinstance(value, dict):
            self._refuse("", "an object", value)
        self._fields: dict[str, object] = value

    def _refuse(self, key: str, wanted: str, found: object) -> NoReturn:
        place = f"{self._where}.{key}".strip(".") or "the whole file"
        raise corrupt(self._file, f"{place}: must be {wanted}, found {_brief(found)}")

    def _get(self, key: str) -> object:
        if key not in self._fields:
            raise corrupt(self._file, f"{self._where}.{key}".strip(".") + ": missing")
        return self._fields[key]

    def has(self, key: str) -> bool:
        """Whether an optional field is there."""
        return key in self._fields

    def is_null(self, key: str) -> bool:
        return self._get(key) is None

    def text(self, key: str, pattern: re.Pattern[str] | None = None) -> str:
        value = self._get(key)
        if not isinstance(value, str):
            self._refuse(key, "text", value)
        if pattern is not None and not pattern.fullmatch(value):
            self._refuse(key, f"text like {pattern.pattern}", value)
        return value

    def one_of(self, key: str, *choices: str) -> str:
        value = self.text(key)
        if value not in choices:
            self._refuse(key, " or ".join(choices), value)
        return value

    def flag(self, key: str) -> bool:
        value = self._get(key)
        if not isinstance(value, bool):
            self._refuse(key, "true or false", value)
        return value

    def whole(self, key: str, least: int = 0) -> int:
        return self._whole(key, self._get(key), least)

    def _whole(self, key: str, value: object, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
            self._refuse(key, f"a whole number from {least}", value)
        return value

    def number(self, key: str) -> float:
        """A finite number that is not negative (an energy, a norm, a bound)."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._refuse(key, "a number", value)
        if not 0 <= value <= sys.float_info.max:
            self._refuse(key, "a finite number from 0", value)
        return float(value)

    def wholes(self, key: str, least: int = 0, count: int | None = None) -> tuple[int, ...]:
        values = self._list(key)
        if count is not None and len(values) != count:
            self._refuse(key, f"{count} whole numbers", values)
        return tuple(self._whole(f"{key}[{i}]", v, least) for i, v in enumerate(values))

    def pairs(self, key: str) -> tuple[tuple[int, int], ...]:
        """A list of lists of two whole numbers."""
        found = []
        for i, value in enumerate(self._list(key)):
            inner = Fields({str(i): value}, self._file, self._at(key))
            left, right = inner.wholes(str(i), count=2)
            found.append((left, right))
        return tuple(found)

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._list(key)
        return tuple(
            Fields({str(i): v}, self._file, self._at(key)).text(str(i))
            for i, v in enumerate(values)
        )

    def child(self, key: str) -> Fields:
        return Fields(self._get(key), self._file, self._at(key))

    def children(self, key: str) -> list[Fields]:
        return [
            Fields(v, self._file, f"{self._at(key)}[{i}]") for i, v in enumerate(self._list(key))
        ]

    def mapping(self, key: str) -> dict[str, object]:
        value = self._get(key)
        if not isinstance(value, dict):
            self._refuse(key, "an object", value)
        return value

    def _list(self, key: str) -> list[object]:
        value = self._get(key)
        if not isinstance(value, list):
            self._refuse(key, "a list", value)
        return value

    def _at(self, key: str) -> str:
        return f"{self._where}.{key}".strip(".")

    def wrong(self, key: str, why: str) -> NoReturn:
        """Refuse a field for a reason that only the caller knows."""
        raise corrupt(self._file, f"{self._at(key)}: {why}")


def _brief(value: object) -> str:
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python prints
        return "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."

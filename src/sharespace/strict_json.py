"""JSON with one meaning only, read field by field.

Python's reader takes the last of two equal keys, and the words NaN and Infinity. Files here may
come from other people: what two readers could understand in two ways is refused. Whoever reads
says which error a broken text is, by a function that makes it from the reason.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from typing import NoReturn, TypeAlias

ErrorMaker: TypeAlias = Callable[[str], Exception]
"""Makes the error for a text from the reason, for example ``lambda why: StoreError(path, why)``."""

# Numbers are kept in 64 bits by other readers (docs/format.md).
_LARGEST = 2**63 - 1


def parse_json(data: bytes | str, make_error: ErrorMaker) -> object:
    """The value of a JSON text, in UTF-8 where it is bytes.

    What ``make_error`` makes is raised where the text is not JSON, an object has a key twice, or a
    number is NaN or infinite.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_not_a_number, parse_float=_finite
        )
    except RecursionError:
        raise make_error("not valid JSON: nested too deep") from None
    except ValueError as error:
        raise make_error(f"not valid JSON: {str(error)[:200]}") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is written twice in one object")
    return fields


def _not_a_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # Python reads 1e999 as infinity, which no writer can give back.
        raise ValueError(f"{text[:20]} is larger than any number of 64 bits")
    return number


def dump_json(value: object) -> bytes:
    """JSON in ASCII with sorted keys; the same value always gives the same bytes.

    Raises:
        ValueError, TypeError, RecursionError: the value has no JSON.
    """
    text = json.dumps(value, ensure_ascii=True, sort_keys=True, indent=1, allow_nan=False)
    return text.encode("ascii") + b"\n"


class JsonFields:
    """One JSON object, read field by field. Fields that nobody asks for are ignored.

    Every method raises what ``make_error`` makes where its field is missing or of another type; the
    reason names the field by its path in the file.

    Args:
        value: what was parsed; it must be an object.
        make_error: makes the error from the reason.
        where: path of the object in its file; empty for the whole file.
    """

    def __init__(self, value: object, make_error: ErrorMaker, where: str = "") -> None:
        self._make_error = make_error
        self._where = where
        if not isinstance(value, dict):
            self._refuse("", "an object", value)
        self._fields: dict[str, object] = value

    def has(self, key: str) -> bool:
        """Whether an optional field is there."""
        return key in self._fields

    def is_null(self, key: str) -> bool:
        """Whether a field, which must be there, is null."""
        return self._get(key) is None

    def text(self, key: str, pattern: re.Pattern[str] | None = None) -> str:
        """A text, which the pattern matches in full."""
        value = self._get(key)
        if not isinstance(value, str):
            self._refuse(key, "text", value)
        if pattern is not None and not pattern.fullmatch(value):
            self._refuse(key, f"text like {pattern.pattern}", value)
        return value

    def text_or_null(self, key: str) -> str | None:
        """A text, or None where the field is null."""
        return None if self.is_null(key) else self.text(key)

    def one_of(self, key: str, *choices: str) -> str:
        """A text that is one of these."""
        value = self.text(key)
        if value not in choices:
            self._refuse(key, " or ".join(choices), value)
        return value

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._get(key)
        if not isinstance(value, bool):
            self._refuse(key, "true or false", value)
        return value

    def whole(self, key: str, least: int = 0) -> int:
        """A whole number that is at least ``least``."""
        return self._whole(key, self._get(key), least)

    def whole_or_null(self, key: str, least: int = 0) -> int | None:
        """A whole number that is at least ``least``, or None where the field is null."""
        return None if self.is_null(key) else self.whole(key, least)

    def number(self, key: str) -> float:
        """A finite number that is not negative (an energy, a norm, a bound)."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._refuse(key, "a number", value)
        if not 0 <= value <= sys.float_info.max:
            self._refuse(key, "a finite number from 0", value)
        return float(value)

    def wholes(self, key: str, least: int = 0, count: int | None = None) -> tuple[int, ...]:
        """A list of ``count`` whole numbers (None: any count), each at least ``least``."""
        values = self._list(key)
        if count is not None and len(values) != count:
            self._refuse(key, f"{count} whole numbers", values)
        return tuple(self._whole(f"{key}[{i}]", v, least) for i, v in enumerate(values))

    def pairs(self, key: str) -> tuple[tuple[int, int], ...]:
        """A list of lists of two whole numbers."""
        pairs = []
        for i in range(len(self._list(key))):
            first, second = self._entry(key, i).wholes(str(i), count=2)
            pairs.append((first, second))
        return tuple(pairs)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(self._entry(key, i).text(str(i)) for i in range(len(self._list(key))))

    def child(self, key: str) -> JsonFields:
        """An object within this one."""
        return JsonFields(self._get(key), self._make_error, self._path(key))

    def children(self, key: str) -> list[JsonFields]:
        """A list of objects."""
        return [
            JsonFields(value, self._make_error, f"{self._path(key)}[{i}]")
            for i, value in enumerate(self._list(key))
        ]

    def mapping(self, key: str) -> dict[str, object]:
        """An object whose fields are nobody's business here."""
        value = self._get(key)
        if not isinstance(value, dict):
            self._refuse(key, "an object", value)
        return value

    def wrong(self, key: str, why: str) -> NoReturn:
        """Refuse a field for a reason that only the caller knows."""
        raise self._make_error(f"{self._path(key)}: {why}")

    def _entry(self, key: str, index: int) -> JsonFields:
        """One entry of a list as the field of an object, so that an error names its place."""
        return JsonFields({str(index): self._list(key)[index]}, self._make_error, self._path(key))

    def _whole(self, key: str, value: object, least: int) -> int:
        # Python counts True as the number 1; JSON does not.
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
            self._refuse(key, f"a whole number from {least}", value)
        return value

    def _list(self, key: str) -> list[object]:
        value = self._get(key)
        if not isinstance(value, list):
            self._refuse(key, "a list", value)
        return value

    def _get(self, key: str) -> object:
        if key not in self._fields:
            raise self._make_error(f"{self._path(key)}: missing")
        return self._fields[key]

    def _path(self, key: str) -> str:
        return f"{self._where}.{key}".strip(".")

    def _refuse(self, key: str, wanted: str, value: object) -> NoReturn:
        place = self._path(key) or "the whole file"
        raise self._make_error(f"{place}: must be {wanted}, found {_brief(value)}")


def _brief(value: object) -> str:
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python prints
        return "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."

"""JSON as adapters use it, with one meaning only: an object, no name twice, no NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from sharespace.errors import CorruptAdapterError


def parse_object(where: Path | str, data: bytes | str) -> dict[str, Any]:
    """The JSON object in ``data``.

    Args:
        where: named in errors.
        data: UTF-8 bytes or text.

    Raises:
        CorruptAdapterError: no UTF-8, no JSON, not an object, or a name is written twice.
    """

    def corrupt(why: str) -> CorruptAdapterError:
        return CorruptAdapterError(str(where), why, "Correct it, or download the file again")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise corrupt(f"{twice!r} is written twice in one JSON object")
        return found

    def no_constant(text: str) -> NoReturn:
        raise corrupt(f"{text} is not a JSON number")

    try:
        parsed = json.loads(data, object_pairs_hook=unique, parse_constant=no_constant)
    except CorruptAdapterError:
        raise
    except (ValueError, RecursionError) as error:
        raise corrupt(f"not valid JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise corrupt(f"JSON holds a {type(parsed).__name__}, not an object")
    return parsed

"""Recipes and small data for the tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sharespace.stream.recipe import Recipe, TaskSpec, parse_recipe

TEXTS = Path(__file__).resolve().parents[4] / "shared" / "data" / "text"
HEAD = "base: bert-base\nshare: out\n"


def parsed(text: str, folder: Path = Path("folder")) -> Recipe:
    """The recipe of this text, below the head."""
    return parse_recipe(HEAD + text, folder)


def task(folder: Path, **keys: Any) -> TaskSpec:
    """One task with these keys, its data in ``folder`` unless they say otherwise."""
    found = {"name": "one", "data": str(folder), **keys}
    lines = "\n  ".join(f"{key}: {json.dumps(value)}" for key, value in found.items())
    return parsed(f"tasks:\n- {lines}\n", folder).tasks[0]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_task(folder: Path, count: int = 12) -> Path:
    """``train.jsonl`` and ``test.jsonl`` of two classes, 0 and 1."""
    rows = [
        {"text": f"the row {i} is {'good' if i % 2 else 'bad'}", "label": i % 2}
        for i in range(count)
    ]
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "test.jsonl", rows[:4])
    return folder

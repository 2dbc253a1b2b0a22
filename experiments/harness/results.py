"""Results files: JSON, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Results = Mapping[str, Any]
"""What a file of the stage ``run`` holds."""


def read(folder: Path) -> list[dict[str, Any]]:
    """All results files of a folder, by name."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def read_if_there(file: Path) -> dict[str, Any] | None:
    """One results file, or None where there is none."""
    if not file.is_file():
        return None
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def write(file: Path, results: Mapping[str, Any]) -> None:
    """Write a results file; one that is cut off leaves the old one as it was."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(results, indent=1, default=plain) + "\n")
    unfinished.replace(file)


def plain(values: Any) -> Any:
    """Tensors and arrays as lists, all else as it is."""
    return values.tolist() if hasattr(values, "tolist") else values


def seed_of(results: Results) -> int:
    """The seed that a file is of."""
    return int(results["environment"]["seed"])

"""Own LoRAs on disk, so that every order and script of one seed starts from the same ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from sharespace.compare import OwnLora
from sharespace.formats import ExportOptions, PlainLora, read_adapter, write_adapter
from sharespace.learn import Fit

_RESULT = "own.json"


def load(folder: Path) -> dict[str, OwnLora]:
    """Task -> own LoRA, of all that are in the folder."""
    return {found.parent.name: _load(found.parent) for found in folder.glob(f"*/{_RESULT}")}


def save(folder: Path, own: Mapping[str, OwnLora]) -> None:
    """Write those that are not there yet."""
    for name, found in own.items():
        place = folder / name
        if not (place / _RESULT).is_file() and found.fit is not None:
            adapter = found.adapter
            write_adapter(
                place,
                PlainLora.from_adapter(adapter),
                ExportOptions(overwrite=True),
            )
            record = {**asdict(found.fit), "history": []}
            text = json.dumps({"score": found.score, "trainable": found.trainable, "fit": record})
            (place / _RESULT).write_text(text)


def _load(place: Path) -> OwnLora:
    record = json.loads((place / _RESULT).read_text())
    fit = Fit(**{**record["fit"], "history": ()})
    return OwnLora(read_adapter(place, place.name), record["score"], fit, record["trainable"])

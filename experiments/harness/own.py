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
    return {result.parent.name: _load(result.parent) for result in folder.glob(f"*/{_RESULT}")}


def save(folder: Path, own: Mapping[str, OwnLora]) -> None:
    """Write those that are not there yet."""
    for name, lora in own.items():
        place = folder / name
        if not (place / _RESULT).is_file() and lora.fit is not None:
            write_adapter(
                place, PlainLora.from_adapter(lora.adapter), ExportOptions(overwrite=True)
            )
            record = {**asdict(lora.fit), "history": []}
            text = json.dumps({"score": lora.score, "trainable": lora.trainable, "fit": record})
            (place / _RESULT).write_text(text)


def _load(place: Path) -> OwnLora:
    record = json.loads((place / _RESULT).read_text())
    fit = Fit(**{**record["fit"], "history": ()})
    return OwnLora(read_adapter(place, place.name), record["score"], fit, record["trainable"])

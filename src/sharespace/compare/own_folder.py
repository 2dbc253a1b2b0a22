"""Own LoRAs on disk, so that every method, order and run of one seed starts from the same ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote, unquote

from sharespace.compare.bench import OwnLora
from sharespace.files import write_files
from sharespace.formats import ExportOptions, PlainLora, read_adapter, write_adapter
from sharespace.learn import Fit

_RESULT = "own.json"


def load_own(folder: Path) -> dict[str, OwnLora]:
    """Task -> own LoRA, of all that are in the folder; without what their trainings logged.

    Args:
        folder: that ``save_own`` wrote to; it need not be there.
    """
    places = sorted(result.parent for result in folder.glob(f"*/{_RESULT}"))
    return {unquote(place.name): _load(place) for place in places}


def save_own(folder: Path, own: Mapping[str, OwnLora]) -> None:
    """Write the own LoRAs that are not there yet; those that came as adapters are left out.

    Args:
        folder: gets a folder a task, named by the task.
        own: task -> own LoRA.
    """
    for name, lora in own.items():
        place = folder / quote(name, safe="")
        if not (place / _RESULT).is_file() and lora.fit is not None:
            write_adapter(
                place, PlainLora.from_adapter(lora.adapter), ExportOptions(overwrite=True)
            )
            record = {**asdict(lora.fit), "history": []}
            text = json.dumps({"score": lora.score, "trainable": lora.trainable, "fit": record})
            write_files(place, [(_RESULT, [text.encode()])])


def _load(place: Path) -> OwnLora:
    record = json.loads((place / _RESULT).read_text())
    fit = Fit(**{**record["fit"], "history": ()})
    adapter = read_adapter(place, unquote(place.name))
    return OwnLora(adapter, record["score"], fit, record["trainable"])

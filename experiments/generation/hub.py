"""Where the adapters and the data sets of Lots-of-LoRAs are: on the Hub, or in a local folder.

Adapters are ``Lots-of-LoRAs/Mistral-7B-Instruct-v0.2-4b-r16-task<N>`` (rank 16; q, k and v of all
32 layers), data sets ``Lots-of-LoRAs/task<N>_<what it is>`` with ``input``, ``output`` (a list of
references) and ``id`` in the splits train, valid and test. The number joins them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.generation.merging import in_batches
from sharespace.errors import OptionError
from sharespace.extras import require

OWNER = "Lots-of-LoRAs"
BASE = "mistralai/Mistral-7B-Instruct-v0.2"
_ADAPTER = re.compile(r"(?:.*/)?Mistral-7B-Instruct-v0\.2-4b-r16-task(\d+)")
_DATA = re.compile(r"(?:.*/)?task(\d+)_.*")


@dataclass(frozen=True)
class Source:
    """One task's adapter and data."""

    name: str
    """``task<N>``."""
    adapter: str
    """Hub id or folder."""
    data: str
    """Hub id or folder."""


@dataclass(frozen=True)
class Question:
    """One example."""

    input: str
    references: tuple[str, ...]


def find(folder: Path | None) -> list[Source]:
    """All tasks that have both, by number.

    Args:
        folder: has ``adapters`` and ``data`` with the repositories' names; None: the Hub.

    Raises:
        OptionError: there is none.
    """
    if folder is not None:
        adapters = [str(path) for path in (folder / "adapters").iterdir()]
        sources = joined(adapters, [str(path) for path in (folder / "data").iterdir()])
    else:
        api = require("huggingface_hub", "train").HfApi()
        adapters = [model.id for model in api.list_models(author=OWNER)]
        sources = joined(adapters, [data.id for data in api.list_datasets(author=OWNER)])
    if not sources:
        raise OptionError(
            str(folder or OWNER), "no adapter with a data set of its number", "Check --folder"
        )
    return sources


def joined(adapters: Iterable[str], data: Iterable[str]) -> list[Source]:
    """Adapters and data sets of one number; those that lack the other are left out."""
    sets = {int(match[1]): name for name in sorted(data) if (match := _DATA.fullmatch(name))}
    mine = {int(match[1]): name for name in adapters if (match := _ADAPTER.fullmatch(name))}
    return [Source(f"task{n}", mine[n], sets[n]) for n in sorted(mine) if n in sets]


def drawn(sources: list[Source], tasks: int, batches: int, seed: int) -> list[list[Source]]:
    """Some tasks in a random order, as many in each batch.

    Raises:
        OptionError: there are fewer.
    """
    if tasks > len(sources):
        raise OptionError(f"{tasks} tasks", f"only {len(sources)} are there", "Ask for fewer")
    return in_batches(sources, batches, seed, tasks)


def questions(data: str, count: int) -> list[Question]:
    """The first examples of the test split.

    Raises:
        OptionError: it has other columns.
    """
    rows: Any = require("datasets", "train").load_dataset(data, split="test")
    if not {"input", "output"} <= set(rows.column_names):
        why = f"columns {', '.join(rows.column_names)}, not input and output"
        raise OptionError(f"data set {data!r}", why, "Use a data set of Lots-of-LoRAs")
    some = rows.select(range(min(count, len(rows))))
    return [Question(row["input"], _references(row["output"])) for row in some]


def _references(output: Any) -> tuple[str, ...]:
    return (output,) if isinstance(output, str) else tuple(output)

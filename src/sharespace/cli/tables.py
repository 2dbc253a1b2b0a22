"""Tables of a terminal: as wide as it is, with names cut in the middle and figures whole.

Also the tables of tasks and of layers of a stored model.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.markup import escape as escape_markup
from rich.table import Table
from rich.text import Text

from sharespace.cli import json_records
from sharespace.report.html import short
from sharespace.store import Checkout, known_starts
from sharespace.store.schema import LayerEntry
from sharespace.subspace.fidelity import ModelStorage, StorageTally, UpdateTally
from sharespace.words import count, human, percent, visible, words_of_start

_STORAGE_KINDS = {
    "whole": ("all of k", "in all directions of their subspace"),
    "leading": ("leading", "in its leading directions only"),
    "per_task": ("per task", "stored per task, outside of any subspace"),
    "nothing": ("not kept", "not kept"),
}
"""How an update may be stored -> head of its column, and words for it."""


def fitted(table: Table, width: int) -> Table:
    """The table at most that wide: names lose their middles, and figures stay whole."""
    heads = [str(column.header) for column in table.columns]
    cells = [list(map(str, column.cells)) for column in table.columns]
    widths = [
        max(map(cell_len, [*head.split(), *column]))
        for head, column in zip(heads, cells, strict=True)
    ]
    texts = [i for i, head in enumerate(heads) if i == 0 or head == "worst layer's name"]
    room = width - sum(widths) - 2 * (len(heads) - 1)
    wrapped = sum(max(cell_len(h) - w, 0) for h, w in zip(heads, widths, strict=True))
    # Where heads must wrap, rich would take the room from the names, a letter a line.
    if room < wrapped:
        # The longest gives way first: what is left is shared evenly by those that need more.
        room = max(room + sum(widths[i] for i in texts), 8 * len(texts))
        for at, i in enumerate(sorted(texts, key=lambda i: widths[i])):
            widths[i] = min(widths[i], room // (len(texts) - at))
            cells[i], room = _cut(cells[i], widths[i]), room - widths[i]
        table = new_table(*heads)
        for row in zip(*cells, strict=True):
            table.add_row(*row)
        for column, most in zip(table.columns, widths, strict=True):
            column.width = most
    return table


def _cut(names: Sequence[str], width: int) -> list[str]:
    """Names of at most that width, without their middles; those that look alike are numbered."""
    shown: list[str] = []
    for name in names:
        plain = Text.from_markup(name).plain
        text, alike = _without_middle(plain, width), 1
        while text in shown:
            alike += 1
            text = f"{_without_middle(plain, width - len(f'~{alike}'))}~{alike}"
        shown.append(text)
    return list(map(escape_markup, shown))


def _without_middle(name: str, width: int) -> str:
    """By the cells that a terminal draws: letters of East Asia take two."""
    return next(t for most in range(width, 0, -1) if cell_len(t := short(name, most)) <= width)


def new_table(first: str, *others: str) -> Table:
    """Names whole on the left, figures flush right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for title in others:
        table.add_column(title, justify="right", overflow="fold")
    return table


def task_table(opened: Checkout, storage: ModelStorage | None) -> Table:
    per_task = storage.tasks if storage and storage.total.per_task.updates else {}
    extra = ["per task"] if per_task else []
    starts, of_whole = known_starts(opened), json_records.bounds_of_whole(opened)
    last = ["started from"] if starts else []
    table = new_table("task", "format", "layers", *extra, "bound", "coefficients", "adapter", *last)
    for entry in opened.manifest.content.tasks:
        summary = entry.summary
        table.add_row(
            markup(entry.name),
            summary.format,
            str(summary.modules),
            *([str(per_task[entry.name].per_task.updates)] if per_task else []),
            percent(summary.bound)
            + (f" ({percent(of_whole[entry.name])} of all)" if entry.name in of_whole else ""),
            human(summary.coefficient_bytes),
            human(summary.adapter_bytes),
            *([markup(words_of_start(starts.get(entry.name, {})))] if starts else []),
        )
    return table


def layer_table(layers: Sequence[LayerEntry], storage: ModelStorage, itemsize: int) -> Table:
    """A column for each way in which the model stores updates."""
    kinds = [kind for kind, tally in _tallies(storage.total).items() if tally.updates]
    table = new_table("layer", "k", *(_STORAGE_KINDS[kind][0] for kind in kinds), "bases")
    for layer in layers:
        tallies = _tallies(storage.layers[layer.module])
        groups = f" in {len(layer.groups)}" if layer.groups else ""
        table.add_row(
            markup(layer.module),
            "×".join(map(str, layer.k)) + groups,
            *(_tally_cell(tallies[kind]) for kind in kinds),
            human(json_records.basis_bytes(layer, itemsize)),
        )
    return table


def _tallies(storage: StorageTally) -> dict[str, UpdateTally]:
    return {kind: getattr(storage, kind) for kind in _STORAGE_KINDS}


def _tally_cell(tally: UpdateTally) -> str:
    return f"{tally.updates:,} ({human(tally.nbytes)})" if tally.updates else "-"


def storage_sentence(total: StorageTally, budget: int | None) -> str:
    ways = [
        f"{tally.updates:,} {_STORAGE_KINDS[kind][1]} ({human(tally.nbytes)})"
        for kind, tally in _tallies(total).items()
        if tally.updates
    ]
    why = "" if budget is None else f", as a budget of {human(budget)} chose"
    return f"{count(total.total.updates, 'update')}{why}: {', '.join(ways) or 'none'}."


def markup(text: str) -> str:
    """Text from outside as markup of rich that shows it, and does nothing."""
    return escape_markup(visible(text))

"""Progress on a terminal, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def on_terminal() -> bool:
    """Standard error is read by a person."""
    return sys.stderr.isatty()


@contextmanager
def layers(doing: str) -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar over layers on standard error; None where that is not a terminal."""
    if not on_terminal():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[at]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, at="", total=None)

        def advance(module: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, at=module)

        yield advance

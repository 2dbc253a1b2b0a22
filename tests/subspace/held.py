"""Work that waits for a sign, so that a test can stop a worker in the middle of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sharespace.errors import OptionError
from sharespace.subspace.executor import Executor


@dataclass(frozen=True)
class Held:
    """Runs on another executor, but no piece of work begins before ``release``."""

    inner: Executor
    folder: Path
    """Where each process that has begun leaves a file with its id as the name."""

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return self.inner.map(partial(wait_and_run, self.folder, function), items)

    def begun(self, processes: int) -> list[int]:
        """Ids of the processes, once that many are at work."""
        for _ in range(6000):
            found = [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]
            if len(found) >= processes:
                return found
            time.sleep(0.02)
        raise TimeoutError(f"{processes} processes did not begin")

    def release(self) -> None:
        (self.folder / "go").touch()


def wait_and_run(folder: Path, function: Callable[[Any], Any], item: Any) -> Any:
    """On a worker."""
    (folder / str(os.getpid())).touch()
    while not (folder / "go").exists():
        time.sleep(0.02)
    return function(item)


def end_this_process(_item: object) -> None:
    """What the kernel does to a process that takes too much memory."""
    os._exit(9)


def refuse(item: int) -> int:
    """An error of ours for one item."""
    if item == 3:
        raise OptionError("item 3", "it is refused", "Leave it out")
    return item


def divide(item: int) -> float:
    """An error of Python's for one item."""
    return 1 / item

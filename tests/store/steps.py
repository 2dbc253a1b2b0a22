"""Stand-ins for ``os`` and ``fcntl`` in ``sharespace.files``: count, record, kill, fail."""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from sharespace import files

CHANGING = ("open", "write", "pwrite", "ftruncate", "fsync", "close", "replace", "mkdir", "unlink")

Hook = Callable[[str, Callable[..., Any], tuple[Any, ...]], Any]


class Hooked:
    """A module whose named functions pass through a hook."""

    def __init__(self, module: Any, names: tuple[str, ...], hook: Hook) -> None:
        self._module, self._names, self._hook = module, names, hook

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if name not in self._names:
            return found
        return lambda *args: self._hook(name, found, args)


@contextmanager
def hooked(hook: Hook) -> Iterator[None]:
    """Every file system step of the store goes through ``hook(name, function, args)``."""
    exchange = files.exchange

    def exchanged(first: Path, second: Path) -> bool:
        """Not a function of ``os``; what is left to do after it is a step of its own."""
        done: bool = hook("exchange", exchange, (first, second))
        hook("exchanged", bool, ())
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "exchange", exchanged)
        patch.setattr(files, "os", Hooked(os, CHANGING, hook))
        patch.setattr(files, "fcntl", Hooked(fcntl, ("flock",), hook))
        yield


@dataclass
class Log:
    """Records the steps; ``("open", fd, path, ...)``, for others ``(name, *args)``."""

    steps: list[tuple[Any, ...]] = field(default_factory=list)

    def __call__(self, name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if name == "write":
            args = (args[0], bytes(args[1]))
        found = function(*args)
        self.steps.append((name, found, *args) if name == "open" else (name, *args))
        return found


def run_and_kill(action: Callable[[], object], at: int) -> bool:
    """Run in a child process that is killed at its step number ``at`` (from 0).

    Only steps that change what another process sees are counted: a kill before a sync or a close
    leaves the same disk as one before the next of those. A write is cut in half. True when the
    action ended before it came to that step.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside torch's idle threads
        child = os.fork()
    if child == 0:
        _killed(action, at)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, "the action failed before it was killed"
    return True


def _changes(name: str, args: tuple[Any, ...]) -> bool:
    if name == "open":
        return bool(args[1] & os.O_CREAT)
    return name not in ("fsync", "close", "flock")


def _killed(action: Callable[[], object], at: int) -> None:
    count = itertools.count()

    def hook(name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if _changes(name, args) and next(count) == at:
            if name == "write":
                os.write(args[0], args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)

    signal.alarm(60)  # a child that hangs must not hang the tests
    torch.set_num_threads(1)  # the parent's pool of threads is not there in a forked child
    code = 1
    try:
        with hooked(hook):
            action()
        code = 0
    finally:
        os._exit(code)

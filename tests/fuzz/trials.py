"""One trial at a time: its seed, its deadline, what it ended in, and what must never happen.

A trial is a function of a random generator and an empty folder. It returns a word for how it ended
("refused", "taken"), or one for each of the things that it tried, and raises ``BrokenLawError``
where a law does not hold. The generator comes from the seed, the kind and the number, so that one
trial can be run again alone.
"""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TypeAlias
from unittest import mock

from sharespace.cli import main

DEADLINE = 60.0
"""Seconds of a trial, after which it counts as hanging; an ordinary one takes some hundredths."""

Trial: TypeAlias = Callable[[random.Random, Path], str | list[str]]


class BrokenLawError(Exception):
    """Something happened that must never happen, whatever the input is."""


class Hanging(BaseException):
    """Not an Exception: the code under trial may catch those."""


@dataclass
class Tally:
    """What the trials of one kind ended in."""

    kind: str
    endings: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    """Seconds of the slowest trial."""

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {ending}" for ending, count in self.endings.most_common())
        total = sum(self.endings.values())
        return f"{self.kind}: {total:,} ({ends}); the slowest took {self.slowest:.1f} s"


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise ``Hanging`` in this thread after so many seconds."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise Hanging(f"no end after {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def generator(seed: str, kind: str, number: int) -> random.Random:
    """The generator of one trial: the same for the same three."""
    return random.Random(f"{seed}/{kind}/{number}")


def run_trials(
    kind: str, trial: Trial, numbers: range, seed: str, folder: Path, seconds: float = DEADLINE
) -> Tally:
    """Trials of one kind, each in an empty folder, which stays where a law was broken.

    Args:
        kind: its name, which is part of the seeds.
        trial: see the module.
        numbers: which of them.
        seed: of them all.
        folder: for their files.
        seconds: that one trial may take.
    """
    tally = Tally(kind)
    for number in numbers:
        place = folder / f"{kind}-{number}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        began = time.perf_counter()
        try:
            with deadline(seconds):
                ended = trial(generator(seed, kind, number), place)
        except Hanging as error:
            ended = "hung"
            tally.failures.append(_failure(kind, number, seed, error))
        except Exception as error:  # noqa: BLE001 - any of them is what is looked for
            ended = "failed"
            tally.failures.append(_failure(kind, number, seed, error))
        else:
            shutil.rmtree(place, ignore_errors=True)
        tally.slowest = max(tally.slowest, time.perf_counter() - began)
        tally.endings.update([ended] if isinstance(ended, str) else ended)
    return tally


def _failure(kind: str, number: int, seed: str, error: BaseException) -> str:
    again = f"python -m fuzz --seed {seed} --kind {kind} --trial {number}"
    said = "".join(traceback.format_exception(error)[-4:]) if str(error) == "" else str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{again}\n  {type(error).__name__}: {said}\n  at {where.filename}:{where.lineno}"


@dataclass(frozen=True)
class CommandResult:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


def command(*arguments: object) -> CommandResult:
    """Run ``sharespace`` with these arguments in this process, as a shell would run it.

    Raises:
        BrokenLawError: it ended otherwise than with success, or with one line and exit code 2.
    """
    out, err = io.StringIO(), io.StringIO()
    words = ["sharespace", *map(str, arguments)]
    code: object = 0
    with (
        mock.patch.object(sys, "argv", words),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        except Exception as error:
            raise BrokenLawError(f"{words[1]}: a traceback: {_short(error)}") from error
    result = CommandResult(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())
    _check_said(words[1], result)
    return result


def _short(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
    return f"{type(error).__name__}: {str(error)[:300]} ({places})"


def _check_said(verb: str, result: CommandResult) -> None:
    if result.code not in (0, 2):
        raise BrokenLawError(f"{verb}: exit code {result.code}: {result.err[-300:]!r}")
    lines = result.err.splitlines()
    if result.code == 2:
        # A refusal of contributions is told on standard output, and none on the other.
        said = [line for line in lines if line.startswith("sharespace: ")]
        if len(lines) != 1 or len(said) != 1 or not result.err.rstrip("\n").isprintable():
            raise BrokenLawError(f"{verb}: no refusal of one line: {result.err[-500:]!r}")
        if len(said[0]) > 3000:
            raise BrokenLawError(
                f"{verb}: a refusal of {len(said[0])} characters: {said[0][:300]!r}"
            )
    shown = result.out.replace("\n", "")
    if not shown.isprintable():
        raise BrokenLawError(f"{verb}: a control character in what it says: {result.out[-300:]!r}")

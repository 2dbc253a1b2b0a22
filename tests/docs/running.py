"""Run the blocks of a page in order, as a reader would, in one folder."""

from __future__ import annotations

import contextlib
import io
import linecache
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from docs.pages import Block
from sharespace.cli import EXIT_BAD_INPUT
from sharespace.cli.app import app
from sharespace.errors import SharespaceError

SHELL = ("console", "bash", "setup")


@dataclass(frozen=True)
class Ran:
    """A command or a python block, what the page shows as its output, and what it printed."""

    block: Block
    """Where the shown output stands, if there is any."""
    source: str
    shown: str | None
    """None: the page shows no output."""
    printed: str
    exit_code: int
    expected_exit: int


@dataclass(frozen=True)
class Command:
    """A line ``$ ...`` of a console block and the output below it."""

    line: str
    shown: str


def commands(block: Block) -> list[Command]:
    """The commands of a console block, with their output; of a bash block, without."""
    if block.language != "console":
        joined = block.text.replace("\\\n", " ").splitlines()
        lines = [line.removeprefix("$ ") for line in joined if line.strip()]
        return [Command(line, "") for line in lines if not line.startswith("#")]
    found: list[Command] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            found.append(Command(line.removeprefix("$ "), ""))
        elif not found:
            raise AssertionError(f"{block}: output before the first command")
        else:
            last = found.pop()
            found.append(Command(last.line, f"{last.shown}\n{line}" if last.shown else line))
    return found


@dataclass
class Reader:
    """Somebody who types in what a page says."""

    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__page__"})

    def follow(self, found: Sequence[Block]) -> Iterator[Ran]:
        """Run all blocks that can run."""
        for at, block in enumerate(found):
            if block.not_run:
                continue
            if block.language in SHELL:
                yield from self._shell(block)
            elif block.language == "python":
                after = found[at + 1] if at + 1 < len(found) else None
                yield self._python(block, after)

    def _shell(self, block: Block) -> Iterator[Ran]:
        typed = commands(block)
        for command in typed:
            expected = block.exit_code if command is typed[-1] else 0
            printed, code = run_command(command.line, str(block))
            yield Ran(block, command.line, command.shown or None, printed, code, expected)

    def _python(self, block: Block, after: Block | None) -> Ran:
        name = f"<{block}>"
        # So that a traceback shows the page's line.
        linecache.cache[name] = (len(block.text), None, block.text.splitlines(True), name)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.text, name, "exec"), self.names)
        output = after if after and after.adjacent and after.language == "text" else None
        shown = output.text if output else None
        return Ran(output or block, block.text, shown, printed.getvalue(), 0, 0)


def run_command(line: str, where: str) -> tuple[str, int]:
    """What ``sharespace ...`` prints, errors included, and its exit code."""
    program, *arguments = shlex.split(line, comments=True)
    if program != "sharespace":
        raise AssertionError(f"{where}: only sharespace runs here, not {program!r}: mark the block")
    result = CliRunner().invoke(app, _expanded(arguments), env={"COLUMNS": "100"})
    if isinstance(result.exception, SharespaceError):
        return f"{result.output}sharespace: {result.exception}\n", EXIT_BAD_INPUT
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output, result.exit_code


def _expanded(arguments: Sequence[str]) -> list[str]:
    """What a shell makes of globs."""
    found: list[str] = []
    for argument in arguments:
        found += (_glob(argument) if "*" in argument else []) or [argument]
    return found


def _glob(pattern: str) -> list[str]:
    return sorted(str(path) for path in Path().glob(pattern))

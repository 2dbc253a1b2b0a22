"""Write cli.md from the app: ``python docs/reference/generate_cli.py``. A test keeps it in sync."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from typer.models import ArgumentInfo, OptionInfo

from sharespace.cli.app import app

HEAD = """# Command line

<!-- Written by docs/reference/generate_cli.py; change the app's help texts instead. -->

Every command that prints takes `--json`. Results go to standard output; progress (on a terminal
only) and errors go to standard error.

| exit code | meaning |
|---|---|
| 0 | done |
| 2 | bad input (what, why, the remedy; nothing is written), or `verify` found damage |
| 130 | stopped with Ctrl-C |

`sharespace --version` prints the version, `sharespace COMMAND --help` these tables.
"""
HOWTO = {
    "init": "init",
    "plan": "plan",
    "merge": "merge",
    "union": "union",
    "combine": "combine",
    "remove": "remove-rename",
    "rename": "remove-rename",
    "info": "info",
    "fidelity": "fidelity",
    "export": "export",
    "verify": "verify",
    "history": "history",
    "prune": "history",
    "rollback": "history",
    "demo": "demo",
    "compare": "compare",
}
"""Command -> its page in howto/."""


def reference() -> str:
    """The whole page."""
    shown = (c.callback for c in app.registered_commands if c.callback and not c.hidden)
    return "\n".join([HEAD, *map(_command, shown)])


def _command(callback: Callable[..., Any]) -> str:
    name = callback.__name__
    parameters = list(inspect.signature(callback, eval_str=True).parameters.values())
    arguments = [_row(p) for p in parameters if _is(p, ArgumentInfo)]
    options = [_row(p) for p in parameters if _is(p, OptionInfo)]
    usage = " ".join(["sharespace", name, "[OPTIONS]", *(row[0] for row in arguments if row)])
    text = [f"## {name}", "", inspect.getdoc(callback) or "", ""]
    if name in HOWTO:
        text += [f"How to use it: [{name}](../howto/{HOWTO[name]}.md).", ""]
    text += ["```text", usage, "```", ""]
    text += _table("argument", [row for row in arguments if row and row[1]])
    text += _table("option", [row for row in options if row])
    return "\n".join(text)


def _table(what: str, rows: list[tuple[str, str]]) -> list[str]:
    if not rows:
        return []
    lines = [f"| `{name}` | {about} |" for name, about in rows]
    return [f"| {what} | |", "|---|---|", *lines, ""]


def _is(parameter: inspect.Parameter, kind: type) -> bool:
    return isinstance(_info(parameter), kind)


def _info(parameter: inspect.Parameter) -> Any:
    """What typer knows of it: an ArgumentInfo or an OptionInfo."""
    return parameter.annotation.__metadata__[0]


def _row(parameter: inspect.Parameter) -> tuple[str, str] | None:
    """(``--name VALUE``, help and default); None for a hidden one."""
    info = _info(parameter)
    if info.hidden:
        return None
    about = info.help or ""
    if isinstance(info, ArgumentInfo):
        return info.metavar or parameter.name.upper(), about
    kind = _kind(get_args(parameter.annotation)[0])
    name = _name(info, parameter.name)
    value = "" if kind is bool else f" {info.metavar or _value(kind)}"
    if kind is not bool and parameter.default is not None:
        about += f" Default: `{parameter.default}`."
    return name + value, about


def _name(info: OptionInfo, parameter: str) -> str:
    """In an Annotated, typer has the first declaration where others have a default."""
    if isinstance(info.default, str):
        return info.default
    return (info.param_decls or [f"--{parameter.replace('_', '-')}"])[0]


def _kind(annotation: Any) -> Any:
    """``int`` for ``int | None``."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return next(a for a in get_args(annotation) if a is not NoneType)
    return annotation


def _value(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "/".join(get_args(kind))
    return {int: "N", float: "X", str: "TEXT", Path: "PATH"}[kind]


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(reference(), encoding="utf-8")

"""The command ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharespace.cli import options as o


def report(
    share: o.SharePath,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Where the page goes.")
    ] = Path("report.html"),
    version: Annotated[int | None, typer.Option(help="Of an earlier version.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    show: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """One HTML page of it all: what is kept, similarity, sizes, history, warnings."""
    from sharespace.cli import output
    from sharespace.page import write

    written = write(share, out, version=version, overwrite=overwrite)
    output.page(written, as_json)
    if show:
        typer.launch(str(out.absolute()))

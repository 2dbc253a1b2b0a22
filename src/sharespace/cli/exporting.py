"""The command ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharespace.cli import options as o


def export(
    share: o.SharePath,
    task: Annotated[str, typer.Argument(metavar="TASK")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new directory.")],
    to: Annotated[str, typer.Option(help="peft, diffusers, kohya, vllm, sglang or gguf.")] = "peft",
    rank: Annotated[int | None, typer.Option(help="Pad all layers to this rank.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the factors; default the stored dtype.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|ID",
            help="Base model, for its config.json (gguf); default what SHARE says.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    version: Annotated[int | None, typer.Option(help="From an earlier version.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """Write a task as plain LoRA: for PEFT, diffusers, web UIs, vLLM, SGLang or llama.cpp."""
    from sharespace.cli import output
    from sharespace.cli.values import dtype_named
    from sharespace.formats import server_options
    from sharespace.share import Share

    written = Share.load(share, version).export(
        task,
        out,
        to=to,  # type: ignore[arg-type]  # export itself refuses other names
        rank=rank,
        dtype=dtype_named(dtype),
        base=base,
        overwrite=overwrite,
    )
    output.exported(task, written, server_options(to, written), as_json)

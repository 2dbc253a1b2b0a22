"""The commands ``demo`` and ``run``: a whole stream of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharespace.cli import options as o


def demo(
    out: Annotated[Path, typer.Argument(metavar="[OUT]", help="Where results go.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Of data, training and subspace.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny version.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """The whole method on real data in two minutes: handwritten digits and a small ViT."""
    from sharespace.cli import output
    from sharespace.demo import run

    result = run(out, seed=seed, quick=quick, log=None if as_json else output.progress_line)
    output.demo(result, out, as_json)


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; see Recipe.")],
    as_json: o.AsJson = False,
) -> None:
    """Learn a stream of tasks from a recipe; run it again to go on where it was stopped."""
    from sharespace.cli import output
    from sharespace.cli.progress import on_terminal
    from sharespace.stream import run as run_stream

    tell = None if as_json else output.stream_progress
    output.stream(run_stream(recipe, observe=tell, bars=on_terminal() and not as_json), as_json)

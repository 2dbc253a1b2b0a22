"""The command ``serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    share: Annotated[Path, typer.Argument(metavar="SHARE", help="A stored Share model.")],
    base: Annotated[
        str | None, typer.Option(help="Base model, a path or Hub id; default: what SHARE says.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What requests call the base model; default: as --base.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
    dtype: Annotated[
        str, typer.Option(help="Of the model: float32, bfloat16 or float16.")
    ] = "float32",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: a GPU if there is one.")
    ] = None,
    slots: Annotated[int, typer.Option(help="Tasks in memory at the same time.")] = 256,
    batch: Annotated[int, typer.Option(help="Rows of a batch.")] = 32,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more get 429.")] = 256,
    seconds: Annotated[float, typer.Option(help="That an answer may take; then 504.")] = 120.0,
    body: Annotated[int, typer.Option(help="Bytes of a request's body; more get 413.")] = 2**20,
    drain: Annotated[
        float, typer.Option(help="Seconds for running requests when it is stopped.")
    ] = 30.0,
    api_key: Annotated[
        str | None, typer.Option(envvar="SHARESPACE_API_KEY", help="Bearer token of clients.")
    ] = None,
    admin_token: Annotated[
        str | None,
        typer.Option(envvar="SHARESPACE_ADMIN_TOKEN", help="Bearer token to change tasks."),
    ] = None,
) -> None:
    """Serve the base model and every task over HTTP, as OpenAI's API has it."""
    from sharespace.extras import require

    ours = require("sharespace.serve.server", "serve")
    rules = ours.Rules(seconds=seconds, body=body, api_key=api_key, admin_token=admin_token)
    limits = ours.Limits(batch=batch, queue=queue)
    options = ours.Options(base, name, host, port, dtype, slots, limits, rules, drain, device)
    ours.serve(share, options)

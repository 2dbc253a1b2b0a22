"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

Method: TypeAlias = Literal["joint", "share"]
OnConflict: TypeAlias = Literal["refuse", "rename", "replace"]

Adapters = Annotated[
    list[str],
    typer.Argument(
        metavar="ADAPTER...",
        help="Paths (PEFT, diffusers, kohya), globs, Hub ids, or NAME=PATH. "
        "A task is named after its adapter's folder.",
        show_default=False,
    ),
]
SharePath = Annotated[Path, typer.Argument(metavar="SHARE", help="A stored Share model.")]
Inbox = Annotated[
    str,
    typer.Argument(metavar="INBOX", help="A folder, or a URL such as s3://bucket/inbox."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MethodOption = Annotated[
    Method, typer.Option(help="joint: HOSVD + HOOI of the updates; share: the paper's factor SVD.")
]
Centred = Annotated[bool, typer.Option("--centred", help="Method share: centre the columns.")]
K = Annotated[int | None, typer.Option("--k", help="Subspace dimension of every layer and side.")]
Variance = Annotated[
    float | None,
    typer.Option(help="Or the smallest k that explains this fraction; 1 keeps all. Default 0.99."),
]
Error = Annotated[
    float | None,
    typer.Option(help="Or the smallest k that leaves no task a larger error in any layer."),
]
Budget = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Or bytes for bases and coefficients: 500k, 2MB, 1GiB."),
]
PseudoRank = Annotated[
    int | None, typer.Option("--p", help="Pseudo-rank of the tasks; default min(k, r), exact.")
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory that one layer of all these adapters may take (default 2GB); larger ones are "
        "built out of core.",
    ),
]
Base = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Base model, where the adapters do not say or disagree."),
]
DType = Annotated[
    str | None, typer.Option(help="Stored dtype: float32, float16, bfloat16, float64.")
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 ...")]
Workers = Annotated[
    str | None,
    typer.Option(
        metavar="N|ADDRESS",
        help="Compute layers in N processes, or on the Dask cluster with its scheduler at ADDRESS.",
    ),
]
Seed = Annotated[int, typer.Option(help="Of the randomised range finder.")]
Cap = Annotated[int | None, typer.Option("--k", help="A new cap for every layer.")]

"""All commands. Heavy imports are inside them, so that ``--help`` is instant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sharespace.cli import options as o
from sharespace.cli.exporting import export
from sharespace.cli.gathering import gather, pull, push, submit
from sharespace.cli.reporting import report
from sharespace.cli.running import demo, run
from sharespace.cli.serving import serve

if TYPE_CHECKING:
    from sharespace.share import Share

app = typer.Typer(
    name="sharespace",
    help="One low-rank subspace per layer instead of hundreds of LoRA adapters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from sharespace import __version__

        typer.echo(__version__)
        raise typer.Exit


def _build_options(
    method: o.Method,
    centred: bool,
    k: int | None,
    variance: float | None,
    error: float | None,
    budget: str | None,
    p: int | None,
    base: str | None,
    dtype: str | None,
    device: str,
    seed: int,
) -> dict[str, Any]:
    """The keyword arguments of ``Share.from_adapters``."""
    from sharespace.cli.values import dtype_named, optional_size

    return {
        "method": method,
        "centred": centred,
        "k": k,
        "variance": variance,
        "error": error,
        "budget": optional_size(budget),
        "p": p,
        "base": base,
        "dtype": dtype_named(dtype),
        "device": device,
        "seed": seed,
    }


@app.command()
def init(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the Share model goes.")],
    adapters: o.Adapters,
    method: o.MethodOption = "joint",
    centred: o.Centred = False,
    k: o.K = None,
    variance: o.Variance = None,
    error: o.Error = None,
    budget: o.Budget = None,
    p: o.PseudoRank = None,
    base: o.Base = None,
    dtype: o.DType = None,
    device: o.Device = "cpu",
    seed: o.Seed = 0,
    workers: o.Workers = None,
    memory: o.Memory = None,
    as_json: o.AsJson = False,
) -> None:
    """Build a Share model from LoRA adapters and say what it keeps of each."""
    from sharespace.cli import output
    from sharespace.cli.progress import layers
    from sharespace.cli.values import adapter_paths, optional_size
    from sharespace.cli.workers import executor
    from sharespace.share import Share
    from sharespace.store import refuse_existing

    refuse_existing(out)
    arguments = _build_options(
        method, centred, k, variance, error, budget, p, base, dtype, device, seed
    )
    arguments["memory"] = optional_size(memory)
    with executor(workers) as where, layers("building") as progress:
        share = Share.from_adapters(
            adapter_paths(adapters), progress=progress, executor=where, **arguments
        )
    share.save(out)
    output.built(share, out, as_json)


@app.command()
def plan(
    adapters: o.Adapters,
    method: o.MethodOption = "joint",
    centred: o.Centred = False,
    k: o.K = None,
    variance: o.Variance = None,
    error: o.Error = None,
    budget: o.Budget = None,
    p: o.PseudoRank = None,
    base: o.Base = None,
    dtype: o.DType = None,
    device: o.Device = "cpu",
    seed: o.Seed = 0,
    as_json: o.AsJson = False,
) -> None:
    """Say what init would give, and whether it is worth it; nothing is written."""
    from sharespace.cli import output
    from sharespace.cli.progress import layers
    from sharespace.cli.values import adapter_paths
    from sharespace.share import Share

    arguments = _build_options(
        method, centred, k, variance, error, budget, p, base, dtype, device, seed
    )
    with layers("planning") as progress:
        found = Share.plan(adapter_paths(adapters), progress=progress, **arguments)
    output.plan(found, as_json)


@app.command()
def add(
    share: o.SharePath,
    adapters: o.Adapters,
    k: o.Cap = None,
    base: o.Base = None,
    device: o.Device = "cpu",
    workers: o.Workers = None,
    memory: o.Memory = None,
    as_json: o.AsJson = False,
) -> None:
    """Merge adapters into a Share model; the old adapters are not needed."""
    from sharespace.cli import output
    from sharespace.cli.progress import layers
    from sharespace.cli.values import adapter_paths, optional_size
    from sharespace.cli.workers import executor

    before, new, room = _load(share), adapter_paths(adapters), optional_size(memory)
    with executor(workers) as where, layers("merging") as progress:
        after = before.merge(
            new, k=k, base=base, device=device, progress=progress, executor=where, memory=room
        )
    after.save()
    output.merged(before, after, share, as_json)


@app.command()
def union(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the union goes.")],
    shares: Annotated[
        list[Path], typer.Argument(metavar="SHARE SHARE...", help="Share models of one base.")
    ],
    k: o.Cap = None,
    as_json: o.AsJson = False,
) -> None:
    """Put the tasks of several Share models of one base into one."""
    from sharespace.cli import output
    from sharespace.errors import OptionError
    from sharespace.store import refuse_existing

    if len(shares) < 2:
        raise OptionError("union", f"got {len(shares)} Share model", "Name at least two")
    refuse_existing(out)
    result = _load(shares[0])
    for other in shares[1:]:
        result = result.union(_load(other), k=k)
    result.save(out)
    output.built(result, out, as_json)


@app.command()
def remove(
    share: o.SharePath,
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Names of tasks.")],
    as_json: o.AsJson = False,
) -> None:
    """Remove tasks; the others stay as they are, bit for bit."""
    from sharespace.cli import output
    from sharespace.store import remove as remove_tasks

    output.changed(remove_tasks(share, tasks), f"removed {', '.join(tasks)}", as_json)


@app.command()
def rename(
    share: o.SharePath,
    old: Annotated[str, typer.Argument(metavar="OLD")],
    new: Annotated[str, typer.Argument(metavar="NEW")],
    as_json: o.AsJson = False,
) -> None:
    """Give a task another name."""
    from sharespace.cli import output
    from sharespace.store import rename as rename_task

    output.changed(rename_task(share, old, new), f"renamed {old} to {new}", as_json)


@app.command()
def info(
    share: o.SharePath,
    version: Annotated[int | None, typer.Option(help="An earlier version.")] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="How the updates of each layer are stored, too.")
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """What is in a Share model."""
    from sharespace.cli import output
    from sharespace.store import checkout

    output.info(checkout(share, version), layers, as_json)


@app.command()
def fidelity(
    share: o.SharePath,
    more: Annotated[list[str] | None, typer.Argument(metavar="ADAPTER...", hidden=True)] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against", metavar="ADAPTER...", help="Original adapters, to measure errors."
        ),
    ] = None,
    with_nulls: Annotated[
        bool, typer.Option("--nulls", help="With --against: mean adapter, random basis, own SVD.")
    ] = False,
    version: Annotated[int | None, typer.Option(help="An earlier version.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """How well every task is kept: errors, bounds, bytes."""
    from sharespace.cli import output
    from sharespace.cli.values import adapter_paths
    from sharespace.errors import OptionError

    originals = adapter_paths([*(against or []), *(more or [])])
    if with_nulls and not originals:
        raise OptionError("--nulls", "they need the original adapters", "Add --against ADAPTER...")
    loaded = _load(share, version)
    nulls = loaded.nulls(originals) if with_nulls else None
    output.fidelity(loaded.fidelity(originals), nulls, as_json)


app.command()(export)


@app.command()
def verify(
    share: o.SharePath,
    every: Annotated[bool, typer.Option("--all", help="All versions, not only the last.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Check every file's hash, shape and values; exit code 2 where something is damaged."""
    from sharespace.cli import EXIT_BAD_INPUT, output
    from sharespace.store import verify as check

    report = check(share, all_versions=every)
    output.report(report, as_json)
    if not report.ok:
        raise typer.Exit(EXIT_BAD_INPUT)


@app.command()
def history(
    share: o.SharePath,
    prune: Annotated[
        int | None, typer.Option(metavar="KEEP", help="Remove all but the last KEEP versions.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """The versions of a Share model."""
    from sharespace.cli import output
    from sharespace.store import history as versions
    from sharespace.store import prune as remove_versions

    pruned = None if prune is None else remove_versions(share, keep=prune)
    output.history(versions(share), pruned, as_json)


@app.command()
def rollback(
    share: o.SharePath,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="See history.")],
    as_json: o.AsJson = False,
) -> None:
    """Make an earlier version the current one; the history stays."""
    from sharespace.cli import output
    from sharespace.store import rollback as go_back

    output.rolled_back(go_back(share, version), version, as_json)


app.command()(report)
app.command()(demo)
app.command()(run)
app.command()(serve)
app.command()(submit)
app.command()(gather)
app.command()(push)
app.command()(pull)


def _load(path: Path, version: int | None = None) -> Share:
    from sharespace.share import Share

    return Share.load(path, version)

"""All commands. Heavy imports are inside them, so that ``--help`` is instant.

The command ``export``.

The command ``report``.

The commands ``demo`` and ``run``: a whole stream of tasks.

The command ``serve``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sharespace.cli import options as o
from sharespace.cli.gathering import gather, pull, push, submit

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
    from sharespace.cli.options import optional_size

    return {
        "method": method,
        "centred": centred,
        "k": k,
        "variance": variance,
        "error": error,
        "budget": optional_size(budget),
        "p": p,
        "base": base,
        "dtype": dtype,
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
    from sharespace.cli.options import adapter_paths, executor, layers, optional_size
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
    from sharespace.cli.options import adapter_paths, layers
    from sharespace.share import Share

    arguments = _build_options(
        method, centred, k, variance, error, budget, p, base, dtype, device, seed
    )
    with layers("planning") as progress:
        found = Share.plan(adapter_paths(adapters), progress=progress, **arguments)
    output.plan(found, as_json)


@app.command()
def merge(
    share: o.SharePath,
    adapters: o.Adapters,
    cap: o.Cap = None,
    base: o.Base = None,
    device: o.Device = "cpu",
    workers: o.Workers = None,
    memory: o.Memory = None,
    as_json: o.AsJson = False,
) -> None:
    """Merge adapters into a Share model; the old adapters are not needed."""
    from sharespace.cli import output
    from sharespace.cli.options import adapter_paths, executor, layers, optional_size

    before, new, room = _load(share), adapter_paths(adapters), optional_size(memory)
    with executor(workers) as where, layers("merging") as progress:
        after = before.merge(
            new, cap=cap, base=base, device=device, progress=progress, executor=where, memory=room
        )
    after.save()
    output.merged(before, after, share, as_json)


app.command("add", hidden=True)(merge)


@app.command()
def union(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the union goes.")],
    shares: Annotated[
        list[Path], typer.Argument(metavar="SHARE SHARE...", help="Share models of one base.")
    ],
    cap: o.Cap = None,
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
        result = result.union(_load(other), cap=cap)
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
    with_baselines: Annotated[
        bool,
        typer.Option("--baselines", help="With --against: mean adapter, random basis, own SVD."),
    ] = False,
    version: Annotated[int | None, typer.Option(help="An earlier version.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """How well every task is kept: errors, bounds, bytes."""
    from sharespace.cli import output
    from sharespace.cli.options import adapter_paths
    from sharespace.errors import OptionError

    originals = adapter_paths([*(against or []), *(more or [])])
    if with_baselines and not originals:
        raise OptionError(
            "--baselines", "they need the original adapters", "Add --against ADAPTER..."
        )
    loaded = _load(share, version)
    baselines = loaded.baselines(originals) if with_baselines else None
    output.fidelity(loaded.fidelity(originals), baselines, as_json)


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
    from sharespace.formats import server_options
    from sharespace.share import Share

    written = Share.load(share, version).export(
        task,
        out,
        to=to,
        rank=rank,
        dtype=dtype,
        base=base,
        overwrite=overwrite,
    )
    output.exported(task, written, server_options(to, written), as_json)


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
def history(share: o.SharePath, as_json: o.AsJson = False) -> None:
    """The versions of a Share model."""
    from sharespace.cli import output
    from sharespace.store import history as read_history

    output.history(read_history(share), as_json)


@app.command()
def prune(
    share: o.SharePath,
    keep: Annotated[int, typer.Option("--keep", help="How many of the last versions stay.")],
    as_json: o.AsJson = False,
) -> None:
    """Remove all but the last versions, and the files that only they need, for good."""
    from sharespace.cli import output
    from sharespace.store import prune as prune_versions

    output.pruned(prune_versions(share, keep=keep), as_json)


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
    from sharespace.report import write

    written = write(share, out, version=version, overwrite=overwrite)
    output.page(written, as_json)
    if show:
        typer.launch(str(out.absolute()))


app.command()(report)


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


app.command()(demo)


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; see Recipe.")],
    as_json: o.AsJson = False,
) -> None:
    """Learn a stream of tasks from a recipe; run it again to go on where it was stopped."""
    from sharespace.cli import output
    from sharespace.cli.options import on_terminal
    from sharespace.stream import run as run_stream

    tell = None if as_json else output.stream_progress
    output.stream(run_stream(recipe, observe=tell, bars=on_terminal() and not as_json), as_json)


app.command()(run)


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

    ours = require("sharespace.serve.process", "serve")
    rules = ours.Rules(seconds=seconds, body=body, api_key=api_key, admin_token=admin_token)
    limits = ours.Limits(batch=batch, queue=queue)
    options = ours.Options(base, name, host, port, dtype, slots, limits, rules, drain, device)
    ours.serve(share, options)


app.command()(serve)


app.command()(submit)


app.command()(gather)


app.command()(push)


app.command()(pull)


def _load(path: Path, version: int | None = None) -> Share:
    from sharespace.share import Share

    return Share.load(path, version)

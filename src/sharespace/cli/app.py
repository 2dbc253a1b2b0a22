"""The commands on stored models, and all commands in one place. Heavy imports are inside them, so
that ``--help`` does not wait for torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharespace.cli import arguments as a
from sharespace.cli import services
from sharespace.mixture_names import DEFAULT_COMBINATION
from sharespace.subspace.basis_methods import DEFAULT_METHOD

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


@app.command(rich_help_panel="Build")
def init(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the Share model goes.")],
    adapters: a.AdapterArguments,
    method: a.MethodOption = DEFAULT_METHOD,
    centred: a.CentredFlag = False,
    k: a.KOption = None,
    variance: a.VarianceOption = None,
    error: a.ErrorOption = None,
    budget: a.BudgetOption = None,
    p: a.PseudoRankOption = None,
    base: a.BaseOption = None,
    dtype: a.DTypeOption = None,
    device: a.DeviceOption = "cpu",
    seed: a.SeedOption = 0,
    workers: a.WorkersOption = None,
    memory: a.MemoryOption = None,
    as_json: a.JsonFlag = False,
) -> None:
    """Build a Share model from LoRA adapters and say what it keeps of each."""
    from sharespace.cli import output
    from sharespace.share import Share
    from sharespace.store import refuse_existing

    refuse_existing(out)
    paths = a.adapter_paths(adapters)
    with a.layer_executor(workers) as executor, a.layer_progress("building") as progress:
        share = Share.from_adapters(
            paths,
            method=method,  # BuildSettings refuses other names
            centred=centred,
            k=k,
            variance=variance,
            error=error,
            budget=a.optional_size(budget),
            p=p,
            base=base,
            dtype=dtype,
            device=device,
            seed=seed,
            progress=progress,
            executor=executor,
            memory=a.optional_size(memory),
        )
    share.save(out)
    output.print_build(share, out, as_json)


@app.command(rich_help_panel="Build")
def plan(
    adapters: a.AdapterArguments,
    method: a.MethodOption = DEFAULT_METHOD,
    centred: a.CentredFlag = False,
    k: a.KOption = None,
    variance: a.VarianceOption = None,
    error: a.ErrorOption = None,
    budget: a.BudgetOption = None,
    p: a.PseudoRankOption = None,
    base: a.BaseOption = None,
    dtype: a.DTypeOption = None,
    device: a.DeviceOption = "cpu",
    seed: a.SeedOption = 0,
    as_json: a.JsonFlag = False,
) -> None:
    """Say what init would give, and whether it is worth it; nothing is written."""
    from sharespace.cli import output
    from sharespace.share import Share

    with a.layer_progress("planning") as progress:
        worth = Share.plan(
            a.adapter_paths(adapters),
            method=method,
            centred=centred,
            k=k,
            variance=variance,
            error=error,
            budget=a.optional_size(budget),
            p=p,
            base=base,
            dtype=dtype,
            device=device,
            seed=seed,
            progress=progress,
        )
    output.print_plan(worth, as_json)


@app.command(rich_help_panel="Build")
def merge(
    share: a.ShareArgument,
    adapters: a.AdapterArguments,
    cap: a.CapOption = None,
    max_error: a.MaxErrorOption = None,
    base: a.BaseOption = None,
    device: a.DeviceOption = "cpu",
    workers: a.WorkersOption = None,
    memory: a.MemoryOption = None,
    as_json: a.JsonFlag = False,
) -> None:
    """Merge adapters into a Share model; the old adapters are not needed."""
    from sharespace.cli import output
    from sharespace.share import Share

    before, paths = Share.load(share), a.adapter_paths(adapters)
    with a.layer_executor(workers) as executor, a.layer_progress("merging") as progress:
        after = before.merge(
            paths,
            cap=cap,
            max_error=max_error,
            base=base,
            device=device,
            progress=progress,
            executor=executor,
            memory=a.optional_size(memory),
        )
    after.save()
    output.print_merge(before, after, share, as_json)


# The verb's name before `merge`; scripts go on working, and `--help` does not list it.
app.command("add", hidden=True)(merge)


@app.command(rich_help_panel="Build")
def union(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the union goes.")],
    shares: Annotated[
        list[Path], typer.Argument(metavar="SHARE SHARE...", help="Share models of one base.")
    ],
    cap: a.CapOption = None,
    as_json: a.JsonFlag = False,
) -> None:
    """Put the tasks of several Share models of one base into one."""
    from sharespace.cli import output
    from sharespace.errors import OptionError
    from sharespace.share import Share
    from sharespace.store import refuse_existing

    if len(shares) < 2:
        raise OptionError("union", f"got {len(shares)} Share model", "Name at least two")
    refuse_existing(out)
    joined = Share.load(shares[0])
    for path in shares[1:]:
        joined = joined.union(Share.load(path), cap=cap)
    joined.save(out)
    output.print_build(joined, out, as_json)


@app.command(rich_help_panel="Build")
def combine(
    share: a.ShareArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new task's name.")],
    weights: a.WeightArguments,
    method: a.CombinationOption = DEFAULT_COMBINATION,
    density: a.DensityOption = None,
    scale: a.ScaleOption = None,
    heads: a.HeadsOption = None,
    as_json: a.JsonFlag = False,
) -> None:
    """Combine tasks into a new one; bases and tasks stay as they are."""
    from sharespace.cli import output
    from sharespace.share import Share

    before = Share.load(share)
    after = before.combine(
        a.numbers_by_name(weights),
        name=name,
        method=method,
        scales=a.numbers_by_name(scale or []),
        heads=heads,
        **({} if density is None else {"density": density}),
    )
    after.save()
    output.print_combination(after, name, share, as_json)


@app.command(rich_help_panel="Build")
def remove(
    share: a.ShareArgument,
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Names of tasks.")],
    as_json: a.JsonFlag = False,
) -> None:
    """Remove tasks; the others stay as they are, bit for bit."""
    from sharespace.cli import output
    from sharespace.store import remove as remove_tasks

    output.print_change(remove_tasks(share, tasks), f"Removed {', '.join(tasks)}", as_json)


@app.command(rich_help_panel="Build")
def rename(
    share: a.ShareArgument,
    old: Annotated[str, typer.Argument(metavar="OLD")],
    new: Annotated[str, typer.Argument(metavar="NEW")],
    as_json: a.JsonFlag = False,
) -> None:
    """Give a task another name."""
    from sharespace.cli import output
    from sharespace.store import rename as rename_task

    output.print_change(rename_task(share, old, new), f"Renamed {old} to {new}", as_json)


@app.command(rich_help_panel="Inspect")
def info(
    share: a.ShareArgument,
    version: Annotated[int | None, typer.Option(help="An earlier version.")] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="How the updates of each layer are stored, too.")
    ] = False,
    as_json: a.JsonFlag = False,
) -> None:
    """What is in a Share model."""
    from sharespace.cli import output
    from sharespace.store import checkout

    output.print_info(checkout(share, version), layers, as_json)


@app.command(rich_help_panel="Inspect")
def fidelity(
    share: a.ShareArgument,
    further: Annotated[list[str] | None, typer.Argument(metavar="ADAPTER...", hidden=True)] = None,
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
    as_json: a.JsonFlag = False,
) -> None:
    """How well every task is kept: errors, bounds, bytes."""
    from sharespace.cli import output
    from sharespace.errors import OptionError
    from sharespace.share import Share

    # An option takes one value, so a shell's glob after --against ends in the hidden argument.
    originals = a.adapter_paths([*(against or []), *(further or [])])
    if with_baselines and not originals:
        raise OptionError(
            "--baselines", "they need the original adapters", "Add --against ADAPTER..."
        )
    loaded = Share.load(share, version)
    baselines = loaded.baselines(originals) if with_baselines else None
    output.print_fidelity(loaded.fidelity(originals), baselines, as_json)


@app.command(rich_help_panel="Serve")
def export(
    share: a.ShareArgument,
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
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export.")
    ] = False,
    version: Annotated[int | None, typer.Option(help="From an earlier version.")] = None,
    as_json: a.JsonFlag = False,
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
    output.print_export(task, written, server_options(to, written), as_json)


@app.command(rich_help_panel="Inspect")
def verify(
    share: a.ShareArgument,
    every: Annotated[bool, typer.Option("--all", help="All versions, not only the last.")] = False,
    as_json: a.JsonFlag = False,
) -> None:
    """Check every file's hash, shape and values; exit code 2 where something is damaged."""
    from sharespace.cli import EXIT_BAD_INPUT, output
    from sharespace.store import verify as verify_store

    verification = verify_store(share, all_versions=every)
    output.print_verification(verification, as_json)
    if not verification.ok:
        raise typer.Exit(EXIT_BAD_INPUT)


@app.command(rich_help_panel="Inspect")
def history(share: a.ShareArgument, as_json: a.JsonFlag = False) -> None:
    """The versions of a Share model."""
    from sharespace.cli import output
    from sharespace.store import history as read_history

    output.print_history(read_history(share), as_json)


@app.command(rich_help_panel="Operate")
def prune(
    share: a.ShareArgument,
    keep: Annotated[int, typer.Option("--keep", help="How many of the last versions stay.")],
    as_json: a.JsonFlag = False,
) -> None:
    """Remove all but the last versions, and the files that only they need, for good."""
    from sharespace.cli import output
    from sharespace.store import prune as prune_versions

    output.print_prune(prune_versions(share, keep=keep), as_json)


@app.command(rich_help_panel="Operate")
def rollback(
    share: a.ShareArgument,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="See history.")],
    as_json: a.JsonFlag = False,
) -> None:
    """Make an earlier version the current one; the history stays."""
    from sharespace.cli import output
    from sharespace.store import rollback as go_back

    output.print_rollback(go_back(share, version), version, as_json)


@app.command(rich_help_panel="Inspect")
def report(
    share: a.ShareArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Where the page goes.")
    ] = Path("report.html"),
    version: Annotated[int | None, typer.Option(help="Of an earlier version.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier report.")
    ] = False,
    show: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    as_json: a.JsonFlag = False,
) -> None:
    """One HTML page of it all: what is kept, similarity, sizes, history, warnings."""
    from sharespace.cli import output
    from sharespace.report import write_report

    written = write_report(share, out, version=version, overwrite=overwrite)
    output.print_report(written, as_json)
    if show:
        typer.launch(str(out.absolute()))


@app.command(rich_help_panel="Learn")
def demo(
    out: Annotated[Path, typer.Argument(metavar="[OUT]", help="Where results go.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Of data, training and subspace.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny version.")] = False,
    as_json: a.JsonFlag = False,
) -> None:
    """The whole method on real data in two minutes: handwritten digits and a small ViT."""
    from sharespace.cli import output
    from sharespace.demo import run

    result = run(out, seed=seed, quick=quick, log=None if as_json else output.print_progress)
    output.print_demo(result, out, as_json)


@app.command(rich_help_panel="Learn")
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; see Recipe.")],
    as_json: a.JsonFlag = False,
) -> None:
    """Learn a stream of tasks from a recipe; run it again to go on where it was stopped."""
    from sharespace.cli import output
    from sharespace.stream import run as run_stream

    tell = None if as_json else output.print_stream_progress
    output.print_stream(
        run_stream(recipe, observe=tell, bars=a.on_terminal() and not as_json), as_json
    )


@app.command(rich_help_panel="Learn")
def compare(
    recipe: a.ComparedRecipeArgument,
    methods: a.MethodsOption = None,
    seeds: a.SeedsOption = 1,
    rates: a.RatesOption = "0.25,1,4",
    out: a.ComparisonOption = None,
    csv: a.CsvOption = None,
    as_json: a.JsonFlag = False,
) -> None:
    """Train Share and other methods on a recipe's tasks, and show them in one table."""
    from sharespace.cli import output
    from sharespace.compare import compare_recipe

    tell, tries = None if as_json else output.print_stream_progress, a.numbers("--rates", rates)
    runs = compare_recipe(recipe, a.names(methods), seeds=seeds, rates=tries, out=out, observe=tell)
    output.print_comparison(runs, csv, as_json)


app.command(rich_help_panel="Serve")(services.serve)
for verb in (services.submit, services.gather, services.push, services.pull):
    app.command(rich_help_panel="Operate")(verb)

"""All commands. Heavy imports are inside them, so that ``--help`` does not wait for torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sharespace.cli import arguments as a
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


@app.command(rich_help_panel="Serve")
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
    body_seconds: Annotated[
        float, typer.Option(help="In which a request's body comes; then 408.")
    ] = 20.0,
    connections: Annotated[
        int, typer.Option(help="At most; a silent one makes room, else one more gets 503.")
    ] = 1000,
    silence: Annotated[
        float, typer.Option(help="Seconds that a connection may send or take nothing.")
    ] = 20.0,
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
    from sharespace.errors import OptionError
    from sharespace.extras import require

    secrets = {"SHARESPACE_API_KEY": api_key, "SHARESPACE_ADMIN_TOKEN": admin_token}
    for secret, value in secrets.items():
        # click takes an empty variable for one that is not set; here it would leave a door open.
        if value is None and os.environ.get(secret) == "":
            raise OptionError(secret, "it is empty", "Set it to a token, or unset it")
    process = require("sharespace.serve.process", "serve")
    http = process.HttpSettings(
        answer_seconds=seconds,
        body_bytes=body,
        body_seconds=body_seconds,
        api_key=api_key,
        admin_token=admin_token,
    )
    limits = process.EngineLimits(batch=batch, queue=queue)
    settings = process.ServeSettings(
        base=base,
        name=name,
        host=host,
        port=port,
        dtype=dtype,
        slots=slots,
        limits=limits,
        http=http,
        connections=process.ConnectionLimits(silence, connections),
        drain=drain,
        device=device,
    )
    process.serve(share, settings)


@app.command(rich_help_panel="Operate")
def submit(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="What save_pretrained wrote.")],
    inbox: a.InboxArgument,
    task: Annotated[
        str | None, typer.Option(help="Its name; default that of the ShareConfig, or the folder's.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Whole factors: larger, independent of the history.")
    ] = False,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="INBOX hf://USER/REPO/FOLDER: propose it there.")
    ] = False,
    as_json: a.JsonFlag = False,
) -> None:
    """Hand in a trained task as one small file, for gather to merge."""
    from sharespace.cli import output
    from sharespace.gather import submit as submit_adapter

    submission = submit_adapter(adapter, inbox, task=task, plain=plain, pull_request=pull_request)
    output.print_submission(submission, as_json)


@app.command(rich_help_panel="Operate")
def gather(
    share: a.ShareArgument,
    inbox: a.InboxArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until SIGINT or SIGTERM.")] = False,
    interval: Annotated[
        float, typer.Option(help="With --watch: seconds between two looks.")
    ] = 10.0,
    batch: Annotated[int, typer.Option(help="Contributions that one version takes in.")] = 32,
    on_conflict: a.ConflictOption = "refuse",
    max_error: a.MaxErrorOption = None,
    new_modules: Annotated[
        bool,
        typer.Option("--new-modules", help="Take plain factors of modules that SHARE lacks."),
    ] = False,
    device: a.DeviceOption = "cpu",
    as_json: a.JsonFlag = False,
) -> None:
    """Merge what was handed in, each contribution once; bad ones are set aside with a reason."""
    from sharespace.cli import output
    from sharespace.gather import Gatherer, GatherSettings, open_inbox
    from sharespace.gather import watch as watch_inbox

    settings = GatherSettings(
        batch, on_conflict, device=device, max_error=max_error, new_modules=new_modules
    )
    gatherer = Gatherer(share, open_inbox(inbox), settings)
    if not watch:
        outcome = gatherer.run(None if as_json else output.print_gather_batch)
        output.print_gather(outcome, inbox, as_json)
        return
    observe = output.print_watched_record if as_json else output.print_watched_batch
    with a.stopped_by_signals() as stop:
        watch_inbox(
            gatherer, stop, interval=interval, observe=observe, failed=output.print_watch_failure
        )


@app.command(rich_help_panel="Operate")
def push(
    share: a.ShareArgument,
    repository: a.RepositoryArgument,
    pull_request: a.PullRequestFlag = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new REPO private.")] = False,
    license_id: a.LicenseOption = None,
    as_json: a.JsonFlag = False,
) -> None:
    """Bring a Share model's new versions and a model card to the Hub, in one commit."""
    from sharespace.cli import output
    from sharespace.gather import push as push_versions

    url = push_versions(
        share, repository, pull_request=pull_request, private=private, license_id=license_id
    )
    output.print_push(repository, url, as_json)


@app.command(rich_help_panel="Operate")
def pull(
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="USER/REPO[@REVISION] on the Hugging Face Hub.")
    ],
    share: Annotated[Path, typer.Argument(metavar="SHARE", help="A copy of it, or a new path.")],
    as_json: a.JsonFlag = False,
) -> None:
    """Bring a copy of a Share model to the version on the Hub, or make one."""
    from sharespace.cli import output
    from sharespace.gather import pull as pull_versions

    output.print_pull(share, pull_versions(repository, share), as_json)
